"""Internal: train a model for a moment, to learn something, and leave no trace of it."""

from keras_regtools.trial.learning_rate import LearningRateRange, find_learning_rate

__all__ = ["LearningRateRange", "find_learning_rate"]


def __dir__():
    return __all__
