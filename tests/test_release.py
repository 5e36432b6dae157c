"""What somebody installs: the wheel has all that the main job needs, and the version is one."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile

import pytest

import keras_regtools

ROOT = pathlib.Path(__file__).parents[1]
JOB = """
import pathlib, keras, numpy as np
import keras_regtools as rt
print(rt.__version__, pathlib.Path(rt.__file__).parent.parent)
x, y = np.random.default_rng(0).normal(size=(32, 16, 16, 1)), np.arange(32) % 10
model = rt.regularize(rt.applications.lenet5((16, 16, 1)), batch_norm=True, dense_dropout=0.5)
model = rt.instrument(model)
model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
sharpness = rt.callbacks.Sharpness(x, y, samples=16, iterations=2)
report = rt.callbacks.Report("run")
model.fit(x, y, validation_data=(x, y), callbacks=[sharpness, report], verbose=0)
print(report.page.path)
"""


def test_the_version_is_one():
    (cited,) = re.findall(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text("utf-8"), re.M)
    assert cited == keras_regtools.__version__
    newest = re.search(r"^## \[?([\d.]+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)
    assert newest[1] == keras_regtools.__version__


@pytest.mark.slow
def test_the_wheel_does_the_main_job_outside_of_the_clone(tmp_path):
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    clone = tmp_path / "clone"
    shutil.copytree(
        ROOT / "keras_regtools",
        clone / "keras_regtools",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, clone)
    subprocess.run([*pip, "wheel", "--no-deps", "-w", tmp_path, clone], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    there = set(zipfile.ZipFile(wheel).namelist())
    package = {p.relative_to(clone).as_posix() for p in (clone / "keras_regtools").rglob("*.*")}
    assert package <= there
    place, outside = tmp_path / "installed", tmp_path / "outside"
    subprocess.run([*pip, "install", "--no-deps", "--target", place, wheel], check=True)
    outside.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(place), "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, "-c", JOB], cwd=outside, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    version, where = done.stdout.splitlines()[0].split()
    assert (version, where) == (keras_regtools.__version__, str(place))
    assert (outside / "run" / "report.html").stat().st_size > 100_000
