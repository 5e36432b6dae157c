"""How large a batch may be: branches from one state, and what a machine and the noise say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from keras_regtools.plots.axes import AXES, legend, on
from keras_regtools.validation import checked, has

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@checked(result=has("worse_from", "a `CriticalBatchSize`"), ax=AXES)
def critical_batch_size(result: Any, noise: Any = None, ax: Any = None) -> Axes:
    """How much worse the loss is for larger batches, with the noise scale beside it.

    Args:
        result: A `CriticalBatchSize`.
        noise: What `measures.gradient_noise_scale` found, drawn as a band, or `None`. The title
            says whether its interval meets that from the critical size to the next one.
        ax: Matplotlib axes to draw on; those of a new figure by default.

    Returns:
        The axes, with a logarithmic horizontal axis.
    """
    ax = on(ax)
    sizes, known = result.batch_sizes, np.isfinite(result.differences)
    title = "Larger batches from here"
    apart = result.differences[known]
    ends = [apart - result.low[known], result.high[known] - apart]
    told = f"mean of {result.repeats} orders, {result.confidence:.0%} interval"
    ax.errorbar(sizes[known], apart, yerr=ends, marker="o", capsize=3, label=told)
    if not known.all():
        top = np.full(int((~known).sum()), ax.get_ylim()[1])
        ax.plot(sizes[~known], top, "x", color="C3", markersize=9, label="diverged")
    ax.axhline(0, color="black", linewidth=0.8)
    told = f"critical batch size: {result.value:g}"
    if np.isinf(result.worse_from):
        told += " or above"
    ax.axvline(result.value, color="C2", linestyle="--", label=told)
    if noise is not None and np.isfinite(noise.value):
        low, high = noise.interval
        ax.axvline(noise.value, color="C1", linestyle=":", label=f"noise scale: {noise.value:.3g}")
        ax.axvspan(max(low, 1e-3), min(high, 1e9), color="C1", alpha=0.15, linewidth=0)
        sizes = [*sizes, noise.value]
        agree = low < result.worse_from and high >= result.value
        title += f": the noise scale {'agrees' if agree else 'disagrees'}"
    ax.set_xlim(0.7 * min(sizes), 1.4 * max(sizes))
    ax.set(xscale="log", xlabel="batch size", title=title)
    ax.set_ylabel(f"loss less that of batch {result.batch_sizes[0]}")
    legend(ax)
    return ax


@checked(result=has("samples_per_second", "a `BatchSizeSuggestion`"), ax=AXES)
def batch_size_suggestion(result: Any, ax: Any = None) -> Axes:
    """Samples per second over the batch size, with what fits, the knee and the noise scale.

    Args:
        result: A `BatchSizeSuggestion`.
        ax: Matplotlib axes to draw on; those of a new figure by default.

    Returns:
        The axes, with two logarithmic axes.
    """
    ax = on(ax)
    sizes, speed = result.batch_sizes, result.samples_per_second
    ax.fill_between(sizes, result.slowest, result.fastest, color="C0", alpha=0.2, linewidth=0)
    ax.plot(sizes, speed, marker="o", color="C0", label=f"median of {result.turns} turns")
    ends = [*sizes]
    if np.isfinite(result.fits) and result.fits <= 64 * sizes[-1]:
        ax.axvspan(result.fits, 1e12, color="C3", alpha=0.12, linewidth=0)
        ax.axvline(result.fits, color="C3", label=f"fits in memory: {result.fits:.0f}")
        ends.append(result.fits)
    ax.axvline(result.knee, color="C2", linestyle="--", label=f"knee: {result.knee:.0f}")
    if np.isfinite(result.noise_scale) and result.noise_scale > 0:
        low, high = result.noise_interval
        told = f"noise scale: {result.noise_scale:.3g}"
        ax.axvline(result.noise_scale, color="C1", linestyle=":", label=told)
        ax.axvspan(max(low, 1e-3), min(high, 1e9), color="C1", alpha=0.12, linewidth=0)
        ends.append(result.noise_scale)
    at, told = float(speed[list(sizes).index(result.value)]), f"suggested: {result.value:.0f}"
    ax.plot([result.value], [at], "*", color="black", markersize=13, label=told)
    ax.set_xlim(0.7 * min(ends), 1.4 * max(ends))
    ax.set(xscale="log", yscale="log", title="How large a batch?")
    ax.set(xlabel="batch size", ylabel="samples per second")
    legend(ax)
    return ax
