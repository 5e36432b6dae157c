"""Loss and accuracy over the epochs, and whatever else was measured."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from keras_regtools.plots.axes import (
    AXES,
    RECORDS,
    curve,
    legend,
    log_if_wide,
    note,
    on,
    over_epochs,
)
from keras_regtools.plots.picture import picture
from keras_regtools.plots.staleness import is_stale, staleness
from keras_regtools.validation import checked, text

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def _validation(records, behind):
    if "recalibrated" in records.names():
        return (
            "The dashed curve is the validation with statistics of batch normalization that belong "
            "to the weights: the gap from it to validation is due to moving statistics that lag "
            "behind, the gap from training to it is due to the data."
        )
    if is_stale(records):
        return (
            "Validation uses moving statistics of batch normalization that lag behind the weights "
            "(see above): until they are re-estimated, its distance from training says little "
            "about generalization."
        )
    return (
        f"Where validation {behind}, the network learns what holds for its training data only. "
        "With dropout, validation may lie on the better side."
    )


def _loss_caption(records):
    if "val_loss" not in records.names():
        return "The training loss should fall."
    return "Both curves should fall. " + _validation(records, "rises while training falls")


def _loss_finding(records):
    epochs, losses = records.series("loss")
    if not epochs:
        return None
    found = [
        f"Training loss went from {losses[0]:.3g} to {losses[-1]:.3g} in {len(epochs)} "
        f"epoch{'s' if len(epochs) > 1 else ''}."
    ]
    if any(not math.isfinite(v) for v in losses):
        found.append("The training loss became NaN or infinite: the run diverged.")
    at, validation = records.series("val_loss")
    if any(math.isfinite(value) for value in validation):
        best = min(range(len(validation)), key=lambda i: _or_infinity(validation[i]))
        found.append(
            f"Validation loss was lowest in epoch {at[best] + 1}, at {validation[best]:.3g}; "
            f"it ended at {validation[-1]:.3g}."
        )
    return found


def _or_infinity(value):
    return value if math.isfinite(value) else math.inf


@picture(
    10,
    "loss",
    "val_loss",
    "recalibrated",
    "recalibrated/",
    "data_loss",
    "val_data_loss",
    caption=_loss_caption,
    finding=_loss_finding,
    shown=lambda records: "loss" in records.names(),
)
def loss(records: Any, ax: Any = None) -> Axes:
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


def _accuracy_caption(records):
    if not any(name.startswith("val_") for name in records.names()):
        return "The training accuracy should rise."
    return "Both curves should rise. " + _validation(
        records, "stays behind a rising training curve"
    )


def _accuracy_finding(records):
    accuracy = records.last("val_accuracy")
    known = math.isfinite(accuracy)
    return [f"Validation accuracy ended at {accuracy:.3f}." if known else "", staleness(records)]


def _is_accuracy(name):
    return name.endswith(("accuracy", "acc")) and "/" not in name


@picture(
    20,
    "accuracy",
    "val_accuracy",
    caption=_accuracy_caption,
    finding=_accuracy_finding,
    shown=lambda records: any(map(_is_accuracy, records.names())),
)
def accuracy(records: Any, ax: Any = None) -> Axes:
    """The training and validation accuracy over the epochs.

    Args:
        records: `Records` of a run; any recorded quantity whose name ends in `accuracy` or `acc`.
        ax: Matplotlib axes to draw on; those of a new figure by default.

    Returns:
        The axes.
    """
    ax = on(ax)
    names = [name for name in records.names() if _is_accuracy(name)]
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


def _gap(records):
    """Validation loss less training loss, with the best validation that is recorded."""
    pairs = (("loss", "recalibrated"), ("data_loss", "val_data_loss"), ("loss", "val_loss"))
    names = next((pair for pair in pairs if {*pair} <= {*records.names()}), pairs[-1])
    training, validation = (dict(zip(*records.series(name), strict=True)) for name in names)
    epochs = [epoch for epoch in training if epoch in validation]
    return epochs, [validation[epoch] - training[epoch] for epoch in epochs]


def _gap_caption(records):
    text = (
        "Validation loss less training loss, without penalties where they are told apart. It grows "
        "where the network learns what holds for its training data only. The training loss is a "
        "mean over the epoch, with dropout and the like: at first, and with dropout, the gap may "
        "be below zero."
    )
    if "recalibrated" not in records.names() and is_stale(records):
        text += " Here the moving statistics of batch normalization lag behind, which is in it too."
    return text


def _gap_finding(records):
    _, gaps = _gap(records)
    last = gaps[-1] if gaps else math.nan
    if not math.isfinite(last) or ("recalibrated" not in records.names() and is_stale(records)):
        return None
    found = f"The generalization gap, validation loss less training loss, ended at {last:.3g}"
    best = records.series("val_loss")[1]
    if len(gaps) > 1 and math.isfinite(min(best, key=_or_infinity)):
        at = min(range(len(best)), key=lambda i: _or_infinity(best[i]))
        if at < len(gaps) - 1 and math.isfinite(gaps[at]):
            found += f", after {gaps[at]:.3g} at the lowest validation loss"
    accuracies = [records.last(name) for name in ("accuracy", "val_accuracy")]
    if all(map(math.isfinite, accuracies)):
        found += f"; that of the accuracy at {accuracies[0] - accuracies[1]:.3f}"
    return found + "."


@picture(
    25,
    "loss",
    "val_loss",
    "data_loss",
    "val_data_loss",
    caption=_gap_caption,
    finding=_gap_finding,
    shown=lambda records: len(_gap(records)[0]) > 1,
)
def generalization_gap(records: Any, ax: Any = None) -> Axes:
    """Validation loss less training loss over the epochs.

    The validation is that with re-estimated statistics of batch normalization, if it was recorded;
    else both are losses on the data, without penalties, if `PenaltyMonitor` recorded them.

    Args:
        records: `Records` of a run.
        ax: Matplotlib axes to draw on; those of a new figure by default.

    Returns:
        The axes.
    """
    ax = on(ax)
    epochs, gaps = _gap(records)
    if not epochs:
        return note(ax, "No validation loss was recorded: train with validation_data.")
    over_epochs(ax)
    marker = "o" if len(epochs) < 30 else None
    ax.plot([epoch + 1 for epoch in epochs], gaps, marker=marker, markersize=3.5, color="tab:red")
    ax.hlines(0, epochs[0] + 1, epochs[-1] + 1, color="grey", linewidth=0.8, linestyle=":")
    ax.set(title="Generalization gap", ylabel="validation loss − training loss")
    return ax


@checked(records=RECORDS, prefix=text, ax=AXES)
def quantities(records: Any, prefix: str, ax: Any = None) -> Axes:
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
    if not any(map(math.isfinite, values)):
        return note(ax, f"Of {prefix}, no finite number was measured.")
    over_epochs(ax)
    log_if_wide(ax, values)
    ax.set(title=prefix, ylabel="value")
    legend(ax)
    return ax
