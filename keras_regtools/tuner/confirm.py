"""Is the winner of a search better than luck? Train it and a plain network on fresh seeds."""

from __future__ import annotations

import functools
from typing import Any

import keras
import keras_tuner
import numpy as np

from keras_regtools.data import Batches
from keras_regtools.search import comparable, table
from keras_regtools.tuner.confirmation import Confirmation, confirmation_of
from keras_regtools.tuner.hypermodel import RegularizationHyperModel
from keras_regtools.tuner.racing import checked_seeds
from keras_regtools.tuner.study_trials import fingerprint
from keras_regtools.tuner.trial_run import Diverged
from keras_regtools.validation import positive_integer

_FIRST = 1000  # of the seeds that no search has had
_DATA = ("x", "y", "sample_weight", "validation_data", "validation_split")


def confirm(
    tuner: Any,
    x_test: Any,
    y_test: Any,
    *,
    seeds: Any = 5,
    best: int = 3,
    verbose: int = 1,
    **search: Any,
) -> Confirmation:
    """Train the best trials of a search and the plain network on fresh seeds, and score them on
    data that no trial saw.

    The best of many trials looks better than it is, as it was chosen for its luck, too. What is
    compared here was chosen by other data: the differences are paired, one for each seed.

    Two baselines tell what is due to what: `plain` is the network with nothing that was searched,
    at its own rate; `without` is the winner without its regularization, with the same optimizer,
    rate and batch size.

    Args:
        tuner: A `keras_tuner.Tuner` of a `RegularizationHyperModel`, after `search`.
        x_test, y_test: Arrays that are neither training nor validation data.
        seeds: How many fresh seeds, or a list of them, two or more.
        best: How many of the best trials.
        verbose: 1 prints a line for each training.
        **search: `x`, `y`, `validation_data`, `epochs`, … as given to `search`; needed where this
            process has not searched itself.

    Returns:
        A `Confirmation`, for `plots.confirmation`.

    Raises:
        TypeError: a tuner of something else.
        ValueError: no completed trial, unknown training data, or test data that are the training or
            validation data.
    """
    hypermodel = _hypermodel(tuner)
    frame = comparable(table(tuner)).head(positive_integer("best", best))
    trials = [tuner.oracle.get_trial(trial) for trial in frame["trial"]]
    candidates = {f"best {i + 1}": _Candidate(t.hyperparameters) for i, t in enumerate(trials)}
    usual = keras_tuner.HyperParameters()
    hypermodel.build(usual)
    candidates["without"] = _Candidate(trials[0].hyperparameters, plain=True)
    candidates["plain"] = _Candidate(usual, plain=True)
    named = {f"best {i + 1}": t.trial_id for i, t in enumerate(trials)}
    told = dict(zip(named, frame[frame.attrs["objective"]], strict=True))
    runs = _runs(hypermodel, candidates, (x_test, y_test), seeds, search, verbose)
    trials_of_search = len(table(tuner))
    return confirmation_of(runs, "plain", named, told, frame.attrs["objective"], trials_of_search)


def cost_of_tying(
    tuner: Any, x_test: Any, y_test: Any, *, seeds: Any = 5, verbose: int = 1, **search: Any
) -> Confirmation:
    """What it costs that convolutional and dense layers have the same strengths.

    The best trial with tied strengths and the best one without, of a search with `tied="search"`,
    are trained on fresh seeds and scored on data that no trial saw.

    Args:
        tuner, x_test, y_test, seeds, verbose, **search: As for `confirm`.

    Returns:
        A `Confirmation` of `untied` against `tied`: a negative difference of the loss is what tying
        costs.

    Raises:
        TypeError, ValueError: as for `confirm`, and for a search that has not both kinds.
    """
    hypermodel = _hypermodel(tuner)
    frame = comparable(table(tuner))
    if "tied" not in frame or frame["tied"].nunique() != 2:
        raise ValueError(
            'Expected a search with `tied="search"` and trials of both kinds. Received: one without'
        )
    rows = {name: frame[frame["tied"] == (name == "tied")].iloc[0] for name in ("untied", "tied")}
    named = {name: row["trial"] for name, row in rows.items()}
    told = {name: row[frame.attrs["objective"]] for name, row in rows.items()}
    candidates = {
        name: _Candidate(tuner.oracle.get_trial(trial).hyperparameters)
        for name, trial in named.items()
    }
    runs = _runs(hypermodel, candidates, (x_test, y_test), seeds, search, verbose)
    return confirmation_of(runs, "tied", named, told, frame.attrs["objective"], len(frame))


