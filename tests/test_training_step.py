"""Measures at a training step, against closed forms and numpy."""

import math

import keras
import numpy as np
import problems
import pytest
from keras import layers, ops

import keras_regtools as rt
from keras_regtools.measures import gradient_flow, gradient_smoothness, internal_covariate_shift

pytestmark = pytest.mark.backends
RTOL = 1e-9 if problems.HAS_FLOAT64 else 1e-4
H = np.array([1.0, 10.0])


def bowl(at=(1.0, 1.0), **arguments):
    return problems.function_surface(
        lambda w: 0.5 * ops.sum(problems.constant(H, w) * ops.square(w)), at, **arguments
    )


def product(*weights, loss=lambda y, z: ops.square(z - y) / 2):
    """½ (w_n … w_1 − 1)², a layer for each weight."""
    chain = [layers.Dense(1, use_bias=False, name=f"layer{i}") for i in range(1, len(weights) + 1)]
    model = keras.Sequential([keras.Input((1,)), *chain])
    model.compile(keras.optimizers.SGD(0.25), loss)
    model.set_weights([np.array([[w]]) for w in weights])
    return rt.LossSurface(model, np.ones((2, 1)), np.ones((2, 1)))


# --- along the gradient ---------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [1e-3, 0.1])
def test_a_quadratic_has_one_smoothness_for_every_step(rate):
    with problems.float64():
        found = gradient_smoothness(bowl(), rate)
    g = H * 1.0
    assert found.value == pytest.approx(9.950869, rel=max(RTOL, 1e-7))
    assert found.value == pytest.approx(np.linalg.norm(H * g) / np.linalg.norm(g), rel=RTOL)
    steps = rate * np.linspace(0.5, 4, 8)
    np.testing.assert_allclose(found.steps, steps, rtol=1e-12)
    np.testing.assert_allclose(found.distances, steps * np.linalg.norm(H * g), rtol=1e-4)
    losses = [0.5 * np.sum(H * (1 - s * g) ** 2) for s in steps]
    np.testing.assert_allclose(found.losses, losses, rtol=1e-4)
    assert found.loss_variation == pytest.approx(max(losses) - min(losses), rel=1e-3)
    assert found.gradient_predictiveness == pytest.approx(
        (steps[-1] - steps[0]) * np.linalg.norm(H * g), rel=1e-3
    )
    assert (found.loss_lowest, found.loss_highest) == (min(found.losses), max(found.losses))
    assert (found.distance_lowest, found.distance_highest) == tuple(found.distances[[0, -1]])
    assert found.gradient_norm == pytest.approx(np.linalg.norm(g), rel=1e-6)
    assert found.evaluations == 9
    assert found.finite


def test_the_steps_are_those_that_are_asked_for():
    found = gradient_smoothness(bowl(), 0.01, span=(0.01, 30), points=3)
    np.testing.assert_allclose(found.steps, [1e-4, 0.15005, 0.3], rtol=1e-9)


def test_without_a_gradient_there_is_no_smoothness():
    found = gradient_smoothness(bowl((0.0, 0.0)), 0.1)
    assert math.isnan(found.value)
    assert found.loss_variation == found.gradient_predictiveness == 0
    assert found.finite


def test_steps_into_what_is_not_finite_do_not_count():
    surface = problems.function_surface(lambda w: -ops.sum(ops.log(w)), (1.0,))  # g = −1
    found = gradient_smoothness(surface, 1.0)
    assert found.finite
    away = problems.function_surface(lambda w: ops.sum(ops.log(w)), (1.0,))  # g = 1: towards 0
    found = gradient_smoothness(away, 0.5)  # steps of 0.25, 0.5 … 2
    assert not found.finite
    assert np.isfinite(found.value)
    assert found.loss_lowest == pytest.approx(np.log(0.25), rel=1e-4)


# --- internal covariate shift ---------------------------------------------------------------------


def test_the_shift_of_two_layers_is_the_one_worked_out():
    with problems.float64():
        found = internal_covariate_shift(product(1.0, 2.0), 0.1)
    np.testing.assert_allclose(found.distances, [0, 0.52], rtol=RTOL)
    np.testing.assert_allclose(found.gradient_norms, [2, 1], rtol=RTOL)
    assert found.value == pytest.approx(0.52, rel=RTOL)
    assert found.layers == ("layer1", "layer2")
    assert found.evaluations == 2
    assert found.scalars()["layer2/distance"] == pytest.approx(0.52, rel=1e-5)


