"""Internal: what each kind of layer does with the channels that it gets."""

import keras
import numpy as np

from keras_regtools.layers import (
    ActivationStatistics,
    Dropout,
    InstrumentedBatchNormalization,
    SpatialDropout1D,
    SpatialDropout2D,
    SpatialDropout3D,
)
from keras_regtools.surgery.channel_moves import (
    MERGED,
    concatenated,
    expanded,
    merged,
    own_axis,
    padded,
    reduced,
    repeated,
    reshaped,
    spatial,
    transposed,
)
from keras_regtools.surgery.channels import Flow
from keras_regtools.surgery.elementwise import (
    OPERATIONS,
    is_elementwise,
    is_elementwise_layer,
    through,
)
from keras_regtools.surgery.mixers import mixer_of, numbers, pads


def _mixing(plan, layer, flows, shape):
    (flow,) = flows
    mixer = mixer_of(layer, flow.shape)
    if mixer is None:
        return None
    inputs, outputs = mixer.uses.shape
    if not own_axis(layer, flow):
        plan.channels.keep(flow.groups, f"{layer.name!r} reads another axis")
        kept = plan.channels.new(inputs)
        plan.channels.keep(kept, "")
        flow = Flow(flow.shape, len(flow.shape) - 1, kept, np.full(inputs, np.nan))
    groups = plan.channels.new(outputs)
    varies = np.isnan(flow.constants) | (mixer.padded & (flow.constants != 0))
    fixed = (~varies & (flow.constants != 0)).nonzero()[0]
    constants = mixer.bias + mixer.total(fixed, flow.constants[fixed])
    constants[mixer.uses[varies].any(axis=0)] = np.nan
    plan.channels.read(mixer, flow, groups)
    plan.readings[id(layer)] = plan.channels.readings[-1]
    axis = 1 if getattr(layer, "data_format", None) == "channels_first" else len(shape) - 1
    return _activated(plan, layer, Flow(shape, axis, groups, constants))


def _activated(plan, layer, flow):
    if is_elementwise(layer.activation):
        flow.constants = through(layer.activation, flow.constants, layer.compute_dtype)
    else:
        plan.channels.keep(flow.groups, f"the activation of {layer.name!r} takes all together")
        flow.constants = np.full(len(flow.groups), np.nan)
    return flow


def _depthwise(plan, layer, flows, shape):
    (flow,) = flows
    if not own_axis(layer, flow):
        return None
    kernel = numbers(layer.kernel)
    taps = kernel.reshape(-1, kernel.shape[-2] * kernel.shape[-1])
    given = np.repeat(flow.constants, layer.depth_multiplier)
    varies = np.isnan(given) | (pads(layer, flow.shape) & (given != 0))
    bias = numbers(layer.bias).astype("float64") if layer.use_bias else 0.0
    constants = np.where(varies, 0.0, given) * taps.sum(axis=0, dtype="float64") + bias
    constants[varies & (taps != 0).any(axis=0)] = np.nan
    groups = np.repeat(flow.groups, layer.depth_multiplier)

    def rebuilt(stays):
        values = {"kernel": kernel[..., stays(flow.groups), :]}
        if layer.use_bias:
            values["bias"] = numbers(layer.bias)[stays(groups)]
        return {}, values

    plan.rebuilt[id(layer)] = rebuilt
    return _activated(plan, layer, Flow(shape, flow.axis, groups, constants))


def _normalized(plan, layer, flows, shape):
    (flow,) = flows
    axis = layer.axis if layer.axis >= 0 else len(flow.shape) + layer.axis
    spec = getattr(layer, "recorder", None)
    if axis != flow.axis or (spec is not None and spec.spec.channels is not None):
        return None
    values = {v.name: numbers(v) for v in layer.weights}
    wide = {name: value.astype("float64") for name, value in values.items()}
    factor = wide.get("gamma", 1.0) / np.sqrt(wide["moving_variance"] + layer.epsilon)
    shift = wide.get("beta", 0.0) + np.zeros_like(factor)
    constants = np.where(
        factor == 0, shift, (flow.constants - wide["moving_mean"]) * factor + shift
    )

    def rebuilt(stays):
        return {}, {name: value[stays(flow.groups)] for name, value in values.items()}

    plan.rebuilt[id(layer)] = rebuilt
    return Flow(shape, axis, flow.groups, constants)


