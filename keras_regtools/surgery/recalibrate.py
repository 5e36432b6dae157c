"""Estimate the moving statistics of batch normalization anew."""

import keras
import numpy as np
from keras import ops

from keras_regtools import backend
from keras_regtools.data import Batches
from keras_regtools.layers.moments import entries, moments, reduction_axes, spread
from keras_regtools.layers.shadow import all_layers, call_model, shadowed
from keras_regtools.surgery.graph import unwrapped
from keras_regtools.validation import keras_model


def recalibrate(model, x, *, batch_size=256):
    """Set the moving statistics of every batch normalization to those of the data, in place.

    After few steps, or at weights that were never trained (an average, a point between two
    models), moving statistics lag behind: with momentum 0.99, 60 steps leave 0.55 of the initial
    ones in. One pass over the data is made in which each batch normalization uses its batch's
    statistics, without dropout; the moving mean becomes the mean over all entries that are not
    masked and the moving variance their variance (within and between the batches). Nothing else
    changes, and nothing at all if the pass is interrupted.

    Args:
        model: A built `keras.Model`, of any kind, with batch normalization.
        x: Input data: arrays, or a re-iterable dataset whose targets are ignored.
        batch_size: Samples per batch, for arrays.

    Returns:
        The same model.

    Raises:
        TypeError: not a Keras model, or data that cannot be read twice.
        ValueError: a model that is not built or has no batch normalization; empty data.

    Example:

    >>> import keras, numpy as np
    >>> from keras_regtools import recalibrate
    >>> model = keras.Sequential([keras.Input((1,)), keras.layers.BatchNormalization()])
    >>> layer = recalibrate(model, np.array([[1.0], [3.0]])).layers[0]
    >>> float(layer.moving_mean[0]), float(layer.moving_variance[0])
    (2.0, 1.0)
    """
    statistics = MovingStatistics(keras_model(model))
    if not statistics.layers:
        raise ValueError(
            "Expected a model with batch normalization. "
            f"Received: the model {model.name!r}, which has none"
        )
    for variable, value in statistics(Batches(x, batch_size=batch_size)):
        variable.assign(value)
    return model


class MovingStatistics:
    """The statistics of data in every batch normalization of a model, which is not written to.

    Args:
        model: A built `keras.Model`.
        frozen: Whether layers that are not trainable count too.

    Attributes:
        layers: Its batch normalization layers.
    """

    def __init__(self, model, frozen=True):
        self.model = model
        self.layers = [
            layer
            for layer in all_layers(model)
            if isinstance(layer, keras.layers.BatchNormalization) and (frozen or layer.trainable)
        ]
        self._moments = backend.jit(
            lambda params, *args: _batch_moments(self.model, self.layers, params, *args)
        )

    def __call__(self, batches, read=ops.convert_to_tensor):
        """What the moving statistics should be.

        Args:
            batches: `Batches`; targets are ignored.
            read: Gives the value of a variable, where the model itself is not to be taken.

        Returns:
            List of pairs `(variable, array)`.
        """
        params = [read(v) for v in self.model.trainable_variables]
        state = [read(v) for v in self.model.non_trainable_variables]
        totals = {}
        for inputs, *_ in batches.tensors():
            for index, uses in self._moments(params, state, inputs).items():
                for use in uses:
                    add_moments(totals, index, *use)
        found = []
        for index, (number, mean, variance) in totals.items():
            if np.all(number > 0):
                layer = self.layers[int(index)]
                found += [(layer.moving_mean, mean), (layer.moving_variance, variance)]
        return found


def add_moments(totals, key, number, mean, variance):
    """Add the moments of so many entries of each channel to those of the same key.

    Args:
        totals: Dict from keys to sums over entries, in double precision.
        key: Where to add.
        number, mean, variance: Tensors with an entry for each channel.
    """
    number, mean, variance = (
        np.asarray(ops.convert_to_numpy(t), "float64") for t in (number, mean, variance)
    )
    old, old_mean, old_variance = totals.get(key, (0.0, 0.0, 0.0))
    total = old + number
    share = number / np.maximum(total, 1)
    step = mean - old_mean
    spread = old_variance * (1 - share) + variance * share + step**2 * share * (1 - share)
    totals[key] = (total, old_mean + step * share, spread)


def _batch_moments(model, layers, params, state, x):
    """`(entries that count, mean, variance)` of each use of a layer, by its index."""
    found = {}

    def watched(index, layer, axis):
        def watching(inputs, training=None, mask=None):
            wide = ops.cast(inputs, keras.backend.result_type(inputs.dtype, "float32"))
            axes = reduction_axes(len(wide.shape), axis)
            mean, variance = moments(wide, axes, mask)
            number = entries(wide, axes, spread(mask, wide))
            found.setdefault(str(index), []).append((number, mean, variance))
            # A frozen layer too is followed by what its new statistics will make of the data.
            scale, offset = (
                None if v is None else ops.cast(v, wide.dtype)
                for v in (getattr(layer, "gamma", None), getattr(layer, "beta", None))
            )
            outputs = ops.batch_normalization(
                wide, mean, variance, axis, offset, scale, layer.epsilon
            )
            return ops.cast(outputs, layer.compute_dtype)

        return watching

    places = {id(layer): i for i, layer in enumerate(layers)}
    calls = [(layer, watched(i, layer, layer.axis)) for i, layer in enumerate(layers)]
    for wrapper in all_layers(model):  # all time steps at once, which may be run in a loop
        inner = unwrapped(wrapper)
        if inner is not wrapper and id(inner) in places:
            axis = inner.axis + (inner.axis >= 1)
            calls.append((wrapper, watched(places[id(inner)], inner, axis)))
    with shadowed(calls):
        call_model(model, params, state, x, training=False)
    return found
