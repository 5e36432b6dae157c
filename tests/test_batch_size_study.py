"""The study of batch sizes: known optima, plain Keras, kills and several processes."""

import json
import math
import os
import pathlib
import subprocess
import sys

import keras
import matplotlib.pyplot as plt
import numpy as np
import pytest

import keras_regtools as rt
from keras_regtools.growing_batches import GrowingBatches
from keras_regtools.tuner import BatchSizeStudy
from keras_regtools.tuner.study_analysis import analysed, best_rate, knee, paired

# KerasTuner asks for the name of its thread in the way of Python 2.
pytestmark = [
    pytest.mark.backends,
    pytest.mark.filterwarnings(r"ignore::DeprecationWarning:keras_tuner\."),
]
RNG = np.random.default_rng
X = RNG(0).normal(size=(48, 4)).astype("float32")
Y = (X[:, 0] > 0).astype("int32") + (X[:, 1] > 0.5)
ROOT = pathlib.Path(__file__).parents[1]


def model_fn():
    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(5, "tanh"), layers.Dense(3, activation="softmax")]
    )
    model.compile(keras.optimizers.SGD(0.1, momentum=0.5), "sparse_categorical_crossentropy")
    return model


def study(**options):
    return BatchSizeStudy(model_fn, [4, 16], [0.01, 0.1, 1.0], seeds=2, **options)


def run(one, directory, **options):
    usual = {"validation_data": (X[:16], Y[:16]), "epochs": 2, "verbose": 0}
    return one.run(X, Y, directory=directory, **{**usual, **options})


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    directory = tmp_path_factory.mktemp("study")
    return run(study(full_batch=True), directory), directory


# --- what the numbers say -------------------------------------------------------------------------

SIZES, RATES = np.array([8, 32, 128, 512]), np.geomspace(1e-3, 10, 17)


def bowls(power, noise=0.0, seeds=5, seed=0):
    """Losses whose least is at .01 (B / 8)^power, moved by each seed."""
    rng = RNG(seed)
    centre = np.log(0.01 * (SIZES / 8.0) ** power)[:, None, None]
    centre = centre + noise * rng.normal(size=(len(SIZES), 1, seeds))
    return np.exp(0.1 * (np.log(RATES)[None, :, None] - centre) ** 2)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_the_exponent_is_found(power):
    result = analysed(SIZES, RATES, bowls(power), ["linear", "sqrt"])
    assert result["exponent"] == pytest.approx(power, abs=1e-3)
    np.testing.assert_allclose(result["best"], 0.01 * (SIZES / 8) ** power, rtol=1e-2)
    excess = {rule: np.abs(values[:, 1]) for rule, values in result["rules"].items()}
    np.testing.assert_allclose(result["rules"]["linear"][:, 0], result["best"][0] * SIZES / 8)
    for rule, right in (("linear", 1.0), ("sqrt", 0.5)):
        assert (excess[rule].max() < 0.02) == (power == right)


@pytest.mark.slow
def test_the_interval_of_the_exponent_holds_the_truth():
    """Bootstrap of eight seeds is a little too narrow, as it is known to be."""
    inside = 0
    for seed in range(25):
        result = analysed(SIZES, RATES, bowls(0.7, noise=0.3, seeds=8, seed=seed), [], seed=seed)
        low, high = result["exponent_interval"]
        inside += low <= 0.7 <= high
    assert 19 <= inside <= 25


def test_a_best_rate_at_an_end_is_told_and_left_out_of_the_exponent():
    losses = bowls(1.0)
    losses[-1] = np.exp(-np.log(RATES))[:, None]  # the largest batch would like more
    result = analysed(SIZES, RATES, losses, [])
    assert result["edge"].tolist() == [False, False, False, True]
    assert result["exponent"] == pytest.approx(1, abs=1e-3)


def test_rates_beside_which_trainings_diverge():
    rates = np.array([0.1, 0.2, 0.4])
    assert best_rate(rates, np.array([2.0, 1.0, math.inf])) == (0.2, 1.0, False)
    rate, loss, edge = best_rate(rates, np.full(3, math.inf))
    assert math.isnan(rate)
    assert (loss, edge) == (math.inf, True)


def test_the_paired_interval_and_the_knee():
    low, mean, high = paired([1.0, 2.0, 3.0])
    assert (low, mean, high) == pytest.approx((-0.48414, 2, 4.48414), abs=1e-4)
    assert knee([8, 16, 32, 64], np.array([10.0, 50.0, 91.0, 100.0])) == 32


# --- trials ---------------------------------------------------------------------------------------


