"""Extreme eigenvalues of the Hessian, each with an error bar, and what lies along them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_regtools import linalg, vectors
from keras_regtools.measures.curvature import MATRICES, Curvature, CurvatureResult, most_products
from keras_regtools.measures.declaration import measure
from keras_regtools.measures.result import frozen
from keras_regtools.validation import among, at_least, positive, positive_integer

if TYPE_CHECKING:
    from keras_regtools.surface import LossSurface


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class HessianEigenvalues(CurvatureResult):
    """Result of `hessian_eigenvalues`.

    Attributes:
        eigenvalues: Array, largest first.
        residuals: Array of ‖H v − λ v‖ with ‖v‖ = 1: an eigenvalue of H lies within that of λ.
        eigenvectors: List of unit vectors, each a list of tensors like the surface's parameters,
            in the order of the eigenvalues; `None` unless asked for.
        converged: Whether every residual came below the tolerance.
        which, matrix, tolerance, seed: As given.
        products: Hessian products that were made.
        mode, penalties, samples: Those of the surface.
    """

    eigenvalues: np.ndarray
    residuals: np.ndarray
    eigenvectors: Any
    converged: bool
    which: str
    tolerance: float

    @property
    def value(self) -> float:
        """The largest, for `"smallest"` the smallest, for `"magnitude"` the one farthest from 0."""
        if self.which == "magnitude":
            return float(self.eigenvalues[np.argmax(np.abs(self.eigenvalues))])
        return float(self.eigenvalues[-1 if self.which == "smallest" else 0])

    def _doubt(self):
        return float(self.residuals[0])

    def scalars(self) -> dict[str, float]:
        """`value`, then `eigenvalue_1`, `residual_1` and so on, and the other numbers."""
        numbers = {"value": self.value}
        for i, pair in enumerate(zip(self.eigenvalues, self.residuals, strict=True), 1):
            numbers[f"eigenvalue_{i}"], numbers[f"residual_{i}"] = map(float, pair)
        return {**numbers, **super().scalars()}


@measure(
    "curvature",
    "eigenvalue",
    k=positive_integer,
    which=among(linalg.WHICH),
    matrix=among(MATRICES),
    tolerance=positive,
    max_products=positive_integer,
    seed=at_least(0),
)
def hessian_eigenvalues(
    surface: LossSurface,
    k: int = 1,
    *,
    which: str = "largest",
    matrix: str = "hessian",
    tolerance: float = 1e-3,
    max_products: int = 200,
    eigenvectors: bool = False,
    seed: int = 0,
    verbose: int = 0,
) -> HessianEigenvalues:
    """The `k` extreme eigenvalues of the Hessian of the loss at the model's weights.

    By the Lanczos process with full reorthogonalisation ([Lanczos, 1950](
    https://doi.org/10.6028/jres.045.026)), which ends when ‖H v − λ v‖ ≤ tolerance · |λ| for every
    pair: each eigenvalue comes with the error that it can have. Largest is the largest algebraic
    one; the one of largest magnitude is another number at a saddle. Of an eigenvalue that occurs
    several times Lanczos may find fewer copies.

    Args:
        surface: A `LossSurface`, of all weights or, with `layers=`, of some.
        k: How many; from 1 to the number of weights.
        which: `"largest"`, `"smallest"`, `"magnitude"`, or `"both"`: `k` at each end.
        matrix: `"hessian"`, or `"gauss_newton"` (see `LossSurface.gnvp`).
        tolerance: The relative residual to stop at.
        max_products: The most Hessian products, each about as dear as two gradients.
        eigenvectors: Whether to return the eigenvectors.
        seed: Seed of the random start.
        verbose: 1 draws a progress bar.

    Returns:
        A `HessianEigenvalues`.

    Raises:
        ValueError: `k` below 1 or above the number of weights (with `"both"`, above half of it), an
            unknown `which` or `matrix`, a tolerance that is not positive, too few products for `k`,
            or a loss that is not finite.

    Example:

    >>> import keras, numpy as np
    >>> from keras_regtools import LossSurface
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
    >>> x = np.array([[3.0, 0.0], [0.0, 1.0]])
    >>> surface = LossSurface(model, x, np.zeros((2, 1)), loss="mse")  # H = xᵀx
    >>> hessian_eigenvalues(surface, k=2).eigenvalues.round(4)
    array([9., 1.])
    """
    curvature = Curvature(surface, matrix, verbose)
    k = _at_most_the_weights(k, curvature.size, which)
    least = 2 * k if which == "both" else k
    most = most_products(max_products, least, "one for each eigenvalue")
    curvature.expect(most)
    rng = np.random.default_rng(seed)
    found = linalg.eigenpairs(
        curvature,
        rng.standard_normal(curvature.size).astype(curvature.dtype),
        k,
        which,
        tolerance,
        most,
        rng,
        lambda products, excess: curvature.watch(products, residual=excess * tolerance),
    )
    vectors_found = [vectors.unflatten(row, curvature.params) for row in found.vectors]
    return HessianEigenvalues(
        eigenvalues=frozen(found.values),
        residuals=frozen(found.residuals),
        eigenvectors=vectors_found if eigenvectors else None,
        converged=found.converged,
        which=which,
        tolerance=tolerance,
        seed=seed,
        **curvature.done(),
    )


def _at_most_the_weights(k, size, which):
    if k * (2 if which == "both" else 1) > size:
        ends = " at each end of the spectrum" if which == "both" else ""
        raise ValueError(
            f"Expected `k` eigenvalues{ends} of a surface of {size} weights. Received: k={k}"
        )
    return k
