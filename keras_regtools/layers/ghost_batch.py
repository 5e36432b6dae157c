"""Batch normalization over virtual batches, so that its n stays while the batch grows."""

from keras import ops

from keras_regtools import backend
from keras_regtools.forward.moments import broadcast_mask
from keras_regtools.state import State


class VirtualBatches(State):
    """The moments of each virtual batch of a tensor.

    Args:
        size: Samples in a virtual batch; where that does not divide, the last one has fewer.
    """

    def __init__(self, size, **kwargs):
        super().__init__(**kwargs)
        self.size = size
        self._largest = 0

    def build(self):
        self.largest = self.add_weight(
            name="largest", shape=(), dtype="int32", initializer="zeros", trainable=False
        )
        self.built = True

    def __call__(self, x, axis, mask=None):
        """Mean and biased variance of each virtual batch.

        Returns:
            `(means, variances, batches)`: two matrices, virtual batches by channels, and the
            virtual batch that each sample belongs to.
        """
        samples = ops.shape(x)[0]
        self._check(samples)
        batches = ops.arange(samples, dtype="int32") // self.size
        number = (samples + self.size - 1) // self.size
        within = [i for i in range(1, len(x.shape)) if i != axis % len(x.shape)]
        counted = broadcast_mask(mask, x)

        def summed(t):
            t = t if counted is None else ops.where(counted, t, ops.zeros_like(t))
            t = ops.sum(t, axis=within) if within else t
            return ops.segment_sum(t, batches, num_segments=number)

        count = ops.maximum(summed(ops.ones_like(x)), 1)
        means = summed(x) / count
        centred = x - by_sample(means, batches, x, axis)
        return means, summed(ops.square(centred)) / count, batches

    def _check(self, samples):
        """A batch that ends an epoch may be smaller; the first ones may not."""
        message = (
            f"Expected batches of at least {self.size} samples, the size of a virtual batch. "
            "Received: "
        )
        if isinstance(samples, int):
            self._largest = max(self._largest, samples)
            if self._largest < self.size:
                raise ValueError(f"{message}a batch of {samples}")
        else:
            largest = ops.maximum(ops.maximum(self.largest, samples), self._largest)
            self.largest.assign(largest)
            backend.require(largest >= self.size, f"{message}smaller ones", self.largest)


def by_sample(values, batches, x, axis):
    """Values of virtual batches, for each sample, in a shape that broadcasts against the tensor."""
    taken = ops.take(values, batches, axis=0)
    shape = [1] * len(x.shape)
    shape[0], shape[axis] = -1, x.shape[axis]
    return ops.reshape(taken, shape)


def followed(moving, values, momentum):
    """A moving statistic after one step for each of the rows of `values`, in turn.

    m^k · moving + (1 − m) Σ m^(k−1−i) values_i, as in algorithm 1 of
    [Hoffer et al., 2017](https://arxiv.org/abs/1705.08741).
    """
    steps = ops.shape(values)[0]
    later = ops.cast(steps - 1 - ops.arange(steps, dtype="int32"), values.dtype)
    powers = ops.power(ops.cast(momentum, values.dtype), later)
    remains = ops.power(ops.cast(momentum, values.dtype), ops.cast(steps, values.dtype))
    return remains * moving + (1 - momentum) * ops.sum(powers[:, None] * values, axis=0)
