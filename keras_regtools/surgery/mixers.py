"""Internal: layers whose every output is a sum over all inputs, and how to make them smaller."""

import math

import keras
import numpy as np
from keras import ops

_CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
_TRANSPOSED = (
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
)
_SEPARABLE = (keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)


def numbers(variable):
    """A copy of a variable, with numpy."""
    return np.array(ops.convert_to_numpy(variable))


def pads(layer, shape):
    """Whether a convolution sees zeros beyond an input of this shape."""
    if layer.padding == "valid":
        return False
    sizes = shape[2:] if layer.data_format == "channels_first" else shape[1:-1]
    windows = zip(sizes, layer.kernel_size, layer.strides, layer.dilation_rate, strict=True)
    for size, width, stride, dilation in windows:
        reach = (width - 1) * dilation
        if reach == 0:
            continue
        if size is None or layer.padding == "causal":
            return True
        if (math.ceil(size / stride) - 1) * stride + reach + 1 > size:
            return True
    return False


def mixer_of(layer, shape):
    """The `Mixer` of a Dense or convolutional layer, or `None` for any other.

    Args:
        layer: A Keras layer.
        shape: The shape of what it gets, with the samples' axis.
    """
    if getattr(layer, "lora_enabled", False) or getattr(layer, "quantization_mode", None):
        return None
    if type(layer) is keras.layers.Dense:
        return Mixer(layer)
    if type(layer) in _CONVOLUTIONS and layer.groups == 1:
        return Mixer(layer, padded=pads(layer, shape))
    if type(layer) in _TRANSPOSED:
        return _Transposed(layer, padded=True)  # its first and last outputs see fewer inputs
    if type(layer) in _SEPARABLE:
        return _Separable(layer, padded=pads(layer, shape))
    return None


class Mixer:
    """The kernel of a layer, as a matrix for each place of its window.

    Args:
        layer: A Keras layer.
        padded: Whether some outputs see zeros in place of inputs, so that a constant input does
            not give a constant.

    Attributes:
        uses: Whether each output depends on each input, of the shape (inputs, outputs).
        carries: Whether one constant input can stand for all others.
    """

    carries = True

    def __init__(self, layer, padded=False):
        self.layer, self.padded = layer, padded
        self._read()

    def _read(self):
        self._taps = self._inputs_first(numbers(self.layer.kernel))
        self._taps = self._taps.reshape(-1, *self._taps.shape[-2:])
        self.uses = (self._taps != 0).any(axis=0)

    @staticmethod
    def _inputs_first(kernel):
        """A kernel of the axes (window…, inputs, outputs)."""
        return kernel

    @property
    def bias(self):
        """The bias, zeros if there is none."""
        if not self.layer.use_bias:
            return np.zeros(self.uses.shape[1])
        return numbers(self.layer.bias).astype("float64")

    def total(self, inputs, constants):
        """What constant inputs add to each output where all of the window sees them.

        Args:
            inputs: Indices of inputs.
            constants: Their values.
        """
        return constants @ self._taps[:, inputs].sum(axis=0, dtype="float64")

    def smaller(self, inputs, outputs, added, carrier):
        """What the layer becomes with some inputs and outputs only.

        Args:
            inputs, outputs: Indices of those that stay.
            added: What removed constant inputs add to each output, of all outputs.
            carrier: `None`, or a pair: the index of the input that stands for removed ones, and how
                often it is each input, of the shape (inputs,).

        Returns:
            `(changes, values)`: of the configuration, and the new weights by name.
        """
        values = self._smaller_kernels(inputs, outputs, carrier)
        changes = {"filters" if hasattr(self.layer, "filters") else "units": len(outputs)}
        if self.layer.use_bias or added.any():
            changes["use_bias"] = True
            values["bias"] = (self.bias + added)[outputs]
        return changes, values

    def _smaller_kernels(self, inputs, outputs, carrier):
        kernel = self._inputs_first(numbers(self.layer.kernel))
        if carrier is not None:
            index, shares = carrier
            others = shares.nonzero()[0]
            kernel[..., index, :] += np.einsum(
                "...io,i->...o", kernel[..., others, :].astype("float64"), shares[others]
            )
        return {"kernel": self._inputs_first(kernel[..., inputs, :][..., outputs])}


class _Transposed(Mixer):
    @staticmethod
    def _inputs_first(kernel):
        return np.swapaxes(kernel, -1, -2)


class _Separable(Mixer):
    """Its depthwise filters differ from input to input, so that none can stand for another."""

    carries = False

    def _read(self):
        depthwise = numbers(self.layer.depthwise_kernel)
        self._depthwise = depthwise.reshape(-1, *depthwise.shape[-2:])
        pointwise = numbers(self.layer.pointwise_kernel)
        self._pointwise = pointwise.reshape(*depthwise.shape[-2:], -1)
        seen = (self._depthwise != 0).any(axis=0)[..., None]
        self.uses = (seen & (self._pointwise != 0)).any(axis=1)

    def total(self, inputs, constants):
        sums = self._depthwise[:, inputs].sum(axis=0, dtype="float64")
        return np.einsum("i,ik,iko->o", constants, sums, self._pointwise[inputs])

    def _smaller_kernels(self, inputs, outputs, carrier):
        depthwise = numbers(self.layer.depthwise_kernel)[..., inputs, :]
        pointwise = self._pointwise[inputs][..., outputs]
        ones = (1,) * (depthwise.ndim - 2)
        pointwise = pointwise.reshape(*ones, -1, len(outputs))
        return {"depthwise_kernel": depthwise, "pointwise_kernel": pointwise}


_COUNTED = (
    *(keras.layers.Dense, *_CONVOLUTIONS, *_TRANSPOSED, *_SEPARABLE),
    *(keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D),
)


def multiplications(layer):
    """Multiplications of a Dense or convolutional kernel for one sample.

    Returns:
        Their number; 0 for a layer without a kernel, `None` for a layer of another kind with one
        and where the shape is not known.
    """
    kernels = [tuple(v.shape) for v in layer.weights if "kernel" in v.name]
    if not kernels:
        return 0
    if type(layer) not in _COUNTED or getattr(layer, "lora_enabled", False):
        return None
    # A transposed convolution puts its kernel at each place of what it gets.
    sizes = (layer.input if type(layer) in _TRANSPOSED else layer.output).shape[1:]
    first = getattr(layer, "data_format", None) == "channels_first"
    places = sizes[1:] if first else sizes[:-1]
    if None in places:
        return None
    return math.prod(places) * sum(math.prod(shape) for shape in kernels)
