"""What a training step adds to a record, as functions of tensors alone.

Equal ones are equal and hashable, so that a backend that traces makes each of them once and not
once for each layer.
"""

import dataclasses

import numpy as np
from keras import ops

from keras_regtools import backend
from keras_regtools.forward.moments import (
    average,
    broadcast_mask,
    entries,
    moments,
    reduced,
    reduction_axes,
    shape_moments,
)
from keras_regtools.layers import histogram
from keras_regtools.layers.quantities import CONSTANT_VARIANCE
from keras_regtools.layers.rows import (
    SAMPLED_ROWS,
    merged_samples,
    merged_steps,
    not_finite,
    of_channels,
    of_steps,
    sampled_rows,
    waiting_rows,
)
from keras_regtools.layers.signal import Signal

STEP, STEPS, SAMPLE = "step", "steps", "sample"


@dataclasses.dataclass(frozen=True)
class Addition:
    """A function `(kept, given)` -> the variables of a recorder anew, as a list.

    Args:
        parts: Of `STEP` (moments of this step), `STEPS` (those of the steps that waited) and
            `SAMPLE` (everything else of this step).
        axis: The channel axis.
        channels: Tuple of the channels to record, or `None` for all.
        names: Tuple of the quantities that are wanted.
        rectified: Whether a ReLU follows.
        saturation: Below and above which values a unit is saturated, or `None`.
        epsilon: That of the batch normalization.
        own_moments: Whether the moments are taken here, and not given.

    Call arguments:
        kept: Dict of tensors: `"totals"` if there is a part of moments; `"waiting"` for `STEPS`,
            which stays as it is; `"samples"`, and `"grid"` and `"histogram"` where there is one,
            for `SAMPLE`.
        given: Dict of what of `"x"`, `"mask"`, `"reference"`, `"mean"`, `"variance"`, `"number"`,
            `"signal"` and `"affine"` there is: the tensor, its mask, the moving moments, the
            moments, the number of this step, counted from 1, what the activation behind gets, and
            of what its scale and offset by channel are made.
    """

    parts: tuple
    axis: int = -1
    channels: tuple | None = None
    names: tuple = ()
    rectified: bool = False
    saturation: tuple | None = None
    epsilon: float = 0.0
    own_moments: bool = False

    def __call__(self, kept, given):
        result, mean, variance = [], given.get("mean"), given.get("variance")
        if self.own_moments:
            axes = reduction_axes(len(given["x"].shape), self.axis)
            mean, variance = moments(given["x"], axes, given.get("mask"))
        if STEP in self.parts:
            step = self.rows({**given, "mean": mean, "variance": variance})[None]
            result.append(self._moments(kept, step, given["number"] - 1))
        if STEPS in self.parts:
            first = given["number"] - 1 - kept["waiting"].shape[0]
            result.append(self._moments(kept, kept["waiting"], first))
        if SAMPLE in self.parts:
            result += self._sample(kept, given, mean, variance)
        return result

    def rows(self, given):
        """What one step gives, as `WAITING_ROWS`."""
        x = given["x"]
        axes = reduction_axes(len(x.shape), self.axis)
        of_all = (given.get("mask"), given["mean"], given["variance"], given.get("reference"))
        return of_channels(self.channels, 1, waiting_rows(x, axes, *of_all))

    def _moments(self, kept, waited, first):
        """Of no steps, as where a reset left zeros, the same."""
        steps = of_steps(waited, first, self.epsilon)
        return backend.once(merged_steps, kept["totals"], steps)

    def _any_of(self, *names):
        return any(name in self.names for name in names)

    def _sample(self, kept, given, mean, variance):
        x, mask, behind = given["x"], given.get("mask"), given.get("signal")
        axes = reduction_axes(len(x.shape), self.axis)
        mapped = ()
        if "affine" in given:
            mapped = scale_and_offset(mean, variance, self.epsilon, **given["affine"])
        counted = broadcast_mask(mask, x)
        x, counted = (of_channels(self.channels, self.axis, t) for t in (x, counted))
        by_channel = (mean, variance, *mapped)
        mean, variance, *mapped = (of_channels(self.channels, 0, t) for t in by_channel)
        taken = x
        if behind is not None:
            taken = ops.cast(of_channels(self.channels, self.axis, behind), x.dtype)
        signal = Signal(taken, axes, *mapped)
        has_histogram = "histogram" in kept
        shape = self._any_of("skewness", "kurtosis")
        extremes = has_histogram or shape or self._any_of("minimum", "maximum", "dead")
        described = _Described(tuple(axes), self.axis, shape, extremes, has_histogram)
        rows, *parts = backend.once(described, x, mean, variance, counted)
        new = dict(zip(SAMPLED_ROWS, ops.unstack(rows, len(SAMPLED_ROWS)), strict=True))
        count = ops.cast(new["count"], x.dtype)
        if mapped and extremes:  # of no entries, there is no highest
            highest = signal.highest(-new["low"], new["high"])
            new["signal_high"] = ops.where(count > 0, highest, new["high"])
        if behind is not None and self._any_of("dead"):
            high = taken if counted is None else ops.where(counted, taken, -np.inf)
            new["signal_high"] = reduced(ops.max, high, axes)
        if self._any_of("zero_share"):
            zeros = signal.zeros(self.rectified)
            new["zeros"] = average(ops.cast(zeros, x.dtype), axes, counted) * count
        if self.saturation is not None and self._any_of("saturated_share"):
            outside = signal.outside(*self.saturation)
            new["saturated"] = average(ops.cast(outside, x.dtype), axes, counted) * count
        seen = kept["samples"]
        merged = [backend.once(merged_samples, seen, sampled_rows(new))]
        if has_histogram:
            part, weight, *taken = parts
            so_far = dict(zip(SAMPLED_ROWS, ops.unstack(seen, len(SAMPLED_ROWS)), strict=True))
            merged += backend.once(
                histogram.added,
                kept["histogram"],
                kept["grid"],
                part,
                weight,
                *(ops.cast(t, "float32") for t in (mean, variance)),
                -so_far["low"],
                so_far["high"],
                *taken,
            )
        return merged


