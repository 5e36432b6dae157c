"""The gradient noise scale: exact cases, numpy, and how often its interval holds the truth."""

import functools
import importlib
import math

import keras
import numpy as np
import pytest

import keras_regtools as rt

pytestmark = pytest.mark.backends
noise_scale = rt.measures.gradient_noise_scale
module = importlib.import_module("keras_regtools.measures.gradient_noise_scale")
FOUR = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [2.0, 0.0]], "float32")


def linear(width=2):
    return keras.Sequential([keras.Input((width,)), keras.layers.Dense(1, use_bias=False)])


def of_gradients(gradients, **settings):
    """A surface on which each sample has the gradient that is given."""
    model = linear(gradients.shape[1])
    return rt.LossSurface(model, gradients, gradients, loss=lambda y, p: p[:, 0], **settings)


def test_four_gradients_by_hand():
    found = noise_scale(of_gradients(FOUR), 1)
    assert found.trace == pytest.approx(1)
    assert found.squared_norm == pytest.approx(1)
    assert found.value == pytest.approx(1)
    assert (found.micro_batches, found.micro_batch_size, found.samples) == (4, 1, 4)
    assert found.by_layer == pytest.approx([1])
    whole = noise_scale(of_gradients(FOUR), 1, population=4)
    assert whole.squared_norm == pytest.approx(1.25)
    assert whole.value == pytest.approx(0.8)
    half = noise_scale(of_gradients(FOUR), 1, population=8)
    assert half.squared_norm == pytest.approx(1.25 - 1 / 8)
    numbers = found.scalars()
    assert numbers["low"] == found.interval[0]
    assert numbers["high"] == math.inf == found.interval[1]  # of four no gradient is seen


def gradients_of_regression(n, d=5, square=0.3, s=0.5, rng=None):
    """½ (x·e − s z)²: tr Σ = (d + 1) |e|² + d s², |G|² = |e|² (FACTS: 10.1667)."""
    x = rng.normal(size=(n, d))
    e = np.full(d, math.sqrt(square / d))
    return (x @ e - s * rng.normal(size=n))[:, None] * x


def quantities(gradients, size):
    """What the measure has of micro-batches: by batch ‖g‖² and ⟨g, ḡ⟩, and ‖ḡ‖²."""
    parts = gradients.reshape(-1, size, gradients.shape[1]).mean(axis=1)
    mean = parts.mean(axis=0)
    return (parts**2).sum(1)[:, None], (parts @ mean)[:, None], np.array([mean @ mean])


@pytest.mark.parametrize(
    ("square", "n", "size"), [(0.3, 512, 8), (0.3, 1024, 4), (3.0, 256, 4), (0.003, 512, 8)]
)
def test_the_interval_holds_the_truth_in_95_of_100(square, n, size):
    rng, held = np.random.default_rng(1), 0
    truth = (6 * square + 5 * 0.25) / square
    if square == 0.3:
        assert truth == pytest.approx(10.1667, abs=1e-4)
    for _ in range(1000):
        gradients = gradients_of_regression(n, square=square, rng=rng)
        found = module._estimates(*quantities(gradients, size), size, 1.0)
        low, high = module._fieller(*(f.sum(axis=-1) for f in found), 0.95)
        held += low <= truth <= high
    slack = 0 if square == 0.3 else 5  # one standard error is 7
    assert 930 - slack <= held <= 970 + slack


@pytest.mark.parametrize(("population", "n"), [(4000, 512), (1024, 512), (512, 512)])
def test_the_interval_of_a_population_holds_its_truth(population, n):
    rng, held, widths = np.random.default_rng(3), 0, []
    whole = gradients_of_regression(population, rng=rng)
    truth = whole.var(axis=0, ddof=1).sum() / (whole.mean(axis=0) ** 2).sum()
    rest = 1 - n / population
    for _ in range(400):
        part = whole[rng.permutation(population)[:n]]
        found = module._estimates(*quantities(part, 8), 8, rest)
        low, high = module._fieller(*(f.sum(axis=-1) for f in found), 0.95, rest)
        held += low <= truth <= high
        widths.append((high - low) / truth)
    assert 0.92 <= held / 400 <= 1
    if n == population:
        assert np.median(widths) < 0.9  # of 64 micro-batches alone: 4 · √(2 / 63)


