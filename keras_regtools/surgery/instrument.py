"""Make a model record what flows through it, and take that out again."""

import keras

from keras_regtools.layers import ActivationStatistics, InstrumentedBatchNormalization
from keras_regtools.regularizers.strength import Penalty
from keras_regtools.surgery.graph import ACTIVATIONS, activation_name, fused_activation, group
from keras_regtools.surgery.rewrite import copy_of, rewrite
from keras_regtools.validation import one_of

_KINDS = ("statistics", "batch_normalization")


def instrument(model, layers=None, *, record=None, record_every=10, percentiles=(15, 50, 85)):
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
    instrumented, met = [], []

    def replace(layer, graph):
        met.append(layer.name)
        if chosen is None:
            chain = _recorded(layer, graph, options)
        else:
            chain = _recorded_as(chosen.get(layer.name), layer, graph, options)
        instrumented.extend(new for new in chain if _records(new))
        return chain

    new = rewrite(model, replace)
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
    return new


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
    if type(layer) is keras.layers.BatchNormalization:
        return [_instrumented(layer, graph, options)]
    if fused_activation(layer) is not None:
        split = split_activation(layer, graph)
        return [
            copy_of(layer, activation="linear", **_names_apart(layer, graph)),
            _statistics(layer, graph, options, before=activation_name(split), split=True),
            split,
        ]
    if isinstance(layer, ACTIVATIONS) and not isinstance(
        graph.before(layer), (keras.layers.BatchNormalization, ActivationStatistics)
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
        if type(layer) is keras.layers.BatchNormalization:
            return [_instrumented(layer, graph, options)]
        after = None
        if fused is not None:
            after = activation_name(split_activation(layer, graph))
        elif isinstance(layer, ACTIVATIONS):
            after = activation_name(layer)
        apart = _names_apart(layer, graph, "layer")
        name = {"name": layer.name} if apart else {}
        recorder = _statistics(layer, graph, options, after=after, **name)
        return [copy_of(layer, **apart), recorder]
    split = [] if fused is None else [split_activation(layer, graph)]
    apart = _names_apart(layer, graph)
    changes = {"activation": "linear", **apart} if split else apart
    takes_name = apart and not split
    following = split[0] if split else graph.after(layer)
    normalization = InstrumentedBatchNormalization(
        _channel_axis(layer),
        name=layer.name if takes_name else graph.free_name(f"{layer.name}_batch_norm"),
        dtype=layer.dtype_policy,
        before=activation_name(following),
        **options,
    )
    return [copy_of(layer, **changes), normalization, *split]


def _instrumented(layer, graph, options):
    before = activation_name(graph.after(layer))
    return copy_of(layer, InstrumentedBatchNormalization, before=before, **options)


def strip(model):
    """A copy of a model without anything of ours, to export: the inverse of `instrument`.

    Instrumented layers become Keras' own, recorders go, activations that `instrument` split out go
    back into their layer, and our regularizers become Keras' with their present strength, but for
    those inside a wrapper such as `TimeDistributed` or `Bidirectional`, which stay ours. Virtual
    batches are given up: Keras' layer has none.

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
            own = {"before", "virtual_batch_size", *layer.recorder.wanted.config()}
            config = {k: v for k, v in layer.get_config().items() if k not in own}
            return [keras.layers.BatchNormalization.from_config({**config, **changes})]
        activation = _split_off(layer, graph)
        if activation is not None:
            changes["activation"] = _copied(getattr(activation, "activation", activation))
        last = graph.after(layer) if activation is None else activation
        goes = activation is not None or isinstance(last, ActivationStatistics)
        if goes and graph.names_outputs and graph.is_output(last):
            changes["name"] = last.name
        return [copy_of(layer, **changes)]

    return rewrite(model, replace)


def _statistics(layer, graph, options, name=None, **more):
    return ActivationStatistics(
        _channel_axis(layer),
        name=name or graph.free_name(f"{layer.name}_statistics"),
        dtype=layer.dtype_policy,
        **options,
        **more,
    )


def _channel_axis(layer):
    axis = getattr(layer, "axis", -1)
    if getattr(layer, "data_format", None) == "channels_first":
        axis = 1
    return axis if isinstance(axis, int) else -1


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


def _names_apart(layer, graph, suffix="linear"):
    """Another name for a layer whose own one goes to what follows, as a loss may ask for it."""
    if graph.names_outputs and graph.is_output(layer):
        return {"name": graph.free_name(f"{layer.name}_{suffix}")}
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
