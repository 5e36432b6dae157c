"""Callbacks: is it time? Then measure, into the logs and into the records."""

from keras_regtools.callbacks.activations import ActivationMonitor
from keras_regtools.callbacks.batch_size import BatchSize
from keras_regtools.callbacks.gradient_noise import GradientNoise
from keras_regtools.callbacks.gradients import GradientMonitor
from keras_regtools.callbacks.linear_scaling import LinearScalingLR
from keras_regtools.callbacks.measure import Measure
from keras_regtools.callbacks.penalties import PenaltyMonitor
from keras_regtools.callbacks.precise_batch_norm import PreciseBatchNorm
from keras_regtools.callbacks.report import Report
from keras_regtools.callbacks.schedule import Schedule
from keras_regtools.callbacks.sharpness import Sharpness
from keras_regtools.callbacks.sharpness_aware import SharpnessAwareMinimization
from keras_regtools.callbacks.trajectory import WeightTrajectory
from keras_regtools.callbacks.weights import WeightMonitor

__all__ = [
    "ActivationMonitor",
    "BatchSize",
    "GradientMonitor",
    "GradientNoise",
    "LinearScalingLR",
    "Measure",
    "PenaltyMonitor",
    "PreciseBatchNorm",
    "Report",
    "Schedule",
    "Sharpness",
    "SharpnessAwareMinimization",
    "WeightMonitor",
    "WeightTrajectory",
]


def __dir__():
    return __all__
