"""Layers written so that their second derivative is right on every backend.

`tf.nn.moments`, which Keras uses, stops the gradient at the mean inside the variance. That does no
harm to first derivatives and makes second ones wrong. Means of plain differences are right. The
gradient of TensorFlow's resizing has no gradient of its own; products with matrices have one.
"""

import keras
import numpy as np
from keras import ops

from keras_regtools.forward.moments import reduction_axes


def exact_calls(model_layers):
    """`(layer, call)` for each layer whose own `call` hides a second derivative."""
    calls = []
    for layer in model_layers:
        for kind, function in _EXACT:
            if isinstance(layer, kind) and _is_known(type(layer), kind):
                calls.append((layer, _bound(function, layer, layer.call)))
                break
    return calls


def _is_known(layer_class, kind):
    """Whether the class computes what its kind does, and not something of its own."""
    ours = layer_class.__module__.startswith("keras_regtools.")
    return ours or layer_class.call is kind.call


def _bound(function, layer, original):
    def call(*args, **kwargs):
        return function(layer, original, *args, **kwargs)

    return call


def _batch_normalization(layer, original, inputs, training=None, mask=None):
    own = mask is not None or any(getattr(layer, n, None) for n in ("renorm", "virtual_batch_size"))
    if own or not (training and layer.trainable):
        return original(inputs, training=training, mask=mask)
    x = _wide(inputs)
    shape = [1] * len(x.shape)
    shape[layer.axis] = x.shape[layer.axis]
    normalized = _normalize(x, reduction_axes(len(x.shape), layer.axis), layer.epsilon)
    return ops.cast(_scale_and_shift(layer, normalized, shape), layer.compute_dtype)


def _layer_normalization(layer, original, inputs):
    if getattr(layer, "rms_scaling", False):
        return original(inputs)
    x = _wide(inputs)
    axes = layer.axis if isinstance(layer.axis, (list, tuple)) else [layer.axis]
    axes = sorted(axis % len(x.shape) for axis in axes)
    shape = [x.shape[i] if i in axes else 1 for i in range(len(x.shape))]
    normalized = _normalize(x, axes, layer.epsilon)
    return ops.cast(_scale_and_shift(layer, normalized, shape), layer.compute_dtype)


def _group_normalization(layer, original, inputs):
    x = _wide(inputs)
    axis = layer.axis % len(x.shape)
    channels = x.shape[axis]
    groups = layer.groups
    sizes = [-1, *x.shape[1:axis], groups, channels // groups, *x.shape[axis + 1 :]]
    grouped = ops.reshape(x, sizes)
    axes = [i for i in range(1, len(sizes)) if i != axis]
    normalized = ops.reshape(_normalize(grouped, axes, layer.epsilon), ops.shape(x))
    shape = [1] * len(x.shape)
    shape[axis] = channels
    return ops.cast(_scale_and_shift(layer, normalized, shape), layer.compute_dtype)


def _resized(layer, original, inputs, *args, **kwargs):
    """The product with two matrices: resizing is linear, in each of the two directions apart."""
    if isinstance(layer, keras.layers.UpSampling2D):
        factors, own = layer.size, {}
    else:
        factors, own = None, {"antialias": layer.antialias}
        if layer.crop_to_aspect_ratio or layer.pad_to_aspect_ratio:
            return original(inputs, *args, **kwargs)
    axes = (2, 3) if layer.data_format == "channels_first" else (1, 2)
    sizes = [inputs.shape[axis] for axis in axes] if len(inputs.shape) == 4 else [None]
    is_float = "float" in keras.backend.standardize_dtype(inputs.dtype)
    if None in sizes or layer.interpolation == "nearest" or not is_float:
        return original(inputs, *args, **kwargs)
    targets = (layer.height, layer.width) if factors is None else np.multiply(sizes, factors)
    outputs = inputs
    for axis, size, target in zip(axes, sizes, targets, strict=True):
        columns = ops.reshape(ops.eye(size, dtype=inputs.dtype), (size, size, 1, 1))
        matrix = ops.image.resize(
            columns, (int(target), 1), layer.interpolation, data_format="channels_last", **own
        )
        moved = ops.tensordot(outputs, ops.reshape(matrix, (size, int(target))), [[axis], [0]])
        outputs = ops.moveaxis(moved, -1, axis)
    return outputs


_EXACT = (
    (keras.layers.BatchNormalization, _batch_normalization),
    (keras.layers.LayerNormalization, _layer_normalization),
    (keras.layers.GroupNormalization, _group_normalization),
    (keras.layers.UpSampling2D, _resized),
    (keras.layers.Resizing, _resized),
)


def _wide(x):
    return ops.cast(x, keras.backend.result_type(x.dtype, "float32"))


def _normalize(x, axes, epsilon):
    centered = x - ops.mean(x, axis=axes, keepdims=True)
    variance = ops.mean(ops.square(centered), axis=axes, keepdims=True)
    return centered * ops.rsqrt(variance + epsilon)


def _scale_and_shift(layer, x, shape):
    gamma, beta = (
        None if variable is None else ops.cast(ops.reshape(variable, shape), x.dtype)
        for variable in (getattr(layer, "gamma", None), getattr(layer, "beta", None))
    )
    x = x if gamma is None else x * gamma
    return x if beta is None else x + beta  # `ops.add` takes some shapes for a bias of channels
