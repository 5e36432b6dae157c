"""L1, L2 and both, with Keras' arguments and formulas."""

from typing import Any

import keras
from keras import ops

from keras_regtools.regularizers.proximal import Proximal
from keras_regtools.regularizers.strength import Penalty, Strength


@keras.saving.register_keras_serializable(package="keras_regtools")
class L1(Proximal):
    """The penalty `l1 * sum(|w|)`, with a strength that can change during training.

    It drives weights towards zero, but a gradient step never lands on zero exactly. With
    `proximal=True` the penalty is in the loss that is reported and not in the gradient; after each
    update the optimizer then makes the proximal step w ← sign(w) · max(|w| − η l1, 0), which gives
    exact zeros. η is the learning rate, divided by 1 - momentum under SGD and RMSprop, whose
    velocities sum up gradients; under Adam, AdamW, Nadam, RMSprop and Adagrad it is that of each
    weight, rate / (√v̂ + ε): the step of the metric in which they move, so that a weight whose
    gradient stays within ± l1 stays zero.

    Args:
        l1: Strength, a finite float, zero or above.
        proximal: Whether it acts by a proximal step.

    Raises:
        ValueError: a strength that is negative, NaN or infinite.

    Example:

    >>> penalty = L1(0.1)
    >>> float(penalty(keras.ops.array([1.0, -2.0, 3.0])))
    0.6...
    >>> penalty.l1 = 0.0  # between or during fits; acts in the next step
    >>> float(penalty(keras.ops.array([1.0, -2.0, 3.0])))
    0.0
    """

    l1 = Strength()

    def __init__(self, l1: float = 0.01, proximal: bool = False) -> None:
        super().__init__(proximal, l1=l1)

    def __call__(self, x):
        return _l1(self.strengths["l1"], self.seen(x))

    def shrunk(self, w: Any, steps: Any) -> Any:
        threshold = ops.cast(self.strength_of_step("l1"), w.dtype) * steps
        return ops.sign(w) * ops.maximum(ops.abs(w) - threshold, 0.0)


@keras.saving.register_keras_serializable(package="keras_regtools")
class L2(Penalty):
    """The penalty `l2 * sum(w**2)`, with a strength that can change during training.

    Assign `.l2` between fits or in a callback, at the end of an epoch or of a batch; in a batch
    hook on JAX, read `callback.model` first, as for any variable there.

    As in Keras there is no factor of one half: the weight decay `λ/2 * ||w||²` of a paper is
    `L2(λ / 2)`.

    Args:
        l2: Strength, a finite float, zero or above.

    Raises:
        ValueError: a strength that is negative, NaN or infinite.

    Example:

    >>> penalty = L2(0.5)
    >>> float(penalty(keras.ops.array([1.0, -2.0])))
    2.5
    """

    l2 = Strength()

    def __init__(self, l2: float = 0.01) -> None:
        super().__init__(l2=l2)

    def __call__(self, x):
        return _l2(self.strengths["l2"], x)


@keras.saving.register_keras_serializable(package="keras_regtools")
class L1L2(Penalty):
    """The penalty `l1 * sum(|w|) + l2 * sum(w**2)`, with strengths that can change.

    Args:
        l1: Strength of the absolute values, a finite float, zero or above.
        l2: Strength of the squares, a finite float, zero or above.

    Raises:
        ValueError: a strength that is negative, NaN or infinite.

    Example:

    >>> penalty = L1L2(l1=1.0, l2=0.5)
    >>> float(penalty(keras.ops.array([1.0, -2.0])))
    5.5
    """

    l1 = Strength()
    l2 = Strength()

    def __init__(self, l1: float = 0.0, l2: float = 0.0) -> None:
        super().__init__(l1=l1, l2=l2)

    def __call__(self, x):
        return _l1(self.strengths["l1"], x) + _l2(self.strengths["l2"], x)


def _l1(strength, x):
    return ops.cast(strength, x.dtype) * ops.sum(ops.abs(x))


def _l2(strength, x):
    return ops.cast(strength, x.dtype) * ops.sum(ops.square(x))
