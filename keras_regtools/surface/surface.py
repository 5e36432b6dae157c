"""The loss surface: a model's loss over data, as a function of the weights."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from keras import ops

from keras_regtools.data import as_batches
from keras_regtools.surface import checks
from keras_regtools.surface.batch import (
    BatchLoss,
    chosen_variables,
    compile_signature,
    takes_any_batch,
)
from keras_regtools.surface.classification import classifies, refuse_unless_it_classifies
from keras_regtools.surface.loss import Loss
from keras_regtools.surface.views import Views
from keras_regtools.validation import flag, keras_model, one_of

if TYPE_CHECKING:
    import keras

MODES = ("inference", "batch_statistics", "training")


class LossSurface(Views):
    """The loss of a model over data, as a function of the model's trainable variables.

    The model is never written to: its variables, seeds and optimizer are bit-identical after any
    call. Non-trainable state (moving statistics, seeds) is read at each call, so one surface serves
    a whole fit, and nothing is traced again when the weights change.

    Args:
        model: A built `keras.Model`, compiled with a loss unless `loss` is given.
        x, y, sample_weight: The data, as `fit` takes them: arrays or structures of arrays, or a
            re-iterable dataset as `x`.
        loss: A loss in place of the compiled one: anything that `compile(loss=)` takes.
        batch_size: Samples per batch for arrays. It changes the result in the mode
            `"batch_statistics"` and, with batch normalization, in the mode `"training"`.
        mode: `"inference"`: moving statistics, no dropout. `"batch_statistics"`: each trainable
            batch normalization uses the statistics of the surface's own fixed batches, in the
            order of the data, no dropout. `"training"`: all training behaviour, with the random
            draws held fixed.
        penalties: Whether weight penalties and other added losses count.
        layers: The layers or trainable variables that the surface is a function of, the others
            held where the model is: a name, layer or variable, or a list of them; all by default.

    The loss is the one that the model is compiled with when the surface is made.

    Attributes:
        variables: The variables that the surface is a function of, in the order of the model's
            trainable ones.

    Raises:
        TypeError: not a Keras model, or data that cannot be read twice.
        ValueError: a model that is not built, not compiled or has no trainable weights; empty data,
            data of different lengths or that the model cannot take; an unknown mode or layer.

    Example:

    >>> import keras, numpy as np
    >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    >>> surface = LossSurface(model, np.array([[1.0], [2.0]]), np.array([2.0, 4.0]), loss="mse")
    >>> surface.value([np.array([[1.0]])])  # (1 + 4) / 2
    2.5
    >>> value, gradient = surface.value_and_gradient([np.array([[1.0]])])
    >>> float(gradient[0][0, 0])  # mean of 2 (w x - y) x
    -5.0
    """

    def __init__(
        self,
        model: keras.Model,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        *,
        loss: Any = None,
        batch_size: int = 256,
        mode: str = "inference",
        penalties: bool = True,
        layers: Any = None,
    ) -> None:
        self.model = keras_model(model, compiled=loss is None)
        self.mode = one_of("mode", mode, MODES)
        self.penalties = flag("penalties", penalties)
        if not model.trainable_variables:
            raise ValueError(
                "Expected a model with trainable weights. "
                f"Received: the model {model.name!r}, which has none"
            )
        self.variables = chosen_variables(model, layers)
        self.batch = BatchLoss(model, Loss(model, loss), self.mode, self.penalties, self.variables)
        self.data = as_batches(x, y, sample_weight, batch_size)
        self._take_data()
        self.gradient_evaluations = 0
        self._compile_signature = compile_signature(model)
        self._restricted, self._weights = {}, {}
        self._searched = set()  # shared with every surface made of this one
        self.shared = {}  # what measures have traced for all of them

    @property
    def batch_size(self) -> int | None:
        """Samples per batch, for array data."""
        return self.data.batch_size

    @property
    def params(self) -> list[Any]:
        """A copy of those variables, in their order, read afresh each time."""
        return [
            ops.convert_to_tensor(np.array(ops.convert_to_numpy(self.read(v))), dtype=v.dtype)
            for v in self.variables
        ]

    @property
    def classifies(self) -> bool:
        """Whether `value_and_accuracy` can be had."""
        return classifies(self.batch.loss)

    def value(self, params: Any = None) -> float:
        """The loss at `params`, as `model.evaluate` computes it.

        Args:
            params: List of tensors or arrays in the order of `surface.variables`; the model's own
                by default.

        Returns:
            A float: the mean over the samples, with penalties unless they are left out.
        """
        return self._mean("value", self._checked(params))[0][0]

    def value_and_accuracy(self, params: Any = None) -> tuple[float, float]:
        """The loss at `params` and the share of right answers.

        Args:
            params: As for `value`.

        Returns:
            `(value, accuracy)`: two floats; masked positions and those of the loss's `ignore_class`
            are left out of the accuracy, sample weights play no part in it.

        Raises:
            ValueError: a model that does not have one output and a loss that classifies.
        """
        refuse_unless_it_classifies(self.model, self.batch.loss)
        value, right, counted = self._mean("accuracy", self._checked(params))[0]
        return value, right / counted if counted else math.nan

    def value_and_gradient(self, params: Any = None) -> tuple[float, list[Any]]:
        """The loss at `params` and its gradient.

        Args:
            params: As for `value`.

        Returns:
            `(value, gradient)`: a float, and a list of tensors shaped like `params`.
        """
        (value,), gradient = self._mean("gradient", self._checked(params))
        self.gradient_evaluations += 1
        return value, gradient

    def hvp(self, params: Any, v: Any) -> list[Any]:
        """The Hessian of the loss at `params` times a vector, or several.

        Args:
            params: As for `value`; `None` stands for the model's own.
            v: A vector: a list of tensors or arrays shaped like `params`. Or a list of vectors:
                their products share the forward and the backward pass.

        Returns:
            A list of tensors shaped like `params`, or a list of such lists.

        Raises:
            ValueError: a vector of another structure.
            NotImplementedError: a layer without a second derivative.

        Warns:
            UserWarning: once, if the product disagrees with differences of the gradient because a
                layer hides a part of its second derivative (see `check`).
        """
        return self._products("hvp", params, v)

    def gnvp(self, params: Any, v: Any) -> list[Any]:
        """The Gauss-Newton matrix of the loss at `params` times a vector, or several.

        G = Jᵀ (∇² loss) J, with the Jacobian J of the network's outputs and the Hessian of the
        loss in the outputs: positive semidefinite where the loss is convex. Probabilities under a
        cross-entropy are taken as the logits that they stand for, so that G is the Fisher
        information matrix ([Martens, 2020](https://arxiv.org/abs/1412.1193)). Penalties add their
        own Hessian.

        Args:
            params, v: As for `hvp`.

        Returns:
            As `hvp`.

        Raises:
            ValueError: a vector of another structure.
        """
        return self._products("gnvp", params, v)

    def slope_moments(self, v: Any, params: Any = None) -> Any:
        """Moments of the derivative of each sample's loss along a vector: E⟨v, ∇ℓ⟩², E⟨v, ∇ℓ⟩⁴.

        Args:
            v: A vector: a list of tensors or arrays shaped like `params`.
            params: As for `value`.

        Returns:
            Two floats, means over the samples.

        Raises:
            ValueError: a vector of another structure, or a loss that is not the mean over its
                samples.
        """
        self.batch.refuse_unless_of_samples(self.data.first(_TRIED))
        return tuple(self._mean("slopes", self._checked(params), self._checked(v, "v"))[0])

    def check(self) -> None:
        """Look for what would make the surface wrong: chance in data or layers, hidden curvature.

        Data are read twice. Layers that are not Keras' own, and operations outside of layers, are
        called twice on the same few samples, and their second derivative is compared with
        differences of their first.

        Returns:
            A list of sentences, one for each fault, with the layer that it lies in; empty if none
            was found.
        """
        return checks.faults(self)

    def why_not_finite(self, params: Any = None) -> str:
        """A sentence that says in which batch the loss at `params` is not a finite number."""
        return checks.why_not_finite(self, self._checked(params))

    def is_current(self) -> bool:
        """Whether the model's compiled loss and trainable variables are those of the beginning."""
        return self._compile_signature == compile_signature(self.model)

    def _take_data(self):
        self.batch.take(self.data.first(_TRIED if takes_any_batch(self.model) else None))

    def _products(self, kind, params, v):
        params = self._checked(params)
        several = isinstance(v, (list, tuple)) and v and isinstance(v[0], (list, tuple))
        vectors = [self._checked(vector, "v") for vector in (v if several else [v])]
        try:
            _, products = self._mean(kind, params, vectors)
        except Exception as error:
            checks.explain(self, error)
            raise
        if self.batch.hidden:
            checks.explain(self, None)
        self.batch.has_products = True
        self._warn_of_faults()
        return products if several else products[0]

    def product_of_params(self) -> float:
        """The Hessian times the weights, unchecked: traced, it shows what has no derivative."""
        params = self.params
        return self._mean("hvp", params, [params])[1][0]

    def _warn_of_faults(self):
        if not self._searched:
            self._searched.add("faults")
            for fault in self.check():
                warnings.warn(fault, stacklevel=4)

    def _mean(self, kind, params, *args):
        function = self.batch.functions[kind]
        return function((params, *args, *self.batch.state(self.read)), self.data)

    def _checked(self, params, name="params"):
        if params is None and name == "params":
            return self.params
        variables = self.variables
        shapes = [tuple(v.shape) for v in variables]
        try:
            found = [tuple(np.shape(p)) for p in params]
            more = f" and {len(found) - 9} more" if len(found) > 2 * len(shapes) + 9 else ""
            received = f"shapes {found[:9] if more else found}{more}"
        except (TypeError, ValueError):
            found, received = None, f"{type(params)}"
        if found != shapes:
            raise ValueError(
                f"Expected `{name}` to be a list of tensors shaped like the model's trainable "
                f"variables, {shapes}. Received: {received}"
            )
        return [
            ops.convert_to_tensor(p, dtype=v.dtype) for p, v in zip(params, variables, strict=True)
        ]


_TRIED = 2  # samples that show whether a model takes the data
