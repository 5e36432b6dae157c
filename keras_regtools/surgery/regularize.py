"""Put weight penalties, dropout and batch normalization into a model, by layer group."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import keras

from keras_regtools import layers
from keras_regtools.regularizers import Penalty
from keras_regtools.surgery.graph import (
    channel_axis,
    fused_activation,
    group,
    has_kernel,
    named,
    unwrapped,
)
from keras_regtools.surgery.instrument import LINEAR, split_activation
from keras_regtools.surgery.layer_groups import KINDS, LayerGroup, checked_penalty, group_of
from keras_regtools.surgery.rewrite import copy_of, rewrite
from keras_regtools.validation import flag, rate

_OF_RANK = {
    1: layers.SpatialDropout1D,
    2: layers.SpatialDropout2D,
    3: layers.SpatialDropout3D,
}
_SPATIAL = (
    *_OF_RANK.values(),
    keras.layers.SpatialDropout1D,
    keras.layers.SpatialDropout2D,
    keras.layers.SpatialDropout3D,
)
_KERNELS = ("kernel_regularizer", "depthwise_regularizer", "pointwise_regularizer")


def regularize(
    model: keras.Model,
    *,
    conv: Any = None,
    dense: Any = None,
    conv_dropout: float | None = None,
    dense_dropout: float | None = None,
    spatial_dropout: bool = False,
    batch_norm: bool | str = False,
    groups: Any = None,
) -> keras.Model:
    """A copy of a model with penalties, dropout and batch normalization, convolutional and dense
    layers apart.

    Args:
        model: A built Sequential or functional model, models inside it included.
        conv, dense: Kernel regularizers of the convolutional and of the dense layers: objects
            of ours or of Keras, or `None` to leave them as they are. One object serves all layers
            of its group, so that changing `.l2` changes the group.
        conv_dropout, dense_dropout: Dropout rates in [0, 1) after the activation of each
            layer of the group but output layers; a `Dropout` that already stands there gets the
            new rate, but for stochastic depth (a `noise_shape` of ones, which drops whole
            samples). `None` leaves things as they are. The layers are ours, whose `.rate` can be
            changed during a fit.
        spatial_dropout: Whether dropout behind convolutions drops whole channels, as
            `SpatialDropout2D` does, which
            [Tompson et al., 2015](https://arxiv.org/abs/1411.4280) propose: neighbouring pixels
            say nearly the same. A `Dropout` that stands there becomes a spatial one.
        batch_norm: Whether to put batch normalization after each convolutional and dense layer
            that has none, but output layers; `"conv"` or `"dense"` for one kind only. An
            activation fused into the layer is split out and comes after it.
        groups: Dict from names to `LayerGroup`s, for groups of your own; the other arguments are
            for the layers that are in none of them.

    An output layer is one behind which no other kernel stands: logits stay logits when they are
    pooled, reshaped or rescaled. Layers inside `TimeDistributed` count as others do. Other layers
    with kernels (recurrent ones, attention, blocks with code of their own) are left as they are,
    with a warning that names them.

    Returns:
        A new model: weights copied, compile configuration kept, optimizer state not.

    Raises:
        TypeError: not a Keras model.
        ValueError: a model that is not built, a subclassed model, a rate outside [0, 1), a
            group without layers, or a layer in two groups.

    Example:

    >>> import keras
    >>> from keras_regtools import regularize, regularizers
    >>> model = keras.Sequential(
    ...     [keras.Input((4,)), keras.layers.Dense(3, "relu"), keras.layers.Dense(2)])
    >>> new = regularize(model, dense=regularizers.L2(1e-4), dense_dropout=0.5, batch_norm=True)
    >>> [type(layer).__name__ for layer in new.layers]
    ['Dense', 'BatchNormalization', 'Activation', 'Dropout', 'Dense']
    """
    groups = _checked_groups(groups)
    one_kind = isinstance(batch_norm, str) and batch_norm in KINDS
    batch_norm = batch_norm if one_kind else flag("batch_norm", batch_norm)
    spatial = flag("spatial_dropout", spatial_dropout)
    given = {"conv": (conv, conv_dropout), "dense": (dense, dense_dropout)}
    wanted, asked = dict(groups), set(groups)
    for name, (penalty, value) in given.items():
        if not (penalty is value is None):
            asked.add(name)
        value = None if value is None else rate(f"{name}_dropout", value)
        penalty, normal = checked_penalty(name, penalty), batch_norm in (True, name)
        wanted[name] = LayerGroup((), penalty, value, spatial, normal)
    return regularize_groups(model, wanted, asked)


def regularize_groups(
    model: keras.Model, wanted: dict[str, LayerGroup], asked: Any = ()
) -> keras.Model:
    """`regularize`, with a `LayerGroup` for every group.

    Args:
        model: The model.
        wanted: Dict from names to groups, `"conv"` and `"dense"` among them, which are what is in
            no other.
        asked: Names of groups that the model must have.
    """
    predicates = {name: one.layers for name, one in wanted.items() if name not in KINDS}

    def kind_of(layer):
        return None if layer is None else group_of(layer, predicates)

    seen: set[str] = set()
    skipped: list[Any] = []
    fits: dict[Any, Any] = {}

    def fitting(penalty, layer, key):
        if not isinstance(penalty, Penalty):
            return penalty
        found = penalty.of_layer(layer, key)
        return fits.setdefault((id(penalty), str(found)), found)

    def replace(layer, graph):
        kind = kind_of(layer)
        if kind is None:
            return _replace_other(layer, graph, wanted, kind_of, skipped)
        seen.add(kind)
        changes, one = {}, wanted[kind]
        if one.penalty is not None:
            inner = unwrapped(layer)
            keys = [key for key in _KERNELS if key in inner.get_config()]
            changes = {key: fitting(one.penalty, inner, key) for key in keys}
        new = copy_of(layer, **changes)
        end = graph.end_of_block(layer)
        inner = not graph.leads_to_output(end)
        chain = [new]
        if one.batch_norm and inner and not _has_normalization(layer, graph):
            chain = _with_normalization(layer, new, graph)
        if end is layer and inner:
            chain += _dropout_after(layer, graph, layer, one)
        return chain

    result = rewrite(model, replace)
    for name in wanted:
        if name in asked and name not in seen:
            raise ValueError(
                f"Expected a model with layers of the group {name!r}. Received: the model "
                f"{model.name!r}, whose groups are {sorted(seen)}"
            )
    if skipped:
        warnings.warn(
            "`regularize` acts on convolutional and dense layers, and on dropout behind one group "
            f"of them. It leaves as they are: {named(skipped)}.",
            stacklevel=3,
        )
    return result


def _checked_groups(groups):
    if groups is None:
        return {}
    if not isinstance(groups, dict) or not all(
        isinstance(one, LayerGroup) and isinstance(name, str) and name not in KINDS
        for name, one in groups.items()
    ):
        raise ValueError(
            "Expected `groups` to be a dict from names, other than 'conv' and 'dense', to "
            f"`LayerGroup`s. Received: groups={groups!r}"
        )
    return groups


def _replace_other(layer, graph, wanted, kind_of, skipped):
    """Layers without a kernel: dropout goes behind the last one of a block, or changes there."""
    if _is_dropout(layer):
        owners = [graph.owner(before) for before in graph.feeding(layer)]
        settings = {wanted.get(kind_of(owner)) for owner in owners}
        rates = {None if one is None else one.dropout for one in settings}
        new_rate = rates.pop() if len(rates) == 1 else None
        if rates:  # it stands behind several groups
            skipped.append(layer)
        if new_rate is None:
            return [copy_of(layer)]
        spatial = all(one.spatial_dropout for one in settings)
        return [_changed(layer, new_rate, owners if spatial else [])]
    if has_kernel(layer) and not isinstance(layer, keras.layers.Embedding):
        skipped.append(layer)
    owner = graph.owner(layer)
    chain = [copy_of(layer)]
    if owner is not None and not graph.leads_to_output(layer):
        chain += _dropout_after(layer, graph, owner, wanted[kind_of(owner)])
    return chain


def _is_dropout(layer):
    """Whether a layer is a plain dropout; one that drops whole samples is stochastic depth."""
    if type(layer) in _SPATIAL:
        return True
    if type(layer) not in (keras.layers.Dropout, layers.Dropout):
        return False
    shape = layer.noise_shape
    return shape is None or any(size != 1 for size in shape[1:])


def _changed(layer, rate, owners):
    """A dropout that stands there already, with another rate: ours from now on."""
    kind = getattr(layers, type(layer).__name__)
    config = {"noise_shape": None, **layer.get_config()}
    if type(layer) not in _SPATIAL and config["noise_shape"] is None:
        whole = [_spatial_kind(owner) for owner in owners if owner is not None]
        if whole and None not in whole:
            kind, formats = whole[0]
            config = {"seed": layer.seed, "name": layer.name, "dtype": layer.dtype_policy}
            config |= formats
    own = inspect.signature(kind.__init__).parameters
    if "kwargs" not in own:
        config = {key: value for key, value in config.items() if key in own}
    return kind.from_config({**config, "rate": rate})


def _spatial_kind(owner):
    """The class of dropout that drops whole channels of a convolution, and its settings."""
    kind = _OF_RANK.get(getattr(owner, "rank", None)) if group(owner) == "conv" else None
    if kind is None:  # inside `TimeDistributed` too, where a step is one of the axes
        return None
    first = channel_axis(owner) == 1
    named = {"data_format": "channels_first" if first else "channels_last"}
    return kind, ({} if owner.rank == 1 else named)


def _has_normalization(layer, graph):
    following, end = layer, graph.end_of_block(layer)
    while following is not end:
        following = graph.after(following)
        if isinstance(unwrapped(following), keras.layers.BatchNormalization):
            return True
    return False


def _with_normalization(layer, new, graph):
    name = graph.free_name(f"{layer.name}_batch_norm")
    normalization = keras.layers.BatchNormalization(
        channel_axis(layer), name=name, dtype=layer.dtype_policy, trainable=layer.trainable
    )
    if fused_activation(layer) is None:
        return [new, normalization]
    return [copy_of(new, **LINEAR), normalization, split_activation(layer, graph)]


def _dropout_after(layer, graph, owner, wanted):
    value, spatial = wanted.dropout, wanted.spatial_dropout
    if not value or _is_dropout(graph.after(layer)):
        return []
    name, dtype = graph.free_name(f"{layer.name}_dropout"), layer.dtype_policy
    whole = _spatial_kind(owner) if spatial else None
    if whole is not None:
        kind, formats = whole
        return [kind(value, name=name, dtype=dtype, **formats)]
    return [layers.Dropout(value, name=name, dtype=dtype)]
