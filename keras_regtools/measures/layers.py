"""The weights of a surface by the layer that holds them, from the input to the output."""

import keras


def layers_with_weights(model):
    """The layers that hold the trainable weights, those of inner models in their place."""
    if not isinstance(model, keras.Model):
        return [model] if model.trainable_variables else []
    return [layer for inner in model.layers for layer in layers_with_weights(inner)]


def weights_by_layer(surface):
    """The places in `surface.params` of the weights of each layer.

    Returns:
        List of pairs `(layer, places)`, in the order of `model.layers`; weights that several layers
        share belong to the first of them.
    """
    places = {id(v): i for i, v in enumerate(surface.variables)}
    found = []
    for layer in layers_with_weights(surface.model):
        own = [places.pop(id(v)) for v in layer.trainable_variables if id(v) in places]
        if own:
            found.append((layer, own))
    return found
