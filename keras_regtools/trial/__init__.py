"""Internal: train a model for a moment, to learn something, and leave no trace of it."""

from keras_regtools.trial.batch_size import BatchSizeSuggestion, suggest_batch_size
from keras_regtools.trial.learning_rate import LearningRateRange, find_learning_rate

__all__ = [
    "BatchSizeSuggestion",
    "LearningRateRange",
    "find_learning_rate",
    "suggest_batch_size",
]


def __dir__():
    return __all__
