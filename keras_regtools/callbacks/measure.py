"""Measure the loss surface during a fit."""

from __future__ import annotations

import math
import warnings
from typing import Any

from keras_regtools.callbacks.recording import RecordingCallback, finite_or_nan
from keras_regtools.callbacks.steps import Steps
from keras_regtools.data import Batches
from keras_regtools.measures.result import flat
from keras_regtools.surface import MODES, LossSurface
from keras_regtools.validation import (
    flag,
    integer_from,
    keras_model,
    named_callables,
    number,
    one_of,
    positive_integer,
)


class Measure(RecordingCallback):
    """Measure the loss surface at the end of epochs or at steps, into the logs and the records.

    The first measurement is made at the end of the first epoch at the latest, so that the logs have
    the same keys in every epoch; between two measurements the last value is repeated. A result with
    a `.value` is logged under the name of its measure, its other numbers go into the records as
    `name/number`; a dict or a table is logged whole. A measurement that fails or is not finite is
    logged as `not_finite` with one warning: it never ends the training. The model is not touched.

    Args:
        measures: Dict from the name in the logs to the measure, a callable
            `(surface) -> result`, float or dict of floats.
        x, y, sample_weight: The data to measure on, as `fit` takes them.
        every: Measure in every `every`-th epoch, beginning with the first, and in the last.
        every_steps: Measure every so many training steps instead (with `steps_per_execution`, at
            the first chance after them), the end of the first epoch included; each is recorded.
        not_finite: What is logged for a number that is not finite: NaN, or a large number where
            `EarlyStopping` or `ModelCheckpoint` watches it, since NaN in the first epoch would stay
            their best value. The records hold NaN.
        samples: Measure on a fixed random subsample of this size; `None` uses all data.
        mode, batch_size, penalties: Those of the `LossSurface`.
        seed: Seed of the subsample.

    Raises:
        TypeError: a measure that cannot be called, or data that cannot be read twice.
        ValueError: no measures, empty data or data of different lengths, `every` or `batch_size`
            below 1, an unknown mode; when the fit begins, a model without a loss.

    Example:

    >>> import keras, numpy as np
    >>> from keras_regtools import vectors
    >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> def gradient_norm(surface):
    ...     return vectors.norm(surface.value_and_gradient()[1])
    >>> x = np.ones((8, 1), "float32")
    >>> measure = Measure({"gradient/norm": gradient_norm}, x, x)
    >>> history = model.fit(x, x, epochs=2, callbacks=[measure], verbose=0)
    >>> len(history.history["gradient/norm"])
    2
    """

    shared = ("data", "measures")
    dropped = ("_surface",)

    def __init__(
        self,
        measures: Any,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        *,
        every: int = 1,
        every_steps: int | None = None,
        not_finite: float = math.nan,
        samples: int | None = None,
        mode: str = "inference",
        batch_size: int = 256,
        penalties: bool = True,
        seed: int = 0,
        name: str = "measure",
    ) -> None:
        super().__init__(name)
        self.measures = named_callables("measures", measures)
        self.every = positive_integer("every", every)
        self.every_steps = every_steps
        if every_steps is not None:
            self.every_steps = positive_integer("every_steps", every_steps)
        self.not_finite = number("not_finite", not_finite)
        self.mode = one_of("mode", mode, MODES)
        self.penalties = flag("penalties", penalties)
        self.data = Batches(x, y, sample_weight, batch_size=batch_size).subsample(
            samples, integer_from("seed", seed, 0)
        )
        self._surface: Any = None
        self._start()

    def _start(self):
        self._values = {}  # what is logged, by measure; its keys stay those of the first time
        self._last_step = None
        self._steps = Steps()
        self._warned = False

    def on_train_begin(self, logs: Any = None) -> None:
        self._start()
        model = self.model
        if not self._is_of(model):
            keras_model(model, built=False, compiled=True)
            self._surface = None
            if model.built:
                self._build(model)

    def _is_of(self, model):
        """Whether the surface is that of the model as it is compiled and trainable now."""
        surface = self._surface
        return surface is not None and surface.model is model and surface.is_current()

    def _build(self, model):
        self._surface = LossSurface(model, self.data, mode=self.mode, penalties=self.penalties)

    def fit_begins(self, epoch: int) -> None:
        if epoch > 0 and self.every_steps:  # as if the run had never been cut off
            self._steps = Steps(self.step())
            self._last_step = self._steps.made // self.every_steps * self.every_steps

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        super().on_epoch_begin(epoch, logs)
        self._steps.epoch_begins()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._steps.batch_ends(batch, self.params)
        if self.every_steps and self._steps.made - (self._last_step or 0) >= self.every_steps:
            self._measure_now(self._epoch)
        super().on_train_batch_end(batch, logs)

    def training_over(self, epoch: int, logs: Any) -> None:
        last = epoch + 1 == (self.params or {}).get("epochs")
        due = not self.every_steps and (epoch % self.every == 0 or last)
        if not due and not self._values:  # the logs have the same keys in every epoch
            due = not self._go_on()
        if due and self._last_step != self._steps.made:
            self._measure_now(epoch)

    def _go_on(self):
        """Take the last values of a run that goes on from its records, if they are there."""
        kept = self.records.earlier.get(self.name)
        if self._epoch == 0 or not isinstance(kept, dict) or set(kept) != set(self.measures):
            return False
        self._values = {
            name: {key: self.records.last(key) for key in keys} for name, keys in kept.items()
        }
        return True

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        super().on_epoch_end(epoch, logs)
        stopped = self.model.stop_training and not self.every_steps
        if stopped and self._last_step != self._steps.made:  # it was the last epoch after all
            self._measure_now(epoch)
        if logs is not None:
            for values in self._values.values():
                logs.update({k: self._loggable(v) for k, v in values.items()})

    def _loggable(self, value):
        return self.not_finite if math.isnan(value) else value

    def _measure_now(self, epoch):
        self._last_step = self._steps.made
        with self.timed(epoch):
            _ = self.model  # which on JAX brings the variables up to date
            self._measure(epoch)
        self.records.keep(self.name, {name: list(v) for name, v in self._values.items()})

    def _measure(self, epoch):
        if self._surface is None:
            self._build(self.model)
        for name, measure in self.measures.items():
            try:
                scalars = flat(name, measure(self._surface))
                problem = f"{scalars}"
            except Exception as error:  # a measure never ends a training run
                scalars, problem = {name: math.nan}, repr(error)
            scalars = {k: finite_or_nan(v) for k, v in scalars.items()}
            keys = self._values.get(name) or ([name] if name in scalars else scalars)
            self._values[name] = {key: scalars.get(key, math.nan) for key in keys}
            if any(math.isnan(v) for v in self._values[name].values()):
                self._warn(name, epoch, problem)
            self.record(epoch, scalars)

    def _warn(self, name, epoch, problem):
        if not self._warned:
            self._warned = True
            logged = "NaN" if math.isnan(self.not_finite) else self.not_finite
            warnings.warn(
                f"The measure {name!r} gave no finite number in epoch {epoch + 1}; it is logged as "
                f"{logged} and training goes on. Received: {problem}",
                stacklevel=2,
            )