def test_a_trial_is_what_plain_keras_does(found):
    result, _ = found
    row = result.trials.query("batch_size == 16 and learning_rate == 0.1 and seed == 1").iloc[0]
    keras.utils.set_random_seed(1)
    model = model_fn()
    model.optimizer.learning_rate = 0.1
    start = model.get_weights()
    model.fit(GrowingBatches(X, Y, [16], seed=1), epochs=2, shuffle=False, verbose=0)
    wanted = model.evaluate(X[:16], Y[:16], verbose=0)
    assert row["val_loss"] == pytest.approx(wanted, rel=1e-5)
    assert row["loss"] == pytest.approx(model.evaluate(X, Y, verbose=0), rel=1e-5)
    assert row["gap"] == pytest.approx(row["val_loss"] - row["loss"])
    moved = sum(np.sum((a - b) ** 2) for a, b in zip(model.get_weights(), start, strict=True))
    assert row["distance"] == pytest.approx(math.sqrt(moved), rel=1e-4)
    assert row["steps"] == 6
    right = np.argmax(model.predict(X[:16], verbose=0), axis=1) == Y[:16]
    assert row["accuracy"] == pytest.approx(right.mean())
    surface = rt.LossSurface(model, X, Y, mode="batch_statistics")
    assert row["sharpness"] == pytest.approx(rt.measures.keskar_sharpness(surface).value, rel=0.05)


def test_the_table_is_made_of_the_trials(found):
    result, _ = found
    assert list(result.table["batch_size"]) == [4, 16, 48]
    assert len(result.trials) == 3 * 3 * 2
    for _, row in result.table.iterrows():
        own = result.trials.query(f"batch_size == {row['batch_size']:.0f}")
        means = own.groupby("learning_rate")["val_loss"].mean()
        assert row["tried_rate"] == means.idxmin()
        assert row["val_loss"] == pytest.approx(means.min())
        curve = np.array(result.curves[int(row["batch_size"])])
        epochs = int(np.argmax(curve <= result.target * (1 + 1e-9))) + 1
        assert row["steps_to_target"] == epochs * -(-48 // int(row["batch_size"]))
    assert list(result.rules) == ["rule", "batch_size", "rate", "excess"]
    assert len(result.sentences) == 3
    assert result.sentences[0].startswith("Small batches perform better: ")
    assert f"to the power {result.exponent:.2f}" in result.sentences[1]


def test_a_study_that_was_cut_off_goes_on(tmp_path, monkeypatch, capsys):
    made = []

    def cut():
        made.append(1)
        if len(made) == 4:  # two to begin with, one for each start
            raise KeyboardInterrupt
        return model_fn()

    one = BatchSizeStudy(cut, [4, 16], [0.01, 0.1, 1.0], seeds=2)
    with pytest.raises(KeyboardInterrupt):
        run(one, tmp_path)
    kept = {path.name: path.read_text() for path in tmp_path.glob("batch_*.json")}
    assert len(kept) == 6
    capsys.readouterr()
    result = run(study(), tmp_path, verbose=1)
    assert capsys.readouterr().out.count("validation loss") == 6
    assert {n: (tmp_path / n).read_text() for n in kept} == kept
    again = run(study(), tmp_path, verbose=1)
    assert capsys.readouterr().out == ""
    assert again.trials.equals(result.trials)


_SCRIPT = """
import sys, warnings
warnings.simplefilter("ignore")
sys.path.insert(0, "tests")
import test_batch_size_study as t
found = t.run(t.study(), sys.argv[1], verbose=1)
print("whole", len(found.trials))
"""


@pytest.mark.slow
def test_two_processes_share_the_trials(tmp_path):
    backend = keras.backend.backend()
    environment = {**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": str(ROOT)}
    script = [sys.executable, "-c", _SCRIPT, str(tmp_path)]
    pipe = subprocess.PIPE
    both = [
        subprocess.Popen(script, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True)
        for _ in range(2)
    ]
    try:
        told = [process.communicate(timeout=300) for process in both]
    finally:
        for process in both:
            process.kill()
    lines = [out.splitlines() for out, _ in told]
    assert all(own and own[-1] == "whole 12" for own in lines), [error[-1500:] for _, error in told]
    done = [line.split(":")[0] for own in lines for line in own[:-1]]
    assert len(done) == len(set(done)) == 12


def test_a_training_that_diverges_is_a_row_and_no_end(tmp_path):
    def steep():
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        return model

    one = BatchSizeStudy(steep, [4, 16], [0.01, 0.1, 1e20], seeds=2)
    y = X[:, :1]
    result = one.run(
        X, y, validation_data=(X, y), epochs=2, directory=tmp_path, verbose=0, target=1e-9
    )
    assert np.isinf(result.trials.query("learning_rate > 1")["val_loss"]).all()
    assert np.isfinite(result.table["val_loss"]).all()
    assert np.isnan(result.table["accuracy"]).all()  # of no classes
    assert "undecided, as not both reach the validation loss 0.0000." in result.sentences[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"batch_sizes": [16, 4]},
            "Argument `batch_sizes` must be two or more numbers that grow. Received: "
            "batch_sizes=[16, 4]",
        ),
        (
            {"learning_rates": [0.1]},
            "Argument `learning_rates` must be two or more numbers that grow. Received: "
            "learning_rates=[0.1]",
        ),
        (
            {"rules": ["adam"]},
            "Argument `rules` must be one of 'linear', 'sqrt'. Received: rules='adam'",
        ),
    ],
)
def test_bad_settings_are_refused(arguments, message):
    usual = {"batch_sizes": [4, 16], "learning_rates": [0.1, 0.2]}
    with pytest.raises(ValueError) as error:
        BatchSizeStudy(model_fn, **{**usual, **arguments})
    assert str(error.value) == message


