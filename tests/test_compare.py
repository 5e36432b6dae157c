"""Several runs: their records in one table, and one page about all of them."""

import json
import math
import pathlib
import re

import keras
import numpy as np
import pytest

import keras_regtools as rt
from keras_regtools import plots, records, report

LOSSES = {"a": [1.0, 0.75, 0.5], "b": [1.0, 0.25, 0.375]}


def write(directory, values, **info):
    """A run by hand; `values` are series by name."""
    rows = records.Records()
    for name, series in values.items():
        for epoch, value in enumerate(series):
            rows.add(epoch, 10 * (epoch + 1), {name: value})
    rows.write_to(directory / "records.jsonl")
    if info:
        (directory / "run.json").write_text(json.dumps({"finished": True, **info}))
    return directory


@pytest.fixture
def two(tmp_path):
    infos = {
        "a": {"optimizer": {"class": "SGD", "learning_rate": 0.1}, "settings": {"l2": 0.0}},
        "b": {"optimizer": {"class": "SGD", "learning_rate": 0.3}, "settings": {"l2": 1e-3}},
    }
    return [
        write(
            tmp_path / name,
            {"loss": losses, "val_loss": [v + 1 for v in losses], "accuracy": [0.5, 0.6, 0.7]},
            loss="mse",
            **infos[name],
        )
        for name, losses in LOSSES.items()
    ]


def test_the_records_of_several_runs_are_those_of_each(two):
    frame = records.read_many(two)
    assert list(frame) == ["run", "epoch", "step", "name", "value"]
    for path in two:
        own = frame[frame["run"] == path.name].drop(columns="run").reset_index(drop=True)
        assert own.equals(records.read(path / "records.jsonl").to_frame())
    wide = frame[frame["name"] == "loss"].pivot(index="epoch", columns="run", values="value")
    assert wide.to_dict("list") == LOSSES


@pytest.mark.parametrize(
    ("places", "names"),
    [
        (["x/a", "x/b"], ["a", "b"]),
        (["x/a", "y/a"], ["x/a", "y/a"]),
        (["x/a", "y/a", "y/b"], ["x/a", "y/a", "y/b"]),
        (["one/records.jsonl", "two"], ["one", "two"]),
    ],
)
def test_a_run_has_the_name_of_its_directory_as_far_as_it_tells(places, names, tmp_path):
    for place in places:
        write(tmp_path / place.removesuffix("/records.jsonl"), {"loss": [1.0]})
    frame = records.read_many([str(tmp_path / place) for place in places])
    found = list(frame["run"].unique())
    assert [pathlib.PurePath(name) for name in found] == [pathlib.PurePath(n) for n in names]


def test_runs_may_be_named(two):
    frame = records.read_many({"small batch": two[0], "large batch": two[1]})
    assert list(frame["run"].unique()) == ["small batch", "large batch"]


