"""A learning rate that warms up from a base rate to a multiple of it, inside the step."""

import functools
import math
import warnings
import weakref
from typing import Any

import keras
from keras import ops

from keras_regtools.keras_internals import iteration, schedule_of, set_train_step
from keras_regtools.training.momentum import correct_momentum
from keras_regtools.training.optimizer_hooks import add_hook, remove_hook


def warmup_factor(step, factor, warmup_steps):
    """The multiple of the base rate at a step: from 1 to `factor` in equal additions.

    Args:
        step: Steps made since the warm-up began, a number or a tensor.
        factor: The multiple from `warmup_steps` on.
        warmup_steps: Steps of the warm-up; 0 begins with `factor`.

    Example:

    >>> [round(0.1 * float(warmup_factor(t, 32, 50)), 6) for t in (0, 1, 25, 50, 51)]
    [0.1, 0.162, 1.65, 3.2, 3.2]
    """
    if warmup_steps == 0:
        return ops.ones_like(ops.cast(step, "float32")) * factor
    done = ops.clip(ops.cast(step, "float32") / warmup_steps, 0.0, 1.0)
    return 1.0 + (factor - 1.0) * done


def warmup_length(epochs, given, steps):
    """Steps of a warm-up that is given in epochs, or in steps.

    Args:
        epochs, given: Epochs, and steps or `None`; the latter count.
        steps: Steps of an epoch, or `None`.
    """
    if given is not None:
        return given
    if epochs == 0:
        return 0
    if not steps:
        raise ValueError(
            "Expected a known number of steps per epoch for `warmup_epochs`. Received: data of "
            "unknown length. Pass `warmup_steps=` or `steps_per_epoch=` to `fit`."
        )
    return round(epochs * steps)


def warn_of_long_warmup(steps, made, params):
    """Say it if a fit ends before its warm-up does.

    Args:
        steps: Of the warm-up.
        made: Of it before this fit.
        params: Those that Keras gives its callbacks.
    """
    length = math.prod(params.get(name) or 0 for name in ("epochs", "steps"))
    if length > 0 and length + made < steps:
        warnings.warn(
            f"A warm-up of {steps} steps is longer than this fit, which makes {length}: the "
            "rate of the larger batch is not reached. Pass fewer `warmup_epochs`.",
            stacklevel=4,
        )


# What each optimizer was scaled from, so that a second fit goes on instead of scaling again.
SCALED: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


def hand_on(old, new):
    """Let a copy of an optimizer begin from the base rate that the old one was scaled from."""
    if old in SCALED:
        SCALED[new] = {**SCALED[old], "start": 0}


class RateScaling:
    """Hook that sets the learning-rate variable of an optimizer in each step of the warm-up.

    After the warm-up the variable belongs to whoever assigns it: the last thing done to it is to
    set it to `factor` times the base rate.

    Args:
        base: The base learning rate.
        factor: The multiple to reach.
        warmup_steps: Steps of the warm-up.
        start: Iteration at which it begins.
        correct: Whether to correct the momentum as the rate changes.
    """

    def __init__(self, base, factor, warmup_steps, start, correct):
        self.base, self.factor, self.correct = base, factor, correct
        self.warmup_steps, self.start = warmup_steps, start

    def rate(self, step):
        """The rate of a step counted from the start."""
        return self.base * warmup_factor(step, self.factor, self.warmup_steps)

    def __call__(self, optimizer):
        step = iteration(optimizer) - self.start
        current = ops.convert_to_tensor(optimizer.learning_rate)
        rate = ops.where(
            step <= self.warmup_steps, ops.cast(self.rate(step), current.dtype), current
        )
        if self.correct:
            correct_momentum(optimizer, ops.where(current > 0, rate / current, 1.0))
        optimizer.learning_rate.assign(rate)


class ScheduleCorrection:
    """Hook that corrects the momentum of an optimizer whose rate is a schedule of the iteration."""

    def __call__(self, optimizer):
        raw = iteration(optimizer)
        every = optimizer.gradient_accumulation_steps or 1
        schedule = schedule_of(optimizer)
        before = schedule(ops.maximum(raw - every, 0))
        updates = ops.logical_and(raw >= every, ops.equal(ops.mod(raw + 1, every), 0))
        ratio = schedule(raw) / ops.where(before > 0, before, 1.0)
        correct_momentum(optimizer, ops.where(ops.logical_and(updates, before > 0), ratio, 1.0))


