"""The loss of one batch as a function of the weights, and its derivatives over all batches."""

import functools

import keras
from keras import ops, tree

from keras_regtools import backend
from keras_regtools.forward import all_layers, call_model, overridden, watched
from keras_regtools.forward.masks import masks_of
from keras_regtools.layers.recording import silent_calls
from keras_regtools.regularizers.proximal import whole_gradients
from keras_regtools.surface.classification import normalized, right_and_counted
from keras_regtools.surface.exact import exact_calls
from keras_regtools.surface.loss import along_samples, compiled_loss
from keras_regtools.vectors import axpy


class BatchLoss:
    """The loss of a model on one batch; what the backend differentiates.

    Args:
        model: A built `keras.Model`.
        loss: A `Loss`.
        mode, penalties: Those of the surface.
        chosen: The variables that are its arguments.
    """

    def __init__(self, model, loss, mode, penalties, chosen):
        self.model, self.loss, self.penalties = model, loss, penalties
        self.training = mode == "training"
        self.batch_statistics = mode == "batch_statistics"
        self.normalized = False  # whether the logits are
        self.hidden = []  # operations whose second derivative was taken for zero
        self.has_products = False  # whether that was looked for
        self._is_of_samples = False  # until that was looked at
        self._chosen = [id(v) for v in chosen]

    def state(self, read=ops.convert_to_tensor):
        """What the loss depends on besides the weights chosen: the model's other variables."""
        fixed = [v for v in self.model.trainable_variables if id(v) not in self._chosen]
        return [read(v) for v in fixed], [read(v) for v in self.model.non_trainable_variables]

    @functools.cached_property
    def functions(self):
        """Compiled means over `Batches`, as `backend.mean_over` makes them, by name."""
        gradient = backend.value_and_grad(self)
        hvp = backend.hvp(functools.partial(self, exact=True), self.hidden)
        gnvp = backend.gnvp(self._outputs, self._outputs_loss, self.hidden)
        penalty_hvp = backend.hvp(self._added, self.hidden)

        def value_and_gradient(*args):
            value, slope = gradient(*args)
            return [value], slope

        def gauss_newton(*args):
            products = gnvp(*args)
            if self.penalties and self.model.losses:
                penalty = penalty_hvp(*args)
                products = [axpy(1.0, a, b) for a, b in zip(penalty, products, strict=True)]
            return [], products

        return {
            "value": backend.mean_over(lambda *args: ([self(*args)], [])),
            "accuracy": backend.mean_over(lambda *args: (self._with_accuracy(*args), [])),
            "slopes": backend.mean_over(lambda *args: (self._slope_moments(*args), [])),
            "gradient": backend.mean_over(value_and_gradient),
            "hvp": backend.mean_over(lambda *args: ([], hvp(*args))),
            "gnvp": backend.mean_over(gauss_newton),
        }

    def __call__(self, params, fixed, state, x, y, sample_weight, exact=False):
        outputs, added = self._call_model(params, fixed, state, x, exact)
        loss = self.loss(x, y, outputs, sample_weight, self.training)
        return self._plus(loss, added)

    def call_model(self, params, fixed, state, x, exact=False, calls=()):
        """The outputs of the model, and the list of its added losses; `calls`, pairs of layers and
        functions, stand before any other overrides."""
        chosen, fixed = dict(zip(self._chosen, params, strict=True)), iter(fixed)
        trainable = [
            chosen[id(v)] if id(v) in chosen else next(fixed)
            for v in self.model.trainable_variables
        ]
        others = self.model.non_trainable_variables  # among them what was frozen since
        state = [chosen.get(id(v), value) for v, value in zip(others, state, strict=True)]
        with overridden([*self.overrides(exact), *calls]):
            outputs, _, added = call_model(
                self.model, trainable, state, x, self.training, return_losses=True
            )
        return outputs, added

    def _call_model(self, *args):
        with whole_gradients():
            outputs, added = self.call_model(*args)
        return (normalized(self.loss, outputs) if self.normalized else outputs), added

    def overrides(self, exact=False):
        """`(layer, call)` for each layer that is to be called in another way than its own."""
        layers = all_layers(self.model)
        exact = exact and not backend.MOMENTS_HAVE_SECOND_DERIVATIVES
        calls = silent_calls(layers) + (exact_calls(layers) if exact else [])
        if self.batch_statistics:
            inner = {id(layer): call for layer, call in calls}
            calls += [
                (layer, _in_training(inner.get(id(layer), layer.call)))
                for layer in layers
                if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
            ]
        return list({id(layer): (layer, call) for layer, call in calls}.values())

    def take(self, data):
        """Raise unless the model and its loss can take the first batch of the data."""
        x, y, sample_weight, _ = next(data.tensors())
        params = [ops.convert_to_tensor(v) for v in self.model.trainable_variables]
        state = [ops.convert_to_tensor(v) for v in self.model.non_trainable_variables]
        try:
            activities, calls = _activity_penalties(self.model)
            with backend.frozen_draws(), overridden(calls):
                outputs, _, added = call_model(
                    self.model, params, state, x, False, return_losses=True
                )
                self.loss(x, y, outputs, sample_weight, False)
        except Exception as error:
            received = "; ".join(
                f"{name} of shape {_shapes(part)}" if part is not None else f"no {name}"
                for name, part in (("x", x), ("y", y), ("sample_weight", sample_weight))
                if part is not None or name == "y"
            )
            reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            raise ValueError(
                f"Expected data that the model {self.model.name!r} and its loss can take. "
                f"Received: {received} (the first samples), which gave: {reason}"
            ) from error
        if self.loss.is_none:
            weights = sum(v.regularizer is not None for v in self.model.trainable_variables)
            self._refuse_unless_added(len(added) - weights - len(activities))

    def _refuse_unless_added(self, number):
        """Raise unless a model without a compiled loss is trained by what its layers add."""
        own_step = type(self.model).train_step is not keras.Model.train_step
        if number <= 0 or own_step:
            received = f"the model {self.model.name!r}, compiled without one"
            if own_step:
                received += ", whose own `train_step` may add what is not known here"
            elif self.model.losses:
                received += ": its penalties alone train nothing"
            raise ValueError(
                "Expected a model compiled with a loss. "
                f"Received: {received}. Pass `loss=` to say what to measure."
            )

    def refuse_unless_of_samples(self, data):
        """Raise unless the loss is the mean over samples that each have their own; looks once."""
        if self._is_of_samples:
            return
        x, y, _, _ = next(data.tensors())
        params = [ops.convert_to_tensor(v) for v in self.model.trainable_variables]
        state = [ops.convert_to_tensor(v) for v in self.model.non_trainable_variables]
        with backend.frozen_draws(), overridden(self.overrides()):
            outputs, _ = call_model(self.model, params, state, x, False)
        reason = self.loss.not_of_samples(y, outputs)
        if reason:
            raise ValueError(
                "Expected a loss that is the mean over its samples, each with a value of its own. "
                f"Received: {reason}"
            )
        self._is_of_samples = True

    def _plus(self, loss, added):
        if self.penalties:
            loss = sum((ops.sum(ops.cast(term, loss.dtype)) for term in added), loss)
        return loss

    def _with_accuracy(self, params, fixed, state, x, y, sample_weight):
        outputs, added = self._call_model(params, fixed, state, x)
        loss = self.loss(x, y, outputs, sample_weight, self.training)
        return [self._plus(loss, added), *right_and_counted(self.loss, y, outputs)]

    def _slope_moments(self, params, v, fixed, state, x, y, sample_weight):
        """E d² and E d⁴ of the derivatives d of the samples' losses along v, penalties included.

        With weights s of the samples and a step t along v, n ∂²loss/∂s∂t is all of them at once.
        """
        samples = ops.shape(tree.flatten(x)[0])[0]
        start = ops.zeros((), params[0].dtype)
        ones = ops.ones((samples,), start.dtype)

        def loss(arguments, params, v, fixed, state, x, y, sample_weight):
            step, s = arguments
            there = [p + ops.cast(step, p.dtype) * d for p, d in zip(params, v, strict=True)]
            outputs, added = self._call_model(there, fixed, state, x)
            weights = self.loss.weights_along(s, y, outputs)
            if sample_weight is not None:  # one for each output, perhaps, or for each position
                weights = tree.map_structure(lambda w: _along_samples(s, w), sample_weight)
            value = self.loss(x, y, outputs, weights, self.training)
            return self._plus(value, [term * ops.mean(s) for term in added])

        along = [ops.ones_like(start), ops.zeros_like(ones)]
        ((_, mixed),) = backend.hvp(loss)(
            [start, ones], [along], params, v, fixed, state, x, y, sample_weight
        )
        slopes = mixed * ops.cast(samples, mixed.dtype)
        return [ops.mean(slopes**2), ops.mean(slopes**4)]

    def _added(self, params, fixed, state, x, y, sample_weight):
        _, added = self._call_model(params, fixed, state, x, True)
        return self._plus(ops.zeros((), keras.config.floatx()), added)

    def _outputs(self, params, fixed, state, x, y, sample_weight):
        outputs, _ = self._call_model(params, fixed, state, x, True)
        self._like = tree.map_structure(lambda t: 0, outputs)
        return self.loss.to_logits(outputs), masks_of(outputs)

    def _outputs_loss(self, z, masks, fixed, state, x, y, sample_weight):
        outputs = self.loss.from_logits(z, self._like, masks)
        return self.loss(x, y, outputs, sample_weight, self.training)


