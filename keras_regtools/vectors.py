"""Arithmetic on parameter vectors: lists of tensors, one per variable."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

__all__ = [
    "axpy",
    "dot",
    "flatten",
    "norm",
    "random_normal",
    "random_uniform",
    "scaled",
    "size",
    "unflatten",
]


def __dir__():
    return __all__


def dot(a: Sequence[Any], b: Sequence[Any]) -> float:
    """Inner product of two vectors, as a Python float."""
    return math.fsum(_float(ops.sum(_wide(x) * _wide(y))) for x, y in zip(a, b, strict=True))


def norm(a: Sequence[Any]) -> float:
    """Euclidean norm of a vector, as a Python float."""
    square = dot(a, a)
    if 1e-30 < square < 1e30:
        return math.sqrt(square)
    # The squares may be beyond single precision where the entries are not.
    largest = max((_float(ops.max(ops.abs(_wide(x)))) for x in a if size([x])), default=0.0)
    if not 0 < largest < math.inf:
        return largest
    a = [_wide(x) / largest for x in a]
    return largest * math.sqrt(dot(a, a))


def axpy(scale: float, a: Sequence[Any], b: Sequence[Any]) -> list[Any]:
    """`scale * a + b`, a new list."""
    return [x * scale + y for x, y in zip(a, b, strict=True)]


def scaled(scale: float, a: Sequence[Any]) -> list[Any]:
    """`scale * a`, a new list."""
    return [x * scale for x in a]


def size(a: Sequence[Any]) -> int:
    """Number of entries of a vector."""
    return sum(math.prod(x.shape) for x in a)


def flatten(a: Sequence[Any], dtype: Any = "float64") -> np.ndarray:
    """A vector as one numpy array, in order."""
    if not a:
        return np.zeros(0, dtype)
    return np.concatenate([np.asarray(ops.convert_to_numpy(x), dtype).ravel() for x in a])


def unflatten(flat: np.ndarray, like: Sequence[Any]) -> list[Any]:
    """The inverse of `flatten`: tensors with the shapes and dtypes of `like`."""
    expected = size(like)
    if flat.shape != (expected,):
        raise ValueError(
            f"Expected a flat vector of {expected} entries. Received: shape={flat.shape}"
        )
    tensors, start = [], 0
    for x in like:
        stop = start + math.prod(x.shape)
        tensors.append(ops.convert_to_tensor(flat[start:stop].reshape(tuple(x.shape)), x.dtype))
        start = stop
    return tensors


def random_normal(like: Sequence[Any], rng: np.random.Generator) -> list[Any]:
    """Standard normal entries from a numpy `Generator`: the same on every backend."""
    return [ops.convert_to_tensor(rng.standard_normal(tuple(x.shape)), x.dtype) for x in like]


def random_uniform(like: Sequence[Any], rng: np.random.Generator) -> list[Any]:
    """Entries uniform in [-1, 1) from a numpy `Generator`: the same on every backend."""
    return [ops.convert_to_tensor(rng.uniform(-1, 1, tuple(x.shape)), x.dtype) for x in like]


def _wide(x):
    """In single precision at least: sums of half precision lose what they add."""
    return ops.cast(x, keras.backend.result_type(x.dtype, "float32"))


def _float(scalar):
    return float(ops.convert_to_numpy(scalar))
