"""Which layer feeds which, read from a model's own configuration."""

import keras

from keras_regtools.forward import channel_axis, unwrapped
from keras_regtools.keras_internals import connections
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


_NORMALIZATIONS = (
    keras.layers.BatchNormalization,
    keras.layers.GroupNormalization,
    keras.layers.LayerNormalization,
    keras.layers.Normalization,
    keras.layers.RMSNormalization,
    keras.layers.UnitNormalization,
)
_KEEPING = (  # layers that leave the channels where they are
    ActivationStatistics,
    *ACTIVATIONS,
    keras.layers.Add,
    keras.layers.Average,
    keras.layers.Dropout,
    keras.layers.GaussianDropout,
    keras.layers.GaussianNoise,
    keras.layers.Identity,
    keras.layers.Maximum,
    keras.layers.Multiply,
    keras.layers.Rescaling,
    keras.layers.SpatialDropout1D,
    keras.layers.SpatialDropout2D,
    keras.layers.SpatialDropout3D,
    keras.layers.Subtract,
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
        # A use of a layer is its name and the number of its call.
        if isinstance(model, keras.Sequential):
            uses = [(name, 0) for name in self.layers]
            edges = list(zip(uses, uses[1:], strict=False))
            outputs = uses[-1:]
        else:
            edges, outputs = connections(model)
        self._next_uses = {}
        for source, target in edges:
            self._next_uses.setdefault(source, []).append(target)
        self._next, self._before = {}, {}
        for source, target in dict.fromkeys((a[0], b[0]) for a, b in edges):
            self._next.setdefault(source, []).append(target)
            self._before.setdefault(target, []).append(source)
        self._output_uses, self._outputs = set(outputs), {name for name, _ in outputs}
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

    def feeding(self, layer):
        """The layers that feed this one, `None` among them for operations."""
        return [self.layers.get(name) for name in self._before.get(layer.name, [])]

    def is_output(self, layer):
        """Whether the layer gives an output of the network."""
        return self._gives_output and layer.name in self._outputs

    def leads_to_output(self, layer):
        """Whether an output of the network is made of this layer's without another kernel.

        What pools, reshapes or rescales logits leaves them logits.
        """
        uses = {*self._next_uses, *self._output_uses} if self._gives_output else set()
        waiting, met = [use for use in uses if use[0] == layer.name], set()
        while waiting:
            use = waiting.pop()
            if use in self._output_uses:
                return True
            met.add(use)
            following = [other for other in self._next_uses.get(use, []) if other not in met]
            waiting += [other for other in following if not has_kernel(self.layers.get(other[0]))]
        return False

    def free_name(self, name):
        """`name`, with a number if the model has a layer or was given one of that name already."""
        number, free = 1, name
        while free in self.layers or free in self._given:
            free, number = f"{name}_{number}", number + 1
        self._given.add(free)
        return free

    def channel_axis(self, layer):
        """The axis of the channels in what a layer gives; an activation's is that of its input."""
        met = set()
        while layer is not None and layer.name not in met:
            met.add(layer.name)
            inner = unwrapped(layer)
            if not isinstance(inner, _KEEPING) or isinstance(getattr(inner, "axis", None), int):
                break
            layer = next(iter(self.feeding(layer)), None)
        axis = -1 if layer is None else channel_axis(layer)
        rank = len(output_shape(layer) or ()) if axis > 0 else 0
        return -1 if 0 < rank <= axis + 1 else axis

    def owner(self, layer):
        """A convolutional or dense layer whose block ends with this layer, or `None`."""
        if layer is None:
            return None
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
        while isinstance(unwrapped(following), _IN_A_BLOCK):
            layer, following = following, self.after(following)
        return layer


def named(layers):
    """Layers in words: `'name' (Type), …`, each once."""
    return ", ".join(dict.fromkeys(f"{x.name!r} ({type(x).__name__})" for x in layers))


def output_shape(layer):
    """The shape of what a layer gives, or `None` if it is used several times."""
    try:
        return layer.output.shape
    except AttributeError:
        return None


def has_kernel(layer):
    """Whether a layer mixes channels by weights: not normalizations and activations."""
    if layer is None or isinstance(unwrapped(layer), (*_NORMALIZATIONS, *ACTIVATIONS)):
        return False
    return any(len(v.shape) > 1 for v in layer.weights)


def is_graph_model(model):
    """Whether the model is Sequential or functional, so that its graph is known."""
    if isinstance(model, keras.Sequential):
        return type(model) is keras.Sequential  # another class may train in its own way
    has_ends = getattr(model, "inputs", None) is not None and model.outputs is not None
    return has_ends and "layers" in model.get_config()


def group(layer):
    """`"conv"`, `"dense"` or `None`."""
    inner = unwrapped(layer)
    if inner is not layer and isinstance(getattr(inner, "activation", None), keras.layers.Layer):
        return None  # an activation with weights has others for each step outside
    if isinstance(inner, CONVOLUTIONS):
        return "conv"
    return "dense" if isinstance(inner, DENSE) else None


def fused_activation(layer):
    """The activation inside a convolution or dense layer; `None` if it is linear or separate."""
    activation = unwrapped(layer).activation if group(layer) is not None else None
    return None if activation is keras.activations.linear else activation


def activation_name(layer):
    """The name of the activation that a layer applies; `None` for a layer of another kind."""
    layer = unwrapped(layer)
    if type(layer) is keras.layers.ReLU:
        plain = not layer.negative_slope and not layer.threshold
        return ("relu" if layer.max_value is None else "relu6") if plain else "leaky_relu"
    if isinstance(layer, keras.layers.Activation):
        name = getattr(layer.activation, "__name__", None)
        return None if name == "linear" else name
    return type(layer).__name__.lower() if isinstance(layer, ACTIVATIONS) else None
