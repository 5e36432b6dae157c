"""Momentum correction: velocities that follow a change of the learning rate."""

import keras
from keras import ops

from keras_regtools.training.optimizer_hooks import base_optimizers


def velocities(optimizer):
    """The variables of an optimizer that hold past updates with their learning rate in them.

    Those of `SGD` and `RMSprop` with momentum. Adam's moments hold gradients, not updates.
    """
    if not isinstance(optimizer, (keras.optimizers.SGD, keras.optimizers.RMSprop)):
        return []
    return [v for v in optimizer.variables if v.name.endswith("_momentum")]


def correct_momentum(optimizer, ratio):
    """Multiply the velocities by the new learning rate over the old one.

    Keras' SGD keeps `velocity = m * velocity - learning_rate * gradient`. When the rate changes
    from η_t to η_{t+1}, past updates keep their old rate unless the velocity is multiplied by
    η_{t+1} / η_t ([Goyal et al., 2017](https://arxiv.org/abs/1706.02677), section 2.3).

    Args:
        optimizer: A Keras optimizer; those without such velocities are left alone.
        ratio: η_{t+1} / η_t, a float or a scalar tensor.

    Example:

    >>> import keras
    >>> w = keras.Variable([0.0])
    >>> sgd = keras.optimizers.SGD(0.1, momentum=0.5)
    >>> sgd.apply([keras.ops.array([1.0])], [w])  # velocity -0.1
    >>> sgd.learning_rate = 0.2
    >>> correct_momentum(sgd, 0.2 / 0.1)  # velocity -0.2
    >>> sgd.apply([keras.ops.array([1.0])])  # 0.5 * -0.2 - 0.2
    >>> round(float(keras.ops.convert_to_numpy(w)[0]), 6)  # -0.1 - 0.3
    -0.4
    """
    for base in base_optimizers(optimizer):
        for velocity in velocities(base):
            velocity.assign(velocity * ops.cast(ratio, velocity.dtype))
