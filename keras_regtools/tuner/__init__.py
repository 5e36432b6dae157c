"""KerasTuner searches over everything that regularizes a model."""

from keras_regtools.tuner.batch_size_study import BatchSizes, BatchSizeStudy
from keras_regtools.tuner.hypermodel import RegularizationHyperModel
from keras_regtools.tuner.results import table

__all__ = ["BatchSizeStudy", "BatchSizes", "RegularizationHyperModel", "table"]


def __dir__():
    return __all__
