"""Means and variances of what comes into each layer, of any data; the model is not written to."""

import keras
from keras import ops

from keras_regtools import backend
from keras_regtools.layers.masks import masks_of
from keras_regtools.layers.moments import entries, mask_fits, moments, reduction_axes, spread
from keras_regtools.layers.shadow import all_layers, call_model, names_of, shadowed
from keras_regtools.surgery.recalibrate import add_moments


class InputStatistics:
    """The statistics of data at the input of each layer with weights, in inference.

    Args:
        model: A built `keras.Model`.

    Attributes:
        layers: The layers, in the order of the model.
    """

    def __init__(self, model):
        self.model = model
        self.layers = [
            layer
            for layer in all_layers(model)
            if layer.weights and not isinstance(layer, (keras.Model, keras.layers.Wrapper))
        ]
        self._moments = backend.jit(self._batch_moments)

    def __call__(self, batches):
        """The mean and the variance of each channel.

        Args:
            batches: `Batches`; targets are ignored.

        Returns:
            Dict from the names of the layers that were called on floats to pairs of arrays, over
            all entries that are not masked.
        """
        params = [ops.convert_to_tensor(v) for v in self.model.trainable_variables]
        state = [ops.convert_to_tensor(v) for v in self.model.non_trainable_variables]
        totals = {}
        for inputs, *_ in batches.tensors():
            for index, uses in self._moments(params, state, inputs).items():
                for use in uses:
                    add_moments(totals, int(index), *use)
        found = sorted(totals)
        names = names_of([self.layers[index] for index in found])
        return {name: totals[index][1:] for name, index in zip(names, found, strict=True)}

    def _batch_moments(self, params, state, x):
        found = {}

        def watched(index, layer):
            call = layer.call

            def watching(inputs, *args, **kwargs):
                if ops.is_tensor(inputs) and "float" in keras.backend.standardize_dtype(
                    inputs.dtype
                ):
                    wide = ops.cast(inputs, keras.backend.result_type(inputs.dtype, "float32"))
                    axes = reduction_axes(len(wide.shape), _channel_axis(layer))
                    (mask,) = masks_of(inputs)
                    mask = mask if mask is not None and mask_fits(mask, wide) else None
                    number = entries(wide, axes, spread(mask, wide))
                    found.setdefault(str(index), []).append((number, *moments(wide, axes, mask)))
                return call(inputs, *args, **kwargs)

            return layer, watching

        with shadowed([watched(i, layer) for i, layer in enumerate(self.layers)]):
            call_model(self.model, params, state, x, training=False)
        return found


def _channel_axis(layer):
    if isinstance(layer, keras.layers.BatchNormalization):
        return layer.axis
    return 1 if getattr(layer, "data_format", None) == "channels_first" else -1
