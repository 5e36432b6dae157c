"""The winner on fresh seeds, its settings as code, the same search with Optuna and by workers."""

import html
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import keras
import keras_tuner
import numpy as np
import optuna
import pandas as pd
import pytest
from keras import layers
from problems import rows
from scipy import stats

from keras_regtools import plots, report
from keras_regtools.tuner import (
    RegularizationHyperModel,
    confirm,
    cost_of_tying,
    is_chief,
    optional,
    optuna_objective,
    run_workers,
    table,
)
from keras_regtools.tuner.confirm import _fresh
from keras_regtools.tuner.confirmation import confirmation_of

# KerasTuner asks for the name of its thread in the way of Python 2.
pytestmark = [
    pytest.mark.filterwarnings(r"ignore::DeprecationWarning:keras_tuner\."),
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
]

RNG = np.random.default_rng(0)
Y = RNG.integers(0, 3, 90)
X = (RNG.normal(size=(90, 4)) + Y[:, None]).astype("float32")
TRAINING, VALIDATION, TEST = ((X[s], Y[s]) for s in (slice(40), slice(40, 60), slice(60, 90)))


def network():
    return keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(6, activation="relu"),
            layers.Dense(3, activation="softmax"),
        ]
    )


FAST = {"batch_norm": False, "batch_sizes": [8, 16], "results": ["val_loss"]}


@pytest.fixture(scope="module")
def tuner(tmp_path_factory):
    hypermodel = RegularizationHyperModel(network, **FAST, dense={"l2": 0.01, "dropout": 0.25})
    tuner = keras_tuner.RandomSearch(
        hypermodel, "val_loss", max_trials=3, seed=2, directory=tmp_path_factory.mktemp("search")
    )
    tuner.search(*TRAINING, validation_data=VALIDATION, epochs=2, verbose=0)
    return tuner


@pytest.fixture(scope="module")
def confirmation(tuner):
    return confirm(tuner, *TEST, seeds=[31, 32, 33], best=2, verbose=0)


