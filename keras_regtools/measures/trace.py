"""The trace of the Hessian, with a standard error."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from keras_regtools.measures.curvature import MATRICES, Curvature, CurvatureResult, estimated_trace
from keras_regtools.measures.declaration import measure
from keras_regtools.validation import among, at_least, positive, positive_integer

if TYPE_CHECKING:
    from keras_regtools.surface import LossSurface

METHODS = ("hutch++", "hutchinson")


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class HessianTrace(CurvatureResult):
    """Result of `hessian_trace`.

    Attributes:
        estimate: The trace.
        stderr: Its standard error.
        converged: Whether the standard error came below the tolerance.
        draws: Random vectors that the error is computed from.
        method, matrix, tolerance, seed: As given.
        products: Hessian products that were made.
        mode, penalties, samples: Those of the surface.
    """

    estimate: float
    stderr: float
    converged: bool
    draws: int
    method: str
    tolerance: float

    @property
    def value(self) -> float:
        """The estimate."""
        return self.estimate

    def scalars(self) -> dict[str, float]:
        """`value`, which is the estimate, and the other numbers."""
        return {"value": self.value, **super().scalars()}


@measure(
    "curvature",
    "trace",
    method=among(METHODS),
    matrix=among(MATRICES),
    tolerance=positive,
    sketch=positive_integer,
    max_products=positive_integer,
    seed=at_least(0),
)
def hessian_trace(
    surface: LossSurface,
    *,
    method: str = "hutch++",
    matrix: str = "hessian",
    tolerance: float = 0.02,
    sketch: int = 15,
    max_products: int = 1000,
    seed: int = 0,
    verbose: int = 0,
) -> HessianTrace:
    """The trace of the Hessian of the loss at the model's weights, with its standard error.

    tr H = tr(Q H Qᵀ) + E[gᵀ (I − QᵀQ) H (I − QᵀQ) g], with random signs g and with Q spanning the
    products of H with a few random vectors: Hutch++
    ([Meyer et al., 2021](https://arxiv.org/abs/2010.09649)). Where few eigenvalues dominate, as in
    trained networks, it needs a small part of the draws of Hutchinson's estimator E[gᵀ H g]
    ([1989](https://doi.org/10.1080/03610918908812806)). Draws are added until the standard error is
    below the tolerance. It is computed from the entries g_i (H g)_i, whose variances add up to half
    of that of gᵀ H g: so it is steady after few draws.

    Args:
        surface: A `LossSurface`, of all weights or, with `layers=`, of some.
        method: `"hutch++"` or `"hutchinson"`.
        matrix: `"hessian"`, or `"gauss_newton"` (see `LossSurface.gnvp`).
        tolerance: The relative standard error to stop at; 2 % tells apart what a bar chart does.
        sketch: Rows of Q, for Hutch++; they cost two products each. A classifier of c classes has
            about c large eigenvalues ([Sagun et al., 2017](https://arxiv.org/abs/1706.04454)):
            15 holds those of ten classes and some more.
        max_products: The most Hessian products. The result says whether it converged before.
        seed: Seed of the draws.
        verbose: 1 draws a progress bar.

    Returns:
        A `HessianTrace`.

    Raises:
        ValueError: an unknown method or matrix, a tolerance or sketch that is not positive, too few
            products for one estimate, or a loss that is not finite.

    Example:

    >>> import keras, numpy as np
    >>> from keras_regtools import LossSurface
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
    >>> x = np.array([[3.0, 0.0], [0.0, 1.0]])
    >>> surface = LossSurface(model, x, np.zeros((2, 1)), loss="mse")  # H = xᵀx
    >>> round(hessian_trace(surface).estimate, 4)
    10.0
    """
    sketch = sketch if method == "hutch++" else 0
    curvature = Curvature(surface, matrix, verbose)
    found = estimated_trace(curvature, curvature, tolerance, sketch, max_products, seed)
    return HessianTrace(
        estimate=found.estimate,
        stderr=found.stderr,
        converged=found.converged,
        draws=found.draws,
        method=method,
        tolerance=tolerance,
        seed=seed,
        **curvature.done(),
    )
