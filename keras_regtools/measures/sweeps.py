"""Measures layer by layer, and checkpoint by checkpoint: rows for a table."""

from __future__ import annotations

import dataclasses
import os
import random
from typing import TYPE_CHECKING, Any

import keras

from keras_regtools import vectors
from keras_regtools.measures.declaration import surface_of
from keras_regtools.measures.layers import layers_with_weights
from keras_regtools.measures.result import Result, flat
from keras_regtools.validation import checked, named_callables, path, verbosity

if TYPE_CHECKING:
    import pandas as pd

    from keras_regtools.surface import LossSurface


@dataclasses.dataclass(frozen=True, eq=False)
class Table(Result):
    """Results of measures, a row for each layer or checkpoint.

    Attributes:
        rows: Tuple of dicts; the first entry of each is its name, the others are numbers.
    """

    rows: tuple

    def to_frame(self) -> pd.DataFrame:
        """The rows as a `pandas.DataFrame`, indexed by their names."""
        import pandas as pd

        return pd.DataFrame(list(self.rows)).set_index(next(iter(self.rows[0])))

    def __repr__(self):
        return self._shown().to_string(float_format="{:.6g}".format) if self.rows else "Table(())"

    def _repr_html_(self):
        return self._shown().to_html(float_format="{:.6g}".format) if self.rows else "Table(())"

    def _shown(self):
        """The frame without the numbers of measures that are the same in all rows: settings."""
        frame = self.to_frame()
        same = [c for c in frame if "/" in c and len(self.rows) > 1 and frame[c].nunique() == 1]
        return frame.drop(columns=same)

    def scalars(self) -> dict[str, float]:
        """The numbers as one flat dict, `row/number`."""
        return {
            f"{name}/{key}": float(value)
            for (_, name), *numbers in (row.items() for row in self.rows)
            for key, value in numbers
        }


@checked(surface=surface_of, verbose=verbosity)
def by_layer(surface: LossSurface, measures: Any, layers: Any = None, *, verbose: int = 0) -> Table:
    """Measure each layer alone: the surface over its weights, the others held fixed.

    The curvature of a layer is that of its block on the diagonal of the Hessian.

    Args:
        surface: A `LossSurface`.
        measures: Dict from names to measures, callables `(surface) -> result`; or one measure.
        layers: List of layers or of their names; by default each layer with trainable weights,
            those of inner models included.
        verbose: 1 draws a progress bar.

    Returns:
        A `Table`: in each row `layer`, `parameters` (how many weights), and for each measure its
        value under its name and its other numbers as `name/number`.

    Raises:
        TypeError: a measure that cannot be called.
        ValueError: no measures, or a layer that the model does not have.

    Example:

    >>> import keras, numpy as np
    >>> from keras_regtools import LossSurface, measures
    >>> keras.utils.set_random_seed(0)
    >>> layers = [keras.layers.Dense(2, "tanh", name="a"), keras.layers.Dense(1, name="b")]
    >>> model = keras.Sequential([keras.Input((3,)), *layers])
    >>> surface = LossSurface(model, np.ones((4, 3)), np.ones((4, 1)), loss="mse")
    >>> table = by_layer(surface, {"top": measures.hessian_eigenvalues})
    >>> [(row["layer"], row["parameters"], row["top/converged"]) for row in table.rows]
    [('a', 8, 1.0), ('b', 3, 1.0)]
    """
    measures = named_callables("measures", measures)
    rows = []
    if layers is not None and not isinstance(layers, (list, tuple)):
        raise ValueError(
            f"Argument `layers` must be a list of layers or names. Received: layers={layers!r}"
        )
    for layer in _shown(layers or layers_with_weights(surface.model), "layer", verbose):
        alone = surface.restricted(layer)
        row = {"layer": getattr(layer, "name", layer), "parameters": vectors.size(alone.params)}
        rows.append(row | _measured(measures, alone))
    return Table(tuple(rows))


