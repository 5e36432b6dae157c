"""The learning rate over the training steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from keras_regtools.plots.axes import legend, log_if_wide, note, on
from keras_regtools.plots.picture import picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def _caption(records):
    return (
        "The size of the steps. A ramp at the beginning is the warm-up to the scaled rate; steps "
        "down are decay."
    )


def _finding(records):
    rates = records.series("learning_rate", by="step")[1]
    return f"The learning rate went from {rates[0]:.3g} to {rates[-1]:.3g}." if rates else None


@picture(30, "learning_rate", caption=_caption, finding=_finding)
def learning_rate(records: Any, ax: Any = None) -> Axes:
    """The learning rate over the training steps.

    Args:
        records: `Records` of a run.
        ax: Matplotlib axes to draw on; those of a new figure by default.

    Returns:
        The axes.
    """
    ax = on(ax)
    steps, rates = records.series("learning_rate", by="step")
    if not steps:
        return note(ax, "No learning rate was recorded.")
    marker = "o" if len(steps) < 60 else None
    ax.plot(steps, rates, marker=marker, markersize=3, label="learning rate")
    ax.grid(alpha=0.3)
    log_if_wide(ax, rates)
    if ax.get_yscale() == "linear":
        ax.set_ylim(bottom=0)
    ax.set(title="Learning rate", xlabel="training step", ylabel="learning rate")
    legend(ax)
    return ax
