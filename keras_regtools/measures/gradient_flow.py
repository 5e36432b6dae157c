"""Do gradients reach the first layer? Their size by layer, with a verdict."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import keras
import numpy as np

from keras_regtools import vectors
from keras_regtools.forward import names_of
from keras_regtools.measures.dead_units import dead_units
from keras_regtools.measures.declaration import measure
from keras_regtools.measures.layers import weights_by_layer
from keras_regtools.measures.result import SharpnessResult, frozen, origin
from keras_regtools.validation import positive

if TYPE_CHECKING:
    from keras_regtools.surface import LossSurface


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class GradientFlow(SharpnessResult):
    """Result of `gradient_flow`.

    Attributes:
        value: The gradient of the first layer with a kernel over that of the last one, each the
            root of the mean square of its entries: 1 is even.
        verdict: `"vanishing"`, `"exploding"`, `"healthy"`, or `"not finite"`.
        begins_at: The layer, counted from the output, at which it begins; `None` if healthy.
        layers: Tuple of the names of the layers with weights, from the input to the output.
        gradient_norms, weight_norms: Arrays, of all weights of each layer.
        ratios: Array, gradient over weight norm; NaN for weights that are zero.
        update_ratios: Array, learning rate · gradient norm / weight norm: how much of itself each
            layer changes in a step of plain gradient descent.
        dead_shares: Array, the share of channels that the ReLU behind the layer makes zero for all
            samples and positions; NaN where there is none.
        saturated_shares: Array, the share of entries beyond 95 % of the range of a bounded
            activation (sigmoid, tanh ...) behind the layer; NaN where there is none.
        factor: As given.
        learning_rate: The one of the update ratios; NaN if there is none.
        loss, evaluations, mode, penalties, samples: As in every measure of flatness.
    """

    verdict: str
    begins_at: str | None
    layers: tuple
    gradient_norms: np.ndarray
    weight_norms: np.ndarray
    ratios: np.ndarray
    update_ratios: np.ndarray
    dead_shares: np.ndarray
    saturated_shares: np.ndarray
    factor: float
    learning_rate: float

    def scalars(self) -> dict[str, float]:
        """`value`, then numbers of each layer as `<layer>/gradient_norm` and so on."""
        numbers = super().scalars()
        for i, name in enumerate(self.layers):
            for kind in ("gradient_norm", "weight_norm", "ratio", "update_ratio"):
                numbers[f"{name}/{kind}"] = float(getattr(self, f"{kind}s")[i])
            for kind in ("dead_share", "saturated_share"):
                share = float(getattr(self, f"{kind}s")[i])
                if not math.isnan(share):
                    numbers[f"{name}/{kind}"] = share
        return numbers


@measure("ratio", learning_rate=positive, factor=positive)
def gradient_flow(
    surface: LossSurface, learning_rate: float | None = None, *, factor: float = 1e3
) -> GradientFlow:
    """The gradient of each layer, and whether it vanishes or explodes on its way to the input.

    The root mean square of the gradient's entries is compared between the kernels of the network:
    vanishing if that of an earlier layer is more than `factor` times smaller than that of the last
    one, exploding if it is as much larger. The factor is our choice; a factor of 2 in each of ten
    layers makes a thousand ([Glorot and Bengio, 2010](
    https://proceedings.mlr.press/v9/glorot10a.html) show such gradients by layer).

    Args:
        surface: A `LossSurface`.
        learning_rate: For the update ratios; that of the model's optimizer by default, as it is
            now.
        factor: From which ratio on gradients vanish or explode.

    Returns:
        A `GradientFlow`.

    Raises:
        ValueError: a rate or a factor that is not positive, or no layer with a kernel.

    Example:

    >>> import keras, numpy as np
    >>> from keras_regtools import LossSurface
    >>> layers = [keras.layers.Dense(1, use_bias=False, name=name) for name in "abc"]
    >>> model = keras.Sequential([keras.Input((1,)), *layers])
    >>> model.set_weights([np.array([[w]]) for w in (1.0, 1.0, 1e-4)])
    >>> surface = LossSurface(model, np.ones((1, 1)), np.ones((1, 1)), loss="mse")
    >>> flow = gradient_flow(surface)  # as 1 / w of each layer
    >>> flow.verdict, flow.begins_at
    ('vanishing', 'b')
    """
    params = surface.params
    rate = _rate(surface.model, learning_rate)
    layers = weights_by_layer(surface)
    names = names_of([layer for layer, _ in layers])
    kernels = {
        name: i
        for name, (_, places) in zip(names, layers, strict=True)
        for i in reversed(places)
        if len(params[i].shape) > 1
    }
    if not kernels:
        raise ValueError(
            "Expected layers with a kernel, of two axes or more. Received: weights of the shapes "
            f"{[tuple(p.shape) for p in params]}"
        )
    loss, gradient = surface.value_and_gradient(params)
    of_kernels = {n: _mean_square_root(gradient[i]) for n, i in kernels.items()}
    verdict, begins_at = _verdict(of_kernels, factor)
    first, last = list(of_kernels.values())[0], list(of_kernels.values())[-1]
    norms, weights = (
        np.array([vectors.norm([of[i] for i in places]) for _, places in layers])
        for of in (gradient, params)
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(weights > 0, norms / weights, np.nan)
    states = dead_units(surface, params)
    shares = np.array([states.get(id(layer), (math.nan, math.nan)) for layer, _ in layers])
    return GradientFlow(
        value=first / last if last > 0 else math.nan,
        verdict=verdict,
        begins_at=begins_at,
        layers=tuple(names),
        gradient_norms=frozen(norms),
        weight_norms=frozen(weights),
        ratios=frozen(ratios),
        update_ratios=frozen(rate * ratios),
        dead_shares=frozen(shares[:, 0]),
        saturated_shares=frozen(shares[:, 1]),
        factor=factor,
        learning_rate=rate,
        loss=loss,
        evaluations=1,
        **origin(surface),
    )


def _rate(model, given):
    if given is not None:
        return given
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None:
        return math.nan
    return float(keras.ops.convert_to_numpy(optimizer.learning_rate))


def _mean_square_root(t):
    return vectors.norm([t]) / math.sqrt(vectors.size([t]))


def _verdict(of_kernels, factor):
    if not all(math.isfinite(value) for value in of_kernels.values()):
        bad = [name for name, value in of_kernels.items() if not math.isfinite(value)]
        return "not finite", bad[-1]
    last = list(of_kernels.values())[-1]
    for name, value in reversed(of_kernels.items()):
        if value == 0 or value * factor < last:
            return "vanishing", name
        if value > last * factor:
            return "exploding", name
    return "healthy", None
