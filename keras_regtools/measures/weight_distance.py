"""Where the weights are, beside how flat it is there: how far they came."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from keras_regtools import vectors
from keras_regtools.measures.declaration import measure
from keras_regtools.measures.result import loss_surface
from keras_regtools.measures.weights import length, weights_of

if TYPE_CHECKING:
    from keras_regtools.measures.weights import WeightDistance
    from keras_regtools.surface import LossSurface


@measure("length of the weights", "weight_distance")
def weight_distance(surface: LossSurface, start: Any) -> WeightDistance:
    """The distance of the weights from others, ‖w − w₀‖: the initial ones, say.

    Args:
        surface: A `LossSurface`, of all weights or, with `layers=`, of some.
        start: The other weights: a model of the same structure, a list of arrays as
            `model.get_weights()` gives them, or one like `surface.params`.

    Returns:
        A `WeightDistance`.

    Raises:
        TypeError: neither a model nor a list.
        ValueError: weights of another structure.

    Example:

    >>> import keras, numpy as np
    >>> from keras_regtools import LossSurface
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
    >>> model.set_weights([np.array([[3.0], [4.0]])])
    >>> surface = LossSurface(model, np.ones((1, 2)), np.ones(1), loss="mse")
    >>> weight_distance(surface, [np.array([[3.0], [1.0]])]).value
    3.0
    """
    there, _ = weights_of(loss_surface(surface), start, "start")
    return length(surface, vectors.axpy(-1.0, there, surface.params), there)
