"""The noise of random batches: closed forms, and a sample followed through the layer itself."""

import math

import keras
import numpy as np
import pytest

import keras_regtools as rt

pytestmark = pytest.mark.backends
X = np.random.default_rng(0).standard_normal((2048, 4)).astype("float32")


def network(**options):
    norm = keras.layers.BatchNormalization(name="norm", **options)
    return keras.Sequential([keras.Input((4,)), norm])


def surface_of(model, x=X):
    return rt.LossSurface(model, x, x, loss="mse")


@pytest.mark.parametrize(("n", "off"), [(8, 0.06), (32, 0.0)])
def test_the_spread_is_what_a_sample_gets_in_the_company_of_others(n, off):
    model = network()
    rng, sample = np.random.default_rng(1), X[:200]
    outputs = []
    for _ in range(100):  # each sample in a batch of its own
        company = X[rng.integers(200, len(X), (200, n - 1))]
        batch = np.concatenate([sample[:, None], company], axis=1)
        outputs.append((sample - batch.mean(1)) / np.sqrt(batch.var(1) + 1e-3))
    expected = np.sqrt(np.mean(np.var(outputs, axis=0, ddof=1)))
    found = rt.measures.normalization_noise(surface_of(model), n, draws=100)
    # For small batches a straight line is not the best forecast: the docstring's 5 %.
    doubt = 4 * np.sqrt(2) * found.stderr
    assert -doubt < found.value - expected < doubt + off * expected
    assert found.layers == ("norm",)
    assert found.spreads == pytest.approx([found.value])


def test_the_spread_is_the_closed_form_of_normal_entries():
    n = 8
    found = rt.measures.normalization_noise(surface_of(network()), n, draws=400)
    # √(8 σ²_B) is the root of a χ² of 7 degrees of freedom: E[σ_B] = √(2/8) Γ(4) / Γ(7/2).
    width = 0.5 * math.gamma(4) / math.gamma(3.5)
    assert found.value == pytest.approx(math.sqrt(1 - width**2), abs=4 * found.stderr)
    assert found.stderr < 0.01


@pytest.mark.slow
def test_few_draws_are_not_biased():
    surface = surface_of(network())
    squares = [
        rt.measures.normalization_noise(surface, 8, draws=3, seed=10 * i).value ** 2
        for i in range(60)
    ]
    width = 0.5 * math.gamma(4) / math.gamma(3.5)
    doubt = np.std(squares, ddof=1) / math.sqrt(len(squares))
    assert np.mean(squares) == pytest.approx(1 - width**2, abs=4 * doubt)
    assert doubt < 0.01


def test_a_large_epsilon_leaves_less():
    """Where ε is far above σ², x̂ is (x − μ_B) / √ε: its spread is √(σ² / (n ε))."""
    found = rt.measures.normalization_noise(surface_of(network(epsilon=1e4)), 32, draws=200)
    assert found.value == pytest.approx(math.sqrt(1 / 32 / 1e4), abs=4 * found.stderr)


def test_four_times_the_batch_has_half_the_spread():
    surface = surface_of(network())
    small, large = (
        rt.measures.normalization_noise(surface, n, draws=100, seed=s)
        for n, s in ((32, 0), (128, 500))
    )
    doubt = np.hypot(small.stderr / small.value, large.stderr / large.value)
    assert small.value / large.value == pytest.approx(2, rel=4 * doubt + 0.05)


@pytest.mark.slow
def test_the_error_is_the_spread_over_seeds():
    surface = surface_of(network())
    found = [
        rt.measures.normalization_noise(surface, 32, draws=10, seed=100 * s) for s in range(20)
    ]
    spread = np.std([f.value for f in found], ddof=1)
    assert 0.5 < np.mean([f.stderr for f in found]) / spread < 2


def test_the_dropout_has_the_variance_of_the_noise():
    model = network()
    layer = model.get_layer("norm")
    layer.gamma.assign([2.0, 1.0, 1.0, 0.5])
    layer.beta.assign([0.0, 1.0, -1.0, 3.0])
    found = rt.measures.normalization_noise(surface_of(model), 32)
    rate = found.dropout_rate
    gamma, beta = np.array([2.0, 1.0, 1.0, 0.5]), np.array([0.0, 1.0, -1.0, 3.0])
    # All channels spread alike here, so that Σγ² shares go into the noise.
    noise = np.mean(gamma**2) * found.value**2
    of_dropout = rate / (1 - rate) * np.mean(gamma**2 + beta**2)
    assert of_dropout == pytest.approx(noise, rel=0.1)


