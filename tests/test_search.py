"""What the trials of a search say: tables, fronts, importance, answers, pictures, the page."""

import html
import math
import re

import numpy as np
import optuna
import pandas as pd
import pytest
from matplotlib.figure import Figure
from scipy import stats

from keras_regtools import plots, report
from keras_regtools.search import findings
from keras_regtools.tuner import (
    importance,
    marginal,
    of_winners,
    pareto,
    rank_correlations,
    table,
)

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

SPACE = {
    "batch_norm": {"choices": [False, True]},
    "conv/l2": {"low": 1e-6, "high": 1e-1, "log": True, "step": None, "integer": False},
    "dense/l2": {"low": 1e-6, "high": 1e-1, "log": True, "step": None, "integer": False},
    "dense/dropout": {"low": 0.0, "high": 0.7, "log": False, "step": 0.1, "integer": False},
    "batch_size": {"choices": [32, 64, 128]},
}


def trials(count=60, seed=0, effects=(0.4, 1.2, 0.0, 0.0, 0.0), noise=0.05, off=0.0):
    """Trials of an objective that is a sum of effects of the hyperparameters, each from 0 to 1."""
    rng = np.random.default_rng(seed)
    unit = rng.uniform(size=(count, 5))
    unit[:, 0] = unit[:, 0] > 0.5
    loss = 1 + unit @ np.array(effects) + noise * rng.normal(size=count)
    frame = pd.DataFrame(
        {
            "trial": [f"{i:03d}" for i in range(count)],
            "batch_norm": unit[:, 0].astype(bool),
            "conv/l2": 10 ** (-6 + 5 * unit[:, 1]),
            "dense/l2": 10 ** (-6 + 5 * unit[:, 2]),
            "dense/dropout": np.round(0.7 * unit[:, 3], 1),
            "batch_size": np.array([32, 64, 128])[(unit[:, 4] * 3).astype(int)],
            "val_loss": loss,
            "generalization_gap": loss / 2,
            "sharpness": 3 - loss,
            "parameters": rng.integers(10, 100, count),
        }
    )
    frame.loc[rng.uniform(size=count) < off, "conv/l2"] = math.nan
    frame = frame.sort_values("val_loss", ignore_index=True)
    results = ["val_loss", "generalization_gap", "sharpness", "parameters"]
    frame.attrs = {"objective": "val_loss", "direction": "min", "space": SPACE, "budgets": False}
    frame.attrs["results"] = results
    return frame


def test_the_front_is_what_no_other_trial_beats():
    frame = trials(40)
    points = frame[["val_loss", "parameters"]].to_numpy(float)
    expected = [
        i for i, p in enumerate(points)
        if not any((q <= p).all() and (q < p).any() for q in points)
    ]  # fmt: skip
    found = pareto(frame, ("val_loss", "parameters"))
    assert set(found["trial"]) == set(frame["trial"].iloc[expected])
    assert found["val_loss"].is_monotonic_increasing
    assert found["parameters"].is_monotonic_decreasing
    turned = frame.copy()
    turned.attrs = {**frame.attrs, "direction": "max"}
    found = pareto(turned, ["val_loss", "parameters"])
    assert found["val_loss"].is_monotonic_decreasing
    assert found["val_loss"].iloc[0] == frame["val_loss"].max()
    best = pareto(frame, {"val_loss": "max", "parameters": "max"})
    assert best["val_loss"].max() == frame["val_loss"].max()


@pytest.mark.parametrize(
    ("objectives", "message"),
    [
        (["val_loss"], "Expected two or more of the columns .* Received: \\['val_loss'\\]"),
        (["val_loss", "no"], "Expected two or more of the columns"),
        ({"val_loss": "min", "parameters": "down"}, "'min' or 'max'. Received: 'down'"),
    ],
)
def test_a_front_of_other_things_is_refused(objectives, message):
    with pytest.raises(ValueError, match=message):
        pareto(trials(9), objectives)


def test_the_mean_of_each_part_has_the_interval_of_scipy():
    frame = trials(50, off=0.3)
    found = marginal(frame, "batch_norm").set_index("part")
    for value in (False, True):
        own = frame["val_loss"][frame["batch_norm"] == value]
        low, high = stats.ttest_1samp(own, 0.0).confidence_interval()
        assert found.loc[value, "mean"] == pytest.approx(own.mean())
        assert found.loc[value, "mean_low"] == pytest.approx(low)
        assert found.loc[value, "mean_high"] == pytest.approx(high)
    parts = marginal(frame, "conv/l2")
    assert parts["part"].iloc[-1] == "off"
    assert parts["trials"].sum() == 50
    assert parts["trials"].iloc[-1] == frame["conv/l2"].isna().sum()
    assert parts["mean"].iloc[:5].is_monotonic_increasing  # the effect that was put in


