"""Pictures of lines and planes: what the result holds is what is drawn, named and labelled."""

import dataclasses
import json
import re
import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest

from keras_regtools import plots, report
from keras_regtools.landscape import LossLine, LossPlane

FROM = {"evaluations": 8, "batch_size": 4, "mode": "inference", "penalties": True, "samples": 8}
LINE = LossLine(
    alphas=np.array([0.0, 0.5, 1.0]),
    loss=np.array([1.0, 0.5, 2.0]),
    accuracy=np.array([0.5, 0.75, 0.25]),
    test_loss=np.array([1.5, 1.0, 2.5]),
    test_accuracy=np.array([0.25, 0.5, 0.125]),
    path="linear",
    label="α: 0 here, 1 there",
    batch_norm="recalibrate",
    **FROM,
)
X, Y = np.linspace(-1, 1, 5), np.linspace(-2, 2, 3)
PLANE = LossPlane(
    x=X,
    y=Y,
    loss=0.5 * (X**2 + 10 * Y[:, None] ** 2) + 0.1,
    accuracy=np.full((3, 5), 0.5),
    test_loss=X**2 + Y[:, None] ** 2 + 1.0,
    trajectory=np.array([[-1.0, 2.0], [0.5, 0.0], [0.0, 0.0]]),
    x_label="principal direction 1 (80 % of the movement)",
    y_label="principal direction 2 (15 % of the movement)",
    batch_norm="none",
    **FROM,
)


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def drawn(axes):
    return [(list(c.get_xdata()), list(c.get_ydata())) for c in axes.get_lines()]


def test_a_line_has_the_losses_on_the_left_and_the_accuracies_on_the_right():
    left = plots.line(LINE)
    right = left.figure.axes[-1]
    alphas = list(LINE.alphas)
    assert drawn(left)[:2] == [(alphas, list(LINE.loss)), (alphas, list(LINE.test_loss))]
    assert drawn(right) == [(alphas, list(LINE.accuracy)), (alphas, list(LINE.test_accuracy))]
    assert [c.get_linestyle() for c in left.get_lines()[:2]] == ["-", "--"]
    assert [t.get_text() for t in left.get_legend().get_texts()] == [
        "training loss",
        "test loss",
        "training accuracy",
        "test accuracy",
    ]
    assert left.get_xlabel() == LINE.label
    assert left.get_ylabel() == "loss"
    assert right.get_ylabel() == "accuracy (share of right answers)"


def test_a_line_says_how_batch_normalization_was_treated_and_marks_both_models():
    ax = plots.line(LINE)
    assert ax.get_title() == "Loss along a line\nmoving statistics re-estimated at each point"
    assert [c[0] for c in drawn(ax)[2:]] == [[0, 0], [1, 1]]


def test_a_loss_without_penalties_says_so():
    line = plots.line(dataclasses.replace(LINE, penalties=False))
    assert line.get_ylabel() == "loss (without penalties)"
    assert line.figure.axes[-1].get_ylabel() == "accuracy (share of right answers)"
    relief = plots.surface(dataclasses.replace(PLANE, penalties=False), quantity="accuracy")
    assert relief.get_zlabel() == "training accuracy"


def test_a_line_along_a_direction_marks_one_model_and_one_without_accuracy_has_one_axis():
    line = dataclasses.replace(
        LINE, path="direction", accuracy=None, test_accuracy=None, test_loss=None, batch_norm="none"
    )
    ax = plots.line(line)
    assert ax.figure.axes == [ax]
    assert [c[0] for c in drawn(ax)[1:]] == [[0, 0]]
    assert ax.get_title() == "Loss along a line"


def test_a_curve_is_called_a_curve_and_wide_losses_get_a_logarithmic_axis():
    wide = dataclasses.replace(LINE, path="curvilinear", loss=np.array([0.01, 1.0, 9.0]))
    ax = plots.line(wide)
    assert ax.get_title().startswith("Loss along a curve")
    assert ax.get_yscale() == "log"
    assert plots.line(LINE).get_yscale() == "linear"


