"""Internal: where channels lie after pooling, reshaping, sums and concatenation."""

import keras
import numpy as np

from keras_regtools.surgery.channels import Flow


def own_axis(layer, flow):
    """Whether a layer takes for channels what the flow does."""
    first = getattr(layer, "data_format", None) == "channels_first"
    return flow.axis == 1 if first else flow.is_last


def spatial(plan, layer, flows, shape):
    """Pooling, cropping, upsampling: each channel by itself, a constant stays one."""
    (flow,) = flows
    if not own_axis(layer, flow):
        return None
    axis = flow.axis if len(shape) == len(flow.shape) else 1
    return Flow(shape, axis, flow.groups, flow.constants)


def padded(plan, layer, flows, shape):
    flow = spatial(plan, layer, flows, shape)
    if flow is not None:
        flow.constants = np.where(flow.constants == 0, 0.0, np.nan)
    return flow


def reduced(plan, operation, flows, shape):
    """The mean or maximum over places, as `keras.ops` has it."""
    (flow,) = flows
    axes = operation.axis if isinstance(operation.axis, (list, tuple)) else [operation.axis]
    if None in axes or plan.numbers.get(plan.use) is None:
        return None
    axes = {axis % len(flow.shape) for axis in axes}
    if flow.axis in axes or 0 in axes:
        return None
    before = 0 if operation.keepdims else sum(axis < flow.axis for axis in axes)
    return Flow(shape, flow.axis - before, flow.groups, flow.constants)


def expanded(plan, operation, flows, shape):
    (flow,) = flows
    new = operation.axis
    if not isinstance(new, int) or new % len(shape) == 0:
        return None
    axis = flow.axis + (new % len(shape) <= flow.axis)
    return Flow(shape, axis, flow.groups, flow.constants)


def transposed(plan, operation, flows, shape):
    (flow,) = flows
    permute = isinstance(operation, keras.layers.Permute)
    order = (0, *operation.dims) if permute else operation.axes
    if order is None or order[0] != 0:
        return None
    axis = list(order).index(flow.axis)
    return Flow(shape, axis, flow.groups, flow.constants)


def repeated(plan, layer, flows, shape):
    (flow,) = flows
    return Flow(shape, len(shape) - 1, flow.groups, flow.constants)


def reshaped(plan, layer, flows, shape):
    (flow,) = flows
    if None in flow.shape[1:] or None in shape[1:]:
        return None

    def moved(channels):
        along = [1] * (len(flow.shape) - 1)
        along[flow.axis - 1] = -1
        full = np.broadcast_to(channels.reshape(along), flow.shape[1:])
        if getattr(layer, "data_format", None) == "channels_first" and full.ndim > 1:
            full = np.moveaxis(full, 0, -1)  # so does `Flatten`
        return full.reshape(shape[1:]).reshape(-1, shape[-1])

    groups, constants = moved(flow.groups), moved(flow.constants)
    if (groups != groups[:1]).any():
        return None
    flat = Flow(shape, len(shape) - 1, groups[0], constants[0])
    if type(layer) is keras.layers.Reshape:
        if id(layer) in plan.rebuilt:  # used twice
            return None

        def rebuilt(stays):
            return {"target_shape": (*shape[1:-1], int(stays(flat.groups).sum()))}, {}

        plan.rebuilt[id(layer)] = rebuilt
    return flat


def merged(plan, layer, flows, shape):
    """Sums and the like: what is added stays or goes together."""
    first = flows[0]
    alike = all(
        len(flow.shape) == len(first.shape)
        and flow.axis == first.axis
        and len(flow.groups) == len(first.groups)
        for flow in flows
    )
    if (
        type(layer).__name__ not in MERGED
        or not alike
        or len(flows) < 2
        or shape[first.axis] != len(first.groups)
    ):
        return None
    for flow in flows[1:]:
        plan.channels.join(first.groups, flow.groups, layer.name)
    constants = np.stack([flow.constants for flow in flows])
    function = MERGED[type(layer).__name__]
    return Flow(shape, first.axis, first.groups, function(constants))


def _product(constants):
    return np.where((constants == 0).any(axis=0), 0.0, constants.prod(axis=0))


MERGED = {
    "Add": lambda c: c.sum(axis=0),
    "Average": lambda c: c.mean(axis=0),
    "Maximum": lambda c: c.max(axis=0),
    "Minimum": lambda c: c.min(axis=0),
    "Multiply": _product,
    "Subtract": lambda c: c[0] - c[1:].sum(axis=0),
}


def concatenated(plan, layer, flows, shape):
    axis = layer.axis if layer.axis >= 0 else len(shape) + layer.axis
    first = flows[0]
    if any(flow.axis != first.axis or len(flow.shape) != len(shape) for flow in flows):
        return None
    if axis == first.axis:
        groups = np.concatenate([flow.groups for flow in flows])
        return Flow(shape, axis, groups, np.concatenate([flow.constants for flow in flows]))
    for flow in flows[1:]:
        plan.channels.join(first.groups, flow.groups, layer.name)
    constants = np.stack([flow.constants for flow in flows])
    same = (constants == constants[:1]).all(axis=0)
    return Flow(shape, first.axis, first.groups, np.where(same, constants[0], np.nan))
