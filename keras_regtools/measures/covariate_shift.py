"""Internal covariate shift: how the steps of earlier layers change a layer's gradient."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np

from keras_regtools import vectors
from keras_regtools.forward import names_of
from keras_regtools.measures.declaration import measure
from keras_regtools.measures.layers import weights_by_layer
from keras_regtools.measures.result import SharpnessResult, frozen, loss_surface, origin
from keras_regtools.validation import positive

if TYPE_CHECKING:
    from keras_regtools.surface import LossSurface


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class InternalCovariateShift(SharpnessResult):
    """Result of `internal_covariate_shift`.

    Attributes:
        value: The mean of the distances over the layers after the first; NaN for a single layer.
        layers: Tuple of the layers' names, from the input to the output.
        distances: Array, ‖G − G'‖ of each layer; 0 for the first.
        cosines: Array, the cosine of the angle between G and G'; NaN where one of them is zero.
        gradient_norms: Array, ‖G‖ of each layer.
        learning_rate: As given.
        loss, evaluations, mode, penalties, samples: As in every measure of flatness.
    """

    layers: tuple
    distances: np.ndarray
    cosines: np.ndarray
    gradient_norms: np.ndarray
    learning_rate: float

    def scalars(self) -> dict[str, float]:
        """`value`, then `<layer>/distance` and `<layer>/cosine`, and the other numbers."""
        numbers = super().scalars()
        for i, name in enumerate(self.layers):
            numbers[f"{name}/distance"] = float(self.distances[i])
            numbers[f"{name}/cosine"] = float(self.cosines[i])
        return numbers


@measure("length of a gradient", learning_rate=positive)
def internal_covariate_shift(surface: LossSurface, learning_rate: float) -> InternalCovariateShift:
    """How far the gradient of each layer moves when the layers before it take their step.

    ‖G_i − G'_i‖ and the cosine between the two: G_i is the gradient of the weights of layer i, G'_i
    the one after layers 1 … i − 1 took their step of gradient descent, on the same batch
    ([Santurkar et al., 2018](https://arxiv.org/abs/1805.11604)). Batch normalization often raises
    this number, although it was made to reduce internal covariate shift.

    Args:
        surface: A `LossSurface`, of the batch of a training step in the mode `"batch_statistics"`
            or `"training"`.
        learning_rate: The rate of the step.

    Returns:
        An `InternalCovariateShift`; the layers are those with trainable weights, in the order of
        `model.layers`.

    Raises:
        ValueError: a rate that is not positive, or no layer that holds weights.

    Example:

    >>> import keras, numpy as np
    >>> from keras_regtools import LossSurface
    >>> layers = [keras.layers.Dense(1, use_bias=False, name=name) for name in ("a", "b")]
    >>> model = keras.Sequential([keras.Input((1,)), *layers])
    >>> model.set_weights([np.array([[1.0]]), np.array([[2.0]])])
    >>> half = lambda y, z: (z - y) ** 2 / 2
    >>> surface = LossSurface(model, np.ones((1, 1)), np.ones((1, 1)), loss=half)
    >>> internal_covariate_shift(surface, 0.1).distances.round(4)  # ½ (w₂ w₁ − 1)²
    array([0.  , 0.52])
    """
    rate = learning_rate
    params = list(loss_surface(surface).params)
    layers = weights_by_layer(surface)
    if not layers:
        raise ValueError(
            "Expected weights that belong to layers of the model. Received: the surface of "
            f"{[v.path for v in surface.variables]}"
        )
    loss, gradient = surface.value_and_gradient(params)
    distances, cosines, lengths = [], [], []
    for number, (_, places) in enumerate(layers):
        own = [gradient[i] for i in places]
        other = own
        if number:
            _, moved = surface.value_and_gradient(params)
            other = [moved[i] for i in places]
        lengths.append(vectors.norm(own))
        distances.append(vectors.norm(vectors.axpy(-1.0, other, own)))
        both = lengths[-1] * vectors.norm(other)
        cosines.append(vectors.dot(own, other) / both if both > 0 else math.nan)
        for i in places:
            params[i] = params[i] - rate * gradient[i]
    return InternalCovariateShift(
        value=float(np.mean(distances[1:])) if len(distances) > 1 else math.nan,
        layers=tuple(names_of([layer for layer, _ in layers])),
        distances=frozen(distances),
        cosines=frozen(cosines),
        gradient_norms=frozen(lengths),
        learning_rate=rate,
        loss=loss,
        evaluations=len(layers),
        **origin(surface),
    )
