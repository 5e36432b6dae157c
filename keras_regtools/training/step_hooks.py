"""Hooks that run inside the training step, before anything else in it."""

import weakref

import keras

from keras_regtools.keras_internals import shadow, shadowed, unshadow


class _Hooked:
    """Shadow of `model.train_step`: the hooks, then the model's own step."""

    def __init__(self, model):
        self._model = weakref.ref(model)
        self.hooks, self.last, self.before = [], [], None

    def __call__(self, *args):
        model = self._model()
        step = self.before or type(model).train_step.__get__(model)
        if len(args) == 1:
            for hook in self.hooks:
                hook(args[0])
            return step(*args)
        # On JAX a step is a function of the state, from which what was assigned has to come back.
        state, data = args
        trainable, fixed, of_optimizer, *rest = state
        places = (
            model.trainable_variables,
            model.non_trainable_variables,
            model.optimizer.variables,
            model.metrics_variables,
        )
        pairs = [
            pair
            for variables, values in zip(places, state, strict=True)
            for pair in zip(variables, values, strict=True)
        ]
        with keras.StatelessScope(state_mapping=pairs) as scope:
            for hook in self.hooks:
                hook(data)
        fixed = [scope.get_current_value(v) for v in model.non_trainable_variables]
        return step((trainable, fixed, of_optimizer, *rest), data)

    def __deepcopy__(self, memo):
        raise TypeError("A model with hooks inside its step cannot be copied during the fit")


def add_step_hook(model, hook, last=False):
    """Call `hook(data)` at the beginning of each training step, inside a compiled step too.

    Variables of the model that are not trainable may be assigned there; the step then sees the new
    values. A step that is compiled already does not see the hook: `remake_step` makes it anew. The
    hooks that come `last` are called when all others are, and see what they assigned.
    """
    hooks = shadowed(model, "train_step")
    if not isinstance(hooks, _Hooked):
        hooks = _Hooked(model)
        hooks.before = shadow(model, "train_step", hooks)
    hooks.hooks.append(hook)
    if last:
        hooks.last.append(hook)
    hooks.hooks.sort(key=lambda one: one in hooks.last)


def renew_step_hooks(model):
    """Stand for another function: `jax.jit` takes the same one for compiled already."""
    hooks = shadowed(model, "train_step")
    if isinstance(hooks, _Hooked):
        new = _Hooked(model)
        new.hooks, new.last, new.before = hooks.hooks, hooks.last, hooks.before
        shadow(model, "train_step", new)


def remove_step_hook(model, hook):
    """Undo `add_step_hook`; nothing happens if the hook is not there."""
    hooks = shadowed(model, "train_step")
    if not isinstance(hooks, _Hooked) or hook not in hooks.hooks:
        return
    hooks.hooks.remove(hook)
    if not hooks.hooks:
        unshadow(model, "train_step", hooks.before)
