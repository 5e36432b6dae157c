"""The trials of a search as a table that knows what was searched."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from keras_regtools.validation import has

if TYPE_CHECKING:
    import pandas as pd

TABLE = has("columns", "a `pandas.DataFrame`")
_TUNERS = "tuner/"  # Hyperband's own


def table(tuner: Any, *, failed: bool = False) -> pd.DataFrame:
    """The trials of a KerasTuner search or of an Optuna study, the best first.

    Where trials had different budgets, as Hyperband's, those with the most epochs come first, as
    a loss after one epoch cannot be compared with one after thirty.

    Args:
        tuner: A `keras_tuner.Tuner` after or during `search`, or an `optuna.Study`.
        failed: Whether trials without a result are there, too, at the end, with the columns
            `status` and `reason`.

    Returns:
        A pandas `DataFrame` with one row per trial: `trial`, its hyperparameters, empty where they
        were switched off, its results and `epochs`. Its `attrs` say what was searched:
        `objective`, `direction`, `space` (dict from hyperparameters to their ranges) and `results`.

    Raises:
        TypeError: neither a tuner nor a study.
        ValueError: no trial was completed.
    """
    import pandas as pd

    if hasattr(tuner, "oracle"):
        rows, attributes = _of_tuner(tuner)
    elif hasattr(tuner, "trials") and hasattr(tuner, "directions"):
        rows, attributes = _of_study(tuner)
    else:
        raise TypeError(
            "Expected a `keras_tuner.Tuner` or an `optuna.Study`. "
            f"Received: {tuner!r} (of type {type(tuner)})"
        )
    done = [row for row in rows if row["status"] == "completed"]
    if not done and not (failed and rows):
        raise ValueError("Expected a tuner with completed trials. Received: none")
    sign = -1.0 if attributes["direction"] == "max" else 1.0
    done.sort(key=lambda row: (-row["budget"], sign * row["score"]))
    rest = [row for row in rows if row["status"] != "completed"] if failed else []
    hyperparameters = [n for n in attributes["space"] if any(n in r["values"] for r in done + rest)]
    results = list(dict.fromkeys(name for row in done for name in row["results"]))
    budgets = len({row["budget"] for row in done}) > 1
    frame = pd.DataFrame(
        [_row(row, hyperparameters, results, failed, budgets) for row in done + rest]
    )
    for name in hyperparameters:
        if set(frame[name].dropna().map(type)) == {bool} and not frame[name].isna().any():
            frame[name] = frame[name].astype(bool)
    frame.attrs = {**attributes, "results": results}
    frame.attrs["space"] = {name: attributes["space"][name] for name in hyperparameters}
    return frame


def comparable(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of a table that can be compared: completed trials with the most epochs.

    Args:
        table: A table of `table`.
    """
    objective = table.attrs.get("objective")
    if objective not in table.columns:
        raise ValueError(
            "Expected a table of `tuner.table`, which knows its objective. Received: one with the "
            f"columns {list(table.columns)}"
        )
    kept = table[table[objective].notna()]
    if "status" in kept:
        kept = kept[kept["status"] == "completed"]
    if table.attrs.get("budgets"):
        kept = kept[kept["epochs"] == kept["epochs"].max()]
    kept.attrs = dict(table.attrs)
    return kept


def _row(row, hyperparameters, results, failed, budgets):
    found = {"trial": row["trial"]}
    found |= {name: row["values"].get(name) for name in hyperparameters}
    found |= {name: row["results"].get(name, math.nan) for name in results}
    if row["budget"] > 0 and (budgets or "epochs" not in found):
        found["epochs"] = row["budget"]
    if failed:
        found |= {"status": row["status"], "reason": row["reason"]}
    return found


def _of_tuner(tuner):
    oracle = tuner.oracle
    objective = oracle.objective
    rows = []
    trials = getattr(oracle, "trials", None)
    trials = oracle.get_best_trials(100_000) if trials is None else trials.values()
    for trial in trials:
        values = trial.hyperparameters.values
        metrics = {n: trial.metrics.get_best_value(n) for n in trial.metrics.metrics}
        completed = trial.status == "COMPLETED" and trial.score is not None
        rows.append(
            {
                "trial": trial.trial_id,
                "values": {k: v for k, v in values.items() if not k.startswith(_TUNERS)},
                "results": metrics,
                "score": trial.score if completed else math.nan,
                "status": trial.status.lower(),
                "reason": _reason(trial.message),
                "budget": float(values.get(f"{_TUNERS}epochs", 0)),
            }
        )
    single = not hasattr(objective, "objectives")
    name = objective.name if single else [one.name for one in objective.objectives][0]
    space = {}
    for trial in trials:
        space |= {one.name: _told(one) for one in trial.hyperparameters.space}
    direction = objective.direction if single else objective.objectives[0].direction
    budgets = len({row["budget"] for row in rows}) > 1
    space = {name: one for name, one in space.items() if not name.startswith(_TUNERS)}
    return rows, {"objective": name, "direction": direction, "space": space, "budgets": budgets}


def _told(one):
    """A hyperparameter of KerasTuner as a dict."""
    config = one.get_config()
    if "min_value" in config:
        log = config.get("sampling") in ("log", "reverse_log")
        return {"low": config["min_value"], "high": config["max_value"], "log": log,
                "step": config.get("step"), "integer": type(one).__name__ == "Int"}  # fmt: skip
    if "values" in config:
        return {"choices": list(config["values"])}
    if type(one).__name__ == "Boolean":
        return {"choices": [False, True]}
    return {"choices": [config.get("value")]}


def _reason(message):
    """The last sentence of what went wrong, without the way there."""
    lines = [line for line in (message or "").strip().splitlines() if line.strip()]
    return lines[-1].split("Error: ", 1)[-1].strip() if lines else ""


def _of_study(study):
    rows, space = [], {}
    names = study.metric_names or study.user_attrs.get("objectives") or ["val_loss"]
    for trial in study.trials:
        space |= {name: _told_by_optuna(one) for name, one in trial.distributions.items()}
        results = dict(trial.user_attrs)
        completed = trial.state.name == "COMPLETE"
        values = trial.values if completed else None
        if values is not None:
            results = dict(zip(names, values, strict=False)) | results
        rows.append(
            {
                "trial": str(trial.number),
                "values": dict(trial.params),
                "results": {k: v for k, v in results.items() if isinstance(v, (int, float))},
                "score": values[0] if values else math.nan,
                "status": {"COMPLETE": "completed", "FAIL": "failed"}.get(
                    trial.state.name, trial.state.name.lower()
                ),
                "reason": str(trial.user_attrs.get("reason", "")),
                "budget": 0.0,
            }
        )
    direction = {"MAXIMIZE": "max"}.get(study.directions[0].name, "min")
    return rows, {"objective": names[0], "direction": direction, "space": space, "budgets": False}


def _told_by_optuna(one):
    if hasattr(one, "choices"):
        return {"choices": list(one.choices)}
    return {"low": one.low, "high": one.high, "log": one.log, "step": one.step,
            "integer": type(one).__name__.startswith("Int")}  # fmt: skip
