"""Questions that the trials of a search answer by numbers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_regtools.search.marginal import is_choice, is_log, refuse_unknown
from keras_regtools.search.table import TABLE, comparable
from keras_regtools.validation import at_least, checked, positive_integer, share

if TYPE_CHECKING:
    import pandas as pd


@checked(table=TABLE, resamples=positive_integer, seed=at_least(0))
def rank_correlations(
    table: pd.DataFrame,
    target: str = "generalization_gap",
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Kendall's τ of each result with another one over all trials, with a bootstrap interval.

    A measure of flatness that says something of generalization has a τ with the gap that is away
    from zero. No measure does so reliably
    ([Andriushchenko et al., 2023](https://arxiv.org/abs/2302.07011)).

    Args:
        table: A table of `tuner.table`.
        target: The result that the others are compared with.
        resamples: Times that the trials are resampled.
        seed: Of the draws.

    Returns:
        A `DataFrame` with the columns `result`, `tau`, `low`, `high` (95 %) and `trials`, the
        largest |τ| first.

    Raises:
        ValueError: a target that is not there.

    Example:

    >>> import pandas as pd
    >>> trials = pd.DataFrame({"sharpness": [1, 2, 3, 4], "generalization_gap": [1, 2, 4, 3]})
    >>> float(rank_correlations(trials)["tau"][0].round(4))  # 5 pairs agree, 1 does not
    0.6667
    """
    import pandas as pd
    from scipy import stats

    refuse_unknown(table, [target])
    table = comparable(table) if "objective" in table.attrs else table
    names = [n for n in table.attrs.get("results", table.columns) if n != target]
    rng, rows = np.random.default_rng(seed), []
    for name in names:
        pair = table[[name, target]].apply(pd.to_numeric, errors="coerce")
        pair = pair[np.isfinite(pair).all(axis=1)].to_numpy(dtype=float)
        if len(pair) < 3 or np.ptp(pair[:, 0]) == 0:
            continue
        draws = [
            stats.kendalltau(*pair[rng.integers(0, len(pair), len(pair))].T).statistic
            for _ in range(resamples)
        ]
        low, high = np.nanquantile(draws, [0.025, 0.975])
        tau = float(stats.kendalltau(*pair.T).statistic)
        rows.append({"result": name, "tau": tau, "low": low, "high": high, "trials": len(pair)})
    rows.sort(key=lambda row: -abs(row["tau"]))
    return pd.DataFrame(rows, columns=["result", "tau", "low", "high", "trials"])


@checked(table=TABLE, part=share, resamples=positive_integer, seed=at_least(0))
def of_winners(
    table: pd.DataFrame,
    by: str = "batch_norm",
    *,
    part: float = 0.25,
    resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """What the best trials with an ingredient have, and those without it.

    So one sees whether batch normalization makes dropout and L2 superfluous.

    Args:
        table: A table of `tuner.table`.
        by: A hyperparameter of two values.
        part: Which share of the trials of each kind counts as the best.
        resamples: Times that the trials are resampled.
        seed: Of the draws.

    Returns:
        A `DataFrame` with a row for each other hyperparameter that is a number or a switch:
        `hyperparameter`, `with`, `without` (means of the best; of a switch the share in which it is
        on), `difference`, `low` and `high` (95 %), `trials` (of the smaller group). Strengths are
        compared by their logarithm to the base of 10, in trials in which they are switched on.

    Raises:
        ValueError: a hyperparameter that is not there, or has not two values.
    """
    import pandas as pd

    refuse_unknown(table, [by])
    table = comparable(table)
    values = [v for v in table[by].dropna().unique() if v in (True, False)]
    if len(values) != 2:
        raise ValueError(
            f"Expected a hyperparameter that is on in some trials and off in others. Received: "
            f"{by!r} with the values {list(table[by].unique())}"
        )
    sign = -1.0 if table.attrs["direction"] == "max" else 1.0
    rng, rows = np.random.default_rng(seed), []
    for name in table.attrs["space"]:
        column = table[name]
        booleans = set(column.dropna().map(type)) == {bool}
        if name == by or (is_choice(table, name) and not booleans and column.dtype == object):
            continue
        numbers = pd.to_numeric(column, errors="coerce").to_numpy(dtype=float)
        if is_log(table, name):
            numbers = np.log10(numbers)
        scores = sign * table[table.attrs["objective"]].to_numpy(dtype=float)
        on = (table[by] == True).to_numpy()  # noqa: E712
        known = np.isfinite(numbers) & np.isfinite(scores)
        kinds = [known & on, known & ~on]
        if min(k.sum() for k in kinds) < 3:
            continue
        means = [_mean_of_best(scores[k], numbers[k], part) for k in kinds]
        draws = []
        for _ in range(resamples):
            one = []
            for k in kinds:
                chosen = rng.choice(np.flatnonzero(k), k.sum())
                one.append(_mean_of_best(scores[chosen], numbers[chosen], part))
            draws.append(one[0] - one[1])
        low, high = np.quantile(draws, [0.025, 0.975])
        rows.append(
            {"hyperparameter": f"log10({name})" if is_log(table, name) else name,
             "with": means[0], "without": means[1], "difference": means[0] - means[1],
             "low": float(low), "high": float(high), "trials": int(min(k.sum() for k in kinds))}
        )  # fmt: skip
    names = ["hyperparameter", "with", "without", "difference", "low", "high", "trials"]
    return pd.DataFrame(rows, columns=names)


def _mean_of_best(scores: Any, numbers: Any, part: float) -> float:
    kept = max(1, math.ceil(part * len(scores)))
    return float(numbers[np.argsort(scores)[:kept]].mean())
