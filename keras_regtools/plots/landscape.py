"""Landscapes: the loss along a line, and over a plane from above and in relief."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from keras_regtools.plots.axes import AXES, on
from keras_regtools.validation import checked, has, text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Quantities of a result by what they are called in pictures.
_NAMES = {
    "loss": "training loss",
    "accuracy": "training accuracy",
    "test_loss": "test loss",
    "test_accuracy": "test accuracy",
}
_BATCH_NORM = {
    "batch_statistics": "batch normalization with batch statistics",
    "recalibrate": "moving statistics re-estimated at each point",
    "frozen": "frozen batch normalization, with its moving statistics",
    "moving": "moving statistics of the model, the same at each point",
}


@checked(result=has("alphas", "a `LossLine`"), ax=AXES)
def line(result: Any, ax: Any = None) -> Axes:
    """Loss (left axis) and accuracy (right axis) along a line, test data dashed.

    Args:
        result: A `landscape.LossLine`.
        ax: Matplotlib axes to draw on; those of a new figure by default.

    Returns:
        The axes of the loss; those of the accuracy are made after them.

    Reference:
        [Keskar et al., 2016](https://arxiv.org/abs/1609.04836), figure 3.
    """
    ax = on(ax)
    has_accuracy = result.accuracy is not None
    curves = []
    for kind, axes, colour in (
        ("loss", ax, "tab:blue"),
        ("accuracy", ax.twinx() if has_accuracy else None, "tab:red"),
    ):
        for prefix, style in (("", "-"), ("test_", "--")):
            values = getattr(result, prefix + kind)
            if axes is not None and values is not None:
                label = _NAMES[prefix + kind]
                curves += axes.plot(result.alphas, values, style, color=colour, label=label)
        if axes is not None:
            axes.tick_params(axis="y", colors=colour)
            axes.yaxis.label.set_color(colour)
    losses = [v for v in (result.loss, result.test_loss) if v is not None]
    _log_if_wide(ax, np.concatenate(losses))
    if has_accuracy:
        ax.figure.axes[-1].set(ylabel="accuracy (share of right answers)", ylim=(0, 1.02))
    for place in (0.0,) if result.path == "direction" else (0.0, 1.0):
        ax.axvline(place, color="black", linewidth=0.8, linestyle=":")
    ax.set(
        xlabel=result.label,
        ylabel=_named("loss", result),
    )
    _title(ax, f"Loss along a {'curve' if result.path == 'curvilinear' else 'line'}", result)
    ax.grid(alpha=0.3)
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.14), "ncols": 4}  # of both axes
    ax.legend(curves, [c.get_label() for c in curves], fontsize=7, **below)
    return ax


@checked(result=has("trajectory", "a `LossPlane`"), ax=AXES, quantity=text)
def contour(result: Any, ax: Any = None, quantity: str = "loss") -> Axes:
    """A plane from above: contours of the loss, with the path of a training drawn in.

    Args:
        result: A `landscape.LossPlane`.
        ax: Matplotlib axes to draw on; those of a new figure by default.
        quantity: `"loss"`, `"accuracy"`, `"test_loss"` or `"test_accuracy"`.

    Returns:
        The axes.

    Raises:
        ValueError: a quantity that the result does not have.
    """
    values, levels, norm = _levels(result, quantity)
    ax = on(ax)
    filled = ax.contourf(result.x, result.y, values, levels, norm=norm, cmap="viridis")
    lines = ax.contour(
        result.x, result.y, values, levels, norm=norm, colors="white", linewidths=0.4
    )
    ax.clabel(lines, lines.levels[::3], fontsize=6, fmt="%.3g")
    bar = ax.figure.colorbar(filled, ax=ax, label=_named(_NAMES[quantity], result))
    bar.ax.set_yticks(levels[::3], [f"{level:.3g}" for level in levels[::3]])
    if result.trajectory is not None:
        ax.plot(*result.trajectory.T, "o-", color="tab:orange", markersize=3, label="training")
    ax.plot(0, 0, "*", color="red", markersize=11, label="the model")
    ax.legend(fontsize=7)
    ax.set(xlabel=result.x_label, ylabel=result.y_label)
    _title(ax, f"{_NAMES[quantity].capitalize()} over a plane", result)
    return ax


@checked(result=has("trajectory", "a `LossPlane`"), ax=AXES, quantity=text)
def surface(result: Any, ax: Any = None, quantity: str = "loss") -> Axes:
    """A plane in relief, as a 3-D surface, with the path of a training drawn on it.

    Args:
        result: A `landscape.LossPlane`.
        ax: Matplotlib axes with `projection="3d"`; those of a new figure by default.
        quantity: As for `contour`.

    Returns:
        The axes.

    Raises:
        ValueError: a quantity that the result does not have, or axes of another projection.
    """
    values, levels, norm = _levels(result, quantity)
    if ax is None:
        import matplotlib.pyplot as plt

        figure = plt.figure(layout="constrained")
        ax = figure.add_subplot(projection="3d")
    if not hasattr(ax, "plot_surface"):
        raise ValueError(
            "Expected axes of a 3-D projection: `figure.add_subplot(projection='3d')`. "
            f"Received: {ax}"
        )
    logarithmic = norm is not None
    height = np.log10(values) if logarithmic else values
    x, y = np.meshgrid(result.x, result.y)
    ax.plot_surface(x, y, height, cmap="viridis", linewidth=0, antialiased=True, alpha=0.95)
    if result.trajectory is not None:
        path, at = result.trajectory, [(result.x, 0), (result.y, 1)]
        column, row = (np.abs(a[:, None] - path[:, i]).argmin(axis=0) for a, i in at)
        ax.plot(*path.T, height[row, column], "o-", color="tab:orange", markersize=2.5, zorder=10)
    column, row = (np.abs(a).argmin() for a in (result.x, result.y))
    ax.plot([0], [0], [height[row, column]], "*", color="red", markersize=11, zorder=11)
    label = _named(_NAMES[quantity], result)
    ax.set_xlabel(result.x_label.replace(" (", "\n("), fontsize=7)
    ax.set_ylabel(result.y_label.replace(" (", "\n("), fontsize=7)
    ax.set_zlabel(label, fontsize=8)
    if logarithmic:  # 3-D axes have no working logarithmic scale
        ticks = [t for t in ax.get_zticks() if height.min() <= t <= height.max()]
        ax.set_zticks(ticks, [f"{10**t:.3g}" for t in ticks])
    ax.tick_params(labelsize=7)
    ax.locator_params(axis="x", nbins=5)
    ax.locator_params(axis="y", nbins=5)
    ax.set_box_aspect(None, zoom=0.85)  # layouts do not count the labels of 3-D axes
    _title(ax, f"{_NAMES[quantity].capitalize()} over a plane", result)
    return ax


def _levels(result, quantity):
    """The values, 20 levels for them, and a logarithmic norm where they span far."""
    from matplotlib.colors import LogNorm

    values = getattr(result, quantity, None) if quantity in _NAMES else None
    if values is None:
        having = [name for name in _NAMES if getattr(result, name) is not None]
        raise ValueError(
            f"Expected `quantity` to be one of {having}. Received: quantity={quantity!r}"
        )
    if not np.any(np.isfinite(values)):
        raise ValueError(f"Expected a plane with a finite {_NAMES[quantity]}. Received: none")
    values = np.ma.masked_invalid(values)
    low, high = float(values.min()), float(values.max())
    if low == high:
        high = low + (abs(low) or 1.0) * 1e-6
    if low > 0 and high > 10 * low:
        return values, np.geomspace(low, high, 20), LogNorm(low, high)
    return values, np.linspace(low, high, 20), None


def _log_if_wide(ax, values):
    values = values[np.isfinite(values)]
    if len(values) and values.min() > 0 and values.max() > 30 * values.min():
        ax.set_yscale("log")


def _named(name, result):
    return name if result.penalties or "loss" not in name else f"{name} (without penalties)"


def _title(ax, title, result):
    treatment = _BATCH_NORM.get(result.batch_norm)
    ax.set_title(f"{title}\n{treatment}" if treatment else title, fontsize=10)
