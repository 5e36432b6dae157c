"""Scale the learning rate with the batch size, with gradual warm-up."""

from __future__ import annotations

import math
import warnings
import weakref
from typing import Any

import keras

from keras_regtools import backend, validation
from keras_regtools.callbacks.recording import RecordingCallback, read_iteration, read_rate
from keras_regtools.keras_internals import callbacks_of_fit, schedule_of
from keras_regtools.training import (
    RULES,
    SCALED,
    AdamRule,
    AdaScale,
    NoiseHook,
    base_optimizers,
    bind,
    checked_noise_scale,
    correct_momentum,
    end,
    held_optimizers,
    put_in,
    rate_factor,
    refuse_adascale,
    refuse_base_rate,
    refuse_rivals,
    remake_step,
    told,
    training_optimizer,
    warmup_length,
    warn_of_long_warmup,
    watch_updates,
    where_it_began,
)


class LinearScalingLR(RecordingCallback):
    """Multiply the learning rate as the batch size is multiplied, after a gradual warm-up.

    With k = batch_size / base_batch_size, the rate starts at the base rate η, grows by a constant
    in every training step and reaches f η after the warm-up: η_t = η + (f η − η) t / T. The factor
    f is k for `rule="linear"`, √k for `"sqrt"`. It is set inside the training step, exactly also
    with `steps_per_execution` above 1. Afterwards the rate is left to other callbacks. A fit that
    `keras.callbacks.BackupAndRestore` resumes goes on where it was, and so does a second fit of the
    same model, and, beside a `Report` that goes on in its directory, a fit of a model from a file
    with `initial_epoch`. Without one the rate in the file is taken for one that was scaled before,
    with a warning, unless `base_learning_rate` is given. Of a model with optimizers of its own all
    are scaled; the logs get the rate of the first that makes steps.

    A schedule of the optimizer is multiplied by the factor, and given back when the fit ends.

    Args:
        batch_size: The batch size of this fit, a positive integer: what `fit` gets, on all replicas
            together. With an optimizer that accumulates gradients over steps it is multiplied by
            their number, as Keras takes the mean over them.
        base_batch_size: The batch size for which the base rate was found, a positive integer.
        base_learning_rate: The base rate η; the optimizer's own by default.
        rule: `"linear"`; `"sqrt"`; `"adam"`, √k with Adam's β and ε changed too, for the time of
            the fit ([Malladi et al., 2022](https://arxiv.org/abs/2205.10287)); `"noise_scale"`,
            which ends where the noise does, see `noise_scale`; `"adascale"`, without a warm-up the
            gain, between 1 and k, that the parts of a step show, which are accumulated batches or
            replicas ([Johnson et al., 2020](https://arxiv.org/abs/2007.05105)): others change its
            base rate, the history gets `adascale/gain` and `adascale/progress`, which a resumed run
            keeps beside a `Report` alone; or a function of k.
        noise_scale: For that rule, B_noise as `measures.gradient_noise_scale` gives it, a number or
            its result: the rate is proportional to B / (B + B_noise).
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
        rule: Any = "linear",
        noise_scale: Any = None,
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
        self.rule = rule if callable(rule) else validation.one_of("rule", rule, RULES)
        self.noise_scale = checked_noise_scale(rule, noise_scale)
        self.warmup_epochs = validation.non_negative("warmup_epochs", warmup_epochs)
        steps = validation.optional(validation.non_negative)("warmup_steps", warmup_steps)
        self.warmup_steps = None if steps is None else int(steps)
        self.momentum_correction = validation.flag("momentum_correction", momentum_correction)
        self.verbose = verbose
        self._undo = []
        self._starts: Any = None
        self._gains: Any = None
        self._accumulated = 1
        rate_factor(self.rule, self.batch_size, self.base_batch_size, self.noise_scale)

    @property
    def effective_batch_size(self) -> int:
        """Samples of an update, those of accumulated steps included once a fit has begun."""
        return self.batch_size * self._accumulated

    @property
    def factor(self) -> float:
        """The multiple of the base rate that is reached."""
        sizes = self.effective_batch_size, self.base_batch_size
        return rate_factor(self.rule, *sizes, self.noise_scale)

    def set_params(self, params: Any) -> None:
        super().set_params(params)
        self.records.claims.add("learning_rate")

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        if getattr(model, "optimizer", None) is None:
            validation.keras_model(model, built=False, compiled=True)
        first = base_optimizers(training_optimizer(model))[0]
        self._accumulated = first.gradient_accumulation_steps or 1
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
        steps = (self.params or {}).get("steps")
        self._warmup_end = warmup_length(self.warmup_epochs, self.warmup_steps, steps)
        refuse_rivals(self, LinearScalingLR, callbacks_of_fit(), self._warmup_end)
        self._effective_starts, self._last_rate, self._check = [], None, False
        self._gains = None
        optimizers = [optimizer for optimizer, *_ in self._starts]
        schedules = [schedule_of(optimizer) for optimizer in optimizers]
        if self.rule == "adascale":
            replicas = backend.replica_count(self.model.variables[0])
            sizes = self.effective_batch_size, self.base_batch_size
            self._parts = refuse_adascale(optimizers, schedules, replicas, *sizes)
            self._warmup_end = 0
        if self.rule == "adam":
            for optimizer in optimizers:  # which says what is wrong with it
                AdamRule(optimizer, self.effective_batch_size / self.base_batch_size)
        refuse_base_rate(schedules, self.base_learning_rate)

    def fit_begins(self, epoch: int) -> None:
        kept = self.records.earlier.get(self.name) if epoch > 0 else None
        places, wanted = [], (self.factor, self.base_learning_rate, self._warmup_end)
        for i, (optimizer, start, base) in enumerate(self._starts):
            before = kept[i] if isinstance(kept, list) and i < len(kept) else None
            steps = (self.params or {}).get("steps") or 0
            start, base = where_it_began(optimizer, start, base, epoch, before, wanted, steps)
            SCALED[optimizer] = {"wanted": wanted, "start": start, "base": base}
            self._effective_starts.append(start)
            places.append([start, base])
            self._announce(base, read_iteration(optimizer) - start)
        self.records.keep(self.name, places)
        self._put_in(places, self.records.earlier.get("adascale") if epoch > 0 else None)
        self._begun_at, self._warned = self.step(), False

    def _put_in(self, places, kept):
        optimizers = [optimizer for optimizer, *_ in self._starts]
        if self.rule == "adascale":
            arguments = self.model.trainable_variables, 1, self.model.jit_compile
            pairs = watch_updates(self, self.model, lambda: NoiseHook(*arguments))
            self._undo += [undo for _, undo in pairs]
            bases, hooks = [base for _, base in places], [hook for hook, _ in pairs]
            self._gains = AdaScale(optimizers, bases, hooks, self._parts, kept)
            return
        for optimizer, (start, base) in zip(optimizers, places, strict=True):
            given = self.factor, self._warmup_end, start, self.momentum_correction
            self._until_the_end(put_in(self.model, optimizer, base, *given))
        if self.rule == "adam":
            ratio = self.effective_batch_size / self.base_batch_size
            for rule in [AdamRule(optimizer, ratio) for optimizer in optimizers]:
                rule.put_in()
                self._until_the_end(rule)
        remake_step(self.model)

    def _until_the_end(self, undo):
        """Undone at the end of the fit, when the next begins, or as soon as this object goes."""
        once = weakref.finalize(self, undo)
        once.atexit = False
        bind(self.model, once)
        self._undo.append(once)

    def _announce(self, base, made):
        warn_of_long_warmup(self._warmup_end, made, self.params or {})
        if self.verbose:
            sizes = self.batch_size, self._accumulated, self.base_batch_size
            print("LinearScalingLR:", told(self.rule, sizes, base, self.factor, self._warmup_end))

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        super().on_epoch_begin(epoch, logs)
        self._check = self._last_rate is not None
        self._length = (self.params or {}).get("steps") or math.inf
        self._every = max(1, int(min(self._length, 1e9)) // 10) if self._length < math.inf else 1
        self._applied, self._next = None, 0

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if self._check:
            self._check = False
            self._follow_others()

    def _follow_others(self):
        """Correct the momentum after another callback has changed the rate."""
        optimizer = training_optimizer(self.model)
        rate = read_rate(optimizer)
        if self.momentum_correction and schedule_of(base_optimizers(optimizer)[0]) is None:
            past = read_iteration(optimizer) > self._effective_starts[0] + self._warmup_end
            if past and rate != self._last_rate and self._last_rate > 0:
                correct_momentum(optimizer, rate / self._last_rate)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self._gains is not None:
            _ = self.model  # which on JAX brings the variables up to date
            self._gains.follow()
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
        if self._gains is not None:
            gains = {f"adascale/{n}": float(getattr(self._gains, n)) for n in ("gain", "progress")}
            self.record(epoch, gains)
            self.records.keep("adascale", self._gains.state)
            self.tell(logs, gains, ())

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
        held = self._undo, self._starts, self._gains
        self._undo, self._starts, self._gains = [], None, None
        try:
            return super().__deepcopy__(memo)
        finally:
            self._undo, self._starts, self._gains = held
