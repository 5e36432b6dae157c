"""Internal: state that we add to a model: among its `variables`, never among its `weights`."""

import sys

import keras
import numpy as np
from keras import ops


class State(keras.layers.Layer):
    """A layer whose variables are state and not weights, as seeds and metrics are in Keras.

    Variables made with `add_weight` are trained through, saved in `.keras` and `.weights.h5`
    files and read back, but the model that holds this layer keeps the plain model's
    `get_weights()`, counts and weight files: files written without the state load too.
    """

    @property
    def weights(self):
        return []

    def load_own_variables(self, store):
        kept = [tuple(store[key].shape) for key in sorted(store.keys(), key=int)]
        # Of a layer that recorded something else, nothing can go on.
        if kept == [tuple(v.shape) for v in self._own_variables()]:
            super().load_own_variables(store)

    def _own_variables(self):
        return self.variables


class Setting:
    """Descriptor of a number: a float to its user, a variable to the training step.

    Reading gives a Python float, assigning a number changes the variable: no retrace is needed and
    a compiled training step sees the new value in its next step. The owner holds the variables in
    the dict `settings`, by name.

    Args:
        constraint: What a value has to be, see `validation.Constraint`.
    """

    def __init__(self, constraint):
        self.constraint = constraint

    def __set_name__(self, owner, name):
        self.name = name

    def __get__(self, owner, kind=None):
        if owner is None:
            return self
        current = np.asarray(ops.convert_to_numpy(self.variable(owner))).ravel()[0]
        return float(str(current))  # 0.01 rather than the 0.009999999776 of float32

    def __set__(self, owner, value):
        self.variable(owner).assign(self.encoded(self.constraint(self.name, value), np))

    def variable(self, owner):
        """The variable that holds the number."""
        return owner.settings[self.name]

    def encoded(self, value, ops):
        """What the variable holds for a value; `ops` is numpy, or `keras.ops` for a tensor."""
        return value


def setting_of(owner, name):
    """The `Setting` of an object under a name, or `None`."""
    found = getattr(type(owner), name, None) if isinstance(name, str) else None
    return found if isinstance(found, Setting) else None


def settings_of(owner):
    """The names of the settings of an object."""
    names = (n for kind in type(owner).__mro__ for n in vars(kind))
    return [name for name in dict.fromkeys(names) if setting_of(owner, name) is not None]


def functional_scope():
    """The `keras.StatelessScope` that is open, or `None`: what `stateless_call` makes of itself."""
    return sys.modules[keras.StatelessScope.__module__].get_stateless_scope()
