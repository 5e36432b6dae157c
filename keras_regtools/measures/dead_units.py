"""Which units of a network are dead or saturated on the data of a surface."""

import math
import weakref

import numpy as np
from keras import ops

from keras_regtools.forward import Watcher, all_layers, channel_axis, watched
from keras_regtools.forward.moments import reduced, reduction_axes
from keras_regtools.layers.recording_spec import saturation_of
from keras_regtools.surgery.graph import (
    Graph,
    activation_name,
    fused_activation,
    group,
    is_graph_model,
)

_watchers = weakref.WeakKeyDictionary()  # by the `batch` of a surface: traced once


def dead_units(surface, params):
    """The share of dead channels and of saturated entries behind each layer with a kernel.

    Args:
        surface: A `LossSurface`; its mode is that of the pass.
        params: The weights.

    Returns:
        Dict from the ids of dense and convolutional layers to `(dead, saturated)`, each NaN where
        the activation behind the layer is of another kind: dead are channels behind a ReLU that
        are zero for all samples and positions, saturated are entries beyond 95 % of the range of a
        bounded one.
    """
    found = _activations(surface.model)
    if not found:
        return {}
    if surface.batch not in _watchers:
        _watchers[surface.batch] = _watcher(surface.batch, found)
    watcher = _watchers[surface.batch]
    fixed, state = surface.batch.state(surface.read)
    highest, totals = {}, {}
    for x, *_ in surface.data.tensors():
        for place, uses in watcher((params, fixed, state), x).items():
            for high, *numbers in uses:
                high = np.array(ops.convert_to_numpy(high))
                highest[place] = np.maximum(highest.get(place, -np.inf), high)
                numbers = [float(ops.convert_to_numpy(n)) for n in numbers]
                totals[place] = np.add(totals.get(place, 0.0), numbers)
    states = {}
    for place, (owner, _, name, _) in enumerate(found):
        if str(place) in highest:
            rectifies = name in ("relu", "relu6")
            dead = float(np.mean(highest[str(place)] <= 0)) if rectifies else math.nan
            bounded = saturation_of(after=name) is not None
            outside, total = totals[str(place)]
            states[id(owner)] = (dead, outside / total if bounded else math.nan)
    return states


def _activations(model):
    """`(layer with a kernel, layer that applies the activation, its name, the channel axis)`."""
    found, owner = [], None
    try:
        graph = Graph(model) if is_graph_model(model) else None
    except NotImplementedError:  # layers that Keras cannot describe
        graph = None
    for layer in all_layers(model):
        in_graph = graph is not None and layer in model.layers
        if group(layer) is not None:
            owner = layer
        elif in_graph:
            owner = _owner(layer, graph) or owner
        fused = fused_activation(layer)
        name = activation_name(layer) if fused is None else getattr(fused, "__name__", None)
        known = name in ("relu", "relu6") or saturation_of(after=name) is not None
        if owner is not None and known:
            axis = graph.channel_axis(layer) if in_graph else channel_axis(layer)
            found.append((owner, layer, name, axis))
    return found


def _owner(layer, graph):
    """The layer with a kernel that feeds a layer, through others that do not branch."""
    while layer is not None and group(layer) is None:
        layer = graph.before(layer)
    return layer


def _watcher(batch, found):
    def calls(note):
        def watching(place, layer, name, axis):
            def see(outputs, *args, **kwargs):
                axes = reduction_axes(len(outputs.shape), axis)
                high = ops.cast(reduced(ops.max, outputs, axes), "float32")
                limits = saturation_of(after=name)
                outside, total = ops.zeros(()), ops.ones(())
                if limits is not None:
                    beyond = ops.logical_or(outputs < limits[0], outputs > limits[1])
                    outside = ops.sum(ops.cast(beyond, "float32"))
                    total = ops.sum(ops.ones_like(beyond, "float32"))
                note(place, high, outside, total)

            return watched(layer, see)

        return [watching(place, *of) for place, (_, *of) in enumerate(found)]

    def forward(params, fixed, state, x, calls):
        batch.call_model(params, fixed, state, x, calls=calls)

    return Watcher(calls, forward)
