"""What needs no backend where one process sees whole arrays and knows their shapes."""

import contextlib
import itertools

import keras
import numpy as np
from keras import ops

from keras_regtools.keras_internals import make_step, set_train_step


def replicas(variable):
    return [np.array(ops.convert_to_numpy(variable))]


def process_index():
    return 0


def replica_count(variable):
    return 1


def all_reduce(tensors):
    return tensors


def dense(gradient):
    return ops.convert_to_tensor(gradient)


def squared_norms(tensors):
    return ops.stack([ops.sum(ops.square(t)) for t in tensors])


def recompute_apart(gradient):
    return gradient


def traced_function():
    return None, None


def require(condition, message, assigned):
    """Sizes are known while tracing here: what is asked in a graph elsewhere was asked then."""


def conditional_assign(condition, update, variables, others, given, assigned):
    """Both branches give values, and all variables are assigned, as a pure function needs it."""
    # Plain tensors, which both branches can return.
    kept = {name: variable * 1 for name, variable in variables.items()}
    read = {name: variable * 1 for name, variable in others.items()}
    found = ops.cond(
        condition,
        lambda: tuple(update({**kept, **read}, given)),
        lambda: tuple(kept.values()),
    )
    for variable, value in zip(variables.values(), found, strict=True):
        variable.assign(value)


def assign(update, variables, others, given):
    """The same where no graph is made."""
    known = {name: v * 1 for name, v in {**variables, **others}.items()}
    for variable, value in zip(variables.values(), update(known, given), strict=True):
        variable.assign(value)


def cond(condition, one, other):
    return ops.cond(condition, one, other)


def after(tensor, value):
    return value


def once(fn, *args):
    return fn(*args)


def assign_row(variable, index, value, assigned):
    """The whole array anew, with one entry exchanged."""
    there = ops.equal(np.arange(variable.shape[0], dtype="int32"), index)
    there = ops.reshape(there, [-1] + [1] * (len(variable.shape) - 1))
    variable.assign(ops.where(there, value[None], variable * 1))


def separate_step(model):
    """The training step of a model compiled again, whatever others there are."""
    return make_step(model)


def watch_steps(model, due, watch):
    """The compiled training step anew, watched in every call: what is not due, it leaves out."""
    make_step(model)


def two_steps(model, due, watch, separate):
    """A watched and a plain compiled step, called as `due` tells."""
    watched, plain, calls = separate(model), separate(model), itertools.count()

    def step(*args):
        here = due(next(calls))
        watch(here)
        return (watched if here else plain)(*args)

    set_train_step(model, step)


def draws():
    return None


def same_draws(draws, part=0):
    return contextlib.nullcontext()


def dropout(x, rate, shape, seeds):
    """With a rate that is a number by now."""
    current = np.asarray(ops.convert_to_numpy(rate))[0]
    return keras.random.dropout(x, float(str(current)), shape, seeds)


class StepAccumulator:
    """Arrays that a step gives, in the memory of the process.

    Args:
        shape: Their shape.
        compiled: Whether the step is compiled by XLA.
        like: A variable of the model.
        settle: Called before reading: waits for what is still on its way.
    """

    def __init__(self, shape, compiled, like=None, settle=lambda: None):
        self.shape, self._settle = shape, settle
        self._begin()

    def _begin(self):
        self.count, self.sum = 0, np.zeros(self.shape)
        self.largest = np.zeros(self.shape)

    def receive(self, values):
        values = np.asarray(values, "float64")
        self.count += 1
        self.sum = self.sum + values
        self.largest = np.maximum(self.largest, values)

    def read(self):
        self._settle()
        result = self.count, self.sum / max(self.count, 1), self.largest
        self._begin()
        return result
