"""Draw the pictures of a run and put them on one page."""

import base64
import html
import io
import math
import pathlib

from keras_regtools import plots
from keras_regtools.plots.layers import recorded_layers
from keras_regtools.report.run import RunFiles

# File, picture, how to read it, and whether the records have something to show.
_PICTURES = (
    (
        "loss",
        plots.loss,
        "Both curves should fall. Where validation rises while training falls, the network learns "
        "its training data by heart.",
        lambda records: "loss" in records.names(),
    ),
    (
        "accuracy",
        plots.accuracy,
        "Both curves should rise. The gap between them is what generalization costs.",
        lambda records: any(name.endswith(("accuracy", "acc")) for name in records.names()),
    ),
    (
        "learning_rate",
        plots.learning_rate,
        "The size of the steps. A ramp at the beginning is the warm-up to the scaled rate; steps "
        "down are decay.",
        lambda records: "learning_rate" in records.names(),
    ),
    (
        "activation_ranges",
        plots.activation_ranges,
        "Each row is what came into one layer, from the input at the top to the output at the "
        "bottom. Rows of similar width are healthy; a spread that shrinks or grows from row to row "
        "means that signals vanish or explode.",
        recorded_layers,
    ),
    (
        "activation_scales",
        plots.activation_scales,
        "One curve per layer. Level curves close together are healthy; a curve that runs away from "
        "the others shows the layer where trouble begins.",
        recorded_layers,
    ),
    (
        "moving_distances",
        plots.moving_distances,
        "Batch normalization trains with the batch's mean and predicts with the moving one. Well "
        "below 1 the two agree; a large distance means that validation sees another network than "
        "training does.",
        lambda records: recorded_layers(records, "mean_distance"),
    ),
    (
        "penalties",
        plots.penalties,
        "The black curve is the loss on the data alone. A penalty far below it hardly acts; one "
        "above it rules the training.",
        lambda records: any(name.startswith("penalty/") for name in records.names()),
    ),
    (
        "sharpness",
        plots.sharpness,
        "How far the loss can rise when every weight moves a little, by a thousandth by default: "
        "low is flat, high is sharp. Compare it only between runs with the same network, data and "
        "settings; it does not predict generalization reliably.",
        lambda records: any(name.startswith("sharpness/") for name in records.names()),
    ),
)


class Page:
    """A written report; it shows itself as the last line of a notebook cell.

    Attributes:
        path: The file `report.html`.
    """

    def __init__(self, path):
        self.path = pathlib.Path(path)

    def _repr_html_(self):
        source = html.escape(self.path.read_text("utf-8"), quote=True)
        return f'<iframe srcdoc="{source}" style="width:100%;height:900px;border:0"></iframe>'

    def __repr__(self):
        return f"Page({str(self.path)!r})"


def write(directory):
    """Draw the pictures of a run and write `report.html` beside its records.

    Everything comes from the files that `callbacks.Report(directory)` wrote, so the report of a run
    that was cut off can be made, or made again, at any time.

    Args:
        directory: The directory with `records.jsonl` and `run.json`.

    Returns:
        A `Page`, which a notebook shows; `.path` is the HTML file. The pictures lie beside it as
        PNG and in it.

    Raises:
        ValueError: a directory without records.

    Example:

    >>> import pathlib, tempfile
    >>> from keras_regtools import records, report
    >>> directory = pathlib.Path(tempfile.mkdtemp())
    >>> rows = records.Records([(0, 10, "loss", 1.0), (1, 20, "loss", 0.5)])
    >>> rows.write_to(directory / "records.jsonl")
    >>> report.write(directory).path.name
    'report.html'
    """
    files = RunFiles(directory)
    records, info = files.read()
    pictures = []
    for name, draw, reading, wanted in _PICTURES:
        if wanted(records):
            png = _draw(draw, records)
            (files.directory / f"{name}.png").write_bytes(png)
            encoded = base64.b64encode(png).decode("ascii")
            alternative = name.replace("_", " ")
            pictures.append({"data": encoded, "alt": alternative, "reading": reading})
        else:  # one of an earlier run does not belong to this one
            (files.directory / f"{name}.png").unlink(missing_ok=True)
    path = files.directory / "report.html"
    page = _template().render(
        title=info.get("settings", {}).get("title") or info.get("model") or "Run",
        findings=_findings(records, info),
        pictures=pictures,
        settings=_settings(info),
        times=_times(records),
    )
    path.write_text(page, "utf-8")
    return Page(path)


