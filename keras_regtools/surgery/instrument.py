"""Make a model record what flows through it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import keras

from keras_regtools.forward import all_layers
from keras_regtools.layers import ActivationStatistics, InstrumentedBatchNormalization
from keras_regtools.layers.recording_spec import RecordingSpec
from keras_regtools.surgery.graph import (
    ACTIVATIONS,
    activation_name,
    channel_axis,
    fused_activation,
    named,
    unwrapped,
)
from keras_regtools.surgery.rewrite import copy_of, rewrite
from keras_regtools.validation import one_of

_KINDS = ("statistics", "batch_normalization")


def instrument(
    model: keras.Model,
    layers: Any = None,
    *,
    record: Any = None,
    record_every: int = 10,
    percentiles: Sequence[float] = (15, 50, 85),
) -> keras.Model:
    """A copy of a model that records what flows through it.

    Every batch normalization becomes an `InstrumentedBatchNormalization`, and every other
    activation gets an `ActivationStatistics` on its input; an activation fused into a layer is
    split out for that. What the model computes does not change, nor do its weight lists; a compiled
    TensorFlow graph may round a tanh otherwise where a recorder stands before it. Layers adapted to
    data (`Discretization`, lookups, `TextVectorization`) are shared with the original.

    With `layers` only those named are recorded, each as it says: `"statistics"` records what the
    layer gives (a batch normalization becomes an instrumented one in place),
    `"batch_normalization"` puts an `InstrumentedBatchNormalization` behind the layer, in front of
    an activation that is fused into it, which changes what the model computes.

    Args:
        model: A built Sequential or functional model, models inside it included.
        layers: `None`, a list of layer names to record, or a dict from names to `"statistics"` or
            `"batch_normalization"`.
        record, record_every, percentiles: What is recorded and how often, as in
            `layers.ActivationStatistics`.

    Returns:
        A new model: weights copied, compile configuration kept, optimizer state not.

    Raises:
        TypeError: not a Keras model.
        ValueError: a model that is not built, a subclassed model, `record_every` below 1,
            percentiles outside (0, 100), an unknown quantity, a layer that is not there, or a model
            with neither batch normalization nor an activation.

    Example:

    >>> import keras
    >>> from keras_regtools import instrument
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "relu", name="hidden")])
    >>> [type(layer).__name__ for layer in instrument(model).layers]
    ['Dense', 'ActivationStatistics', 'Activation']
    >>> [type(layer).__name__
    ...  for layer in instrument(model, {"hidden": "batch_normalization"}).layers]
    ['Dense', 'InstrumentedBatchNormalization', 'Activation']
    """
    chosen = None if layers is None else _chosen(layers)
    options = {"record": record, "record_every": record_every, "percentiles": percentiles}
    RecordingSpec(record, record_every, None, percentiles)  # which says what is wrong with them
    instrumented, met, left_out, closed = [], [], [], []

    def replace(layer, graph):
        met.append(layer.name)
        if chosen is None and _hides_normalization(layer):
            closed.append(layer)
        if chosen is None:
            chain = _recorded(layer, graph, options)
        else:
            chain = _recorded_as(chosen.get(layer.name), layer, graph, options)
        instrumented.extend(new for new in chain if _records(new))
        return chain

    new = rewrite(model, replace, left_out)
    missing = [name for name in chosen or () if name not in met]
    if missing:
        raise ValueError(
            f"Expected `layers` to name layers of the model {model.name!r}, which are {met}. "
            f"Received: {missing}"
        )
    if not instrumented:
        raise ValueError(
            "Expected a model with batch normalization or an activation to instrument. "
            f"Received: the model {model.name!r} with the layers "
            f"{[type(layer).__name__ for layer in model.layers]}"
        )
    if left_out:
        warnings.warn(
            "Recorders need samples and a known number of channels. `instrument` put none at "
            f"{sorted({layer.name for layer in left_out})}.",
            stacklevel=2,
        )
    if closed:
        warnings.warn(
            "`instrument` cannot look into layers with code of their own. It records nothing of "
            f"the batch normalization inside {named(closed)}.",
            stacklevel=2,
        )
    return new


def _hides_normalization(layer):
    if isinstance(layer, (keras.Model, keras.layers.TimeDistributed)):
        return False
    return any(isinstance(x, keras.layers.BatchNormalization) for x in all_layers(layer))


def _chosen(layers):
    names = list(layers) if isinstance(layers, (list, tuple, set, dict)) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError(
            "Argument `layers` must be `None`, a list of layer names or a dict from names to "
            f"{' or '.join(map(repr, _KINDS))}. Received: layers={layers!r}"
        )
    chosen = dict(layers) if isinstance(layers, dict) else dict.fromkeys(names, _KINDS[0])
    for kind in chosen.values():
        one_of("layers", kind, _KINDS)
    return chosen


def _recorded(layer, graph, options):
    """What takes the place of a layer where everything is recorded."""
    if type(unwrapped(layer)) is keras.layers.BatchNormalization:
        return [_instrumented(layer, graph, options)]
    if fused_activation(layer) is not None:
        split = split_activation(layer, graph)
        return [
            copy_of(layer, **LINEAR, **_names_apart(layer, graph)),
            _statistics(layer, graph, options, before=activation_name(split), split=True),
            split,
        ]
    if isinstance(unwrapped(layer), ACTIVATIONS) and not isinstance(
        unwrapped(graph.before(layer)), (keras.layers.BatchNormalization, ActivationStatistics)
    ):
        before = activation_name(layer)
        return [_statistics(layer, graph, options, before=before), copy_of(layer)]
    return [copy_of(layer)]


def _recorded_as(kind, layer, graph, options):
    """What takes the place of a layer that was named, or was not."""
    if kind is None:
        return [copy_of(layer)]
    fused = fused_activation(layer)
    if kind == "statistics":
        if type(unwrapped(layer)) is keras.layers.BatchNormalization:
            return [_instrumented(layer, graph, options)]
        after = None
        if fused is not None:
            after = activation_name(split_activation(layer, graph))
        elif isinstance(unwrapped(layer), ACTIVATIONS):
            after = activation_name(layer)
        apart = _names_apart(layer, graph, "layer")
        name = {"name": layer.name} if apart else {}
        recorder = _statistics(layer, graph, options, after=after, **name)
        return [copy_of(layer, **apart), recorder]
    split = [] if fused is None else [split_activation(layer, graph)]
    apart = _names_apart(layer, graph)
    changes = {**LINEAR, **apart} if split else apart
    takes_name = apart and not split
    following = split[0] if split else graph.after(layer)
    normalization = InstrumentedBatchNormalization(
        channel_axis(layer),
        name=layer.name if takes_name else graph.free_name(f"{layer.name}_batch_norm"),
        dtype=layer.dtype_policy,
        before=activation_name(following),
        **options,
    )
    return [copy_of(layer, **changes), normalization, *split]


def _instrumented(layer, graph, options):
    before = activation_name(graph.after(layer))
    return copy_of(layer, InstrumentedBatchNormalization, before=before, **options)


def _statistics(layer, graph, options, name=None, **more):
    return ActivationStatistics(
        graph.channel_axis(layer),
        name=name or graph.free_name(f"{layer.name}_statistics"),
        dtype=layer.dtype_policy,
        **options,
        **more,
    )


# The layer that an activation is split out of: what penalizes its output follows the activation.
LINEAR = {"activation": "linear", "activity_regularizer": None}


def split_activation(layer, graph):
    """A layer for the activation that is fused into a layer, and for the penalty on its output."""
    activation = fused_activation(layer)
    is_layer = isinstance(activation, keras.layers.Layer)
    if graph.names_outputs and graph.is_output(layer):
        name = layer.name
    else:
        name = graph.free_name(activation.name if is_layer else f"{layer.name}_activation")
    penalty = layer.activity_regularizer
    if is_layer:
        own = {} if penalty is None else {"activity_regularizer": penalty}
        return copy_of(activation, name=name, **own)
    return keras.layers.Activation(
        activation, name=name, dtype=layer.dtype_policy, activity_regularizer=penalty
    )


def _names_apart(layer, graph, suffix="linear"):
    """Another name for a layer whose own one goes to what follows, as a loss may ask for it."""
    if graph.names_outputs and graph.is_output(layer):
        return {"name": graph.free_name(f"{layer.name}_{suffix}")}
    return {}


def _records(layer):
    return isinstance(unwrapped(layer), (ActivationStatistics, InstrumentedBatchNormalization))
