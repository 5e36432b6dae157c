"""Relative flatness: curvature weighted by the weights, so that rescaling does not change it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_regtools.measures.curvature import MATRICES, Curvature, CurvatureResult, estimated_trace
from keras_regtools.measures.declaration import measure
from keras_regtools.validation import among, at_least, positive, positive_integer

if TYPE_CHECKING:
    from keras_regtools.surface import LossSurface


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class RelativeFlatness(CurvatureResult):
    """Result of `relative_flatness`.

    Attributes:
        value: κ.
        stderr: Its standard error.
        converged: Whether that came below the tolerance.
        kernel: The path of the kernel that was measured.
        draws: Random vectors that the error is computed from.
        tolerance: As given.
        matrix, seed, products, mode, penalties, samples: As in every measure of curvature.
    """

    value: float
    stderr: float
    converged: bool
    kernel: str
    draws: int
    tolerance: float


@measure(
    "curvature",
    "relative_flatness",
    matrix=among(MATRICES),
    tolerance=positive,
    sketch=positive_integer,
    max_products=positive_integer,
    seed=at_least(0),
)
def relative_flatness(
    surface: LossSurface,
    layer: Any = None,
    *,
    matrix: str = "hessian",
    tolerance: float = 0.02,
    sketch: int = 15,
    max_products: int = 1000,
    seed: int = 0,
    verbose: int = 0,
) -> RelativeFlatness:
    """The relative flatness of one layer: κ = Σ ⟨w_s, w_t⟩ tr H_st over its neurons s and t.

    w_s are the weights into the neuron s (the last axis of a Keras kernel counts the neurons), H_st
    the block of the Hessian of those of s and those of t
    ([Petzka et al., 2021](https://arxiv.org/abs/2001.00939)). It is the trace of C H C with
    C = (WᵀW)^½ acting on the neurons, and that is how it is estimated, by Hutch++ as in
    `hessian_trace`. Despite its name a small κ is flat.

    Args:
        surface: A `LossSurface`.
        layer: The layer, by name or itself; by default the last one with a kernel. Its first kernel
            is measured, as that of dense and convolutional layers, whose last axis counts the
            neurons; biases are not counted.
        matrix: `"hessian"`, or `"gauss_newton"`.
        tolerance: The relative standard error to stop at.
        sketch: Rows of the sketch of Hutch++; they cost two products each.
        max_products: The most products.
        seed: Seed of the draws.
        verbose: 1 draws a progress bar.

    Returns:
        A `RelativeFlatness`.

    Raises:
        ValueError: a layer without a kernel, a tolerance or sketch that is not positive, too few
            products, or a loss that is not finite.

    Example:

    >>> import keras, numpy as np
    >>> from keras_regtools import LossSurface
    >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    >>> model.set_weights([np.array([[3.0]])])
    >>> surface = LossSurface(model, np.array([[1.0]]), np.array([0.0]), loss="mse")
    >>> round(relative_flatness(surface).value, 4)  # w² H = 3² · 2
    18.0
    """
    variables = surface.variables if layer is None else surface.restricted(layer).variables
    kernels = [v for v in variables if len(v.shape) > 1]
    if not kernels:
        named = "the surface's" if layer is None else f"the layer {getattr(layer, 'name', layer)!r}"
        raise ValueError(
            "Expected weights with a kernel, of two axes or more. Received: "
            f"{named} with shapes {[tuple(v.shape) for v in variables]}"
        )
    kernel = kernels[-1 if layer is None else 0]
    curvature = Curvature(surface.restricted(kernel), matrix, verbose)
    root = _root_of_gram(np.asarray(curvature.params[0], "float64"), curvature.dtype)

    def scaled(rows):
        return (rows.reshape(-1, len(root)) @ root).reshape(rows.shape)

    found = estimated_trace(
        curvature,
        lambda rows: scaled(curvature(scaled(rows))),
        tolerance,
        sketch,
        max_products,
        seed,
        name="flatness",
    )
    return RelativeFlatness(
        value=found.estimate,
        stderr=found.stderr,
        converged=found.converged,
        kernel=kernel.path,
        draws=found.draws,
        tolerance=tolerance,
        seed=seed,
        **curvature.done(),
    )


def _root_of_gram(kernel, dtype):
    """(WᵀW)^½, with one row and column for each neuron."""
    w = kernel.reshape(-1, kernel.shape[-1])
    values, vectors = np.linalg.eigh(w.T @ w)
    return ((vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T).astype(dtype)