def test_the_shift_of_three_layers_follows_the_steps_of_all_before():
    w, rate = np.array([1.0, 2.0, 0.7]), 0.05

    def gradient(w):
        return (np.prod(w) - 1) * np.prod(w) / w

    g, expected = gradient(w), [0.0]
    for i in (1, 2):
        moved = w.copy()
        moved[:i] -= rate * g[:i]
        expected.append(abs(gradient(moved)[i] - g[i]))
    with problems.float64():
        found = internal_covariate_shift(product(*w), rate)
    np.testing.assert_allclose(found.distances, expected, rtol=1e-3 * RTOL**0.25, atol=1e-6)
    assert found.value == pytest.approx(np.mean(expected[1:]), rel=1e-3)
    np.testing.assert_allclose(found.cosines, 1, rtol=1e-5)


def test_a_gradient_that_turns_round_has_a_cosine_of_minus_one():
    # After its step w₁ is so small that the product is below 1: the sign of g₂ changes.
    found = internal_covariate_shift(product(1.0, 2.0), 0.4)  # w₁ → 0.2, g₂ → 0.2 (0.4 − 1)
    assert found.cosines[1] == pytest.approx(-1, rel=1e-5)
    assert found.distances[1] == pytest.approx(1.12, rel=1e-5)


def test_a_single_layer_has_no_shift():
    found = internal_covariate_shift(product(3.0), 0.1)
    assert found.distances.tolist() == [0]
    assert math.isnan(found.value)


# --- gradient flow --------------------------------------------------------------------------------


def test_the_norms_and_ratios_of_each_layer():
    found = gradient_flow(product(1.0, 2.0, 0.5))  # r = 0 … the product is 1: no gradient
    assert found.gradient_norms.tolist() == [0, 0, 0]
    found = gradient_flow(product(1.0, 2.0, 2.0))
    np.testing.assert_allclose(found.gradient_norms, [12, 6, 6], rtol=1e-6)
    np.testing.assert_allclose(found.weight_norms, [1, 2, 2], rtol=1e-6)
    np.testing.assert_allclose(found.ratios, [12, 3, 3], rtol=1e-6)
    np.testing.assert_allclose(found.update_ratios, [3, 0.75, 0.75], rtol=1e-6)  # SGD(0.25)
    assert found.value == pytest.approx(2, rel=1e-6)
    assert (found.verdict, found.begins_at) == ("healthy", None)
    assert found.scalars()["layer1/update_ratio"] == pytest.approx(3, rel=1e-6)
    assert gradient_flow(product(1.0, 2.0), 0.5).learning_rate == 0.5


@pytest.mark.parametrize(
    ("weights", "verdict", "begins_at"),
    [
        ((1.0, 1.0, 1.0, 1e-4), "vanishing", "layer3"),
        ((1.0, 0.05, 0.01, 1e-4), "vanishing", "layer1"),  # gradients as 1, 20, 100, 10,000
        ((1e-4, 1.0, 1.0, 1.0), "exploding", "layer1"),
        ((1.0, 1e-4, 1e-4, 1.0), "exploding", "layer3"),
        ((1.0, 0.1, 0.01, 1e-2), "healthy", None),
        ((math.nan, 1.0, 1.0, 1.0), "not finite", "layer4"),
    ],
)
def test_the_verdict_names_the_layer_where_it_begins(weights, verdict, begins_at):
    found = gradient_flow(product(*weights))
    assert (found.verdict, found.begins_at) == (verdict, begins_at)


def test_a_deep_sigmoid_net_vanishes_and_with_batch_normalization_it_does_not():
    x = np.random.default_rng(0).standard_normal((64, 16))
    verdicts = []
    for batch_norm in (False, True):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((16,))])
        for _ in range(8):
            model.add(layers.Dense(16))
            if batch_norm:
                model.add(layers.BatchNormalization())
            model.add(layers.Activation("sigmoid"))
        model.add(layers.Dense(1))
        model.compile("sgd", "mse")
        surface = rt.LossSurface(model, x, x[:, :1], mode="batch_statistics")
        verdicts.append(gradient_flow(surface).verdict)
    assert verdicts == ["vanishing", "healthy"]


