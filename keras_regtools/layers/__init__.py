"""Layers that record what flows through them, and ways to look into other layers."""

from keras_regtools.layers.activation_statistics import ActivationStatistics
from keras_regtools.layers.batch_normalization import InstrumentedBatchNormalization

__all__ = ["ActivationStatistics", "InstrumentedBatchNormalization"]


def __dir__():
    return __all__
