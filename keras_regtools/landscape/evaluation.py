"""Loss and accuracy at points of the space of weights, on training and test data."""

import math

import numpy as np

from keras_regtools.forward import BatchNormStatistics
from keras_regtools.validation import flag, integer_from, one_of

BATCH_NORMS = ("auto", "recalibrate", "moving", "batch_statistics")


class Evaluation:
    """What is measured at each point.

    Args:
        surface: The `LossSurface` of the training data.
        test: `(x, y)` or `(x, y, sample_weight)`, a dataset, or `None`.
        batch_norm: One of `BATCH_NORMS`.
        accuracy: Whether to compute it; `None` where it can be.

    Attributes:
        batch_norm: How batch normalization is treated: `"none"` if there is none, `"frozen"` if no
            layer of it is trainable.
        names: The quantities, in order.
    """

    def __init__(self, surface, test, batch_norm, accuracy):
        self.surfaces = {"": surface}
        if test is not None:
            parts = test if isinstance(test, (tuple, list)) else (test,)
            if not 1 <= len(parts) <= 3:
                raise ValueError(
                    "Argument `test` must be `(x, y)`, `(x, y, sample_weight)` or a dataset. "
                    f"Received: test={test!r}"
                )
            self.surfaces["test_"] = surface.over(*parts)
        self.statistics = BatchNormStatistics(surface.model, frozen=False)
        self.batch_norm = self._treatment(surface, one_of("batch_norm", batch_norm, BATCH_NORMS))
        self.accuracy = surface.classifies if accuracy is None else flag("accuracy", accuracy)
        if self.accuracy and not surface.classifies:
            surface.value_and_accuracy()  # says what is missing
        kinds = ("loss", "accuracy") if self.accuracy else ("loss",)
        self.names = [prefix + kind for prefix in self.surfaces for kind in kinds]

    def _treatment(self, surface, wanted):
        if not self.statistics.layers:
            return "frozen" if BatchNormStatistics(surface.model).layers else "none"
        own = "batch_statistics" if surface.mode != "inference" else "recalibrate"
        if wanted == "auto":
            return own
        if (wanted == "batch_statistics") != (own == "batch_statistics"):
            raise ValueError(
                "Expected `batch_norm` to fit the surface's mode: 'recalibrate' or 'moving' for "
                "'inference', 'batch_statistics' for the others. "
                f"Received: batch_norm={wanted!r} and a surface of mode {surface.mode!r}"
            )
        return wanted

    def __call__(self, params):
        """The quantities at the weights `params`, a list of tensors: a dict of floats."""
        surface, held = self.surfaces[""], []
        if self.batch_norm == "recalibrate":
            there = surface.holding(zip(surface.variables, params, strict=True))
            held = self.statistics(surface.data, there)
        found = {}
        for prefix, part in self.surfaces.items():
            there = part.holding(held) if held else part
            if self.accuracy:
                value, accuracy = there.value_and_accuracy(params)
                found |= {f"{prefix}loss": value, f"{prefix}accuracy": accuracy}
            else:
                found[f"{prefix}loss"] = there.value(params)
        return found


def positions(name, given, span, points):
    """Where a line or an axis of a grid is looked at, a sorted array.

    Args:
        name: Of the argument, for the error.
        given: The positions, or `None` for `points` of them in `span`.
    """
    if given is None:
        given = np.linspace(*span, integer_from("points", points, 2))
    try:
        array = np.asarray(given, "float64")
    except (TypeError, ValueError):
        array = np.array(math.nan)
    if array.ndim != 1 or len(np.unique(array)) < 2 or not np.all(np.isfinite(array)):
        raise ValueError(
            f"Expected `{name}` to be at least two different finite numbers. "
            f"Received: {name}={given if array.ndim == 0 else array.tolist()!r}"
        )
    return np.unique(array)
