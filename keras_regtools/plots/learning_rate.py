"""The learning rate over the training steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from keras_regtools.plots.axes import AXES, legend, log_if_wide, note, on
from keras_regtools.plots.picture import picture
from keras_regtools.validation import Constraint, checked

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_of_rates = Constraint(
    "a `LearningRateRange`, or a dict of them",
    lambda v: (
        v != {}
        and all(hasattr(one, "steepest") for one in (v.values() if isinstance(v, dict) else [v]))
    ),
    lambda v: v,
    is_number=False,
)


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


@checked(result=_of_rates, ax=AXES)
def learning_rate_range(result: Any, ax: Any = None) -> Axes:
    """The loss over the learning rate of a range test, with its suggestions.

    Args:
        result: A `LearningRateRange`, or a dict of them by batch size, as `find_learning_rate`
            gives them.
        ax: Matplotlib axes to draw on; those of a new figure by default.

    Returns:
        The axes, with a logarithmic horizontal axis.
    """
    ax = on(ax)
    results = result if isinstance(result, dict) else {result.batch_size: result}
    for i, (size, one) in enumerate(results.items()):
        known = np.isfinite(one.smoothed)
        label = "mean over the orders" if len(results) == 1 else f"batch size {size}"
        ax.plot(one.rates[known], one.smoothed[known], color=f"C{i}", label=label)
        if len(results) == 1:
            low, high = (f(one.losses[:, known], axis=0) for f in (np.min, np.max))
            ax.fill_between(one.rates[known], low, high, color="C0", alpha=0.2, linewidth=0)
        marks = {"valley": "o", "steepest": "v", "tenth": "s"}
        names = {"valley": "valley", "steepest": "steepest", "tenth": "lowest / 10"}
        for name, marker in marks.items():
            rate = getattr(one, name)
            if not np.isfinite(rate):
                continue
            height = np.interp(np.log(rate), np.log(one.rates[known]), one.smoothed[known])
            told = f"{names[name]}: {rate:.2g}" if len(results) == 1 else None
            ax.plot([rate], [height], marker, color=f"C{i}", markersize=7, label=told)
    first = next(iter(results.values()))
    if np.isfinite(first.edge):
        told = f"edge of stability: {first.edge:.2g}"
        ax.axvline(first.edge, color="black", linestyle="--", linewidth=1, label=told)
    curves = np.concatenate([one.smoothed[np.isfinite(one.smoothed)] for one in results.values()])
    start = max(one.smoothed[0] for one in results.values())
    top = start + 0.5 * abs(start - curves.min())
    if curves.min() < start:
        ax.set_ylim(curves.min() - 0.1 * (start - curves.min()), top + 0.2 * abs(top))
    ax.set(xscale="log", title="Learning rate range test")
    ax.set(xlabel="learning rate", ylabel="loss of the batch before its update")
    legend(ax)
    return ax
