"""Let a penalty's strength, a dropout rate or another setting of ours follow a schedule."""

from __future__ import annotations

import copy
import functools
import inspect
import weakref
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_regtools.callbacks.recording import RecordingCallback, read_iteration
from keras_regtools.keras_internals import iteration, set_train_step
from keras_regtools.state import setting_of, settings_of
from keras_regtools.training import (
    add_step_hook,
    base_optimizers,
    bind,
    end,
    remake_step,
    remove_step_hook,
    training_optimizer,
)
from keras_regtools.validation import keras_model, one_of, text

_LOOKED_AT = 33  # values of a schedule by step that are checked before the first step


class Schedule(RecordingCallback):
    """Set a variable setting of ours in each epoch or step of a fit: a strength, a rate, a ρ.

    By epoch, the value of epoch e, counted from 0, is `schedule(e)`. By step, that of the t-th step
    of the optimizer is `schedule(t)`; it is computed and set inside the compiled step, exactly also
    with `steps_per_execution` above 1, and nothing is traced again. A fit that
    `keras.callbacks.BackupAndRestore` resumes goes on where it was, as epochs and the optimizer's
    steps do. After the fit the last value stays.

    The value of an epoch, or of its last step, goes into the logs and the records.

    Args:
        owner: What the setting belongs to: a penalty, a dropout layer or a callback of ours; a list
            of them, which all get the same value; or a function of the model that finds it, as
            `lambda model: model.get_layer("drop")`.
        name: The setting: `"l2"`, `"rate"`, `"rho"`.
        schedule: A `keras.optimizers.schedules.LearningRateSchedule`, or a function of a number
            that gives one. By step it gets a float tensor and is written with `keras.ops`; steps
            are those of batches, also where gradients are accumulated.
        by: `"epoch"` or `"step"`.
        key: The name in the logs and records; `<owner's name>/<name>` unless given.

    Raises:
        TypeError: `schedule` is not callable.
        ValueError: an owner without such a setting (those that it has are named), an unknown `by`;
            when the fit begins, an owner that is not part of the model, a second schedule of
            the same setting, or a value that the setting cannot take.

    Example:

    >>> import keras, numpy as np
    >>> from keras_regtools.regularizers import L2
    >>> penalty = L2(0.0)
    >>> model = keras.Sequential(
    ...     [keras.Input((1,)), keras.layers.Dense(1, kernel_regularizer=penalty)])
    >>> model.compile("sgd", "mse")
    >>> x = np.ones((8, 1), "float32")
    >>> follow = Schedule(penalty, "l2", lambda epoch: 0.1 * 0.5**epoch, key="l2")
    >>> model.fit(x, x, epochs=3, verbose=0, callbacks=[follow]).history["l2"]
    [0.1, 0.05, 0.025]
    """

    shared = ("owner", "schedule")  # what a search's copy acts on, too
    dropped = ("_undo", "_owners")

    def __init__(
        self,
        owner: Any,
        name: str,
        schedule: Callable[[Any], Any],
        by: str = "epoch",
        *,
        key: str | None = None,
    ) -> None:
        super().__init__("schedule")
        if not callable(schedule):
            raise TypeError(
                "Expected `schedule` to be a `LearningRateSchedule` or a function of a number. "
                f"Received: schedule={schedule!r}"
            )
        self.owner, self.setting, self.schedule = owner, text("name", name), schedule
        self.by = one_of("by", by, ("epoch", "step"))
        self.key = key if key is None else text("key", key)
        if key is not None and (not key or key == "loss" or key.startswith("val_")):
            raise ValueError(f"Expected a `key` of its own in the logs. Received: key={key!r}")
        if not inspect.isfunction(owner):
            self._found(owner)
        self._undo: Any = None

    def _found(self, owner):
        """The owners, each with such a setting."""
        owners = list(owner) if isinstance(owner, (list, tuple)) else [owner]
        if not owners:
            raise ValueError("Expected `owner` to be something to set. Received: an empty list")
        for one in owners:
            if setting_of(one, self.setting) is None:
                known = settings_of(one)
                plain = getattr(keras.layers, type(one).__name__, None) is type(one)
                hint = " A layer of Keras has its rate fixed: see `keras_regtools.layers`."
                raise ValueError(
                    f"Expected an object with the setting {self.setting!r}. Received: a "
                    f"{type(one).__name__}, whose settings are {known}.{hint if plain else ''}"
                )
        return owners

    def on_train_begin(self, logs: Any = None) -> None:
        model = keras_model(self.model, built=False, compiled=True)
        owner = self.owner(model) if inspect.isfunction(self.owner) else self.owner
        self._owners = self._found(owner)
        self._key = self.key or f"{self._owners[0].name}/{self.setting}"
        known = {id(v) for v in model.variables}
        for one in self._owners:
            variable = setting_of(one, self.setting).variable(one)
            of_fit = isinstance(one, keras.callbacks.Callback) and one.model is model
            if not of_fit and id(variable) not in known:
                lacks = (
                    f"{type(one).__name__}, which is not among the callbacks of this fit"
                    if isinstance(one, keras.callbacks.Callback)
                    else f"{one!r}, which the model does not have"
                )
                raise ValueError(
                    f"Expected a part of the fit of the model {model.name!r} to follow a "
                    f"schedule. Received: {lacks}"
                )
            claim = ("schedule", id(variable))
            if claim in self.records.claims:
                raise ValueError(
                    f"Expected one schedule for each setting. Received: a second one for "
                    f"{self.setting!r} of {one!r}"
                )
            self.records.claims.add(claim)
        if ("schedule", self._key) in self.records.claims:
            raise ValueError(
                f"Expected a name of its own for each schedule. Received: a second {self._key!r}. "
                "Pass `key=`"
            )
        self.records.claims.add(("schedule", self._key))

    def fit_begins(self, epoch: int) -> None:
        if self.by == "epoch":
            return
        optimizer = base_optimizers(training_optimizer(self.model))[0]
        self._check_ahead(read_iteration(optimizer))
        hook = _StepHook(optimizer, self.schedule, self._owners, self.setting)
        add_step_hook(self.model, hook)
        undo = functools.partial(_release, weakref.ref(self.model), hook)
        bind(self.model, undo)
        self._undo = undo
        remake_step(self.model)

    def _check_ahead(self, begin):
        """What the step would set without a word is looked at before it does."""
        params = self.params or {}
        length = (params.get("steps") or 1) * max(params.get("epochs") or 1, 1)
        for step in np.unique(np.linspace(begin, max(begin, length - 1), _LOOKED_AT).astype(int)):
            self._value(int(step))

    def _value(self, at):
        """The value at an epoch or step, as a float that the setting can take."""
        given = (
            _at_step(self.schedule, ops.convert_to_tensor(at))
            if self.by == "step"
            else (self.schedule(at))
        )
        try:
            value = float(str(np.asarray(ops.convert_to_numpy(given))[()]))
        except (TypeError, ValueError):
            value = given
        constraint = setting_of(self._owners[0], self.setting).constraint
        return constraint(f"schedule({at})", value)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        super().on_epoch_begin(epoch, logs)
        if self.by == "epoch":
            self._current = self._value(epoch)
            for owner in self._owners:
                setattr(owner, self.setting, self._current)

    def training_over(self, epoch: int, logs: Any) -> None:
        if self.by == "step":
            last = self.step() - 1
            self._current = self._value(max(last, 0))
        self.record(epoch, {self._key: self._current})

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        super().on_epoch_end(epoch, logs)
        if logs is not None:
            logs[self._key] = self._current

    def on_train_end(self, logs: Any = None) -> None:
        if self._undo is not None:
            end(self.model, self._undo)
            self._undo = None

    def __deepcopy__(self, memo):
        new = super().__deepcopy__(memo)
        new.owner = _copied_callbacks(self.owner, memo)
        return new


