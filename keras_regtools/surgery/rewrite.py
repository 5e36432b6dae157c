"""Copy a model, putting a chain of layers in the place of each layer."""

import inspect
import random

import keras
import numpy as np

from keras_regtools.layers import ActivationStatistics
from keras_regtools.regularizers.strength import Penalty
from keras_regtools.surgery.compilation import copy_compilation
from keras_regtools.surgery.graph import (
    ACTIVATIONS,
    Graph,
    is_graph_model,
    output_shape,
    unwrapped,
)
from keras_regtools.validation import keras_model


def rewrite(model, replace, left_out=None, values=None):
    """A copy of a model in which each layer is replaced by a chain of layers.

    Args:
        model: A built Sequential or functional model; models inside it are rewritten too.
        replace: Function `(layer, graph) -> list of new layers`, applied one after the other;
            an empty list removes the layer. The first one of its kind gets the old weights.
        left_out: List to which the recorders are added that cannot record what they would get.
        values: By the id of an old layer, arrays by the names of weights, where the new layer does
            not get the old ones.

    Returns:
        The new model: same names, weights and compile configuration, a new optimizer state.
    """
    keras_model(model)
    state = random.getstate()  # unseeded initializers draw from it
    try:
        left_out = [] if left_out is None else left_out
        return _rewrite(model, replace, True, left_out, [], values or {})
    finally:
        random.setstate(state)


def copy_of(layer, kind=None, **changes):
    """A new layer with the same configuration but for the changes.

    Our penalties are shared with it, and so are functions, which may be the user's own and unknown
    to Keras; a layer used as an activation is copied.
    """
    if isinstance(layer, _ADAPTED):
        return layer  # what it has learned of the data is in no configuration
    if type(layer) is keras.layers.TimeDistributed:
        # What penalizes the output of the layer inside is never called by Keras.
        names = ("name", "activity_regularizer")
        own = {name: changes.pop(name) for name in names if name in changes}
        return wrapped_like(layer, copy_of(layer.layer, kind, **changes), **own)
    try:
        config = layer.get_config()
    except NotImplementedError as error:
        raise _cannot_be_copied(layer) from error
    if isinstance(layer, keras.layers.Lambda):
        own = {"function": layer.function, "arguments": layer.arguments, "mask": layer.mask}
        policy = {"name": layer.name, "dtype": layer.dtype_policy}
        return keras.layers.Lambda(**own, **policy, output_shape=config.get("output_shape"))
    for key in config:
        value = getattr(layer, key, None)
        is_function = inspect.isfunction(value) and key not in changes
        if isinstance(value, Penalty) or is_function:
            config[key] = value
    kind = kind or type(layer)
    if kind.__module__.startswith(("keras.", "keras_regtools.")):
        return kind.from_config({**config, **changes})
    try:
        return kind.from_config({**config, **changes})
    except Exception as error:
        raise _cannot_be_copied(layer) from error


def _cannot_be_copied(layer):
    return ValueError(
        "Expected layers that can be made again from their `get_config`. Received: "
        f"{layer.name!r} ({type(layer).__name__}), which cannot"
    )


def wrapped_like(wrapper, inner, **changes):
    """Another layer applied to each step, as a `TimeDistributed` does."""
    own = {name: getattr(wrapper, name) for name in ("name", "activity_regularizer", "trainable")}
    own |= {"dtype": wrapper.dtype_policy, **changes}
    return keras.layers.TimeDistributed(inner, **own)


def _tied(model):
    """The layers that `TimeDistributed` shares with another place in the model, by their ids."""
    inner = [layer.layer for layer in model.layers if unwrapped(layer) is not layer]
    met = [id(layer) for layer in (*inner, *model.layers)]
    return {id(layer) for layer in inner if met.count(id(layer)) > 1}


_ADAPTED = (
    keras.layers.Discretization,
    keras.layers.IntegerLookup,
    keras.layers.StringLookup,
    keras.layers.TextVectorization,
)


def _rewrite(model, replace, gives_output, left_out, copied, values):
    if not is_graph_model(model):
        raise ValueError(
            "Expected a Sequential or functional model, whose layers are known. Received: the "
            f"model {model.name!r} of the subclassed type {type(model).__name__}. "
            "Put our layers into its `__init__` instead."
        )
    graph = Graph(model, gives_output)
    chains, tied = {}, _tied(model)

    def chain_of(layer):
        if id(layer) not in chains:
            inner = unwrapped(layer)
            if id(inner) in tied and inner is not layer:  # one layer, there and here
                (same,) = chain_of(inner)
                chains[id(layer)] = [wrapped_like(layer, same)]
            elif id(inner) in tied and not isinstance(layer, keras.Model):
                chains[id(layer)] = [copy_of(layer)]
            elif isinstance(layer, keras.Model):
                last = gives_output and graph.leads_to_output(layer)
                chains[id(layer)] = [_rewrite(layer, replace, last, left_out, copied, values)]
            else:
                chains[id(layer)] = replace(layer, graph)
        return chains[id(layer)]

    if isinstance(model, keras.Sequential):
        new = _rewrite_sequential(model, chain_of, left_out)
    else:
        new = _rewrite_functional(model, chain_of, Recorders(graph, left_out))
    copied += _copy_state(model, chains, values)
    copy_compilation(model, new, copied)
    if not model.trainable:
        new.trainable = False
    return new


