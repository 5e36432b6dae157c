"""Take what is ours out of a model again."""

import warnings

import keras

from keras_regtools.layers import ActivationStatistics, InstrumentedBatchNormalization
from keras_regtools.layers.dropout import VariableRate
from keras_regtools.regularizers import L1, L1L2, L2, Penalty
from keras_regtools.surgery.graph import group, unwrapped
from keras_regtools.surgery.rewrite import copy_of, rewrite


def strip(model: keras.Model) -> keras.Model:
    """A copy of a model without anything of ours, to export: the inverse of `instrument`.

    Instrumented layers become Keras' own, recorders go, activations that `instrument` split out go
    back into their layer, dropout and our regularizers become Keras' with their present rate or
    strength, but for regularizers inside a wrapper such as `TimeDistributed` or `Bidirectional`,
    which stay ours. Virtual batches are given up, and penalties that Keras does not have, with a
    warning; penalties of the user's own stay.

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
        inner = unwrapped(layer)
        changes = _plain_penalties(inner)
        if type(inner) is InstrumentedBatchNormalization:
            own = {"before", "virtual_batch_size", *inner.recorder.spec.config()}
            config = {k: v for k, v in inner.get_config().items() if k not in own}
            plain = keras.layers.BatchNormalization.from_config({**config, **changes})
            wrapped = inner is not layer
            return [keras.layers.TimeDistributed(plain, name=layer.name) if wrapped else plain]
        if isinstance(inner, VariableRate):
            plain = getattr(keras.layers, type(inner).__name__).from_config(inner.get_config())
            wrapped = inner is not layer
            return [keras.layers.TimeDistributed(plain, name=layer.name) if wrapped else plain]
        activation = _split_off(layer, graph)
        if activation is not None:
            changes["activation"] = _copied(getattr(activation, "activation", activation))
            changes["activity_regularizer"] = activation.activity_regularizer
        last = graph.after(layer) if activation is None else activation
        goes = activation is not None or isinstance(last, ActivationStatistics)
        if goes and graph.names_outputs and graph.is_output(last):
            changes["name"] = last.name
        return [copy_of(layer, **changes)]

    return rewrite(model, replace)


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


def _plain_penalties(layer):
    """Keras' own regularizers in place of ours, as changes to the layer's configuration."""
    found = {key: getattr(layer, key, None) for key in layer.get_config()}
    return {
        key: _plain(value)
        for key, value in found.items()
        if isinstance(value, Penalty) and type(value).__module__.startswith("keras_regtools.")
    }


def _plain(penalty):
    if type(penalty) in (L1, L2, L1L2):
        return getattr(keras.regularizers, type(penalty).__name__)(
            **{name: getattr(penalty, name) for name in penalty.strengths}
        )
    warnings.warn(f"Keras has no {type(penalty).__name__}: `strip` leaves it out.", stacklevel=2)
    return None