def _copied_callbacks(owner, memo):
    """Callbacks are copied with the list that they stand in; parts of a model are not."""
    if isinstance(owner, (list, tuple)):
        return [_copied_callbacks(one, memo) for one in owner]
    return copy.deepcopy(owner, memo) if isinstance(owner, keras.callbacks.Callback) else owner


def _at_step(schedule, step):
    """The value of a schedule of the step; a function gets a float, with which it can reckon."""
    if not isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule):
        step = ops.cast(step, "float32")
    try:
        return schedule(step)
    except Exception as error:
        raise ValueError(
            "Expected a `schedule` that by step is a function of a tensor, written with "
            f"`keras.ops` (as `keras.ops.where` for `if`). It gave: {type(error).__name__}: {error}"
        ) from error


class _StepHook:
    """Sets the settings at the beginning of a step, as the schedule says."""

    def __init__(self, optimizer, schedule, owners, name):
        self.optimizer, self.schedule, self.owners, self.name = optimizer, schedule, owners, name

    def __call__(self, data):
        value = ops.cast(_at_step(self.schedule, iteration(self.optimizer) + 0), "float32")
        for owner in self.owners:
            setting = setting_of(owner, self.name)
            variable = setting.variable(owner)
            variable.assign(ops.cast(setting.encoded(value, ops), variable.dtype))


def _release(model, hook):
    if model() is not None:
        remove_step_hook(model(), hook)
        set_train_step(model(), None)
