"""A trial with several seeds: the next one only while it may still be the best."""

import copy
import functools
import math
import weakref
from typing import Any

import keras
import numpy as np

from keras_regtools.tuner.racing import goes_on
from keras_regtools.tuner.trial_run import Diverged

_ALL = 100_000


def raced(hypermodel, workshop, hp, model, settings, callbacks, tuner, objective):
    """The mean results of a trial's runs; its model gets the weights of the best of them.

    Args:
        hypermodel: The `RegularizationHyperModel`.
        workshop: Its `Workshop`.
        hp, model: The trial's.
        settings: Arguments of `fit`.
        callbacks: Those that the tuner gave.
        tuner, objective: The tuner and its objective, or `None`.
    """
    goes = settings.get("initial_epoch")  # with what another trial has trained
    seeds = (hypermodel.seeds or [None])[: 1 if goes else None]
    name = getattr(objective, "name", None)
    name = "val_loss" if name in (None, "default_objective") else name
    direction = getattr(objective, "direction", None) or "min"
    runs, kept, values = [], None, []
    for number, seed in enumerate(seeds):
        run = model
        if seed is not None and not goes:
            keras.utils.set_random_seed(seed)
            run = hypermodel.build(hp)
        plan, given = hypermodel.plan(hp, run), callbacks if number == 0 else _copies(callbacks)
        twin = functools.partial(hypermodel.build, hp)
        found = workshop.run(run, plan, twin, settings, given, seed or 0)
        value = _objective(found, objective, name)
        if not math.isfinite(value):
            raise Diverged(f"{name} was {value}")
        runs.append(found)
        values.append(value)
        if value == (min if direction == "min" else max)(values):
            kept = run.get_weights()
        more = number + 1 < len(seeds)
        if more and not goes_on(values, _others(tuner, name, callbacks), direction):
            break
    if runs and kept is not None and (len(runs) > 1 or run is not model):
        model.set_weights(kept)
    found = {key: float(np.mean([one[key] for one in runs])) for key in runs[0]}
    if len(hypermodel.seeds or ()) > 1:
        found |= {f"{name}/sd": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0}
        found |= {"seeds": float(len(values))}
    return found


def save_best(callbacks, model, found):
    """Have the tuner keep the weights that were measured: those of the best execution of a trial.

    KerasTuner's own callback keeps the weights of an epoch by what is in the logs, with penalties.

    Args:
        callbacks: Those that the tuner gave.
        model: The model with the weights.
        found: Dict of the results.
    """
    for callback in callbacks:
        if type(callback).__name__ != "SaveBestEpoch":
            continue
        objective = callback.objective
        value = _objective(found, objective, objective.name)
        best = _KEPT.get(callback)
        if best is None or objective.better_than(value, best[0]):
            best = _KEPT[callback] = (value, model.get_weights())
        model.set_weights(best[1])
        model.save_weights(callback.filepath)


_KEPT: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


def _objective(found, objective, name):
    if objective is not None and name not in found and hasattr(objective, "objectives"):
        return objective.get_value(found)
    return found.get(name, found["val_loss"])


def _copies(callbacks):
    """Fresh copies of the user's callbacks; those of the tuner are its own."""
    own = [c for c in callbacks if hasattr(c, "tuner") or hasattr(c, "objective")]
    return [c if c in own else copy.deepcopy(c) for c in callbacks]


def _others(tuner, name, callbacks):
    """Of each finished trial the mean, the number of runs and their standard deviation."""
    study = next((c for c in callbacks if hasattr(c, "others")), None)
    if study is not None:
        return study.others(name)
    found = []
    for trial in [] if tuner is None else tuner.oracle.get_best_trials(_ALL):
        metrics = trial.metrics
        if trial.status == "COMPLETED" and metrics.exists("seeds") and metrics.exists(name):
            runs = round(metrics.get_best_value("seeds"))
            found.append((metrics.get_best_value(name), runs, metrics.get_best_value(f"{name}/sd")))
    return found
