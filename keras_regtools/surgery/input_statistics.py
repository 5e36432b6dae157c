"""Means and variances of what comes into each layer, of any data; the model is not written to."""

import keras
import numpy as np
from keras import ops

from keras_regtools import backend
from keras_regtools.layers.moments import moments, reduction_axes
from keras_regtools.layers.shadow import all_layers, call_model, shadowed


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
            Dict from the names of the layers that were called on floats to pairs of arrays.
        """
        params = [ops.convert_to_tensor(v) for v in self.model.trainable_variables]
        state = [ops.convert_to_tensor(v) for v in self.model.non_trainable_variables]
        totals = {}
        for inputs, _, _, count in batches.tensors():
            for index, uses in self._moments(params, state, inputs).items():
                for mean, variance in uses:
                    mean = np.asarray(ops.convert_to_numpy(mean), "float64")
                    square = np.asarray(ops.convert_to_numpy(variance), "float64") + mean**2
                    total = totals.get(index, (0, 0.0, 0.0))
                    new = (count, count * mean, count * square)
                    totals[index] = tuple(a + b for a, b in zip(total, new, strict=True))
        found = {}
        for index, (count, mean, square) in sorted(totals.items(), key=lambda item: int(item[0])):
            mean = mean / count
            found[self.layers[int(index)].name] = mean, np.maximum(square / count - mean**2, 0.0)
        return found

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
                    found.setdefault(str(index), []).append(moments(wide, axes, None))
                return call(inputs, *args, **kwargs)

            return layer, watching

        with shadowed([watched(i, layer) for i, layer in enumerate(self.layers)]):
            call_model(self.model, params, state, x, training=False)
        return found


def _channel_axis(layer):
    if isinstance(layer, keras.layers.BatchNormalization):
        return layer.axis
    return 1 if getattr(layer, "data_format", None) == "channels_first" else -1