@dataclasses.dataclass(frozen=True)
class _Described:
    """What the entries of a step say of themselves, whatever comes behind them.

    Returns:
        A list: `SAMPLED_ROWS` as one tensor; with a histogram also the entries for it, how many
            each stands for, and, of entries not all of which count, which do.
    """

    axes: tuple
    axis: int
    shape: bool
    extremes: bool
    histogram: bool

    def __call__(self, x, mean, variance, counted=None):
        axes, zero = list(self.axes), ops.zeros_like(mean)
        new = dict.fromkeys(SAMPLED_ROWS, zero)
        new |= {"readings": zero + 1, "count": entries(x, axes, counted)}
        new |= {"mean": mean, "variance": variance}
        new["constant"] = ops.cast(variance < CONSTANT_VARIANCE, x.dtype)
        # A mean that is finite is the mean of finite entries; only others are looked at.
        new["nan_count"] = backend.choose(
            ops.all(ops.isfinite(mean)), lambda: zero, lambda: not_finite(x, axes, counted)
        )
        if self.shape:  # of a channel that does not stand still
            new["skewness"], new["kurtosis"] = shape_moments(x, axes, mean, variance, counted)
        if self.extremes:
            low = x if counted is None else ops.where(counted, x, np.inf)
            high = x if counted is None else ops.where(counted, x, -np.inf)
            new["low"] = -reduced(ops.min, low, axes)
            new["high"] = new["signal_high"] = reduced(ops.max, high, axes)
        rows = sampled_rows(new)
        if not self.histogram:
            return [rows]
        part = histogram.sampled(ops.cast(x, "float32"), self.axis)
        # What was left out weighs with what was taken.
        number = new["count"] if counted is None else entries(x, axes)
        taken = ops.maximum(ops.cast(ops.shape(part)[0], x.dtype), 1)  # a replica may get none
        weight = ops.cast(number / taken, "float32")
        if counted is None:
            return [rows, part, weight]
        return [rows, part, weight, histogram.sampled(counted, self.axis)]


def scale_and_offset(mean, variance, epsilon, gamma=None, beta=None, moving=None):
    """What batch normalization multiplies each channel by and adds to it.

    Args:
        mean, variance: The moments of the batch.
        epsilon: That of the batch normalization.
        gamma, beta: Its scale and offset, `None` for 1 and 0.
        moving: `(mean, variance)` in place of the batch's, as where the layer is frozen.
    """
    mean, variance = (mean, variance) if moving is None else moving
    scale, offset = ops.rsqrt(ops.cast(variance, "float32") + epsilon), 0.0
    if gamma is not None:
        scale = scale * ops.cast(gamma, "float32")
    if beta is not None:
        offset = ops.cast(beta, "float32")
    return scale, offset - ops.cast(mean, "float32") * scale
