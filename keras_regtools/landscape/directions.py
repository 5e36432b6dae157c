"""Directions in the space of weights: random and filter-normalised, of curvature, of a training."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from keras import ops

from keras_regtools import vectors
from keras_regtools.measures import hessian_eigenvalues
from keras_regtools.validation import positive_integer

if TYPE_CHECKING:
    from keras_regtools.surface import LossSurface


@dataclasses.dataclass(frozen=True, eq=False)
class Directions:
    """Directions, and what to write on their axes.

    Attributes:
        vectors: List of vectors, each a list of tensors like the surface's parameters.
        labels: List of strings.
        trajectory: Array `(points, directions)`, the coordinates of the weights that a training
            went through, for `principal_directions`; `None` otherwise.
    """

    vectors: list
    labels: list
    trajectory: np.ndarray | None = None


def random_directions(
    surface: LossSurface, k: int = 2, *, normalize: str = "filter", seed: int = 0
) -> Directions:
    """Random directions with entries N(0, 1), each filter as long as that of the weights.

    d_ij ← d_ij ‖w_ij‖ / ‖d_ij‖ for each filter j of a kernel (the last axis of a Keras kernel),
    zero for whatever has one axis, biases and batch normalization (the kernels of transposed and
    depthwise convolutions have other things on their last axis; they are taken as they are):
    [Li et al., 2018](https://arxiv.org/abs/1712.09913). So a step of 1 moves each filter by its own
    length, whatever its scale.

    Args:
        surface: A `LossSurface`.
        k: How many.
        normalize: `"filter"`; `"layer"`, each variable as long as its weights, biases included; or
            `None`.
        seed: Seed of the entries.

    Returns:
        `Directions`.

    Raises:
        ValueError: `k` below 1, an unknown `normalize`, or no weights to follow (all zero, or
            without a kernel).

    Example:

    >>> import keras, numpy as np
    >>> from keras_regtools import LossSurface
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
    >>> model.set_weights([np.array([[3.0], [4.0]])])
    >>> surface = LossSurface(model, np.ones((1, 2)), np.ones(1), loss="mse")
    >>> ((direction,),) = random_directions(surface, k=1).vectors
    >>> round(float(np.linalg.norm(direction)), 4)
    5.0
    """
    if normalize not in _AXES:
        listed = ", ".join(map(repr, _AXES))
        raise ValueError(
            f"Argument `normalize` must be one of {listed}. Received: normalize={normalize!r}"
        )
    rng, params = np.random.default_rng(seed), surface.params
    found = []
    for _ in range(positive_integer("k", k)):
        direction = [
            _as_long(ops.convert_to_numpy(d), ops.convert_to_numpy(w), normalize)
            for d, w in zip(vectors.random_normal(params, rng), params, strict=True)
        ]
        found.append(
            [ops.convert_to_tensor(d, w.dtype) for d, w in zip(direction, params, strict=True)]
        )
        refuse_zero(found[-1], "random directions as long as the weights")
    kind = {"filter": "filter-normalised ", "layer": "layer-normalised ", None: ""}[normalize]
    return Directions(found, [f"{kind}random direction {i}" for i in range(1, k + 1)])


_AXES = ("filter", "layer", None)


def _as_long(d, w, normalize):
    if normalize is None:
        return d
    if normalize == "filter" and w.ndim < 2:
        return np.zeros_like(d)
    axes = tuple(range(w.ndim - 1)) if normalize == "filter" else None
    lengths = [np.sqrt(np.sum(np.square(a, dtype="float64"), axes)) for a in (w, d)]
    return d * (lengths[0] / np.maximum(lengths[1], 1e-30)).astype(d.dtype)


def hessian_directions(surface: LossSurface, k: int = 2, **settings: Any) -> Directions:
    """The eigenvectors of the `k` largest eigenvalues of the Hessian, of length 1.

    Args:
        surface: A `LossSurface`.
        k: How many.
        **settings: Those of `measures.hessian_eigenvalues`.

    Returns:
        `Directions`; the labels tell the eigenvalues, with the error of those that are off by more
        than 5 %.

    Raises:
        ValueError: as `measures.hessian_eigenvalues`.

    Example:

    >>> import keras, numpy as np
    >>> from keras_regtools import LossSurface
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
    >>> x = np.array([[3.0, 0.0], [0.0, 1.0]])
    >>> hessian_directions(LossSurface(model, x, np.zeros((2, 1)), loss="mse")).labels
    ['eigenvector 1 (λ = 9)', 'eigenvector 2 (λ = 1)']
    """
    found = hessian_eigenvalues(surface, k, eigenvectors=True, **{"tolerance": 1e-2, **settings})
    labels = []
    for i, (value, residual) in enumerate(zip(found.eigenvalues, found.residuals, strict=True), 1):
        doubt = "" if residual <= 0.05 * abs(value) else f" ± {residual:.2g}"
        labels.append(f"eigenvector {i} (λ = {value:.4g}{doubt})")
    return Directions(found.eigenvectors, labels)


def principal_directions(surface: LossSurface, trajectory: Any, k: int = 2) -> Directions:
    """The directions in which a training moved the weights most, of length 1, at its end.

    The principal components of w_t − w, with w the weights where the surface is: those to which the
    training led ([Li et al., 2018](https://arxiv.org/abs/1712.09913)).

    Args:
        surface: A `LossSurface` of all weights.
        trajectory: A `callbacks.WeightTrajectory`, or a list of lists of arrays like
            `surface.params`.
        k: How many.

    Returns:
        `Directions` with the trajectory's coordinates; the labels tell the share of the squared
        movement that lies along each.

    Raises:
        ValueError: weights of another structure, or fewer independent movements than `k`.

    Example:

    >>> import keras, numpy as np
    >>> from keras_regtools import LossSurface
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
    >>> model.set_weights([np.zeros((2, 1))])
    >>> surface = LossSurface(model, np.ones((1, 2)), np.ones(1), loss="mse")
    >>> went = [[np.array([[4.0], [0.0]])], [np.array([[2.0], [0.0]])], [np.zeros((2, 1))]]
    >>> np.abs(principal_directions(surface, went, k=1).trajectory).ravel()
    array([4., 2., 0.])
    """
    k, params = positive_integer("k", k), surface.params
    moves = _moves(surface, trajectory, params)
    # In double precision, or the rounding of the longest moves would hide the second direction.
    gram = sum(rows @ rows.T for rows in _rows(moves))
    values, coefficients = np.linalg.eigh(gram)
    values, coefficients = values[::-1], coefficients[:, ::-1]
    real = int(np.sum(values > _rounding(moves, params)))
    if real < k:
        raise ValueError(
            f"Expected a trajectory that moved in at least {k} independent "
            f"direction{'s' if k > 1 else ''}. Received: {len(moves)} points, in {real}"
        )
    found, labels = [], []
    for i in range(k):
        scale = coefficients[:, i] / np.sqrt(values[i])
        direction = vectors.scaled(float(scale[0]), moves[0])
        for move, c in zip(moves[1:], scale[1:], strict=True):
            direction = vectors.axpy(float(c), move, direction)
        found.append(direction)
        share = 100 * values[i] / np.sum(values)
        labels.append(f"principal direction {i + 1} ({share:.0f} % of the movement)")
    return Directions(found, labels, coefficients[:, :k] * np.sqrt(values[:k]))


def coordinates(surface, trajectory, directions):
    """Where a trajectory lies in the span of directions, by least squares.

    Returns:
        Array `(points, directions)`.
    """
    moves = _moves(surface, trajectory, surface.params)
    gram = np.array([[vectors.dot(a, b) for b in directions] for a in directions])
    along = np.array([[vectors.dot(d, move) for d in directions] for move in moves])
    return np.linalg.solve(gram, along.T).T


def _rows(moves):
    """For each variable an array `(points, entries)`."""
    for parts in zip(*moves, strict=True):
        yield np.stack([ops.convert_to_numpy(part).ravel().astype("float64") for part in parts])


def _rounding(moves, params):
    """What the rounding of the weights makes of their squared movement."""
    eps = max(np.finfo(keras.backend.standardize_dtype(p.dtype)).eps for p in params)
    lengths = vectors.norm(params) ** 2 + max(vectors.norm(move) for move in moves) ** 2
    return 4 * len(moves) * eps**2 * lengths


def _moves(surface, trajectory, params):
    points = getattr(trajectory, "weights", trajectory)
    if not isinstance(points, (list, tuple)) or not all(
        isinstance(point, (list, tuple)) for point in points
    ):
        raise ValueError(
            "Argument `trajectory` must be a `WeightTrajectory` or a list of lists of arrays. "
            f"Received: trajectory={trajectory!r}"
        )
    if len(points) == 0:
        raise ValueError(
            "Expected a trajectory of at least one point. Received: one that holds none; "
            "`callbacks.WeightTrajectory` records it during a fit"
        )
    shapes = [tuple(p.shape) for p in params]
    moves = []
    for point in points:
        if [tuple(np.shape(w)) for w in point] != shapes:
            raise ValueError(
                f"Expected a trajectory of weights of the shapes {shapes}. "
                f"Received: shapes {[tuple(np.shape(w)) for w in point]}"
            )
        pairs = zip(point, params, strict=True)
        moves.append([ops.convert_to_tensor(np.asarray(w), p.dtype) - p for w, p in pairs])
    return moves


def refuse_zero(direction, what):
    """Raise for a direction of length zero, or of none."""
    length = vectors.norm(direction)
    if not 0 < length < float("inf"):
        raise ValueError(
            f"Expected a direction that is not zero. Received: {what}, of length {length:g}"
        )
