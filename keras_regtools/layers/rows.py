"""The rows that a recorder keeps, and how those of two parts become one."""

import numpy as np
from keras import ops

from keras_regtools.layers.moments import entries, pooled, spread

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
_ADDED = STEP_ROWS[:6]
_ADDED_SAMPLES = SAMPLED_ROWS[:5]
_LARGEST = SAMPLED_ROWS[5:8]


def of_channels(channels, axis, t):
    return t if channels is None or t is None else ops.take(t, np.array(channels), axis=axis)


def waiting_rows(x, axes, mask, mean, variance, reference):
    """What one step gives, as rows."""
    count = entries(x, axes, spread(mask, x))
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
    made = waiting[:, :1] > 0
    count, mean, variance, moving_mean, moving_variance = (
        ops.where(made, waiting, 0.0)[:, i] for i in range(len(WAITING_ROWS))
    )
    made = made[:, 0]
    moving_std = ops.where(made, ops.sqrt(moving_variance + epsilon), 1.0)
    bad = ops.cast(ops.logical_not(ops.isfinite(mean)), "float32")
    number = ops.cast(step + 1 + ops.arange(waiting.shape[0], dtype="int32"), "float32")
    first = ops.min(ops.where(bad > 0, number[:, None], np.inf), axis=0)
    total = ops.sum(count, axis=0)
    share = count / ops.maximum(total, 1)
    middle = ops.sum(share * mean, axis=0)
    spread_out = ops.sum(share * (variance + ops.square(mean - middle)), axis=0)
    apart = ops.where(made, ops.abs(ops.sqrt(variance) - moving_std) / moving_std, 0.0)
    made = ops.cast(made, "float32")
    sums = (made, mean, variance, ops.abs(mean - moving_mean) / moving_std, apart, bad)
    return ops.stack(
        [
            *(ops.sum(row, axis=0) for row in sums),
            ops.where(ops.isfinite(first), first, 0.0),
            total,
            middle,
            spread_out,
        ]
    )


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
    a, b = _by_name(STEP_ROWS, a, ops), _by_name(STEP_ROWS, b, ops)
    merged = {name: a[name] + b[name] for name in _ADDED}
    one, other = a["first_nan"], b["first_nan"]
    both = ops.minimum(one, other)
    merged["first_nan"] = ops.where(both > 0, both, ops.maximum(one, other))
    merged |= pooled(*_of_moments(a, b, 3), ops)
    return ops.stack([merged[name] for name in STEP_ROWS])


def merged_samples(a, b, ops=ops):
    a, b = _by_name(SAMPLED_ROWS, a, ops), _by_name(SAMPLED_ROWS, b, ops)
    merged = {name: a[name] + b[name] for name in _ADDED_SAMPLES}
    # Until something counted, the zeros that a reset leaves behind do not.
    merged |= {
        name: ops.where(a["count"] > 0, ops.maximum(a[name], b[name]), b[name]) for name in _LARGEST
    }
    merged |= pooled(*_of_moments(a, b, 5), ops)
    return ops.stack([merged[name] for name in SAMPLED_ROWS])


def _of_moments(a, b, number):
    return [{name: part[name] for name in MOMENTS[:number]} for part in (a, b)]


def _by_name(names, rows, ops):
    return dict(zip(names, ops.unstack(ops.convert_to_tensor(rows), len(names)), strict=True))


class _Numpy:
    """Numpy under the names of `keras.ops`: many small operations cost more on a backend."""

    convert_to_tensor = staticmethod(np.asarray)

    def __getattr__(self, name):
        return getattr(np, name)

    def cast(self, x, dtype):
        return np.asarray(x, dtype)

    def unstack(self, x, number):
        return list(x)

    def rsqrt(self, x):
        return 1 / np.sqrt(x)


NUMPY = _Numpy()
