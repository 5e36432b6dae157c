"""Which layer feeds which, read from a model's own configuration."""

import keras

from keras_regtools.layers import ActivationStatistics

CONVOLUTIONS = (
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
    keras.layers.SeparableConv1D,
    keras.layers.SeparableConv2D,
)
DENSE = (keras.layers.Dense, keras.layers.EinsumDense)
ACTIVATIONS = (
    keras.layers.Activation,
    keras.layers.ELU,
    keras.layers.LeakyReLU,
    keras.layers.PReLU,
    keras.layers.ReLU,
    keras.layers.Softmax,
)


_IN_A_BLOCK = (keras.layers.BatchNormalization, ActivationStatistics, *ACTIVATIONS)


class Graph:
    """The layers of a Sequential or functional model, who follows whom and who gives the output.

    Args:
        model: A built Sequential or functional model.
        gives_output: Whether the model's output is that of the whole network; false for an inner
            model that something else follows.
    """

    def __init__(self, model, gives_output=True):
        self.layers = {layer.name: layer for layer in model.layers}
        if isinstance(model, keras.Sequential):
            names = list(self.layers)
            edges = list(zip(names, names[1:], strict=False))
            outputs = names[-1:]
        else:
            config = model.get_config()
            edges = [
                (source, layer["name"])
                for layer in config["layers"]
                for source in _sources(layer["inbound_nodes"])
            ]
            outputs = list(_names(config["output_layers"]))
        self._next, self._before = {}, {}
        for source, target in dict.fromkeys(edges):  # a layer used twice follows once
            self._next.setdefault(source, []).append(target)
            self._before.setdefault(target, []).append(source)
        self._outputs = set(outputs)
        self._gives_output = gives_output
        self.names_outputs = not isinstance(model, keras.Sequential)
        self._given = set()

    def after(self, layer):
        """The only layer that follows, or `None` if there are none or several."""
        following = self._next.get(layer.name, [])
        if len(following) != 1 or layer.name in self._outputs:
            return None
        return self.layers.get(following[0])

    def before(self, layer):
        """The only layer that feeds this one, or `None`."""
        feeding = self._before.get(layer.name, [])
        return self.layers.get(feeding[0]) if len(feeding) == 1 else None

    def is_output(self, layer):
        """Whether the layer gives an output of the network."""
        return self._gives_output and layer.name in self._outputs

    def free_name(self, name):
        """`name`, with a number if the model has a layer or was given one of that name already."""
        number, free = 1, name
        while free in self.layers or free in self._given:
            free, number = f"{name}_{number}", number + 1
        self._given.add(free)
        return free

    def owner(self, layer):
        """A convolutional or dense layer whose block ends with this layer, or `None`."""
        return next((x for x in self.layers.values() if self._ends_at(x, layer)), None)

    def _ends_at(self, layer, end):
        return group(layer) is not None and self.end_of_block(layer) is end

    def end_of_block(self, layer):
        """The last of the normalizations and activations that follow the layer one by one."""
        end = self._chain_end(layer)
        groups = {group(x) for x in self.layers.values() if self._chain_end(x) is end}
        return end if len(groups - {None}) < 2 else layer  # one end for both groups is no end

    def _chain_end(self, layer):
        following = self.after(layer)
        while isinstance(following, _IN_A_BLOCK):
            layer, following = following, self.after(following)
        return layer


def is_graph_model(model):
    """Whether the model is Sequential or functional, so that its graph is known."""
    if isinstance(model, keras.Sequential):
        return type(model) is keras.Sequential  # another class may train in its own way
    has_ends = getattr(model, "inputs", None) is not None and model.outputs is not None
    return has_ends and "layers" in model.get_config()


def group(layer):
    """`"conv"`, `"dense"` or `None`."""
    if isinstance(layer, CONVOLUTIONS):
        return "conv"
    return "dense" if isinstance(layer, DENSE) else None


def fused_activation(layer):
    """The activation inside a convolution or dense layer; `None` if it is linear or separate."""
    if group(layer) is None or layer.activation in (None, keras.activations.linear):
        return None
    return layer.activation


def activation_name(layer):
    """The name of the activation that a layer applies; `None` for a layer of another kind."""
    if type(layer) is keras.layers.ReLU:
        plain = not layer.negative_slope and not layer.threshold
        return ("relu" if layer.max_value is None else "relu6") if plain else "leaky_relu"
    if isinstance(layer, keras.layers.Activation):
        name = getattr(layer.activation, "__name__", None)
        return None if name == "linear" else name
    return type(layer).__name__.lower() if isinstance(layer, ACTIVATIONS) else None


def _sources(nodes):
    if isinstance(nodes, dict):
        if nodes.get("class_name") == "__keras_tensor__":
            yield nodes["config"]["keras_history"][0]
        else:
            for key, value in nodes.items():
                if key != "mask":  # which comes from far above
                    yield from _sources(value)
    elif isinstance(nodes, (list, tuple)):
        for value in nodes:
            yield from _sources(value)


def _names(outputs):
    if isinstance(outputs, dict):
        outputs = list(outputs.values())
    if len(outputs) == 3 and isinstance(outputs[0], str):
        yield outputs[0]
    else:
        for value in outputs:
            yield from _names(value)
