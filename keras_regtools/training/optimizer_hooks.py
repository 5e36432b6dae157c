"""Hooks that run inside the training step, before the optimizer applies its gradients."""

import keras
from keras import ops

from keras_regtools.keras_internals import members, shadow, shadowed, unshadow


def base_optimizers(optimizer):
    """The optimizers that make the updates, behind loss scaling and groups of variables."""
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return base_optimizers(optimizer.inner_optimizer)
    if hasattr(optimizer, "optimizers"):
        return [base for part in optimizer.optimizers for base in base_optimizers(part)]
    return [optimizer]


def held_optimizers(model):
    """The optimizers of a model: the compiled one and those that it holds for itself.

    A model with a training step of its own may use others than `model.optimizer`.

    Returns:
        List of optimizers, the compiled one first if there is one.
    """
    found = {}
    for member in [getattr(model, "optimizer", None), *members(model)]:
        if isinstance(member, keras.optimizers.Optimizer):
            found[id(member)] = member
    return list(found.values())


def training_optimizer(model):
    """The first optimizer of a model that has made a step; the compiled one if none has."""
    held = held_optimizers(model)
    if len(held) == 1:
        return held[0]
    return next((o for o in held if _has_stepped(o)), held[0] if held else None)


def _has_stepped(optimizer):
    counted = [v for v in optimizer.variables if v.name == "iteration"]
    return any(int(ops.convert_to_numpy(v)) > 0 for v in counted)


def add_hook(optimizer, hook):
    """Call `hook(optimizer)` before each `optimizer.apply`, inside a compiled step too.

    A hook with the methods `before(optimizer, gradients, variables)` and `after(held)` is called by
    them instead, before and after; `after` gets what `before` gave. One with the method
    `exchange(optimizer, gradients, variables)` gives other gradients, before all others.

    `apply` is shadowed on this instance alone. A step that is compiled already does not see the
    hook: drop it with `keras_internals.make_step`.
    """
    hooks = shadowed(optimizer, "apply")
    if hooks is None:
        hooks = _Hooked(optimizer)
        shadow(optimizer, "apply", hooks)
    hooks.hooks.append(hook)


def remove_hook(optimizer, hook):
    """Undo `add_hook`; nothing happens if the hook is not there."""
    hooks = shadowed(optimizer, "apply")
    if hooks is None or hook not in hooks.hooks:
        return
    hooks.hooks.remove(hook)
    if not hooks.hooks:
        unshadow(optimizer, "apply")


class _Exchanged:
    """The `stateless_apply` of a loss scale, which does not call `apply` on JAX."""

    def __init__(self, model, optimizer, hook):
        self.model, self.optimizer, self.hook = model, optimizer, hook

    def __call__(self, state, grads, trainable):
        optimizer = self.optimizer
        places = [*optimizer.variables, *self.model().trainable_variables]
        pairs = list(zip(places, [*state, *trainable], strict=True))
        with keras.StatelessScope(state_mapping=pairs):
            grads = self.hook.exchange(optimizer, list(grads), None)
        return type(optimizer).stateless_apply(optimizer, state, grads, trainable)

    def __deepcopy__(self, memo):
        raise TypeError("An optimizer with hooks inside its step cannot be copied during the fit")


def exchange_gradients(model, hook):
    """Have `hook.exchange` give the gradients that the optimizer of a model updates with.

    Args:
        model: A function that gives the model.
        hook: As for `add_hook`.

    Returns:
        A function that undoes it.
    """
    optimizer = model().optimizer
    add_hook(optimizer, hook)
    scales = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    if scales:
        shadow(optimizer, "stateless_apply", _Exchanged(model, optimizer, hook))

    def undo():
        remove_hook(optimizer, hook)
        if scales:
            unshadow(optimizer, "stateless_apply")

    return undo


class _Hooked:
    """The optimizer's own `apply` with hooks before it."""

    def __init__(self, optimizer):
        self.optimizer = optimizer
        self.hooks = []

    def __call__(self, grads, trainable_variables=None):
        optimizer = self.optimizer
        if not optimizer.built and trainable_variables is not None:
            trainable_variables = list(trainable_variables)
            optimizer.build(trainable_variables)
        for hook in self.hooks:
            if hasattr(hook, "exchange"):
                grads = hook.exchange(optimizer, list(grads), trainable_variables)
        seeing = [hook for hook in self.hooks if hasattr(hook, "before")]
        for hook in self.hooks:
            if hook not in seeing and not hasattr(hook, "exchange"):
                hook(optimizer)
        if seeing:
            grads = list(grads)
            held = [hook.before(optimizer, grads, trainable_variables) for hook in seeing]
        result = type(optimizer).apply(optimizer, grads, trainable_variables)
        for hook, what in zip(seeing, held if seeing else [], strict=True):
            hook.after(what)
        return result

    def __deepcopy__(self, memo):
        raise TypeError("An optimizer with hooks inside its step cannot be copied during the fit")
