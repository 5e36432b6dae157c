"""The same search with Optuna: an objective for `study.optimize`."""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import Callable
from typing import Any

import keras
import keras_tuner

from keras_regtools.tuner.hypermodel import RegularizationHyperModel
from keras_regtools.tuner.trial_results import COSTS


def optuna_objective(
    hypermodel: RegularizationHyperModel,
    x: Any,
    y: Any = None,
    *,
    objectives: Any = "val_loss",
    callbacks: Any = (),
    **fit: Any,
) -> Callable[[Any], Any]:
    """An objective for `optuna.study.Study.optimize`: the same hyperparameters under the same
    names, and the same table.

    A trial reports its validation loss without penalties after each epoch and is pruned where the
    study's pruner says so, if there is one objective. A trial that diverges gives NaN, which Optuna
    records as failed; the reason is its user attribute `reason`. All results are user attributes.

    Args:
        hypermodel: A `RegularizationHyperModel`.
        x, y: As for KerasTuner's `search`.
        objectives: The name of a result, or a list of names for a study of several `directions`.
        callbacks: Callbacks for each trial, which is given copies of them.
        **fit: `validation_data` or `validation_split`, `epochs`, and other arguments of `fit`.

    Returns:
        A function of an `optuna.trial.Trial`.

    Raises:
        ImportError: Optuna is not installed.
        TypeError: something else than a `RegularizationHyperModel`.
        ValueError: no name; in the first trial, as for `search`.

    Example:

    >>> import keras, numpy as np
    >>> def network():
    ...     return keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, "softmax")])
    >>> x, y = np.eye(2, dtype="float32").repeat(8, axis=0), np.arange(16) % 2
    >>> objective = optuna_objective(
    ...     RegularizationHyperModel(network), x, y, validation_data=(x, y), epochs=1, verbose=0)
    >>> import optuna
    >>> optuna.logging.set_verbosity(optuna.logging.WARNING)
    >>> study = optuna.create_study()
    >>> study.optimize(objective, n_trials=2)
    >>> len(study.trials), "dense/dropout" in study.best_params
    (2, True)
    """
    try:
        import optuna
    except ImportError as error:
        raise ImportError(
            "Expected Optuna to be installed: `pip install keras-regtools[optuna]`."
        ) from error
    if not isinstance(hypermodel, RegularizationHyperModel):
        raise TypeError(f"Expected a `RegularizationHyperModel`. Received: {hypermodel!r}")
    names = [objectives] if isinstance(objectives, str) else list(objectives)
    if not names:
        raise ValueError("Expected the name of an objective, or several. Received: none")

    def objective(trial):
        if len(trial.study.directions) != len(names):
            raise ValueError(
                f"Expected a study with a direction for each of {names}. "
                f"Received: {len(trial.study.directions)} directions"
            )
        gc.collect()  # the models of earlier trials
        hp = OptunaHyperParameters(trial)
        watched = _Watched(trial, names, optuna.TrialPruned)
        try:
            model = hypermodel.build(hp)
            found = hypermodel.fit(hp, model, x, y, callbacks=[*callbacks, watched], **fit)
        except keras_tuner.errors.FailedTrialError as error:
            trial.set_user_attr("reason", str(error))
            return math.nan if len(names) == 1 else [math.nan] * len(names)
        for name, value in found.items():
            trial.set_user_attr(name, value)
        trial.study.set_user_attr("objectives", names)
        values = [found[name] for name in names]
        return values[0] if len(values) == 1 else values

    return objective


class OptunaHyperParameters(keras_tuner.HyperParameters):
    """KerasTuner's hyperparameters, whose values an Optuna trial suggests.

    Args:
        trial: An `optuna.trial.Trial`.
    """

    def __init__(self, trial):
        super().__init__()
        self._trial, self._active = trial, []

    def _suggested(self, name, suggest):
        name = self._get_name(name)
        if not all(self._active):
            return None
        self.values[name] = suggest(name)
        return self.values[name]

    def Float(self, name, min_value, max_value, step=None, sampling="linear", **kwargs):
        log = sampling == "log" and step is None
        return self._suggested(
            name, lambda n: self._trial.suggest_float(n, min_value, max_value, step=step, log=log)
        )

    def Int(self, name, min_value, max_value, step=None, sampling="linear", **kwargs):
        log = sampling == "log" and step is None
        return self._suggested(
            name,
            lambda n: self._trial.suggest_int(n, min_value, max_value, step=step or 1, log=log),
        )

    def Choice(self, name, values, **kwargs):
        return self._suggested(name, lambda n: self._trial.suggest_categorical(n, list(values)))

    def Boolean(self, name, **kwargs):
        return self._suggested(name, lambda n: self._trial.suggest_categorical(n, [False, True]))

    def Fixed(self, name, value, **kwargs):
        return self._suggested(name, lambda n: self._trial.suggest_categorical(n, [value]))

    def get(self, name):
        return self.values[self._get_name(name)]

    @contextlib.contextmanager
    def conditional_scope(self, parent_name, parent_values):
        values = parent_values if isinstance(parent_values, (list, tuple)) else [parent_values]
        self._active.append(self.values.get(self._get_name(parent_name)) in values)
        try:
            yield
        finally:
            self._active.pop()

    def copy(self):
        found = keras_tuner.HyperParameters()
        found.values = dict(self.values)
        return found


class _Objective:
    """What a trial is chosen by, as KerasTuner says it."""

    def __init__(self, name, direction, objectives):
        self.name, self.direction, self.objectives = name, direction, objectives


class _Watched(keras.callbacks.Callback):
    """Reports the validation loss of each epoch and ends what is to be pruned."""

    def __init__(self, trial, names, pruned):
        super().__init__()
        self._trial, self._pruned, self.validation_loss = trial, pruned, None
        kinds = ["max" if d.name == "MAXIMIZE" else "min" for d in trial.study.directions]
        both = [_Objective(n, d, []) for n, d in zip(names, kinds, strict=True)]
        self.objective = _Objective(names[0], kinds[0], both)
        self._told = set()
        self._reports = len(names) == 1 and names[0] not in COSTS and kinds[0] == "min"

    def others(self, name):
        """Of each finished trial the mean, the number of runs and their standard deviation."""
        done = [t.user_attrs for t in self._trial.study.trials if t.state.name == "COMPLETE"]
        wanted = (name, "seeds", f"{name}/sd")
        known = [told for told in done if all(one in told for one in wanted)]
        return [(told[name], round(told["seeds"]), told[f"{name}/sd"]) for told in known]

    def on_epoch_end(self, epoch, logs=None):
        if not self._reports or "val_loss" not in (logs or {}) or self.validation_loss is None:
            return
        value = self.validation_loss(logs)
        if epoch in self._told:  # by an earlier seed of the trial
            return
        self._told.add(epoch)
        if math.isfinite(value):
            with contextlib.suppress(ValueError, RuntimeError):
                self._trial.report(value, epoch)
            if self._trial.should_prune():
                raise self._pruned(f"pruned in epoch {epoch + 1}")
