"""How much noise the weights bear before the network makes mistakes."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np

from keras_regtools import vectors
from keras_regtools.measures.declaration import measure
from keras_regtools.measures.result import SharpnessResult, loss_surface, origin
from keras_regtools.validation import at_least, positive, positive_integer, share

if TYPE_CHECKING:
    from keras_regtools.surface import LossSurface


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class PACBayesSharpness(SharpnessResult):
    """Result of `pac_bayes_sharpness`.

    Attributes:
        value: 1/σ²; NaN where the loss is not finite, or the accuracy too low to drop as far.
        sigma: σ, the standard deviation of the noise at which the accuracy has dropped.
        stderr: Standard error of σ over the draws, by the jackknife; NaN for a single draw.
        accuracy: The accuracy at the weights.
        converged: Whether the accuracy dropped as far at all, up to the largest σ; if not, the
            value is an upper bound.
        finite: Whether the loss at the weights is.
        drop, draws, bisections, largest, seed: As given.
        loss, evaluations, mode, penalties, samples: As in every measure of flatness.
    """

    sigma: float
    stderr: float
    accuracy: float
    converged: bool
    finite: bool
    drop: float
    draws: int
    bisections: int
    largest: float
    seed: int


@measure(
    "1 / σ²",
    "pac_bayes",
    drop=share,
    draws=positive_integer,
    bisections=positive_integer,
    largest=positive,
    seed=at_least(0),
)
def pac_bayes_sharpness(
    surface: LossSurface,
    *,
    drop: float = 0.1,
    draws: int = 10,
    bisections: int = 15,
    largest: float = 2.0,
    seed: int = 0,
) -> PACBayesSharpness:
    """1/σ² of the noise N(0, σ²) on every weight at which the accuracy drops by 0.1.

    The sharpness of PAC-Bayesian bounds, as [Jiang et al., 2019](https://arxiv.org/abs/1912.02178)
    measure it: σ is sought by bisection, with the same random directions at every σ. It is the
    standard deviation of the noise, not the variance.

    Args:
        surface: A `LossSurface` of a model that classifies.
        drop: By how much the mean accuracy is to drop, between 0 and 1.
        draws: Random directions.
        bisections: Halvings of [0, largest].
        largest: The largest σ.
        seed: Seed of the directions.

    Returns:
        A `PACBayesSharpness`. If the accuracy does not drop as far, `.converged` is false and σ is
        the largest.

    Raises:
        ValueError: an argument that is not positive, a drop of 1 or more, or a model whose accuracy
            cannot be computed.

    Example:

    >>> import keras, numpy as np
    >>> from keras_regtools import LossSurface
    >>> layer = keras.layers.Dense(1, activation="sigmoid", use_bias=False)
    >>> model = keras.Sequential([keras.Input((1,)), layer])
    >>> model.set_weights([np.array([[1.0]])])
    >>> one = np.array([[1.0]])
    >>> surface = LossSurface(model, one, one, loss="binary_crossentropy")
    >>> result = pac_bayes_sharpness(surface, draws=200)
    >>> abs(result.sigma - 0.7803) < 3 * result.stderr  # P(1 + σ z < 0) = 0.1
    True
    """
    params = loss_surface(surface).params
    loss, accuracy = surface.value_and_accuracy(params)
    tried = {0.0: np.full(draws, accuracy)}  # sigma -> accuracy of each draw

    def drops(sigma):
        rng = np.random.default_rng(seed)
        moved = (
            vectors.axpy(sigma, vectors.random_normal(params, rng), params) for _ in tried[0.0]
        )
        tried[sigma] = np.array([surface.value_and_accuracy(point)[1] for point in moved])
        return np.mean(tried[sigma]) <= accuracy - drop

    low, high = 0.0, largest
    converged = drops(largest)
    for _ in range(bisections if converged else 0):
        middle = (low + high) / 2
        low, high = (low, middle) if drops(middle) else (middle, high)
    sigma = (low + high) / 2 if converged else largest
    known = math.isfinite(loss) and accuracy >= drop
    return PACBayesSharpness(
        value=1 / sigma**2 if known else math.nan,
        sigma=sigma,
        stderr=_jackknife(tried, accuracy - drop),
        loss=loss,
        accuracy=accuracy,
        converged=bool(converged) and known,
        finite=math.isfinite(loss),
        drop=drop,
        draws=draws,
        bisections=bisections,
        largest=largest,
        evaluations=1 + draws * (len(tried) - 1),
        seed=seed,
        **origin(surface),
    )


def _jackknife(tried, level):
    """The standard error of where the mean accuracy crosses a level, leaving out one draw each."""
    sigmas = np.array(sorted(tried))
    accuracies = np.stack([tried[sigma] for sigma in sigmas])
    draws = accuracies.shape[1]
    if draws < 2:
        return math.nan
    found = []
    for left_out in range(draws):
        mean = np.delete(accuracies, left_out, axis=1).mean(axis=1)
        below = np.flatnonzero(mean <= level)
        if len(below) == 0:
            found.append(sigmas[-1])
            continue
        j = max(1, below[0])
        share = (mean[j - 1] - level) / max(mean[j - 1] - mean[j], 1e-12)
        found.append(sigmas[j - 1] + np.clip(share, 0, 1) * (sigmas[j] - sigmas[j - 1]))
    return float(math.sqrt((draws - 1) * np.var(found)))