class _Candidate:
    def __init__(self, hp, plain=False):
        self.hp, self.plain = hp, plain

    def build(self, hypermodel):
        return (hypermodel.build_plain if self.plain else hypermodel.build)(self.hp.copy())


def _hypermodel(tuner):
    found = getattr(tuner, "hypermodel", None)
    if not isinstance(found, RegularizationHyperModel):
        raise TypeError(
            "Expected a `keras_tuner.Tuner` of a `RegularizationHyperModel`. "
            f"Received: {tuner!r} (of type {type(tuner)})"
        )
    return found


def _runs(hypermodel, candidates, test, seeds, search, verbose):
    """A table with one row for each candidate and seed."""
    import pandas as pd

    search = {**hypermodel.searched, **search}
    if search.get("x") is None:
        raise ValueError(
            "Expected `x=`, `y=`, `validation_data=` and `epochs=` of the search, as this process "
            "has not searched. Received: none"
        )
    seeds = _fresh(seeds, hypermodel.seeds or [])
    refuse_known_data(test, search)
    data = {name: search[name] for name in _DATA if search.get(name) is not None}
    others = {k: v for k, v in search.items() if k not in _DATA}
    rows, held, batches = [], None, None
    for seed in seeds:
        for name, candidate in candidates.items():
            keras.utils.set_random_seed(seed)
            model = candidate.build(hypermodel)
            plan = hypermodel.plan(candidate.hp, model)
            if held is None:
                held = hypermodel.workshop(model, data.pop("x"), data.pop("y", None), **data)
                batches = held.like_training(*test)
            epochs = candidate.hp.values.get("tuner/epochs", search.get("epochs", 1))
            settings = {"validation_batch_size": 256, **others, "epochs": epochs, "verbose": 0}
            try:
                score = functools.partial(_score, batches)
                twin = functools.partial(candidate.build, hypermodel)
                found = held.run(model, plan, twin, settings, [], seed, score)
            except Diverged:
                found = {name: np.nan for name in ("val_loss", "loss", "test_loss")}
            rows.append({"candidate": name, "seed": seed, **found})
            if verbose:
                print(f"{name}, seed {seed}: test loss {found['test_loss']:.4f}", flush=True)
    return pd.DataFrame(rows)


def _fresh(seeds, known):
    """Two or more seeds that the search did not have."""
    found = checked_seeds(seeds)
    if found is None or len(found) < 2:
        raise ValueError(f"Expected two or more seeds. Received: {found}")
    if isinstance(seeds, int):
        first = max([_FIRST - 1, *known]) + 1
        return [first + seed for seed in found]
    if set(found) & set(known):
        raise ValueError(
            "Expected fresh seeds, which the search did not have. "
            f"Received: {sorted(set(found) & set(known))} too"
        )
    return found


def _score(batches, yardstick):
    loss, accuracy = yardstick.loss_and_accuracy(batches)
    return {"test_loss": loss, "test_accuracy": accuracy}


def refuse_known_data(test, search):
    """Say it if test data are those by which trials were trained or chosen."""
    known = {"training": (search.get("x"), search.get("y"))}
    validation = search.get("validation_data")
    if isinstance(validation, (tuple, list)):
        known["validation"] = tuple(validation[:2])
    wanted = fingerprint(*test)
    Batches(*test)  # which says what is wrong with them
    for kind, arrays in known.items():
        is_dataset = hasattr(arrays[0], "element_spec") or arrays[0] is None
        if not is_dataset and fingerprint(*arrays) == wanted:
            raise ValueError(
                f"Expected data that no trial saw. Received: the {kind} data of the search"
            )
