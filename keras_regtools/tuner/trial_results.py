"""What a trial returns: losses without penalties, the user's metrics, and measures by name."""

import math
import time

import keras
import numpy as np
from keras import ops

from keras_regtools.forward import all_layers
from keras_regtools.measures.declaration import by_short_name
from keras_regtools.measures.result import Result
from keras_regtools.surface import LossSurface

LOSSES = ("val_loss", "loss", "generalization_gap", "generalization_ratio")
COSTS = ("epochs", "seconds", "measuring_seconds")
_MEASURES = {"sharpness" if name == "keskar" else name: m for name, m in by_short_name().items()}
_MEASURES.pop("weight_distance")  # of which a trained model does not know the start
NAMES = (*LOSSES, "parameters", *_MEASURES)


def checked_results(results):
    """Dict from the names of what is measured on a surface to the measures, and all names.

    Args:
        results: Names, or a dict from names of the user's own to functions of a `LossSurface`.
    """
    if isinstance(results, dict):
        wrong = [name for name, one in results.items() if not callable(one)]
        if wrong or not results:
            raise ValueError(
                "Expected `results` to be names, or a dict from names to functions of a "
                f"`LossSurface`. Received: results={results!r}"
            )
        return dict(results), [*LOSSES, *results]
    known = isinstance(results, (list, tuple)) and all(isinstance(n, str) for n in results)
    if not known:
        raise ValueError(f"Expected `results` to be a list of names. Received: {results!r}")
    unknown = [name for name in results if name not in NAMES]
    if unknown:
        raise ValueError(f"Expected `results` out of {list(NAMES)}. Received: {unknown}")
    return {n: _MEASURES[n] for n in results if n in _MEASURES}, ["val_loss", *results]


def normalizes(model):
    """Whether a model has batch normalization."""
    return any(isinstance(x, keras.layers.BatchNormalization) for x in all_layers(model))


class Yardstick:
    """Measures one model again and again, on the same data.

    The loss that trials are compared by is the compiled one without penalties and without
    smoothed labels.

    Args:
        model: A compiled model.
        data: `SearchData`.
        samples: Training samples on which is measured, or `None`.
        loss: A loss in place of the compiled one, or `None`.
        measures: Dict from names to functions of a `LossSurface`.
        names: Of the results.
    """

    def __init__(self, model, data, samples, loss, measures, names):
        self.model, self.data, self._measures, self._names = model, data, measures, names
        part = data.training.subsample(samples)
        normal = normalizes(model)
        # Without batch normalization both modes are the same loss: one surface does.
        mode = "inference" if normal else "batch_statistics"
        self._training = LossSurface(model, part, loss=loss, mode=mode, penalties=False)
        self._validation = self._training.over(data.validation)
        self._curved, self._other = self._training, None
        if normal and measures:
            mode = "batch_statistics"
            self._curved = LossSurface(model, part, loss=loss, mode=mode, penalties=False)

    def validation_loss(self):
        """The validation loss without penalties, of the weights that the model has."""
        return self._validation.value()

    def is_finite(self):
        """Whether the losses of all data and the gradient are: relu may hide a NaN from a loss."""
        loss, gradient = self._training.over(self.data.training).value_and_gradient()
        slope = sum(float(ops.sum(ops.cast(g, "float32"))) for g in gradient)
        return math.isfinite(loss + slope + self._validation.value())

    def loss_and_accuracy(self, data):
        """Those of other `Batches`; NaN for an accuracy that cannot be had."""
        if self._other is None or self._other.data is not data:
            self._other = self._training.over(data)
        if not self._other.classifies:
            return self._other.value(), math.nan
        try:
            return self._other.value_and_accuracy()
        except (TypeError, ValueError):
            return self._other.value(), math.nan

    def results(self):
        """Dict from the names of the results to floats, NaN where one is not finite."""
        begun = time.perf_counter()
        found = {"val_loss": self._validation.value()}
        if len(set(self._names) & set(LOSSES)) > 1:
            loss = found["loss"] = self._training.value()
            found["generalization_gap"] = found["val_loss"] - loss
            found["generalization_ratio"] = found["val_loss"] / loss if loss > 0 else math.nan
        if "parameters" in self._names:
            found["parameters"] = float(sum(np.prod(v.shape) for v in self.model.weights))
        found = {name: found[name] for name in self._names if name in found}
        found |= {name: _number(one(self._curved)) for name, one in self._measures.items()}
        found |= self._metrics()
        found["measuring_seconds"] = time.perf_counter() - begun
        return found

    def _metrics(self):
        """The metrics of the user's on the validation data."""
        data = self.data.validation_for_fit()
        if isinstance(data, tuple):
            parts = dict(zip(("x", "y", "sample_weight"), data, strict=False))
        else:
            parts = {"x": data}
        found = self.model.evaluate(**parts, batch_size=None, verbose=0, return_dict=True)
        return {f"val_{name}": float(v) for name, v in found.items() if name != "loss"}


def _number(result):
    value = result.value if isinstance(result, Result) and hasattr(result, "value") else result
    if isinstance(result, Result) and not hasattr(result, "value"):
        value = next(iter(result.scalars().values()))
    return float(np.asarray(value, dtype=float).ravel()[0])
