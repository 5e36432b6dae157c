"""Means and variances of what comes into each layer, of any data."""

import keras
from keras import ops

from keras_regtools.forward.masks import masks_of
from keras_regtools.forward.moments import counted_moments, mask_fits
from keras_regtools.forward.overrides import watched
from keras_regtools.forward.walk import all_layers, channel_axis, in_loops, names_of
from keras_regtools.forward.watcher import InferenceWatcher


class InputStatistics:
    """The statistics of data at the input of each layer with weights, in inference.

    Args:
        model: A built `keras.Model`.

    Attributes:
        layers: The layers, in the order of the model.
    """

    def __init__(self, model):
        cells = in_loops(model)  # their recurrent layer is looked at
        self.layers = [
            layer
            for layer in all_layers(model)
            if layer.weights
            and not isinstance(layer, (keras.Model, keras.layers.Wrapper))
            and id(layer) not in cells
        ]
        self._watcher = InferenceWatcher(model, self._calls)

    def __call__(self, batches, view):
        """The mean and the variance of each channel.

        Args:
            batches: `Batches`; targets are ignored.
            view: Where to look from.

        Returns:
            Dict from the names of the layers that were called on floats to pairs of arrays, over
            all entries that are not masked.
        """
        totals = {int(i): total for i, total in self._watcher.pooled(view, batches).items()}
        found = sorted(totals)
        names = names_of([self.layers[index] for index in found])
        return {name: totals[index][1:] for name, index in zip(names, found, strict=True)}

    def _calls(self, note):
        def watching(index, layer):
            def see(_, inputs, *args, **kwargs):
                if ops.is_tensor(inputs) and _is_float(inputs):
                    (mask,) = masks_of(inputs)
                    mask = mask if mask is not None and mask_fits(mask, inputs) else None
                    note(index, *counted_moments(inputs, _axis(layer), mask))

            return watched(layer, see)

        return [watching(i, layer) for i, layer in enumerate(self.layers)]


def _is_float(t):
    return "float" in keras.backend.standardize_dtype(t.dtype)


def _axis(layer):
    known = isinstance(layer, keras.layers.BatchNormalization) or hasattr(layer, "data_format")
    return channel_axis(layer) if known else -1
