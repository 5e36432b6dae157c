"""Experiment trackers: writers that take what the records of a fit hold to where people look."""

from keras_regtools.trackers.mlflow import MLflow
from keras_regtools.trackers.tensorboard import TensorBoard

__all__ = ["MLflow", "TensorBoard"]


def __dir__():
    return __all__
