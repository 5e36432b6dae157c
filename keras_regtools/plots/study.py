"""A study of batch sizes: losses over rates, best rates over sizes, speed over sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from keras_regtools.plots.axes import AXES, legend, log_if_wide, on
from keras_regtools.validation import checked, has

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STUDY = has("exponent_interval", "a `BatchSizes`, of `tuner.BatchSizeStudy`")


@checked(result=_STUDY, ax=AXES)
def losses_by_rate(result: Any, ax: Any = None) -> Axes:
    """The validation loss over the learning rate, a curve for each batch size.

    Args:
        result: A `BatchSizes`.
        ax: Matplotlib axes to draw on; those of a new figure by default.

    Returns:
        The axes; bars reach from the least to the largest of the seeds, and the end of a curve is
        where trainings diverge.
    """
    import matplotlib

    ax, trials = on(ax), result.trials
    sizes = list(result.table["batch_size"])
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(sizes)))
    for size, colour in zip(sizes, colours, strict=True):
        own = trials[trials["batch_size"] == size].groupby("learning_rate")["val_loss"]
        mean, low, high = own.mean(), own.min(), own.max()
        known = np.isfinite(high.to_numpy())
        rates, mean = mean.index.to_numpy()[known], mean.to_numpy()[known]
        ends = [mean - low.to_numpy()[known], high.to_numpy()[known] - mean]
        ax.errorbar(rates, mean, yerr=ends, color=colour, marker="o", markersize=4, capsize=2,
                    label=f"batch {size}")  # fmt: skip
    heights = np.concatenate([line.get_ydata() for line in ax.get_lines()] or [[1.0]])
    log_if_wide(ax, heights)
    ax.set(xscale="log", title="Every batch size at every rate")
    ax.set(xlabel="learning rate", ylabel="validation loss")
    legend(ax)
    return ax


@checked(result=_STUDY, ax=AXES)
def best_rates(result: Any, ax: Any = None) -> Axes:
    """The best learning rate over the batch size, beside the linear and the square-root rule.

    Args:
        result: A `BatchSizes`.
        ax: Matplotlib axes to draw on; those of a new figure by default.

    Returns:
        The axes, with two logarithmic axes; hollow points are the first or the last of the rates
        that were tried.
    """
    ax, table = on(ax), result.table
    sizes, best = table["batch_size"].to_numpy(), table["best_rate"].to_numpy()
    ends = [best - table["low"].to_numpy(), table["high"].to_numpy() - best]
    ends = np.maximum(np.nan_to_num(ends), 0)
    low, high = result.exponent_interval
    told = f"best rate: power {result.exponent:.2f} ({low:.2f} to {high:.2f})"
    ax.errorbar(sizes, best, yerr=ends, fmt="none", color="C0", capsize=3)
    ax.plot(sizes, best, color="C0", alpha=0.4)
    at_edge = table["at_edge"].to_numpy()
    ax.plot(sizes[~at_edge], best[~at_edge], "o", color="C0", label=told)
    ax.plot(sizes[at_edge], best[at_edge], "o", color="C0", mfc="none")
    for power, name, style in ((1, "linear rule", "--"), (0.5, "square-root rule", ":")):
        ax.plot(sizes, best[0] * (sizes / sizes[0]) ** power, style, color="black", label=name)
    ax.set(xscale="log", yscale="log", title="The rate that each batch size wants")
    ax.set(xlabel="batch size", ylabel="best learning rate")
    legend(ax)
    return ax


@checked(result=_STUDY, ax=AXES)
def speed_by_batch_size(result: Any, ax: Any = None) -> Axes:
    """Samples per second over the batch size, and the seconds to the target.

    Args:
        result: A `BatchSizes`.
        ax: Matplotlib axes to draw on; those of a new figure by default.

    Returns:
        The axes; the seconds have an axis of their own at the right.
    """
    ax, table = on(ax), result.table
    ax.plot(table["batch_size"], table["samples_per_second"], marker="o", color="C0",
            label="samples per second")  # fmt: skip
    ax.axvline(result.knee, color="C2", linestyle="--", label=f"knee: {result.knee}")
    right = ax.twinx()
    right.plot(table["batch_size"], table["seconds_to_target"], marker="s", color="C1",
               label=f"seconds to the loss {result.target:.3g}")  # fmt: skip
    right.set_ylabel("seconds to the target")
    right.set_ylim(bottom=0)
    ax.set(xscale="log", title="Is a larger batch worth it?")
    ax.set(xlabel="batch size", ylabel="samples per second")
    ax.set_ylim(bottom=0)
    lines = [*ax.get_lines(), *right.get_lines()]
    ax.legend(lines, [line.get_label() for line in lines], fontsize=8)
    return ax
