"""What is put into a model for one fit, and taken out when that fit is over, however it ends."""

import weakref

from keras import ops

from keras_regtools import backend
from keras_regtools.keras_internals import (
    iteration,
    make_step,
    set_train_step,
    shadow,
    shadowed,
    unshadow,
)
from keras_regtools.training.optimizer_hooks import (
    add_hook,
    base_optimizers,
    held_optimizers,
    remove_hook,
)
from keras_regtools.training.step_hooks import renew_step_hooks


class _Bound:
    """Shadow of `model.make_train_function`, which every fit calls before any callback.

    Called without force it means that another fit begins: an interrupted one never says that it
    has ended, and what it left behind would act on in the next.
    """

    def __init__(self, model):
        self._model = weakref.ref(model)
        self.undo, self.watched, self.turns = [], [], None

    def __call__(self, force=False):
        model = self._model()
        if not force:
            release(model)
        return type(model).make_train_function(model, force=force)

    def __deepcopy__(self, memo):
        raise TypeError("A model with hooks inside its step cannot be copied during the fit")


def _of(model):
    return shadowed(model, "make_train_function")


def bind(model, undo):
    """Have `undo()` called when the present fit of a model is over, or else when another begins."""
    bound = _of(model)
    if bound is None:
        bound = _Bound(model)
        shadow(model, "make_train_function", bound)
    bound.undo.append(undo)


def release(model):
    """Undo what is bound to a model, at the end of its fit or after one that was cut off."""
    bound = _of(model)
    if bound is not None:
        unshadow(model, "make_train_function")
        for undo in bound.undo:
            undo()
        set_train_step(model, None)


def end(model, undo):
    """Undo one thing that was bound."""
    bound = _of(model)
    undo()
    if bound is not None and undo in bound.undo:
        bound.undo.remove(undo)
        if not bound.undo:
            release(model)


def watch_steps(model, due, watching):
    """Have `backend.watch_steps` in the step of a model that something is bound to."""
    _of(model).watched.append((due, watching))


def watch_updates(owner, model, make):
    """Have a hook in each optimizer of a model for this fit, in a step compiled again.

    Args:
        owner: An object with which it goes, as after a fit that ended in an exception.
        model: The model.
        make: A function that gives a hook, see `training.gradients.WatchingHook`.

    Returns:
        List of pairs of a hook and the function that takes it out.
    """
    if not model.trainable_variables:
        raise ValueError(
            "Expected a model with trainable weights. "
            f"Received: the model {model.name!r}, which has none"
        )
    pairs = []
    for optimizer in [base for held in held_optimizers(model) for base in base_optimizers(held)]:
        hook = make()
        add_hook(optimizer, hook)
        undo = weakref.finalize(owner, _release_hook, weakref.ref(model), optimizer, hook)
        undo.atexit = False
        bind(model, undo)  # and when another fit begins
        pairs.append((hook, undo))
    _watch_hooks(model, [hook for hook, _ in pairs])
    return pairs


def _watch_hooks(model, hooks):
    optimizer, begin = model.optimizer, 0
    alone = held_optimizers(model) == base_optimizers(optimizer) == [optimizer]
    if alone:  # its steps can be counted out here; those of a loss scale may be left out
        begin = int(ops.convert_to_numpy(iteration(optimizer)))

    def due(n):
        return not alone or hooks[0].is_due(optimizer, begin + n)

    def watch(watching):
        for hook in hooks:
            hook.watching = watching

    watch_steps(model, due, watch)
    remake_step(model)


def _release_hook(model, optimizer, hook):
    """Take a hook out again, also of the compiled step of a model that a weak reference has."""
    remove_hook(optimizer, hook)
    if model() is not None:
        set_train_step(model(), None)


def alternate_steps(model, turns):
    """Have two compiled steps in a model that something is bound to: with something or without it.

    A compiled step with a branch in it may be slow where the branch is not taken.

    Args:
        model: The model.
        turns: An object with `due()`, whether the next call does it, `tell(flag)`, which is called
            before each, as a step is compiled when it is called first, and `made()`, after each.
    """
    _of(model).turns = turns


def remake_step(model):
    """Compile the training step anew, with the hooks that its optimizers have now."""
    renew_step_hooks(model)
    bound = _of(model)
    turns = None if bound is None else bound.turns
    if bound is not None and bound.watched:
        if turns is not None:
            turns.tell(None)  # the watched one has to see each step
        pairs = bound.watched

        def watch(here):
            for _, watching in pairs:
                watching(here)

        # All are asked: each counts the steps by being asked.
        backend.watch_steps(model, lambda n: any([due(n) for due, _ in pairs]), watch)
    elif turns is not None:
        steps = backend.separate_step(model), backend.separate_step(model)
        set_train_step(model, _alternating(*steps, turns))
    else:
        make_step(model)


def _alternating(with_it, without_it, turns):
    def step(*args):
        flag = turns.due()
        turns.tell(flag)
        result = (with_it if flag else without_it)(*args)
        turns.made()
        return result

    return step