@pytest.mark.slow
def test_a_confirmed_trial_is_what_plain_keras_does(tuner, confirmation):
    hp = tuner.get_best_hyperparameters()[0]
    keras.utils.set_random_seed(32)
    model = tuner.hypermodel.build(hp)
    size, rate = hp.get("batch_size"), hp.get("learning_rate")
    steps = -(-40 // size)

    class Rate(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            step = int(self.model.optimizer.iterations)
            factor = 1 + (size / 32 - 1) * min(step / steps, 1)
            self.model.optimizer.learning_rate = rate * factor

    best = keras.callbacks.EarlyStopping(patience=9, restore_best_weights=True)
    model.fit(
        *TRAINING, batch_size=size, epochs=2, validation_data=VALIDATION, verbose=0,
        callbacks=[Rate(), best],
    )  # fmt: skip
    predicted = model.predict(TEST[0], verbose=0)
    expected = -np.mean(np.log(predicted[np.arange(30), TEST[1]]))
    runs = confirmation.runs.set_index(["candidate", "seed"])
    assert runs.loc[("best 1", 32), "test_loss"] == pytest.approx(expected, rel=1e-4)
    accuracy = np.mean(predicted.argmax(1) == TEST[1])
    assert runs.loc[("best 1", 32), "test_accuracy"] == pytest.approx(accuracy)


def test_the_baselines_have_nothing_that_was_searched(tuner):
    hp = tuner.get_best_hyperparameters()[0]
    plain = tuner.hypermodel.build_plain(hp)
    assert [type(layer).__name__ for layer in plain.layers] == ["Dense", "Dense"]
    assert all(layer.kernel_regularizer is None for layer in plain.layers)
    assert float(plain.optimizer.learning_rate) == pytest.approx(hp.get("learning_rate"))


def test_differences_are_paired_by_seed_with_the_interval_of_scipy(confirmation):
    assert list(confirmation.table["candidate"]) == ["best 1", "best 2", "without", "plain"]
    wide = confirmation.runs.pivot(index="seed", columns="candidate", values="test_loss")
    paired = stats.ttest_rel(wide["best 1"], wide["plain"]).confidence_interval()
    row = confirmation.table.iloc[0]
    assert (row["difference_low"], row["difference_high"]) == pytest.approx(tuple(paired))
    assert row["difference"] == pytest.approx((wide["best 1"] - wide["plain"]).mean())
    assert confirmation.seeds == [31, 32, 33]
    assert "over 3 fresh seeds" in confirmation.findings[0]
    assert confirmation.scalars()["difference"] == row["difference"]
    ax = plots.confirmation(confirmation)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["without", "best 2", "best 1"]


@pytest.mark.parametrize(
    ("shift", "verdict"),
    [
        (-1.0, "better than chance explains"),
        (1.0, "worse than chance explains"),
        (0.0, "no more than chance may explain"),
    ],
)
def test_a_verdict_needs_an_interval_away_from_zero(shift, verdict):
    rng, rows = np.random.default_rng(1), []
    for seed in range(5):
        rows.append({"candidate": "best 1", "seed": seed, "test_loss": shift + rng.normal(0, 0.1)})
        rows.append({"candidate": "plain", "seed": seed, "test_loss": rng.normal(0, 0.1)})
    runs = pd.DataFrame(rows)
    runs["val_loss"] = 0.5 + 0.01 * rng.normal(size=len(runs))
    found = confirmation_of(runs, "plain", {"best 1": "0"}, {"best 1": 0.4}, "val_loss", 9)
    assert found.findings[0].endswith(f": {verdict}.")
    assert "the best of 9 trials had luck, too (the winner's curse)" in found.findings[1]
    found = confirmation_of(runs, "plain", {"best 1": "0"}, {"best 1": 0.5}, "val_loss", 9)
    assert found.findings[1].endswith("): which chance may explain.")


def test_data_that_a_trial_saw_are_no_test(tuner):
    for data, kind in ((TRAINING, "training"), (VALIDATION, "validation")):
        with pytest.raises(ValueError) as caught:
            confirm(tuner, *data, verbose=0)
        assert str(caught.value) == (
            f"Expected data that no trial saw. Received: the {kind} data of the search"
        )
    with pytest.raises(ValueError, match="Expected two or more seeds. Received: \\[7\\]"):
        confirm(tuner, *TEST, seeds=[7])
    with pytest.raises(TypeError, match="tuner of a `RegularizationHyperModel`|Expected a `keras_"):
        confirm(3, *TEST)


def test_the_cost_of_tying_needs_trials_of_both_kinds(tuner):
    with pytest.raises(ValueError, match='`tied="search"` and trials of both kinds'):
        cost_of_tying(tuner, *TEST)


@pytest.mark.slow
def test_the_cost_of_tying_is_that_of_the_two_best(tmp_path):
    def images():
        return keras.Sequential(
            [
                keras.Input((2, 2, 1)),
                layers.Conv2D(2, 2),
                layers.Flatten(),
                layers.Dense(3, "softmax"),
            ]
        )

    hypermodel = RegularizationHyperModel(
        images, **FAST, tied="search", conv={"l2": (0.0, 1.0)}, dense={"l2": (0.0, 1.0)}
    )
    tuner = keras_tuner.RandomSearch(
        hypermodel, "val_loss", max_trials=6, seed=1, directory=tmp_path
    )
    x = X.reshape(-1, 2, 2, 1)
    data = {"validation_data": (x[40:60], VALIDATION[1]), "epochs": 1, "verbose": 0}
    tuner.search(x[:40], Y[:40], **data)
    frame = table(tuner)
    assert set(frame["tied"]) == {False, True}
    found = cost_of_tying(tuner, x[60:], Y[60:], seeds=2, verbose=0)
    assert list(found.table["candidate"]) == ["untied", "tied"]
    firsts = [frame["trial"][(frame["tied"] == tied).to_numpy()].iloc[0] for tied in (False, True)]
    assert list(found.table["trial"]) == firsts
    wide = found.runs.pivot(index="seed", columns="candidate", values="test_loss")
    expected = (wide["untied"] - wide["tied"]).mean()
    assert found.table["difference"][0] == pytest.approx(expected)


@pytest.mark.slow
def test_what_another_process_searched_is_confirmed_with_its_data(tuner, confirmation):
    again = RegularizationHyperModel(network, **FAST, dense={"l2": 0.01, "dropout": 0.25})
    place = {"directory": tuner.directory, "project_name": tuner.project_name}
    reloaded = keras_tuner.RandomSearch(again, "val_loss", max_trials=3, **place)
    with pytest.raises(ValueError, match="`epochs=` of the search, as this process has not"):
        confirm(reloaded, *TEST, verbose=0)
    data = dict(zip(("x", "y"), TRAINING, strict=True))
    found = confirm(
        reloaded, *TEST, seeds=[31, 32], best=1, verbose=0, **data, validation_data=VALIDATION,
        epochs=2,
    )  # fmt: skip
    expected = confirmation.runs.set_index(["candidate", "seed"])["test_loss"]
    for (name, seed), loss in found.runs.set_index(["candidate", "seed"])["test_loss"].items():
        assert loss == pytest.approx(expected[(name, seed)], rel=1e-4)


def test_seeds_that_the_search_had_are_not_fresh():
    known = [3, 1001]
    assert _fresh(2, known) == [1002, 1003]
    assert _fresh([0, 1], known) == [0, 1]
    with pytest.raises(ValueError, match=r"which the search did not have. Received: \[3\] too"):
        _fresh([3, 4], known)


# A penalty that falls to the end, while the loss on the data has its least value before.
FALLING = {"dense": {"l2": 0.14, "dropout": 0.5}, "learning_rates": 0.3, "batch_sizes": 8}
PASTED = {"dense": {"l2": 0.01, "dropout": 0.25}, "batch_norm": True}


@pytest.mark.parametrize(
    "settings",
    rows(
        [
            PASTED,
            {"dense": {"l1": 0.01, "orthogonal": 0.1}, "optimizer": "adam", "decay": 0.1},
            {"dense": {"l2": optional((0.1, 1.0))}, "weight_decay": 0.3, "decay": "cosine"},
            {"dense": {}, "label_smoothing": 0.2, "sam": 0.1, "rule": "sqrt"},
            {"groups": {"first": (["dense1"], {"dropout": 0.5})}, "dense": {"l2": 0.1}},
            FALLING,
        ],
        PASTED,
    ),
)
def test_the_pasted_code_trains_what_the_trial_did(settings):
    def named():
        model = network()
        return keras.Sequential([keras.Input((4,)), *_named(model)])

    def _named(model):
        one, two = (layer.get_config() for layer in model.layers)
        return [
            layers.Dense.from_config({**one, "name": "dense1"}),
            layers.Dense.from_config({**two, "name": "dense2"}),
        ]

    epochs = 6 if settings is FALLING else 1
    hypermodel = RegularizationHyperModel(named, **{**FAST, "batch_sizes": 8, **settings})
    hp = keras_tuner.HyperParameters()
    hypermodel.build(hp)
    keras.utils.set_random_seed(4)
    model = hypermodel.build(hp)
    hypermodel.fit(hp, model, *TRAINING, validation_data=VALIDATION, epochs=epochs, verbose=0)
    code = hypermodel.code(hp)
    given = {"network": named, "epochs": epochs, "layers_of_first": ["dense1"]}
    given |= dict(zip(("x", "y", "x_val", "y_val"), (*TRAINING, *VALIDATION), strict=True))
    keras.utils.set_random_seed(4)
    exec(code.replace("epochs=epochs,", "epochs=epochs, verbose=0,"), given)
    for one, other in zip(model.get_weights(), given["model"].get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_the_pasted_code_asks_for_the_users_own_and_takes_one_hot_labels():
    def model_fn(hp):
        units = hp.Choice("units", [3, 5])
        return keras.Sequential(
            [keras.Input((4,)), layers.Dense(units), layers.Dense(3, "softmax")]
        )

    settings = {**FAST, "dense": {}, "label_smoothing": 0.1, "loss": "categorical_crossentropy"}
    hypermodel = RegularizationHyperModel(model_fn, **settings)
    values = {"units": 5, "batch_size": 8, "learning_rate": 0.02}
    code = hypermodel.code(values)
    y, y_val = (np.eye(3)[labels] for labels in (TRAINING[1], VALIDATION[1]))
    hp = keras_tuner.HyperParameters()
    hp.values = dict(values)
    keras.utils.set_random_seed(4)
    model = hypermodel.build(hp)
    data = {"validation_data": (VALIDATION[0], y_val), "epochs": 1, "verbose": 0}
    hypermodel.fit(hp, model, TRAINING[0], y, **data)
    given = {"network": model_fn, "epochs": 1, "x": TRAINING[0], "y": y}
    given |= {"x_val": VALIDATION[0], "y_val": y_val}
    keras.utils.set_random_seed(4)
    exec(code.replace("epochs=epochs,", "epochs=epochs, verbose=0,"), given)
    for one, other in zip(model.get_weights(), given["model"].get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def study(**settings):
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0), **settings)


def test_optuna_searches_the_same_space_and_has_the_same_table(tmp_path):
    settings = {**FAST, "dense": {"l2": optional((1e-4, 1e-2)), "dropout": (0.0, 0.5)}}
    hypermodel = RegularizationHyperModel(network, **settings)
    found = study()
    objective = optuna_objective(
        hypermodel, *TRAINING, validation_data=VALIDATION, epochs=2, verbose=0
    )
    found.optimize(objective, n_trials=4)
    frame = table(found)
    hp = keras_tuner.HyperParameters()
    hypermodel.build(hp)
    assert set(frame.attrs["space"]) == {one.name for one in hp.space}
    off = frame[~frame["dense/l2/on"]]
    assert off["dense/l2"].isna().all()
    assert frame["val_loss"].tolist() == sorted(t.value for t in found.trials)
    assert {"val_accuracy", "epochs", "seconds"} <= set(frame.columns)
    epochs = {step for trial in found.trials for step in trial.intermediate_values}
    assert epochs == {0, 1}
    best = found.best_trial
    assert min(best.intermediate_values.values()) == pytest.approx(best.value, rel=1e-4)
    code = html.unescape(
        report.write_search(found, tmp_path, hypermodel=hypermodel).path.read_text()
    )
    assert f"rt.tuner.TrialRate({best.params['learning_rate']:.6g}" in code


@pytest.mark.slow
def test_trials_of_optuna_race_too():
    settings = {**FAST, "dense": {}, "seeds": 3, "learning_rates": [0.1, 1e-7]}

    def model_fn():  # all seeds begin at one place
        zeros = layers.Dense(3, "softmax", kernel_initializer="zeros")
        return keras.Sequential([keras.Input((4,)), zeros])

    found = optuna.create_study(
        sampler=optuna.samplers.GridSampler({"learning_rate": [0.1, 1e-7], "batch_size": [8]})
    )
    objective = optuna_objective(
        RegularizationHyperModel(model_fn, **{**settings, "batch_sizes": [8]}), *TRAINING,
        validation_data=VALIDATION, epochs=5, verbose=0,
    )  # fmt: skip
    for rate in (0.1, 1e-7):
        found.enqueue_trial({"learning_rate": rate, "batch_size": 8})
    found.optimize(objective, n_trials=2)
    assert [trial.user_attrs["seeds"] for trial in found.trials] == [3.0, 1.0]


def test_optuna_prunes_by_epoch():
    class Second(optuna.pruners.BasePruner):
        def prune(self, study, trial):
            return trial.last_step == 1

    hypermodel = RegularizationHyperModel(network, **FAST, dense={})
    found = study(pruner=Second())
    objective = optuna_objective(
        hypermodel, *TRAINING, validation_data=VALIDATION, epochs=5, verbose=0
    )
    found.optimize(objective, n_trials=2)
    assert [trial.state.name for trial in found.trials] == ["PRUNED"] * 2
    assert all(set(trial.intermediate_values) == {0, 1} for trial in found.trials)


@pytest.mark.slow
def test_optuna_takes_several_objectives_and_records_what_diverges():
    hypermodel = RegularizationHyperModel(
        network, **{**FAST, "results": ["val_loss", "parameters"]}, dense={},
        learning_rates=[0.01, 1e30],
    )  # fmt: skip
    found = study(directions=["minimize", "minimize"])
    objective = optuna_objective(
        hypermodel, *TRAINING, objectives=["val_loss", "parameters"],
        validation_data=VALIDATION, epochs=3, verbose=0,
    )  # fmt: skip
    found.optimize(objective, n_trials=8)
    failed = [t for t in found.trials if t.params["learning_rate"] == 1e30]
    assert 0 < len(failed) < 8
    for trial in found.trials:
        assert trial.state.name == ("FAIL" if trial in failed else "COMPLETE")
    assert all(t.user_attrs["reason"].startswith("Diverged: the ") for t in failed)
    assert found.best_trials[0].values[1] == network().count_params()
    assert table(found, failed=True)["reason"].iloc[-1].startswith("Diverged: ")


def test_an_objective_of_optuna_says_what_it_expects():
    hypermodel = RegularizationHyperModel(network, **FAST)
    with pytest.raises(TypeError, match="Expected a `RegularizationHyperModel`. Received: 3"):
        optuna_objective(3, *TRAINING)
    objective = optuna_objective(hypermodel, *TRAINING, objectives=["val_loss", "seconds"])
    with pytest.raises(ValueError, match="a direction for each of .* Received: 1 directions"):
        study().optimize(objective, n_trials=1)
    objective = optuna_objective(hypermodel, *TRAINING, validation_data=VALIDATION, objectives="f1")
    with pytest.raises(ValueError, match="Expected an objective out of .* Received: f1"):
        study().optimize(objective, n_trials=1)


SCRIPT = """
import pathlib, sys, time
import keras, keras_tuner, numpy as np
from keras_regtools import tuner as searches

def network():
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "softmax")])

class Slow(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        time.sleep(0.3)

rng = np.random.default_rng(0)
y = rng.integers(0, 3, 40)
x = rng.normal(size=(40, 4)) + y[:, None]
hypermodel = searches.RegularizationHyperModel(
    network, batch_norm=False, batch_sizes=8, dense={"l2": (1e-6, 1e-1)}, results=["val_loss"])
tuner = keras_tuner.RandomSearch(
    hypermodel, "val_loss", max_trials=6, seed=1, directory=sys.argv[1],
    overwrite=searches.is_chief())
tuner.search(x, y, validation_data=(x, y), epochs=3, verbose=0, callbacks=[Slow()])
if searches.is_chief():
    searches.table(tuner, failed=True).to_csv(pathlib.Path(sys.argv[1]) / "table.csv")
"""


def processes_of(directory):
    """The processes whose command line has this directory, by their ids."""
    found = {}
    for path in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            told = (path / "cmdline").read_bytes().decode()
            name = (path / "environ").read_bytes().decode()
        except OSError:
            continue
        if str(directory) in told and "KERASTUNER_TUNER_ID=" in name:
            name = name.split("KERASTUNER_TUNER_ID=")[1].split("\0")[0]
            found[name] = int(path.name)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True])
