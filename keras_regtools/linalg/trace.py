"""The trace of a matrix by random products."""

import dataclasses
import math

import numpy as np

from keras_regtools.linalg.random_signs import random_signs


@dataclasses.dataclass(frozen=True)
class Trace:
    """An estimate of a trace, its standard error, and how many random draws it is the mean of."""

    estimate: float
    stderr: float
    draws: int
    converged: bool


def trace(matrix, n, dtype, tolerance, most, sketch, rng, block=5, watch=None):
    """The trace by random products: Hutchinson's estimator on what a sketch leaves over.

    tr A = tr(Q A Qᵀ) + E[gᵀ (I − QᵀQ) A (I − QᵀQ) g], with the rows of Q spanning A S for `sketch`
    random S, and random signs g: Hutch++ ([Meyer et al., 2021](https://arxiv.org/abs/2010.09649)).
    Without a sketch it is Hutchinson's.

    Args:
        matrix, n, dtype: The matrix, its size and the precision of its products.
        tolerance: Stop when the standard error is below tolerance · |estimate|.
        most: The most products.
        sketch: Rows of Q, 0 for none.
        rng: Numpy `Generator`.
        block: Products made together.
        watch: Called with the number of products, the estimate and its standard error.

    Returns:
        `Trace`.
    """
    basis, known, used = _sketch(matrix, n, dtype, min(sketch, n), rng)
    draws, sums, squares = 0, np.zeros(n), np.zeros(n)
    while True:
        g = random_signs(rng, (block, n), dtype)
        entries = (g * _rest(matrix(_rest(g, basis)), basis)).astype("float64")
        draws, used = draws + block, used + block
        sums += np.sum(entries, axis=0)
        squares += np.sum(entries**2, axis=0)
        estimate = known + float(np.sum(sums)) / draws
        # Var gᵀAg = 2 Σ_i Var g_i (Ag)_i, which is far steadier than the variance of a few sums.
        variance = 2 * float(np.sum(squares - sums**2 / draws)) / (draws - 1)
        stderr = math.sqrt(max(variance, 0.0) / draws)
        if watch is not None:
            watch(used, estimate, stderr)
        converged = draws >= FEWEST_DRAWS and stderr <= tolerance * abs(estimate)
        if converged or used + block > most:
            return Trace(estimate, stderr, draws, converged)


FEWEST_DRAWS = 10


def _sketch(matrix, n, dtype, size, rng):
    """Orthonormal rows that span what the matrix does most with, and the trace on them."""
    if size == 0:
        return np.zeros((0, n), dtype), 0.0, 0
    rows = matrix(random_signs(rng, (size, n), dtype))
    basis = np.ascontiguousarray(np.linalg.qr(rows.T)[0].T)
    known = float(np.sum(basis.astype("float64") * matrix(basis)))
    return basis, known, 2 * size


def _rest(rows, basis):
    """What the basis leaves of the rows."""
    return rows - (rows @ basis.T) @ basis
