"""What the weights are worth where batch normalization has the statistics that belong to them."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

from keras_regtools.measures.declaration import measure
from keras_regtools.measures.result import Result, loss_surface, origin
from keras_regtools.validation import positive_integer

if TYPE_CHECKING:
    from keras_regtools.surface import LossSurface


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class RecalibratedLoss(Result):
    """Result of `recalibrated_loss`.

    Attributes:
        value: The loss with re-estimated moving statistics.
        accuracy: The share of right answers with them; NaN where there is no such thing.
        moving_loss, moving_accuracy: The same with the model's own moving statistics.
        mode, penalties, samples: Those of the surface.
    """

    value: float
    accuracy: float
    moving_loss: float
    moving_accuracy: float
    mode: str
    penalties: bool
    samples: int | None


@measure("loss", batch_size=positive_integer)
def recalibrated_loss(surface: LossSurface, x: Any, *, batch_size: int = 256) -> RecalibratedLoss:
    """The loss over a surface's data with the moving statistics that `recalibrate` would give.

    The gap to the loss with the model's own moving statistics is the part of a validation loss that
    is due to statistics which lag behind the weights. The model is not written to. In a fit:
    `callbacks.Measure({"recalibrated": functools.partial(recalibrated_loss, x=x)}, xv, yv)` draws
    it beside the validation on the page of `callbacks.Report`.

    Args:
        surface: A `LossSurface` over validation data, in the mode `"inference"`.
        x: Training inputs to estimate on: arrays, a re-iterable dataset, or `Batches`.
        batch_size: Samples per batch, for arrays.

    Returns:
        A `RecalibratedLoss`; without batch normalization both losses are the same.

    Raises:
        TypeError: data that cannot be read twice.

    Example:

    >>> import keras, numpy as np
    >>> from keras_regtools import LossSurface
    >>> model = keras.Sequential([keras.Input((1,)), keras.layers.BatchNormalization(epsilon=0.0)])
    >>> x = np.array([[1.0], [3.0]])  # mean 2, standard deviation 1
    >>> surface = LossSurface(model, x, np.zeros((2, 1)), loss="mse")
    >>> found = recalibrated_loss(surface, x)
    >>> round(found.moving_loss, 4), round(found.value, 4)
    (5.0, 1.0)
    """
    loss_surface(surface)
    there = surface.recalibrated(x, batch_size=batch_size)
    numbers = []
    for one in (there, surface):
        if surface.classifies:
            numbers += one.value_and_accuracy()
        else:
            numbers += (one.value(), math.nan)
    return RecalibratedLoss(
        value=numbers[0],
        accuracy=numbers[1],
        moving_loss=numbers[2],
        moving_accuracy=numbers[3],
        **origin(surface),
    )
