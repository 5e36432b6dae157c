"""The learning rate of each step of a trial: warm-up to the scaled rate, then decay."""

from __future__ import annotations

import math
from typing import Any

import keras

from keras_regtools.regularizers import penalties
from keras_regtools.surface import LossSurface
from keras_regtools.training import base_optimizers
from keras_regtools.validation import Constraint, non_negative, optional, positive

DECAY = Constraint(
    "'cosine' or a number above 0 and up to 1",
    lambda v: v == "cosine" or 0 < float(v) <= 1,
    lambda v: v if v == "cosine" else float(v),
)


def rate_at(step, base, factor, warmup_steps, steps, decay=None):
    """The learning rate of a step.

    Args:
        step: Counted from 0.
        base: The base rate, at which the warm-up begins.
        factor: The multiple that the warm-up reaches, k for the linear rule.
        warmup_steps: Of the warm-up.
        steps: Of the whole training.
        decay: `None` for none, `"cosine"` towards zero, or what is left of the rate at the end of
            an exponential decay.

    Example:

    >>> [round(rate_at(t, 0.1, 4, 10, 110, "cosine"), 3) for t in (0, 5, 10, 60, 110)]
    [0.1, 0.25, 0.4, 0.2, 0.0]
    >>> [round(rate_at(t, 0.1, 1, 0, 100, 0.01), 3) for t in (0, 50, 100)]
    [0.1, 0.01, 0.001]
    """
    if step < warmup_steps:
        return base * (1 + (factor - 1) * step / warmup_steps)
    if decay is None:
        return base * factor
    done = min((step - warmup_steps) / max(steps - warmup_steps, 1), 1.0)
    if decay == "cosine":
        return base * factor * (1 + math.cos(math.pi * done)) / 2
    return base * factor * decay**done


class TrialRate(keras.callbacks.Callback):
    """The learning rate of each step as in a trial of a search; the compiled step stays as it is.

    Args:
        base_learning_rate: Where the warm-up begins.
        factor: The multiple of it that the warm-up reaches.
        warmup_epochs: Its length.
        decay: As for `rate_at`, over all epochs of `fit`.

    Raises:
        ValueError: a rate or factor that is not positive, an unknown decay; when the fit begins,
            data whose number of steps is not known.

    Example:

    >>> import numpy as np
    >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> x = np.ones((32, 1), "float32")
    >>> history = model.fit(x, x, batch_size=8, epochs=2, verbose=0,
    ...                     callbacks=[TrialRate(0.1, 2.0, warmup_epochs=1)])
    >>> round(float(model.optimizer.learning_rate), 4)
    0.2
    """

    def __init__(
        self,
        base_learning_rate: float,
        factor: float = 1.0,
        warmup_epochs: float = 0.0,
        decay: Any = None,
    ) -> None:
        super().__init__()
        self._base = positive("base_learning_rate", base_learning_rate)
        self._factor = positive("factor", factor)
        self._warmup_epochs = non_negative("warmup_epochs", warmup_epochs)
        self._decay = optional(DECAY)("decay", decay)
        self._now: Any = None
        self._begun, self._steps, self._all = 0, 0, 0

    def on_train_begin(self, logs: Any = None) -> None:
        self._now, params = None, self.params or {}
        self._steps, epochs = params.get("steps") or 0, params.get("epochs") or 1
        if not self._steps:
            raise ValueError(
                "Expected a known number of steps per epoch. Received: data of unknown length. "
                "Pass `steps_per_epoch=` to `fit`."
            )
        self._all = epochs * self._steps
        self._warmup_steps = round(min(self._warmup_epochs, epochs) * self._steps)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._begun = epoch * self._steps
        self._set(0)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self._set(batch)

    def _set(self, batch):
        given = self._base, self._factor, self._warmup_steps, self._all, self._decay
        rate = rate_at(self._begun + batch, *given)
        if rate != self._now:
            model = self.model  # which on JAX brings the variables up to date
            for optimizer in base_optimizers(model.optimizer):
                optimizer.learning_rate = rate
            self._now = rate


class BestWeights(keras.callbacks.Callback):
    """Keeps the weights of the epoch with the least validation loss, and ends what diverges.

    Args:
        value: Function of the logs that gives the validation loss without penalties.
    """

    def __init__(self, value):
        super().__init__()
        self._value, self.best, self.epoch, self._kept = value, math.inf, None, None
        self.epochs, self.curve, self.diverged = 0, [], ""

    def on_epoch_end(self, epoch, logs=None):
        self.epochs = epoch + 1
        logs = logs or {}
        loss = logs.get("loss", 0.0)
        if "val_loss" not in logs and math.isfinite(loss):  # as with `validation_freq`
            return
        value = self._value(logs) if math.isfinite(loss) else math.nan
        self.curve.append(value)
        if not math.isfinite(value):
            what = "training" if not math.isfinite(loss) else "validation"
            self.diverged = f"the {what} loss was {loss if what == 'training' else value}"
            self.diverged += f" in epoch {epoch + 1}"
            self.model.stop_training = True
        elif value < self.best:
            self.best, self.epoch = value, epoch
            self._kept = [keras.ops.convert_to_numpy(v).copy() for v in self.model.variables]

    def restore(self):
        """Give the model the best weights; `False` if there are none."""
        if self._kept is None:
            return False
        for variable, value in zip(self.model.variables, self._kept, strict=True):
            variable.assign(value)
        return True


class BestEpoch(BestWeights):
    """Gives the model the weights of its epoch with the least validation loss without penalties.

    Keras' `EarlyStopping` looks at the validation loss with the penalties, which fall to the end.

    Args:
        validation_data: `(x, y)`, where the validation loss of `fit` is another one than what is
            looked for, as with smoothed labels; `None` takes that of `fit`.
        loss: The loss to measure on them; the compiled one by default.

    Example:

    >>> import numpy as np
    >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> x = np.ones((8, 1), "float32")
    >>> best = BestEpoch()
    >>> history = model.fit(x, x, epochs=2, validation_data=(x, x), callbacks=[best], verbose=0)
    >>> best.best == min(history.history["val_loss"])
    True
    """

    def __init__(self, validation_data: Any = None, loss: Any = None) -> None:
        super().__init__(self._measured)
        self._data, self._loss, self._surface = validation_data, loss, None

    def _measured(self, logs):
        if self._data is None:
            return logs["val_loss"] - math.fsum(penalties(self.model).values())
        if self._surface is None or self._surface.model is not self.model:
            given = {"loss": self._loss, "penalties": False}
            self._surface = LossSurface(self.model, *self._data, **given)
        return self._surface.value()

    def on_train_end(self, logs: Any = None) -> None:
        self.restore()