def test_bad_data_and_models_are_refused(tmp_path):
    large = BatchSizeStudy(model_fn, [4, 64], [0.1, 0.2])
    with pytest.raises(ValueError, match="Expected at least 64 samples, those of the largest"):
        run(large, tmp_path)
    with pytest.raises(ValueError, match="Expected `validation_data` to be"):
        run(study(), tmp_path, validation_data=None)
    same = model_fn()
    with pytest.raises(ValueError, match="Received: the same one twice"):
        run(BatchSizeStudy(lambda: same, [4, 16], [0.1, 0.2]), tmp_path / "same")
    with pytest.raises(TypeError, match="Expected `model_fn` to be a function"):
        BatchSizeStudy(same, [4, 16], [0.1, 0.2])

    def scheduled():
        model = model_fn()
        model.compile(keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1, 5)), "mse")
        return model

    with pytest.raises(ValueError, match="whose rate is a number, which each trial sets"):
        run(BatchSizeStudy(scheduled, [4, 16], [0.1, 0.2]), tmp_path / "scheduled")


def test_a_directory_of_another_study_is_refused(found):
    _, directory = found
    with pytest.raises(ValueError) as error:
        run(study(full_batch=True), directory, epochs=3)
    assert str(error.value) == (
        f"Expected a directory of the same study. Received: {str(directory)!r}, with epochs=2 "
        "there and 3 here"
    )
    assert json.loads((directory / "study.json").read_text())["epochs"] == 2
    with pytest.raises(ValueError, match="Expected a directory of the same study.*with data="):
        study(full_batch=True).run(
            -X, Y, validation_data=(X[:16], Y[:16]), epochs=2, verbose=0, directory=directory
        )


def test_the_pictures_show_the_study(found):
    result, _ = found
    ax = rt.plots.losses_by_rate(result)
    told = [text.get_text() for text in ax.get_legend().get_texts()]
    assert told == ["batch 4", "batch 16", "batch 48"]
    means = result.trials.query("batch_size == 16").groupby("learning_rate")["val_loss"].mean()
    np.testing.assert_allclose(ax.containers[1][0].get_ydata(), means)
    ax = rt.plots.best_rates(result)
    assert f"best rate: power {result.exponent:.2f}" in ax.get_legend().get_texts()[0].get_text()
    ax = rt.plots.speed_by_batch_size(result)
    np.testing.assert_allclose(
        ax.get_lines()[0].get_ydata(), result.table["samples_per_second"], rtol=1e-6
    )
    assert f"knee: {result.knee}" in [t.get_text() for t in ax.get_legend().get_texts()]
    plt.close("all")


def penalized(strength):
    model = keras.Sequential([keras.Input((4,))])
    model.add(keras.layers.Dense(3, "softmax", kernel_regularizer=keras.regularizers.L2(strength)))
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    return model


def test_a_directory_knows_the_settings_of_the_network_but_not_the_names(tmp_path):
    def fitted(strength):
        return run(
            BatchSizeStudy(lambda: penalized(strength), [4, 16], [0.01, 0.1], seeds=1), tmp_path
        )

    first = fitted(0.01)
    assert fitted(0.01).trials.equals(first.trials)  # of layers that have other names by now
    with pytest.raises(ValueError, match="Expected a directory of the same study.*with model="):
        fitted(0.02)


def dropping():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(16), keras.layers.Dropout(0.5)])
    model.add(keras.layers.Dense(3, activation="softmax"))
    return model


@pytest.mark.slow
def test_a_study_repeats_itself_with_dropout_too(tmp_path):
    found = [
        run(BatchSizeStudy(dropping, [4, 16], [0.01, 0.1], seeds=[3]), tmp_path / name)
        for name in "ab"
    ]
    np.testing.assert_allclose(*(one.trials["val_loss"] for one in found), rtol=1e-5)
    assert found[0].exponent_interval == (-math.inf, math.inf)  # of one seed
    assert "want small rates: undecided" in found[0].sentences[1]


def test_when_everything_diverges_nothing_is_said(tmp_path):
    def steep():
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        return model

    one = BatchSizeStudy(steep, [4, 16], [1e18, 1e20], seeds=2)
    y = X[:, :1]
    result = one.run(X, y, validation_data=(X, y), epochs=2, directory=tmp_path, verbose=0)
    assert all(": undecided" in sentence for sentence in result.sentences)
    assert result.table["steps_to_target"].isna().all()


def test_seeds_targets_and_files_that_are_none(tmp_path):
    for seeds in ([], [-1], "ab"):
        with pytest.raises(ValueError, match="Argument `seeds` must be"):
            BatchSizeStudy(model_fn, [4, 16], [0.1, 0.2], seeds=seeds)
    with pytest.raises(ValueError, match="Argument `target` must be"):
        run(study(), tmp_path, target=math.nan)
    (tmp_path / "study.json").write_text('{"epochs"')
    with pytest.raises(ValueError, match="Expected the settings of a study in"):
        run(study(), tmp_path)
