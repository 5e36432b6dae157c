"""The largest rise of the loss around the weights, plain or scaled by them."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np
from keras import ops

from keras_regtools import vectors
from keras_regtools.measures.declaration import measure
from keras_regtools.measures.per_batch import mean, mean_and_error, parts_of
from keras_regtools.measures.result import SharpnessResult, origin
from keras_regtools.optimize import NORMS, Objective, Scaled, projected_gradient
from keras_regtools.validation import among, at_least, flag, positive, positive_integer

if TYPE_CHECKING:
    from keras_regtools.surface import LossSurface


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class WorstSharpness(SharpnessResult):
    """Result of `worst_sharpness`.

    Attributes:
        value: The largest rise of the loss that was found: a lower bound. With `m`, the mean of
            those of the batches.
        stderr: The standard error of that mean over the batches; `None` without `m`.
        maximum: The largest finite loss found in the ball, for any batch.
        rho, m, norm, adaptive, steps, restarts, normalize_logits, seed: As given.
        finite: Whether the loss was finite wherever it was evaluated.
        loss, evaluations, mode, penalties, samples: As in every measure of flatness.
    """

    stderr: float | None
    maximum: float
    rho: float
    m: int | None
    norm: str
    adaptive: bool
    steps: int
    restarts: int
    normalize_logits: bool
    finite: bool
    seed: int


@measure(
    "loss",
    {"worst": {}, "adaptive_worst": {"adaptive": True}},
    rho=positive,
    m=positive_integer,
    norm=among(NORMS),
    steps=positive_integer,
    restarts=at_least(0),
    adaptive=flag,
    normalize_logits=flag,
    seed=at_least(0),
)
def worst_sharpness(
    surface: LossSurface,
    *,
    rho: float = 0.05,
    m: int | None = None,
    norm: str = "l2",
    adaptive: bool = False,
    steps: int = 20,
    restarts: int = 0,
    normalize_logits: bool = False,
    seed: int = 0,
) -> WorstSharpness:
    """The largest rise of the loss in a ball around the weights: max L(w + δ) − L(w).

    Over ‖δ / c‖ ≤ ρ, with c = 1 or, adaptive, c = |w|: worst-case sharpness as in
    [Andriushchenko et al., 2023](https://arxiv.org/abs/2302.07011). They measure on 1,024 samples,
    each batch of 128 alone, and take the mean: that is `m=128`. The maximum is sought by 20 steps
    of APGD ([Croce and Hein, 2020](https://arxiv.org/abs/2003.01690)) from a random point inside.

    Args:
        surface: A `LossSurface`.
        rho: Radius of the ball. For `"linf"` it bounds each weight: take it much smaller.
        m: Samples per batch, each of which is searched alone, for surfaces of arrays; `None` for
            one search of the loss of all data.
        norm: `"l2"` or `"linf"`.
        adaptive: Whether the ball is scaled by the weights, c = |w|; a rescaling of the weights
            that leaves the function alone does not change it.
        steps: Steps of APGD.
        restarts: More searches from other random starts; the best counts.
        normalize_logits: Whether to measure `surface.with_normalized_logits()`.
        seed: Seed of the random starts.

    Returns:
        A `WorstSharpness`; NaN where the loss is not finite at the weights. If it is not finite
        elsewhere in the ball, `.finite` is false and the largest finite loss counts.

    Raises:
        ValueError: `rho`, `m` or `steps` that is not positive, `m` for a dataset, `restarts` below
            zero, an unknown norm, or normalized logits of a model that has none.

    Example:

    >>> import keras, numpy as np
    >>> from keras_regtools import LossSurface
    >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    >>> model.set_weights([np.array([[2.0]])])
    >>> surface = LossSurface(model, np.array([[1.0]]), np.array([0.0]), loss="mse")
    >>> round(worst_sharpness(surface, rho=0.1).value, 4)  # 2.1² − 2²
    0.41
    """
    if normalize_logits:
        surface = surface.with_normalized_logits()
    params, rng = surface.params, np.random.default_rng(seed)
    searches, counts = [], []
    for part, count in parts_of(surface, m):
        scaled = Scaled(params, ops.abs if adaptive else None)
        search = Objective(part.value_and_gradient, scaled, part.value(params))
        for _ in range(restarts + 1 if math.isfinite(search.start) else 0):
            projected_gradient(search, _inside(params, rho, norm, rng), rho, norm, steps)
        searches.append(search)
        counts.append(count)
    loss = mean([s.start for s in searches], counts)
    value, stderr = mean_and_error([s.maximum - s.start for s in searches], counts)
    return WorstSharpness(
        value=value if math.isfinite(loss) else math.nan,
        stderr=None if m is None else stderr,
        loss=loss,
        maximum=max(s.maximum for s in searches),
        rho=rho,
        m=m,
        norm=norm,
        adaptive=adaptive,
        steps=steps,
        restarts=restarts,
        normalize_logits=normalize_logits,
        finite=math.isfinite(loss) and all(s.finite for s in searches),
        evaluations=max(1 + s.evaluations for s in searches),
        seed=seed,
        **origin(surface),
    )


def _inside(params, rho, norm, rng):
    if norm == "linf":
        return vectors.scaled(rho, vectors.random_uniform(params, rng))
    direction = vectors.random_normal(params, rng)
    length = rho * rng.uniform() / vectors.norm(direction)
    return vectors.scaled(length, direction)
