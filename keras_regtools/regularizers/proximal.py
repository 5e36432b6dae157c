"""Internal: penalties that act by a proximal step after each update, not by their gradient."""

import contextlib
import contextvars

import keras
from keras import ops

from keras_regtools.keras_internals import iteration, known_variables, updating_optimizer
from keras_regtools.regularizers.strength import Penalty
from keras_regtools.validation import flag

_WHOLE = contextvars.ContextVar("whole_gradients", default=False)
# What an optimizer divides a gradient by, by the end of its variable's name.
_METRICS = {
    keras.optimizers.Adam: "velocity",
    keras.optimizers.Nadam: "velocity",
    keras.optimizers.RMSprop: "velocity",
    keras.optimizers.Adagrad: "accumulator",
}


@contextlib.contextmanager
def whole_gradients():
    """Within the block, penalties with a proximal step have a gradient: that of the loss itself."""
    token = _WHOLE.set(True)
    try:
        yield
    finally:
        _WHOLE.reset(token)


class Proximal(Penalty):
    """A penalty that may act by a proximal step.

    A subclass computes its value from `self.seen(x)` and gives the step in `shrunk(w, steps)`: the
    minimum over u of ½ Σ (u − w)² / steps + penalty(u), with `steps` a tensor like w or a scalar.
    """

    def __init__(self, proximal, **strengths):
        self.proximal = flag("proximal", proximal)
        super().__init__(**strengths)
        self._attached, self._read = False, None

    def seen(self, x):
        """The weight that the value is computed of: without a gradient where a step follows."""
        if not self.proximal:
            return x
        if isinstance(x, keras.Variable) and not _has_step(x.constraint):
            x.constraint, self._attached = _Step(self, x.constraint), True
        # On JAX the optimizer does not see this: what it is in this step is kept for it.
        self._read = {name: ops.convert_to_tensor(v) for name, v in self.strengths.items()}
        whole = _WHOLE.get() or not self._attached
        return x if whole else ops.stop_gradient(ops.convert_to_tensor(x))

    def strength_of_step(self, name):
        """A strength, inside the optimizer."""
        return self._read[name] if keras.backend.backend() == "jax" else self.strengths[name]

    def get_config(self):
        config = super().get_config()
        return {**config, "proximal": True} if self.proximal else config


def _has_step(constraint):
    """Whether a proximal step is among constraints that stand one in another."""
    while constraint is not None and not isinstance(constraint, _Step):
        constraint = getattr(constraint, "constraint", None)
    return constraint is not None


class _Step:
    """The proximal step in place of a constraint, which Keras applies after each update."""

    def __init__(self, penalty, constraint):
        self.penalty, self.constraint = penalty, constraint

    def __call__(self, variable):
        optimizer, new = updating_optimizer(), variable
        if optimizer is not None and self.penalty._read is not None:
            new = self.penalty.shrunk(ops.convert_to_tensor(variable), _steps(optimizer, variable))
        return new if self.constraint is None else self.constraint(new)


def _steps(optimizer, variable):
    """How far an optimizer moves each weight for a lasting gradient of 1: a tensor or a scalar."""
    rate = ops.cast(optimizer.learning_rate, variable.dtype)
    every = optimizer.gradient_accumulation_steps
    if every:  # the others only gather
        updates = ops.equal(ops.mod(iteration(optimizer) + 1, every), 0)
        rate = rate * ops.cast(updates, variable.dtype)
    # Velocities sum up gradients: in the long run a gradient of 1 moves 1 / (1 - momentum) steps.
    if isinstance(optimizer, (keras.optimizers.SGD, keras.optimizers.RMSprop)):
        rate = rate / (1 - optimizer.momentum)
    ending = next((end for kind, end in _METRICS.items() if isinstance(optimizer, kind)), None)
    if ending is None:
        return rate
    ending = "velocity_hat" if getattr(optimizer, "amsgrad", False) else ending
    held = [v for v in optimizer.variables if v.name.endswith(f"_{ending}") or v.name == ending]
    at = next(i for i, v in enumerate(known_variables(optimizer)) if v is variable)
    second = ops.convert_to_tensor(held[at])
    if isinstance(optimizer, (keras.optimizers.RMSprop, keras.optimizers.Adagrad)):
        return rate / ops.sqrt(second + optimizer.epsilon)
    updates = ops.cast(optimizer.iterations + 1, variable.dtype)
    unbiased = second / (1 - ops.power(ops.cast(optimizer.beta_2, variable.dtype), updates))
    return rate / (ops.sqrt(unbiased) + optimizer.epsilon)