@pytest.mark.parametrize("function", [records.read_many, lambda r: report.compare(r, "x.html")])
@pytest.mark.parametrize(
    ("runs", "error", "message"),
    [
        ("runs/a", TypeError, "Expected a list of directories or files"),
        (3, TypeError, "Expected a list of directories or files"),
        ([3, 4], ValueError, "Argument `runs` must be a path"),
        ([], ValueError, "Expected one or more runs"),
        (["nowhere", "nowhere"], ValueError, "none of them twice"),
        (["nowhere", "nowhere/records.jsonl"], ValueError, "none of them twice"),
        ({1: "nowhere", "1": "there"}, ValueError, "none of them twice"),
        (["nowhere", "too"], ValueError, "Expected"),
    ],
    ids=str,
)
def test_other_runs_are_refused(function, runs, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        function(runs)
    assert not list(tmp_path.iterdir())


def test_one_run_is_no_comparison(two, tmp_path):
    with pytest.raises(ValueError, match="Expected two or more runs"):
        report.compare(two[:1], tmp_path / "page.html")


def test_curves_lie_over_each_other(two):
    ax = plots.runs(records.read_many(two), "loss")
    solid = [line for line in ax.get_lines() if line.get_linestyle() == "-"]
    dashed = [line for line in ax.get_lines() if line.get_linestyle() == "--"]
    for lines, plus in ((solid, 1), (dashed, 0)):
        drawn = [list(line.get_ydata()) for line in lines]
        assert drawn == [[v + plus for v in losses] for losses in LOSSES.values()]
        assert all(list(line.get_xdata()) == [1, 2, 3] for line in lines)
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["a", "b"]
    colours = [line.get_color() for line in solid]
    assert colours == [line.get_color() for line in dashed]
    assert len(set(colours)) == 2
    assert "No run recorded" in plots.runs(records.read_many(two), "other").texts[0].get_text()
    with pytest.raises(ValueError, match="without the columns"):
        plots.runs(records.read_many(two).drop(columns="run"))


def rows_of(page, heading):
    """The cells of the table below a heading, row by row."""
    text = page.path.read_text("utf-8").split(f"<h2>{heading}</h2>")[1].split("</table>")[0]
    return [re.findall(r"<t[hd]>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", text)]


def test_the_page_tells_what_differs_and_marks_what_is_better(two, tmp_path):
    page = report.compare(two, tmp_path / "compare.html", title="L2 <b>")
    assert rows_of(page, "What differs") == [
        ["", "a", "b"],
        ["optimizer: learning rate", "0.1", "0.3"],
        ["settings: l2", "0", "0.001"],
    ]
    assert rows_of(page, "The last numbers") == [
        ["", "a", "b"],
        ["loss", "0.5", "<strong>0.375</strong>"],
        ["val_loss", "1.5", "<strong>1.375</strong>"],
        ["accuracy", "0.7", "0.7"],
    ]
    text = page.path.read_text("utf-8")
    assert "val_loss ends lowest in b, at 1.375 (a 1.5); its best was 1.25 in epoch 2." in text
    assert "L2 &lt;b&gt;: 2 runs" in text
    assert "http" not in re.sub(r"data:image/png;base64,[^\"]*", "", text)
    pictures = {path.name for path in tmp_path.glob("*.png")}
    assert pictures == {"compare_loss.png", "compare_accuracy.png"}
    again = report.compare(two, tmp_path / "compare.html")
    assert again.path == page.path
    assert {path.name for path in tmp_path.glob("*.png")} == pictures


def test_what_makes_runs_hard_to_compare_is_said(tmp_path):
    values = {"loss": [0.1, math.nan], "accuracy": [0.5, 0.5]}
    short = write(tmp_path / "short", values, loss="mse", finished=False)
    long = write(tmp_path / "long", {"loss": [1.0, 0.5, 0.4], "mine": [[1.0, 2.0]] * 3}, loss="mae")
    other = write(tmp_path / "other", {"loss": [0.9, 0.8], "accuracy": [0.4, 0.5]})
    nothing = write(tmp_path / "nothing", {})  # cut off in its first epoch
    other = other / "records.jsonl"  # of which no settings are known
    runs = dict(
        zip(("short", "nothing", "long", "other"), (short, nothing, long, other), strict=True)
    )
    page = report.compare(runs, tmp_path / "page.html")
    text = page.path.read_text("utf-8")
    assert "do not have the same number of epochs: short 2, nothing 0, long 3, other 2." in text
    assert "The losses are not the same (short mse, long mae)" in text
    assert "Cut off, or still going on: short." in text
    assert "loss ends lowest in long, at 0.4 (other 0.8); its best was 0.4 in epoch 3." in text
    assert "in epoch 3. Not finite in the end: short." in text
    assert "accuracy ends at 0.5 in all of them. Without accuracy: long." in text
    last = ["loss", "nan", "", "<strong>0.4</strong>", "0.8"]
    assert rows_of(page, "The last numbers")[1:] == [last, ["accuracy", "0.5", "", "", "0.5"]]


def test_losses_with_and_without_penalties_are_compared_on_the_data(tmp_path):
    plain = write(tmp_path / "plain", {"loss": [0.5, 0.3], "val_loss": [0.6, 0.5]})
    values = {"loss": [0.9, 0.6], "val_loss": [0.8, 0.7], "penalty": [0.4, 0.3]}
    values |= {"data_loss": [0.5, 0.3125], "val_data_loss": [0.4, 0.375]}
    page = report.compare([plain, write(tmp_path / "l2", values)], tmp_path / "compare.html")
    text = page.path.read_text("utf-8")
    assert "val_data_loss ends lowest in l2, at 0.375 (plain 0.5)" in text
    assert "val_loss ends lowest" not in text
    assert "Some of the losses hold penalties: compare data_loss" in text
    assert rows_of(page, "The last numbers")[1:] == [
        ["loss", "0.3", "0.6"],
        ["val_loss", "0.5", "0.7"],
        ["data_loss", "<strong>0.3</strong>", "0.3125"],
        ["val_data_loss", "0.5", "<strong>0.375</strong>"],
    ]
    assert {path.name for path in tmp_path.glob("*.png")} == {"compare_data_loss.png"}


def test_the_users_own_metrics_come_first_and_an_earlier_epoch_is_named(tmp_path):
    series = {f"kernels/dense/p{i}": [1.0, 2.0 + i] for i in range(12)}
    series |= {"inaccuracy": [0.5, 0.25], "my_auc": [0.5, 0.75]}
    first = write(tmp_path / "first", {**series, "val_loss": [0.5]})  # in the first epoch alone
    other = {name: [v + 1 for v in values] for name, values in series.items()}
    second = write(tmp_path / "second", {**other, "val_loss": [1.0, 0.75]})
    page = report.compare([first, second], tmp_path / "page.html")
    rows = {row[0]: row[1:] for row in rows_of(page, "The last numbers")[1:]}
    assert rows["val_loss"] == ["<strong>0.5 (epoch 1)</strong>", "0.75"]
    assert rows["inaccuracy"] == ["0.25", "1.25"]  # of which nobody can say what is better
    assert rows["my_auc"] == ["0.75", "<strong>1.75</strong>"]
    pictures = {path.stem.removeprefix("page_") for path in tmp_path.glob("*.png")}
    assert {"loss", "inaccuracy", "my_auc"} <= pictures
    ax = plots.runs(records.read_many([first, second]), "loss")
    assert all(line.get_marker() == "o" for line in ax.get_lines())  # one point is seen, too


def test_twelve_runs_have_twelve_colours(tmp_path):
    runs = [write(tmp_path / f"{i}", {"loss": [1.0, 1 / (i + 1)]}) for i in range(12)]
    lines = plots.runs(records.read_many(runs)).get_lines()
    assert len({tuple(np.atleast_1d(line.get_color())) for line in lines}) == 12


def test_a_page_of_the_users_stays(two, tmp_path):
    (tmp_path / "compare.html").write_text("mine")
    (tmp_path / "compare_loss.png").write_bytes(b"mine")
    page = report.compare(two, tmp_path / "compare.html")
    assert page.path.name == "compare_1.html"
    assert (tmp_path / "compare.html").read_text() == "mine"
    assert (tmp_path / "compare_loss.png").read_bytes() == b"mine"


def test_runs_of_fits_are_compared(tmp_path):
    x, y = np.ones((8, 2), "float32"), np.ones((8, 1), "float32")
    for rate in (0.1, 0.01):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        model.compile(keras.optimizers.SGD(rate), "mse")
        used = [rt.callbacks.Report(tmp_path / f"rate_{rate}")]
        model.fit(x, y, validation_data=(x, y), epochs=2, verbose=0, callbacks=used)
    page = report.compare(sorted(tmp_path.iterdir()), tmp_path / "compare.html")
    assert rows_of(page, "What differs") == [
        ["", "rate_0.01", "rate_0.1"],
        ["optimizer: learning rate", "0.01", "0.1"],
    ]
    assert "val_loss ends lowest in rate_" in page.path.read_text("utf-8")
