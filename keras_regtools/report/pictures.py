"""The pictures of a page: what each draws, how to read it in this run, when it is worth showing."""

import functools
import io
import math
from collections.abc import Callable
from typing import NamedTuple

from keras_regtools import plots
from keras_regtools.plots.layers import recorded_layers
from keras_regtools.report.staleness import is_stale


class Picture(NamedTuple):
    """A picture of a run.

    Attributes:
        name: The file's, without its ending.
        draw: Function of records and an Axes.
        caption: How to read it: a function of the records.
        rows: How many layers stand below each other in it; 0 for curves.
    """

    name: str
    draw: Callable
    caption: Callable
    rows: int = 0

    def png(self, records):
        """The picture as the bytes of a PNG file."""
        from matplotlib.figure import Figure

        height = max(4.0, 1.2 + 0.16 * self.rows)
        figure = Figure(figsize=(6.4, height), dpi=110, layout="constrained")
        self.draw(records, figure.subplots())
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        return buffer.getvalue()


def pictures(records):
    """The pictures that these records have something for, in the order of the page."""
    names = records.names()
    layers = recorded_layers(records)

    def begins(prefix):
        return any(name.startswith(prefix) for name in names)

    known = [
        (Picture("loss", plots.loss, _loss), "loss" in names),
        (
            Picture("accuracy", plots.accuracy, _accuracy),
            any(n.endswith(("accuracy", "acc")) and "/" not in n for n in names),
        ),
        (Picture("learning_rate", plots.learning_rate, _rate), "learning_rate" in names),
        (Picture("activation_ranges", plots.activation_ranges, _ranges, len(layers)), layers),
        (Picture("activation_scales", plots.activation_scales, _scales), layers),
        (
            Picture("moving_distances", plots.moving_distances, _distances),
            recorded_layers(records, "mean_distance"),
        ),
        (Picture("gradient_norms", plots.gradient_norms, _gradients), begins("gradients/")),
        (Picture("penalties", plots.penalties, _penalties), begins("penalty/")),
        (Picture("sharpness", plots.sharpness, _sharpness), begins("sharpness/")),
    ]
    found = [picture for picture, wanted in known if wanted]
    return found + [_of_others(prefix) for prefix in _other_prefixes(records)]


_DRAWN = ("activations", "batch_norm", "channels", "gradients", "penalty", "sharpness", "time")
_ALONE = {"loss", "learning_rate", "penalty", "data_loss", "val_data_loss", "recalibrated"}
_MOST = 12  # pictures of quantities that nothing is known of


def _other_prefixes(records):
    """What else was measured: the part before the slash, or the whole name without one."""
    prefixes = {}
    for name in records.names():
        first, slash, _ = name.partition("/")
        logged = first in _ALONE or first in _DRAWN or name.startswith("val_")
        if logged or (not slash and name.endswith(("accuracy", "acc"))):
            continue
        prefixes.setdefault(name.rpartition("/")[0] or name)
    # Of a measure `name` with numbers `name/number`, the value alone is the picture.
    own = [p for p in prefixes if not any(p.startswith(f"{q}/") for q in prefixes)]
    return own[:_MOST]


def _of_others(prefix):
    draw = functools.partial(_draw_quantities, prefix=prefix)
    file = "".join(c if c.isalnum() or c in "-_" else "_" for c in prefix)
    return Picture(f"measured_{file}", draw, lambda records: f"{prefix}, as it was measured.")


def _draw_quantities(records, ax, prefix):
    return plots.quantities(records, prefix, ax)


def _loss(records):
    if "val_loss" not in records.names():
        return "The training loss should fall."
    return "Both curves should fall. " + _validation(records, "rises while training falls")


def _accuracy(records):
    if not any(name.startswith("val_") for name in records.names()):
        return "The training accuracy should rise."
    return "Both curves should rise. " + _validation(
        records, "stays behind a rising training curve"
    )


def _validation(records, behind):
    if "recalibrated" in records.names():
        return (
            "The dashed curve is the validation with statistics of batch normalization that belong "
            "to the weights: the gap from it to validation is due to moving statistics that lag "
            "behind, the gap from training to it is due to the data."
        )
    if is_stale(records):
        return (
            "Validation uses moving statistics of batch normalization that lag behind the weights "
            "(see above): until they are re-estimated, its distance from training says little "
            "about generalization."
        )
    return (
        f"Where validation {behind}, the network learns what holds for its training data only. "
        "With dropout, validation may lie on the better side."
    )


def _rate(records):
    return (
        "The size of the steps. A ramp at the beginning is the warm-up to the scaled rate; steps "
        "down are decay."
    )


def _ranges(records):
    return (
        "Each row is what came into one layer, from the input at the top to the output at the "
        "bottom. Rows of similar width are healthy; a spread that shrinks or grows from row to row "
        "means that signals vanish or explode. The last row, in front of the output's activation, "
        "may be wide: that is how sure the network is."
    )


def _scales(records):
    return (
        "One curve per layer. Between the input and the last layer, curves close together are "
        "healthy. The curve of the last layer grows as the network becomes sure of its answers."
    )


def _distances(records):
    text = (
        "Batch normalization trains with the batch's mean and predicts with the moving one. Well "
        "below 1 the two agree; a large distance means that validation sees another network than "
        "training does."
    )
    if "batch_norm/lag" in records.names():
        text += " Here the moving means were estimated anew before each validation."
    return text


def _gradients(records):
    return (
        "One curve per layer. Curves of similar height are healthy; where those of early layers "
        "lie thousands of times lower, gradients vanish on their way to the input."
    )


def _penalties(records):
    penalty, loss = records.last("penalty"), records.last("data_loss")
    text = "The black curve is the training loss on the data alone. "
    if not (math.isfinite(penalty) and math.isfinite(loss)):
        return text
    if penalty > loss:
        return text + "In the end the penalties are larger: they rule the training."
    if penalty < loss / 100:
        return text + "The penalties stay below a hundredth of it: they hardly act."
    return text + "The penalties are smaller, and act."


def _sharpness(records):
    return (
        "How far the loss can rise when every weight moves a little, by a thousandth by default: "
        "low is flat, high is sharp. Compare it only between runs with the same network, data and "
        "settings; it does not predict generalization reliably."
    )
