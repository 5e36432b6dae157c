"""Which hyperparameter mattered, by Optuna's evaluators, with an interval."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_regtools.search.marginal import is_log, refuse_unknown
from keras_regtools.search.table import TABLE, comparable
from keras_regtools.validation import at_least, checked, one_of, positive_integer

if TYPE_CHECKING:
    import pandas as pd

_LEAST = 8  # trials
METHODS = ("ped_anova", "fanova")


@checked(table=TABLE, resamples=positive_integer, seed=at_least(0))
def importance(
    table: pd.DataFrame,
    target: str | None = None,
    *,
    method: str = "ped_anova",
    resamples: int = 100,
    seed: int = 0,
) -> pd.DataFrame:
    """How much each hyperparameter mattered, with an interval over resampled trials.

    The importance is Optuna's: PED-ANOVA, the share of a hyperparameter in what sets the best
    quarter of the trials apart from all of them
    ([Watanabe et al., 2023](https://arxiv.org/abs/2304.10255)), or fANOVA, its share in the
    variance of a random forest's prediction
    ([Hutter et al., 2014](https://proceedings.mlr.press/v32/hutter14.html)). A hyperparameter that
    does nothing has an importance above zero in few trials, and more so in trials that are drawn
    anew: the interval goes from the lower one to the higher one of the bootstrap's percentile
    interval, its lower end corrected for that bias, and its basic interval. What was searched on
    a logarithmic range counts by its logarithm, in fANOVA too.

    Args:
        table: A table of `tuner.table`, of 8 trials or more; 50 say something.
        target: A result; the objective by default.
        method: `"ped_anova"`, or `"fanova"`, which needs scikit-learn and a second for each
            resample.
        resamples: Times that the trials are resampled.
        seed: Of the draws and of the forest.

    Returns:
        A `DataFrame` with the columns `hyperparameter`, `importance` (they sum up to 1), `low`,
        `high` (95 %) and `trials`, the most important first. A hyperparameter that was switched off
        in some trials counts by its switch; its strength among the trials that have it is in no
        row.

    Raises:
        ImportError: Optuna is not installed.
        ValueError: too few trials, or an unknown method or result.
    """
    import pandas as pd

    target = target or table.attrs["objective"]
    refuse_unknown(table, [target])
    evaluator = _evaluator(one_of("method", method, METHODS), seed)
    kept = comparable(table)
    kept = kept[np.isfinite(kept[target].astype(float))]
    if len(kept) < _LEAST:
        raise ValueError(f"Expected {_LEAST} trials or more. Received: {len(kept)}")
    names = [n for n in table.attrs["space"] if not kept[n].isna().any() and kept[n].nunique() > 1]
    distributions = {name: _distribution(table.attrs["space"][name]) for name in names}
    smallest = target != table.attrs["objective"] or table.attrs["direction"] == "min"
    values = kept[target].to_numpy(dtype=float) * (1.0 if smallest else -1.0)
    logs = {name for name in names if is_log(table, name)}
    columns = {n: np.log10(kept[n].astype(float)) if n in logs else kept[n] for n in names}
    columns = {name: list(map(_plain, column)) for name, column in columns.items()}
    rows = [{name: column[i] for name, column in columns.items()} for i in range(len(kept))]

    def of(chosen):
        return _importances(evaluator, [rows[i] for i in chosen], values[chosen], distributions)

    found, rng = of(np.arange(len(rows))), np.random.default_rng(seed)
    drawn = np.array([of(rng.integers(0, len(rows), len(rows))) for _ in range(resamples)])
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    bias = np.maximum(drawn.mean(axis=0) - found, 0.0)
    ends = np.minimum(low - bias, 2 * found - high), np.maximum(high, 2 * found - low)
    frame = pd.DataFrame(
        {"hyperparameter": names, "importance": found, "low": np.clip(ends[0], 0, 1),
         "high": np.clip(ends[1], 0, 1), "trials": len(rows)}
    )  # fmt: skip
    return frame.sort_values("importance", ascending=False, ignore_index=True)


def _evaluator(method, seed):
    try:
        from optuna import importance as evaluators
    except ImportError as error:
        raise ImportError(
            "Expected Optuna, whose evaluators say what mattered: `pip install optuna`."
        ) from error
    if method == "fanova":
        return evaluators.FanovaImportanceEvaluator(seed=seed)
    return evaluators.PedAnovaImportanceEvaluator(target_quantile=0.25)


def _importances(evaluator, rows, values, distributions):
    import optuna

    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study = optuna.create_study(direction="minimize")
        trials = zip(rows, values, strict=True)
        study.add_trials(
            optuna.trial.create_trial(params=row, distributions=distributions, value=float(v))
            for row, v in trials
        )
        found = optuna.importance.get_param_importances(
            study, evaluator=evaluator, params=list(distributions)
        )
    finally:
        optuna.logging.set_verbosity(level)
    return np.array([float(found.get(name, 0.0)) for name in distributions])


def _plain(value):
    return value.item() if hasattr(value, "item") else value


def _distribution(told: dict[str, Any]) -> Any:
    from optuna import distributions

    if "choices" in told:
        return distributions.CategoricalDistribution(told["choices"])
    low, high = told["low"], told["high"]
    if told["log"]:  # by the logarithm, as fANOVA takes a logarithmic range for a linear one
        return distributions.FloatDistribution(math.log10(low), math.log10(high))
    if told.get("integer"):
        return distributions.IntDistribution(int(low), int(high))
    # Its steps are left out: KerasTuner's values lie beside them by their last bits.
    return distributions.FloatDistribution(low, high)
