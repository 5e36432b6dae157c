"""How large each weight penalty of a model is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keras import ops

from keras_regtools.validation import checked, keras_model

if TYPE_CHECKING:
    import keras


@checked(model=lambda name, value: keras_model(value, built=False))
def penalties(model: keras.Model) -> dict[str, float]:
    """The value of each weight penalty of a model, by the path of the weight.

    Args:
        model: A built `keras.Model`; regularizers of Keras count as well as ours.

    Returns:
        A dict from `variable.path` to a float, one entry per regularized trainable weight (paths
        that occur twice are numbered).
        Their sum is what the weight penalties add to the loss.

    Example:

    >>> import keras
    >>> from keras_regtools.regularizers import L2
    >>> dense = keras.layers.Dense(1, kernel_initializer="ones", kernel_regularizer=L2(0.5))
    >>> penalties(keras.Sequential([keras.Input((3,)), dense], name="m"))
    {'...kernel': 1.5}
    """
    found = {}
    for variable in model.trainable_variables:
        if variable.regularizer is not None:
            path, number = variable.path, 1
            while path in found:
                number += 1
                path = f"{variable.path}_{number}"
            found[path] = float(ops.convert_to_numpy(variable.regularizer(variable)))
    return found
