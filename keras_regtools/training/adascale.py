"""AdaScale: a rate that follows what a step gains from having several parts."""

import math
import weakref
from typing import Any

import numpy as np
from keras import ops

from keras_regtools.training.gradient_noise import parts_of

# What the gains of each optimizer were, so that a second fit goes on.
GAINS: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


def adascale_gain(variance, squared_norm, parts):
    """What a step of several parts is worth in steps of one: r between 1 and their number.

    r = (σ² + μ²) / (σ² / S + μ²) ([Johnson et al., 2020](https://arxiv.org/abs/2007.05105)).

    Args:
        variance: σ², of the gradient of one part.
        squared_norm: μ², of the gradient without noise.
        parts: S.

    Example:

    >>> adascale_gain(1.0, 1.0, 4), adascale_gain(0.0, 1.0, 4), adascale_gain(1.0, 0.0, 4)
    (1.6, 1.0, 4.0)
    """
    variance, squared_norm = max(variance, 0.0), max(squared_norm, 0.0)
    if variance + squared_norm == 0:
        return 1.0
    return (variance + squared_norm) / (variance / parts + squared_norm)


class AdaScale:
    """Sets the rates of optimizers to their base rate times the gain of the steps so far.

    σ² and μ² are running means with the factor 1 − S / 1000 an update, as in the paper; the gain of
    an update is that of the updates before it.

    A rate that another callback has set meanwhile is taken for a change of the base rate.

    Args:
        optimizers: The base optimizers.
        bases: Their base rates.
        hooks: Their `NoiseHook`s, which look at every update.
        parts: S.
        kept: The state of a run that goes on, or `None`.

    Attributes:
        gain: The present one.
        progress: Σ r: how many steps of one part the steps so far are worth.
    """

    def __init__(self, optimizers, bases, hooks, parts, kept=None):
        self._rates, self._hooks = list(zip(optimizers, bases, strict=True)), hooks
        self._parts = parts
        state = GAINS.get(optimizers[0]) or kept or (None, None, 0.0, 1.0)
        self._variance, self._norm, self.progress, self._change = state
        self._set()

    @property
    def state(self):
        """What a run that goes on begins with."""
        return [self._variance, self._norm, self.progress, self._change]

    @property
    def gain(self):
        if self._variance is None:
            return 1.0
        return adascale_gain(self._variance, self._norm, self._parts)

    def follow(self):
        """Take the updates since the last call into account."""
        found = [hook.accumulator.read() for hook in self._hooks]
        count = max(count for count, *_ in found)
        if not count:
            return
        self.progress += self.gain * count
        self._follow_others()
        variance, of_mean = (float(sum(mean[i] for _, mean, _ in found)) for i in (0, 1))
        norm = of_mean - variance / self._parts
        if not math.isfinite(variance + norm):  # as while a loss scale is found
            return
        keep = max(1 - self._parts / 1000, 0.0) ** count
        if self._variance is None:
            keep, self._variance, self._norm = 0.0, 0.0, 0.0
        self._variance = keep * self._variance + (1 - keep) * variance
        self._norm = keep * self._norm + (1 - keep) * norm
        GAINS[self._rates[0][0]] = self.state
        self._set()

    def _follow_others(self):
        now = _read(self._rates[0][0])
        if self._last > 0 and abs(now / self._last - 1) > 1e-5:
            self._change *= now / self._last

    def _set(self):
        for optimizer, base in self._rates:
            optimizer.learning_rate = base * self._change * self.gain
        self._last = _read(self._rates[0][0])


def _read(optimizer):
    return float(np.asarray(ops.convert_to_numpy(optimizer.learning_rate)))


def refuse_adascale(optimizers, schedules, replicas, batch_size, base_batch_size):
    """Say it if a rate cannot follow the parts of a step.

    Args:
        optimizers: The base optimizers.
        schedules: Their schedules, `None` for a number.
        replicas: On how many the model is.
        batch_size: Samples of an update.
        base_batch_size: Those of which the rate is known.

    Returns:
        The number of parts.
    """
    parts = parts_of(optimizers[0], replicas)
    refuse_one_part(parts)
    if any(schedule is not None for schedule in schedules):
        raise ValueError(
            "Expected a rate that is a number for rule='adascale', as a schedule would count "
            f"updates, each of which is worth 1 to {parts}. Received: a schedule"
        )
    if batch_size != parts * base_batch_size:
        raise ValueError(
            f"Expected base_batch_size={batch_size / parts:g} for rule='adascale', which compares "
            f"the {parts} parts of an update of {batch_size} samples. "
            f"Received: base_batch_size={base_batch_size}"
        )
    return parts


def refuse_one_part(parts):
    """Say it if a step is one batch on one device, and its noise cannot be seen."""
    if parts == 1:
        raise ValueError(
            "Expected a training step of several parts, whose gradients differ by their noise: "
            "accumulated batches, or replicas. Received: one batch for each update, on one device. "
            "Give the optimizer `gradient_accumulation_steps`, or measure at the ends of epochs: "
            "`callbacks.Measure({'noise': measures.gradient_noise_scale}, x, y)`."
        )
