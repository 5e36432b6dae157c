"""Curves of several runs over each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from keras_regtools.plots.axes import AXES, by_depth, legend, log_if_wide, note, on, over_epochs
from keras_regtools.validation import checked, has, text

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


@checked(frame=has("columns", "a `pandas.DataFrame`"), name=text, ax=AXES)
def runs(frame: pd.DataFrame, name: str = "loss", ax: Any = None) -> Axes:
    """One quantity of several runs over the epochs; its validation, too, if that was recorded.

    Args:
        frame: A `DataFrame` of `records.read_many`.
        name: Of the quantity, without `val_`.
        ax: Matplotlib axes to draw on; those of a new figure by default.

    Returns:
        The axes, with a colour for each run: solid is `val_name` where there is one, and the
        training beside it is dashed.

    Raises:
        ValueError: a table of something else.
    """
    missing = [column for column in ("run", "epoch", "name", "value") if column not in frame]
    if missing:
        raise ValueError(
            "Expected a `DataFrame` of `records.read_many`. "
            f"Received: one without the columns {missing}"
        )
    ax, drawn = on(ax), []
    over_epochs(ax)
    count = frame["run"].nunique()
    colours = [f"C{i}" for i in range(10)] if count <= 10 else by_depth(count)
    for colour, (run, own) in zip(colours, frame.groupby("run", sort=False), strict=False):
        found = series_by_name(own[own["name"].isin([name, f"val_{name}"])])
        if len(found) == 2:
            training = found[name]
            ax.plot(training.index + 1, training, "--", color=colour, alpha=0.6, linewidth=1.0)
        if found:
            main = found[name if f"val_{name}" not in found else f"val_{name}"]
            marker = "o" if len(main) < 30 else None
            style = {"color": colour, "label": str(run), "marker": marker, "markersize": 3.5}
            ax.plot(main.index + 1, main, **style)
        drawn += [value for series in found.values() for value in series]
    if not drawn:
        return note(ax, f"No run recorded {name}.")
    log_if_wide(ax, drawn)
    solid = (frame["name"] == f"val_{name}").any()
    title = f"{name}: validation solid, training dashed" if solid else name
    ax.set(title=title, ylabel=name)
    legend(ax)
    return ax


def series_by_name(own: pd.DataFrame) -> dict[str, Any]:
    """The numbers of one run: of each quantity a `Series` by epoch, with the last of each epoch."""
    numbers = own.loc[[not isinstance(value, list) for value in own["value"]]]
    last = numbers.drop_duplicates(["name", "epoch"], keep="last").sort_values("epoch")
    return {
        str(name): rows.set_index("epoch")["value"].astype(float)
        for name, rows in last.groupby("name", sort=False)
    }