def _along_samples(s, weights):
    return along_samples(s, len(weights.shape)) * ops.cast(weights, s.dtype)


def _activity_penalties(model):
    """A list that gets an entry for each output that is penalized, and the calls that fill it."""
    found = []
    layers = [layer for layer in all_layers(model) if layer.activity_regularizer is not None]

    def see(outputs, *args, **kwargs):
        found.extend(tree.flatten(outputs))

    return found, [watched(layer, see) for layer in layers]


def _in_training(call):
    def in_training(*args, **kwargs):
        return call(*args, **{**kwargs, "training": True})

    return in_training


def _shapes(part):
    if hasattr(part, "shape"):
        return tuple(part.shape)
    return tree.map_structure(lambda t: tuple(t.shape), part)


def chosen_variables(model, layers):
    """The trainable variables that `layers` names, in the model's order.

    Args:
        model: A `keras.Model`.
        layers: `None` for all; a name, `Layer` or variable, or a list of them.
    """
    trainable = model.trainable_variables
    if layers is None:
        return trainable
    entries = layers if isinstance(layers, (list, tuple)) else [layers]
    chosen = set()
    for entry in entries or [[]]:
        owners = [entry]
        if isinstance(entry, str):
            owners = [layer for layer in all_layers(model) if layer.name == entry]
            owners += [v for v in trainable if v.path == entry]
        wanted = {id(v) for owner in owners for v in getattr(owner, "trainable_variables", [owner])}
        found = {id(v) for v in trainable} & wanted
        if not found:
            having = [
                layer.name
                for layer in all_layers(model)
                if layer.trainable_variables and not isinstance(layer, keras.Model)
            ]
            raise ValueError(
                "Expected `layers` to name layers or trainable variables of the model, such as "
                f"{having}. Received: {getattr(entry, 'name', entry)!r}"
            )
        chosen |= found
    return [v for v in trainable if id(v) in chosen]


def compile_signature(model):
    """What a surface takes from a model once and for all: its loss, and what is trainable."""
    return compiled_loss(model), [id(v) for v in model.trainable_variables]


def takes_any_batch(model):
    """Whether a model is known to take batches of any size."""
    inputs = getattr(model, "inputs", None)  # which a subclassed model does not tell
    return bool(inputs) and all(t.shape[0] is None for t in inputs)
