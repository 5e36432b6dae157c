"""Copy a model, putting a chain of layers in the place of each layer."""

import inspect
import random

import keras
import numpy as np

from keras_regtools.regularizers.strength import Penalty
from keras_regtools.surgery.graph import ACTIVATIONS, Graph, is_graph_model
from keras_regtools.training import base_optimizers, hand_on
from keras_regtools.validation import keras_model


def rewrite(model, replace):
    """A copy of a model in which each layer is replaced by a chain of layers.

    Args:
        model: A built Sequential or functional model; models inside it are rewritten too.
        replace: Function `(layer, graph) -> list of new layers`, applied one after the other;
            an empty list removes the layer. The first one of its kind gets the old weights.

    Returns:
        The new model: same names, weights and compile configuration, a new optimizer state.
    """
    keras_model(model)
    state = random.getstate()  # unseeded initializers draw from it
    try:
        return _rewrite(model, replace, gives_output=True)
    finally:
        random.setstate(state)


def copy_of(layer, kind=None, **changes):
    """A new layer with the same configuration but for the changes.

    Our penalties are shared with it, and so are functions, which may be the user's own and unknown
    to Keras; a layer used as an activation is copied.
    """
    if isinstance(layer, _ADAPTED):
        return layer  # what it has learned of the data is in no configuration
    config = layer.get_config()
    if isinstance(layer, keras.layers.Lambda):
        own = {"function": layer.function, "arguments": layer.arguments, "mask": layer.mask}
        policy = {"name": layer.name, "dtype": layer.dtype_policy}
        return keras.layers.Lambda(**own, **policy, output_shape=config.get("output_shape"))
    for key in config:
        value = getattr(layer, key, None)
        is_function = inspect.isfunction(value) and key not in changes
        if isinstance(value, Penalty) or is_function:
            config[key] = value
    return (kind or type(layer)).from_config({**config, **changes})


_ADAPTED = (
    keras.layers.Discretization,
    keras.layers.IntegerLookup,
    keras.layers.StringLookup,
    keras.layers.TextVectorization,
)


def _rewrite(model, replace, gives_output):
    if not is_graph_model(model):
        raise ValueError(
            "Expected a Sequential or functional model, whose layers are known. Received: the "
            f"model {model.name!r} of the subclassed type {type(model).__name__}. "
            "Put our layers into its `__init__` instead."
        )
    graph = Graph(model, gives_output)
    chains = {}

    def chain_of(layer):
        if id(layer) not in chains:
            if isinstance(layer, keras.Model):
                last = gives_output and graph.is_output(layer)
                chains[id(layer)] = [_rewrite(layer, replace, gives_output=last)]
            else:
                chains[id(layer)] = replace(layer, graph)
        return chains[id(layer)]

    if isinstance(model, keras.Sequential):
        new = _rewrite_sequential(model, chain_of)
    else:
        new = _rewrite_functional(model, chain_of)
    _copy_state(model, chains)
    copy_compilation(model, new)
    if not model.trainable:
        new.trainable = False
    return new


def _rewrite_sequential(model, chain_of):
    first = model.get_config()["layers"][0]
    if first["class_name"] == "InputLayer":
        inputs = keras.layers.InputLayer.from_config(first["config"])
    else:
        inputs = keras.Input(batch_shape=model.input_shape, dtype=model.inputs[0].dtype)
    layers = [new for layer in model.layers for new in chain_of(layer)]
    return keras.Sequential([inputs, *layers], name=model.name, trainable=model.trainable)


def _rewrite_functional(model, chain_of):
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
        if not chain:
            return args[0]
        outputs = chain[0](*args, **kwargs)
        for layer in chain[1:]:
            outputs = layer(outputs)
        return outputs

    compiled, model.compiled = model.compiled, False  # compiling comes after the weights
    try:
        return keras.models.clone_model(model, clone_function=clone, call_function=call)
    finally:
        model.compiled = compiled


def _copy_state(model, chains):
    for old in model.layers:
        chain = chains.get(id(old), [])
        heirs = [x for x in chain if isinstance(x, type(old)) or isinstance(old, type(x))]
        if not heirs or isinstance(old, keras.Model):
            continue
        new = heirs[0]
        # An activation with weights may stand behind the layer now, instead of in it.
        split = [x for x in chain if x is not new and isinstance(x, ACTIVATIONS)]
        targets = [variable for layer in (new, *split) for variable in layer.weights]
        for target, source in zip(targets, old.weights, strict=True):
            target.assign(np.array(keras.ops.convert_to_numpy(source)))  # never an alias
        for target, source in zip(_seeds(new), _seeds(old), strict=False):
            target.assign(np.array(keras.ops.convert_to_numpy(source)))
        if isinstance(new, keras.layers.Normalization):
            new.finalize_state()


def _seeds(layer):
    return [v for v in layer.variables if v.name == "seed_generator_state"]


def copy_compilation(model, new, **changes):
    """Compile `new` as `model` is, but for the changes to the configuration."""
    if not model.compiled:
        return
    optimizer = keras.optimizers.deserialize(keras.optimizers.serialize(model.optimizer))
    given = _compile_arguments(model)
    metrics = {
        name: keras.tree.map_structure(_fresh, given[name])
        for name in ("metrics", "weighted_metrics")
    }
    new.compile(**{**given, "optimizer": optimizer, **metrics, **changes})
    new.optimizer.build(new.trainable_variables)
    for old, copy in zip(*map(base_optimizers, (model.optimizer, new.optimizer)), strict=False):
        hand_on(old, copy)


def _compile_arguments(model):
    """The arguments of `compile` as they were given: the user's own functions need no names."""
    kept = (v.config for v in vars(model).values() if type(v).__name__ == "SerializableDict")
    return next(arguments for arguments in kept if "weighted_metrics" in arguments)


def _fresh(metric):
    """A metric of the same kind that has seen nothing."""
    if isinstance(metric, keras.metrics.Metric):
        return type(metric).from_config(metric.get_config())
    return metric
