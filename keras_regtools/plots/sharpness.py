"""Measures of flatness over the epochs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from keras_regtools.plots.axes import curve, legend, log_if_wide, note, on, over_epochs
from keras_regtools.plots.picture import picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def _caption(records):
    return (
        "How far the loss can rise when every weight moves a little, by a thousandth by default: "
        "low is flat, high is sharp. Compare it only between runs with the same network, data and "
        "settings; it does not predict generalization reliably."
    )


def _finding(records):
    epochs, values = records.series("sharpness/keskar")
    if not epochs or not math.isfinite(values[-1]):
        return None
    return (
        f"Keskar's sharpness was {values[-1]:.3g} after epoch {epochs[-1] + 1} (the rise of the "
        "loss in the box, in % of 1 + loss)."
    )


@picture(90, "sharpness/", caption=_caption, finding=_finding)
def sharpness(records: Any, ax: Any = None) -> Axes:
    """Every measure named `sharpness/<name>` over the epochs.

    Args:
        records: `Records` of a run.
        ax: Matplotlib axes to draw on; those of a new figure by default.

    Returns:
        The axes.
    """
    ax = on(ax)
    names = [n for n in records.names() if n.startswith("sharpness/") and n.count("/") == 1]
    if not names:
        return note(ax, "No sharpness was measured: add callbacks.Sharpness(x, y).")
    values = []
    for name in names:
        curve(ax, records, name, label=name.removeprefix("sharpness/"))
        values += records.series(name)[1]
    over_epochs(ax)
    log_if_wide(ax, values)
    if ax.get_yscale() == "linear":
        ax.set_ylim(bottom=0)
    only_keskar = names == ["sharpness/keskar"]
    label = "rise of the loss in the box\n[% of 1 + loss]" if only_keskar else "sharpness"
    ax.set(title="Sharpness of the minimum", ylabel=label)
    legend(ax)
    return ax
