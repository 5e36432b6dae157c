"""Go through the layers of a model: which there are, their names, where their channels lie."""

import keras

from keras_regtools.keras_internals import members


def all_layers(model):
    """Every layer inside a model, at any depth, wrapped ones included, each once and in order."""
    found = {}

    def visit(owner):
        own = owner.layers if isinstance(owner, keras.Model) else []
        for layer in [*own, *members(owner)]:
            if isinstance(layer, keras.layers.Layer) and id(layer) not in found:
                found[id(layer)] = layer
                visit(layer)

    found[id(model)] = model
    visit(model)
    return list(found.values())[1:]


def in_loops(model):
    """The ids of the layers that recurrent layers call once for each time step: their cells."""
    recurrent = [layer for layer in all_layers(model) if isinstance(layer, keras.layers.RNN)]
    return {id(inner) for layer in recurrent for inner in all_layers(layer)}


def names_of(layers):
    """The names of layers, numbered where inner models use one twice: a name is no identity."""
    names, met = [], {}
    for layer in layers:
        met[layer.name] = number = met.get(layer.name, 0) + 1
        names.append(layer.name if number == 1 else f"{layer.name}_{number}")
    return names


def unwrapped(layer):
    """The layer that `TimeDistributed` applies to each step; any other layer itself."""
    return layer.layer if type(layer) is keras.layers.TimeDistributed else layer


def channel_axis(layer):
    """The axis of the channels in what a layer gives, which is that in what it gets."""
    inner = unwrapped(layer)
    axis = getattr(inner, "axis", -1)
    if getattr(inner, "data_format", None) == "channels_first":
        axis = 1
    axis = axis if isinstance(axis, int) else -1
    return axis + 1 if inner is not layer and axis > 0 else axis
