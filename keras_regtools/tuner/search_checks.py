"""What can be said of a search before its first trial is trained."""

import json
import pathlib

import numpy as np
from keras import tree

from keras_regtools.records.files import write_whole
from keras_regtools.tuner.soft_targets import is_sparse
from keras_regtools.tuner.space import OF_GROUPS, OURS
from keras_regtools.tuner.trial_results import COSTS

_FILE = "regularization.json"


def _is_ours(name):
    """Whether a hyperparameter has a name that only this package gives."""
    parts = name.removesuffix("/on").split("/")
    return len(parts) == 2 and parts[1] in OF_GROUPS or name in OURS


def check_labels(model, loss, data):
    """Say it if labels are none of the classes of a model.

    Args:
        model: A model of the search.
        loss: Its loss.
        data: `SearchData`.
    """
    outputs = tree.flatten(model.outputs)
    if not is_sparse(loss) or len(outputs) != 1:
        return
    classes = outputs[0].shape[-1]
    for kind, batches in (("training", data.training), ("validation", data.validation)):
        if batches.arrays is None or batches.arrays[1] is None:
            continue
        y = np.asarray(tree.flatten(batches.arrays[1])[0])
        if classes == 1 or (y.ndim == 2 and y.shape[1] == classes):
            wanted = "binary_crossentropy" if classes == 1 else "categorical_crossentropy"
            raise ValueError(
                f"Expected labels for a sparse loss and {classes} outputs. Received: targets of "
                f"the shape {y.shape}. Pass `loss={wanted!r}` or compile the model with it."
            )
        ignored = getattr(loss, "ignore_class", None)
        known = y if ignored is None else y[y != ignored]
        if known.size and not (known.min() >= 0 and known.max() < classes):
            raise ValueError(
                f"Expected labels from 0 to {classes - 1}, as the model has {classes} outputs. "
                f"Received: {kind} labels from {known.min()} to {known.max()}"
            )


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
    # Names of the user's own are not known before they are asked for, as in conditions.
    foreign = sorted({one.name for one in hp.space} - set(names))
    foreign = [name for name in foreign if _is_ours(name)]
    if foreign:
        where = f" in {str(tuner.project_dir)!r}" if tuner is not None else ""
        raise ValueError(
            f"Expected a search of the hyperparameters {sorted(names)}. Received: one{where} that "
            f"has {foreign} too. Pass `overwrite=True` or another directory to start again."
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
            + ". Pass `overwrite=True` or another directory to start again."
        )
