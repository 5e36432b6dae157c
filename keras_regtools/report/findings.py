"""What a run says at a glance, one sentence each."""

import math

from keras_regtools.plots.layers import recorded_layers
from keras_regtools.report.staleness import staleness


def findings(records, info):
    """The sentences at the top of a page."""
    epochs, losses = records.series("loss")
    if not epochs:
        return ["No epoch was finished."]
    found = [
        f"Training loss went from {losses[0]:.3g} to {losses[-1]:.3g} in {len(epochs)} "
        f"epoch{'s' if len(epochs) > 1 else ''}."
    ]
    if any(not math.isfinite(v) for v in losses):
        found.append("The training loss became NaN or infinite: the run diverged.")
    at, validation = records.series("val_loss")
    if any(math.isfinite(value) for value in validation):
        best = min(range(len(validation)), key=lambda i: _or_infinity(validation[i]))
        found.append(
            f"Validation loss was lowest in epoch {at[best] + 1}, at {validation[best]:.3g}; "
            f"it ended at {validation[-1]:.3g}."
        )
    accuracy = records.last("val_accuracy")
    if math.isfinite(accuracy):
        found.append(f"Validation accuracy ended at {accuracy:.3f}.")
    found.append(staleness(records))
    rates = records.series("learning_rate", by="step")[1]
    if rates:
        found.append(f"The learning rate went from {rates[0]:.3g} to {rates[-1]:.3g}.")
    if recorded_layers(records):
        found.append(_flow(records))
    found += [_penalty(records), _sharpness(records)]
    if info and not info.get("finished"):
        found.append("The run was cut off or still goes on: this is what it has recorded.")
    return [sentence for sentence in found if sentence]


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


def _penalty(records):
    penalty, loss = records.last("penalty"), records.last("data_loss")
    if not (penalty > 0 and loss > 0):
        return None
    return (
        f"The weight penalties ended at {penalty:.3g}, {penalty / loss:.3g} times the training "
        f"loss on the data alone, {loss:.3g}."
    )


def _sharpness(records):
    epochs, values = records.series("sharpness/keskar")
    if not epochs or not math.isfinite(values[-1]):
        return None
    return (
        f"Keskar's sharpness was {values[-1]:.3g} after epoch {epochs[-1] + 1} (the rise of the "
        "loss in the box, in % of 1 + loss)."
    )


def _or_infinity(value):
    return value if math.isfinite(value) else math.inf