def test_importance_finds_the_effects_that_were_put_in():
    found = importance(trials(120)).set_index("hyperparameter")
    assert list(found.index[:2]) == ["conv/l2", "batch_norm"]
    assert found["importance"].sum() == pytest.approx(1)
    assert (found["low"] <= found["importance"]).all()
    assert (found["importance"] <= found["high"]).all()
    assert found.loc["conv/l2", "low"] > 0.3
    assert all(found.loc[name, "low"] < 0.02 for name in ("dense/l2", "batch_size"))


@pytest.mark.slow
def test_both_methods_agree_on_the_first():
    frame = trials(60)
    found = [importance(frame, method=m, resamples=5) for m in ("ped_anova", "fanova")]
    assert [one["hyperparameter"][0] for one in found] == ["conv/l2"] * 2
    # Its part of the variance, 1.2² / 12 + .4² / 4.
    assert found[1]["importance"][0] == pytest.approx(0.75, abs=0.15)


def test_importance_of_a_maximum_is_that_of_the_best_trials():
    frame = trials(60)
    turned = frame.copy()
    turned["val_loss"] = -turned["val_loss"]
    turned.attrs = {**frame.attrs, "direction": "max"}
    expected, found = (importance(one, resamples=3) for one in (frame, turned))
    pd.testing.assert_frame_equal(found, expected)


@pytest.mark.parametrize(
    ("count", "arguments", "message"),
    [
        (7, {}, "Expected 8 trials or more. Received: 7"),
        (9, {"method": "shap"}, "Argument `method` must be one of 'ped_anova', 'fanova'."),
        (9, {"target": "f1"}, "Received: 'f1'"),
    ],
)
def test_importance_says_what_it_expects(count, arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        importance(trials(count), **arguments)


def test_kendalls_tau_and_its_interval():
    frame = trials(30)
    found = rank_correlations(frame).set_index("result")
    assert found.loc["sharpness", "tau"] == pytest.approx(-1.0)
    expected = stats.kendalltau(frame["parameters"], frame["generalization_gap"]).statistic
    assert found.loc["parameters", "tau"] == pytest.approx(expected)
    assert found.loc["parameters", "low"] < expected < found.loc["parameters", "high"]
    other = trials(200, seed=3)
    width = rank_correlations(other).set_index("result").loc["parameters"]
    # Without a relation the standard deviation of τ is √(2 (2 n + 5) / (9 n (n − 1))).
    expected = 3.92 * math.sqrt(2 * 405 / (9 * 200 * 199))
    assert width["high"] - width["low"] == pytest.approx(expected, rel=0.2)


def test_what_the_winners_have_with_and_without_an_ingredient():
    rng = np.random.default_rng(0)
    frame = trials(200)
    # Where batch normalization is on, small dropout is best; without it, large dropout.
    wanted = np.where(frame["batch_norm"], 0.1, 0.6)
    frame["val_loss"] = (frame["dense/dropout"] - wanted).abs() + 0.01 * rng.normal(size=200)
    found = of_winners(frame).set_index("hyperparameter")
    row = found.loc["dense/dropout"]
    assert (row["with"], row["without"]) == pytest.approx((0.1, 0.6), abs=0.06)
    assert row["low"] < row["difference"] < row["high"] < -0.3
    assert "log10(conv/l2)" in found.index
    with pytest.raises(ValueError, match="on in some trials and off in others"):
        of_winners(frame[frame["batch_norm"]].copy().pipe(_with_attributes, frame))


def _with_attributes(part, frame):
    part.attrs = frame.attrs
    return part


def test_the_findings_say_how_sure_they_are():
    frame = trials(40)
    found = findings(frame, importance(frame, resamples=30))
    text = "\n".join(found)
    assert found[0].startswith(f"The best of 40 trials is trial {frame['trial'][0]}, with val_loss")
    assert "No spread from seed to seed was recorded" in text
    assert "What mattered (importance with its 95 % interval): conv/l2" in text
    means = frame.groupby("batch_norm")["val_loss"].mean()
    assert f"val_loss is {means[True]:.4g} with batch normalization" in text
    assert "Kendall's τ of sharpness with the generalization gap is -1.00" in text
    frame["val_loss/sd"], frame["seeds"] = 10.0, 3.0
    assert "39 other trials lie within two standard errors" in "\n".join(findings(frame))


def axes():
    return Figure().subplots()


def test_the_best_so_far_goes_down_in_the_order_of_the_trials():
    frame = trials(20)
    frame["val_loss/sd"], frame["seeds"] = 0.3, 4.0
    ax = plots.best_so_far(frame, axes())
    (line,) = ax.get_lines()
    in_order = frame.sort_values("trial")["val_loss"].to_numpy()
    np.testing.assert_allclose(line.get_ydata(), np.minimum.accumulate(in_order))
    band = ax.collections[1].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((in_order.min() - 0.3, in_order[0] + 0.3))


def test_an_effect_is_drawn_where_its_parts_are():
    frame = trials(50, off=0.3)
    ax = plots.marginal_effect(frame, "conv/l2", ax=axes())
    drawn = ax.containers[0].lines[0]
    expected = marginal(frame, "conv/l2")
    np.testing.assert_allclose(drawn.get_ydata(), expected["mean"])
    assert ax.get_xscale() == "log"
    assert drawn.get_xdata()[-1] < frame["conv/l2"].min()  # those where it was off
    ax = plots.marginal_effect(frame, "batch_size", ax=axes())
    assert [label.get_text() for label in ax.get_xticklabels()] == ["32", "64", "128"]


def test_a_line_of_parallel_coordinates_ends_where_something_was_off():
    frame = trials(10, off=0.5)
    ax = plots.parallel_coordinates(frame, axes())
    lines = [line for line in ax.get_lines() if len(line.get_xdata()) == 5]
    assert len(lines) == 10
    best = lines[-1].get_ydata()
    row = frame.iloc[0]
    assert best[0] == float(row["batch_norm"])
    assert np.isnan(best[1]) == np.isnan(row["conv/l2"])
    low, high = np.log(frame["dense/l2"].min()), np.log(frame["dense/l2"].max())
    assert best[2] == pytest.approx((np.log(row["dense/l2"]) - low) / (high - low))


def test_a_field_of_conv_against_dense_is_the_mean_of_its_trials():
    frame = trials(64)
    ax = plots.conv_against_dense(frame, "l2", axes(), bins=2)
    middle = frame[["conv/l2", "dense/l2"]].quantile(0.5)
    few = (frame["conv/l2"] < middle["conv/l2"]) & (frame["dense/l2"] < middle["dense/l2"])
    expected = frame["val_loss"][few]
    fields = np.asarray(ax.collections[0].get_array()).reshape(2, 2)
    assert fields[0, 0] == pytest.approx(expected.mean())
    assert f"({len(expected)})" in ax.texts[0].get_text()


def test_importance_and_front_are_drawn_as_they_are():
    frame = trials(40)
    found = importance(frame, resamples=10)
    bars = plots.importance(found, axes()).patches
    assert [bar.get_width() for bar in bars][::-1] == pytest.approx(list(found["importance"]))
    ax = plots.pareto_front(frame, "parameters", ax=axes())
    (line,) = ax.get_lines()
    assert len(line.get_xdata()) == len(pareto(frame, ("val_loss", "parameters")))


@pytest.fixture(scope="module")
def study():
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))

    def objective(trial):
        on = trial.suggest_categorical("batch_norm", [False, True])
        l2 = trial.suggest_float("dense/l2", 1e-6, 1e-1, log=True)
        trial.set_user_attr("sharpness", float(on))
        if trial.number == 3:
            trial.set_user_attr("reason", "Diverged: <nan>")
            return math.nan
        return 1.0 + on + abs(math.log10(l2) + 3)

    study.optimize(objective, n_trials=20)
    return study


