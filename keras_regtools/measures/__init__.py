"""Measures: a function of a `LossSurface`, a result that carries its doubt."""

from keras_regtools.measures.density import HessianDensity, hessian_density
from keras_regtools.measures.eigenvalues import (
    GradientShare,
    HessianEigenvalues,
    gradient_share,
    hessian_eigenvalues,
)
from keras_regtools.measures.keskar import KeskarSharpness, keskar_sharpness
from keras_regtools.measures.result import Result
from keras_regtools.measures.tables import Table, by_checkpoint, by_layer
from keras_regtools.measures.trace import HessianTrace, hessian_trace

__all__ = [
    "GradientShare",
    "HessianDensity",
    "HessianEigenvalues",
    "HessianTrace",
    "KeskarSharpness",
    "Result",
    "Table",
    "by_checkpoint",
    "by_layer",
    "gradient_share",
    "hessian_density",
    "hessian_eigenvalues",
    "hessian_trace",
    "keskar_sharpness",
]
