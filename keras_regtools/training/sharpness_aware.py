"""The gradient of sharpness-aware minimization, exchanged for a step's own before the update."""

import inspect
import math
import threading

import keras
from keras import ops, tree

from keras_regtools import backend
from keras_regtools.forward import all_layers
from keras_regtools.keras_internals import iteration, members
from keras_regtools.training.optimizer_hooks import base_optimizers

_ETA = 0.01  # added to |w| in adaptive steps, as in Kwon et al., 2021


def perturbation(weights, gradients, rho, adaptive=False):
    """The step up the gradient that sharpness-aware minimization looks from.

    ε = ρ g / ‖g‖₂ ([Foret et al., 2020](https://arxiv.org/abs/2010.01412)); adaptive, it is
    ρ T² g / ‖T g‖₂ with T = |w| + .01 for kernels and 1 for what has one axis or none
    ([Kwon et al., 2021](https://arxiv.org/abs/2102.11600)). A scale of the gradient cancels.

    Args:
        weights, gradients: Lists of tensors.
        rho: Length of the step, a number or a tensor.
        adaptive: Whether it is scaled by the weights.

    Returns:
        List of tensors; zeros where the gradient is zero.

    Example:

    >>> from keras import ops
    >>> (step,) = perturbation([ops.array([2.0])], [ops.array([-8.0])], 0.1)
    >>> round(float(step[0]), 6)
    -0.1
    """
    scales = [
        ops.abs(w) + _ETA if adaptive and len(w.shape) > 1 else ops.ones((), w.dtype)
        for w in weights
    ]
    slopes = [t * ops.cast(g, t.dtype) for t, g in zip(scales, gradients, strict=True)]
    # Scaled gradients of half precision may have squares beyond single precision.
    parts = [ops.max(ops.abs(ops.cast(s, "float32"))) for s in slopes if 0 not in s.shape]
    largest = ops.max(ops.stack(parts))
    unit = ops.where(largest > 0, largest, 1.0)
    squares = [ops.sum(ops.square(ops.cast(s, "float32") / unit)) for s in slopes]
    length = ops.sqrt(ops.sum(ops.stack(squares)))
    factor = ops.cast(rho, "float32") / ops.where(length > 0, length, 1.0)
    return [
        t * ops.cast(ops.cast(s, "float32") / unit * factor, t.dtype)
        for t, s in zip(scales, slopes, strict=True)
    ]