def test_a_study_has_the_same_table(study):
    frame = table(study, failed=True)
    assert list(frame.columns[:4]) == ["trial", "batch_norm", "dense/l2", "val_loss"]
    assert frame["status"].tolist() == ["completed"] * 19 + ["failed"]
    assert frame["reason"].iloc[-1] == "Diverged: <nan>"
    best = study.best_trial
    assert frame["val_loss"][0] == best.value
    assert frame["dense/l2"][0] == best.params["dense/l2"]
    assert frame.attrs["space"]["dense/l2"]["log"] is True
    assert len(table(study)) == 19


def test_the_page_of_a_search_is_whole_and_safe(study, tmp_path):
    page = report.write_search(study, tmp_path, title="<b>digits</b>")
    text = page.path.read_text("utf-8")
    assert page.path.name == "search.html"
    assert not re.search(r'(src|href)="(?!data:)', text)
    assert "<h1>&lt;b&gt;digits&lt;/b&gt;: search report</h1>" in text
    items = [html.unescape(i) for i in re.findall(r"<li>(.*?)</li>", text)]
    assert items[0].startswith("The best of 19 trials is trial ")
    assert "1 trials failed, the first one so: Diverged: <nan>" in items
    pictures = {path.name for path in tmp_path.glob("*.png")}
    assert {"best_so_far.png", "importance.png", "effect_of_dense_l2.png"} <= pictures
    (tmp_path / "mine.png").write_bytes(b"mine")
    report.write_search(study, tmp_path)
    assert {path.name for path in tmp_path.glob("*.png")} == pictures | {"mine.png"}
    assert len(list(tmp_path.glob("*.html"))) == 1


def test_a_table_of_something_else_is_refused():
    with pytest.raises(TypeError, match="Expected a `keras_tuner.Tuner` or an `optuna.Study`"):
        table([1, 2])
