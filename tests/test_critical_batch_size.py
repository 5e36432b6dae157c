"""The largest batch that costs nothing: branches against closed forms and numpy's descent."""

import dataclasses
import math

import keras
import matplotlib.pyplot as plt
import numpy as np
import pytest
from problems import with_all_state
from scipy import stats

import keras_regtools as rt

pytestmark = pytest.mark.backends
critical = rt.measures.critical_batch_size


def parabola(optimizer, weight=1.0):
    """The loss is the mean of (w − y)²."""
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    model.compile(optimizer, "mse")
    model.set_weights([np.array([[weight]])])
    return model


def ones(count):
    return np.ones((count, 1), "float32")


def test_without_noise_the_losses_are_those_of_descent():
    """w ← w (1 − 2 η), n times; the first that is worse is the first that is unstable."""
    model = parabola(keras.optimizers.SGD(0.02))
    found = critical(
        model, ones(400), np.zeros(400), batch_size=4, factors=(1, 2, 8, 32, 64), budget=800
    )
    assert found.budget == 768
    assert found.updates.tolist() == [192, 96, 24, 6, 3]
    np.testing.assert_allclose(found.rates, [0.02, 0.04, 0.16, 0.64, 1.28], rtol=1e-6)
    for losses in found.losses:
        wanted = (1 - 2 * found.rates) ** (2 * found.updates)
        wanted[wanted > 4] = math.inf
        np.testing.assert_allclose(losses, wanted, rtol=1e-3, atol=1e-12)
    # 2.3e-7 is no more than 1.6e-7, to a millionth of the loss at the start; 14 is.
    assert (found.value, found.worse_from) == (128.0, 256.0)


def descent(y, order, size, rate, momentum, weight, velocity):
    """Plain descent with Keras' momentum, in numpy."""
    for start in range(0, len(order), size):
        gradient = 2 * np.mean(weight - y[order[start : start + size]])
        velocity = momentum * velocity - rate * gradient
        weight += velocity
    return weight, velocity


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_with_noise_and_momentum_each_branch_is_numpys(momentum):
    """Velocities are multiplied as the rate is; the orders are whole passes."""
    rng = np.random.default_rng(0)
    y = rng.normal(0.3, 1.0, 96)
    model = parabola(keras.optimizers.SGD(0.01, momentum=momentum), weight=2.0)
    model.fit(ones(96), y, batch_size=4, shuffle=False, verbose=0)
    weight, velocity = descent(y, np.arange(96), 4, 0.01, momentum, 2.0, 0.0)
    factors = (1, 2, 6)
    found = critical(
        model, ones(96), y, batch_size=4, factors=factors, budget=240, repeats=3, seed=5
    )
    for repeat in range(3):
        chance = np.random.default_rng(5 + repeat)
        order = np.concatenate([chance.permutation(96) for _ in range(3)])[:240]
        for i, k in enumerate(factors):
            end, _ = descent(y, order, 4 * k, 0.01 * k, momentum, weight, k * velocity)
            wanted = np.mean((end - y) ** 2)
            np.testing.assert_allclose(found.losses[repeat, i], wanted, rtol=1e-4)


def test_the_interval_is_that_of_a_paired_t_test():
    y = np.random.default_rng(1).normal(0, 1.0, 256)
    model = parabola(keras.optimizers.SGD(0.1))
    found = critical(model, ones(256), y, batch_size=2, factors=(1, 4, 8), repeats=6, budget=256)
    for i in (1, 2):
        test = stats.ttest_rel(found.losses[:, i], found.losses[:, 0])
        low, high = test.confidence_interval(0.95)
        assert (found.low[i], found.high[i]) == pytest.approx((low, high))
    assert found.differences[0] == found.low[0] == found.high[0] == 0


def test_a_branch_that_diverges_is_worse():
    model = parabola(keras.optimizers.SGD(0.3), weight=1e18)
    options = {"factors": (1, 2, 4, 64), "budget": 128, "repeats": 2}
    found = critical(model, ones(128), np.zeros(128), batch_size=1, **options)
    assert found.value == 2
    assert found.worse_from == 4
    assert math.isinf(found.losses[0, 3])
    assert math.isinf(found.low[3])


def test_the_rule_is_that_of_the_optimizer_unless_given():
    y = np.zeros(64)
    options = {"batch_size": 4, "factors": (1, 4), "repeats": 2, "budget": 64}
    adam = critical(parabola(keras.optimizers.Adam(0.01)), ones(64), y, **options)
    assert adam.rule == "sqrt"
    np.testing.assert_allclose(adam.rates, [0.01, 0.02], rtol=1e-6)
    own = critical(parabola("sgd"), ones(64), y, rule=lambda k: k**0.25, **options)
    assert own.rule == "its own rule"
    np.testing.assert_allclose(own.rates, 0.01 * np.array([1, 2**0.5]), rtol=1e-6)


def test_a_schedule_stands_still_and_comes_back():
    decay = keras.optimizers.schedules.ExponentialDecay(0.04, 10, 0.5)
    model = parabola(keras.optimizers.SGD(decay))
    model.fit(ones(40), np.zeros(40), batch_size=4, verbose=0)  # the rate is .02 by now
    weight = float(model.get_weights()[0][0, 0])
    # So many sizes that TensorFlow makes one trace for all of them.
    found = critical(model, ones(64), np.zeros(64), batch_size=4, factors=(1, 2, 4, 8), budget=64)
    np.testing.assert_allclose(found.rates, [0.02, 0.04, 0.08, 0.16], rtol=1e-5)
    wanted = weight**2 * (1 - 2 * found.rates) ** (2 * found.updates)
    for losses in found.losses:
        np.testing.assert_allclose(losses, wanted, rtol=1e-4)
    model.fit(ones(40), np.zeros(40), batch_size=4, verbose=0)
    rates = [0.04 * 0.5 ** (n / 10) for n in range(20)]
    end = np.prod([1 - 2 * rate for rate in rates])
    assert float(model.get_weights()[0][0, 0]) == pytest.approx(end, rel=1e-4)


