"""How large a batch: what fits, what the machine likes, what the noise allows."""

import math
import pathlib

import keras
import matplotlib.pyplot as plt
import numpy as np
import pytest
from problems import with_all_state

import keras_regtools as rt
from keras_regtools.trial import batch_size as module
from keras_regtools.trial import cost

pytestmark = pytest.mark.backends
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(256, 6)).astype("float32"), RNG.integers(0, 3, 256)
MIB = 2**20
tells = pytest.mark.skipif(
    not pathlib.Path("/proc/self/clear_refs").exists(), reason="this system tells no memory"
)


def network(**optimizer):
    return with_all_state(keras.optimizers.SGD(0.1, **optimizer))


@pytest.fixture(scope="module")
def found():
    return rt.suggest_batch_size(network(), X, Y, turns=2)


def test_the_numbers_follow_from_what_was_measured(found):
    sizes, speed = found.batch_sizes, found.samples_per_second
    assert sizes.tolist() == [8, 16, 32, 64, 128, 256]
    assert found.knee == sizes[speed >= 0.9 * speed.max()][0]
    np.testing.assert_allclose(found.expected_time, (sizes + found.noise_scale) / speed)
    assert found.value == sizes[np.argmin(found.expected_time)]
    assert (found.slowest <= speed).all()
    assert (speed <= found.fastest).all()
    low, high = found.noise_interval
    assert low < found.noise_scale < high
    assert len(found.reasons) == 4
    assert found.reasons[1].startswith(f"{found.knee:.0f} samples are the smallest batch")
    assert f"The gradient noise scale is {found.noise_scale:.3g}" in found.reasons[2]
    assert f"With {found.value:.0f} samples" in found.reasons[3]


def test_the_noise_scale_is_that_of_the_measure(found):
    surface = rt.LossSurface(network(), X, Y, batch_size=8, mode="batch_statistics")
    noise = rt.measures.gradient_noise_scale(surface, 8, population=256)
    assert found.noise_scale == pytest.approx(noise.value, rel=1e-4)
    assert found.noise_interval == pytest.approx(noise.interval, rel=1e-4)


def test_accumulated_batches_make_a_larger_one():
    model = network(gradient_accumulation_steps=4)
    parts = rt.suggest_batch_size(model, X, Y, batch_sizes=[8, 32], turns=2)
    surface = rt.LossSurface(network(), X, Y, batch_size=8, mode="batch_statistics")
    noise = rt.measures.gradient_noise_scale(surface, 8, population=256)
    assert parts.noise_scale == pytest.approx(noise.value / 4, rel=1e-4)


def test_the_model_is_left_as_it_was():
    model = network(momentum=0.9)
    model.fit(X, Y, verbose=0)
    kept = [*model.variables, *model.optimizer.variables]
    before = [np.array(keras.ops.convert_to_numpy(v)) for v in kept]
    rt.suggest_batch_size(model, X, Y, batch_sizes=[8, 64], turns=2)
    for variable, value in zip(kept, before, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), value)


def wide(units=2**17):
    """A step of one sample keeps a megabyte and more."""
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(units, activation="tanh")])
    model.compile("sgd", "mse")
    return model, np.ones((512, 1), "float32"), np.zeros((512, 1), "float32")


def peak():
    text = pathlib.Path("/proc/self/status").read_text()
    return {
        line.split(":")[0]: int(line.split()[1]) * 1024
        for line in text.splitlines()
        if line.startswith(("VmHWM", "VmRSS"))
    }


@tells
def test_no_size_is_tried_that_would_need_more_than_the_limit():
    model, x, y = wide()
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    before = peak()["VmRSS"]
    limit = 300 * MIB
    found = rt.suggest_batch_size(model, x, y, memory_limit=limit, turns=2)
    assert peak()["VmHWM"] - before < 1.2 * limit  # the noise scale takes some, too
    assert 8 <= found.batch_sizes[-1] < 256
    assert found.batch_sizes[-1] <= found.fits <= limit / MIB
    assert found.memory_limit == limit
    assert (found.memory <= limit).all()
    assert f"A step of up to {found.fits:.0f} samples" in found.reasons[0]


def test_what_is_foreseen_is_at_least_what_the_layers_keep():
    """Steps that take what is free already show no slope: four times the layers' share then."""
    assert cost.foreseen([8, 16], [0.0, 0.0], 32, 1000) == 4 * 1000 * 16
    assert cost.foreseen([8, 16], [8e4, 16e4], 32, 1000) == 32e4
    assert cost.foreseen([8], [8e4], 16, 1000) == 16e4
    assert cost.bytes_of_a_sample(wide()[0]) == 2 * 4 * (1 + 2**17)


@tells
def test_a_limit_below_the_smallest_step_is_refused():
    model, x, y = wide()
    with pytest.raises(ValueError, match="Expected a limit above what a step of 16 samples takes"):
        rt.suggest_batch_size(model, x, y, batch_sizes=[16, 64], memory_limit=1000, turns=2)


def test_a_system_that_tells_no_memory(monkeypatch):
    class Unknown:
        known, room = False, None

    monkeypatch.setattr(module.backend, "peak_memory", Unknown)
    found = rt.suggest_batch_size(network(), X, Y, batch_sizes=[8, 64], turns=2)
    assert math.isnan(found.fits)
    assert np.isnan(found.memory).all()
    assert found.reasons[0] == "What a step takes is not known on this system."


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"batch_sizes": [64, 8]},
            "Argument `batch_sizes` must be integers that grow. Received: batch_sizes=[64, 8]",
        ),
        (
            {"batch_sizes": [8, 512]},
            "Expected at least 512 samples, those of the largest batch. Received: 256",
        ),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError) as error:
        rt.suggest_batch_size(network(), X, Y, **arguments)
    assert str(error.value) == message


def test_the_picture_shows_all_three(found):
    ax = rt.plots.batch_size_suggestion(found)
    line = next(line for line in ax.get_lines() if len(line.get_xdata()) == 6)
    np.testing.assert_allclose(line.get_xdata(), found.batch_sizes)
    np.testing.assert_allclose(line.get_ydata(), found.samples_per_second)
    told = [text.get_text() for text in ax.get_legend().get_texts()]
    assert f"knee: {found.knee:.0f}" in told
    assert f"noise scale: {found.noise_scale:.3g}" in told
    assert f"suggested: {found.value:.0f}" in told
    plt.close(ax.figure)


def test_what_cannot_be_measured_is_refused():
    broken = X.copy()
    broken[3] = np.nan
    with pytest.raises(ValueError, match="Expected a finite loss at the weights as they are"):
        rt.suggest_batch_size(network(), broken, Y)
    with pytest.raises(ValueError, match="Expected at least three samples"):
        rt.suggest_batch_size(network(), X[:2], Y[:2])


def test_without_a_gradient_the_fastest_size_is_suggested():
    weights = np.zeros(256)
    found = rt.suggest_batch_size(network(), X, Y, weights, batch_sizes=np.array([8, 64]), turns=2)
    assert "is not known" in found.reasons[2]
    assert found.value == found.batch_sizes[np.argmax(found.samples_per_second)]
    assert found.reasons[3].endswith("the machine makes the most samples per second.")