def test_workers_share_the_trials_and_one_that_is_killed_loses_its_own(tmp_path, killed):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    code = (
        "import sys; from keras_regtools.tuner import run_workers\n"
        "print('codes', run_workers(sys.argv[1], 2, [sys.argv[2]], timeout=300))"
    )
    arguments = [sys.executable, "-c", code, str(script), str(tmp_path)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as run:
        if killed:
            until = time.monotonic() + 200
            while len(list(tmp_path.rglob("trial.json"))) < 3 and time.monotonic() < until:
                time.sleep(0.1)
            os.kill(processes_of(tmp_path)["worker0"], signal.SIGKILL)
        printed, _ = run.communicate(timeout=400)
    assert run.returncode == 0
    assert f"codes [{-9 if killed else 0}, 0]" in printed
    port = int(printed.split("127.0.0.1:")[1].split(" ")[0])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", port))  # free again
    assert not processes_of(tmp_path)
    trials = [path.read_text() for path in tmp_path.rglob("trial.json")]
    done = [text for text in trials if '"COMPLETED"' in text]
    assert len(trials) == 6
    assert len(done) == (5 if killed else 6)
    if killed:
        assert "still waits for a worker that has died" in printed
    else:
        assert len(pd.read_csv(tmp_path / "table.csv")) == 6


def test_a_script_that_fails_ends_with_a_sentence(tmp_path):
    script = tmp_path / "broken.py"
    script.write_text("raise SystemExit(3)")
    with pytest.raises(RuntimeError, match="The chief ended with 3 before it searched"):
        run_workers(script, 1, verbose=0)
    with pytest.raises(FileNotFoundError, match="Expected a Python script"):
        run_workers(tmp_path / "none.py", 1)
    script.write_text("import time; time.sleep(60)")
    begun = time.monotonic()
    with pytest.raises(TimeoutError, match="The chief did not search in time"):
        run_workers(script, 1, start_timeout=1, verbose=0)
    assert time.monotonic() - begun < 20
    assert is_chief()
