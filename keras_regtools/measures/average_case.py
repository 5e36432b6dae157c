"""The rise of the loss on average over moved weights, plain or scaled by them."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np
from keras import ops

from keras_regtools import vectors
from keras_regtools.measures.declaration import measure
from keras_regtools.measures.result import SharpnessResult, origin
from keras_regtools.optimize import Scaled
from keras_regtools.validation import among, at_least, flag, positive, positive_integer

if TYPE_CHECKING:
    from keras_regtools.surface import LossSurface

LAWS = {"normal": vectors.random_normal, "uniform": vectors.random_uniform}


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class AverageSharpness(SharpnessResult):
    """Result of `average_sharpness`.

    Attributes:
        value: The mean rise of the loss.
        stderr: Its standard error over the draws; NaN for a single one.
        rho, adaptive, law, draws, normalize_logits, seed: As given.
        finite: Whether every loss was finite; if not, the mean is over those that were.
        loss, evaluations, mode, penalties, samples: As in every measure of flatness.
    """

    stderr: float
    rho: float
    adaptive: bool
    law: str
    draws: int
    normalize_logits: bool
    finite: bool
    seed: int


@measure(
    "loss",
    {"average": {}, "adaptive_average": {"adaptive": True}},
    rho=positive,
    law=among(LAWS),
    draws=positive_integer,
    adaptive=flag,
    normalize_logits=flag,
    seed=at_least(0),
)
def average_sharpness(
    surface: LossSurface,
    *,
    rho: float = 0.05,
    adaptive: bool = False,
    law: str = "normal",
    draws: int = 20,
    normalize_logits: bool = False,
    seed: int = 0,
) -> AverageSharpness:
    """The mean rise of the loss when every weight moves at random: E L(w + δ) − L(w).

    δ ~ N(0, ρ² c²), with c = 1 or, adaptive, c = |w|: average-case sharpness as in
    [Andriushchenko et al., 2023](https://arxiv.org/abs/2302.07011). Each draw is taken with both
    signs, so that the slope of the loss cancels; at a minimum the value is ½ ρ² tr H for small ρ.

    Args:
        surface: A `LossSurface`.
        rho: Standard deviation of the move, absolute or relative to each weight.
        adaptive: Whether the move is relative, c = |w|.
        law: `"normal"`, or `"uniform"` in [−ρ c, ρ c].
        draws: Random directions; two evaluations each.
        normalize_logits: Whether to measure `surface.with_normalized_logits()`.
        seed: Seed of the draws.

    Returns:
        An `AverageSharpness`.

    Raises:
        ValueError: `rho` or `draws` that is not positive, an unknown law, or normalized logits of a
            model that has none.

    Example:

    >>> import keras, numpy as np
    >>> from keras_regtools import LossSurface
    >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    >>> surface = LossSurface(model, np.array([[1.0]]), np.array([0.0]), loss="mse")  # H = 2
    >>> result = average_sharpness(surface, rho=0.1, draws=1000)
    >>> abs(result.value - 0.01) < 3 * result.stderr  # ½ 0.1² · 2
    True
    """
    draw = LAWS[law]
    if normalize_logits:
        surface = surface.with_normalized_logits()
    params, rng = surface.params, np.random.default_rng(seed)
    space = Scaled(params, ops.abs if adaptive else None)
    loss = surface.value(params)
    rises = []
    for _ in range(draws):
        z = draw(params, rng)
        ends = [surface.value(space.point(vectors.scaled(s * rho, z))) for s in (1, -1)]
        rises.append(sum(ends) / 2 - loss)
    kept = [rise for rise in rises if math.isfinite(rise)]
    many = len(kept) > 1
    return AverageSharpness(
        value=float(np.mean(kept)) if kept else math.nan,
        stderr=float(np.std(kept, ddof=1) / math.sqrt(len(kept))) if many else math.nan,
        loss=loss,
        rho=rho,
        adaptive=adaptive,
        law=law,
        draws=draws,
        normalize_logits=normalize_logits,
        finite=len(kept) == draws,
        evaluations=1 + 2 * draws,
        seed=seed,
        **origin(surface),
    )