def _rewrite_sequential(model, chain_of, left_out):
    first = model.get_config()["layers"][0]
    name = first["config"]["name"] if first["class_name"] == "InputLayer" else None
    inputs = _input_like(model.inputs[0], name)
    layers = []
    for layer in model.layers:
        for new in chain_of(layer):
            # An activation gives the shape that it gets.
            if isinstance(new, ActivationStatistics) and not new.can_record(output_shape(layer)):
                left_out.append(new)
            else:
                layers.append(new)
    return keras.Sequential([inputs, *layers], name=model.name, trainable=model.trainable)


class Recorders:
    """The recorders of a functional model: one for each width that a shared layer is used at.

    Args:
        graph: The `Graph` of the model.
        left_out: List to which recorders are added that cannot record what they would get.
    """

    def __init__(self, graph, left_out):
        self._graph, self._left_out, self._by_width = graph, left_out, {}

    def __call__(self, recorder, inputs):
        """What goes through a recorder."""
        if not recorder.can_record(inputs.shape):
            self._left_out.append(recorder)
            return inputs
        by_width = self._by_width.setdefault(id(recorder), {})
        width = inputs.shape[recorder.axis]
        if width not in by_width:
            name = self._graph.free_name(recorder.name) if by_width else recorder.name
            by_width[width] = copy_of(recorder, name=name) if by_width else recorder
        return by_width[width](inputs)


def _rewrite_functional(model, chain_of, recorders):
    by_first = {}

    def clone(layer):
        if not isinstance(layer, keras.layers.Layer):  # a bare operation such as `x + y`
            return type(layer).from_config(layer.get_config())
        chain = chain_of(layer)
        first = chain[0] if chain else keras.layers.Identity(name=layer.name)
        by_first[id(first)] = (first, chain)
        return first

    def call(operation, *args, **kwargs):
        _, chain = by_first.get(id(operation), (operation, [operation]))
        for layer in chain:
            if isinstance(layer, ActivationStatistics):
                args = (recorders(layer, args[0]), *args[1:])
            else:  # the first one stands for the old layer, with its arguments
                args, kwargs = (layer(*args, **kwargs),), {}
        return args[0]

    ends = {id(x.output): x for x in model.layers if isinstance(x, keras.layers.InputLayer)}

    def again(tensor):
        layer = ends.get(id(tensor))
        optional = getattr(layer, "optional", False)
        return _input_like(tensor, getattr(layer, "name", None), optional)

    inputs = keras.tree.map_structure(again, model.input)
    compiled, model.compiled = model.compiled, False  # compiling comes after the weights
    try:
        return keras.models.clone_model(
            model, input_tensors=inputs, clone_function=clone, call_function=call
        )
    finally:
        model.compiled = compiled


def _input_like(tensor, name, optional=False):
    """A new input of the same kind, with the names of the layer and of its tensor."""
    kinds = {"sparse": tensor.sparse, "ragged": tensor.ragged}
    new = keras.KerasTensor(tensor.shape, tensor.dtype, name=tensor.name, **kinds)
    layer = keras.layers.InputLayer(
        input_tensor=new, ragged=tensor.ragged, optional=optional, name=name
    )
    return layer.output


def _copy_state(model, chains, values):
    """Give the new layers the state of the old ones; pairs of the variables."""
    copied = []
    for old in model.layers:
        chain = chains.get(id(old), [])
        heirs = [x for x in chain if isinstance(x, type(old)) or isinstance(old, type(x))]
        if not heirs or isinstance(old, keras.Model):
            continue
        new = heirs[0]
        # An activation with weights may stand behind the layer now, instead of in it.
        split = [x for x in chain if x is not new and isinstance(x, ACTIVATIONS)]
        targets = [variable for layer in (new, *split) for variable in layer.weights]
        given = values.get(id(old))
        if given is None:
            sources = old.weights
        else:  # by name; a bias may be new
            by_name = {variable.name: variable for variable in old.weights}
            for target in targets:
                target.assign(given[target.name])
            targets = [target for target in targets if target.name in by_name]
            sources = [by_name[target.name] for target in targets]
        copied += zip(sources, targets, strict=True)
        for target, source in zip(targets, sources, strict=True):
            if given is None:
                target.assign(np.array(keras.ops.convert_to_numpy(source)))  # never an alias
            if target.trainable != source.trainable:  # a weight frozen by itself
                target.trainable = source.trainable
        for target, source in zip(_seeds(new), _seeds(old), strict=False):
            target.assign(np.array(keras.ops.convert_to_numpy(source)))
        if isinstance(new, keras.layers.Normalization):
            new.finalize_state()
    return copied


def _seeds(layer):
    return [v for v in layer.variables if v.name == "seed_generator_state"]
