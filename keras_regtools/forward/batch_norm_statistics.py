"""What the moving statistics of batch normalization should be, of any data."""

import keras
import numpy as np
from keras import ops

from keras_regtools.forward.moments import counted_moments, wide
from keras_regtools.forward.walk import all_layers, in_loops, unwrapped
from keras_regtools.forward.watcher import InferenceWatcher


class BatchNormStatistics:
    """The statistics of data in every batch normalization of a model, which is not written to.

    Of a pass in which each batch normalization uses its batch's statistics, without dropout.

    Args:
        model: A built `keras.Model`.
        frozen: Whether layers that are not trainable count too.

    Attributes:
        model: As given.
        layers: Its batch normalization layers.
    """

    def __init__(self, model, frozen=True):
        self.model = model
        self.layers = [
            layer
            for layer in all_layers(model)
            if isinstance(layer, keras.layers.BatchNormalization) and (frozen or layer.trainable)
        ]
        cells = in_loops(model)
        self._in_loops = [layer.name for layer in self.layers if id(layer) in cells]
        self._watcher = InferenceWatcher(model, self._calls)

    def __call__(self, batches, view):
        """What the moving statistics should be.

        Args:
            batches: `Batches`; targets are ignored.
            view: Where to look from.

        Returns:
            List of pairs `(variable, array)`.
        """
        found = []
        for index, (mean, variance) in self.by_layer(batches, view).items():
            layer = self.layers[index]
            found += [(layer.moving_mean, mean), (layer.moving_variance, variance)]
        return found

    def by_layer(self, batches, view):
        """The same as a dict from the places of the layers that were called to two arrays."""
        if not self.layers:
            return {}
        if self._in_loops:
            raise NotImplementedError(
                "Expected batch normalization outside of the cells of recurrent layers, which run "
                f"in a loop. Received: {self._in_loops} of the model {self.model.name!r}"
            )
        totals = self._watcher.pooled(view, batches)
        return {
            int(index): (mean, variance)
            for index, (number, mean, variance) in totals.items()
            if np.all(number > 0)
        }

    def _calls(self, note):
        places = {id(layer): i for i, layer in enumerate(self.layers)}
        calls = [
            (layer, _normalizing(note, i, layer, layer.axis)) for i, layer in enumerate(self.layers)
        ]
        for wrapper in all_layers(self.model):  # all time steps at once, not in a loop
            inner = unwrapped(wrapper)
            if inner is not wrapper and id(inner) in places:
                axis = inner.axis + (inner.axis >= 1)
                calls.append((wrapper, _normalizing(note, places[id(inner)], inner, axis)))
        return calls


def _normalizing(note, index, layer, axis):
    """Normalization with the batch's statistics, which are noted.

    A frozen layer too is followed by what its new statistics will make of the data.
    """

    def call(inputs, training=None, mask=None):
        x = wide(inputs)
        number, mean, variance = counted_moments(x, axis, mask)
        note(index, number, mean, variance)
        scale, offset = (
            None if v is None else ops.cast(v, x.dtype)
            for v in (getattr(layer, "gamma", None), getattr(layer, "beta", None))
        )
        outputs = ops.batch_normalization(x, mean, variance, axis, offset, scale, layer.epsilon)
        return ops.cast(outputs, layer.compute_dtype)

    return call
