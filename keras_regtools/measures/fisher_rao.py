"""The Fisher-Rao norm of the weights: their length as the losses of the samples feel it."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

from keras_regtools.measures.declaration import measure
from keras_regtools.measures.result import SharpnessResult, loss_surface, origin

if TYPE_CHECKING:
    from keras_regtools.surface import LossSurface


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class FisherRaoNorm(SharpnessResult):
    """Result of `fisher_rao_norm`.

    Attributes:
        value: E⟨w, ∇ℓ⟩², the squared norm.
        stderr: Its standard error over the samples; NaN for a single one.
        loss, evaluations, mode, penalties, samples: As in every measure of flatness.
    """

    stderr: float


@measure("squared loss", "fisher_rao")
def fisher_rao_norm(surface: LossSurface) -> FisherRaoNorm:
    """The squared Fisher-Rao norm of the weights, E⟨w, ∇ℓ⟩², over the samples' own losses ℓ.

    [Liang et al., 2017](https://arxiv.org/abs/1711.01530), with the labels of the data. For a
    network of ReLU layers without biases ⟨w, ∇ℓ⟩ is a multiple of ⟨z, ∂ℓ/∂z⟩ of the outputs z: a
    rescaling of the weights that leaves the function alone does not change it.

    Args:
        surface: A `LossSurface`. Sample weights scale the losses; penalties add their derivative to
            that of each sample.

    Returns:
        A `FisherRaoNorm`.

    Raises:
        ValueError: a loss that is not the mean over its samples.

    Example:

    >>> import keras, numpy as np
    >>> from keras_regtools import LossSurface
    >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    >>> model.set_weights([np.array([[2.0]])])
    >>> surface = LossSurface(model, np.array([[1.0]]), np.array([0.0]), loss="mse")
    >>> fisher_rao_norm(surface).value  # (2 · 2 w)²
    64.0
    """
    params = loss_surface(surface).params
    loss = surface.value(params)
    square, fourth = surface.slope_moments(params, params)
    samples = surface.data.samples
    spread = max(fourth - square**2, 0.0)
    return FisherRaoNorm(
        value=square,
        stderr=math.sqrt(spread / (samples - 1)) if samples > 1 else math.nan,
        loss=loss,
        evaluations=2,
        **origin(surface),
    )
