"""What flows through each layer."""

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

_NOTHING = "No layer was instrumented: train keras_regtools.instrument(model)."


def recorded_layers(records, quantity="std", kind="activations"):
    """The names of the layers of which a quantity was recorded, from input to output."""
    names = [name.split("/") for name in records.names()]
    return [n[1] for n in names if len(n) == 3 and n[0] == kind and n[2] == quantity]


def activation_ranges(records, ax=None):
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


def activation_scales(records, ax=None):
    """The standard deviation of what each layer received, over the epochs.

    Args:
        records: `Records` of a run with instrumented layers.
        ax: Matplotlib axes to draw on; those of a new figure by default.

    Returns:
        The axes.
    """
    return _per_layer(records, ax, "std", "Scale of what each layer received", "standard deviation")


def moving_distances(records, ax=None):
    """How far the batches' means were from the moving means, over the epochs.

    Args:
        records: `Records` of a run with instrumented batch normalization.
        ax: Matplotlib axes to draw on; those of a new figure by default.

    Returns:
        The axes.
    """
    title = "Batch mean against moving mean"
    return _per_layer(records, ax, "mean_distance", title, "distance\n[moving standard deviations]")


def gradient_norms(records, ax=None):
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
