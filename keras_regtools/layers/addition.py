"""What a training step adds to a record, as functions of tensors alone.

Equal ones are equal and hashable, so that a backend that traces makes each of them once and not
once for each layer.
"""

import dataclasses

from keras import ops

from keras_regtools import backend
from keras_regtools.forward.moments import broadcast_mask, entries, moments, reduction_axes
from keras_regtools.layers import histogram
from keras_regtools.layers.accumulators import (
    SAMPLES,
    of_channels,
    of_steps,
    pending_rows,
    sampled_rows,
)
from keras_regtools.layers.accumulators import STEPS as OF_STEPS
from keras_regtools.layers.channel_affine import ChannelAffine
from keras_regtools.layers.statistics import STATISTICS, made_for
from keras_regtools.layers.statistics.base import Seen

STEP, STEPS, SAMPLE = "step", "steps", "sample"


@dataclasses.dataclass(frozen=True)
class Addition:
    """A function `(kept, given)` -> the variables of a recorder anew, as a list.

    Args:
        parts: Of `STEP` (moments of this step), `STEPS` (those of the steps that waited) and
            `SAMPLE` (everything else of this step).
        axis: The channel axis.
        channels: Tuple of the channels to record, or `None` for all.
        names: Tuple of the quantities that are spec.
        rectified: Whether a ReLU follows.
        saturation: Below and above which values a unit is saturated, or `None`.
        epsilon: That of the batch normalization.
        own_moments: Whether the moments are taken here, and not given.

    Call arguments:
        kept: Dict of tensors: `"totals"` if there is a part of moments; `"pending"` for `STEPS`,
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
            first = given["number"] - 1 - kept["pending"].shape[0]
            result.append(self._moments(kept, kept["pending"], first))
        if SAMPLE in self.parts:
            result += self._sample(kept, given, mean, variance)
        return result

    def rows(self, given):
        """What one step gives, as `PENDING_ROWS`."""
        x = given["x"]
        axes = reduction_axes(len(x.shape), self.axis)
        of_all = (given.get("mask"), given["mean"], given["variance"], given.get("reference"))
        return of_channels(self.channels, 1, pending_rows(x, axes, *of_all))

    def _moments(self, kept, waited, first):
        """Of no steps, as where a reset left zeros, the same."""
        steps = of_steps(waited, first, self.epsilon)
        return backend.once(OF_STEPS.merged, kept["totals"], steps)

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
        affine = ChannelAffine(taken, axes, *mapped)
        signal = Signal(affine, behind is not None, self.rectified, self.saturation)
        made = made_for(self.names)
        has_histogram = "histogram" in kept
        described = _Described(
            tuple(axes), self.axis, tuple(s.name for s in made if s.sampled_rows), has_histogram
        )
        rows, *parts = backend.once(described, x, mean, variance, counted)
        new = dict(zip(SAMPLES.rows, ops.unstack(rows, len(SAMPLES.rows)), strict=True))
        seen = Seen(x, axes, mean, variance, counted)
        seen.count = new["count"]
        for statistic in made:
            new |= statistic.of_signal(seen, signal, new)
        so_far = kept["samples"]
        merged = [backend.once(SAMPLES.merged, so_far, sampled_rows(new, mean))]
        if has_histogram:
            part, weight, *taken = parts
            so_far = dict(zip(SAMPLES.rows, ops.unstack(so_far, len(SAMPLES.rows)), strict=True))
            merged += backend.once(
                histogram.added,
                kept["histogram"],
                kept["grid"],
                part,
                weight,
                *(ops.cast(t, "float32") for t in (mean, variance)),
                -so_far["negated_minimum"],
                so_far["maximum"],
                *taken,
            )
        return merged


@dataclasses.dataclass(frozen=True)
class Signal:
    """What the activation behind a recorder gets.

    Attributes:
        affine: A `ChannelAffine`.
        apart: Whether it is another tensor than what is recorded.
        rectified, saturation: As for `Addition`.
    """

    affine: ChannelAffine
    apart: bool
    rectified: bool
    saturation: tuple | None


@dataclasses.dataclass(frozen=True)
class _Described:
    """What the entries of a step say of themselves, whatever comes behind them.

    Args:
        axes, axis: All axes but that of the channels, and that one.
        names: Tuple of the statistics that are made.
        histogram: Whether one is kept.

    Returns:
        A list: the rows of `SAMPLES` as one tensor; with a histogram also the entries for it, how
        many each stands for, and, of entries not all of which count, which do.
    """

    axes: tuple
    axis: int
    names: tuple
    histogram: bool

    def __call__(self, x, mean, variance, counted=None):
        seen = Seen(x, list(self.axes), mean, variance, counted)
        new = {"readings": ops.ones_like(mean), "count": seen.count}
        new |= {"mean": mean, "variance": variance}
        for name in self.names:
            new |= STATISTICS[name].of_entries(seen)
        rows = sampled_rows(new, mean)
        if not self.histogram:
            return [rows]
        part = histogram.sampled(ops.cast(x, "float32"), self.axis)
        # What was left out weighs with what was taken.
        number = seen.count if counted is None else entries(x, seen.axes)
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
