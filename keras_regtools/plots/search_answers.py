"""What the trials of a search answer: importance, strengths against each other, confirmation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from keras_regtools.plots.axes import AXES, on
from keras_regtools.search import TABLE, comparable, is_log, refuse_unknown
from keras_regtools.validation import checked, has, positive_integer

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@checked(importance=TABLE, ax=AXES)
def importance(importance: Any, ax: Any = None) -> Axes:
    """How much each hyperparameter mattered, with its interval.

    Args:
        importance: The `DataFrame` of `tuner.importance`.
        ax: Matplotlib axes to draw on; those of a new figure by default.

    Returns:
        The axes. An interval that reaches zero is that of a hyperparameter which may not matter.
    """
    refuse_unknown(importance, ["hyperparameter", "importance", "low", "high", "trials"])
    ax = on(ax)
    frame = importance.iloc[::-1]
    at = np.arange(len(frame))
    values = frame["importance"].to_numpy(float)
    ends = [values - frame["low"].to_numpy(float), frame["high"].to_numpy(float) - values]
    ax.barh(at, values, color="tab:blue", alpha=0.6, height=0.6)
    ax.errorbar(values, at, xerr=np.maximum(ends, 0), fmt="none", ecolor="0.2", capsize=3)
    ax.set_yticks(at, frame["hyperparameter"], fontsize=8)
    ax.set(xlim=(0, 1), xlabel="importance, with its 95 % interval")
    ax.set_title(f"What mattered, of {int(frame['trials'].iloc[0])} trials")
    ax.grid(alpha=0.3, axis="x")
    return ax


@checked(table=TABLE, ax=AXES, bins=positive_integer)
def conv_against_dense(table: Any, ingredient: str = "l2", ax: Any = None, bins: int = 4) -> Axes:
    """The mean objective over the strengths of convolutional and of dense layers.

    Args:
        table: The `DataFrame` of `tuner.table`.
        ingredient: `"l2"`, `"dropout"` or another one that both groups have.
        ax: Matplotlib axes to draw on; those of a new figure by default.
        bins: Parts of each range, with about as many trials in each.

    Returns:
        The axes: a field for each pair of ranges with the mean and the number of its trials. Where
        both want the same strength, the best fields lie on the diagonal.

    Raises:
        ValueError: a table without one of the two columns.
    """
    names = [f"conv/{ingredient}", f"dense/{ingredient}"]
    refuse_unknown(table, names)
    kept = comparable(table)
    ax = on(ax)
    kept = kept[kept[names].notna().all(axis=1)]
    x, y = (kept[name].to_numpy(dtype=float) for name in names)
    values = kept[table.attrs["objective"]].to_numpy(dtype=float)
    edges = [_edges(v, bins) for v in (x, y)]
    places = [np.clip(np.searchsorted(e, v, "right") - 1, 0, len(e) - 2)
              for e, v in zip(edges, (x, y), strict=True)]  # fmt: skip
    shape = len(edges[1]) - 1, len(edges[0]) - 1
    sums, counts = np.zeros(shape), np.zeros(shape)
    np.add.at(sums, (places[1], places[0]), values)
    np.add.at(counts, (places[1], places[0]), 1)
    means = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    order = "viridis_r" if table.attrs["direction"] == "max" else "viridis"  # dark is better
    grid = ax.pcolormesh(*(np.arange(n + 1) for n in shape[::-1]), means, cmap=order)
    for (row, column), mean in np.ndenumerate(means):
        if counts[row, column]:
            text = f"{mean:.3g}\n({int(counts[row, column])})"
            box = {"facecolor": "0.2", "alpha": 0.4, "lw": 0, "pad": 1.5}
            ax.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=7,
                    color="white", bbox=box)  # fmt: skip
    ax.set_xticks(range(shape[1] + 1), [f"{v:.1e}" if is_log(kept, names[0]) else f"{v:.2g}"
                                        for v in edges[0]], fontsize=7)  # fmt: skip
    ax.set_yticks(range(shape[0] + 1), [f"{v:.1e}" if is_log(kept, names[1]) else f"{v:.2g}"
                                        for v in edges[1]], fontsize=7)  # fmt: skip
    ax.figure.colorbar(grid, ax=ax, label=table.attrs["objective"])
    ax.set(xlabel=names[0], ylabel=names[1])
    ax.set_title(f"{table.attrs['objective']}: mean (and number) of trials", fontsize=10)
    return ax


def _edges(values, bins):
    edges = np.unique(np.quantile(values, np.linspace(0, 1, bins + 1)))
    return edges if len(edges) > 1 else np.array([edges[0], edges[0] + 1.0])


@checked(result=has("findings", "a `Confirmation`, of `tuner.confirm`"), ax=AXES)
def confirmation(result: Any, ax: Any = None) -> Axes:
    """The test loss of the winners of a search less that of the baseline, paired by seed.

    Args:
        result: A `Confirmation`.
        ax: Matplotlib axes to draw on; those of a new figure by default.

    Returns:
        The axes: a dot for each seed, and the mean with its 95 % interval. Left of the line is
        better than the baseline.
    """
    names = [n for n in result.table["candidate"] if n != result.baseline][::-1]
    wide = result.runs.pivot(index="seed", columns="candidate", values="test_loss")
    ax = on(ax)
    for i, name in enumerate(names):
        row = result.table[result.table["candidate"] == name].iloc[0]
        difference = wide[name] - wide[result.baseline]
        ax.scatter(difference, np.full(len(difference), i), s=14, color="0.6", zorder=1,
                   label="one seed" if i == 0 else None)  # fmt: skip
        ends = [[row["difference"] - row["difference_low"]],
                [row["difference_high"] - row["difference"]]]  # fmt: skip
        ax.errorbar([row["difference"]], [i], xerr=ends, fmt="o", color="tab:blue", capsize=4,
                    label="mean, 95 %" if i == 0 else None)  # fmt: skip
    ax.axvline(0, color="0.3", linewidth=1)
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(-0.6, len(names) - 0.4)
    ax.set(
        xlabel=f"test loss less that of {result.baseline!r}", title="On fresh seeds and new data"
    )
    ax.legend(fontsize=7)
    ax.grid(alpha=0.3, axis="x")
    return ax