@pytest.mark.parametrize("population", [400, 2000])
def test_samples_drawn_without_replacement_have_the_means_of_their_population(population):
    rng = np.random.default_rng(2)
    whole = gradients_of_regression(population, rng=rng)
    trace = whole.var(axis=0, ddof=1).sum()
    norm = (whole.mean(axis=0) ** 2).sum()
    traces, norms = [], []
    for _ in range(800):
        part = whole[rng.choice(population, 320, replace=False)]
        found = module._estimates(*quantities(part, 8), 8, 1 - 320 / population)
        traces.append(found[0][0])
        norms.append(found[1][0])
    for values, truth in ((traces, trace), (norms, norm)):
        assert np.mean(values) == pytest.approx(truth, abs=4 * np.std(values) / math.sqrt(800))


def network(batch_norm=False):
    keras.utils.set_random_seed(0)
    members = [keras.layers.Dense(6, activation="tanh", name="hidden")]
    members += [keras.layers.BatchNormalization(name="norm")] if batch_norm else []
    members += [keras.layers.Dense(3, name="output")]
    return keras.Sequential([keras.Input((4,)), *members])


X = np.random.default_rng(0).normal(size=(48, 4)).astype("float32")
Y = np.random.default_rng(1).normal(size=(48, 3)).astype("float32")


@pytest.mark.parametrize("mode", ["inference", "batch_statistics"])
def test_a_network_is_that_of_its_micro_batches_one_by_one(mode):
    model = network(batch_norm=True)
    surface = rt.LossSurface(model, X, Y, loss="mse", mode=mode)
    found = noise_scale(surface, 8, seed=3, population=48)
    order = np.random.default_rng(3).permutation(48)
    rows = []
    for i in range(0, 48, 8):
        part = order[i : i + 8]
        one = rt.LossSurface(model, X[part], Y[part], loss="mse", mode=mode)
        rows.append([keras.ops.convert_to_numpy(g) for g in one.value_and_gradient()[1]])
    places = {"hidden": (0, 1), "norm": (2, 3), "output": (4, 5)}
    each = []
    for own in places.values():
        g = np.array([np.concatenate([row[i].ravel() for i in own]) for row in rows])
        spread = 8 * ((g - g.mean(0)) ** 2).sum() / 5
        each.append((spread, (g.mean(0) ** 2).sum()))
    assert found.layers == tuple(places)
    np.testing.assert_allclose(found.by_layer, [a / b for a, b in each], rtol=1e-4)
    trace, norm = np.sum(each, axis=0)
    assert found.trace == pytest.approx(trace, rel=1e-4)
    assert found.squared_norm == pytest.approx(norm, rel=1e-4)
    assert found.value == pytest.approx(trace / norm, rel=1e-4)


def test_gradients_that_do_not_fit_are_computed_twice(monkeypatch):
    surface = rt.LossSurface(network(), X, Y, loss="mse")
    kept = noise_scale(surface, 8)
    monkeypatch.setattr(module, "_KEPT_BYTES", 0)
    again = noise_scale(surface, 8)
    assert again.value == pytest.approx(kept.value, rel=1e-6)
    assert again.interval == pytest.approx(kept.interval, rel=1e-6)


def test_without_noise_and_without_a_gradient():
    same = noise_scale(of_gradients(np.ones((6, 2), "float32")), 2)
    assert same.value == pytest.approx(0, abs=1e-6)
    assert same.interval == pytest.approx((0, 0), abs=1e-6)
    away = np.array([[1.0, 0.0], [-1.0, 0.0]] * 8, "float32")
    none = noise_scale(of_gradients(away), 1)
    assert none.value == math.inf
    assert none.squared_norm < 0
    assert none.interval[1] == math.inf
    broken = noise_scale(of_gradients(np.full((6, 2), np.nan, "float32")), 1)
    assert math.isnan(broken.value)
    assert math.isnan(broken.interval[0])


