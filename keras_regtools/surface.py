"""The loss surface: a model's loss over data, as a function of the weights."""

import functools
import warnings

import keras
import numpy as np
from keras import ops, tree

from keras_regtools import backend, vectors
from keras_regtools.data import Batches
from keras_regtools.layers.exact import exact_calls
from keras_regtools.layers.shadow import all_layers, call_model, shadowed
from keras_regtools.validation import keras_model, one_of

MODES = ("inference", "batch_statistics", "training")


class LossSurface:
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

    Raises:
        TypeError: not a Keras model, or data that cannot be read twice.
        ValueError: a model that is not built, not compiled or has no trainable weights; empty data
            or data of different lengths; an unknown mode.

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
        model,
        x,
        y=None,
        sample_weight=None,
        *,
        loss=None,
        batch_size=256,
        mode="inference",
        penalties=True,
    ):
        self.model = keras_model(model, compiled=loss is None)
        self.mode = one_of("mode", mode, MODES)
        self.penalties = bool(penalties)
        if not model.trainable_variables:
            raise ValueError(
                "Expected a model with trainable weights. "
                f"Received: the model {model.name!r}, which has none"
            )
        if isinstance(x, Batches):
            self.data = x
        else:
            self.data = Batches(x, y, sample_weight, batch_size=batch_size)
        self._loss = _loss_function(model, loss)
        self.gradient_evaluations = 0

    @property
    def batch_size(self):
        """Samples per batch, for array data."""
        return self.data.batch_size

    @property
    def params(self):
        """A copy of the model's trainable variables, in their order, read afresh each time."""
        return [
            ops.convert_to_tensor(np.array(ops.convert_to_numpy(v)), dtype=v.dtype)
            for v in self.model.trainable_variables
        ]

    def value(self, params=None):
        """The loss at `params`, as `model.evaluate` computes it.

        Args:
            params: List of tensors or arrays in the order of `model.trainable_variables`; the
                model's own by default.

        Returns:
            A float: the mean over the samples, with penalties unless they are left out.
        """
        params = self._checked(params)
        losses = []
        for arguments, count in self._batches():
            with backend.frozen_draws():
                losses.append((self._value(params, *arguments), count))
        return _mean(losses)

    def value_and_gradient(self, params=None):
        """The loss at `params` and its gradient.

        Args:
            params: As for `value`.

        Returns:
            `(value, gradient)`: a float, and a list of tensors shaped like `params`.
        """
        params = self._checked(params)
        losses, gradients = [], _Mean()
        for arguments, count in self._batches():
            with backend.frozen_draws():
                loss, gradient = self._value_and_grad(params, *arguments)
            losses.append((loss, count))
            gradients.add(gradient, count)
        self.gradient_evaluations += 1
        return _mean(losses), gradients.result()

    def hvp(self, params, v):
        """The Hessian of the loss at `params` times the vector `v`.

        Args:
            params: As for `value`; `None` stands for the model's own.
            v: List of tensors or arrays shaped like `params`.

        Returns:
            A list of tensors shaped like `params`.
        """
        params, v = self._checked(params), self._checked(v, "v")
        products = _Mean()
        for arguments, count in self._batches():
            with backend.frozen_draws():
                products.add(self._hvp(params, v, *arguments), count)
        return products.result()

    @functools.cached_property
    def _value(self):
        return backend.value(self._batch_loss)

    @functools.cached_property
    def _value_and_grad(self):
        return backend.value_and_grad(self._batch_loss)

    @functools.cached_property
    def _hvp(self):
        return backend.hvp(functools.partial(self._batch_loss, exact=True))

    def _batch_loss(self, params, state, x, y, sample_weight, exact=False):
        """The loss of one batch, a scalar; the function that the backend differentiates."""
        with shadowed(self._shadows(exact and not backend.MOMENTS_HAVE_SECOND_DERIVATIVES)):
            outputs, _, added = call_model(
                self.model, params, state, x, self.mode == "training", return_losses=True
            )
        loss = self._loss(x, y, outputs, sample_weight, self.mode == "training")
        if self.penalties:
            loss = sum((ops.sum(ops.cast(term, loss.dtype)) for term in added), loss)
        return loss

    def _shadows(self, exact):
        layers = all_layers(self.model)
        calls = exact_calls(layers) if exact else []
        if self.mode == "batch_statistics":
            inner = {id(layer): call for layer, call in calls}
            calls += [
                (layer, _in_training(inner.get(id(layer), layer.call)))
                for layer in layers
                if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
            ]
        return list({id(layer): (layer, call) for layer, call in calls}.values())

    def _batches(self):
        state = [ops.convert_to_tensor(v) for v in self.model.non_trainable_variables]
        for *parts, count in self.data:
            x, y, sample_weight = (
                None if part is None else tree.map_structure(ops.convert_to_tensor, part)
                for part in parts
            )
            yield (state, x, y, sample_weight), count

    def _checked(self, params, name="params"):
        if params is None:
            return self.params
        variables = self.model.trainable_variables
        shapes = [tuple(v.shape) for v in variables]
        received = [tuple(np.shape(p)) for p in params]
        if received != shapes:
            raise ValueError(
                f"Expected `{name}` to be a list of tensors shaped like the model's trainable "
                f"variables, {shapes}. Received: shapes {received}"
            )
        return [
            ops.convert_to_tensor(p, dtype=v.dtype) for p, v in zip(params, variables, strict=True)
        ]


def _in_training(call):
    def in_training(inputs, training=None, mask=None):
        return call(inputs, training=True, mask=mask)

    return in_training


class _LossHead(keras.Model):
    """A model without layers: Keras' own way from outputs and targets to the loss, alone."""


def _loss_function(model, loss):
    """The data loss `(x, y, outputs, sample_weight, training) -> scalar`, penalties left out."""
    if loss is None and type(model).compute_loss is not keras.Model.compute_loss:
        raise NotImplementedError(
            "Expected a model that uses Keras' own `compute_loss`. Received: a model of "
            f"{type(model)}, which overrides it. Pass `loss=` to say what to measure."
        )
    head = _LossHead(name="loss_head")
    head.output_names = getattr(model, "output_names", None)
    if loss is not None:
        head.compile(optimizer=None, loss=loss)
    elif model.loss is None:
        raise ValueError(
            "Expected a model compiled with a loss. "
            f"Received: the model {model.name!r}, compiled without one"
        )
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a lambda that is not going to be saved
            weights = model.get_compile_config().get("loss_weights")
        head.compile(optimizer=None, loss=model.loss, loss_weights=weights)

    def data_loss(x, y, outputs, sample_weight, training):
        with keras.StatelessScope():  # several outputs write a metric each
            return head.compute_loss(x, y, outputs, sample_weight, training=training)

    return data_loss


class _Mean:
    """The mean of vectors, weighted by the samples that each stands for."""

    def __init__(self):
        self.total, self.count = None, 0

    def add(self, vector, count):
        if self.total is None:
            self.total = vectors.scaled(float(count), vector)
        else:
            self.total = vectors.axpy(float(count), vector, self.total)
        self.count += count

    def result(self):
        return vectors.scaled(1.0 / self.count, self.total)


def _mean(losses):
    total = sum(count for _, count in losses)
    return sum(float(ops.convert_to_numpy(loss)) * count for loss, count in losses) / total
