"""What a search found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from keras_regtools.plots.axes import AXES, on
from keras_regtools.validation import checked, has

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@checked(table=has("columns", "a `pandas.DataFrame`"), ax=AXES)
def search(table: Any, x: str, y: str = "val_loss", ax: Any = None) -> Axes:
    """Every trial of a search: one hyperparameter or result against another.

    Args:
        table: The `DataFrame` of `tuner.table`.
        x, y: Names of its columns.
        ax: Matplotlib axes to draw on; those of a new figure by default.

    Returns:
        The axes, with the best trial marked (that of the first row) and a logarithmic axis where
        positive values span more than a factor of 30.

    Raises:
        ValueError: a column that the table does not have.
    """
    for column in (x, y):
        if column not in table.columns:
            raise ValueError(
                f"Expected one of the columns {list(table.columns)}. Received: {column!r}"
            )
    from matplotlib.ticker import NullFormatter

    ax = on(ax)
    across, up = (np.asarray(table[column], dtype=float) for column in (x, y))
    ax.scatter(across, up, s=22, color="tab:blue", label="trial")
    ax.scatter(across[:1], up[:1], s=110, marker="*", color="tab:orange", label="best trial")
    for values, scale, axis in (
        (across, ax.set_xscale, ax.xaxis),
        (up, ax.set_yscale, ax.yaxis),
    ):
        values = values[np.isfinite(values)]
        if len(values) and values.min() > 0 and values.max() > 30 * values.min():
            scale("log")
            axis.set_minor_formatter(NullFormatter())
    ax.set(title=f"{y} by {x}", xlabel=x, ylabel=y)
    ax.legend(fontsize=7)
    ax.grid(alpha=0.3)
    return ax
