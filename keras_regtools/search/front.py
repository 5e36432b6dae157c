"""Trials that no other one beats in everything: the Pareto front."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from keras_regtools.search.table import TABLE, comparable
from keras_regtools.validation import checked

if TYPE_CHECKING:
    import pandas as pd


@checked(table=TABLE)
def pareto(table: pd.DataFrame, objectives: Any = ("val_loss", "sharpness")) -> pd.DataFrame:
    """The trials that are on the Pareto front: no other one is at least as good in all objectives
    and better in one.

    Args:
        table: A table of `tuner.table`.
        objectives: Names of columns, to be small but for an objective that the search maximized;
            or a dict from names to `"min"` or `"max"`.

    Returns:
        The rows of the front, sorted by the first objective. Trials without one of the numbers are
        left out.

    Raises:
        ValueError: fewer than two objectives, a column that is not there, or another direction.

    Example:

    >>> import pandas as pd
    >>> trials = pd.DataFrame({"val_loss": [1.0, 2.0, 2.5], "parameters": [30, 10, 20]})
    >>> pareto(trials, ["val_loss", "parameters"])["val_loss"].tolist()
    [1.0, 2.0]
    """
    directions = objectives
    if not isinstance(objectives, dict):
        own = {table.attrs.get("objective"): table.attrs.get("direction", "min")}
        directions = {name: own.get(name, "min") for name in objectives}
    missing = [name for name in directions if name not in table.columns]
    if missing or len(directions) < 2:
        raise ValueError(
            f"Expected two or more of the columns {list(table.columns)}. Received: {objectives!r}"
        )
    wrong = [one for one in directions.values() if one not in ("min", "max")]
    if wrong:
        raise ValueError(f"Expected the directions 'min' or 'max'. Received: {wrong[0]!r}")
    table = comparable(table) if "objective" in table.attrs else table
    signs = np.array([1.0 if one == "min" else -1.0 for one in directions.values()])
    values = table[list(directions)].to_numpy(dtype=float) * signs
    known = np.isfinite(values).all(axis=1)
    kept = [int(i) for i in np.flatnonzero(known) if not _is_beaten(values[known], values[i])]
    found = table.iloc[kept].sort_values(next(iter(directions)), ascending=signs[0] > 0)
    found.attrs = dict(table.attrs)
    return found


def _is_beaten(values, one):
    return bool(np.any((values <= one).all(axis=1) & (values < one).any(axis=1)))
