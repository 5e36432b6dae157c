"""Scale the learning rate with the batch size, with gradual warm-up."""

from __future__ import annotations

import math
import warnings
import weakref
from typing import Any

import keras

from keras_regtools import validation
from keras_regtools.callbacks.recording import RecordingCallback, read_iteration, read_rate
from keras_regtools.keras_internals import schedule_of
from keras_regtools.training import (
    SCALED,
    RateScaling,
    ScaledSchedule,
    ScheduleCorrection,
    add_hook,
    base_optimizers,
    bind,
    correct_momentum,
    end,
    held_optimizers,
    remake_step,
    take_out,
    training_optimizer,
    warmup_factor,
)

RULES = {"linear": lambda k: k, "sqrt": math.sqrt}


class LinearScalingLR(RecordingCallback):
    """Multiply the learning rate as the batch size is multiplied, after a gradual warm-up.

    With k = batch_size / base_batch_size, the rate starts at the base rate η, grows by a constant
    in every training step and reaches kη (`rule="linear"`) or √k η (`"sqrt"`) after the warm-up:
    η_t = η + (kη − η) t / T. It is set inside the training step, exactly also with
    `steps_per_execution` above 1. Afterwards the rate is left to other callbacks. A fit that
    `keras.callbacks.BackupAndRestore` resumes goes on where it was, and so does a second fit of the
    same model, and, beside a `Report` that goes on in its directory, a fit of a model from a file
    with `initial_epoch`. Without one the rate in the file is taken for one that was scaled before,
    with a warning, unless `base_learning_rate` is given. Of a model with optimizers of its own all
    are scaled; the logs get the rate of the first that makes steps.

    An optimizer built with a learning-rate schedule keeps it, and the factor multiplies it; the
    schedule itself is given back when the fit ends.

    Args:
        batch_size: The batch size of this fit, a positive integer.
        base_batch_size: The batch size for which the base rate was found, a positive integer.
        base_learning_rate: The base rate η; the optimizer's own by default.
        rule: `"linear"` or `"sqrt"`.
        warmup_epochs: Length T of the warm-up in epochs, zero or above; 0 starts at the target.
        warmup_steps: The same in training steps, in place of `warmup_epochs`.
        momentum_correction: Whether to multiply the velocities of `SGD` and `RMSprop` by
            η_{t+1} / η_t when the rate changes: in each step of the warm-up, and at the first batch
            of an epoch when another callback has changed it since.
        verbose: 1 prints what will happen.

    Raises:
        ValueError: a batch size or rate that is not positive, a negative warm-up, an unknown rule;
            when the fit begins, a model that is not compiled, or a number of steps that is not
            known and is needed.

    Reference:
        [Goyal et al., 2017](https://arxiv.org/abs/1706.02677), where η = 0.1 at 256 samples.

    Example:

    >>> import keras, numpy as np
    >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    >>> model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "mse")
    >>> scaling = LinearScalingLR(batch_size=8, base_batch_size=2, warmup_epochs=1)
    >>> x = np.ones((32, 1), "float32")
    >>> history = model.fit(x, x, batch_size=8, epochs=2, callbacks=[scaling], verbose=0)
    >>> [round(rate, 4) for rate in history.history["learning_rate"]]
    [0.0325, 0.04]
    """

    def __init__(
        self,
        batch_size: int,
        base_batch_size: int,
        base_learning_rate: float | None = None,
        *,
        rule: str = "linear",
        warmup_epochs: float = 5,
        warmup_steps: int | None = None,
        momentum_correction: bool = True,
        verbose: int = 0,
    ) -> None:
        super().__init__("linear_scaling_lr")
        self.batch_size = validation.positive_integer("batch_size", batch_size)
        self.base_batch_size = validation.positive_integer("base_batch_size", base_batch_size)
        rate = validation.optional(validation.positive)
        self.base_learning_rate = rate("base_learning_rate", base_learning_rate)
        self.rule = validation.one_of("rule", rule, tuple(RULES))
        self.warmup_epochs = validation.non_negative("warmup_epochs", warmup_epochs)
        steps = validation.optional(validation.non_negative)("warmup_steps", warmup_steps)
        self.warmup_steps = None if steps is None else int(steps)
        self.momentum_correction = validation.flag("momentum_correction", momentum_correction)
        self.verbose = verbose
        self._undo = []
        self._starts: Any = None

    @property
    def factor(self) -> float:
        """The multiple of the base rate that is reached."""
        return RULES[self.rule](self.batch_size / self.base_batch_size)

    def set_params(self, params: Any) -> None:
        super().set_params(params)
        self.records.claims.add("learning_rate")

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        if getattr(model, "optimizer", None) is None:
            validation.keras_model(model, built=False, compiled=True)
        # Read here, before another callback's `on_train_begin` restores a cut-off run.
        self._starts = [
            (optimizer, read_iteration(optimizer), self._base_rate(optimizer))
            for held in held_optimizers(model)
            for optimizer in base_optimizers(held)
        ]

    def _base_rate(self, optimizer):
        if schedule_of(optimizer) is not None:
            return None
        return self.base_learning_rate or read_rate(optimizer)

    def on_train_begin(self, logs: Any = None) -> None:
        self._warmup_end = self._steps()
        self._effective_starts, self._last_rate, self._check = [], None, False
        for optimizer, _, _ in self._starts:
            if schedule_of(optimizer) is not None and self.base_learning_rate is not None:
                raise ValueError(
                    "Expected no `base_learning_rate` for an optimizer built with a schedule, "
                    f"which the factor multiplies. Received: {self.base_learning_rate}"
                )

    def fit_begins(self, epoch: int) -> None:
        kept = self.records.earlier.get(self.name) if epoch > 0 else None
        places = []
        for i, (optimizer, start, base) in enumerate(self._starts):
            before = kept[i] if isinstance(kept, list) and i < len(kept) else None
            start, base = self._where_it_began(optimizer, start, base, epoch, before)
            self._install(optimizer, start, base, self._warmup_end)
            places.append([start, base])
        self.records.keep(self.name, places)
        self._begun_at, self._warned = self.step(), False
        remake_step(self.model)

    def _where_it_began(self, optimizer, start, base, epoch, before):
        """The iteration and the rate at which the run began that this fit goes on with.

        `start` and `base` were found before any backup was restored; `before` is what the run kept.
        """
        wanted = (self.factor, self.base_learning_rate, self._warmup_end)
        known = SCALED.get(optimizer)
        if known is not None:  # scaled in this process
            if known["wanted"] == wanted:
                return known["start"], known["base"]
            return start, known["base"] if self.base_learning_rate is None else base
        if epoch == 0:
            return start, base
        steps = (self.params or {}).get("steps") or 0
        if start == 0:  # a new optimizer: a backup was restored into it, or only weights were
            return (0 if read_iteration(optimizer) else -epoch * steps), base
        schedule = schedule_of(optimizer)
        if isinstance(schedule, ScaledSchedule):  # saved in the middle of a fit
            return schedule.start, base
        if before is not None:
            return before[0], before[1] if self.base_learning_rate is None else base
        begin = max(start - epoch * steps, 0)
        if base is not None and self.base_learning_rate is None:
            base = self._unscaled(base, start - begin, epoch)
        return begin, base

    def _unscaled(self, rate, steps, epoch):
        """The base rate of a run that went on for so many steps and reached a rate."""
        made = max(steps - 1, 0)  # the rate is that of the last step
        base = rate / float(warmup_factor(made, self.factor, self._warmup_end))
        warnings.warn(
            f"The rate {rate:.3g} of a model that goes on with epoch {epoch + 1} is taken for one "
            f"that was scaled before, from {base:.3g}. Pass `base_learning_rate` to say it.",
            stacklevel=2,
        )
        return base

    def _steps(self):
        if self.warmup_steps is not None:
            return self.warmup_steps
        if self.warmup_epochs == 0:
            return 0
        steps = (self.params or {}).get("steps")
        if not steps:
            raise ValueError(
                "Expected a known number of steps per epoch for `warmup_epochs`. Received: data of "
                "unknown length. Pass `warmup_steps=` or `steps_per_epoch=` to `fit`."
            )
        return round(self.warmup_epochs * steps)

    def _install(self, optimizer, start, base, steps):
        """Put the scaling into an optimizer, for this fit."""
        wanted = (self.factor, self.base_learning_rate, steps)
        SCALED[optimizer] = {"wanted": wanted, "start": start, "base": base}
        self._effective_starts.append(start)
        schedule = schedule_of(optimizer)
        if isinstance(schedule, ScaledSchedule):  # of a checkpoint saved during a fit
            schedule = schedule.schedule
        if schedule is None:
            hook = RateScaling(base, self.factor, steps, start, self.momentum_correction)
            self._announce(f"{base:g}", f"{base * self.factor:g}", steps)
        else:
            optimizer.learning_rate = ScaledSchedule(schedule, self.factor, steps, start)
            hook = ScheduleCorrection() if self.momentum_correction else None
            self._announce("its schedule", f"{self.factor:g} times that", steps)
        if hook is not None:
            add_hook(optimizer, hook)
        # When the fit ends in an exception, things are put back as soon as this object goes.
        undo = weakref.finalize(self, take_out, weakref.ref(self.model), optimizer, hook, schedule)
        undo.atexit = False
        bind(self.model, undo)  # and when another fit begins
        self._undo.append(undo)

    def _announce(self, base, target, steps):
        if self.verbose:
            length = math.prod((self.params or {}).get(n) or 0 for n in ("epochs", "steps"))
            short = f", of which this fit makes {length}" if 0 < length < steps else ""
            print(f"LinearScalingLR: from {base} to {target} in {steps} steps{short}")

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        super().on_epoch_begin(epoch, logs)
        self._check = self._last_rate is not None
        self._length = (self.params or {}).get("steps") or math.inf
        self._every = max(1, int(min(self._length, 1e9)) // 10) if self._length < math.inf else 1
        self._applied = None
        self._next = 0

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if self._check:
            self._check = False
            self._follow_others()

    def _follow_others(self):
        """Correct the momentum after another callback has changed the rate between two epochs."""
        optimizer = training_optimizer(self.model)
        rate = read_rate(optimizer)
        if self.momentum_correction and schedule_of(base_optimizers(optimizer)[0]) is None:
            past = read_iteration(optimizer) > self._effective_starts[0] + self._warmup_end
            if past and rate != self._last_rate and self._last_rate > 0:
                correct_momentum(optimizer, rate / self._last_rate)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        is_last = batch >= self._length - 1
        if batch < self._next and not is_last:
            return
        self._next = batch + self._every
        rate = self.record_rate(self._epoch)
        if is_last:  # before another callback changes it at the end of the epoch
            self._applied = rate
        super().on_train_batch_end(batch, logs)

    def training_over(self, epoch: int, logs: Any) -> None:
        with self.timed(epoch):
            if self._applied is None:
                self._applied = self.record_rate(epoch)
            self._last_rate = self._applied
        self._warn_of_standing_still()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        super().on_epoch_end(epoch, logs)
        if logs is not None:
            logs["learning_rate"] = self._last_rate

    def _warn_of_standing_still(self):
        """An optimizer that makes no step trains nothing, whatever its rate is."""
        if not self._warned and self.step() == self._begun_at:
            self._warned = True
            warnings.warn(
                "No optimizer that the model holds has made a step in this epoch: the learning "
                "rate that is logged is not the one of the training.",
                stacklevel=2,
            )

    def on_train_end(self, logs: Any = None) -> None:
        for undo in self._undo:
            end(self.model, undo)
        self._undo = []

    def __deepcopy__(self, memo):
        undo, starts = self._undo, self._starts
        self._undo, self._starts = [], None
        try:
            return super().__deepcopy__(memo)
        finally:
            self._undo, self._starts = undo, starts
