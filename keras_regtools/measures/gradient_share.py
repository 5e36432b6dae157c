"""How much of the gradient lies in the top eigenvectors of the Hessian."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from keras_regtools import vectors
from keras_regtools.measures.curvature import MATRICES, CurvatureResult
from keras_regtools.measures.declaration import measure
from keras_regtools.measures.eigenvalues import hessian_eigenvalues
from keras_regtools.measures.result import frozen
from keras_regtools.validation import among, at_least, positive, positive_integer

if TYPE_CHECKING:
    from keras_regtools.surface import LossSurface


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class GradientShare(CurvatureResult):
    """Result of `gradient_share`.

    Attributes:
        value: Σ ⟨g, v⟩² / ‖g‖² over the top eigenvectors v: in [0, 1]. NaN for a gradient of zero.
        shares: Array, the part of each eigenvector.
        eigenvalues, residuals: Arrays, as in `HessianEigenvalues`.
        gradient_norm: ‖g‖.
        converged, matrix, seed, products, mode, penalties, samples: As in `HessianEigenvalues`.
    """

    value: float
    shares: np.ndarray
    eigenvalues: np.ndarray
    residuals: np.ndarray
    gradient_norm: float
    converged: bool


@measure(
    "share",
    k=positive_integer,
    matrix=among(MATRICES),
    tolerance=positive,
    max_products=positive_integer,
    seed=at_least(0),
)
def gradient_share(
    surface: LossSurface,
    k: int = 10,
    *,
    matrix: str = "hessian",
    tolerance: float = 1e-2,
    max_products: int = 200,
    seed: int = 0,
    verbose: int = 0,
) -> GradientShare:
    """How much of the gradient lies in the space of the `k` top eigenvectors of the Hessian.

    ‖P g‖² / ‖g‖² with P the projection onto that space. In training it comes close to 1 with k the
    number of classes ([Gur-Ari et al., 2018](https://arxiv.org/abs/1812.04754)); a random direction
    has k / n.

    Args:
        surface: A `LossSurface`.
        k, matrix, tolerance, max_products, seed, verbose: As for `hessian_eigenvalues`, whose
            largest eigenvalues are taken.

    Returns:
        A `GradientShare`.

    Raises:
        ValueError: as `hessian_eigenvalues`.

    Example:

    >>> import keras, numpy as np
    >>> from keras_regtools import LossSurface
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
    >>> x = np.array([[3.0, 0.0], [0.0, 1.0]])
    >>> model.set_weights([np.array([[1.0], [1.0]])])
    >>> surface = LossSurface(model, x, np.zeros((2, 1)), loss="mse")  # g = (9, 1)
    >>> round(gradient_share(surface, k=1).value, 4)  # 81 / (81 + 1)
    0.9878
    """
    found = hessian_eigenvalues(
        surface,
        k,
        matrix=matrix,
        tolerance=tolerance,
        max_products=max_products,
        eigenvectors=True,
        seed=seed,
        verbose=verbose,
    )
    _, gradient = surface.value_and_gradient()
    length = vectors.norm(gradient)
    along = np.array([vectors.dot(gradient, v) for v in found.eigenvectors])
    shares = (along / length) ** 2 if length > 0 else np.full(len(along), np.nan)
    return GradientShare(
        value=float(np.sum(shares)),
        shares=frozen(shares),
        eigenvalues=found.eigenvalues,
        residuals=found.residuals,
        gradient_norm=length,
        converged=found.converged,
        matrix=found.matrix,
        seed=seed,
        products=found.products,
        mode=found.mode,
        penalties=found.penalties,
        samples=found.samples,
    )