def _parametric(plan, layer, flows, shape):
    (flow,) = flows
    alpha = numbers(layer.alpha)  # without the samples' axis
    axis = flow.axis - 1
    by_channel = np.moveaxis(alpha, axis, -1).reshape(-1, alpha.shape[axis])
    same = (by_channel == by_channel[:1]).all(axis=0)
    slopes = np.where(same, by_channel[0], np.nan).astype("float64")
    constants = np.where(flow.constants >= 0, flow.constants, flow.constants * slopes)
    if alpha.shape[axis] > 1:

        def rebuilt(stays):
            return {}, {"alpha": np.take(alpha, stays(flow.groups).nonzero()[0], axis=axis)}

        plan.rebuilt[id(layer)] = rebuilt
    return Flow(shape, flow.axis, flow.groups, constants)


def _elementwise(plan, layer, flows, shape):
    if isinstance(layer, keras.layers.Layer) and not is_elementwise_layer(layer):
        return None
    (flow,) = flows
    dtype = getattr(layer, "compute_dtype", "float32")
    return Flow(shape, flow.axis, flow.groups, through(layer.call, flow.constants, dtype))


def _arithmetic(plan, operation, flows, shape):
    """`x + y`, and `2 * x`: of a channel and a number."""
    if len(flows) > 1:
        return merged(plan, operation, flows, shape)
    (flow,) = flows
    given = plan.numbers.get(plan.use)
    if given is None:
        return None

    def function(x):
        return operation.call(*(x if number is None else number for number in given))

    return Flow(shape, flow.axis, flow.groups, through(function, flow.constants))


def _same(plan, layer, flows, shape):
    """Layers that, when they do not train, change nothing of a constant."""
    (flow,) = flows
    sizes = getattr(layer, "noise_shape", None)
    named = sizes is not None and sizes[flow.axis] not in (None, 1)
    recorder = getattr(layer, "spec", None)
    if named or getattr(recorder, "channels", None) is not None:
        return None
    return Flow(shape, flow.axis, flow.groups, flow.constants)


def _layers(*names):
    return {getattr(keras.layers, name) for name in names if hasattr(keras.layers, name)}


_DIMENSIONS = ("1D", "2D", "3D")
_BY_TYPE = {
    _mixing: _layers(
        "Dense",
        *(f"Conv{n}" for n in _DIMENSIONS),
        *(f"Conv{n}Transpose" for n in _DIMENSIONS),
        *("SeparableConv1D", "SeparableConv2D"),
    ),
    _depthwise: _layers("DepthwiseConv1D", "DepthwiseConv2D"),
    _normalized: {keras.layers.BatchNormalization, InstrumentedBatchNormalization},
    _parametric: _layers("PReLU"),
    _elementwise: _layers("Activation", "ELU", "LeakyReLU", "ReLU", "Rescaling"),
    _same: _layers(
        *("ActivityRegularization", "Dropout", "GaussianDropout", "GaussianNoise", "Identity"),
        *(f"SpatialDropout{n}" for n in _DIMENSIONS),
    )
    | {ActivationStatistics, Dropout, SpatialDropout1D, SpatialDropout2D, SpatialDropout3D},
    spatial: _layers(
        *(f"{kind}Pooling{n}" for kind in ("Average", "Max") for n in _DIMENSIONS),
        *(f"Global{kind}Pooling{n}" for kind in ("Average", "Max") for n in _DIMENSIONS),
        *(f"{kind}{n}" for kind in ("Cropping", "UpSampling") for n in _DIMENSIONS),
    ),
    padded: _layers(*(f"ZeroPadding{n}" for n in _DIMENSIONS)),
    repeated: _layers("RepeatVector"),
    transposed: _layers("Permute"),
    reshaped: _layers("Flatten", "Reshape"),
    merged: _layers(*MERGED),
    concatenated: _layers("Concatenate"),
}
_RULES = {kind: rule for rule, kinds in _BY_TYPE.items() for kind in kinds}


def rule_of(operation):
    """What an operation does with channels: a function, or `None` where that is not known.

    The function takes the plan, the operation, the flows that it gets and the shape of what it
    gives, and returns the `Flow` that it gives, or `None` if it does not know after all.
    """
    if isinstance(operation, keras.layers.Layer):
        return _RULES.get(type(operation))
    if not type(operation).__module__.startswith("keras."):
        return None
    name = type(operation).__name__
    if name in OPERATIONS:
        return _elementwise
    return _BARE.get(name)


_BARE = {
    "Concatenate": concatenated,
    "ExpandDims": expanded,
    "Transpose": transposed,
    **dict.fromkeys(("Max", "Mean", "Min"), reduced),
    **dict.fromkeys(("Add", "Maximum", "Minimum", "Multiply", "Subtract"), _arithmetic),
    **dict.fromkeys(("Divide", "TrueDivide", "Power"), _arithmetic),
}
