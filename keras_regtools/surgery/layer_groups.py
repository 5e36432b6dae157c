"""Which layers are regularized alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras

from keras_regtools.forward import unwrapped
from keras_regtools.surgery.graph import group
from keras_regtools.validation import flag, optional, rate

KINDS = ("conv", "dense")


@dataclasses.dataclass(frozen=True, eq=False)
class LayerGroup:
    """Layers of a model, and how to regularize them, for `regularize(groups=…)`.

    Args:
        layers: Function of a convolutional or dense layer that says whether it belongs here; or
            names of layers.
        penalty: Kernel regularizer, or `None` to leave them as they are.
        dropout: Rate in [0, 1) behind them, or `None`.
        spatial_dropout: Whether dropout behind convolutions drops whole channels.
        batch_norm: Whether to put batch normalization behind those that have none.

    Raises:
        TypeError: `layers` that are neither a function nor names.
        ValueError: something that is no regularizer, or a rate outside [0, 1).

    Example:

    >>> import keras
    >>> from keras_regtools import LayerGroup, regularize, regularizers
    >>> model = keras.Sequential(
    ...     [keras.Input((4,)), keras.layers.Dense(3, name="first"), keras.layers.Dense(2)])
    >>> early = LayerGroup(["first"], regularizers.L2(0.1), dropout=0.5)
    >>> [type(layer).__name__ for layer in regularize(model, groups={"early": early}).layers]
    ['Dense', 'Dropout', 'Dense']
    """

    layers: Any
    penalty: Any = None
    dropout: float | None = None
    spatial_dropout: bool = False
    batch_norm: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", predicate(self.layers))
        object.__setattr__(self, "penalty", checked_penalty("penalty", self.penalty))
        object.__setattr__(self, "dropout", optional(rate)("dropout", self.dropout))
        flag("spatial_dropout", self.spatial_dropout)
        flag("batch_norm", self.batch_norm)


def predicate(layers: Any) -> Callable[[keras.layers.Layer], bool]:
    """A function that says whether a layer is meant, of a function or of names."""
    if isinstance(layers, (list, tuple, set)) and all(isinstance(n, str) for n in layers):
        names = set(layers)
        return lambda layer: layer.name in names
    if not callable(layers):
        raise TypeError(
            "Expected `layers` to be a function of a layer or a list of names. "
            f"Received: layers={layers!r}"
        )
    return layers


def group_of(layer: keras.layers.Layer, predicates: dict[str, Callable[..., Any]]) -> str | None:
    """The name of the group of a layer, `"conv"` or `"dense"` if it is in no other, or `None`.

    Args:
        layer: A layer.
        predicates: Dict from names of groups to functions of a layer.

    Raises:
        ValueError: a layer that is in two groups.
    """
    kind = group(layer)
    if kind is None:
        return None
    found = [name for name, is_in in predicates.items() if is_in(layer) or is_in(unwrapped(layer))]
    if len(found) > 1:
        raise ValueError(
            f"Expected groups that have no layer in common. Received: the layer {layer.name!r} in "
            f"{found}"
        )
    return found[0] if found else kind


def checked_penalty(name, given):
    """A kernel regularizer, from whatever Keras takes for one."""
    try:
        found = given if given is None else keras.regularizers.get(given)
    except Exception:
        found = int  # no regularizer
    if isinstance(found, type) or not (found is None or callable(found)):
        raise ValueError(
            f"Argument `{name}` must be a `keras.Regularizer` or its name, or `None`. "
            f"Received: {name}={given!r}"
        )
    return found
