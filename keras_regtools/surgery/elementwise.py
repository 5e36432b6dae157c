"""Internal: which functions act on each number by itself, and what they make of constants."""

import keras
import numpy as np
from keras import ops

_MIXING = ("glu", "log_softmax", "softmax", "sparse_softmax", "sparsemax")  # one unit with others
_NOT_FUNCTIONS = ("deserialize", "get", "serialize")
_FUNCTIONS = {
    id(value)
    for name, value in vars(keras.activations).items()
    if callable(value) and name not in (*_MIXING, *_NOT_FUNCTIONS)
}
OPERATIONS = (
    *("Abs", "Elu", "Exp", "Gelu", "HardSigmoid", "HardSilu", "LeakyRelu", "Negative", "Relu"),
    *("Relu6", "Selu", "Sigmoid", "Silu", "Softplus", "Softsign", "Square", "Tanh"),
)


def is_elementwise(activation):
    if isinstance(activation, keras.layers.Layer):
        return is_elementwise_layer(activation)
    return id(activation) in _FUNCTIONS


def is_elementwise_layer(layer):
    if type(layer) is keras.layers.Activation:
        return is_elementwise(layer.activation)
    if type(layer) is keras.layers.Rescaling:
        return all(isinstance(value, (int, float)) for value in (layer.scale, layer.offset))
    return type(layer) in (keras.layers.ELU, keras.layers.LeakyReLU, keras.layers.ReLU)


def through(function, constants, dtype="float32"):
    """What a function makes of constants; unknown ones and what is not finite stay unknown."""
    dtype = "float64" if dtype == "float64" else "float32"
    known = ops.convert_to_tensor(np.nan_to_num(constants).astype(dtype)[None], dtype)
    made = ops.convert_to_numpy(function(known))[0].astype("float64")
    return np.where(np.isnan(constants) | ~np.isfinite(made), np.nan, made)
