"""What can be said of a search before its first trial is trained."""

import json
import pathlib

from keras_regtools.records import write_whole
from keras_regtools.tuner.trial_results import COSTS

_FILE = "regularization.json"
_TUNERS = "tuner/"  # of Hyperband


def check_objective(objective, results, metrics):
    """Say it if nobody reports an objective.

    Args:
        objective: That of the tuner, or `None`.
        results: Names of the results.
        metrics: Function that gives the names of the metrics.
    """
    wanted = [one.name for one in getattr(objective, "objectives", [objective]) if one is not None]
    known = {*results, *COSTS}
    if set(wanted) <= known:
        return
    known |= set(metrics())
    missing = sorted(name for name in wanted if name not in known and name != "default_objective")
    if missing:
        raise ValueError(
            f"Expected an objective out of {sorted(known)}. Received: {', '.join(missing)}"
        )


def check_directory(tuner, told, names, hp):
    """Say it if the directory of a tuner has a search of other hyperparameters.

    Args:
        tuner: The tuner, or `None`.
        told: What is searched, a dict for JSON.
        names: What this hypermodel and the user's own model have declared.
        hp: The hyperparameters of the trial.
    """
    foreign = sorted({one.name for one in hp.space} - set(names))
    foreign = [name for name in foreign if not name.startswith(_TUNERS)]
    if foreign:
        where = f" in {str(tuner.project_dir)!r}" if tuner is not None else ""
        raise ValueError(
            f"Expected a search of the hyperparameters {sorted(names)}. Received: one{where} that "
            f"has {foreign} too. Pass `overwrite=True` or another directory to begin anew."
        )
    if tuner is None:
        return
    path, told = pathlib.Path(tuner.project_dir) / _FILE, json.loads(json.dumps(told, default=str))
    if not path.exists():
        write_whole(path, json.dumps(told, indent=2) + "\n")
        return
    there = json.loads(path.read_text("utf-8"))
    if there != told:
        other = sorted(k for k in {*there, *told} if there.get(k) != told.get(k))
        raise ValueError(
            f"Expected a directory with the same search. Received: {str(tuner.project_dir)!r}, "
            + ", ".join(f"with {k}={there.get(k)} there and {told.get(k)} here" for k in other)
            + ". Pass `overwrite=True` or another directory to begin anew."
        )
