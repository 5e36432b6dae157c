"""Where the weights are, beside how flat it is there: how long they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keras_regtools.measures.declaration import measure
from keras_regtools.measures.result import loss_surface
from keras_regtools.measures.weights import length

if TYPE_CHECKING:
    from keras_regtools.measures.weights import WeightDistance
    from keras_regtools.surface import LossSurface


@measure("length of the weights", "weight_norm")
def weight_norm(surface: LossSurface) -> WeightDistance:
    """The Euclidean norm of the weights, ‖w‖.

    Args:
        surface: A `LossSurface`, of all weights or, with `layers=`, of some.

    Returns:
        A `WeightDistance`.

    Example:

    >>> import keras, numpy as np
    >>> from keras_regtools import LossSurface
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
    >>> model.set_weights([np.array([[3.0], [4.0]])])
    >>> weight_norm(LossSurface(model, np.ones((1, 2)), np.ones(1), loss="mse")).value
    5.0
    """
    return length(surface, loss_surface(surface).params)