def test_a_dead_network_vanishes_at_the_layer_that_is_dead():
    dead = layers.Dense(3, "relu", bias_initializer=keras.initializers.Constant(-100), name="dead")
    model = keras.Sequential(
        [keras.Input((2,)), layers.Dense(3, name="first"), dead, layers.Dense(1, name="last")]
    )
    found = gradient_flow(rt.LossSurface(model, np.ones((4, 2)), np.ones((4, 1)), loss="mse"))
    # Nothing of the loss reaches the kernels, the last one's neither: its inputs are zero.
    assert found.gradient_norms[:2].tolist() == [0, 0]
    assert (found.verdict, found.begins_at) == ("vanishing", "last")
    assert found.dead_shares[1] == 1


def test_without_an_optimizer_there_is_no_update_ratio():
    model = keras.Sequential([keras.Input((1,)), layers.Dense(1)])
    found = gradient_flow(rt.LossSurface(model, np.ones((2, 1)), np.ones((2, 1)), loss="mse"))
    assert math.isnan(found.learning_rate)
    assert np.all(np.isnan(found.update_ratios))


def test_weights_that_two_layers_share_belong_to_the_first():
    shared = layers.Dense(2, name="shared")
    inner = keras.Sequential([keras.Input((2,)), layers.Dense(2, name="inside")], name="inner")
    inputs = keras.Input((2,))
    model = keras.Model(inputs, layers.Dense(1, name="last")(shared(inner(shared(inputs)))))
    surface = rt.LossSurface(model, np.ones((2, 2)), np.ones((2, 1)), loss="mse")
    assert sorted(gradient_flow(surface).layers) == ["inside", "last", "shared"]


def test_layers_of_different_width_are_compared_by_the_mean_of_their_squares():
    model = keras.Sequential(
        [keras.Input((2,)), layers.Dense(5, use_bias=False), layers.Dense(1, use_bias=False)]
    )
    surface = rt.LossSurface(model, np.ones((3, 2)), np.ones((3, 1)), loss="mse")
    first, last = (ops.convert_to_numpy(g) for g in surface.value_and_gradient()[1])
    expected = np.sqrt(np.mean(first**2) / np.mean(last**2))
    assert gradient_flow(surface).value == pytest.approx(expected, rel=1e-5)


class Transposed(layers.Layer):
    """The kernel of another layer, used again."""

    def __init__(self, other):
        super().__init__(name="transposed")
        self.other = other

    def call(self, inputs):
        return ops.matmul(inputs, ops.transpose(self.other.kernel))


def test_a_kernel_that_another_layer_uses_again_counts_once():
    encoder = layers.Dense(2, use_bias=False, name="encoder")
    inputs = keras.Input((3,))
    model = keras.Model(inputs, Transposed(encoder)(encoder(inputs)))
    surface = rt.LossSurface(model, np.ones((2, 3)), np.ones((2, 3)), loss="mse")
    assert gradient_flow(surface).layers == ("encoder",)


# --- bad input ------------------------------------------------------------------------------------

POSITIVE = "Argument `{0}` must be a positive finite number. Received: {0}={1} (of type {2})"
SPAN = "Argument `span` must be two positive finite numbers, the smaller one first. Received: span="
BAD = {
    "rate": (gradient_smoothness, {"learning_rate": 0}, POSITIVE.format("learning_rate", 0, int)),
    "span": (
        gradient_smoothness,
        {"learning_rate": 0.1, "span": (4, 0.5)},
        f"{SPAN}(4, 0.5)",
    ),
    "one number": (gradient_smoothness, {"learning_rate": 0.1, "span": 4}, f"{SPAN}4"),
    "points": (
        gradient_smoothness,
        {"learning_rate": 0.1, "points": 1},
        "Argument `points` must be an integer, 2 or above. "
        "Received: points=1 (of type <class 'int'>)",
    ),
    "rate of the shift": (
        internal_covariate_shift,
        {"learning_rate": -1},
        POSITIVE.format("learning_rate", -1, int),
    ),
    "factor": (gradient_flow, {"factor": 0}, POSITIVE.format("factor", 0, int)),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    measure, arguments, message = BAD[name]
    with pytest.raises(ValueError) as caught:
        measure(product(1.0, 2.0), **arguments)
    assert str(caught.value) == message


def test_weights_without_a_kernel_have_no_flow():
    with pytest.raises(ValueError) as caught:
        gradient_flow(bowl())
    assert str(caught.value) == (
        "Expected layers with a kernel, of two axes or more. Received: weights of the shapes [(2,)]"
    )


def test_a_model_in_place_of_a_surface_is_refused():
    model = problems.function_model(lambda w: ops.sum(w), (1.0,))
    with pytest.raises(TypeError, match=r"^Expected a `LossSurface`"):
        gradient_flow(model)
