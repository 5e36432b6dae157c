"""A strength: a float to its user, a variable to the training step."""

import keras
import numpy as np
from keras import ops

from keras_regtools.state import State
from keras_regtools.validation import non_negative


class Strength:
    """Descriptor of a non-negative strength held in a variable of a `State`.

    Reading gives a Python float, assigning a number changes the variable: no retrace is needed and
    a compiled training step sees the new value in its next step.
    """

    def __set_name__(self, owner, name):
        self.name = name

    def __get__(self, regularizer, owner=None):
        if regularizer is None:
            return self
        current = np.asarray(ops.convert_to_numpy(regularizer.strengths[self.name]))
        return float(str(current[()]))  # 0.01 rather than the 0.009999999776 of float32

    def __set__(self, regularizer, value):
        regularizer.strengths[self.name].assign(non_negative(self.name, value))


class Penalty(State, keras.Regularizer):
    """Base of the penalties: a regularizer that the layer owning the kernel tracks as its own."""

    def __init__(self, **strengths):
        super().__init__()
        self.strengths = {
            name: self.add_weight(
                name=name,
                shape=(),
                initializer=keras.initializers.Constant(non_negative(name, value)),
                trainable=False,
                autocast=False,
            )
            for name, value in strengths.items()
        }
        self.built = True

    def get_config(self):
        return {name: getattr(self, name) for name in self.strengths}

    @classmethod
    def from_config(cls, config):
        return cls(**config)

    def __repr__(self):
        settings = ", ".join(f"{k}={v:g}" for k, v in self.get_config().items())
        return f"{type(self).__name__}({settings})"
