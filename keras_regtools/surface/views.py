"""Other surfaces made from one: at other weights, over other data, of a part of the weights."""

import copy
import math

import numpy as np
from keras import ops

from keras_regtools.data import Batches, as_batches
from keras_regtools.forward import BatchNormStatistics
from keras_regtools.surface.batch import BatchLoss, chosen_variables
from keras_regtools.surface.classification import refuse_unless_categorical


class Views:
    """What a `LossSurface` can be turned into; each shares what was traced."""

    def __repr__(self):
        size = sum(math.prod(v.shape) for v in self.variables)
        samples = self.data.samples
        over = "samples of a dataset" if samples is None else f"{samples:,} samples"
        return (
            f"LossSurface(model={self.model.name!r}, {size:,} weights, {over}, "
            f"batch_size={self.batch_size}, mode={self.mode!r}, penalties={self.penalties}"
            f"{', other values of variables held' if self._weights else ''})"
        )

    def at(self, weights):
        """The same surface where the model would be with other weights, a checkpoint's say.

        Args:
            weights: List of arrays as `model.get_weights()` gives them, moving statistics included.

        Returns:
            A `LossSurface` that shares what was traced; the model is not written to.

        Raises:
            ValueError: arrays of other shapes than the model's weights.
        """
        shapes = [tuple(v.shape) for v in self.model.weights]
        try:
            received = [tuple(np.shape(w)) for w in weights]
            told = f"shapes {received}"
        except (TypeError, ValueError):
            received, told = None, f"{weights!r}"
        if received != shapes:
            raise ValueError(
                "Expected `weights` to be a list of arrays shaped like the model's weights, "
                f"{shapes}. Received: {told}"
            )
        return self.holding(zip(self.model.weights, weights, strict=True))

    def holding(self, values):
        """The same surface where some of the model's variables have other values.

        Args:
            values: Pairs `(variable, value)`; moving statistics, say.

        Returns:
            A `LossSurface` that shares what was traced; the model is not written to.
        """
        there, given = copy.copy(self), {}
        try:
            pairs = [(variable, value) for variable, value in values]
        except (TypeError, ValueError):
            pairs = [(None, values)]
        for variable, value in pairs:
            if not self._knows(variable):
                raise ValueError(
                    "Expected `values` to be pairs of a variable of the model "
                    f"{self.model.name!r} and its value. Received: {(variable, value)!r}"
                )
            if tuple(np.shape(value)) != tuple(variable.shape):
                raise ValueError(
                    f"Expected a value of the shape {tuple(variable.shape)} for the variable "
                    f"{variable.path!r}. Received: shape {tuple(np.shape(value))}"
                )
            given[id(variable)] = ops.convert_to_tensor(value, dtype=variable.dtype)
        there._weights = {**self._weights, **given}
        return there

    def _knows(self, variable):
        """Whether it is a variable of the model; looked up once, as a walk takes time."""
        known = self.shared.get("variables", ())
        if id(variable) not in known:
            known = self.shared["variables"] = {id(v) for v in self.model.variables}
        return id(variable) in known

    def recalibrated(self, x=None, *, batch_size=256):
        """The same surface where batch normalization has the statistics that belong to the weights.

        What `recalibrate` would do to the model, without writing to it.

        Args:
            x: Training inputs to estimate the moving statistics on: arrays, a re-iterable dataset,
                or `Batches`; the surface's own data by default.
            batch_size: Samples per batch, for arrays.

        Returns:
            A `LossSurface` that shares what was traced; this one, if there is no batch
            normalization.

        Raises:
            TypeError: data that cannot be read twice.
            NotImplementedError: batch normalization inside the cells of a recurrent layer.

        Example:

        >>> import keras, numpy as np
        >>> from keras_regtools import LossSurface
        >>> norm = keras.layers.BatchNormalization(epsilon=0.0)
        >>> model = keras.Sequential([keras.Input((1,)), norm])
        >>> x = np.array([[1.0], [3.0]])  # mean 2, standard deviation 1
        >>> surface = LossSurface(model, x, np.zeros((2, 1)), loss="mse")
        >>> round(surface.value(), 4), round(surface.recalibrated(x).value(), 4)
        (5.0, 1.0)
        """
        data = self.data if x is None else x
        data = data if isinstance(data, Batches) else Batches(data, batch_size=batch_size)
        if "statistics" not in self.shared:
            self.shared["statistics"] = BatchNormStatistics(self.model)
        found = self.shared["statistics"](data, self)
        return self.holding(found) if found else self

    def over(self, x, y=None, sample_weight=None):
        """The same surface over other data, a test set's or a part of its own.

        Args:
            x, y, sample_weight: As the constructor's, or `Batches`.

        Returns:
            A `LossSurface` that shares what was traced.
        """
        there = copy.copy(self)
        there.data = as_batches(x, y, sample_weight, self.batch_size)
        if there.data is not x:  # batches come from a surface, which took them
            there._take_data()
        there.gradient_evaluations = 0
        return there

    def read(self, variable):
        """The value of a variable of the model, where this surface looks from."""
        return self._weights.get(id(variable), ops.convert_to_tensor(variable))

    def restricted(self, layers):
        """The surface over some layers or variables alone, the others held where the model is.

        A restriction does not nest: `layers` is chosen from the whole model.

        Args:
            layers: As the constructor's.

        Returns:
            A `LossSurface`, which shares what was traced for the same layers before.
        """
        return self._kin(chosen_variables(self.model, layers), self.batch.normalized)

    def with_normalized_logits(self):
        """The surface of the loss of logits that are divided by their spread in each sample.

        z / √(mean over the classes of (z − mean z)²): the scale of the logits no longer counts
        ([Andriushchenko et al., 2023](https://arxiv.org/abs/2302.07011)). Probabilities are taken
        as the logits that they stand for.

        Returns:
            A `LossSurface`, which shares what was traced by an earlier call.

        Raises:
            ValueError: a model that does not have one output and a categorical cross-entropy.
        """
        refuse_unless_categorical(self.model, self.batch.loss)
        return self._kin(self.variables, True)

    def _kin(self, chosen, normalized):
        """The surface of the same data with other arguments, or with normalized logits."""
        key = (normalized, *(id(v) for v in chosen))
        if key not in self._restricted:
            batch = BatchLoss(self.model, self.batch.loss, self.mode, self.penalties, chosen)
            batch.normalized = normalized
            self._restricted[key] = batch
        kin = copy.copy(self)
        kin.variables, kin.batch, kin.gradient_evaluations = chosen, self._restricted[key], 0
        return kin
