"""Histograms that are added to in the graph: bins that widen away from the centre."""

import numpy as np
from keras import ops

_WIDTH = 1 / 16  # of a bin, in asinh((x - centre) / scale): 1/16 scale near the centre
BINS = 192  # six to each side in units of asinh: they end sinh(6) = 202 scales from the centre
# The most entries of a channel that one step adds. The median of 2048 normal entries has the
# standard error 1.25 σ / √2048 = .028 σ, half a bin: more would not be seen.
SAMPLE = 2048
_GOLDEN = (np.arange(SAMPLE) * ((5**0.5 - 1) / 2)) % 1


def sampled(x, axis):
    """At most `SAMPLE` entries of each channel, evenly from all over the tensor, as a matrix."""
    x = ops.moveaxis(x, axis, -1)
    *sizes, channels = ops.shape(x)
    count = 1
    for size in sizes:
        count = count * size
    flat = ops.reshape(x, [-1, channels])
    if isinstance(count, int) and count <= SAMPLE:
        return flat
    # The golden section steps through any grid without following its rows.
    spread = ops.cast(ops.cast(_GOLDEN, "float32") * ops.cast(count, "float32"), "int32")
    rows = ops.where(count <= SAMPLE, ops.arange(SAMPLE, dtype="int32"), spread)
    rows = rows[: ops.minimum(count, SAMPLE)] if not isinstance(count, int) else rows
    return ops.take(flat, ops.minimum(rows, count - 1), axis=0)


def _fresh_grid(mean, variance):
    """Centre and scale of the bins, for entries like those seen first: two rows."""
    wide = ops.sqrt(variance)
    # A channel that stood still gets the scale of the others.
    usual = ops.mean(wide)
    usual = ops.where(usual > 0, usual, ops.ones_like(usual))
    fits = ops.logical_and(ops.isfinite(wide), wide > 0)
    centre = ops.where(ops.isfinite(mean), mean, 0.0)
    return ops.stack([centre, ops.where(fits, wide, ops.where(ops.isfinite(usual), usual, 1.0))])


def added(histogram, grid, x, weight, mean, variance, low, high, counted=None):
    """A histogram and its grid with the entries of one more step.

    Entries that stood still, or none at all, told no scale: they go into their bin of a fresh grid.

    Args:
        histogram: Tensor of the shape `(BINS, channels)`.
        grid: Centre and scale of the bins, two rows.
        x: The entries, as `sampled` gives them.
        weight: How many entries each stands for, by channel.
        mean, variance: Moments of the step, by channel.
        low, high: The extremes of the entries so far, by channel.
        counted: Booleans of the shape of `x`, or `None`.

    Returns:
        `[grid, histogram]`.
    """
    still = low >= high
    grid = ops.where(still, _fresh_grid(mean, variance), grid)
    centre, scale = ops.unstack(grid, 2)
    here = ops.equal(np.arange(BINS, dtype="int32")[:, None], _bins((low - centre) / scale))
    moved = ops.where(here, ops.sum(histogram, axis=0), 0.0)
    histogram = ops.where(still, moved, histogram)
    return [grid, histogram + counts(x, (centre, scale), counted) * weight]


def _bins(z):
    far = ops.abs(z)
    place = ops.sign(z) * ops.log(far + ops.sqrt(far * far + 1.0)) / _WIDTH + BINS / 2
    return ops.cast(ops.clip(ops.floor(place), 0.0, BINS - 1.0), "int32")


def counts(x, grid, counted=None):
    """How many entries of each channel fall in each bin.

    Args:
        x: Matrix, entries by channels.
        grid: Centre and scale of each channel.
        counted: Booleans of the shape of `x`, or `None`; NaN never counts.

    Returns:
        Tensor of the shape `(BINS, channels)`; what lies further out is in the outermost bins.
    """
    channels = ops.shape(x)[-1]
    centre, scale = grid
    z = (x - centre) / scale
    known = ops.logical_not(ops.isnan(z))
    if counted is not None:
        known = ops.logical_and(known, counted)
    bins = _bins(ops.where(known, z, 0.0))
    bins = bins + BINS * ops.arange(channels, dtype="int32")
    found = ops.segment_sum(
        ops.reshape(ops.cast(known, "float32"), [-1]),
        ops.reshape(bins, [-1]),
        num_segments=BINS * channels,
    )
    return ops.transpose(ops.reshape(found, [channels, BINS]))


