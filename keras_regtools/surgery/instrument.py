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
    split out for that. What the model computes does not change, nor do its weight lists.

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
            config = {**_plain_config(layer, keep_penalties=True), "record_every": record_every}
            chain = [InstrumentedBatchNormalization.from_config(config)]
        elif fused_activation(layer) is not None:
            chain = [copy_of(layer, activation="linear"), _statistics(layer, record_every)]
            chain.append(_split_activation(layer))
        elif isinstance(layer, ACTIVATIONS) and not isinstance(
            graph.before(layer), (keras.layers.BatchNormalization, ActivationStatistics)
        ):
            chain = [_statistics(layer, record_every), copy_of(layer)]
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
    back into their layer, and our regularizers become Keras' with their present strength.

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
        config = _plain_config(layer)
        if type(layer) is InstrumentedBatchNormalization:
            del config["record_every"]
            return [keras.layers.BatchNormalization.from_config(config)]
        activation = _split_off(layer, graph)
        if activation is not None:
            config["activation"] = activation.get_config()["activation"]
        return [type(layer).from_config(config)]

    return rewrite(model, replace)


def _statistics(layer, record_every):
    axis = getattr(layer, "axis", -1)
    if getattr(layer, "data_format", None) == "channels_first":
        axis = 1
    return ActivationStatistics(
        axis if isinstance(axis, int) else -1,
        record_every=record_every,
        name=f"{layer.name}_statistics",
        dtype=layer.dtype_policy,
    )


def _split_activation(layer):
    activation = fused_activation(layer)
    if isinstance(activation, keras.layers.Layer):
        activation = copy_of(activation)
    name = f"{layer.name}_activation"
    return keras.layers.Activation(activation, name=name, dtype=layer.dtype_policy)


def _split_off(layer, graph):
    """The activation that `instrument` split out of the layer, or `None`."""
    recorder = graph.after(layer) if group(layer) else None
    activation = graph.after(recorder) if isinstance(recorder, ActivationStatistics) else None
    is_ours = activation is not None and activation.name == f"{layer.name}_activation"
    return activation if is_ours else None


def _split_from(layer, graph):
    recorder = graph.before(layer)
    owner = graph.before(recorder) if isinstance(recorder, ActivationStatistics) else None
    return owner if owner is not None and _split_off(owner, graph) is layer else None


def _records(layer):
    return isinstance(layer, (ActivationStatistics, InstrumentedBatchNormalization))


def _plain_config(layer, keep_penalties=False):
    """The layer's configuration, with our penalties kept or made Keras' own."""
    config = layer.get_config()
    for key in config:
        penalty = getattr(layer, key, None) if key.endswith("_regularizer") else None
        if isinstance(penalty, Penalty):
            plain = getattr(keras.regularizers, type(penalty).__name__)
            config[key] = penalty if keep_penalties else plain(**penalty.get_config())
    return config
