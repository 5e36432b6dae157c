"""Internal: a kernel as a matrix, with one column for each group of its weights."""

import math

from keras import ops

from keras_regtools.regularizers.strength import Penalty

KERNELS = ("standard", "depthwise", "transposed", "lstm", "gru")
OVER = ("filters", "units", "inputs")
_GATES = {"lstm": 4, "gru": 3}
_SHAPES = "a kernel of two axes or more (bias and scale have one)"


def groups_of(x, over, kernel):
    """A kernel as a matrix with one column for each group.

    Args:
        x: The kernel. Its axes are (window…, inputs, outputs) for `"standard"` kernels: those of
            Dense, convolutional, recurrent and embedding layers; (window…, inputs, multiplier) for
            `"depthwise"`; (window…, outputs, inputs) for `"transposed"`; (inputs, gates · units)
            for `"lstm"` and `"gru"`, where a unit owns one column in each gate.
        over: `"filters"` or `"units"`, which both mean the outputs, or `"inputs"`.
        kernel: One of `KERNELS`.

    Returns:
        A tensor of the shape (weights of a group, groups).
    """
    shape = tuple(x.shape)
    if len(shape) < 2:
        raise ValueError(f"Expected {_SHAPES}. Received: a weight of the shape {shape}")
    gates = _GATES.get(kernel)
    if gates is not None:
        if len(shape) != 2 or shape[1] % gates:
            raise ValueError(
                f"Expected a kernel of the shape (inputs, {gates} · units), as that of "
                f"kernel={kernel!r}. Received: a weight of the shape {shape}"
            )
        if over == "inputs":
            return ops.transpose(x)
        parts = ops.reshape(x, (shape[0], gates, shape[1] // gates))
        return ops.reshape(parts, (-1, shape[1] // gates))
    *window, before, last = shape
    if kernel == "depthwise":
        if over != "inputs":  # each input has filters of its own
            return ops.reshape(x, (math.prod(window), before * last))
        outputs_last = False
    else:
        outputs_last = (kernel == "transposed") == (over == "inputs")
    if outputs_last:
        return ops.reshape(x, (-1, last))
    axes = (*range(len(window)), len(shape) - 1, len(shape) - 2)
    return ops.reshape(ops.transpose(x, axes), (-1, before))


def like_kernel(values, shape, over, kernel):
    """A number for each group, in the shape that multiplies a kernel of `shape`."""
    outputs = over != "inputs"
    if kernel in _GATES:
        return ops.tile(values, _GATES[kernel]) if outputs else values[:, None]
    if kernel == "depthwise":
        return ops.reshape(values, shape[-2:]) if outputs else values[:, None]
    return values if outputs != (kernel == "transposed") else values[:, None]


def kernel_of(layer, name):
    """Which of `KERNELS` a regularizer of a layer gets.

    Args:
        layer: A Keras layer.
        name: The name of its regularizer, such as `"kernel_regularizer"`.
    """
    kind = type(layer).__name__
    if name == "depthwise_regularizer":
        return "depthwise"
    if "Transpose" in kind:
        return "transposed"
    return {"LSTM": "lstm", "LSTMCell": "lstm", "GRU": "gru", "GRUCell": "gru"}.get(
        kind, "standard"
    )


class OfKernel(Penalty):
    """A penalty that has to know which axes of a kernel are what."""

    def of_layer(self, layer, name):
        kernel = kernel_of(layer, name)
        if kernel == self.kernel or self.kernel != "standard":
            return self
        return type(self)(**{**self.get_config(), **self.strengths, "kernel": kernel})