def test_the_contours_show_the_model_the_training_and_the_quantity():
    ax = plots.contour(PLANE)
    (path, model) = drawn(ax)
    assert np.array(path).T.tolist() == PLANE.trajectory.tolist()
    assert model == ([0], [0])
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["training", "the model"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == (PLANE.x_label, PLANE.y_label)
    assert ax.get_title() == "Training loss over a plane"
    assert ax.figure.axes[-1].get_ylabel() == "training loss"


def test_the_contours_of_a_wide_loss_are_spaced_by_factors():
    levels = plots.contour(PLANE).collections[0].levels
    assert levels[0] == pytest.approx(PLANE.loss.min())
    assert levels[-1] == pytest.approx(PLANE.loss.max())
    assert levels[1:] / levels[:-1] == pytest.approx(np.full(19, levels[1] / levels[0]))
    levels = plots.contour(PLANE, quantity="test_loss").collections[0].levels
    assert np.diff(levels) == pytest.approx(np.full(19, levels[1] - levels[0]))


def test_a_plane_that_is_the_same_everywhere_or_not_finished_can_be_drawn():
    plots.contour(PLANE, quantity="accuracy").figure.canvas.draw()
    unfinished = PLANE.loss.copy()
    unfinished[2] = np.nan
    plots.contour(dataclasses.replace(PLANE, loss=unfinished)).figure.canvas.draw()
    plots.surface(dataclasses.replace(PLANE, loss=unfinished)).figure.canvas.draw()


def test_the_relief_is_as_high_as_the_loss_with_the_training_on_it():
    ax = plots.surface(PLANE, quantity="test_loss")
    ax.figure.canvas.draw()
    low, high = ax.get_zlim()
    assert low <= PLANE.test_loss.min()
    assert high >= PLANE.test_loss.max()
    (path, model) = ax.get_lines()
    assert list(model.get_data_3d()[2]) == [1.0]
    assert list(path.get_data_3d()[2]) == [PLANE.test_loss[2, 0], PLANE.test_loss[1, 3], 1.0]
    assert ax.get_zlabel() == "test loss"
    assert ax.get_xlabel() == "principal direction 1\n(80 % of the movement)"


def test_the_heights_of_a_wide_loss_are_labelled_with_the_loss():
    ax = plots.surface(PLANE)
    (path, _) = ax.get_lines()
    assert path.get_data_3d()[2][-1] == pytest.approx(np.log10(0.1))
    labels = {
        float(t.get_text()): tick
        for t, tick in zip(ax.get_zticklabels(), ax.get_zticks(), strict=True)
    }
    assert labels
    assert all(np.log10(value) == pytest.approx(t, abs=1e-2) for value, t in labels.items())


@pytest.mark.parametrize("plot", [plots.contour, plots.surface])
def test_a_quantity_that_a_plane_does_not_have_is_named(plot):
    with pytest.raises(ValueError) as caught:
        plot(PLANE, quantity="test_accuracy")
    assert str(caught.value) == (
        "Expected `quantity` to be one of ['loss', 'accuracy', 'test_loss']. "
        "Received: quantity='test_accuracy'"
    )


def test_a_relief_needs_axes_in_three_dimensions():
    with pytest.raises(ValueError, match=r"^Expected axes of a 3-D projection: `figure\.add_sub"):
        plots.surface(PLANE, plt.subplots()[1])


@pytest.mark.parametrize("plot", [plots.line, plots.contour, plots.surface])
def test_a_picture_is_drawn_on_given_axes(plot):
    result = LINE if plot is plots.line else PLANE
    projection = "3d" if plot is plots.surface else None
    ax = plt.figure().add_subplot(projection=projection)
    assert plot(result, ax) is ax
    assert plot(result).figure is not ax.figure


def test_the_interactive_page_holds_the_numbers_and_needs_no_network(tmp_path):
    page = report.write_surface(PLANE, tmp_path / "new" / "plane.html")
    text = page.path.read_text("utf-8")
    assert not re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=[\"']https?:", text)
    assert "Plotly.newPlot" in text
    data = re.search(r"Plotly\.newPlot\(\s*\"[^\"]+\",\s*(\[.*?\]),\s*\{\"", text, re.DOTALL)
    traces = json.loads(data.group(1))
    assert [t["type"] for t in traces] == ["surface", "scatter3d", "scatter3d"] * 3
    assert [t["visible"] for t in traces] == [True] * 3 + [False] * 6
    assert "training loss" in text
    assert PLANE.x_label in text
    library = len(text) / 2  # most of a page that needs no network
    first, second = (
        len(report.write_surface(PLANE, path)._repr_html_()) for path in 2 * [page.path]
    )
    assert second < library
    assert first in (second, pytest.approx(second + 2 * library, rel=0.2))  # once in a notebook


def test_without_plotly_the_page_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly", None)
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    with pytest.raises(ImportError) as caught:
        report.write_surface(PLANE, tmp_path / "plane.html")
    assert str(caught.value) == (
        "The interactive page is drawn by plotly, which is not installed. "
        "Install it with: pip install plotly"
    )