def test_a_constant_batch_has_no_noise():
    found = rt.measures.normalization_noise(surface_of(network(), np.ones((64, 4), "float32")), 8)
    assert (found.value, found.dropout_rate) == (0.0, 0.0)


def test_the_model_is_left_alone_and_each_layer_has_its_numbers():
    model = rt.regularize(rt.applications.lenet5(), batch_norm=True)
    x = np.random.default_rng(2).random((64, 32, 32, 1), "float32")
    before = [np.array(w) for w in model.get_weights()]
    surface = rt.LossSurface(model, x, np.zeros(64), loss="sparse_categorical_crossentropy")
    found = rt.measures.normalization_noise(surface, 8, draws=3)
    assert len(found.layers) == len(found.spreads) == 4
    assert set(found.scalars()) >= {f"{name}/spread" for name in found.layers}
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 1}, "Argument `batch_size` must be an integer, 2 or above. Received: "),
        ({"draws": 2}, "Argument `draws` must be an integer, 3 or above. Received: draws=2"),
        (
            {"batch_size": 2048},
            "Expected `batch_size` to be below 2048, the number of samples. Received: "
            "batch_size=2048",
        ),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError) as error:
        rt.measures.normalization_noise(surface_of(network()), **arguments)
    assert str(error.value).startswith(message)


def test_a_model_without_batch_normalization_is_refused():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)], name="plain")
    with pytest.raises(ValueError) as error:
        rt.measures.normalization_noise(surface_of(model), 8)
    assert str(error.value) == (
        "Expected a model with batch normalization. Received: the model 'plain', which has none"
    )


# The units of `gradient_flow`.


@pytest.mark.parametrize("fused", [True, False])
def test_dead_and_saturated_units_are_counted_by_layer(fused):
    def dense(units, activation, name):
        if fused:
            return [keras.layers.Dense(units, activation, name=name)]
        return [keras.layers.Dense(units, name=name), keras.layers.Activation(activation)]

    model = keras.Sequential(
        [keras.Input((4,)), *dense(5, "relu", "a"), *dense(3, "tanh", "b"), *dense(2, None, "c")]
    )
    kernel, bias, other, _, last, _ = model.get_weights()
    bias = np.array([-100.0, -100.0, 0, 0, 0])
    model.set_weights([kernel, bias, 0 * other, np.array([1.7, 1.9, -5.0]), last, np.zeros(2)])
    surface = rt.LossSurface(model, X[:32], X[:32, :2], loss="mse")
    for _ in range(2):
        flow = rt.measures.gradient_flow(surface, 0.1)
        np.testing.assert_allclose(flow.dead_shares, [0.4, np.nan, np.nan])
        np.testing.assert_allclose(flow.saturated_shares, [np.nan, 2 / 3, np.nan], rtol=1e-6)
    assert flow.scalars()["a/dead_share"] == pytest.approx(0.4)


def test_units_are_those_of_the_mode_of_the_surface():
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(4, kernel_initializer="identity", name="dense"),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
        ]
    )
    x = X[:64] - 50  # in inference all is far below zero
    for mode, share in (("inference", 1.0), ("batch_statistics", 0.0)):
        surface = rt.LossSurface(model, x, x, loss="mse", mode=mode)
        assert rt.measures.gradient_flow(surface, 0.1).dead_shares[0] == share


def test_each_branch_has_its_own_dead_units():
    inputs = keras.Input((4,))
    branches = []
    for name, bias in (("a", -100.0), ("b", 100.0)):
        kernel = keras.layers.Dense(
            3, bias_initializer=keras.initializers.Constant(bias), name=name
        )
        branches.append(kernel(inputs))
    # Both kernels come before both activations.
    outputs = keras.layers.Concatenate()([keras.layers.ReLU()(branch) for branch in branches])
    model = keras.Model(inputs, keras.layers.Dense(2, name="c")(outputs))
    surface = rt.LossSurface(model, X[:8], X[:8, :2], loss="mse")
    flow = rt.measures.gradient_flow(surface, 0.1)
    found = dict(zip(flow.layers, flow.dead_shares, strict=True))
    assert (found["a"], found["b"]) == (1, 0)
