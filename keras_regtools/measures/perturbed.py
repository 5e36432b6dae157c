"""The rise of the loss by moved weights: on average and at worst, plain or scaled by them."""

import dataclasses
import math

import numpy as np
from keras import ops

from keras_regtools import vectors
from keras_regtools.measures.ascent import NORMS, Climb, projected_gradient
from keras_regtools.measures.parts import mean, mean_and_error, parts_of
from keras_regtools.measures.result import SharpnessResult, loss_surface, origin
from keras_regtools.measures.spaces import Scaled
from keras_regtools.validation import integer_from, one_of, positive, positive_integer

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


def average_sharpness(
    surface,
    *,
    rho=0.05,
    adaptive=False,
    law="normal",
    draws=20,
    normalize_logits=False,
    seed=0,
):
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
    rho, draws = positive("rho", rho), positive_integer("draws", draws)
    draw = LAWS[one_of("law", law, tuple(LAWS))]
    seed, surface = integer_from("seed", seed, 0), loss_surface(surface)
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
        adaptive=bool(adaptive),
        law=law,
        draws=draws,
        normalize_logits=bool(normalize_logits),
        finite=len(kept) == draws,
        evaluations=1 + 2 * draws,
        seed=seed,
        **origin(surface),
    )


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


def worst_sharpness(
    surface,
    *,
    rho=0.05,
    m=None,
    norm="l2",
    adaptive=False,
    steps=20,
    restarts=0,
    normalize_logits=False,
    seed=0,
):
    """The largest rise of the loss in a ball around the weights: max L(w + δ) − L(w).

    Over ‖δ / c‖ ≤ ρ, with c = 1 or, adaptive, c = |w|: worst-case sharpness as in
    [Andriushchenko et al., 2023](https://arxiv.org/abs/2302.07011). They measure on 1,024 samples,
    each batch of 128 alone, and take the mean: that is `m=128`. The maximum is sought by 20 steps
    of APGD ([Croce and Hein, 2020](https://arxiv.org/abs/2003.01690)) from a random point inside.

    Args:
        surface: A `LossSurface`.
        rho: Radius of the ball. For `"linf"` it bounds each weight: take it much smaller.
        m: Samples per batch, each of which climbs alone, for surfaces of arrays; `None` for one
            climb of the loss of all data.
        norm: `"l2"` or `"linf"`.
        adaptive: Whether the ball is scaled by the weights, c = |w|; a rescaling of the weights
            that leaves the function alone does not change it.
        steps: Steps of APGD.
        restarts: More climbs from other random starts; the best counts.
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
    rho, steps = positive("rho", rho), positive_integer("steps", steps)
    norm, restarts = one_of("norm", norm, NORMS), integer_from("restarts", restarts, 0)
    seed, surface = integer_from("seed", seed, 0), loss_surface(surface)
    if normalize_logits:
        surface = surface.with_normalized_logits()
    params, rng = surface.params, np.random.default_rng(seed)
    climbs, counts = [], []
    for part, count in parts_of(surface, m):
        climb = Climb(part, Scaled(params, ops.abs if adaptive else None), part.value(params))
        for _ in range(restarts + 1 if math.isfinite(climb.loss) else 0):
            projected_gradient(climb, _inside(params, rho, norm, rng), rho, norm, steps)
        climbs.append(climb)
        counts.append(count)
    loss = mean([c.loss for c in climbs], counts)
    value, stderr = mean_and_error([c.maximum - c.loss for c in climbs], counts)
    return WorstSharpness(
        value=value if math.isfinite(loss) else math.nan,
        stderr=None if m is None else stderr,
        loss=loss,
        maximum=max(c.maximum for c in climbs),
        rho=rho,
        m=m,
        norm=norm,
        adaptive=bool(adaptive),
        steps=steps,
        restarts=restarts,
        normalize_logits=bool(normalize_logits),
        finite=math.isfinite(loss) and all(c.finite for c in climbs),
        evaluations=max(1 + c.evaluations for c in climbs),
        seed=seed,
        **origin(surface),
    )


def _inside(params, rho, norm, rng):
    if norm == "linf":
        return vectors.scaled(rho, vectors.random_uniform(params, rng))
    direction = vectors.random_normal(params, rng)
    length = rho * rng.uniform() / vectors.norm(direction)
    return vectors.scaled(length, direction)
