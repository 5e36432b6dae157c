"""Weights as a vector: its length, and other weights of the same structure."""

import dataclasses

import keras
import numpy as np

from keras_regtools import vectors
from keras_regtools.measures.result import Result, origin


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class WeightDistance(Result):
    """Result of `weight_norm` and `weight_distance`.

    Attributes:
        value: The Euclidean length.
        relative: It over the length of the weights that the distance is from; 1 for the norm.
        largest: The largest absolute entry.
        size: The number of weights.
        mode, penalties, samples: Those of the surface; they do not change it.
    """

    value: float
    relative: float
    largest: float
    size: int
    mode: str
    penalties: bool
    samples: int | None


def weights_of(surface, other, name):
    """Other weights, as a list like `surface.params`, and pairs of what else a model holds.

    Args:
        surface: A `LossSurface`.
        other: A model, `get_weights()` of one, or a list like `surface.params`.
        name: Of the argument, for the error.

    Returns:
        `(params, pairs)`, the latter of `(variable, value)` for the variables that the surface is
        not a function of; empty where `other` does not tell.
    """
    if not isinstance(other, (keras.Model, list, tuple)):
        raise TypeError(
            f"Expected `{name}` to be a model or a list of arrays. "
            f"Received: {name}={other!r} (of type {type(other)})"
        )
    weights = other.get_weights() if isinstance(other, keras.Model) else other
    shapes = [tuple(np.shape(w)) for w in weights]
    own = [tuple(v.shape) for v in surface.variables]
    every = [tuple(v.shape) for v in surface.model.weights]
    if shapes == every:
        values = {id(v): w for v, w in zip(surface.model.weights, weights, strict=True)}
        chosen = {id(v) for v in surface.variables}
        others = [(v, values[id(v)]) for v in surface.model.weights if id(v) not in chosen]
        weights = [values[id(v)] for v in surface.variables]
    elif shapes == own:
        others = []
    else:
        raise ValueError(
            f"Expected `{name}` to have the structure of the model {surface.model.name!r}, weights "
            f"of the shapes {every}. Received: shapes {shapes}"
        )
    arrays = (np.array(keras.ops.convert_to_numpy(w)) for w in weights)
    pairs = zip(arrays, surface.variables, strict=True)
    return [keras.ops.convert_to_tensor(w, v.dtype) for w, v in pairs], others


def length(surface, vector, start=None):
    """A `WeightDistance` of a vector, relative to the length of another or its own."""
    norm = vectors.norm(vector)
    reference = norm if start is None else vectors.norm(start)
    return WeightDistance(
        value=norm,
        relative=norm / reference if reference > 0 else float("nan"),
        largest=max(float(np.max(np.abs(keras.ops.convert_to_numpy(t)))) for t in vector),
        size=vectors.size(vector),
        **origin(surface),
    )
