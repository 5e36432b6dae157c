"""Whether validation was judged with statistics of batch normalization that lag behind."""

import math

from keras_regtools.plots.recorded import recorded_layers

_FAR = 0.5  # standard deviations; random batches of 32 alone are about 0.15 away
_FAR_AT_FIRST = 0.25  # while much of the initial values is left
_APART = 0.02  # of an accuracy


def worst_distance(records):
    """`(layer, distance)` where batch and moving statistics were furthest apart at the end."""
    found = {
        layer: max(
            records.last(f"activations/{layer}/{name}", 0.0)
            for name in ("mean_distance", "std_distance")
        )
        for layer in recorded_layers(records, "mean_distance")
    }
    found = {layer: distance for layer, distance in found.items() if math.isfinite(distance)}
    return max(found.items(), key=lambda item: item[1], default=(None, math.nan))


def is_stale(records):
    """Whether the moving statistics at the end were not those of the weights, as far as known."""
    return staleness(records) is not None


def staleness(records):
    """A sentence if validation was judged with stale statistics, from what was measured."""
    cure = (
        "Use callbacks.PreciseBatchNorm(x), a lower momentum of the layers, or "
        "keras_regtools.recalibrate(model, x)."
    )
    accuracy, moving = (
        records.last(f"recalibrated/{name}") for name in ("accuracy", "moving_accuracy")
    )
    if abs(accuracy - moving) > _APART:
        return (
            f"The validation accuracy is {moving:.3f} with the moving statistics of batch "
            f"normalization and {accuracy:.3f} with statistics that belong to the weights. {cure}"
        )
    if math.isfinite(accuracy) or "batch_norm/lag" in records.names():
        return None  # measured, and near; or re-estimated before each validation
    layer, distance = worst_distance(records)
    share = records.last("batch_norm/initial_share")
    if distance > (_FAR_AT_FIRST if share > 0.05 else _FAR):
        held = f" and hold {100 * share:.0f} % of their initial values" if share > 0.05 else ""
        return (
            f"The moving statistics of {layer} were {distance:.2g} standard deviations away from "
            f"those of the batches{held}: validation is judged with stale statistics. {cure}"
        )
    if layer is None and share > 0.05:
        return (
            f"The moving statistics of batch normalization still hold {100 * share:.0f} % of their "
            f"initial values: validation may be judged with stale statistics. {cure}"
        )
    return None
