"""Measures: a function of a `LossSurface`, a result that carries its doubt."""

from keras_regtools.measures.keskar import KeskarSharpness, keskar_sharpness
from keras_regtools.measures.result import Result

__all__ = ["KeskarSharpness", "Result", "keskar_sharpness"]
