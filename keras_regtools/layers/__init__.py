"""Layers that record what flows through them, and dropout whose rate can change."""

from keras_regtools.layers.activation_statistics import ActivationStatistics
from keras_regtools.layers.batch_normalization import InstrumentedBatchNormalization
from keras_regtools.layers.dropout import (
    Dropout,
    SpatialDropout1D,
    SpatialDropout2D,
    SpatialDropout3D,
)

__all__ = [
    "ActivationStatistics",
    "Dropout",
    "InstrumentedBatchNormalization",
    "SpatialDropout1D",
    "SpatialDropout2D",
    "SpatialDropout3D",
]


def __dir__():
    return __all__
