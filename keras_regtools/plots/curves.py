"""Quantities over the epochs: loss, accuracy, learning rate, sharpness."""

from keras_regtools.plots.axes import curve, legend, log_if_wide, note, on, over_epochs


def loss(records, ax=None):
    """The training and validation loss over the epochs.

    Args:
        records: `Records` of a run.
        ax: Matplotlib axes to draw on; those of a new figure by default.

    Returns:
        The axes.
    """
    ax = on(ax)
    if not {"loss", "val_loss"} & set(records.names()):
        return note(ax, "No loss was recorded.")
    over_epochs(ax)
    curve(ax, records, "loss", label="training")
    curve(ax, records, "val_loss", label="validation")
    _recalibrated(ax, records, "recalibrated")
    log_if_wide(ax, records.series("loss")[1] + records.series("val_loss")[1])
    ax.set(title="Loss", ylabel="loss (with penalties)")
    legend(ax)
    return ax


def accuracy(records, ax=None):
    """The training and validation accuracy over the epochs.

    Args:
        records: `Records` of a run; any recorded quantity whose name ends in `accuracy` or `acc`.
        ax: Matplotlib axes to draw on; those of a new figure by default.

    Returns:
        The axes.
    """
    ax = on(ax)
    names = [n for n in records.names() if n.endswith(("accuracy", "acc")) and "/" not in n]
    if not names:
        return note(ax, "No accuracy was measured: compile the model with metrics=['accuracy'].")
    for name in names:
        part = "validation" if name.startswith("val_") else "training"
        plain = name.removeprefix("val_")
        curve(ax, records, name, label=part if len(names) <= 2 else f"{part} {plain}")
    _recalibrated(ax, records, "recalibrated/accuracy")
    over_epochs(ax).set(title="Accuracy", ylabel="share of right answers")
    legend(ax)
    return ax


def _recalibrated(ax, records, name):
    style = {"linestyle": "--", "marker": "s", "color": "tab:green"}
    curve(ax, records, name, label="validation, recalibrated", **style)


def quantities(records, prefix, ax=None):
    """Every quantity named `prefix/<name>`, or `prefix` itself, over the epochs.

    Args:
        records: `Records` of a run.
        prefix: The part of the names before the slash.
        ax: Matplotlib axes to draw on; those of a new figure by default.

    Returns:
        The axes.
    """
    ax = on(ax)
    names = [n for n in records.names() if n == prefix or n.rpartition("/")[0] == prefix]
    values = []
    for name in names:
        series = records.series(name)[1]
        if series and not isinstance(series[0], list):
            curve(ax, records, name, label=name.removeprefix(f"{prefix}/"))
            values += series
    if not values:
        return note(ax, f"Nothing named {prefix} was recorded.")
    over_epochs(ax)
    log_if_wide(ax, values)
    ax.set(title=prefix, ylabel="value")
    legend(ax)
    return ax


def learning_rate(records, ax=None):
    """The learning rate over the training steps.

    Args:
        records: `Records` of a run.
        ax: Matplotlib axes to draw on; those of a new figure by default.

    Returns:
        The axes.
    """
    ax = on(ax)
    steps, rates = records.series("learning_rate", by="step")
    if not steps:
        return note(ax, "No learning rate was recorded.")
    marker = "o" if len(steps) < 60 else None
    ax.plot(steps, rates, marker=marker, markersize=3, label="learning rate")
    ax.grid(alpha=0.3)
    log_if_wide(ax, rates)
    if ax.get_yscale() == "linear":
        ax.set_ylim(bottom=0)
    ax.set(title="Learning rate", xlabel="training step", ylabel="learning rate")
    legend(ax)
    return ax


def sharpness(records, ax=None):
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
