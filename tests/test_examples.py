"""Each example runs: small in the default run or with `pytest -m slow`, at its defaults by hand.

The small ones run in the process of the tests, which has imported all that they need; at its
defaults (`pytest -m "slow or by_hand"`) each runs by itself, as from the command line.
"""

import os
import pathlib
import runpy
import subprocess
import sys

import keras
import pytest
from matplotlib.figure import Figure
from problems import rows

# KerasTuner asks for the name of its thread in the way of Python 2.
pytestmark = pytest.mark.filterwarnings(r"ignore::DeprecationWarning:keras_tuner\.")

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(path.name for path in EXAMPLES.glob("[!_]*.py"))
LONG = (  # even when small; small, LeNet-5 runs without batch normalization
    "batch_norm_freedom.py",
    "curvature.py",
    "distribution_shift.py",
    "lenet5.py",
    "regularization_effects.py",
    "search_lenet5.py",
    "search_vgg.py",
    "sharpness_aware.py",
    "small_vs_large_batch.py",
    "sparsity.py",
    "two_devices.py",
    "vgg.py",
)
QUICK = ("rescaling.py",)  # at its defaults
SEEDED = (
    "batch_norm_freedom.py",
    "batch_norm_landscape.py",
    "distribution_shift.py",
    "internal_covariate_shift.py",
    "linear_scaling.py",
    "regularization_effects.py",
    "sharpness_aware.py",
    "small_vs_large_batch.py",
)
REPORT = {"report.html", "records.jsonl", "run.json", "loss.png", "accuracy.png", "sharpness.png"}
OF_SEARCHES = {"best_so_far.png", "confirmation.csv", "search.html", "trials", "trials.csv"}
LEFT_BEHIND = {
    "batch_norm_freedom.py": {"batch_norm_freedom.png", "gradient_flow.csv", "runs.csv"},
    "internal_covariate_shift.py": {"drifts.csv", "internal_covariate_shift.png", "steps.csv"},
    "batch_norm_landscape.py": {"batch_norm_landscape.png", "steps.csv"},
    "distribution_shift.py": {"accuracy.csv", "distribution_shift.png", "layers.csv"},
    "lenet5.py": REPORT | {"learning_rate.png", "activation_ranges.png", "penalties.png"},
    "vgg.py": REPORT | {"digits"},
    "curvature.py": {"curvature.png", "layers.csv"},
    "rescaling.py": {"rescaling.csv", "rescaling.png"},
    "small_vs_large_batch.py": {
        "line_large_linear.csv",
        "runs.csv",
        "small_vs_large_batch.png",
    },
    "two_devices.py": {"1.npz", "2.npz", "two_devices.png"},
    "linear_scaling.py": {"curves.csv", "linear_scaling.png", "noise_scale.csv"},
    "sparsity.py": {"runs.csv", "sparsity.png"},
    "regularization_effects.py": {
        "before_batch_norm.csv",
        "regularization_effects.png",
        "runs.csv",
    },
    "sharpness_aware.py": {"accuracy.csv", "runs.csv", "sharpness_aware.png"},
    "search_lenet5.py": OF_SEARCHES | {"confirmation.png"},
    "search_vgg.py": OF_SEARCHES,
}


def run(name, *arguments, fails=False):
    environment = {**os.environ, "KERAS_BACKEND": keras.backend.backend()}
    result = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert (result.returncode != 0) == fails, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout + result.stderr


@pytest.fixture
def inside(monkeypatch, capsys):
    """Runs an example in this process, which has imported all of it; gives what it says."""

    def run(name, *arguments):
        monkeypatch.syspath_prepend(EXAMPLES)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        try:
            runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        except SystemExit as end:
            return f"{capsys.readouterr().out}{end.code or ''}"
        return capsys.readouterr().out

    return run


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_every_example_has_a_row():
    assert set(LEFT_BEHIND) == set(SCRIPTS)


@pytest.mark.parametrize("name", rows(SCRIPTS, *(s for s in SCRIPTS if s not in LONG)))
def test_the_example_runs_small(name, tmp_path, inside, monkeypatch):
    written, save = [], Figure.savefig

    def noted(figure, *args, **options):
        written.extend([figure.get_supxlabel(), *(ax.get_xlabel() for ax in figure.axes)])
        return save(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", noted)
    printed = " ".join(inside(name, "--smoke", "--output", tmp_path).split())
    assert names(tmp_path) >= LEFT_BEHIND[name]
    of_page = ("lenet5.py", "search_lenet5.py", "search_vgg.py", "vgg.py")
    if name not in of_page:  # whose page has a list of findings
        sentences = [" ".join(text.split()) for text in written]
        if name == "batch_norm_freedom.py":  # a finding below each panel
            assert "Steps to the target" in "".join(sentences)
        else:
            assert any(len(text) > 40 and text in printed for text in sentences)


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_option_is_explained(name, inside):
    text = inside(name, "--help")
    options = [line.split()[0].rstrip(",") for line in text.splitlines() if "  --" in line]
    assert {"--output", "--seed", "--smoke"} <= set(options)


@pytest.mark.slow
def test_without_batch_normalization(tmp_path, inside):
    inside("lenet5.py", "--smoke", "--no-batch-norm", "--output", tmp_path)
    assert "activation_ranges.png" in names(tmp_path)
    assert "moving_distances.png" not in names(tmp_path)


@pytest.mark.slow  # `KERAS_HOME` is read when Keras is imported
def test_a_data_set_that_cannot_be_had_says_where_to_put_it(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    text = run("lenet5.py", "--dataset", "mnist", "--output", tmp_path / "out", fails=True)
    assert "The data set mnist could not be downloaded" in text
    assert f"put it here: {tmp_path / 'datasets' / 'mnist.npz'}" in text


def test_a_folder_that_is_not_there_is_named(tmp_path, inside):
    text = inside("vgg.py", "--data", tmp_path / "nowhere", "--output", tmp_path)
    assert f"There is no folder {tmp_path / 'nowhere'}" in text


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in QUICK else pytest.mark.by_hand)
        for name in SCRIPTS
    ],
)
def test_the_example_runs_at_its_defaults(name, tmp_path):
    """Minutes each, so that most are run by hand; of seeds two, which take the path of three."""
    seeds = ("--seeds", 2) if name in SEEDED else ()
    run(name, *seeds, "--output", tmp_path)
    assert names(tmp_path) >= LEFT_BEHIND[name]
