"""Re-estimate the moving statistics of batch normalization."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from keras_regtools.data import Batches
from keras_regtools.forward import BatchNormStatistics, View
from keras_regtools.validation import keras_model

if TYPE_CHECKING:
    import keras


def recalibrate(model: keras.Model, x: Any, *, batch_size: int = 256) -> None:
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
    statistics = BatchNormStatistics(keras_model(model))
    if not statistics.layers:
        raise ValueError(
            "Expected a model with batch normalization. "
            f"Received: the model {model.name!r}, which has none"
        )
    for variable, value in statistics(Batches(x, batch_size=batch_size), View(model)):
        variable.assign(value)
    return model
