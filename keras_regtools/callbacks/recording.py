"""Base of our callbacks: one set of records per fit, time counted, copies that share data."""

import contextlib
import copy
import math
import time

import keras
import numpy as np
from keras import ops

from keras_regtools import records
from keras_regtools.training import base_optimizers, iteration


class RecordingCallback(keras.callbacks.Callback):
    """A callback that writes into the records of the fit and tells what time it took.

    Args:
        name: Name under which its time is recorded.
    """

    shared = ()  # attributes that hold data, which a copy shares
    dropped = ()  # attributes that hold caches, which a copy begins without

    def __init__(self, name):
        super().__init__()
        self.name = name
        self.seconds = 0.0

    @property
    def records(self):
        """The records of the present or last fit, shared by all our callbacks in it."""
        if self.params is None:
            self.params = {}
        return records.of_run(self.params)

    def set_params(self, params):
        super().set_params(params)
        self.seconds = 0.0  # a new fit

    def record(self, epoch, values, step=None):
        """Add values to the records, at the optimizer's step unless another is given."""
        self.records.add(epoch, self.step() if step is None else step, values)

    def record_rate(self, epoch):
        """Record the learning rate of the step just made, and return it."""
        rate = read_rate(self.model.optimizer)
        self.record(epoch, {"learning_rate": rate}, step=self.step() - 1)
        return rate

    def step(self):
        """Training steps made so far, as the optimizer counts them."""
        optimizer = self.model.optimizer
        return 0 if optimizer is None else read_iteration(optimizer)

    @contextlib.contextmanager
    def timed(self, epoch):
        """Count the time of the block and record the sum so far."""
        begin = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - begin
        self.record(epoch, {f"time/{self.name}": self.seconds})

    def __deepcopy__(self, memo):
        new = object.__new__(type(self))
        memo[id(self)] = new
        for key, value in vars(self).items():
            if key in self.dropped:
                value = None
            elif key not in (*self.shared, "_model", "model"):
                value = copy.deepcopy(value, memo)
            object.__setattr__(new, key, value)
        return new


def read_iteration(optimizer):
    """The iteration of an optimizer, as an int."""
    return int(ops.convert_to_numpy(iteration(base_optimizers(optimizer)[0])))


def read_rate(optimizer):
    """The present learning rate of an optimizer (of the first one in a group), as a float."""
    rate = base_optimizers(optimizer)[0].learning_rate
    return float(np.asarray(ops.convert_to_numpy(rate)))


def finite_or_nan(value):
    """`value` as a plain float, with NaN in place of anything that is not finite."""
    value = float(value)
    return value if math.isfinite(value) else math.nan
