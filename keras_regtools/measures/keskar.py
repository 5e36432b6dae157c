"""The sharpness of Keskar et al. (2016): the largest rise of the loss in a box."""

import contextlib
import dataclasses
import math

import numpy as np

from keras_regtools import vectors
from keras_regtools.measures.result import Result
from keras_regtools.validation import positive, positive_integer


@dataclasses.dataclass(frozen=True)
class KeskarSharpness(Result):
    """Result of `keskar_sharpness`.

    Attributes:
        value: φ, in per cent of 1 + loss: a lower bound, since the maximum is inexact.
        loss: The loss at the weights.
        maximum: The largest finite loss found in the box.
        finite: Whether the loss was finite wherever it was evaluated.
        epsilon: The relative size of the box.
        iterations: L-BFGS-B iterations that were made.
        evaluations: Evaluations of the loss and its gradient over the data.
        seed: Seed of the start point.
        mode, penalties: Those of the surface.
    """

    value: float
    loss: float
    maximum: float
    finite: bool
    epsilon: float
    iterations: int
    evaluations: int
    seed: int
    mode: str
    penalties: bool


def keskar_sharpness(surface, *, epsilon=1e-3, subspace=None, iterations=10, seed=0):
    """Keskar's sharpness: how far the loss rises in a small box around the weights, in per cent.

    φ = 100 · (max f(x + y) − f(x)) / (1 + f(x)) over the box |y_i| ≤ ε (|x_i| + 1), from
    [Keskar et al., 2016](https://arxiv.org/abs/1609.04836). The maximum is sought, as there, by a
    few L-BFGS-B iterations; they start at a random interior point of the box, because a stationary
    point is one at which L-BFGS-B stops at once. It works on y_i / (ε (|x_i| + 1)), so that one
    step may cross the box in every direction, and the best point met counts.

    The value depends on the surface's mode: with batch normalization the batch statistics of the
    paper and moving statistics differ by an order of magnitude. In float32 the difference of two
    losses carries rounding of about 300 · eps · f / (1 + f).

    Args:
        surface: A `LossSurface`.
        epsilon: Relative size of the box; 1e-3 and 5e-4 in the paper.
        subspace: `None`, the full space.
        iterations: The most L-BFGS-B iterations; 10 in the paper.
        seed: Seed of the random start.

    Returns:
        A `KeskarSharpness`; `.value` is φ, NaN for a loss of −1 or less, or one that is not
        finite at the weights. If it is not finite elsewhere in the box, `.finite` is false and
        `.value` comes from the largest finite loss that was met.

    Raises:
        ValueError: `epsilon` or `iterations` that is not positive.

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
    if subspace is not None:
        raise NotImplementedError(
            "Expected `subspace=None`: the measure is made in the full space. "
            f"Received: subspace={subspace!r}"
        )
    start = surface.params
    weights = vectors.flatten(start)
    box = epsilon * (np.abs(weights) + 1)
    loss, gradient = surface.value_and_gradient(start)
    rise = _Rise(surface, start, weights, box, loss)
    known = math.isfinite(loss) and bool(np.all(np.isfinite(vectors.flatten(gradient))))
    if known:
        made = _maximize(rise, len(weights), iterations, np.random.default_rng(seed))
        value = 100 * (rise.maximum - loss) / (1 + loss) if loss > -1 else math.nan
    else:
        made, value = 0, math.nan
    return KeskarSharpness(
        value=value,
        loss=loss,
        maximum=rise.maximum,
        finite=rise.finite and known,
        epsilon=epsilon,
        iterations=made,
        evaluations=rise.evaluations + 1,
        seed=seed,
        mode=surface.mode,
        penalties=surface.penalties,
    )


class _Rise:
    """The rise of the loss over its value at the weights, on the box scaled to [-1, 1]."""

    def __init__(self, surface, like, weights, box, loss):
        self.surface, self.like, self.weights, self.box = surface, like, weights, box
        self.loss, self.maximum = loss, loss
        self.scale = None
        self.finite, self.evaluations = True, 0

    def __call__(self, z):
        params = vectors.unflatten(self.weights + self.box * z, self.like)
        loss, gradient = self.surface.value_and_gradient(params)
        self.evaluations += 1
        slope = self.box * vectors.flatten(gradient)
        if not (math.isfinite(loss) and np.all(np.isfinite(slope))):
            self.finite = False
            raise _NotFinite
        self.maximum = max(self.maximum, loss)
        if self.scale is None:
            # The box is tiny beside the loss: stretch the slope so that a step reaches its faces.
            steepest = np.max(np.abs(slope))
            self.scale = _STRETCH / steepest if steepest > 0 else 1.0
        return -self.scale * (loss - self.loss), -self.scale * slope


_STRETCH = 1000.0


class _NotFinite(Exception):
    pass


def _maximize(rise, size, iterations, rng):
    from scipy.optimize import minimize

    made = 0

    def count(*_):
        nonlocal made
        made += 1

    with contextlib.suppress(_NotFinite):
        minimize(
            rise,
            rng.uniform(-1, 1, size),
            jac=True,
            method="L-BFGS-B",
            bounds=[(-1, 1)] * size,
            callback=count,
            options={"maxiter": iterations, "ftol": 0.0, "gtol": 0.0},
        )
    return made
