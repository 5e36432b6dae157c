"""How large each weight penalty is beside the data loss."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from keras_regtools.plots.axes import by_depth, curve, legend, note, on, over_epochs
from keras_regtools.plots.picture import picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def _caption(records):
    penalty, loss = records.last("penalty"), records.last("data_loss")
    text = "The black curve is the training loss on the data alone. "
    if not (math.isfinite(penalty) and math.isfinite(loss)):
        return text
    if penalty > loss:
        return text + "In the end the penalties are larger: they rule the training."
    if penalty < loss / 100:
        return text + "The penalties stay below a hundredth of it: they hardly act."
    return text + "The penalties are smaller, and act."


def _finding(records):
    penalty, loss = records.last("penalty"), records.last("data_loss")
    if not (penalty > 0 and loss > 0):
        return None
    return (
        f"The weight penalties ended at {penalty:.3g}, {penalty / loss:.3g} times the training "
        f"loss on the data alone, {loss:.3g}."
    )


def _has_penalties(records):
    return any(name.startswith("penalty/") for name in records.names())


@picture(80, "penalty", "penalty/", caption=_caption, finding=_finding, shown=_has_penalties)
def penalties(records: Any, ax: Any = None) -> Axes:
    """Each weight penalty and the data loss over the epochs.

    Args:
        records: `Records` of a run.
        ax: Matplotlib axes to draw on; those of a new figure by default.

    Returns:
        The axes, with a logarithmic vertical axis where there is anything above zero.
    """
    ax = on(ax)
    names = [name for name in records.names() if name.startswith("penalty/")]
    if not names:
        return note(ax, "The model has no weight penalties.")
    over_epochs(ax)
    curve(ax, records, "data_loss", label="data loss", color="black", linewidth=2)
    for name, colour in zip(names, by_depth(len(names)), strict=True):
        curve(ax, records, name, label=_short(name), color=colour)
    values = [v for name in ("data_loss", *names) for v in records.series(name)[1]]
    if any(math.isfinite(v) and v > 0 for v in values):
        ax.set_yscale("log")
    ax.set(title="Weight penalties beside the data loss", ylabel="part of the loss")
    legend(ax)
    return ax


def _short(name):
    """The layer and the weight, without the models around them."""
    return "/".join(name.split("/")[-2:]).removeprefix("penalty/")
