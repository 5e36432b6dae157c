"""What happens inside a training step: hooks around `optimizer.apply`, rates that change there."""

from keras_regtools.training.apply import add_hook, base_optimizers, iteration, remove_hook
from keras_regtools.training.gradients import ROWS, GradientHook
from keras_regtools.training.momentum import correct_momentum, velocities
from keras_regtools.training.scaling import (
    SCALED,
    RateScaling,
    ScaledSchedule,
    ScheduleCorrection,
    hand_on,
    schedule_of,
    warmup_factor,
)

__all__ = [
    "ROWS",
    "GradientHook",
    "SCALED",
    "RateScaling",
    "ScaledSchedule",
    "ScheduleCorrection",
    "add_hook",
    "base_optimizers",
    "correct_momentum",
    "hand_on",
    "iteration",
    "remove_hook",
    "schedule_of",
    "velocities",
    "warmup_factor",
]
