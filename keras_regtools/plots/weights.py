"""How long the kernels are, and how many of their weights are zero."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from keras_regtools.plots.axes import by_depth, curve, legend, log_if_wide, note, on, over_epochs
from keras_regtools.plots.picture import picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SPARSE = 0.05  # of the weights; Keras' own starts have 1 to 2 % below the threshold of 1e-3
_NOTHING = "No weights were recorded: train with callbacks.WeightMonitor()."


def _layers(records, what):
    names = [n for n in records.names() if n.startswith("kernels/") and n.endswith(f"/{what}")]
    return [name for name in names if name.count("/") > 1]


def _has_weights(records):
    return bool(_layers(records, "norm"))


def _norm_caption(records):
    norms = records.series("kernels/norm")[1]
    told = ""
    if len(norms) > 1 and all(map(math.isfinite, norms)):
        verb = "shrank" if norms[-1] < norms[0] else "grew"
        told = f" All together {verb} from {norms[0]:.3g} to {norms[-1]:.3g}."
    return (
        "The length of the kernels of each layer, the first layers dark and the last light."
        f"{told} In front of batch normalization it changes the effective learning rate only, not "
        "what the layer computes."
    )


@picture(82, "kernels/norm", "kernels/", caption=_norm_caption, shown=_has_weights)
def kernel_norms(records: Any, ax: Any = None) -> Axes:
    """The Euclidean norm of the kernels of each layer over the epochs.

    Args:
        records: `Records` of a run with a `WeightMonitor`.
        ax: Matplotlib axes to draw on; those of a new figure by default.

    Returns:
        The axes.
    """
    ax, names = on(ax), _layers(records, "norm")
    if not _each_layer(ax, records, names):
        return ax
    log_if_wide(ax, [value for name in names for value in records.series(name)[1]])
    ax.set(title="Length of the kernels", ylabel="‖w‖₂")
    legend(ax)
    return ax


def _sparse_caption(records):
    return (
        "The share of weights that are small, dashed, and of those that are exactly zero. A "
        "penalty in the gradient makes weights small; only a proximal step makes them zero."
    )


def _is_sparse(records):
    """Whether so much is small that it is worth a picture."""
    return records.last("kernels/small_share") >= _SPARSE


def _sparse_finding(records):
    zeros, small = records.last("kernels/zero_share"), records.last("kernels/small_share")
    if not _is_sparse(records):
        return None
    return f"In the end {zeros:.1%} of the kernels' weights were zero and {small:.1%} small."


@picture(
    84,
    "kernels/zero_share",
    "kernels/small_share",
    caption=_sparse_caption,
    finding=_sparse_finding,
    shown=_is_sparse,
)
def kernel_sparsity(records: Any, ax: Any = None) -> Axes:
    """The shares of zero and of small weights of each layer over the epochs.

    Args:
        records: `Records` of a run with a `WeightMonitor`.
        ax: Matplotlib axes to draw on; those of a new figure by default.

    Returns:
        The axes.
    """
    ax, names = on(ax), _layers(records, "zero_share")
    if not _each_layer(ax, records, names):
        return ax
    for name, colour in zip(names, by_depth(len(names)), strict=True):
        small = name.replace("/zero_share", "/small_share")
        curve(ax, records, small, color=colour, linestyle="--", linewidth=1)
    ax.set(title="Zero weights, and small ones (dashed)", ylabel="share", ylim=(-0.02, 1.02))
    legend(ax)
    return ax


def _each_layer(ax, records, names):
    """A curve for each layer; false, and a sentence, where there is none."""
    if not names:
        note(ax, _NOTHING)
        return False
    over_epochs(ax)
    for name, colour in zip(names, by_depth(len(names)), strict=True):
        curve(ax, records, name, label=_layer(name), color=colour)
    return True


def _layer(name):
    return "/".join(name.split("/")[1:-1])
