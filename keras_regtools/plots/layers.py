"""What flows through each layer."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_regtools.plots.axes import (
    by_depth,
    curve,
    depth_bar,
    legend,
    log_if_wide,
    note,
    on,
    over_epochs,
)
from keras_regtools.plots.picture import picture
from keras_regtools.plots.recorded import recorded_layers

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NOTHING = "No layer was instrumented: train keras_regtools.instrument(model)."


def _layers(records):
    return len(recorded_layers(records))


def _ranges(records):
    return (
        "Each row is what came into one layer, from the input at the top to the output at the "
        "bottom. Rows of similar width are healthy; a spread that shrinks or grows from row to row "
        "means that signals vanish or explode. The last row, in front of the output's activation, "
        "may be wide: that is how sure the network is."
    )


@picture(40, "activations/", "channels/", caption=_ranges, shown=recorded_layers, rows=_layers)
def activation_ranges(records: Any, ax: Any = None) -> Axes:
    """Mean, spread and extremes of what each layer received in the last epoch.

    Args:
        records: `Records` of a run with instrumented layers.
        ax: Matplotlib axes to draw on; those of a new figure by default.

    Returns:
        The axes: a row per layer, from the input at the top to the output at the bottom.
    """
    ax = on(ax)
    layers = recorded_layers(records)
    if not layers:
        return note(ax, _NOTHING)
    rows = np.arange(len(layers))
    last = {
        quantity: np.array([records.last(f"activations/{layer}/{quantity}") for layer in layers])
        for quantity in ("mean", "std", "minimum", "maximum")
    }
    last = {name: np.where(np.isfinite(values), values, np.nan) for name, values in last.items()}
    ax.hlines(rows, last["minimum"], last["maximum"], color="0.7", label="minimum to maximum")
    ax.errorbar(
        last["mean"], rows, xerr=last["std"], fmt="o", capsize=3, label="mean ± standard deviation"
    )
    ax.set_yticks(rows, layers, fontsize=7 if len(rows) <= _NAMED else 5)
    ax.invert_yaxis()
    ax.grid(axis="x", alpha=0.3)
    ax.set(title="What each layer received, last epoch", xlabel="activation", ylabel="layer")
    ax.legend(fontsize=7)
    return ax


def _scales(records):
    return (
        "One curve per layer. Between the input and the last layer, curves close together are "
        "healthy. The curve of the last layer grows as the network becomes sure of its answers."
    )


def _flow(records):
    """Whether the scale of what flows keeps its size from input to output."""
    if not recorded_layers(records):
        return None
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


@picture(50, "activations/", caption=_scales, finding=_flow, shown=recorded_layers)
def activation_scales(records: Any, ax: Any = None) -> Axes:
    """The standard deviation of what each layer received, over the epochs.

    Args:
        records: `Records` of a run with instrumented layers.
        ax: Matplotlib axes to draw on; those of a new figure by default.

    Returns:
        The axes.
    """
    return _per_layer(records, ax, "std", "Scale of what each layer received", "standard deviation")


def _distances(records):
    text = (
        "Batch normalization trains with the batch's mean and predicts with the moving one. Well "
        "below 1 the two agree; a large distance means that validation sees another network than "
        "training does."
    )
    if "batch_norm/lag" in records.names():
        text += " Here the moving means were re-estimated before each validation."
    return text


def _has_moving_statistics(records):
    return recorded_layers(records, "mean_distance")


@picture(60, "batch_norm/", caption=_distances, shown=_has_moving_statistics)
def moving_distances(records: Any, ax: Any = None) -> Axes:
    """How far the batches' means were from the moving means, over the epochs.

    Args:
        records: `Records` of a run with instrumented batch normalization.
        ax: Matplotlib axes to draw on; those of a new figure by default.

    Returns:
        The axes.
    """
    title = "Batch mean against moving mean"
    return _per_layer(records, ax, "mean_distance", title, "distance\n[moving standard deviations]")


def _gradients(records):
    return (
        "One curve per layer. Curves of similar height are healthy; where those of early layers "
        "lie thousands of times lower, gradients vanish on their way to the input."
    )


@picture(70, "gradients/", caption=_gradients)
def gradient_norms(records: Any, ax: Any = None) -> Axes:
    """The norm of each layer's gradient before clipping, over the epochs.

    Args:
        records: `Records` of a run with `callbacks.GradientMonitor`.
        ax: Matplotlib axes to draw on; those of a new figure by default.

    Returns:
        The axes.
    """
    ax = on(ax)
    layers = recorded_layers(records, "gradient_norm", "gradients")
    if not layers:
        return note(ax, "No gradients were recorded: add callbacks.GradientMonitor().")
    title = "Gradient of each layer"
    return _curves(records, ax, "gradients", layers, "gradient_norm", title, "norm of the gradient")


def _per_layer(records, ax, quantity, title, label):
    ax = on(ax)
    layers = recorded_layers(records, quantity)
    if not layers:
        missing = "No batch normalization was instrumented." if quantity != "std" else _NOTHING
        return note(ax, missing)
    return _curves(records, ax, "activations", layers, quantity, title, label)


def _curves(records, ax, kind, layers, quantity, title, label):
    values, few = [], len(layers) <= _NAMED
    for layer, colour in zip(layers, by_depth(len(layers)), strict=True):
        name = f"{kind}/{layer}/{quantity}"
        curve(ax, records, name, label=layer if few else None, color=colour, linewidth=1 + few)
        values += records.series(name)[1]
    over_epochs(ax)
    log_if_wide(ax, values)
    ax.set(title=title, ylabel=label)
    if few:
        legend(ax, "from input to output")
    else:
        depth_bar(ax, layers)
    return ax


_NAMED = 12  # more layers than that get a bar of colours in place of names
