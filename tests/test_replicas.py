"""Two devices, or two processes, against one with the same global batch."""

import contextlib
import os
import pathlib
import socket
import subprocess
import sys

import keras
import numpy as np
import pytest
import two_devices

ROOT = pathlib.Path(__file__).parents[1]
BACKEND = keras.backend.backend()
mirrored = pytest.mark.skipif(BACKEND != "tensorflow", reason="replicas are TensorFlow's here")
distributed = pytest.mark.skipif(BACKEND != "jax", reason="processes are JAX's here")


def start(*arguments):
    environment = {**os.environ, "KERAS_BACKEND": BACKEND, "CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    script = [sys.executable, *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        script, cwd=ROOT, env=environment, stdout=pipe, stderr=subprocess.STDOUT, text=True
    )


def ended(*processes):
    """What each printed; those that do not end are ended."""
    try:
        told = [process.communicate(timeout=400)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, text in zip(processes, told, strict=True):
        assert process.returncode == 0, text[-2000:]
    return told


def loaded(path):
    return dict(np.load(path))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    directory = tmp_path_factory.mktemp("devices")
    for devices in (1, 2):
        ended(start("tests/two_devices.py", devices, directory / f"{devices}.npz"))
    return [loaded(directory / f"{devices}.npz") for devices in (1, 2)]


def free_ports():
    """Two neighbours that nobody listens at."""
    for _ in range(100):
        with socket.socket() as one, socket.socket() as two, contextlib.suppress(OSError):
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
            two.bind(("127.0.0.1", port + 1))
            return port
    raise AssertionError("no two free ports")


@pytest.fixture(scope="module")
def by_processes(tmp_path_factory):
    """What one process found, and each of two."""
    directory = tmp_path_factory.mktemp("processes")
    script, port = "tests/two_processes.py", free_ports()
    paths = [directory / f"{name}.npz" for name in ("one.0", "two.0", "two.1")]
    ended(start(script, 1, 0, port, paths[0]))
    ended(*(start(script, 2, i, port, paths[1 + i]) for i in range(2)))
    return [*(loaded(path) for path in paths), directory]


def part(found, kind):
    one, two = ({k: v for k, v in f.items() if k.startswith(f"{kind}/")} for f in found)
    assert one.keys() == two.keys()
    assert one
    return {name: (one[name], two[name]) for name in one}


# Each replica has a histogram of its own, whose bins are a sixteenth of a standard deviation wide.
_BY_BINS = ("percentile_15", "percentile_50", "percentile_85", "percentile_drift")
# How many steps a search takes depends on the last bits.
_SEARCHED = ("keskar/evaluations", "keskar/iterations")


@pytest.mark.slow
@mirrored
@pytest.mark.parametrize("kind", ["history", "records", "grown", "measures", "acting"])
def test_every_callback_gives_the_numbers_of_one_device(found, kind):
    assert_close(part(found, kind))


def assert_close(pairs):
    for name, (one, two) in pairs.items():
        if "activations/" in name and name.endswith(_BY_BINS):
            np.testing.assert_allclose(two, one, atol=0.07, err_msg=name)
        elif not name.endswith(_SEARCHED):
            np.testing.assert_allclose(two, one, rtol=2e-4, atol=1e-6, err_msg=name)


@pytest.mark.slow
@mirrored
def test_the_weights_are_those_of_one_device(found):
    for name, (one, two) in part(found, "weights").items():
        np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.slow
@mirrored
def test_to_watch_the_gradients_leaves_the_training_of_replicas_alone(found):
    plain, watched = (part(found, kind) for kind in ("plain", "watched"))
    for name, values in plain.items():
        other = watched[name.replace("plain", "watched")]
        for one, two in zip(values, other, strict=True):
            np.testing.assert_array_equal(one, two, err_msg=name)


@pytest.mark.slow
@mirrored
def test_replicas_are_parts_whose_noise_is_seen(found):
    """Against numpy: three updates an epoch, each of two parts of 16 samples."""
    parts = 0.2 + two_devices.X.astype("float64").reshape(3, 2, 16, 64).mean(axis=2)
    of_mean = (parts.mean(axis=1) ** 2).sum(axis=1)
    variances = (parts**2).sum(axis=(1, 2)) - 2 * of_mean
    trace, norm = 16 * variances.mean(), of_mean.mean() - variances.mean() / 2
    for name, value in {"trace": trace, "squared_norm": norm, "scale": trace / norm}.items():
        seen = found[1][f"parts/gradient_noise/{name}"]
        np.testing.assert_allclose(seen, [value] * 2, rtol=1e-4, err_msg=name)
    variance, square, progress, gain = None, None, 0.0, 1.0
    for _ in range(2):
        for new, of in zip(variances, of_mean, strict=True):
            progress += gain
            keep = 0.0 if variance is None else 1 - 2 / 1000
            variance = keep * (variance or 0.0) + (1 - keep) * new
            square = keep * (square or 0.0) + (1 - keep) * (of - new / 2)
            gain = (variance + square) / (variance / 2 + square)
    assert found[1]["parts/adascale/gain"][-1] == pytest.approx(gain, rel=1e-4)
    assert found[1]["parts/adascale/progress"][-1] == pytest.approx(progress, rel=1e-4)


_WORKER = """
import json, os, sys
port, index = int(sys.argv[1]), int(sys.argv[2])
workers = [f"127.0.0.1:{port + i}" for i in range(2)]
task = {"type": "worker", "index": index}
os.environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": workers}, "task": task})
import keras, numpy as np, tensorflow as tf
x = np.ones((8, 3), "float32")
with tf.distribute.MultiWorkerMirroredStrategy().scope():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
try:
    model.fit(x, x[:, :1], verbose=0)
except ValueError as error:
    print(str(error)[:40], flush=True)
os._exit(0)  # without waiting for the other
"""


@pytest.mark.slow
@mirrored
def test_what_the_page_says_of_several_machines_on_tensorflow_is_still_so():
    port = free_ports()
    told = ended(*(start("-c", _WORKER, port, index) for index in range(2)))
    sentence = "Attempt to convert a value (PerReplica"
    assert all(sentence in text for text in told), told
    assert sentence in (ROOT / "docs" / "several-devices.md").read_text("utf-8")


@pytest.mark.slow
@pytest.mark.backends
@distributed
@pytest.mark.parametrize("kind", ["history", "records", "weights", "acting"])
def test_two_processes_give_the_numbers_of_one_and_both_the_same(by_processes, kind):
    alone, first, second, _ = by_processes
    assert_close(part([alone, first], kind))
    for name, (one, two) in part([first, second], kind).items():
        np.testing.assert_array_equal(two, one, err_msg=name)


@pytest.mark.slow
@pytest.mark.backends
@distributed
def test_of_two_processes_the_first_writes_the_report(by_processes):
    directory = by_processes[-1]
    lines = {
        name: len((directory / f"{name}.report" / "records.jsonl").read_text().splitlines())
        for name in ("one", "two")
    }
    assert lines["one"] == lines["two"]
    assert (directory / "two.report" / "report.html").exists()
