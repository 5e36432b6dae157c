"""Pictures: what the records hold is what the curves show, with axes, units and a legend."""

import inspect
import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from keras_regtools import plots
from keras_regtools.measures import HessianDensity
from keras_regtools.plots.picture import declared
from keras_regtools.records import Records

NAN = math.nan


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def of(**series):
    """Records of quantities over the epochs, ten steps to each; `__` stands for a slash."""
    return Records(
        (epoch, 10 * (epoch + 1), name.replace("__", "/"), value)
        for name, values in series.items()
        for epoch, value in enumerate(values)
    )


def layer(name, **quantities):
    return {f"activations__{name}__{quantity}": v for quantity, v in quantities.items()}


LOSSES = of(loss=[2.0, 1.0, 0.5], val_loss=[2.5, 1.5, 1.75])
ACCURACIES = of(accuracy=[0.25, 0.5, 0.75], val_accuracy=[0.5, 0.25, 0.5])
OUTPUTS = of(a_accuracy=[0.1], b_acc=[0.2], val_a_accuracy=[0.3], val_b_acc=[0.4], loss=[1.0])
RATES = Records((step // 10, step, "learning_rate", 0.1 * step) for step in (1, 2, 11, 12))
SHARPNESS = of(
    sharpness__keskar=[3.0, 2.0],
    sharpness__keskar__maximum=[9.0, 9.0],
    sharpness__sam=[0.5, 0.25],
)
LAYERS = of(
    **layer("first", mean=[0.0, 1.0], std=[1.0, 2.0], minimum=[-3.0, -2.0], maximum=[3.0, 4.0]),
    **layer("second", mean=[0.5, 0.0], std=[0.5, 0.25], minimum=[-1.0, -1.5], maximum=[1.0, 1.5]),
    **layer("second", mean_distance=[0.5, 0.125]),
)
PENALTIES = of(
    **{"penalty__net/dense/kernel": [0.5, 0.25], "penalty__net/conv/kernel": [0.125, 0.0625]},
    penalty=[0.625, 0.3125],
    data_loss=[2.0, 1.0],
)

EPOCHS = [1, 2]
CURVES = [
    (
        plots.loss,
        LOSSES,
        {"training": ([1, 2, 3], [2, 1, 0.5]), "validation": ([1, 2, 3], [2.5, 1.5, 1.75])},
    ),
    (plots.loss, of(loss=[2.0, 1.0]), {"training": (EPOCHS, [2, 1])}),
    (plots.generalization_gap, LOSSES, {"gap": ([1, 2, 3], [0.5, 0.5, 1.25])}),
    (
        plots.generalization_gap,
        of(loss=[9.0, 9.0], val_loss=[5.0, 6.0], data_loss=[2.0, 1.0], val_data_loss=[2.5, 1.25]),
        {"gap": (EPOCHS, [0.5, 0.25])},
    ),
    (
        plots.accuracy,
        ACCURACIES,
        {"training": ([1, 2, 3], [0.25, 0.5, 0.75]), "validation": ([1, 2, 3], [0.5, 0.25, 0.5])},
    ),
    (
        plots.accuracy,
        OUTPUTS,
        {
            "training a_accuracy": ([1], [0.1]),
            "training b_acc": ([1], [0.2]),
            "validation a_accuracy": ([1], [0.3]),
            "validation b_acc": ([1], [0.4]),
        },
    ),
    (plots.learning_rate, RATES, {"learning rate": ([1, 2, 11, 12], [0.1, 0.2, 1.1, 1.2])}),
    (
        plots.sharpness,
        SHARPNESS,
        {"keskar": (EPOCHS, [3, 2]), "sam": (EPOCHS, [0.5, 0.25])},
    ),
    (
        plots.activation_scales,
        LAYERS,
        {"first": (EPOCHS, [1, 2]), "second": (EPOCHS, [0.5, 0.25])},
    ),
    (plots.moving_distances, LAYERS, {"second": (EPOCHS, [0.5, 0.125])}),
    (
        plots.gradient_norms,
        of(**{f"gradients/{n}/gradient_norm": v for n, v in {"a": [1, 2], "b": [3, 4]}.items()}),
        {"a": (EPOCHS, [1, 2]), "b": (EPOCHS, [3, 4])},
    ),
    (
        plots.penalties,
        PENALTIES,
        {
            "data loss": (EPOCHS, [2, 1]),
            "dense/kernel": (EPOCHS, [0.5, 0.25]),
            "conv/kernel": (EPOCHS, [0.125, 0.0625]),
        },
    ),
    (
        plots.kernel_norms,
        of(**{f"kernels/{n}/norm": v for n, v in {"a": [1, 2], "b": [3, 4]}.items()}),
        {"a": (EPOCHS, [1, 2]), "b": (EPOCHS, [3, 4])},
    ),
]
OF_LANDSCAPES = ("contour", "line", "surface")  # in test_landscape_pictures.py
OF_RECORDS = {case[0]: case[1] for case in CURVES} | {
    plots.activation_ranges: LAYERS,
    plots.kernel_sparsity: of(
        **{"kernels/a/zero_share": [0, 0.5], "kernels/a/small_share": [0, 1]}
    ),
}
each_plot = pytest.mark.parametrize(("plot", "records"), list(OF_RECORDS.items()))


def test_every_picture_is_in_the_tables_of_this_file():
    others = {"search", "density", "quantities", "learning_rate_range", *OF_LANDSCAPES}
    others |= {"batch_size_suggestion", "critical_batch_size", "best_rates"}
    others |= {"losses_by_rate", "speed_by_batch_size"}  # beside what they draw
    others |= {"best_so_far", "confirmation", "conv_against_dense", "importance"}
    others |= {"marginal_effect", "parallel_coordinates", "pareto_front"}  # test_search.py
    others |= {"runs"}  # test_compare.py
    drawn = {plot.__name__ for plot in OF_RECORDS} | others
    assert drawn == set(plots.__all__)


def test_any_quantities_of_one_prefix_are_drawn_together():
    records = of(**{"mine/a": [1.0, 2.0], "mine/b": [3.0, 4.0], "other": [5.0, 6.0]})
    lines = plots.quantities(records, "mine").get_lines()
    assert [line.get_label() for line in lines] == ["a", "b"]
    assert [list(line.get_ydata()) for line in lines] == [[1, 2], [3, 4]]
    assert list(plots.quantities(records, "other").get_lines()[0].get_ydata()) == [5, 6]


@each_plot
def test_a_picture_takes_records_and_axes_and_gives_the_axes_back(plot, records):
    parameters = inspect.signature(plot).parameters.values()
    assert [(p.name, p.default) for p in parameters] == [
        ("records", inspect.Parameter.empty),
        ("ax", None),
    ]
    _, ax = plt.subplots()
    assert plot(records, ax) is ax
    assert plot(records, ax=ax) is ax
    assert plot(records).figure is not ax.figure


@each_plot
def test_a_picture_has_a_title_and_both_axes_are_labelled(plot, records):
    ax = plot(records)
    assert "" not in (ax.get_title(), ax.get_xlabel(), ax.get_ylabel())


@pytest.mark.parametrize(("plot", "records", "expected"), CURVES)
def test_the_curves_are_the_records(plot, records, expected):
    lines = plot(records).get_lines()
    drawn = [(list(line.get_xdata()), pytest.approx(list(line.get_ydata()))) for line in lines]
    assert list(expected.values()) == drawn


@pytest.mark.parametrize(("plot", "records", "expected"), CURVES)
def test_every_curve_is_named_in_the_legend_where_there_are_several(plot, records, expected):
    legend = plot(records).get_legend()
    if len(expected) > 1 or legend is not None:
        assert [text.get_text() for text in legend.get_texts()] == list(expected)


def test_the_gap_is_told_at_the_end_and_at_the_best_epoch():
    found = dict((p.name, p) for p in declared())["generalization_gap"]
    rows = of(loss=[2.0, 1.0, 0.5], val_loss=[2.5, 1.5, 1.75], accuracy=[0.9], val_accuracy=[0.75])
    assert found.is_shown(rows)
    assert found.found(rows) == [
        "The generalization gap, validation loss less training loss, ended at 1.25, after 0.5 at "
        "the lowest validation loss; that of the accuracy at 0.150."
    ]
    assert not found.is_shown(of(loss=[1.0, 2.0]))
    stale = of(loss=[1.0, 0.5], val_loss=[1.5, 2.0], batch_norm__initial_share=[0.9, 0.5])
    assert found.found(stale) == []
    assert "lag behind" in found.caption(stale)
    anew = of(loss=[1.0, 0.5], val_loss=[1.5, 2.0], recalibrated=[1.25, 0.75])
    assert list(plots.generalization_gap(anew).get_lines()[0].get_ydata()) == [0.25, 0.25]
    assert found.found(of(loss=[1.0, NAN], val_loss=[1.0, 1.0])) == []
    late = Records(row for row in rows.rows if row.name != "val_loss" or row.epoch == 2)
    assert found.found(late)[0].startswith(
        "The generalization gap, validation loss less training loss, ended at 1.25;"
    )


@pytest.mark.parametrize(("small", "shown"), [(0.02, False), (0.3, True), (NAN, False)])
def test_sparse_weights_are_worth_a_picture_where_there_are_some(small, shown):
    found = dict((p.name, p) for p in declared())["kernel_sparsity"]
    rows = of(**{"kernels/small_share": [small], "kernels/zero_share": [0.01]})
    assert found.is_shown(rows) == shown
    told = ["In the end 1.0% of the kernels' weights were zero and 30.0% small."]
    assert found.found(rows) == (told if shown else [])


def test_more_curves_than_fit_are_named_beside_the_picture():
    names = [f"layer{i}" for i in range(8)]
    ax = plots.activation_scales(of(**{f"activations__{name}__std": [1.0] for name in names}))
    ax.figure.canvas.draw()
    assert [text.get_text() for text in ax.get_legend().get_texts()] == names
    left = ax.get_legend().get_window_extent().x0
    assert left >= ax.get_window_extent().x1


def test_the_ranges_show_the_last_epoch_with_the_input_at_the_top():
    ax = plots.activation_ranges(LAYERS)
    extremes, deviations = ax.collections[:2]
    assert [s[:, 0].tolist() for s in extremes.get_segments()] == [[-2, 4], [-1.5, 1.5]]
    assert [s[:, 0].tolist() for s in deviations.get_segments()] == [[-1, 3], [-0.25, 0.25]]
    assert list(ax.get_lines()[0].get_xdata()) == [1, 0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["first", "second"]
    bottom, top = ax.get_ylim()
    assert top < bottom
    assert len(ax.get_legend().get_texts()) == 2


@pytest.mark.parametrize("plot", OF_RECORDS)
@pytest.mark.parametrize("records", [Records(), of(something=[1.0])], ids=["empty", "other"])
def test_records_without_the_quantity_draw_a_note(plot, records):
    ax = plot(records)
    ax.figure.canvas.draw()
    assert not ax.get_lines()
    (note,) = ax.texts
    assert note.get_text()


@pytest.mark.parametrize("value", [NAN, math.inf, 0.0])
@each_plot
def test_values_that_cannot_be_drawn_do_not_end_the_picture(plot, records, value):
    for rows in (
        [row._replace(value=value) for row in records.rows],
        [*records.rows, *(row._replace(epoch=9, step=99, value=value) for row in records.rows)],
    ):
        ax = plot(Records(rows))
        ax.figure.canvas.draw()
        assert ax.get_title()


@pytest.mark.parametrize(
    ("plot", "records", "scale"),
    [
        (plots.loss, of(loss=[30.0, 1.0]), "linear"),
        (plots.loss, of(loss=[30.0, 2.0], val_loss=[1.0, 0.9]), "log"),
        (plots.loss, of(loss=[300.0, 2.0, 0.0]), "linear"),
        (plots.loss, of(loss=[300.0, 2.0, -1.0]), "linear"),
        (plots.learning_rate, of(learning_rate=[1.0, 0.01]), "log"),
        (plots.sharpness, of(sharpness__keskar=[1.0, 100.0]), "log"),
        (plots.activation_scales, of(**layer("a", std=[1.0]), **layer("b", std=[50.0])), "log"),
        (plots.penalties, PENALTIES, "log"),
    ],
)
def test_a_wide_range_gets_a_logarithmic_axis(plot, records, scale):
    assert plot(records).get_yscale() == scale


def test_epochs_are_whole_numbers_on_the_axis():
    ax = plots.loss(of(loss=[2.0, 1.0]))
    ax.figure.canvas.draw()
    assert [tick for tick in ax.get_xticks() if tick % 1] == []


def test_a_resumed_run_draws_the_last_value_of_each_epoch():
    rows = [(0, 10, "loss", 2.0), (1, 20, "loss", 9.0), (1, 20, "loss", 1.0)]
    (line,) = plots.loss(Records(rows)).get_lines()
    assert list(line.get_ydata()) == [2, 1]


TABLE = pd.DataFrame(
    {
        "trial": ["1", "0", "2"],
        "dense_l2": [1e-4, 1e-1, 1e-2],
        "batch_norm": [True, False, True],
        "sharpness": [2.0, NAN, 3.0],
        "val_loss": [0.5, 0.75, 1.0],
    }
)


def test_a_search_draws_each_trial_and_marks_the_best():
    ax = plots.search(TABLE, "dense_l2")
    trials, best = (c.get_offsets().tolist() for c in ax.collections)
    assert trials == [[1e-4, 0.5], [1e-1, 0.75], [1e-2, 1.0]]
    assert best == [[1e-4, 0.5]]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("dense_l2", "val_loss")
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "linear")


def test_a_search_has_a_title_and_a_legend():
    ax = plots.search(TABLE, "dense_l2")
    assert ax.get_title()
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["trial", "best trial"]


@pytest.mark.parametrize("x", ["batch_norm", "dense_l2", "val_loss"])
@pytest.mark.parametrize("y", ["sharpness", "val_loss"])
def test_any_two_columns_of_a_search_can_be_drawn_on_given_axes(x, y):
    _, ax = plt.subplots()
    assert plots.search(TABLE, x, y, ax) is ax
    ax.figure.canvas.draw()
    drawn = np.isfinite(TABLE[y])
    expected = TABLE[[x, y]].to_numpy(dtype=float)[drawn]
    np.testing.assert_array_equal(ax.collections[0].get_offsets()[drawn], expected)


@pytest.mark.parametrize("columns", [("l2", "val_loss"), ("dense_l2", "l2")])
def test_a_column_that_a_search_does_not_have_is_named(columns):
    with pytest.raises(ValueError) as caught:
        plots.search(TABLE, *columns)
    assert str(caught.value) == (
        "Expected one of the columns ['trial', 'dense_l2', 'batch_norm', 'sharpness', "
        "'val_loss']. Received: 'l2'"
    )
    assert not plt.get_fignums()


def spectrum(**changes):
    numbers = {
        "nodes": np.array([[-1.0, 0.0, 10.0], [-1.0, 0.5, 11.0]]),
        "weights": np.array([[0.1, 0.8, 0.1], [0.1, 0.7, 0.2]]),
        "size": 1000,
        "matrix": "hessian",
        "seed": 0,
        "products": 6,
        "mode": "inference",
        "penalties": True,
        "samples": 4,
    }
    return HessianDensity(**{**numbers, **changes})


def test_the_density_shows_where_the_eigenvalues_are():
    _, ax = plt.subplots()
    assert plots.density(spectrum(), ax) is ax
    curve = ax.lines[0]
    x, y = (np.asarray(data) for data in curve.get_data())
    step = x[1] - x[0]
    assert np.sum(y) * step == pytest.approx(1, rel=0.01)  # a density
    assert np.sum(y[x > 5]) * step == pytest.approx(0.15, rel=0.01)
    assert x[np.argmax(y)] == pytest.approx(0, abs=0.05)
    assert x[0] < -1 < 11 < x[-1]
    assert ax.get_yscale() == "log"
    assert ax.get_title() == "Spectrum of the Hessian"
    assert ax.get_xlabel() == "eigenvalue"
    assert ax.get_ylabel() == "density (share of eigenvalues per unit)"
    (text,) = ax.texts
    assert text.get_text() == (
        "1,000 eigenvalues\nfrom -1 to 11\n10.0 % below zero\ntrace 1,675 ± 775"
    )


def test_the_density_of_a_gauss_newton_matrix_says_so():
    ax = plots.density(spectrum(matrix="gauss_newton"))
    assert ax.get_title() == "Spectrum of the Gauss-Newton matrix"


def test_the_density_of_a_single_eigenvalue_can_be_drawn():
    nodes, weights = np.full((1, 1), 3.0), np.ones((1, 1))
    ax = plots.density(spectrum(nodes=nodes, weights=weights))
    x, y = ax.lines[0].get_data()
    assert x[np.argmax(y)] == pytest.approx(3.0, abs=0.01)
    assert ax.texts[0].get_text().endswith("\ntrace 3000")
