"""What a search found: every trial, the best so far, what a hyperparameter does."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_regtools.plots.axes import AXES, on
from keras_regtools.search import (
    OFF,
    TABLE,
    comparable,
    is_choice,
    is_log,
    marginal,
    pareto,
    refuse_unknown,
)
from keras_regtools.validation import checked, flag

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@checked(table=TABLE, ax=AXES, legend=flag)
def search(
    table: Any, x: str, y: str | None = None, ax: Any = None, *, legend: bool = True
) -> Axes:
    """Every trial of a search: one hyperparameter or result against another.

    Args:
        table: The `DataFrame` of `tuner.table`.
        x: Name of a column.
        y: Name of another one; the objective by default.
        ax: Matplotlib axes to draw on; those of a new figure by default.
        legend: Whether to say what the marks are; once is enough beside others.

    Returns:
        The axes, with the best trial marked (that of the first row). Choices stand side by side,
        trials in which `x` was switched off at `"off"`; what was searched on a logarithmic axis is
        drawn on one. Of trials with different budgets those with the most epochs are drawn.

    Raises:
        ValueError: a column that the table does not have.
    """
    y = y or table.attrs.get("objective", "val_loss")
    refuse_unknown(table, [x, y])
    table = comparable(table) if "objective" in table.attrs else table
    ax = on(ax)
    across = _places(ax, table, x)
    up = np.asarray(table[y], dtype=float)
    if is_log(table, y):
        ax.set_yscale("log")
    ax.scatter(across, up, s=22, color="tab:blue", label="trial")
    ax.scatter(across[:1], up[:1], s=110, marker="*", color="tab:orange", label="best trial")
    ax.set(title=f"{y} by {x}", xlabel=x, ylabel=y)
    if legend:
        ax.legend(fontsize=7)
    ax.grid(alpha=0.3)
    return ax


def _places(ax, table, name):
    """Where the trials stand along a column, on an axis that is labelled as it was searched."""
    from matplotlib.ticker import NullFormatter

    column = table[name]
    missing = column.isna().to_numpy()
    if is_choice(table, name):
        values = sorted(column.dropna().unique(), key=lambda v: (str(type(v)), v))
        at = {value: i for i, value in enumerate(values)}
        places = np.array([at.get(v, len(values)) for v in column.where(~missing, OFF)], float)
        labels = [_short(v) for v in values] + ([OFF] if missing.any() else [])
        ax.set_xticks(range(len(labels)), labels)
        ax.set_xlim(-0.5, len(labels) - 0.5)
        return places
    places = column.astype(float).to_numpy().copy()
    known = places[~missing & np.isfinite(places)]
    if is_log(table, name):
        ax.set_xscale("log")
        ax.xaxis.set_minor_formatter(NullFormatter())
    if missing.any() and len(known):
        log = is_log(table, name)
        low, high = (np.log10(v) if log else v for v in (known.min(), known.max()))
        off = low - 0.12 * (high - low or 1.0)
        places[missing] = 10**off if log else off
        ax.axvline(10 ** (off + 0.06 * (high - low)) if log else off + 0.06 * (high - low),
                   color="0.7", linestyle=":", linewidth=1)  # fmt: skip
        ax.text(places[missing][0], 1.0, OFF, transform=ax.get_xaxis_transform(), fontsize=7,
                ha="center", va="bottom", color="0.3")  # fmt: skip
    return places


def _short(value):
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, (int, float, np.number)) else str(value)


@checked(table=TABLE, ax=AXES)
def best_so_far(table: Any, ax: Any = None) -> Axes:
    """The best trial after each trial of a search, with the noise of its mean.

    Args:
        table: The `DataFrame` of `tuner.table`.
        ax: Matplotlib axes to draw on; those of a new figure by default.

    Returns:
        The axes: every trial as a dot, the best so far as a line, and, where trials had several
        seeds, a band of two standard errors of the best one's mean. A later trial within it may
        be as good.
    """
    kept = comparable(table)
    ax, name = on(ax), table.attrs["objective"]
    kept = kept.assign(_number=[_number(trial) for trial in kept["trial"]]).sort_values("_number")
    values = kept[name].to_numpy(dtype=float)
    worst = table.attrs["direction"] == "max"
    best = [int((np.argmax if worst else np.argmin)(values[: i + 1])) for i in range(len(values))]
    order = np.arange(1, len(values) + 1)
    ax.scatter(order, values, s=18, color="0.6", label="trial")
    ax.plot(order, values[best], drawstyle="steps-post", color="tab:blue", label="best so far")
    if f"{name}/sd" in kept and "seeds" in kept:
        error = kept[f"{name}/sd"].to_numpy(float) / np.sqrt(kept["seeds"].to_numpy(float))
        low, high = (values + sign * 2 * error for sign in (-1, 1))
        ax.fill_between(order, low[best], high[best], step="post", alpha=0.2,
                        label="two standard errors")  # fmt: skip
    if is_log(kept, name):
        ax.set_yscale("log")
    ax.set(title="The best trial so far", xlabel="trial", ylabel=name)
    ax.legend(fontsize=7)
    ax.grid(alpha=0.3)
    return ax


def _number(trial):
    return int(trial) if str(trial).isdigit() else 0


@checked(table=TABLE, ax=AXES)
def marginal_effect(table: Any, x: str, y: str | None = None, ax: Any = None) -> Axes:
    """The mean result in each part of a hyperparameter's range, with its interval.

    Args:
        table: The `DataFrame` of `tuner.table`.
        x: A hyperparameter.
        y: A result; the objective by default.
        ax: Matplotlib axes to draw on; those of a new figure by default.

    Returns:
        The axes: `search` in grey behind means and 95 % intervals over the trials of each part. It
        is an average over whatever the other hyperparameters were.

    Raises:
        ValueError: a column that the table does not have.
    """
    found = marginal(table, x, y)
    ax = search(table, x, y, ax, legend=False)
    for points in ax.collections[:1]:
        points.set(color="0.8")
    ax.collections[1].remove()
    kept = comparable(table) if "objective" in table.attrs else table
    if is_choice(kept, x):
        at = np.arange(len(found), dtype=float)
    else:
        off = [c for c in ax.texts if c.get_text() == OFF]
        at = np.array([off[0].get_position()[0] if p == OFF else p for p in found["part"]], float)
    limits, means = ax.get_ylim(), found["mean"].to_numpy(float)
    error = np.abs(found[["mean_low", "mean_high"]].to_numpy(float).T - means)
    ax.errorbar(at, means, np.nan_to_num(error), fmt="o", color="tab:blue", capsize=3)
    ax.set_ylim(limits)  # of few trials an interval may be far wider than all of them
    ax.set_title(f"{ax.get_ylabel()} by {x}: means and 95 % intervals", fontsize=10)
    return ax


@checked(table=TABLE, ax=AXES)
def parallel_coordinates(table: Any, ax: Any = None, columns: Any = None) -> Axes:
    """Every trial as a line through all its hyperparameters, coloured by its result.

    Args:
        table: The `DataFrame` of `tuner.table`.
        ax: Matplotlib axes to draw on; those of a new figure by default.
        columns: Names of hyperparameters; all that were searched by default.

    Returns:
        The axes. Each axis is scaled from its least to its largest value, which are written there;
        a line ends where a hyperparameter was switched off. The best tenth is drawn last and wide.

    Raises:
        ValueError: a column that the table does not have.
    """
    import matplotlib

    kept = comparable(table)
    names = columns or [n for n in table.attrs["space"] if kept[n].nunique() > 1]
    refuse_unknown(table, list(names))
    ax = on(ax)
    scaled = np.array([_scaled(kept, name) for name in names]).T
    values = kept[table.attrs["objective"]].to_numpy(dtype=float)
    order = np.argsort(values)
    order = order if table.attrs["direction"] == "max" else order[::-1]  # the best one last
    colours = matplotlib.colormaps["viridis"](np.linspace(0.95, 0.0, len(order)))
    for rank, (trial, colour) in enumerate(zip(order, colours, strict=True)):
        best = rank >= len(order) - max(1, len(order) // 10)
        ax.plot(scaled[trial], color=colour, linewidth=2.2 if best else 0.8,
                alpha=1.0 if best else 0.6, marker="o", markersize=2.5)  # fmt: skip
    ax.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=8)
    for i, name in enumerate(names):
        low, high = _ends(kept, name)
        ax.text(i, -0.02, low, ha="center", va="top", fontsize=7)
        ax.text(i, 1.02, high, ha="center", va="bottom", fontsize=7)
        ax.axvline(i, color="0.85", linewidth=0.8, zorder=0)
    ax.tick_params(axis="x", pad=12)
    ax.set(yticks=[], ylim=(-0.08, 1.1), title="Each line is a trial, dark is better")
    return ax


def _scaled(table, name):
    column = table[name]
    if is_choice(table, name):
        values = sorted(column.dropna().unique(), key=lambda v: (str(type(v)), v))
        at = {value: i / max(len(values) - 1, 1) for i, value in enumerate(values)}
        return [at.get(v, math.nan) for v in column]
    numbers = column.astype(float).to_numpy()
    numbers = np.log(numbers) if is_log(table, name) else numbers
    low, high = np.nanmin(numbers), np.nanmax(numbers)
    return (numbers - low) / (high - low or 1.0)


def _ends(table, name):
    values = sorted(table[name].dropna().unique(), key=lambda v: (str(type(v)), v))
    return (f"{v:.2g}" if isinstance(v, float) else _short(v) for v in (values[0], values[-1]))


@checked(table=TABLE, ax=AXES)
def pareto_front(table: Any, x: str = "sharpness", y: str | None = None, ax: Any = None) -> Axes:
    """Two results of every trial, both to be small, and the front that no trial beats.

    Args:
        table: The `DataFrame` of `tuner.table`.
        x, y: Names of results; `y` is the objective by default.
        ax: Matplotlib axes to draw on; those of a new figure by default.

    Returns:
        The axes.

    Raises:
        ValueError: a column that the table does not have.
    """
    y = y or table.attrs.get("objective", "val_loss")
    front = pareto(table, (y, x))
    ax = search(table, x, y, ax, legend=False)
    ax.collections[1].remove()
    front = front.sort_values(x)
    ax.plot(front[x], front[y], color="tab:orange", marker="o", drawstyle="steps-post",
            label="Pareto front")  # fmt: skip
    ax.set_title(f"{y} against {x}: {len(front)} trials that none beats in both", fontsize=10)
    ax.legend(fontsize=7)
    return ax
