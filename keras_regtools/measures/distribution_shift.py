"""Do new data look to the network like those it was trained on, and where does it begin?"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_regtools.data import Batches
from keras_regtools.forward import InputStatistics, View
from keras_regtools.measures.result import Result, frozen
from keras_regtools.validation import keras_model, positive

if TYPE_CHECKING:
    import keras


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class DistributionShift(Result):
    """Result of `distribution_shift`.

    Attributes:
        value: The largest drift.
        verdict: `"stable"` or `"shifted"`.
        begins_at: The first layer that receives shifted data; `None` if none does.
        layers: Tuple of the layers' names, from the input to the output.
        drifts: Array, for each layer the distance of the means in standard deviations.
        spreads: Array, for each layer the standard deviation of the new data over that of the old.
        threshold: As given.
        samples, new_samples: How many samples there were of each.
    """

    value: float
    verdict: str
    begins_at: str | None
    layers: tuple
    drifts: np.ndarray
    spreads: np.ndarray
    threshold: float
    samples: int
    new_samples: int

    def scalars(self) -> dict[str, float]:
        """`value`, then `<layer>/drift` and `<layer>/spread`, and the other numbers."""
        numbers = super().scalars()
        for i, name in enumerate(self.layers):
            numbers[f"{name}/drift"] = float(self.drifts[i])
            numbers[f"{name}/spread"] = float(self.spreads[i])
        return numbers


def distribution_shift(
    model: keras.Model, x_train: Any, x_new: Any, *, threshold: float = 0.5, batch_size: int = 256
) -> DistributionShift:
    """How far new data drift from those of the training, at the input of each layer with weights.

    The drift of a layer is √(Σ_c (μ'_c − μ_c)² / Σ_c σ_c²) over its channels c, with the means μ
    and deviations σ of the training data and the means μ' of the new ones: a distance in standard
    deviations, in which constant channels do not count for more than they are. A layer receives
    shifted data where the drift is above the threshold, or where their spread, √(Σ σ'² / Σ σ²), has
    changed by more than a factor of 2; both limits are our choice. In a network with batch
    normalization, `recalibrate` on the new data takes out what the shift made of means and
    variances. Masked positions do not count.

    Args:
        model: A built `keras.Model`; it is not written to.
        x_train, x_new: The data, as `fit` takes them; targets of datasets are ignored.
        threshold: The drift from which on a layer counts as shifted.
        batch_size: Samples per batch, for arrays; it does not change the result.

    Returns:
        A `DistributionShift`.

    Raises:
        TypeError: not a Keras model, or data that cannot be read twice.
        ValueError: a model that is not built or has no layer with weights, empty data, or a
            threshold that is not positive.

    Reference:
        [Ioffe and Szegedy, 2015](https://arxiv.org/abs/1502.03167), for shifts within a training.

    Example:

    >>> import keras, numpy as np
    >>> layers = [keras.layers.Dense(2, name="first"), keras.layers.Dense(1, name="second")]
    >>> model = keras.Sequential([keras.Input((1,)), *layers])
    >>> old = np.array([[-1.0], [1.0]])  # mean 0, standard deviation 1
    >>> shift = distribution_shift(model, old, old + 3)
    >>> shift.verdict, shift.begins_at, float(shift.drifts[0].round(4))
    ('shifted', 'first', 3.0)
    """
    threshold = positive("threshold", threshold)
    statistics = InputStatistics(keras_model(model))
    if not statistics.layers:
        raise ValueError(
            "Expected a model with layers that hold weights. "
            f"Received: the model {model.name!r}, which has none"
        )
    data = [Batches(x, batch_size=batch_size) for x in (x_train, x_new)]
    old, new = (statistics(batches, View(model)) for batches in data)
    if not old:
        raise ValueError(
            "Expected a model with layers that hold weights and receive numbers. "
            f"Received: the model {model.name!r}, whose layers with weights receive integers"
        )
    drifts, spreads = [], []
    for name, (mean, variance) in old.items():
        other, wide = new[name]
        moved, total = np.sum((other - mean) ** 2), np.sum(variance)
        drifts.append(_ratio(moved, total))
        spreads.append(_ratio(np.sum(wide), total, alike=1.0))
    changed = [
        not (drift <= threshold and 0.5 <= spread <= 2)
        for drift, spread in zip(drifts, spreads, strict=True)
    ]
    layers = tuple(old)
    return DistributionShift(
        value=float(np.max(drifts)),
        verdict="shifted" if any(changed) else "stable",
        begins_at=layers[changed.index(True)] if any(changed) else None,
        layers=layers,
        drifts=frozen(drifts),
        spreads=frozen(spreads),
        threshold=threshold,
        samples=_counted(data[0]),
        new_samples=_counted(data[1]),
    )


def _ratio(a, b, alike=0.0):
    """√(a / b); of two zeros what it is for data that are alike."""
    if math.isnan(a) or math.isnan(b):
        return math.nan
    if b > 0:
        return math.sqrt(a / b)
    return math.inf if a > 0 else alike


def _counted(batches):
    return batches.samples or sum(count for *_, count in batches)