@pytest.mark.slow
def test_the_rate_over_the_batch_is_a_temperature():
    """16 times the rate at one batch size makes the noise scale at rest about 16 times as large."""
    rng = np.random.default_rng(0)
    n, d = 4096, 20
    x = rng.normal(size=(n, d)).astype("float32")
    y = (x @ rng.normal(size=d) + rng.normal(size=n)).astype("float32")[:, None]
    scales = []
    for rate in (0.02, 0.32):
        model = linear(d)
        model.compile(keras.optimizers.SGD(rate), lambda y, p: 0.5 * (y - p)[:, 0] ** 2)
        model.set_weights([np.linalg.lstsq(x, y, rcond=None)[0]])
        found = []
        for epoch in range(12):
            drawn = rng.integers(0, n, n)  # not in turn, which makes the end of an epoch special
            model.fit(x[drawn], y[drawn], batch_size=32, verbose=0)
            if epoch < 3:
                continue
            surface = rt.LossSurface(model, x, y)
            found.append(noise_scale(surface, 64, population=n))
        # Of |G|², which is what the rate changes, the mean over the epochs.
        scales.append(np.mean([f.trace for f in found]) / np.mean([f.squared_norm for f in found]))
    assert 8 < scales[0] / scales[1] < 32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"micro_batch_size": 20},
            "Expected three micro-batches or more, as their spread is measured. Received: 48 "
            "samples in 2 of 20. Pass a smaller `micro_batch_size`.",
        ),
        (
            {"micro_batch_size": 8, "population": 40},
            "Expected `population` to be at least 48, the number of samples that are used. "
            "Received: population=40",
        ),
        (
            {"micro_batch_size": 0},
            "Argument `micro_batch_size` must be a positive integer. Received: "
            "micro_batch_size=0 (of type <class 'int'>)",
        ),
        (
            {"micro_batch_size": 8, "confidence": 1.0},
            "Argument `confidence` must be a number between 0 and 1. Received: "
            "confidence=1.0 (of type <class 'float'>)",
        ),
    ],
)
def test_what_it_cannot_use_is_told(arguments, message):
    surface = rt.LossSurface(network(), X, Y, loss="mse")
    with pytest.raises(ValueError) as error:
        noise_scale(surface, **arguments)
    assert str(error.value) == message


def test_a_dataset_keeps_its_batches():
    tf = pytest.importorskip("tensorflow")
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(10)  # the last has eight
    found = noise_scale(rt.LossSurface(network(), data, loss="mse"))
    assert (found.micro_batch_size, found.micro_batches) == (10, 4)
    with pytest.raises(ValueError, match="Expected arrays, which can be cut"):
        noise_scale(rt.LossSurface(network(), data, loss="mse"), 5)
    ragged = data.concatenate(tf.data.Dataset.from_tensor_slices((X, Y)).batch(7))
    with pytest.raises(ValueError, match="Expected batches of one size"):
        noise_scale(rt.LossSurface(network(), ragged, loss="mse"))


def test_in_a_fit():
    model = network()
    model.compile("sgd", "mse")
    measure = functools.partial(noise_scale, micro_batch_size=4, population=48)
    callback = rt.callbacks.Measure({"noise_scale": measure}, X, Y)
    history = model.fit(X, Y, epochs=2, verbose=0, callbacks=[callback]).history
    assert len(history["noise_scale"]) == 2
    assert all(value > 0 for value in history["noise_scale"])
    assert "noise_scale/hidden/noise_scale" in callback.records.names()


def test_where_there_is_neither_gradient_nor_noise_nothing_is_said():
    found = noise_scale(of_gradients(np.zeros((8, 2), "float32")), 2)
    assert math.isnan(found.value)
    assert found.interval == (0.0, math.inf)
