"""Two devices under `MirroredStrategy` against one, with the same global batch."""

import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        keras.backend.backend() != "tensorflow", reason="replicas are TensorFlow's here"
    ),
]
ROOT = pathlib.Path(__file__).parents[1]


def run(*arguments):
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": ""}
    script = [sys.executable, *map(str, arguments)]
    done = subprocess.run(
        script, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    directory = tmp_path_factory.mktemp("devices")
    for devices in (1, 2):
        run("tests/two_devices.py", devices, directory / f"{devices}.npz")
    return [dict(np.load(directory / f"{devices}.npz")) for devices in (1, 2)]


def part(found, kind):
    one, two = ({k: v for k, v in f.items() if k.startswith(f"{kind}/")} for f in found)
    assert one.keys() == two.keys()
    assert one
    return {name: (one[name], two[name]) for name in one}


# Each replica has a histogram of its own, whose bins are a sixteenth of a standard deviation wide.
_BY_BINS = ("percentile_15", "percentile_50", "percentile_85", "percentile_drift")
# How many steps a search takes depends on the last bits.
_SEARCHED = ("keskar/evaluations", "keskar/iterations")


@pytest.mark.parametrize("kind", ["history", "records", "grown", "measures", "acting"])
def test_every_callback_gives_the_numbers_of_one_device(found, kind):
    for name, (one, two) in part(found, kind).items():
        if "activations/" in name and name.endswith(_BY_BINS):
            np.testing.assert_allclose(two, one, atol=0.07, err_msg=name)
        elif not name.endswith(_SEARCHED):
            np.testing.assert_allclose(two, one, rtol=2e-4, atol=1e-6, err_msg=name)


def test_the_weights_are_those_of_one_device(found):
    for name, (one, two) in part(found, "weights").items():
        np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-6, err_msg=name)


def test_to_watch_the_gradients_leaves_the_training_of_replicas_alone(found):
    plain, watched = (part(found, kind) for kind in ("plain", "watched"))
    for name, values in plain.items():
        other = watched[name.replace("plain", "watched")]
        for one, two in zip(values, other, strict=True):
            np.testing.assert_array_equal(one, two, err_msg=name)
