"""Base of our callbacks: one set of records per fit, time counted, copies that share data."""

import contextlib
import copy
import math
import time

import keras
import numpy as np
from keras import ops

from keras_regtools import records
from keras_regtools.keras_internals import iteration
from keras_regtools.training import base_optimizers, training_optimizer
from keras_regtools.validation import one_of


class RecordingCallback(keras.callbacks.Callback):
    """A callback that writes into the records of the fit and tells what time it took.

    A subclass does the work of an epoch in `training_over`. It is called at the epoch's last batch:
    what it records is kept before any callback acts on the end of the epoch, such as one that backs
    the run up, wherever it stands in the list.

    Args:
        name: Name under which its time is recorded.
    """

    shared: tuple[str, ...] = ()  # attributes that hold data, which a copy shares
    dropped: tuple[str, ...] = ()  # attributes that hold caches, which a copy begins without

    def __init__(self, name):
        super().__init__()
        self.name = name
        self.seconds = 0.0
        self._epoch, self._over, self._begun = 0, False, False

    @property
    def records(self):
        """The records of the present or last fit, shared by all our callbacks in it."""
        if self.params is None:
            self.params = {}
        return records.of_run(self.params)

    def set_params(self, params):
        super().set_params(params)
        self.seconds = 0.0  # a new fit
        self._begun = False

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch, self._over = epoch, False
        if not self._begun:
            self._begun = True
            self.fit_begins(epoch)

    def on_train_batch_end(self, batch, logs=None):
        steps = (self.params or {}).get("steps")
        if steps and batch >= steps - 1:
            self._end_training(logs)

    def on_epoch_end(self, epoch, logs=None):
        self._end_training(logs)  # of an epoch whose length was not known

    def _end_training(self, logs):
        if not self._over:
            self._over = True
            self.training_over(self._epoch, logs)

    def fit_begins(self, epoch):
        """Called at the first epoch of a fit, when a backup is restored already."""

    def training_over(self, epoch, logs):
        """Called when the last batch of an epoch is over, with the logs of the training."""

    def record(self, epoch, values, step=None):
        """Add values to the records, at the optimizer's step unless another is given."""
        self.records.add(epoch, self.step() if step is None else step, values)

    def record_rate(self, epoch):
        """Record the learning rate of the step just made, and return it."""
        rate = read_rate(training_optimizer(self.model))
        self.record(epoch, {"learning_rate": rate}, step=self.step() - 1)
        return rate

    def step(self):
        """Training steps made so far, as the optimizer counts them."""
        optimizer = training_optimizer(self.model)
        return 0 if optimizer is None else read_iteration(optimizer)

    def tell(self, logs, values, named):
        """Put the values of an epoch into the history, and those named into the logs.

        The logs are what the progress bar prints and what other callbacks watch.
        """
        history = getattr(self.model, "history", None)
        for name, value in values.items():
            if name in named and logs is not None:
                logs[name] = value
            elif hasattr(history, "history"):
                history.history.setdefault(name, []).append(value)

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


def names_of_logs(given, known):
    """The argument `logs` of a monitor as a tuple of names."""
    if isinstance(given, str) and given == "all":
        return known
    if isinstance(given, str) or not isinstance(given, (list, tuple)):
        raise ValueError(
            f"Argument `logs` must be a list of names among {list(known)}, or 'all'. "
            f"Received: logs={given!r}"
        )
    return tuple(one_of("logs", name, known) for name in given)


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
