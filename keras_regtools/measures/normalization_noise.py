"""The noise that random batches bring into batch normalization: its own regularization."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import TYPE_CHECKING

import numpy as np
from keras import ops

from keras_regtools.forward import BatchNormStatistics, names_of
from keras_regtools.measures.declaration import measure
from keras_regtools.measures.result import Result, frozen, origin
from keras_regtools.validation import at_least, integer_from

if TYPE_CHECKING:
    from keras_regtools.surface import LossSurface


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class NormalizationNoise(Result):
    """Result of `normalization_noise`.

    Attributes:
        value: The root mean square of the spreads over the layers.
        stderr: Its standard error.
        dropout_rate: The mean of the layers' dropout rates.
        layers: Tuple of the names of the batch normalizations.
        spreads: Array, by layer the standard deviation of a sample's normalized activation (before
            γ and β) over random batches that it is in, root mean square over channels and samples.
        dropout_rates: Array, by layer the rate of a dropout behind it that gives its output as
            much variance.
        batch_size: n, the samples in a batch.
        draws: Random batches.
        seed: Seed of the batches.
        mode, penalties, samples: As in every measure; `samples` are those that were drawn from.
    """

    value: float
    stderr: float
    dropout_rate: float
    layers: tuple
    spreads: np.ndarray
    dropout_rates: np.ndarray
    batch_size: int
    draws: int
    seed: int
    mode: str
    penalties: bool
    samples: int

    def scalars(self) -> dict[str, float]:
        """`value`, then `<layer>/spread` and `<layer>/dropout_rate`, and the other numbers."""
        numbers = super().scalars()
        for i, name in enumerate(self.layers):
            numbers[f"{name}/spread"] = float(self.spreads[i])
            numbers[f"{name}/dropout_rate"] = float(self.dropout_rates[i])
        return numbers


@measure(
    "standard deviation of normalized activations",
    batch_size=at_least(2),
    draws=at_least(3),
    seed=at_least(0),
)
def normalization_noise(
    surface: LossSurface, batch_size: int | None = None, *, draws: int = 30, seed: int = 0
) -> NormalizationNoise:
    """How much the company of random batches moves a fixed sample's normalized activations.

    A sample's x̂ = (x − μ_B) / √(σ²_B + ε) depends on the batch B it stands in. Batches of n samples
    are drawn without replacement, as in an epoch; μ_B and σ²_B of each layer are those of a pass in
    which every batch normalization uses its batch. The spread is the root mean square, over all
    samples and their batches, of what is left of x̂ beside c (x − μ), its best forecast without the
    batch: √(Var μ_B + Var σ_B) / σ where ε is small. A sample's pull on its own batch is in c.
    For n independent entries it is close to √((1 + (κ + 2) / 4) / n), κ the excess kurtosis: it
    falls as 1/√n. What the noise of earlier layers does to x is left out. Forecasts are no straight
    lines for small n: there the spread is too large, by 5 % at n = 8. Dropout with the rate p
    multiplies an output y by noise of the variance p / (1 − p); as much variance as V comes from
    p = V / (V + E[y²]), y = γ x̂ + β. For the idea see [Luo et al., 2019](
    https://arxiv.org/abs/1809.00846).

    Args:
        surface: A `LossSurface` of arrays, of a model with batch normalization.
        batch_size: n, 2 or above and below the number of samples; the surface's by default.
        draws: Random batches, 3 or more.
        seed: Their seed.

    Returns:
        A `NormalizationNoise`. Targets and the surface's mode play no part.

    Raises:
        ValueError: a model without batch normalization, data that are a dataset, fewer than three
            draws, or a batch size that is not between 2 and the number of samples.

    Example:

    >>> import keras, numpy as np
    >>> from keras_regtools import LossSurface
    >>> model = keras.Sequential([keras.Input((1,)), keras.layers.BatchNormalization()])
    >>> x = np.random.default_rng(0).standard_normal((4096, 1))
    >>> surface = LossSurface(model, x, x, loss="mse")
    >>> noise = normalization_noise(surface, 16, draws=400)
    >>> abs(noise.value - (1.5 / 16) ** 0.5) < 0.04  # κ = 0
    True
    """
    model = surface.model
    data = surface.data
    size = integer_from("batch_size", data.batch_size if batch_size is None else batch_size, 2)
    statistics = BatchNormStatistics(model)
    if not statistics.layers:
        raise ValueError(
            "Expected a model with batch normalization. "
            f"Received: the model {model.name!r}, which has none"
        )
    whole = data.rebatched(size)
    if not size < data.samples:
        raise ValueError(
            f"Expected `batch_size` to be below {data.samples}, the number of samples. "
            f"Received: batch_size={size}"
        )
    everywhere = statistics.by_layer(whole, surface)
    drawn = [statistics.by_layer(whole.subsample(size, seed + i), surface) for i in range(draws)]
    found, variances, without, rates = [], [], [], []
    for place, layer in enumerate(statistics.layers):
        if place not in everywhere:  # a layer that was not called
            continue
        _, variance = everywhere[place]
        by_draw = [np.array([d[place][i] for d in drawn], "float64") for i in range(2)]
        noise = functools.partial(_variance, variance, layer.epsilon)
        variances.append(noise(*by_draw))
        without.append([noise(*(np.delete(v, i, 0) for v in by_draw)) for i in range(draws)])
        gamma, beta = (
            default if v is None else np.array(ops.convert_to_numpy(surface.read(v)), "float64")
            for v, default in ((layer.gamma, 1.0), (layer.beta, 0.0))
        )
        of_noise = np.mean(gamma**2 * variances[-1])
        of_output = np.mean(gamma**2 * variance / (variance + layer.epsilon) + beta**2)
        found.append(layer)
        rates.append(0.0 if of_noise == 0 else of_noise / (of_noise + of_output))
    spreads = np.sqrt([v.mean() for v in variances])
    value = _root_mean_square(spreads)
    # The jackknife: by layer and channel, the variances without each draw.
    others = [_root_mean_square(np.sqrt([w[i].mean() for w in without])) for i in range(draws)]
    error = math.sqrt((draws - 1) * np.var(others))
    return NormalizationNoise(
        value=value,
        stderr=error,
        dropout_rate=float(np.mean(rates)),
        layers=tuple(names_of(found)),
        spreads=frozen(spreads),
        dropout_rates=frozen(rates),
        batch_size=size,
        draws=draws,
        seed=seed,
        **origin(surface),
    )


def _variance(variance, epsilon, means, variances):
    """E[x̂²] − c² E[(x − μ)²] of each channel, in terms that do not cancel.

    Args:
        variance: Of all entries, which is E[σ²_B] + Var μ_B.
        epsilon: Of the layer.
        means, variances: Arrays with a row for each batch.
    """
    ratio = np.sqrt(variances / (variances + epsilon))  # of x̂ in its batch
    of_widths = np.mean(ratio**2, 0) * np.mean(variances, 0)
    of_widths = of_widths - np.mean(ratio * np.sqrt(variances), 0) ** 2  # Cauchy and Schwarz: ≥ 0
    found = np.mean(ratio**2, 0) * np.var(means, 0) + np.maximum(of_widths, 0)
    found = found * len(means) / (len(means) - 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(variance == 0, 0.0, found / variance)


def _root_mean_square(values):
    return math.sqrt(np.mean(np.square(values)))
