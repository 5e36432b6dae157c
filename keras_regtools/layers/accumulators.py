"""The rows that a recorder keeps, from what statistics declare, and how two parts become one."""

import numpy as np
from keras import ops

from keras_regtools.forward.moments import broadcast_mask, entries, pooled
from keras_regtools.layers.statistics import STATISTICS
from keras_regtools.layers.statistics.base import FIRST, LARGEST, MOMENTS, SUM, Steps

_SAMPLED = ("count", "mean", "variance")  # moments that every accumulator has, pooled together


class Accumulator:
    """Rows by channel, each merged in its own way.

    Args:
        counter: The row that counts what was added.
        declared: Name of the attribute of statistics that declares rows.

    Attributes:
        rows: The names of the rows, in the order in which they are kept: those of one kind of
            merging lie beside each other.
    """

    def __init__(self, counter, declared):
        kinds = {counter: SUM, **dict.fromkeys(_SAMPLED, MOMENTS)}
        for statistic in STATISTICS.values():
            kinds |= getattr(statistic, declared)
        order = (SUM, FIRST, LARGEST, MOMENTS)
        self.of_kind = {k: [row for row, kind in kinds.items() if kind == k] for k in order}
        self.rows = tuple(row for k in order for row in self.of_kind[k])

    def merged(self, a, b, ops=ops):
        """The rows of two parts together."""
        parts = [self._by_kind(t, ops) for t in (a, b)]
        found = []
        for kind, one in parts[0].items():
            found.append(_MERGE[kind](one, parts[1][kind], self._count(parts[0], ops), ops))
        return ops.concatenate(found)

    def _by_kind(self, rows, ops):
        """A tensor of rows for each kind; fewer operations than slices make."""
        each, found, begin = ops.unstack(rows, len(self.rows)), {}, 0
        for kind, names in self.of_kind.items():
            if names:
                found[kind] = ops.stack(each[begin : begin + len(names)])
                begin += len(names)
        return found

    def _count(self, parts, ops):
        return ops.unstack(parts[MOMENTS], len(self.of_kind[MOMENTS]))[0]


_MERGE = {
    SUM: lambda a, b, count, ops: a + b,
    # Of steps counted from 1, 0 for none.
    FIRST: lambda a, b, count, ops: ops.where(
        ops.minimum(a, b) > 0, ops.minimum(a, b), ops.maximum(a, b)
    ),
    # Until something counted, the zeros that a reset leaves behind do not.
    LARGEST: lambda a, b, count, ops: ops.where(count > 0, ops.maximum(a, b), b),
    MOMENTS: lambda a, b, count, ops: pooled(a, b, ops),
}

STEPS = Accumulator("steps", "step_rows")
SAMPLES = Accumulator("readings", "sampled_rows")


def of_channels(channels, axis, t):
    return t if channels is None or t is None else ops.take(t, np.array(channels), axis=axis)


def pending_rows(x, axes, mask, mean, variance, reference):
    """What one step gives, as rows."""
    count = entries(x, axes, broadcast_mask(mask, x))
    if reference is None:
        reference = (ops.zeros_like(mean), ops.ones_like(mean))
    rows = (count, mean, variance, *reference)
    return ops.stack([ops.cast(row, "float32") for row in rows])


def of_steps(pending, step, epsilon, ops=ops):
    """The rows of `STEPS` of several steps together; the arguments are those of `Steps`."""
    steps = Steps(pending, step, epsilon, ops)
    own = {"steps": ops.cast(steps.made, "float32")}
    for statistic in STATISTICS.values():
        own |= statistic.of_steps(steps, ops)
    sums = ops.sum(ops.stack([own[row] for row in STEPS.of_kind[SUM]]), axis=1)
    first = ops.min(ops.stack([own[row] for row in STEPS.of_kind[FIRST]]), axis=1)
    first = ops.where(ops.isfinite(first), first, 0.0)
    total = ops.sum(steps.count, axis=0)
    share = steps.count / ops.maximum(total, 1.0)
    mean = ops.sum(share * steps.mean, axis=0)
    variance = ops.sum(share * (steps.variance + ops.square(steps.mean - mean)), axis=0)
    return ops.concatenate([sums, first, ops.stack([total, mean, variance])])


def sampled_rows(new, like):
    """The rows of `SAMPLES` of a sampled step, zero where there are none.

    Where nothing counts, all but the largest are zero.

    Args:
        new: Dict from the names of rows to tensors by channel.
        like: Tensor by channel.
    """
    zero = ops.zeros_like(like)
    rows = ops.cast(ops.stack([new.get(name, zero) for name in SAMPLES.rows]), "float32")
    largest = np.isin(SAMPLES.rows, SAMPLES.of_kind[LARGEST])[:, None]
    return ops.where(ops.logical_or(new["count"] > 0, largest), rows, 0.0)


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
