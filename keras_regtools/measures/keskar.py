"""The sharpness of Keskar et al. (2016): the largest rise of the loss in a box."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np
from keras import ops

from keras_regtools import vectors
from keras_regtools.measures.declaration import measure
from keras_regtools.measures.result import SharpnessResult, loss_surface, origin
from keras_regtools.optimize import (
    FullBox,
    GivenColumns,
    Objective,
    RandomColumns,
    Scaled,
    SubspaceBox,
    lbfgsb,
    projected_gradient,
)
from keras_regtools.validation import (
    among,
    at_least,
    flag,
    integer_from,
    one_of,
    positive,
    positive_integer,
)

if TYPE_CHECKING:
    from keras_regtools.surface import LossSurface

SOLVERS = ("auto", "l-bfgs-b", "projected_gradient")


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class KeskarSharpness(SharpnessResult):
    """Result of `keskar_sharpness`.

    Attributes:
        value: φ, in per cent of 1 + loss: a lower bound, since the maximum is inexact. Of several
            subspaces, the mean.
        stderr: Its standard error over the subspaces; `None` for one, and for the full space.
        loss: The loss at the weights.
        maximum: The largest finite loss found in the box.
        finite: Whether the loss was finite wherever it was evaluated.
        epsilon: The relative size of the box.
        subspace: Number of columns; `None` for the full space.
        orthonormal, draws, restarts, seed: As given.
        solver: The one that ran.
        iterations: Iterations that were made, in all searches.
        evaluations: Evaluations of the loss and its gradient over the data.
        mode, penalties, samples: Those of the surface.
    """

    stderr: float | None
    maximum: float
    finite: bool
    epsilon: float
    subspace: int | None
    orthonormal: bool
    draws: int
    restarts: int
    solver: str
    iterations: int
    seed: int


@measure(
    "% of 1 + loss",
    "keskar",
    epsilon=positive,
    iterations=positive_integer,
    draws=positive_integer,
    restarts=at_least(0),
    solver=among(SOLVERS),
    orthonormal=flag,
    seed=at_least(0),
)
def keskar_sharpness(
    surface: LossSurface,
    *,
    epsilon: float = 1e-3,
    subspace: int | None = None,
    orthonormal: bool = False,
    draws: int = 1,
    iterations: int = 10,
    restarts: int = 0,
    solver: str = "auto",
    seed: int = 0,
) -> KeskarSharpness:
    """Keskar's sharpness: how far the loss rises in a small box around the weights, in per cent.

    φ = 100 · (max f(x + A y) − f(x)) / (1 + f(x)) over the box |y_i| ≤ ε (|(A⁺x)_i| + 1), from
    [Keskar et al., 2016](https://arxiv.org/abs/1609.04836), with A = I or, in a subspace, with p
    random columns. The maximum is sought, as there, by a few L-BFGS-B iterations; they start at a
    random interior point of the box, because a stationary point is one at which L-BFGS-B stops at
    once. It works on y_i / (ε (|(A⁺x)_i| + 1)), so that one step may cross the box in every
    direction, and the best point met counts.

    The paper gives neither the law of A nor its scale: entries are N(0, 1), which agrees with the
    size of its numbers, where columns of unit length would not. They are never stored (see
    docs/sharpness.md for what that costs).

    The value depends on the surface's mode: with batch normalization the batch statistics of the
    paper and moving statistics differ by an order of magnitude. In float32 the difference of two
    losses carries rounding of about 300 · eps · f / (1 + f).

    Args:
        surface: A `LossSurface`.
        epsilon: Relative size of the box; 1e-3 and 5e-4 in the paper.
        subspace: `None`, the full space; p, the number of random columns (100 in the paper); or the
            columns, an array `(n, p)`.
        orthonormal: Whether the columns are made orthonormal, which makes the box √n times smaller.
        draws: Number of random subspaces; their mean is the value.
        iterations: The most iterations of each search; 10 in the paper.
        restarts: More searches from other random starts; the best counts.
        solver: `"l-bfgs-b"`; `"projected_gradient"`, which stays on the device and needs no work
            arrays (scipy's are 25 numbers of 8 bytes for each weight; only in the full space); or
            `"auto"`, the latter for more than 50 million weights.
        seed: Seed of the columns and of the random starts.

    Returns:
        A `KeskarSharpness`; `.value` is φ, NaN for a loss of −1 or less, or one that is not
        finite at the weights. If it is not finite elsewhere in the box, `.finite` is false and
        `.value` comes from the largest finite loss that was met.

    Raises:
        ValueError: `epsilon`, `iterations`, `draws` or `subspace` that is not positive, `restarts`
            below zero, a subspace larger than the space, columns that are dependent, an unknown
            solver, several draws without a random subspace, orthonormal columns without any.

    Example:

    >>> import keras, numpy as np
    >>> from keras_regtools import LossSurface
    >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    >>> model.set_weights([np.array([[2.0]])])
    >>> surface = LossSurface(model, np.array([[1.0]]), np.array([0.0]), loss="mse")
    >>> round(keskar_sharpness(surface).value, 3)  # 100 (2.003² − 2²) / (1 + 2²)
    0.24
    """
    epsilon = positive("epsilon", epsilon)
    iterations = positive_integer("iterations", iterations)
    draws = positive_integer("draws", draws)
    restarts = integer_from("restarts", restarts, 0)
    seed = integer_from("seed", seed, 0)
    start = loss_surface(surface).params
    columns = _columns(subspace, start, draws, orthonormal, seed)
    solver = _solver(solver, vectors.size(start), subspace)
    loss, gradient = surface.value_and_gradient(start)
    known = math.isfinite(loss) and math.isfinite(vectors.norm(gradient))
    del gradient
    rng = np.random.default_rng(seed)
    of, searches, made = surface.value_and_gradient, [], 0
    for drawn in columns if known else ():
        if solver == "projected_gradient":
            search = Objective(of, Scaled(start, lambda x: ops.abs(x) + 1), loss)
            for _ in range(restarts + 1):
                z = vectors.scaled(epsilon, vectors.random_uniform(start, rng))
                made += projected_gradient(search, z, epsilon, "linf", iterations)
        else:
            box: Any
            if drawn is None:
                box = FullBox(start, epsilon)
                start = None  # a copy is enough
            else:
                box = SubspaceBox(start, epsilon, drawn, orthonormal)
            search = Objective(of, box, loss)
            for _ in range(restarts + 1):
                made += lbfgsb(search, rng.uniform(-1, 1, box.size), iterations)
        searches.append(search)
    values = [100 * (s.maximum - loss) / (1 + loss) if loss > -1 else math.nan for s in searches]
    return KeskarSharpness(
        value=float(np.mean(values)) if known else math.nan,
        stderr=float(np.std(values, ddof=1) / math.sqrt(draws)) if len(values) > 1 else None,
        loss=loss,
        maximum=max((s.maximum for s in searches), default=loss),
        finite=known and all(s.finite for s in searches),
        epsilon=epsilon,
        subspace=None if columns[0] is None else columns[0].count,
        orthonormal=orthonormal,
        draws=draws,
        restarts=restarts,
        solver=solver,
        iterations=made,
        evaluations=1 + sum(s.evaluations for s in searches),
        seed=seed,
        **origin(surface),
    )


_MOST_FOR_LBFGSB = 50_000_000  # weights; its work arrays are then 10 GB


def _solver(solver, size, subspace):
    solver = one_of("solver", solver, SOLVERS)
    if subspace is not None and solver == "projected_gradient":
        raise ValueError(
            "Expected `solver='l-bfgs-b'` in a subspace, where it needs no memory. "
            f"Received: solver={solver!r}"
        )
    if solver != "auto":
        return solver
    large = subspace is None and size > _MOST_FOR_LBFGSB
    return "projected_gradient" if large else "l-bfgs-b"


def _columns(subspace, params, draws, orthonormal, seed):
    """A matrix for each draw; `None` for the full space."""
    size = vectors.size(params)
    random = subspace is not None and np.ndim(subspace) == 0
    if not random and draws > 1:
        raise ValueError(
            "Expected `subspace` to be a number of random columns where there are several draws. "
            f"Received: draws={draws} and subspace={'an array' if np.ndim(subspace) else None}"
        )
    if subspace is None:
        if orthonormal:
            raise ValueError(
                "Expected `subspace` to be given for `orthonormal=True`. Received: subspace=None"
            )
        return [None]
    if random:
        count = positive_integer("subspace", subspace)
    else:
        given = GivenColumns(_two_axes(subspace, size))
        count = given.count
    if count > size:
        raise ValueError(
            f"Expected `subspace` to be at most the number of weights, {size}. "
            f"Received: subspace={count}"
        )
    if not random:
        return [given]
    double = any("64" in str(p.dtype) for p in params)
    dtype = "float64" if double else "float32"
    return [RandomColumns(size, count, (seed, draw), dtype) for draw in range(draws)]


def _two_axes(columns, size):
    columns = np.asarray(columns)
    if columns.ndim != 2 or len(columns) != size:
        raise ValueError(
            f"Expected `subspace` to be a number, or columns of shape ({size}, p). "
            f"Received: an array of shape {columns.shape}"
        )
    if columns.shape[1] <= size and (
        not np.all(np.isfinite(columns)) or np.linalg.matrix_rank(columns) < columns.shape[1]
    ):
        raise ValueError(
            "Expected the columns of `subspace` to be finite and linearly independent. "
            f"Received: an array of shape {columns.shape} with entries from {columns.min():g} to "
            f"{columns.max():g}"
        )
    return columns
