"""A strength: a float to its user, a variable to the training step."""

from __future__ import annotations

from typing import Any

import keras

from keras_regtools.state import Setting, State
from keras_regtools.validation import non_negative


class Strength(Setting):
    """Descriptor of the strength of a penalty, a finite float, zero or above.

    Reading gives a Python float, assigning a number changes the variable: no retrace is needed and
    a compiled training step sees the new value in its next step.
    """

    def __init__(self) -> None:
        super().__init__(non_negative)


class Penalty(State, keras.Regularizer):
    """Base of the penalties, and of a user's own: a regularizer whose strengths are variables.

    A subclass declares each strength as a `Strength`, hands their first values to this constructor
    and computes the penalty of a kernel in `__call__`, from `self.strengths`. Settings other than
    strengths go into `get_config`. The layer that owns the kernel tracks the penalty as its own, so
    that it is saved in files and read back.

    Args:
        **strengths: The first value of each strength, a finite float, zero or above.

    Raises:
        ValueError: a strength that is negative, NaN or infinite.

    Example:

    >>> @keras.saving.register_keras_serializable(package="mine")
    ... class L3(Penalty):
    ...     l3 = Strength()
    ...
    ...     def __init__(self, l3=0.01):
    ...         super().__init__(l3=l3)
    ...
    ...     def __call__(self, x):
    ...         return self.strengths["l3"] * keras.ops.sum(keras.ops.abs(x) ** 3)
    >>> penalty = L3(0.5)
    >>> float(penalty(keras.ops.array([1.0, -2.0])))
    4.5
    >>> penalty.l3 = 1.0
    >>> float(penalty(keras.ops.array([1.0, -2.0])))
    9.0
    """

    def __init__(self, **strengths: Any) -> None:
        super().__init__()
        self.strengths = {name: self._held(name, value) for name, value in strengths.items()}
        self.built = True

    def _held(self, name, value):
        if isinstance(value, keras.Variable):
            return value  # of another penalty, with which it is shared
        return self.add_weight(
            name=name,
            shape=(),
            initializer=keras.initializers.Constant(non_negative(name, value)),
            trainable=False,
            autocast=False,
            aggregation="only_first_replica",  # may be assigned inside a step
        )

    @property
    def settings(self) -> dict[str, Any]:
        """The variables that hold what can be changed, by name."""
        return self.strengths

    def of_layer(self, layer: Any, name: str) -> Any:
        """The penalty to use as one of a layer's regularizers, with the same strengths.

        Args:
            layer: A Keras layer.
            name: The name of its argument, such as `"kernel_regularizer"`.
        """
        return self

    def get_config(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.strengths}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        return cls(**config)

    def __repr__(self):
        told = {k: f"{v:g}" if isinstance(v, float) else repr(v) for k, v in self._told().items()}
        return f"{type(self).__name__}({', '.join(f'{k}={v}' for k, v in told.items())})"

    def _told(self):
        return self.get_config()
