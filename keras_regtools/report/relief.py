"""An interactive page of a plane: turn it, look from above, read off its numbers, offline."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import numpy as np

from keras_regtools import validation
from keras_regtools.report.page import Page

_QUANTITIES = {
    "loss": "training loss",
    "test_loss": "test loss",
    "accuracy": "training accuracy",
    "test_accuracy": "test accuracy",
}


@validation.checked(result=validation.has("trajectory", "a `LossPlane`"), path=validation.path)
def write_surface(
    result: Any, path: str | os.PathLike[str], *, title: str = "Loss over a plane"
) -> SurfacePage:
    """Write a plane of the loss as an interactive page that needs no network.

    Buttons choose the quantity, and a linear or a logarithmic height; the mouse turns the surface
    and reads off its numbers. A training's path is drawn on it. The page holds all of plotly, some
    5 MB; in a notebook only the first that is shown does.

    Args:
        result: A `landscape.LossPlane`.
        path: The HTML file to write.
        title: Heading of the page.

    Returns:
        A `Page`, which a notebook shows.

    Raises:
        ImportError: plotly is not installed.

    Example:

    >>> import os, tempfile
    >>> import keras, numpy as np
    >>> from keras_regtools import LossSurface, landscape, report
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> surface = LossSurface(model, np.ones((4, 2)), np.ones((4, 1)), loss="mse")
    >>> plane = landscape.loss_plane(surface, points=5)
    >>> page = report.write_surface(plane, os.path.join(tempfile.mkdtemp(), "plane.html"))
    >>> page.path.name
    'plane.html'
    """
    try:
        import plotly.graph_objects as go
    except ImportError as error:
        raise ImportError(
            "The interactive page is drawn by plotly, which is not installed. "
            "Install it with: pip install plotly"
        ) from error
    having = {n: label for n, label in _QUANTITIES.items() if getattr(result, n) is not None}
    figure = go.Figure()
    places = {"the model": (np.zeros((1, 2)), {"color": "red", "size": 6, "symbol": "diamond"})}
    if result.trajectory is not None:
        places["training"] = (result.trajectory, {"color": "orange", "size": 3})
    for name, label in having.items():
        figure.add_trace(_relief(go, result, name, label, name == "loss"))
        for place, (points, marker) in places.items():
            figure.add_trace(_path(go, result, name, place, points, marker))
    each = 1 + len(places)
    choices = [
        {
            "label": label,
            "method": "update",
            "args": [
                {"visible": [j // each == i for j in range(each * len(having))]},
                {"scene.zaxis.title.text": label},
            ],
        }
        for i, label in enumerate(having.values())
    ]
    scales = [
        {"label": kind, "method": "relayout", "args": [{"scene.zaxis.type": kind}]}
        for kind in ("linear", "log")
    ]
    figure.update_layout(
        title={"text": title},
        template="plotly_white",
        scene={
            "xaxis": {"title": {"text": result.x_label}},
            "yaxis": {"title": {"text": result.y_label}},
            "zaxis": {"title": {"text": having["loss"]}},
            "aspectmode": "cube",
            "camera": {"eye": {"x": 1.9, "y": 1.9, "z": 1.3}},
        },
        updatemenus=[
            _buttons(choices, 0.0),
            _buttons(scales, 0.75),
        ],
        legend={"x": 0.02, "y": 0.9},
        margin={"l": 0, "r": 0, "t": 90, "b": 0},
    )
    path = pathlib.Path(os.fspath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.write_html(path, include_plotlyjs=True, full_html=True)
    return SurfacePage(path, figure)


class SurfacePage(Page):
    """A page of a surface; in a notebook, the first one brings the library for all of them."""

    _library_is_there = False

    def __init__(self, path, figure):
        super().__init__(path)
        self._figure = figure

    def _repr_html_(self):
        first = not SurfacePage._library_is_there
        SurfacePage._library_is_there = True
        return self._figure.to_html(include_plotlyjs=first, full_html=False)


def _relief(go, result, name, label, visible):
    return go.Surface(
        x=result.x,
        y=result.y,
        z=getattr(result, name),
        colorscale="Viridis",
        colorbar={"title": {"text": label}},
        name=label,
        visible=visible,
        hovertemplate="%{x:.3g}, %{y:.3g}<br>" + label + ": %{z:.4g}<extra></extra>",
    )


def _path(go, result, name, label, points, marker):
    """Points of the plane, at the height of the nearest ones of the grid."""
    x, y = points.T
    columns = np.abs(result.x[:, None] - x).argmin(axis=0)
    rows = np.abs(result.y[:, None] - y).argmin(axis=0)
    return go.Scatter3d(
        x=x,
        y=y,
        z=getattr(result, name)[rows, columns],
        mode="lines+markers" if len(points) > 1 else "markers",
        line={"color": marker["color"], "width": 5},
        marker=marker,
        name=label,
        visible=name == "loss",
        legend="legend",
    )


def _buttons(choices, x):
    return {
        "type": "buttons",
        "direction": "right",
        "buttons": choices,
        "x": x,
        "y": 1.0,
        "xanchor": "left",
        "yanchor": "bottom",
    }
