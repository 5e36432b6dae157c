"""Make a model record what flows through it, and take that out again."""

import keras

from keras_regtools.layers import ActivationStatistics, InstrumentedBatchNormalization
from keras_regtools.regularizers.strength import Penalty
from keras_regtools.surgery.graph import ACTIVATIONS, fused_activation, group
from keras_regtools.surgery.rewrite import copy_of, rewrite


def instrument(model, *, record_every=10):
    """A copy of a model that records what flows through it.

    Every batch normalization becomes an `InstrumentedBatchNormalization`, and every other
    activation gets an `ActivationStatistics` on its input; an activation fused into a layer is
    split out for that. What the model computes does not change, nor do its weight lists; a compiled
    TensorFlow graph may round a tanh otherwise where a recorder stands before it. Layers adapted to
    data (`Discretization`, lookups, `TextVectorization`) are shared with the original.

    Args:
        model: A built Sequential or functional model, models inside it included.
        record_every: Minimum, maximum and constant channels are recorded on every
            `record_every`-th step.

    Returns:
        A new model: weights copied, compile configuration kept, optimizer state not.

    Raises:
        TypeError: not a Keras model.
        ValueError: a model that is not built, a subclassed model, `record_every` below 1, or a
            model with neither batch normalization nor an activation.

    Example:

    >>> import keras
    >>> from keras_regtools import instrument
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "relu")])
    >>> [type(layer).__name__ for layer in instrument(model).layers]
    ['Dense', 'ActivationStatistics', 'Activation']
    """
    instrumented = []

    def replace(layer, graph):
        if type(layer) is keras.layers.BatchNormalization:
            chain = [copy_of(layer, InstrumentedBatchNormalization, record_every=record_every)]
        elif fused_activation(layer) is not None:
            chain = [
                copy_of(layer, activation="linear", **_names_apart(layer, graph)),
                _statistics(layer, graph, record_every, split=True),
                split_activation(layer, graph),
            ]
        elif isinstance(layer, ACTIVATIONS) and not isinstance(
            graph.before(layer), (keras.layers.BatchNormalization, ActivationStatistics)
        ):
            chain = [_statistics(layer, graph, record_every), copy_of(layer)]
        else:
            chain = [copy_of(layer)]
        instrumented.extend(new for new in chain if _records(new))
        return chain

    new = rewrite(model, replace)
    if not instrumented:
        raise ValueError(
            "Expected a model with batch normalization or an activation to instrument. "
            f"Received: the model {model.name!r} with the layers "
            f"{[type(layer).__name__ for layer in model.layers]}"
        )
    return new


def strip(model):
    """A copy of a model without anything of ours, to export: the inverse of `instrument`.

    Instrumented layers become Keras' own, recorders go, activations that `instrument` split out go
    back into their layer, and our regularizers become Keras' with their present strength, but for
    those inside a wrapper such as `TimeDistributed` or `Bidirectional`, which stay ours.

    Args:
        model: A built Sequential or functional model.

    Returns:
        A new model: weights copied, compile configuration kept, optimizer state not.

    Raises:
        TypeError: not a Keras model.
        ValueError: a model that is not built, or a subclassed model.

    Example:

    >>> import keras
    >>> from keras_regtools import instrument, strip
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "relu")])
    >>> [type(layer).__name__ for layer in strip(instrument(model)).layers]
    ['Dense']
    """

    def replace(layer, graph):
        if isinstance(layer, ActivationStatistics):
            return []
        if _split_from(layer, graph) is not None:
            return []
        changes = _plain_penalties(layer)
        if type(layer) is InstrumentedBatchNormalization:
            config = {**layer.get_config(), **changes}
            del config["record_every"]
            return [keras.layers.BatchNormalization.from_config(config)]
        activation = _split_off(layer, graph)
        if activation is not None:
            changes["activation"] = _copied(getattr(activation, "activation", activation))
            if graph.names_outputs and graph.is_output(activation):
                changes["name"] = activation.name
        return [copy_of(layer, **changes)]

    return rewrite(model, replace)


def _statistics(layer, graph, record_every, split=False):
    axis = getattr(layer, "axis", -1)
    if getattr(layer, "data_format", None) == "channels_first":
        axis = 1
    return ActivationStatistics(
        axis if isinstance(axis, int) else -1,
        record_every=record_every,
        split=split,
        name=graph.free_name(f"{layer.name}_statistics"),
        dtype=layer.dtype_policy,
    )


def split_activation(layer, graph):
    """A layer for the activation that is fused into a layer."""
    activation = fused_activation(layer)
    is_layer = isinstance(activation, keras.layers.Layer)
    if graph.names_outputs and graph.is_output(layer):
        name = layer.name
    else:
        name = graph.free_name(activation.name if is_layer else f"{layer.name}_activation")
    if is_layer:
        return copy_of(activation, name=name)
    return keras.layers.Activation(activation, name=name, dtype=layer.dtype_policy)


def _names_apart(layer, graph):
    """Another name for a layer whose own one goes to its activation, as a loss may ask for it."""
    if graph.names_outputs and graph.is_output(layer):
        return {"name": graph.free_name(f"{layer.name}_linear")}
    return {}


def _copied(activation):
    return copy_of(activation) if isinstance(activation, keras.layers.Layer) else activation


def _split_off(layer, graph):
    """The activation that `instrument` split out of the layer, or `None`."""
    recorder = graph.after(layer) if group(layer) else None
    if not (isinstance(recorder, ActivationStatistics) and recorder.split):
        return None
    activation = graph.after(recorder)
    return None if activation.weights else activation  # those with weights stay apart


def _split_from(layer, graph):
    recorder = graph.before(layer)
    owner = graph.before(recorder) if isinstance(recorder, ActivationStatistics) else None
    return owner if owner is not None and _split_off(owner, graph) is layer else None


def _records(layer):
    return isinstance(layer, (ActivationStatistics, InstrumentedBatchNormalization))


def _plain_penalties(layer):
    """Keras' own regularizers in place of ours, as changes to the layer's configuration."""
    found = {key: getattr(layer, key, None) for key in layer.get_config()}
    return {
        key: getattr(keras.regularizers, type(value).__name__)(**value.get_config())
        for key, value in found.items()
        if isinstance(value, Penalty)
    }
