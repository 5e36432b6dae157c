"""What one hyperparameter does to a result, over all that the others were."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_regtools.search.table import TABLE, comparable
from keras_regtools.validation import checked, positive_integer

if TYPE_CHECKING:
    import pandas as pd

OFF = "off"  # where a switch is off


@checked(table=TABLE, bins=positive_integer)
def marginal(table: pd.DataFrame, name: str, y: str | None = None, bins: int = 5) -> pd.DataFrame:
    """The mean of a result in each part of the range of a hyperparameter, with its interval.

    Args:
        table: A table of `tuner.table`.
        name: Of a hyperparameter.
        y: Of a result; the objective by default.
        bins: Parts of a range, with about as many trials in each; choices are parts themselves.

    Returns:
        A `DataFrame` with the columns `part` (a value, the middle of a range, or `"off"`), `low`
        and `high` of the range, `mean`, `mean_low` and `mean_high` (95 % by Student's t; NaN for
        one trial) and `trials`.

    Raises:
        ValueError: a column that is not there.

    Example:

    >>> import pandas as pd
    >>> trials = pd.DataFrame({"batch_norm": [True, True, False], "val_loss": [1.0, 3.0, 5.0]})
    >>> marginal(trials, "batch_norm", "val_loss")[["part", "mean", "trials"]].values.tolist()
    [[False, 5.0, 1], [True, 2.0, 2]]
    """
    import pandas as pd

    y = y or table.attrs.get("objective", "val_loss")
    refuse_unknown(table, [name, y])
    table = comparable(table) if "objective" in table.attrs else table
    values = np.asarray(table[y], dtype=float)
    rows = [
        {"part": part, "low": low, "high": high, **_mean(values[chosen & np.isfinite(values)])}
        for part, low, high, chosen in _parts(table, name, bins)
    ]
    return pd.DataFrame([row for row in rows if row["trials"]])


def refuse_unknown(table: Any, columns: list[str]) -> None:
    """Say it if a table does not have a column."""
    for column in columns:
        if column not in table.columns:
            raise ValueError(
                f"Expected one of the columns {list(table.columns)}. Received: {column!r}"
            )


def is_choice(table: Any, name: str) -> bool:
    """Whether a column has single values rather than a range."""
    told = table.attrs.get("space", {}).get(name)
    if told is not None:
        return "choices" in told
    known = table[name].dropna()
    booleans = len(known) > 0 and all(isinstance(v, (bool, np.bool_)) for v in known)
    return booleans or not _are_numbers(known)


def is_log(table: Any, name: str) -> bool:
    """Whether a column is read on a logarithmic axis: as it was searched, or by its span."""
    told = table.attrs.get("space", {}).get(name)
    if told is not None:
        return bool(told.get("log"))
    values = np.asarray(table[name].dropna(), dtype=float)
    values = values[np.isfinite(values)]
    return bool(len(values)) and values.min() > 0 and values.max() > 30 * values.min()


def _are_numbers(values):
    return all(isinstance(v, (int, float, np.number)) for v in values)


def _parts(table, name, bins):
    column = table[name]
    missing = column.isna().to_numpy()
    if is_choice(table, name):
        for value in sorted(column.dropna().unique(), key=lambda v: (str(type(v)), v)):
            value = value.item() if isinstance(value, np.generic) else value
            yield value, math.nan, math.nan, (column == value).to_numpy() & ~missing
    else:
        known = np.asarray(column.astype(float))
        edges = np.unique(np.quantile(known[~missing], np.linspace(0, 1, bins + 1)))
        if len(edges) == 1:
            edges = np.repeat(edges, 2)
        for i, (low, high) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
            last = i == len(edges) - 2
            chosen = (known >= low) & ((known <= high) if last else (known < high))
            middle = math.sqrt(low * high) if is_log(table, name) else (low + high) / 2
            yield float(middle), float(low), float(high), chosen
    if missing.any():
        yield OFF, math.nan, math.nan, missing


def _mean(values):
    from scipy import stats

    count = len(values)
    if not count:
        return {"trials": 0}
    mean, half = float(values.mean()), math.nan
    if count > 1:
        half = float(stats.t.ppf(0.975, count - 1) * values.std(ddof=1) / math.sqrt(count))
    return {"mean": mean, "mean_low": mean - half, "mean_high": mean + half, "trials": count}
