"""The loss over a plane through the model's weights."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_regtools import vectors
from keras_regtools.landscape.directions import (
    Directions,
    coordinates,
    hessian_directions,
    random_directions,
    refuse_zero,
)
from keras_regtools.landscape.evaluation import Evaluation, positions
from keras_regtools.landscape.grid_cache import fill, fingerprint
from keras_regtools.measures.declaration import surface_of
from keras_regtools.measures.result import Result, frozen, origin
from keras_regtools.measures.weights import weights_of
from keras_regtools.validation import at_least, checked, one_of, path, verbosity

if TYPE_CHECKING:
    import os

    from keras_regtools.surface import LossSurface


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class LossPlane(Result):
    """Result of `loss_plane`.

    Attributes:
        x, y: Arrays, the positions along the two directions; the model is at (0, 0).
        loss, accuracy, test_loss, test_accuracy: Arrays `(len(y), len(x))`; `None` if there are no
            test data or no accuracy.
        trajectory: Array `(points, 2)`, where a training went; `None` without one.
        x_label, y_label: What the positions count.
        batch_norm: How batch normalization was treated; `"none"` if there is none, `"frozen"` if no
            layer of it is trainable.
        evaluations: Passes over training or test data for the points.
        batch_size, mode, penalties, samples: Those of the surface.
    """

    x: np.ndarray
    y: np.ndarray
    loss: np.ndarray
    accuracy: np.ndarray | None = None
    test_loss: np.ndarray | None = None
    test_accuracy: np.ndarray | None = None
    trajectory: np.ndarray | None = None
    x_label: str
    y_label: str
    batch_norm: str
    evaluations: int
    batch_size: int
    mode: str
    penalties: bool
    samples: int | None


@checked(surface=surface_of, file=path, verbose=verbosity, seed=at_least(0))
def loss_plane(
    surface: LossSurface,
    directions: Any = "random",
    *,
    x: Any = None,
    y: Any = None,
    points: int = 51,
    trajectory: Any = None,
    test: Any = None,
    batch_norm: Any = "auto",
    accuracy: bool | None = None,
    file: str | os.PathLike[str] | None = None,
    seed: int = 0,
    verbose: int = 0,
) -> LossPlane:
    """Loss and accuracy over a plane through the model's weights, on training and test data.

    At w + a d + b e for the positions a and b along two directions
    ([Li et al., 2018](https://arxiv.org/abs/1712.09913), with 51 positions in [−1, 1] each).
    Batch normalization is treated as in `loss_line`: each point has statistics of its own.

    Args:
        surface: A `LossSurface`.
        directions: `"random"`, filter-normalised ones; `"hessian"`, the two top eigenvectors; what
            `random_directions`, `hessian_directions` or `principal_directions` made; or two lists
            of tensors or arrays like `surface.params`.
        x, y: The positions along the two, in place of `points` of them in [−1, 1] or, for principal
            directions, as far as the training went and a quarter more.
        points: The number of those, along each direction.
        trajectory: A `callbacks.WeightTrajectory` or a list of lists of arrays like
            `surface.params`, to be drawn where it lies in the plane. Principal directions bring
            their own.
        test, batch_norm, accuracy, verbose: As for `loss_line`.
        file: A `.npz` file to keep the points in while they are computed. If it is there and holds
            a part of the same plane, the rest is computed.
        seed: Seed of random directions.

    Returns:
        A `LossPlane`.

    Raises:
        ValueError: directions of length zero or of another structure or that are parallel, fewer
            than two points, a model whose accuracy cannot be computed where it is wanted, or a file
            that holds something else.

    Example:

    >>> import keras, numpy as np
    >>> from keras_regtools import LossSurface
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
    >>> model.set_weights([np.zeros((2, 1))])
    >>> x = np.array([[2.0, 0.0], [0.0, 1.0]])
    >>> surface = LossSurface(model, x, np.zeros((2, 1)), loss="mse")  # ½ (4 a² + b²)
    >>> pair = [[np.array([[1.0], [0.0]])], [np.array([[0.0], [1.0]])]]
    >>> loss_plane(surface, pair, points=3).loss
    array([[2.5, 0.5, 2.5], [2. , 0. , 2. ], [2.5, 0.5, 2.5]])
    """
    directions = _two(surface, directions, seed)
    first, second = directions.vectors
    went = directions.trajectory
    if trajectory is not None:
        went = coordinates(surface, trajectory, [first, second])
    spans = [(-1.0, 1.0)] * 2
    if went is not None:
        least = 0.0 if directions.trajectory is not None else 1.0
        spans = [_span(went[:, i], least) for i in (0, 1)]
    x, y = positions("x", x, spans[0], points), positions("y", y, spans[1], points)
    measured, start = Evaluation(surface, test, batch_norm, accuracy), surface.params
    here = measured(start)  # a pass over the data, after which their number is known
    settings = {
        "x_label": directions.labels[0],
        "y_label": directions.labels[1],
        "batch_norm": measured.batch_norm,
        "evaluations": len(x) * len(y) * len(measured.surfaces),
        "batch_size": surface.batch_size,
        **origin(surface),
    }
    arrays = {"x": x, "y": y} | ({} if went is None else {"trajectory": went})

    def evaluate(index):
        there = vectors.axpy(float(y[index[0]]), second, start)
        return measured(vectors.axpy(float(x[index[1]]), first, there))

    found = fill(
        measured.names,
        (len(y), len(x)),
        evaluate,
        file,
        {
            "positions": [x.tolist(), y.tolist()],
            "weights": fingerprint(start),
            "directions": fingerprint([*first, *second]),
            "batch_norm": measured.batch_norm,
            "mode": surface.mode,
            "penalties": surface.penalties,
            "quantities": measured.names,
            "data": here,
        },
        {"kind": "plane", **arrays, "settings": json.dumps(settings)},
        verbose,
    )
    return LossPlane(**{k: frozen(v) for k, v in arrays.items()}, **found, **settings)


def _two(surface, directions, seed):
    if isinstance(directions, str):
        if one_of("directions", directions, ("random", "hessian")) == "random":
            return random_directions(surface, 2, seed=seed)
        return hessian_directions(surface, 2, seed=seed)
    if not isinstance(directions, (Directions, list, tuple)):
        raise ValueError(
            "Argument `directions` must be 'random', 'hessian', `Directions` or two directions. "
            f"Received: directions={directions!r}"
        )
    if not isinstance(directions, Directions):
        directions = Directions(list(directions), ["direction 1", "direction 2"])
    if len(directions.vectors) != 2:
        raise ValueError(f"Expected two directions. Received: {len(directions.vectors)}")
    pair = [weights_of(surface, d, "directions")[0] for d in directions.vectors]
    for number, direction in enumerate(pair, 1):
        refuse_zero(direction, f"direction {number}")
    if abs(vectors.dot(*pair)) > (1 - 1e-6) * vectors.norm(pair[0]) * vectors.norm(pair[1]):
        raise ValueError("Expected two directions that span a plane. Received: parallel ones")
    return dataclasses.replace(directions, vectors=pair)


def _span(along, least):
    """Where a training went, with a margin, and at least so far to both sides."""
    low, high = min(along.min(), 0.0), max(along.max(), 0.0)
    margin = 0.25 * (high - low) or 1.0  # of a training that did not move along it
    return min(low - margin, -least), max(high + margin, least)