def percentiles(parts, low, high, shares):
    """The percentiles of each channel, shares in %; NaN if nothing counted.

    Args:
        parts: List of `(grid, histogram)`, one for each replica.
        low, high: Arrays, the extremes of the entries of each channel.
        shares: Numbers between 0 and 100.

    Returns:
        Array with a row for each channel.
    """
    channels = range(len(low))
    if len(parts) > 1:
        found = [
            Distribution([(g[0, c], g[1, c], h[:, c]) for g, h in parts], low[c], high[c])
            for c in channels
        ]
        return np.array([d.percentiles(shares) for d in found], "float32")
    ((grid, histogram),) = parts
    edges = _edges(grid[0], grid[1][None], low, high)
    below = np.concatenate([np.zeros_like(low)[None], np.cumsum(histogram, 0, "float64")])
    found = np.full((len(low), len(shares)), np.nan, "float32")
    known = (below[-1] > 0) & np.isfinite(low) & np.isfinite(high)
    wanted = np.asarray(shares) / 100
    for c in channels:
        if known[c]:
            found[c] = np.interp(wanted * below[-1, c], below[:, c], edges[:, c])
    return found


def _edges(centre, scale, low, high):
    """The edges of the bins as rows, between the extremes of what was counted."""
    edges = centre + np.sinh((np.arange(BINS + 1) - BINS / 2) * _WIDTH)[:, None] * scale
    edges[0], edges[-1] = np.minimum(edges[0], low), np.maximum(edges[-1], high)
    return np.clip(edges, low, high)


class Distribution:
    """What is known of a set of entries from histograms of its parts: numpy, outside the graph.

    Args:
        parts: List of `(centre, scale, counts)`, numbers and an array of `BINS` counts.
        low, high: The extremes of all entries.
    """

    def __init__(self, parts, low, high):
        self.low, self.high = float(low), float(high)
        self._parts = []
        ends = [self.low, self.high]
        for centre, scale, found in parts:
            if found.sum() > 0:
                edges = _edges(centre, np.array([scale]), self.low, self.high)[:, 0]
                below = np.concatenate([[0.0], np.cumsum(found, dtype="float64")])
                # Where edges were clipped together the step counts whole.
                self._parts.append((edges, below))
                ends.extend(edges)
        self._points = np.unique(ends)
        self.total = sum(below[-1] for _, below in self._parts)

    def below(self, points):
        """How many entries lie below each of the points."""
        return sum(
            (np.interp(points, edges, below) for edges, below in self._parts),
            start=np.zeros(np.shape(points)),
        )

    def percentiles(self, shares):
        """The percentiles, shares in %; NaN if nothing counted."""
        if not self.total or not np.isfinite([self.low, self.high]).all():
            return np.full(len(shares), np.nan)
        below = self.below(self._points)
        below[0] = 0.0
        return np.interp(np.asarray(shares) / 100 * self.total, below, self._points)


def buckets(distributions, number=30):
    """The distribution of several channels together, in buckets of the same width.

    Returns:
        Array with a row for each bucket, of its left edge, right edge and count; empty if nothing
        counted.
    """
    known = [d for d in distributions if d.total and np.isfinite([d.low, d.high]).all()]
    if not known:
        return np.zeros((0, 3))
    low, high = min(d.low for d in known), max(d.high for d in known)
    edges = np.linspace(low, high, number + 1)
    below = sum(d.below(edges) for d in known)
    below[0] = 0.0
    return np.stack([edges[:-1], edges[1:], np.diff(below)], axis=1)
