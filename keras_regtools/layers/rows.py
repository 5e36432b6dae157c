"""The rows that a recorder keeps, and how those of two parts become one."""

import numpy as np
from keras import ops

from keras_regtools.forward.moments import broadcast_mask, entries, pooled

# Rows of what waits to be added, of what is kept of each step, and of each sampled step.
WAITING_ROWS = ("count", "mean", "variance", "moving_mean", "moving_variance")
STEP_ROWS = (
    "steps",
    "batch_mean",
    "batch_variance",
    "mean_distance",
    "std_distance",
    "nan_steps",
    "first_nan",  # the step, counted from 1; 0 for none
    "count",
    "mean",
    "variance",
)
SAMPLED_ROWS = (
    "readings",
    "constant",
    "zeros",
    "saturated",
    "nan_count",
    "low",  # the minimum with its sign changed
    "high",
    "signal_high",
    "count",
    "mean",
    "variance",
    "skewness",
    "kurtosis",
)
MOMENTS = ("count", "mean", "variance", "skewness", "kurtosis")
# What is added up comes first, then what is compared, then moments.
_STEP_PARTS = (6, 7)
_SAMPLE_PARTS = (5, 8)
_LARGEST = SAMPLED_ROWS[slice(*_SAMPLE_PARTS)]


def of_channels(channels, axis, t):
    return t if channels is None or t is None else ops.take(t, np.array(channels), axis=axis)


def waiting_rows(x, axes, mask, mean, variance, reference):
    """What one step gives, as rows."""
    count = entries(x, axes, broadcast_mask(mask, x))
    if reference is None:
        reference = (ops.zeros_like(mean), ops.ones_like(mean))
    rows = (count, mean, variance, *reference)
    return ops.stack([ops.cast(row, "float32") for row in rows])


def of_steps(waiting, step, epsilon, ops=ops):
    """Rows of several steps together.

    Args:
        waiting: Tensor of the shape `(steps, rows, channels)`; where the count is zero, as if all
            is masked or a replica got no samples, there was no step.
        step: Number of the first of them.
        epsilon: That of the batch normalization, 0 elsewhere.
        ops: `keras.ops`, or `NUMPY` for arrays outside of a step.
    """
    count, *_ = ops.split(waiting, len(WAITING_ROWS), axis=1)
    waiting = ops.where(count > 0, waiting, 0.0)
    count, mean, variance, moving_mean, moving_variance = ops.unstack(
        waiting, len(WAITING_ROWS), axis=1
    )
    made = count > 0
    moving_std = ops.where(made, ops.sqrt(moving_variance + epsilon), 1.0)
    finite = ops.isfinite(mean)
    number = step + 1 + ops.reshape(ops.arange(waiting.shape[0], dtype="int32"), [-1, 1])
    first = ops.min(ops.where(finite, np.inf, ops.cast(number, "float32")), axis=0)
    total = ops.sum(count, axis=0)
    share = count / ops.maximum(total, 1.0)
    middle = ops.sum(share * mean, axis=0)
    spread_out = ops.sum(share * (variance + ops.square(mean - middle)), axis=0)
    far = ops.abs(mean - moving_mean) / moving_std
    apart = ops.where(made, ops.abs(ops.sqrt(variance) - moving_std) / moving_std, 0.0)
    made, bad = ops.cast(made, "float32"), 1.0 - ops.cast(finite, "float32")
    sums = ops.sum(ops.stack([made, mean, variance, far, apart, bad]), axis=1)
    first = ops.where(ops.isfinite(first), first, 0.0)
    return ops.concatenate([sums, ops.stack([first, total, middle, spread_out])])


def not_finite(x, axes, counted):
    bad = ops.logical_not(ops.isfinite(x))
    bad = bad if counted is None else ops.logical_and(bad, counted)
    return ops.sum(ops.cast(bad, x.dtype), axis=axes)


def sampled_rows(new):
    """Rows of a sampled step; where nothing counts, zeros but for the extremes."""
    rows = ops.cast(ops.stack([new[name] for name in SAMPLED_ROWS]), "float32")
    extreme = np.isin(SAMPLED_ROWS, _LARGEST)[:, None]
    return ops.where(ops.logical_or(new["count"] > 0, extreme), rows, 0.0)


def merged_steps(a, b, ops=ops):
    (added, one, moments), (more, other, further) = (_parts(t, _STEP_PARTS, ops) for t in (a, b))
    both = ops.minimum(one, other)
    first = ops.where(both > 0, both, ops.maximum(one, other))
    return ops.concatenate([added + more, first, pooled(moments, further, ops)])


def merged_samples(a, b, ops=ops):
    (added, one, moments), (more, other, further) = (_parts(t, _SAMPLE_PARTS, ops) for t in (a, b))
    # Until something counted, the zeros that a reset leaves behind do not.
    count, *_ = ops.split(moments, len(MOMENTS))
    largest = ops.where(count > 0, ops.maximum(one, other), other)
    return ops.concatenate([added + more, largest, pooled(moments, further, ops)])


def _parts(rows, ends, ops):
    """Three tensors of rows; fewer operations than slices make."""
    each, (end, next_end) = ops.unstack(rows, rows.shape[0]), ends
    return [ops.stack(part) for part in (each[:end], each[end:next_end], each[next_end:])]


class _Numpy:
    """Numpy under the names of `keras.ops`: many small operations cost more on a backend."""

    def __getattr__(self, name):
        return getattr(np, name)

    def cast(self, x, dtype):
        return np.asarray(x, dtype)

    def unstack(self, x, number, axis=0):
        return list(np.moveaxis(x, axis, 0))

    def rsqrt(self, x):
        return 1 / np.sqrt(x)


NUMPY = _Numpy()
