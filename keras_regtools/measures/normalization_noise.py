"""The noise that random batches bring into batch normalization: its own regularization."""

import dataclasses
import math

import numpy as np
from keras import ops

from keras_regtools.measures.result import Result, frozen, loss_surface, origin
from keras_regtools.surgery import MovingStatistics
from keras_regtools.validation import integer_from


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class NormalizationNoise(Result):
    """Result of `normalization_noise`.

    Attributes:
        value: The root mean square of the spreads over the layers.
        stderr: Its standard error.
        dropout_rate: The mean of the layers' dropout rates.
        layers: Tuple of the names of the batch normalizations.
        spreads: Array, by layer the standard deviation of a sample's normalized activation (before
            γ and β) over random batches, root mean square over channels and samples.
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

    def scalars(self):
        """`value`, then `<layer>/spread` and `<layer>/dropout_rate`, and the other numbers."""
        numbers = super().scalars()
        for i, name in enumerate(self.layers):
            numbers[f"{name}/spread"] = float(self.spreads[i])
            numbers[f"{name}/dropout_rate"] = float(self.dropout_rates[i])
        return numbers


def normalization_noise(surface, batch_size=None, *, draws=30, seed=0):
    """How much the company of random batches moves a fixed sample's normalized activations.

    A sample's (x − μ_B) / √(σ²_B + ε) depends on the batch B it stands in. Batches of n samples are
    drawn without replacement, as in an epoch; μ_B and σ²_B of each layer are those of a pass in
    which every batch normalization uses its batch. The spread is √E[Var_B], over the channels and
    over all samples x; for n independent entries it is close to √((1 + (κ + 2) / 4) / n), κ the
    excess kurtosis: it falls as 1/√n. The sample's own pull on its batch is left out, as is what
    the noise of earlier layers does to x: below an n of about 16 the spread is too large (0.57 in
    place of 0.41 at n = 8). Dropout with the rate p multiplies an output y by noise of the variance
    p / (1 − p); as much variance as V comes from p = V / (V + E[y²]), y = γ x̂ + β. For the idea see
    [Luo et al., 2019](https://arxiv.org/abs/1809.00846).

    Args:
        surface: A `LossSurface` of arrays, of a model with batch normalization.
        batch_size: n, 2 or above and below the number of samples; the surface's by default.
        draws: Random batches, 2 or more.
        seed: Their seed.

    Returns:
        A `NormalizationNoise`. Targets and the surface's mode play no part.

    Raises:
        ValueError: a model without batch normalization, data that are a dataset, fewer than two
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
    model = loss_surface(surface).model
    draws = integer_from("draws", draws, 2)
    data = surface.data
    size = integer_from("batch_size", data.batch_size if batch_size is None else batch_size, 2)
    statistics = MovingStatistics(model)
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
    everywhere = _by_layer(statistics, whole)
    drawn = [_by_layer(statistics, whole.subsample(size, seed + i)) for i in range(draws)]
    names, squares, rates = [], [], []
    for place, layer in enumerate(statistics.layers):
        if place not in everywhere:  # a layer that was not called
            continue
        mean, variance = everywhere[place]
        slope = 1 / np.sqrt(np.array([d[place][1] for d in drawn]) + layer.epsilon)
        offset = -slope * np.array([d[place][0] for d in drawn])
        slope, offset = slope - slope.mean(0), offset - offset.mean(0)
        # Of x · slope + offset, the mean of its square over all samples x: by draw and channel.
        moved = slope**2 * (variance + mean**2) + 2 * slope * offset * mean + offset**2
        gamma, beta = (
            default if v is None else np.array(ops.convert_to_numpy(v), "float64")
            for v, default in ((layer.gamma, 1.0), (layer.beta, 0.0))
        )
        noise = np.mean(gamma**2 * moved.sum(0) / (draws - 1))
        size_of_output = np.mean(gamma**2 * variance / (variance + layer.epsilon) + beta**2)
        names.append(layer.name)
        squares.append(moved.mean(1) * draws / (draws - 1))
        rates.append(noise / (noise + size_of_output) if noise > 0 else 0.0)
    spreads = np.sqrt(np.mean(squares, axis=1))
    by_draw = np.mean(squares, axis=0)
    value = math.sqrt(by_draw.mean())
    error = by_draw.std(ddof=1) / math.sqrt(draws)
    return NormalizationNoise(
        value=value,
        stderr=float(error / (2 * value)) if value > 0 else 0.0,
        dropout_rate=float(np.mean(rates)),
        layers=tuple(names),
        spreads=frozen(spreads),
        dropout_rates=frozen(rates),
        batch_size=size,
        draws=draws,
        seed=seed,
        **origin(surface),
    )


def _by_layer(statistics, batches):
    """The mean and the variance of the inputs of each layer, by its place."""
    places = {}
    for place, layer in enumerate(statistics.layers):
        places[id(layer.moving_mean)] = (place, 0)
        places[id(layer.moving_variance)] = (place, 1)
    found = {}
    for variable, value in statistics(batches):
        place, row = places[id(variable)]
        found.setdefault(place, [None, None])[row] = value
    return found
