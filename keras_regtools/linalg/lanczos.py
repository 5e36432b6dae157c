"""The Lanczos process and the extreme eigenpairs of a symmetric matrix."""

import dataclasses

import numpy as np


class Lanczos:
    """The Lanczos process with full reorthogonalisation: T = Q A Qᵀ, tridiagonal.

    Args:
        start: Vector of `n` entries, not zero.
        rng: Numpy `Generator`, for a new direction where the Krylov space is exhausted.
    """

    def __init__(self, start, rng):
        self.basis = []  # orthonormal rows; the last one is to be multiplied next
        self.basis.append(start / np.linalg.norm(start))
        self._diagonal, self._beside, self._rounding = [], [], []
        self._rng = rng

    @property
    def steps(self):
        """How many products were made."""
        return len(self._diagonal)

    @property
    def complete(self):
        """Whether the basis spans the whole space: then nothing is left out."""
        return self.steps == len(self.basis[0])

    @property
    def next(self):
        """The vector that `advance` needs the product of."""
        return self.basis[self.steps]

    def advance(self, product):
        """Take the product of the matrix with `next`."""
        last = self.next
        rest, along = self._split(product)
        length, scale = float(np.linalg.norm(rest)), float(np.linalg.norm(product))
        self._diagonal.append(float(along[-1]))
        # What rounding puts above the three diagonals of T.
        along[-1] = 0.0
        if len(along) > 1:
            along[-2] -= self._beside[-1]
        self._rounding.append(along)
        if self.complete:
            self._beside.append(0.0)
        elif length > 10 * np.finfo(last.dtype).eps * scale:
            self._beside.append(length)
            self.basis.append(rest / length)
        else:  # an invariant subspace: go on outside of it
            self._beside.append(0.0)
            rest, _ = self._split(self._rng.standard_normal(len(last)).astype(last.dtype))
            self.basis.append(rest / np.linalg.norm(rest))

    def ritz(self):
        """`(values, columns, residuals)`: eigenvalues of T, ascending, its eigenvectors, and
        ‖A x − θ x‖ for each pair, with the rounding of the products in it."""
        from scipy.linalg import eigh_tridiagonal

        values, columns = eigh_tridiagonal(self._diagonal, self._beside[:-1])
        rounding = np.zeros((self.steps, self.steps))
        for step, along in enumerate(self._rounding):
            rounding[: len(along), step] = along
        inside = np.linalg.norm(rounding @ columns, axis=0)
        return values, columns, np.hypot(inside, self._beside[-1] * columns[-1])

    def vectors(self, columns):
        """Ritz vectors, as rows, from eigenvectors of T, as columns."""
        rows = np.zeros((columns.shape[1], len(self.basis[0])), self.basis[0].dtype)
        for row, weights in zip(self.basis, columns, strict=False):
            rows += np.outer(weights, row).astype(rows.dtype)
        return rows

    def _split(self, vector):
        """What the basis leaves of a vector, and its coordinates in the basis."""
        rest, along = np.array(vector), np.zeros(len(self.basis))
        for _ in range(2):  # once is not enough in floating point
            for i, row in enumerate(self.basis):
                part = row @ rest
                rest -= part * row
                along[i] += part
        return rest, along


@dataclasses.dataclass(frozen=True)
class Eigenpairs:
    """Eigenvalues, largest first, the norms of their residuals, and their vectors as rows."""

    values: np.ndarray
    residuals: np.ndarray
    vectors: np.ndarray
    converged: bool


WHICH = {
    "largest": lambda values, k: np.arange(len(values))[-k:],
    "smallest": lambda values, k: np.arange(len(values))[:k],
    "magnitude": lambda values, k: np.sort(np.argsort(np.abs(values))[-k:]),
    "both": lambda values, k: np.unique(np.arange(-k, k) % len(values)),
}


def eigenpairs(matrix, start, k, which, tolerance, most, rng, watch=None):
    """Extreme eigenpairs by `Lanczos`, until every residual is small.

    Args:
        matrix: The matrix.
        start: Vector to start from.
        k: How many; for `"both"` at each end.
        which: A key of `WHICH`.
        tolerance: A pair has converged when ‖A x − θ x‖ ≤ tolerance · |θ|, or · ε^⅔ ‖A‖ where that
            is larger, as in ARPACK.
        most: The most products.
        rng: Numpy `Generator`.
        watch: Called with the number of products and the largest residual relative to the bound.

    Returns:
        `Eigenpairs`.
    """
    process = Lanczos(start, rng)
    wanted = 2 * k if which == "both" else k
    floor = float(np.finfo(start.dtype).eps) ** (2 / 3)
    while True:
        process.advance(matrix(process.next[None])[0])
        values, columns, residuals = process.ritz()
        chosen = WHICH[which](values, min(k, len(values)))
        bounds = tolerance * np.maximum(np.abs(values[chosen]), floor * np.max(np.abs(values)))
        excess = np.max(residuals[chosen] / np.where(bounds > 0, bounds, 1.0))
        converged = process.complete or (len(values) >= wanted and excess <= 1)
        if watch is not None:
            watch(process.steps, excess)
        if converged or process.steps >= most:
            break
    chosen = chosen[::-1]
    return Eigenpairs(
        values[chosen],
        residuals[chosen],
        process.vectors(columns[:, chosen]),
        bool(converged),
    )
