"""Sharpness-aware minimization as a callback of any fit."""

from __future__ import annotations

import functools
import warnings
import weakref
from typing import Any

import keras
from keras import ops

from keras_regtools import backend
from keras_regtools.callbacks.recording import RecordingCallback
from keras_regtools.forward import all_layers
from keras_regtools.keras_internals import set_train_step
from keras_regtools.state import Setting, State
from keras_regtools.training import (
    SharpnessAwareHook,
    add_step_hook,
    alternate_steps,
    bind,
    end,
    exchange_gradients,
    remake_step,
    remove_step_hook,
)
from keras_regtools.validation import flag, keras_model, non_negative, optional, positive_integer

_ASSIGNING = (keras.layers.SpectralNormalization,)
_OF_TORCH = (keras.layers.TorchModuleWrapper,)


class _Rho(Setting):
    def __init__(self):
        super().__init__(non_negative)

    def __set__(self, owner, value):
        super().__set__(owner, value)
        owner.rho_changed()


class SharpnessAwareMinimization(RecordingCallback):
    """Minimize the loss a step ρ up the gradient, L(w + ρ g/‖g‖₂), in place of L(w).

    From [Foret et al., 2020](https://arxiv.org/abs/2010.01412) and, adaptive,
    [Kwon et al., 2021](https://arxiv.org/abs/2102.11600). In each training step the gradient g of
    the batch is computed as always; then that of the same batch at w + ρ g/‖g‖, and the optimizer
    updates with it. Penalties are in both, and both draw the same dropout masks. Moving statistics
    and metrics see the clean pass only. The optimizer unscales, clips and accumulates the second
    gradient. Where either is not finite, the optimizer gets the first, as without this callback.

    It works on any model whose step is Keras' own, by the loss that was compiled; a model with a
    training step of its own is warned of. With gradient accumulation each batch takes a step of its
    own, as parts of `m` samples do. It takes about the time of two plain steps.

    Adaptive steps are ρ T²g/‖T g‖ with T = |w| + .01 for kernels and 1 for what has one axis.

    Args:
        rho: Length ρ of the step, a finite float, zero or above. It can be assigned and follow a
            `Schedule`; on JAX an assignment during a fit compiles the step anew.
        adaptive: Whether to scale the step by the weights (ASAM). Its paper has a `rho` of .5 for
            large networks; small ones may not train with more than .2.
        every: Do it in every so many updates of the optimizer, beginning with its first. Under XLA
            two steps are compiled for that, as branches are slow there; with a loss scale, with
            `steps_per_execution` or beside a `GradientMonitor` on JAX it is one with a branch,
            which on a CPU saves nothing.
        m: Samples per part: each part takes a step of its own and the mean of their gradients
            counts (m-sharpness), at the cost of one gradient more. Each part draws masks of its
            own. It is meant for losses that are means over samples: parts count by their numbers
            of samples. `None` for the whole batch, of all replicas together; parts are of the
            samples of one replica.

    Raises:
        ValueError: a ρ that is negative or not finite, `every` or `m` that is no positive integer;
            when the fit begins, a model that is not compiled, one that holds PyTorch modules, or
            a second callback of this kind.

    Example:

    >>> import keras, numpy as np
    >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    >>> model.compile(keras.optimizers.SGD(0.1), lambda y, p: keras.ops.mean(p**2) / 2)
    >>> model.set_weights([np.array([[2.0]])])
    >>> x = np.ones((1, 1), "float32")
    >>> sam = SharpnessAwareMinimization(rho=0.5)
    >>> history = model.fit(x, x, verbose=0, callbacks=[sam])
    >>> round(float(model.get_weights()[0][0, 0]), 4)  # 2 − .1 · (2 + .5)
    1.75
    """

    rho = _Rho()

    def __init__(
        self, rho: float = 0.05, adaptive: bool = False, every: int = 1, m: int | None = None
    ) -> None:
        super().__init__("sharpness_aware")
        self._held = _Held(non_negative("rho", rho))
        self._adaptive = flag("adaptive", adaptive)
        self._every = positive_integer("every", every)
        self._m = optional(positive_integer)("m", m)
        self._undo: Any = None

    @property
    def adaptive(self) -> bool:
        """Whether the step is scaled by the weights."""
        return self._adaptive

    @property
    def every(self) -> int:
        """In every how many updates it is done."""
        return self._every

    @property
    def m(self) -> int | None:
        """Samples per part, or `None`."""
        return self._m

    @property
    def settings(self) -> dict[str, Any]:
        """The variables that hold what can be changed, by name."""
        return {"rho": self._held.rho}

    def rho_changed(self) -> None:
        """Have a step that holds the old value as a constant compiled again."""
        if backend.CONSTANTS_OUTSIDE and self._undo is not None:
            remake_step(self.model)

    def on_train_begin(self, logs: Any = None) -> None:
        model = keras_model(self.model, built=False, compiled=True)
        wrapped = [la.name for la in all_layers(model) if isinstance(la, _OF_TORCH)]
        if wrapped:
            raise ValueError(
                "Expected layers of Keras, whose loss is a function of their weights. Received: "
                f"the model {model.name!r} with PyTorch modules in {wrapped}"
            )
        own = [la.name for la in all_layers(model) if isinstance(la, _ASSIGNING)]
        if own and not backend.CONSTANTS_OUTSIDE:
            warnings.warn(
                f"{own} assign their own weights in a step. The second gradient goes through that "
                "assignment, the first one does not, but on JAX.",
                stacklevel=2,
            )
        others = [c for c in self.records.claims if c[0] == self.name and c[1] != id(self)]
        if others:
            raise ValueError(
                "Expected one `SharpnessAwareMinimization` in a fit. Received: a second one"
            )
        self.records.claims.add((self.name, id(self)))
        if type(model).train_step is not keras.Model.train_step:
            warnings.warn(
                f"{type(model).__name__} has a training step of its own. Sharpness-aware "
                "minimization takes the second gradient of the compiled loss.",
                stacklevel=2,
            )

    def fit_begins(self, epoch: int) -> None:
        model = self.model
        hook = SharpnessAwareHook(
            weakref.ref(model), lambda: self._held.rho, self.adaptive, self.every, self.m
        )
        add_step_hook(model, hook, last=True)
        undo = exchange_gradients(weakref.ref(model), hook)
        self._undo = functools.partial(_release, weakref.ref(model), undo, hook)
        bind(model, self._undo)
        if self._every > 1 and _branches_are_slow(model):
            hook.begin(model.optimizer)
            alternate_steps(model, hook)
        remake_step(model)

    def on_train_end(self, logs: Any = None) -> None:
        if self._undo is not None:
            end(self.model, self._undo)
            self._undo = None

    def __deepcopy__(self, memo):
        return type(self)(self.rho, self.adaptive, self.every, self.m)


def _branches_are_slow(model):
    """Whether XLA compiles the step, and each call is one update of the optimizer or a part of it.

    A loss scale skips updates, which a count of the calls does not see.
    """
    scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    replicated = backend.replica_count(model.variables[0]) > 1  # which cannot add up in a branch
    slow = model.jit_compile or replicated
    return bool(slow) and model.steps_per_execution == 1 and not scaled


@keras.saving.register_keras_serializable(package="keras_regtools")
class _Held(State):
    """Where ρ is."""

    def get_config(self):
        return {"rho": float(self.rho.value)}

    def __init__(self, rho):
        super().__init__(name="sharpness_aware")
        self.rho = self.add_weight(
            name="rho",
            shape=(),
            initializer=lambda shape, dtype: ops.convert_to_tensor(rho, dtype),
            trainable=False,
            autocast=False,
        )
        self.built = True


def _release(model, undo, hook):
    undo()
    if model() is not None:
        remove_step_hook(model(), hook)
        set_train_step(model(), None)
