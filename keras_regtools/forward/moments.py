"""Moments of a tensor over everything but its channels, and how those of two parts are pooled."""

import keras
from keras import ops

from keras_regtools import backend

_ROUNDING = 2e-6  # of a mean of numbers in single precision


def reduction_axes(rank, axis):
    """All axes of a tensor but the channel axis."""
    return [i for i in range(rank) if i != axis % rank]


def reduced(reduce, x, axes):
    """`reduce` over the axes, the samples first: several times faster on a CPU than all at once."""
    if axes[0] != 0 or len(axes) == 1:
        return reduce(x, axis=axes)
    return reduce(reduce(x, axis=0), axis=[axis - 1 for axis in axes[1:]])


def mask_fits(mask, x):
    """Whether a mask still belongs to the tensor: one rank less, and sizes that broadcast."""
    if len(mask.shape) != len(x.shape) - 1:
        return False
    pairs = zip(mask.shape, x.shape[:-1], strict=True)
    return all(m is None or n is None or m in (1, n) for m, n in pairs)


def broadcast_mask(mask, x):
    """A mask of one rank less as booleans of the shape of the tensor; `None` stays."""
    if mask is None:
        return None
    return ops.broadcast_to(ops.expand_dims(ops.cast(mask, "bool"), -1), ops.shape(x))


def entries(x, axes, counted=None):
    """How many entries count, by channel."""
    if counted is not None:
        return ops.sum(ops.cast(counted, x.dtype), axis=axes)
    (channel,) = (i for i in range(len(x.shape)) if i not in axes)
    channels = ops.shape(x)[channel]
    number = ops.cast(ops.size(x), x.dtype) / ops.cast(channels, x.dtype)
    return ops.broadcast_to(number, [channels])


def average(x, axes, counted=None):
    """The mean of the entries that count, by channel; 0 where none does."""
    if counted is None:
        return reduced(ops.mean, x, axes)
    total = ops.sum(ops.where(counted, x, ops.zeros_like(x)), axis=axes)
    return total / ops.maximum(entries(x, axes, counted), 1)


def moments(x, axes, mask=None, synchronized=False):
    """Mean and biased variance over `axes`, of the unmasked part.

    Without a mask this is the very operation of Keras' batch normalization, so that a compiler
    finds it done already, except where that one cancels.
    """
    if mask is None and not backend.MOMENTS_CANCEL:
        return ops.moments(x, axes=axes, synchronized=synchronized)
    counted = broadcast_mask(mask, x)
    mean = average(x, axes, counted)
    return mean, average(ops.square(x - along(mean, x, axes)), axes, counted)


def counted_moments(x, axis, mask=None):
    """`(entries that count, mean, variance)` by channel, in single precision or better."""
    x = wide(x)
    axes = reduction_axes(len(x.shape), axis)
    return entries(x, axes, broadcast_mask(mask, x)), *moments(x, axes, mask)


def wide(x):
    """In single precision or better."""
    return ops.cast(x, keras.backend.result_type(x.dtype, "float32"))


def along(values, x, axes):
    """Values by channel in a shape that broadcasts against the tensor."""
    if axes[-1] == len(axes) - 1:  # the channels are the last axis
        return values
    return ops.reshape(values, [1 if i in axes else -1 for i in range(len(x.shape))])


def shape_moments(x, axes, mean, variance, counted=None):
    """The third and fourth moment of (x − mean) / √variance; 0 where the variance is."""
    z = (x - along(mean, x, axes)) * along(_inverse_root(variance), x, axes)
    square = z * z
    return average(square * z, axes, counted), average(square * square, axes, counted)


def pooled(a, b, ops=ops):
    """The moments of two sets of entries together.

    Args:
        a, b: Tensors of the rows count, mean and biased variance, and, if wanted, skewness and
            kurtosis (the standardized third and fourth moments), by channel.
        ops: `keras.ops`, or numpy under its names.

    Returns:
        The same rows; [Pébay, 2008](https://www.osti.gov/biblio/1028931), with standardized
        moments in place of sums of powers, which overflow.
    """
    number = a.shape[0]
    (count, mean, *_), (more, other, *_) = (ops.unstack(t, number) for t in (a, b))
    _, _, variances, *shapes = ops.unstack(ops.stack([a, b], axis=1), number)
    total = count + more
    share = more / ops.maximum(total, 1.0)
    mean = ops.where(count > 0, mean, other)
    step = other - mean
    moved = share * step
    weights, off = ops.stack([1.0 - share, share]), ops.stack([-moved, step - moved])
    variance = ops.sum(weights * (variances + off * off), axis=0)
    rows = [total, mean + moved, variance]
    if shapes:
        skewness, kurtosis = shapes
        inverse = _inverse_root(variance, ops)
        width, off = ops.sqrt(variances) * inverse, off * inverse
        wide, far = width * width, off * off
        third = skewness * wide * width
        new = third + off * (3.0 * wide + far)
        rows.append(ops.sum(weights * new, axis=0))
        new = kurtosis * wide * wide + 4.0 * third * off + far * (6.0 * wide + far)
        rows.append(ops.sum(weights * new, axis=0))
    return ops.stack(rows)


def stands_still(mean, variance):
    """Whether entries differ by no more than rounding; tensors or arrays."""
    return variance**0.5 <= _ROUNDING * abs(mean)


def _inverse_root(variance, ops=ops):
    positive = variance > 0
    return ops.where(positive, ops.rsqrt(ops.where(positive, variance, 1.0)), 0.0)