def test_accumulated_batches_count_as_one():
    optimizer = keras.optimizers.SGD(0.02, gradient_accumulation_steps=4)
    found = critical(
        parabola(optimizer), ones(256), np.zeros(256), batch_size=4, factors=(1, 4), budget=256
    )
    assert found.batch_sizes.tolist() == [16, 64]
    wanted = (1 - 2 * found.rates) ** (2 * found.updates)
    np.testing.assert_allclose(found.losses[0], wanted, rtol=1e-3)


def test_a_network_with_all_kinds_of_state_is_left_as_it_was():
    model = with_all_state(keras.optimizers.Adam(0.01))
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(128, 6)), rng.integers(0, 3, 128)
    model.fit(x, y, verbose=0)
    before = [np.array(v) for v in map(keras.ops.convert_to_numpy, variables(model))]
    found = critical(model, x, y, batch_size=8, factors=(1, 2), repeats=3, budget=64)
    again = critical(model, x, y, batch_size=8, factors=(1, 2), repeats=3, budget=64)
    assert found == again
    for variable, value in zip(variables(model), before, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), value)


def variables(model):
    return [*model.variables, *model.optimizer.variables]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"factors": (2, 4)},
            "Argument `factors` must be integers that grow from 1. Received: factors=[2, 4]",
        ),
        (
            {"rule": "adam"},
            "Argument `rule` must be one of 'linear', 'sqrt', or a function. Received: rule='adam'",
        ),
        (
            {"factors": (1, 64)},
            "Expected at least 256 samples, those of the largest batch. Received: 64. Pass smaller "
            "`factors`.",
        ),
        (
            {"budget": 10},
            "Expected a `budget` of at least 16 samples, those of the largest batch. Received: "
            "budget=10",
        ),
        (
            {"repeats": 1},
            "Argument `repeats` must be an integer, 2 or above. Received: repeats=1 (of type "
            "<class 'int'>)",
        ),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    arguments = {"batch_size": 4, "factors": (1, 4), **arguments}
    with pytest.raises(ValueError) as error:
        critical(parabola("sgd"), ones(64), np.zeros(64), **arguments)
    assert str(error.value) == message


def test_a_dataset_is_refused():
    class Data(keras.utils.PyDataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return ones(4), np.zeros(4)

    with pytest.raises(ValueError, match="Expected arrays, which can be cut"):
        critical(parabola("sgd"), Data())


def test_the_picture_shows_the_intervals_and_the_noise_scale_beside_them():
    y = np.random.default_rng(1).normal(0, 1.0, 256)
    model = parabola(keras.optimizers.SGD(0.1))
    found = critical(model, ones(256), y, batch_size=2, factors=(1, 4, 8), repeats=3, budget=256)
    noise = rt.measures.gradient_noise_scale(rt.LossSurface(model, ones(256), y), 4)
    ax = rt.plots.critical_batch_size(found, noise)
    points = ax.containers[0][0]
    np.testing.assert_allclose(points.get_xdata(), found.batch_sizes)
    np.testing.assert_allclose(points.get_ydata(), found.differences)
    told = [text.get_text() for text in ax.get_legend().get_texts()]
    assert f"critical batch size: {found.value:g}" in " ".join(told)
    assert f"noise scale: {noise.value:.3g}" in told
    low, high = noise.interval
    agree = low < found.worse_from and high >= found.value
    assert ax.get_title().endswith("the noise scale agrees" if agree else "disagrees")
    for interval, said in (((1e6, 1e7), "disagrees"), ((found.value, 1e7), "agrees")):
        other = dataclasses.replace(noise, interval=interval)
        known = dataclasses.replace(found, worse_from=2 * found.value)
        assert rt.plots.critical_batch_size(known, other).get_title().endswith(f"scale {said}")
    plt.close("all")


@pytest.mark.slow
def test_a_branch_that_explodes_without_end_is_worse_whatever_its_spread():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(128, 6)).astype("float32")
    y = x[:, :1] * 2 + rng.normal(size=(128, 1))
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1, use_bias=False)])
    model.compile(keras.optimizers.SGD(0.08), "mse")
    model.set_weights([np.zeros((6, 1))])
    found = critical(model, x, y, batch_size=4, factors=(1, 2, 16))
    assert math.isinf(found.losses[0, 2])
    assert (found.value, found.worse_from) == (8, 64)


def test_what_cannot_be_compared_is_refused():
    x = ones(64)
    x[3] = np.nan
    with pytest.raises(ValueError, match="Expected a finite loss at the weights as they are"):
        critical(parabola("sgd"), x, np.zeros(64), batch_size=4, factors=(1, 2))
    message = "Expected a first branch that trains, with batches of 4 at the rate 10"
    with pytest.raises(ValueError, match=message):
        critical(
            parabola(keras.optimizers.SGD(10.0)), ones(64), np.zeros(64), batch_size=4,
            factors=np.array([1, 2]), budget=64,
        )  # fmt: skip
