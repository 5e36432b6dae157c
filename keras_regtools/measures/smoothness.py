"""How smooth the loss is along its gradient, as far as the steps of a training go."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np

from keras_regtools import vectors
from keras_regtools.measures.declaration import measure
from keras_regtools.measures.result import SharpnessResult, frozen, loss_surface, origin
from keras_regtools.validation import at_least, positive, positive_pair

if TYPE_CHECKING:
    from keras_regtools.surface import LossSurface


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class GradientSmoothness(SharpnessResult):
    """Result of `gradient_smoothness`.

    Attributes:
        value: The effective β-smoothness, max ‖g − g(s)‖ / ‖s g‖; NaN for a gradient of zero.
        loss_variation: The range of the loss, its largest less its smallest value along the steps.
        gradient_predictiveness: The range of the distances ‖g − g(s)‖.
        loss_lowest, loss_highest, distance_lowest, distance_highest: The bands that are drawn.
        gradient_norm: ‖g‖.
        finite: Whether every loss and gradient was; those that were not do not count.
        steps, losses, distances: Arrays, the s, the losses and the distances there.
        learning_rate: As given.
        loss, evaluations, mode, penalties, samples: As in every measure of flatness.
    """

    loss_variation: float
    gradient_predictiveness: float
    loss_lowest: float
    loss_highest: float
    distance_lowest: float
    distance_highest: float
    gradient_norm: float
    finite: bool
    steps: np.ndarray
    losses: np.ndarray
    distances: np.ndarray
    learning_rate: float


@measure("curvature", learning_rate=positive, span=positive_pair, points=at_least(2))
def gradient_smoothness(
    surface: LossSurface,
    learning_rate: float,
    *,
    span: tuple[float, float] = (0.5, 4.0),
    points: int = 8,
) -> GradientSmoothness:
    """Loss variation, gradient predictiveness and effective β-smoothness along the gradient.

    With g the gradient at the weights x, for steps s between 1/2 and 4 learning rates: the range of
    the loss L(x − s g), the range of the distance of the gradients ‖g − ∇L(x − s g)‖, and
    max ‖g − ∇L(x − s g)‖ / ‖s g‖, from [Santurkar et al., 2018](https://arxiv.org/abs/1805.11604).
    They measure on the batch of a training step: give the surface that batch, in the mode
    `"batch_statistics"` or `"training"`.

    Args:
        surface: A `LossSurface`.
        learning_rate: The rate of the training.
        span: The shortest and the longest step, in learning rates; (1/2, 4) for the paper's VGG,
            (1/100, 30) for its deep linear network.
        points: The number of steps, evenly spaced.

    Returns:
        A `GradientSmoothness`. For plain gradient descent: a training with momentum or Adam takes
        other steps.

    Raises:
        ValueError: a rate that is not positive, a span that is not two numbers above zero, the
            smaller one first, or fewer than two points.

    Example:

    >>> import keras, numpy as np
    >>> from keras_regtools import LossSurface
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
    >>> model.set_weights([np.array([[1.0], [1.0]])])
    >>> x = np.array([[1.0, 0.0], [0.0, 10**0.5]])
    >>> surface = LossSurface(model, x, np.zeros((2, 1)), loss="mse")  # H = diag(1, 10)
    >>> round(gradient_smoothness(surface, 0.01).value, 4)  # ‖H g‖ / ‖g‖
    9.9509
    """
    rate, (low, high) = learning_rate, span
    steps = rate * np.linspace(low, high, points)
    params = loss_surface(surface).params
    loss, gradient = surface.value_and_gradient(params)
    heights, lengths = [], []
    for step in steps:
        there, other = surface.value_and_gradient(vectors.axpy(-float(step), gradient, params))
        heights.append(there)
        lengths.append(vectors.norm(vectors.axpy(-1.0, other, gradient)))
    losses, distances = np.array(heights), np.array(lengths)
    known = np.isfinite(losses) & np.isfinite(distances)
    length = vectors.norm(gradient)
    bands = [_ends(values[known]) for values in (losses, distances)]
    moved = 0 < length < math.inf and known.any()
    return GradientSmoothness(
        value=float(np.max(distances[known] / (steps[known] * length))) if moved else math.nan,
        loss_variation=bands[0][1] - bands[0][0],
        gradient_predictiveness=bands[1][1] - bands[1][0],
        loss_lowest=bands[0][0],
        loss_highest=bands[0][1],
        distance_lowest=bands[1][0],
        distance_highest=bands[1][1],
        gradient_norm=length,
        finite=bool(known.all()) and math.isfinite(loss),
        steps=frozen(steps),
        losses=frozen(losses),
        distances=frozen(distances),
        learning_rate=rate,
        loss=loss,
        evaluations=1 + len(steps),
        **origin(surface),
    )


def _ends(values):
    return (float(values.min()), float(values.max())) if len(values) else (math.nan, math.nan)
