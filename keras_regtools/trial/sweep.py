"""Train with one rate after another."""

import math

import keras
import numpy as np
from keras import ops

from keras_regtools.keras_internals import iteration, rate_of_steps
from keras_regtools.training import base_optimizers

_DIVERGED = 4.0  # times the lowest loss: the sweep ends there, as in fastai and PyTorch Lightning


def sweep(model, data, rated, losses, bar):
    """Train with each rate in turn; the losses before the updates go into `losses`."""
    batches, lowest, begin = _endlessly(data), math.inf, math.inf
    window = max(len(losses) // 10, 5)
    for i in range(len(losses)):
        rated.take(i)
        losses[i] = np.mean([_step(model, next(batches)) for _ in range(rated.parts)])
        if bar is not None:
            bar.add(1)
        if not math.isfinite(losses[i]):
            return
        if i < window:  # single batches say little
            continue
        recent = np.mean(losses[i - window : i + 1])
        begin = min(begin, recent) if i == window else begin
        lowest = min(lowest, recent)
        if recent > max(lowest + (_DIVERGED - 1) * abs(lowest), begin + 0.5 * abs(begin)):
            return


class Rated:
    """The optimizers of a model, with one of some rates at a time.

    Attributes:
        parts: Batches of an update.
    """

    def __init__(self, model, rates):
        self._rates, self._optimizers = rates, base_optimizers(model.optimizer)
        self.parts = self._optimizers[0].gradient_accumulation_steps or 1
        for optimizer in self._optimizers:
            if rate_of_steps(optimizer) is not None:  # which cannot become a number
                begin = int(ops.convert_to_numpy(iteration(optimizer)))
                optimizer.learning_rate = _Swept(rates, begin, self.parts)

    def take(self, i):
        for optimizer in self._optimizers:
            if rate_of_steps(optimizer) is None:
                optimizer.learning_rate = float(self._rates[i])


class _Swept(keras.optimizers.schedules.LearningRateSchedule):
    """A rate for each update from an iteration on."""

    def __init__(self, rates, begin, parts):
        self._rates, self._begin, self._parts = rates, begin, parts

    def __call__(self, step):
        place = ops.cast(ops.convert_to_tensor(step) - self._begin, "int32") // self._parts
        return ops.take(ops.cast(self._rates, "float32"), ops.clip(place, 0, len(self._rates) - 1))


def _endlessly(data):
    while True:
        yield from ((x, y, weight) for x, y, weight, _ in data)


def _step(model, batch):
    x, y, weight = batch
    logs = model.train_on_batch(x, y, sample_weight=weight, return_dict=True)
    return float(np.asarray(ops.convert_to_numpy(logs["loss"])))
