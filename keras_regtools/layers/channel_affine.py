"""What the activation behind a recorder gets, without a tensor of its own where that can be."""

import functools

from keras import ops

from keras_regtools.forward.moments import along


class ChannelAffine:
    """A tensor, times a scale and plus an offset by channel.

    The comparisons come out as if the sum had been made and rounded, in one pass less.

    Args:
        t: The tensor.
        axes: All its axes but that of the channels.
        scale, offset: Tensors with an entry for each channel, or `None` for 1 and 0.
    """

    def __init__(self, t, axes, scale=None, offset=None):
        self.t, self.axes, self._scale, self._offset = t, axes, scale, offset

    @functools.cached_property
    def _scaled(self):
        if self._scale is None:
            return self.t
        return self.t * along(ops.cast(self._scale, self.t.dtype), self.t, self.axes)

    def _bound(self, value):
        if self._offset is None:
            return value
        return along(ops.cast(value - self._offset, self.t.dtype), self.t, self.axes)

    def zeros(self, rectified):
        """Where it is zero, or, `rectified`, where a ReLU makes it so."""
        compare = ops.less_equal if rectified else ops.equal
        return compare(self._scaled, self._bound(0.0))

    def absolute(self, rectified):
        """Its absolute values, or, `rectified`, what a ReLU makes of it."""
        x = self._scaled
        if self._offset is not None:
            x = x + along(ops.cast(self._offset, self.t.dtype), self.t, self.axes)
        return ops.maximum(x, 0) if rectified else ops.abs(x)

    def outside(self, below, above):
        """Where it is below or above."""
        return ops.logical_or(self._scaled < self._bound(below), self._scaled > self._bound(above))

    def highest(self, low, high):
        """Its maximum by channel, from the extremes of the tensor."""
        if self._scale is None:
            return high
        return ops.maximum(low * self._scale, high * self._scale) + self._offset