@checked(surface=surface_of, verbose=verbosity)
def by_checkpoint(
    surface: LossSurface, measures: Any, checkpoints: Any, *, verbose: int = 0
) -> Table:
    """Measure a series of weights: saved checkpoints, the epochs of a run. Nothing is traced again.

    Args:
        surface: A `LossSurface` of a model with the same layers; it is not written to.
        measures: Dict from names to measures, callables `(surface) -> result`; or one measure.
        checkpoints: List of files (`.weights.h5` or `.keras`) or dict from names to files or to
            lists of arrays as `model.get_weights()` gives them.
        verbose: 1 draws a progress bar.

    Returns:
        A `Table`: in each row `checkpoint`, and for each measure its value under its name and its
        other numbers as `name/number`.

    Raises:
        TypeError: a measure that cannot be called.
        ValueError: no measures, no checkpoints, weights of other shapes, or a file of weights
            beside a subclassed model, which cannot be copied to load it into.

    Example:

    >>> import keras, numpy as np
    >>> from keras_regtools import LossSurface, measures
    >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    >>> surface = LossSurface(model, np.ones((1, 1)), np.zeros((1, 1)), loss="mse")
    >>> series = {"one": [np.ones((1, 1))], "two": [2 * np.ones((1, 1))]}
    >>> table = by_checkpoint(surface, {"loss": lambda surface: surface.value()}, series)
    >>> table.rows
    ({'checkpoint': 'one', 'loss': 1.0}, {'checkpoint': 'two', 'loss': 4.0})
    """
    measures = named_callables("measures", measures)
    if not isinstance(checkpoints, (dict, list, tuple)):
        raise ValueError(
            "Argument `checkpoints` must be a list of files, or a dict from names to files or "
            f"weights. Received: checkpoints={checkpoints!r}"
        )
    if not isinstance(checkpoints, dict):
        for one in checkpoints:
            path("checkpoints", one)
        checkpoints = {os.fspath(one): one for one in checkpoints}
    if not checkpoints:
        raise ValueError("Expected at least one checkpoint. Received: none")
    read = _Reader(surface.model)
    rows = []
    for name, weights in _shown(checkpoints.items(), "checkpoint", verbose):
        rows.append({"checkpoint": name} | _measured(measures, surface.at(read(weights))))
    return Table(tuple(rows))


def _shown(items, unit, verbose):
    """The items one by one, with a progress bar."""
    items = list(items)
    bar = keras.utils.Progbar(len(items), verbose=verbose, unit_name=unit)
    for number, item in enumerate(items, 1):
        yield item
        bar.update(number)


def _measured(measures, surface):
    numbers = {}
    for name, measure in measures.items():
        numbers |= flat(name, measure(surface))
    return numbers


class _Reader:
    """Reads weights from files into a copy of the model, so that the model stays as it is."""

    def __init__(self, model):
        self._model, self._copy = model, None

    def __call__(self, weights):
        if not isinstance(weights, (str, os.PathLike)):
            return weights
        if not os.path.exists(weights):
            raise ValueError(
                f"Expected files of weights. Received: {weights!r}, which is not there"
            )
        state = random.getstate()  # which the initializers of new layers draw from
        try:
            if os.fspath(weights).endswith(".keras"):
                return keras.saving.load_model(weights, compile=False).get_weights()
            self._copy = self._copy or self._clone()
            self._copy.load_weights(weights)
            return self._copy.get_weights()
        finally:
            random.setstate(state)

    def _clone(self):
        try:
            return keras.models.clone_model(self._model)
        except (ValueError, NotImplementedError) as error:
            raise ValueError(
                "Expected a Sequential or functional model beside files of weights. Received: the "
                f"model {self._model.name!r} of {type(self._model)}, which cannot be copied to "
                "load them into. Pass lists of arrays, as `get_weights()` gives them."
            ) from error
