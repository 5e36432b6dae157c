"""The masks that Keras keeps on tensors, and how they come onto tensors that were made again."""

import keras
from keras import tree


class _Carrier(keras.layers.Layer):
    """The identity: Keras hands it the mask of its input, or puts a given one on its output."""

    def __init__(self):
        super().__init__(name="mask_carrier", autocast=False)
        self.supports_masking = True
        self.seen = None

    def call(self, inputs, mask=None):
        self.seen = mask
        return inputs

    def compute_output_shape(self, input_shape):
        return input_shape


_CARRIER = _Carrier()


def masks_of(structure):
    """The mask of each tensor, `None` where it has none, in the order of `tree.flatten`."""
    return [_mask_of(t) for t in tree.flatten(structure)]


def _mask_of(tensor):
    try:
        _CARRIER(tensor)
        return _CARRIER.seen
    finally:
        _CARRIER.seen = None  # which belongs to a graph


def with_masks(tensors, masks):
    """The tensors of a list with these masks on them."""
    try:
        return [
            t if mask is None else _CARRIER(t, mask=mask)
            for t, mask in zip(tensors, masks, strict=True)
        ]
    finally:
        _CARRIER.seen = None