class SharpnessAwareHook:
    """Hook of a step and of its optimizer: remembers the batch, then exchanges the gradients.

    Args:
        model: A function that gives the model.
        rho: A function that gives the length of the step.
        adaptive: As in `perturbation`.
        every: It is done in every so many updates.
        m: Samples that take a step of their own, or `None` for the whole batch.
    """

    def __init__(self, model, rho, adaptive, every, m):
        self.model, self.rho, self.adaptive = model, rho, adaptive
        self.every, self.m = every, m
        self._due, self._made, self._steps = None, 0, 1
        self._batches = {}  # by thread: each replica is traced in one of its own

    # As the turns of `alternate_steps`.

    def begin(self, optimizer):
        """Count the steps from those that the optimizer has made."""
        base = base_optimizers(optimizer)[0]
        self._made = int(ops.convert_to_numpy(iteration(base)))
        self._steps = base.gradient_accumulation_steps or 1

    def due(self):
        return self._made // self._steps % self.every == 0

    def tell(self, due):
        self._due = due

    def made(self):
        self._made += 1

    def __call__(self, data):
        """At the beginning of a step: what the clean pass will change is kept."""
        if self._due is False:  # a step compiled as a plain one
            self._batches.pop(threading.get_ident(), None)
            return
        model = self.model()
        state = [*model.non_trainable_variables, *model.metrics_variables, *_held_apart(model)]
        pairs = [(v, _copied(v)) for v in state]
        rho = ops.convert_to_tensor(self.rho())
        self._batches[threading.get_ident()] = (data, pairs, rho, backend.draws())

    def exchange(self, optimizer, gradients, variables):
        """The gradients to update with, in place of those of the clean pass."""
        batch = self._batches.get(threading.get_ident())
        if batch is None:
            return gradients
        model = self.model()
        trained = list(model.trainable_variables)
        own = trained if variables is None else list(variables)
        found = {id(v): i for i, v in enumerate(own)}
        places = [i for v in trained if (i := found.get(id(v))) is not None]
        places = [i for i in places if gradients[i] is not None]
        clean = [backend.dense(gradients[i]) for i in places]
        if not clean:
            return gradients
        weights = [v * 1 for v in trained]
        del self._batches[threading.get_ident()]
        used = {id(own[i]) for i in places}
        chosen = [id(v) in used for v in trained]
        scale = optimizer.scale_loss(ops.ones((), "float32"))
        if backend.replica_count(trained[0]) > 1:
            new = self._of_replicas(batch, weights, chosen, clean, scale)
            if self.every > 1 and self._due is None:  # each step has to do it, as in no branch
                due = self._is_due(optimizer)
                new = [ops.where(due, n, c) for n, c in zip(new, clean, strict=True)]
            for i, gradient in zip(places, new, strict=True):
                gradients[i] = gradient
            return gradients

        def exchanged():
            new = self._gradients(batch, weights, chosen, clean, scale)
            new = [ops.cast(n, c.dtype) for n, c in zip(new, clean, strict=True)]
            finite = ops.all(ops.stack([ops.all(ops.isfinite(t)) for t in (*clean, *new)]))
            return [ops.where(finite, n, c) for n, c in zip(new, clean, strict=True)]

        if self.every > 1 and self._due is None:
            new = backend.cond(self._is_due(optimizer), exchanged, lambda: clean)
        else:
            new = exchanged()
        for i, gradient in zip(places, new, strict=True):
            gradients[i] = gradient
        return gradients

    def _is_due(self, optimizer):
        base = base_optimizers(optimizer)[0]
        steps = base.gradient_accumulation_steps or 1
        return ops.equal(ops.mod(iteration(base) // steps, self.every), 0)

    def _of_replicas(self, batch, weights, chosen, clean, scale):
        """The step is that of the whole gradient, and all replicas take the new ones, or none."""
        whole = backend.all_reduce(clean)
        new = self._gradients(batch, weights, chosen, whole, scale)
        new = [ops.cast(n, c.dtype) for n, c in zip(new, clean, strict=True)]
        broken = ops.any(ops.stack([ops.any(~ops.isfinite(t)) for t in (*whole, *new)]))
        (broken,) = backend.all_reduce([ops.cast(broken, "float32")])
        return [ops.where(broken > 0, c, n) for n, c in zip(new, clean, strict=True)]

    def _gradients(self, batch, weights, chosen, clean, scale):
        data, state, rho, draws = batch

        def above(weights, clean):
            shift = iter(
                perturbation(
                    [w for w, c in zip(weights, chosen, strict=True) if c],
                    clean,
                    rho,
                    self.adaptive,
                )
            )
            return [w + next(shift) if c else w for w, c in zip(weights, chosen, strict=True)]

        def slope(weights, data, part=0):
            loss = _Loss(self.model(), _of_part(state, part), data)
            with backend.same_draws(draws, part if isinstance(part, int) else 0):
                _, found = backend.value_and_grad(lambda p: loss(p) * ops.cast(scale, "float32"))(
                    weights
                )
            return [backend.dense(g) for g, c in zip(found, chosen, strict=True) if c]

        if self.m is None:
            return slope(above(weights, clean), data)
        return _mean_over_parts(
            lambda part, i: slope(above(weights, slope(weights, part, i)), part, i),
            data,
            self.m,
            clean,
        )


def _copied(variable):
    return ops.copy(ops.convert_to_tensor(variable))


def _held_apart(model):
    """Variables that layers hold beside those of the model, as the states of recurrent layers."""
    known = {id(v) for v in (*model.variables, *model.metrics_variables)}
    found = {}
    for layer in all_layers(model):
        for value in members(layer):
            if isinstance(value, keras.Variable) and id(value) not in known:
                found[id(value)] = value
    return list(found.values())


def _of_part(state, part):
    """The state with draws of its own for each part of a batch."""
    if isinstance(part, int) and part == 0:
        return state
    apart = ops.cast(part, "int32") * 65536  # more than a step draws
    return [
        (v, t + ops.cast(ops.stack([0 * apart, apart]), t.dtype))
        if v.name == "seed_generator_state"
        else (v, t)
        for v, t in state
    ]


class _Loss:
    """The loss of a batch in a training step, as a function of the trainable weights alone."""

    def __init__(self, model, state, data):
        self.model, self.state = model, state
        self.data = keras.utils.unpack_x_y_sample_weight(data)
        parameters = inspect.signature(type(model).call).parameters
        takes = "training" in parameters or any(
            p.kind == p.VAR_KEYWORD for p in parameters.values()
        )
        self.training = {"training": True} if takes else {}

    def __call__(self, weights):
        x, y, sample_weight = self.data
        pairs = [*zip(self.model.trainable_variables, weights, strict=True), *self.state]
        # As Keras' own step does: on JAX not `__call__`, which counts some penalties otherwise.
        call = self.model.call if backend.CONSTANTS_OUTSIDE else self.model
        with keras.StatelessScope(state_mapping=pairs, collect_losses=True):
            outputs = call(x, **self.training)
            loss = self.model.compute_loss(
                x=x, y=y, y_pred=outputs, sample_weight=sample_weight, training=True
            )
        return ops.cast(loss, "float32")


def _mean_over_parts(gradient, data, m, like):
    """The mean of gradients of parts of m samples, by their sizes; the last may be smaller."""
    first = tree.flatten(data)[0]
    count = ops.shape(first)[0]
    if isinstance(count, int):
        parts = math.ceil(count / m)
        sizes = [min(m, count - i * m) for i in range(parts)]
        total = [ops.zeros_like(g) for g in like]
        for i, size in enumerate(sizes):
            found = gradient(_part(data, i * m, i * m + size), i)
            total = [
                t + ops.cast(g, t.dtype) * (size / count) for t, g in zip(total, found, strict=True)
            ]
        return total

    def add(begin, *total):
        end = ops.minimum(begin + m, count)
        found = gradient(_part(data, begin, end), begin // m)
        share = ops.cast(end - begin, "float32") / ops.cast(count, "float32")
        return end, *(
            t + ops.cast(g, t.dtype) * ops.cast(share, t.dtype)
            for t, g in zip(total, found, strict=True)
        )

    start = (ops.zeros((), "int32"), *(ops.zeros_like(g) for g in like))
    return list(ops.while_loop(lambda begin, *total: begin < count, add, start)[1:])


def _part(data, begin, end):
    return tree.map_structure(lambda t: t[begin:end], data)