def _draw(draw, records):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), dpi=110, layout="constrained")
    draw(records, figure.subplots())
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _template():
    import jinja2

    source = (pathlib.Path(__file__).parent / "page.html").read_text("utf-8")
    return jinja2.Environment(autoescape=True).from_string(source)


def _findings(records, info):
    """What the run says at a glance, one sentence each."""
    epochs, losses = records.series("loss")
    if not epochs:
        return ["No epoch was finished."]
    findings = [
        f"Training loss went from {losses[0]:.3g} to {losses[-1]:.3g} in {len(epochs)} "
        f"epoch{'s' if len(epochs) > 1 else ''}."
    ]
    if any(not math.isfinite(v) for v in losses):
        findings.append("The training loss became NaN or infinite: the run diverged.")
    validation = records.series("val_loss")[1]
    if any(math.isfinite(value) for value in validation):
        best = min(range(len(validation)), key=lambda i: _or_infinity(validation[i]))
        findings.append(
            f"Validation loss was lowest in epoch {records.series('val_loss')[0][best] + 1}, at "
            f"{validation[best]:.3g}; it ended at {validation[-1]:.3g}."
        )
    accuracy = records.last("val_accuracy")
    if math.isfinite(accuracy):
        findings.append(f"Validation accuracy ended at {accuracy:.3f}.")
    rates = records.series("learning_rate", by="step")[1]
    if rates:
        findings.append(f"The learning rate went from {rates[0]:.3g} to {rates[-1]:.3g}.")
    if recorded_layers(records):
        findings.append(_flow(records))
    penalty, data_loss = records.last("penalty"), records.last("data_loss")
    if penalty > 0 and data_loss > 0:
        findings.append(
            f"The weight penalties ended at {penalty:.3g}, {100 * penalty / data_loss:.3g} % of "
            "the data loss."
        )
    sharpness = records.last("sharpness/keskar")
    if math.isfinite(sharpness):
        findings.append(
            f"Keskar's sharpness ended at {sharpness:.3g} (the rise of the loss in the box, in % "
            "of 1 + loss)."
        )
    stale = records.last("batch_norm/initial_share")
    if stale > 0.05:
        findings.append(
            f"The moving statistics of batch normalization still hold {100 * stale:.0f} % of their "
            "initial values: validation is judged with stale statistics. Train longer, lower the "
            "layers' momentum, or call keras_regtools.recalibrate(model, x)."
        )
    if info and not info.get("finished"):
        findings.append("The run was cut off or still goes on: this is what it has recorded.")
    return findings


def _flow(records):
    """Whether the scale of what flows keeps its size from input to output."""
    scales = {n: records.last(f"activations/{n}/std") for n in recorded_layers(records)}
    scales = {n: scale for n, scale in scales.items() if math.isfinite(scale)}
    if not scales:
        return "What the layers received became NaN or infinite."
    low, high = min(scales, key=scales.get), max(scales, key=scales.get)
    ratio = scales[high] / scales[low] if scales[low] > 0 else math.inf
    return (
        f"The standard deviation of what the layers received ran from {scales[low]:.3g} ({low}) to "
        f"{scales[high]:.3g} ({high}), a factor of {ratio:.3g}."
    )


def _settings(info):
    """What the run was, as rows of a table."""
    rows = []
    for key, value in info.items():
        name = key.replace("_", " ")
        if isinstance(value, dict):
            value = ", ".join(f"{k} {_short(v)}" for k, v in value.items() if v is not None)
        if value not in (None, ""):
            rows.append((name, value))
    return rows


def _short(value):
    return f"{value:.6g}" if isinstance(value, float) else value


def _times(records):
    """Seconds of the fit and of each callback, and the share of measuring."""
    total = records.last("time/fit")
    parts = {
        name.removeprefix("time/"): records.last(name)
        for name in records.names()
        if name.startswith("time/") and name != "time/fit"
    }
    if not math.isfinite(total) or total <= 0:
        return None
    measuring = sum(parts.values())
    return {"total": total, "parts": parts, "measuring": measuring, "share": measuring / total}


def _or_infinity(value):
    return value if math.isfinite(value) else math.inf