@keras.saving.register_keras_serializable(package="keras_regtools")
class ScaledSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """A learning-rate schedule times the factor of a warm-up.

    Args:
        schedule: The schedule to scale.
        factor: The multiple to reach.
        warmup_steps: Steps of the warm-up.
        start: Iteration at which it begins.

    Example:

    >>> import keras
    >>> decay = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5)
    >>> [round(float(ScaledSchedule(decay, 4, 10)(t)), 6) for t in (0, 10, 20)]
    [0.1, 0.2, 0.1]
    """

    def __init__(self, schedule, factor, warmup_steps, start=0):
        self.schedule, self.factor = schedule, factor
        self.warmup_steps, self.start = warmup_steps, start

    def __call__(self, step):
        since = ops.convert_to_tensor(step) - self.start
        return self.schedule(step) * warmup_factor(since, self.factor, self.warmup_steps)

    def get_config(self):
        return {
            "schedule": keras.optimizers.schedules.serialize(self.schedule),
            "factor": self.factor,
            "warmup_steps": self.warmup_steps,
            "start": self.start,
        }

    @classmethod
    def from_config(cls, config):
        schedule = keras.optimizers.schedules.deserialize(config["schedule"])
        return cls(**{**config, "schedule": schedule})


def where_it_began(optimizer, start, base, epoch, before, wanted, steps):
    """The iteration and the rate at which the run began that a fit goes on with.

    Args:
        optimizer: A base optimizer.
        start, base: What was found before any backup was restored.
        epoch: The first epoch of the fit.
        before: `(start, base)` that the run kept, or `None`.
        wanted: `(factor, base rate that was given, steps of the warm-up)`.
        steps: Steps of an epoch, 0 if they are not known.
    """
    known, given = SCALED.get(optimizer), wanted[1]
    if known is not None:  # scaled in this process
        if known["wanted"] == wanted:
            return known["start"], known["base"]
        return start, known["base"] if given is None else base
    if epoch == 0:
        return start, base
    made = int(ops.convert_to_numpy(iteration(optimizer)))
    if start == 0:  # a new optimizer: a backup was restored into it, or only weights were
        return (0 if made else -epoch * steps), base
    schedule = schedule_of(optimizer)
    if isinstance(schedule, ScaledSchedule):  # saved in the middle of a fit
        return schedule.start, base
    if before is not None:
        return before[0], before[1] if given is None else base
    begin = max(start - epoch * steps, 0)
    if base is not None and given is None:
        base = _unscaled(base, start - begin, epoch, wanted)
    return begin, base


def _unscaled(rate, steps, epoch, wanted):
    """The base rate of a run that went on for so many steps and reached a rate."""
    made = max(steps - 1, 0)  # the rate is that of the last step
    base = rate / float(warmup_factor(made, wanted[0], wanted[2]))
    warnings.warn(
        f"The rate {rate:.3g} of a model that goes on with epoch {epoch + 1} is taken for one "
        f"that was scaled before, from {base:.3g}. Pass `base_learning_rate` to say it.",
        stacklevel=2,
    )
    return base


def put_in(model, optimizer, base, factor, steps, start, correct):
    """Put a scaling into an optimizer of a model.

    Args:
        model: The model.
        optimizer: A base optimizer.
        base, factor, steps, start, correct: As for `RateScaling`; `base` is `None` for a schedule.

    Returns:
        A function that takes it out again, also of the compiled step. It keeps no model alive.
    """
    schedule = schedule_of(optimizer)
    if isinstance(schedule, ScaledSchedule):  # of a checkpoint saved during a fit
        schedule = schedule.schedule
    if schedule is None:
        hook = RateScaling(base, factor, steps, start, correct)
    else:
        optimizer.learning_rate = ScaledSchedule(schedule, factor, steps, start)
        hook = ScheduleCorrection() if correct else None
    if hook is not None:
        add_hook(optimizer, hook)
    return functools.partial(_take_out, weakref.ref(model), optimizer, hook, schedule)


def _take_out(model, optimizer, hook, schedule):
    if hook is not None:
        remove_hook(optimizer, hook)
    if schedule is not None:
        optimizer.learning_rate = schedule
    if model() is not None:
        set_train_step(model(), None)
