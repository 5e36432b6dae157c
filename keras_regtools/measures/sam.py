"""How far the loss rises by one step up the gradient: what sharpness-aware minimization lowers."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

from keras_regtools import vectors
from keras_regtools.measures.declaration import measure
from keras_regtools.measures.per_batch import mean, mean_and_error, parts_of
from keras_regtools.measures.result import SharpnessResult, loss_surface, origin
from keras_regtools.validation import positive, positive_integer

if TYPE_CHECKING:
    from keras_regtools.surface import LossSurface


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class SAMSharpness(SharpnessResult):
    """Result of `sam_sharpness` and `asam_sharpness`.

    Attributes:
        value: The rise of the loss; with `m`, its mean over the batches.
        stderr: The standard error of that mean over the batches; `None` without `m`.
        rho, m: As given.
        adaptive: Whether the step was scaled by the weights (ASAM).
        finite: Whether every loss was finite.
        loss, evaluations, mode, penalties, samples: As in every measure of flatness.
    """

    stderr: float | None
    rho: float
    m: int | None
    adaptive: bool
    finite: bool


@measure("loss", "sam", rho=positive, m=positive_integer)
def sam_sharpness(surface: LossSurface, *, rho: float = 0.05, m: int | None = None) -> SAMSharpness:
    """The rise of the loss by a step of length ρ up the gradient: L(w + ρ g/‖g‖) − L(w).

    From [Foret et al., 2020](https://arxiv.org/abs/2010.01412), whose ρ is 0.05. With `m` it is
    their m-sharpness: each batch of m samples takes a step of its own, and the mean counts.

    Args:
        surface: A `LossSurface`.
        rho: Length of the step.
        m: Samples per batch, for surfaces of arrays; `None` for one step of all data. In the mode
            `"batch_statistics"` the batches then also give the statistics.

    Returns:
        A `SAMSharpness`. Where the gradient is zero, so is the rise.

    Raises:
        ValueError: `rho` or `m` that is not positive, or `m` for a dataset, which has batches of
            its own.

    Example:

    >>> import keras, numpy as np
    >>> from keras_regtools import LossSurface
    >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    >>> model.set_weights([np.array([[2.0]])])
    >>> surface = LossSurface(model, np.array([[1.0]]), np.array([0.0]), loss="mse")
    >>> round(sam_sharpness(surface).value, 4)  # 2.05² − 2²
    0.2025
    """
    return rise_by_a_step(surface, rho, m, None)


def rise_by_a_step(surface, rho, m, scale):
    """The rise by a step of length `rho` up the gradient, in coordinates that `scale` stretches.

    Args:
        surface, rho, m: As in `sam_sharpness`.
        scale: A function that gives the stretch of a weight tensor, or `None` for none.

    Returns:
        A `SAMSharpness`.
    """
    params = loss_surface(surface).params
    rises, losses, counts = [], [], []
    for part, count in parts_of(surface, m):
        loss, gradient = part.value_and_gradient(params)
        step = _step(params, gradient, rho, scale)
        rises.append(part.value(vectors.axpy(1.0, step, params)) - loss)
        losses.append(loss)
        counts.append(count)
    value, stderr = mean_and_error(rises, counts)
    return SAMSharpness(
        value=value,
        stderr=None if m is None else stderr,
        loss=mean(losses, counts),
        rho=rho,
        m=m,
        adaptive=scale is not None,
        finite=math.isfinite(value),
        evaluations=2,
        **origin(surface),
    )


def _step(params, gradient, rho, scale):
    if scale is None:
        length = vectors.norm(gradient)
        return vectors.scaled(rho / length if length > 0 else 0.0, gradient)
    scales = [scale(w) for w in params]
    slope = [t * g for t, g in zip(scales, gradient, strict=True)]
    length = vectors.norm(slope)
    step = vectors.scaled(rho / length if length > 0 else 0.0, slope)
    return [t * s for t, s in zip(scales, step, strict=True)]
