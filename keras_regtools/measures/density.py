"""The spectral density of the Hessian: all eigenvalues at once, as a picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_regtools import linalg
from keras_regtools.measures.curvature import MATRICES, Curvature, CurvatureResult
from keras_regtools.measures.declaration import measure
from keras_regtools.measures.result import frozen
from keras_regtools.validation import among, at_least, positive_integer

if TYPE_CHECKING:
    from keras_regtools.surface import LossSurface


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class HessianDensity(CurvatureResult):
    """Result of `hessian_density`: a spectrum, as nodes and the share of eigenvalues near each.

    Attributes:
        nodes: Array `(draws, steps)`, eigenvalues that a draw found.
        weights: Array `(draws, steps)`, positive, with a sum of 1 in each row.
        residuals: Array `(draws, steps)`, the standard deviation of the eigenvalues that each node
            stands for (‖H x − θ x‖ of its Ritz vector); `None` for nodes that are eigenvalues.
        size: Number of weights, which is the number of eigenvalues.
        matrix, seed: As given.
        products: Hessian products that were made.
        mode, penalties, samples: Those of the surface.
    """

    nodes: np.ndarray
    weights: np.ndarray
    size: int
    residuals: np.ndarray | None = None

    def mean(self, function: Callable[[np.ndarray], Any]) -> tuple[float, float]:
        """The mean of a function over the eigenvalues, and its standard error over the draws.

        Args:
            function: A function of an array of eigenvalues.

        Returns:
            `(mean, stderr)`; the error is NaN for a single draw.
        """
        draws = np.sum(self.weights * function(self.nodes), axis=1)
        if len(draws) == 1:
            return float(draws[0]), float("nan")
        return float(np.mean(draws)), float(np.std(draws, ddof=1) / np.sqrt(len(draws)))

    def curve(self, grid: Any, width: float) -> np.ndarray:
        """The density on a grid of eigenvalues, each node smoothed to a Gaussian bell.

        Args:
            grid: Array of eigenvalues.
            width: Standard deviation of the bells.

        Returns:
            Array like `grid`, with an integral of 1 over all eigenvalues.
        """
        bells = np.exp(-0.5 * ((np.asarray(grid)[:, None] - self.nodes.ravel()) / width) ** 2)
        return bells @ self.weights.ravel() / (len(self.nodes) * width * np.sqrt(2 * np.pi))

    @property
    def value(self) -> float:
        """The largest node: a lower bound of the largest eigenvalue, without an error bar."""
        return float(np.max(self.nodes))

    def scalars(self) -> dict[str, float]:
        """The ends of the spectrum, the trace, the share of negative eigenvalues; with errors.

        The error of `negative_share` holds `unresolved_share`, the share of eigenvalues whose sign
        the nodes do not tell: one node near zero may stand for nearly all of them.
        """
        mean, error = self.mean(lambda nodes: nodes)
        negative, uncertain = self.mean(lambda nodes: (nodes < -self._zero).astype(float))
        unresolved = self.unresolved_share
        return {
            "value": self.value,
            "smallest": float(np.min(self.nodes)),
            "trace": self.size * mean,
            "trace_stderr": self.size * error,
            "negative_share": negative,
            "negative_share_stderr": float(np.hypot(uncertain, unresolved)),
            "unresolved_share": unresolved,
            **super().scalars(),
        }

    @property
    def _zero(self):
        """Below the rounding of the products a sign says nothing."""
        return 1e-6 * float(np.max(np.abs(self.nodes)))

    @property
    def unresolved_share(self) -> float:
        """The largest share of eigenvalues whose sign may be another than that of their node.

        A node θ whose eigenvalues have the standard deviation r: at most r² / (r² + θ²) of them lie
        beyond zero (Cantelli's inequality).
        """
        if self.residuals is None:
            return 0.0
        wide = np.where(self.residuals > self._zero, self.residuals, 0.0) ** 2
        total = wide + self.nodes**2
        beyond = np.divide(wide, total, out=np.zeros_like(total), where=total > 0)
        return float(np.mean(np.sum(self.weights * beyond, axis=1)))

    @property
    def below_zero(self) -> str:
        """The share of negative eigenvalues in words, with its error."""
        numbers = self.scalars()
        share, error = numbers["negative_share"], numbers["negative_share_stderr"]
        if self.unresolved_share > _RESOLVED:
            return f"share below zero not resolved ({100 * self.unresolved_share:.0f} % near zero)"
        doubt = f" ± {100 * error:.1f}" if error >= 5e-4 else ""
        return f"{100 * share:.1f}{doubt} % below zero"

    def __repr__(self):
        numbers = self.scalars()
        trace = f"{numbers['trace']:.4g} ± {numbers['trace_stderr']:.2g}"
        return (
            f"HessianDensity(from {numbers['smallest']:.4g} to {self.value:.4g}, trace {trace}, "
            f"{self.below_zero}; matrix={self.matrix!r}, size={self.size}, "
            f"draws={len(self.nodes)}, steps={self.nodes.shape[1]}, seed={self.seed})"
        )


_RESOLVED = 0.05  # more than that near zero, and the share below it is not told


@measure(
    "mean eigenvalue",
    matrix=among(MATRICES),
    steps=positive_integer,
    draws=positive_integer,
    seed=at_least(0),
)
def hessian_density(
    surface: LossSurface,
    *,
    matrix: str = "hessian",
    steps: int = 80,
    draws: int = 10,
    seed: int = 0,
    verbose: int = 0,
) -> HessianDensity:
    """The density of the Hessian's eigenvalues at the model's weights.

    By stochastic Lanczos quadrature with full reorthogonalisation
    ([Ubaru et al., 2017](https://doi.org/10.1137/16M1104974); defaults as
    [Ghorbani et al., 2019](https://arxiv.org/abs/1901.10159)): each draw is a Lanczos process from
    a random vector, whose Ritz values are the nodes and whose squared first components are the
    weights. `plots.density` draws it.

    Args:
        surface: A `LossSurface`, of all weights or, with `layers=`, of some.
        matrix: `"hessian"`, or `"gauss_newton"` (see `LossSurface.gnvp`).
        steps: Lanczos steps of each draw; at most as many as there are weights are made.
        draws: Random start vectors. `steps · draws` Hessian products are made in all, those of five
            draws together; five times `steps` vectors of weights are held in memory.
        seed: Seed of the draws.
        verbose: 1 draws a progress bar.

    Returns:
        A `HessianDensity`.

    Raises:
        ValueError: `steps` or `draws` below 1, an unknown matrix, or a loss that is not finite.

    Example:

    >>> import keras, numpy as np
    >>> from keras_regtools import LossSurface
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
    >>> x = np.array([[3.0, 0.0], [0.0, 1.0]])
    >>> surface = LossSurface(model, x, np.zeros((2, 1)), loss="mse")  # H = xᵀx
    >>> density = hessian_density(surface, draws=1)
    >>> density.nodes.round(4), density.weights.round(4)
    (array([[1., 9.]]), array([[0.5, 0.5]]))
    """
    curvature = Curvature(surface, matrix, verbose)
    curvature.expect(draws * min(steps, curvature.size))
    nodes, weights, residuals = linalg.density(
        curvature,
        curvature.size,
        curvature.dtype,
        steps,
        draws,
        np.random.default_rng(seed),
        watch=curvature.watch,
    )
    return HessianDensity(
        nodes=frozen(nodes),
        weights=frozen(weights),
        residuals=frozen(residuals),
        size=curvature.size,
        seed=seed,
        **curvature.done(),
    )
