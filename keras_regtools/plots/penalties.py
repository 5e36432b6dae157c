"""How large each weight penalty is beside the data loss."""

import math

from keras_regtools.plots.axes import by_depth, curve, legend, note, on, over_epochs


def penalties(records, ax=None):
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
