"""`find_learning_rate`: what it finds on losses in closed form, and that it leaves no trace."""

import math
import random

import keras
import numpy as np
import pytest
from keras import ops
from problems import numbers, rows

import keras_regtools as rt

pytestmark = [
    pytest.mark.backends,
    # Of few steps on few samples nothing is to be suggested.
    pytest.mark.filterwarnings("ignore:The loss does not fall at any rate"),
]
RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 4)).astype("float32")
Y = RNG.integers(0, 3, 60)


def quadratic(curvatures, optimizer, start=1.0):
    """½ Σ h w²: unstable under plain descent above the rate 2 / max h."""
    h = ops.convert_to_tensor(np.array(curvatures, "float32"))
    width = len(curvatures)
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(width, use_bias=False)])
    model.compile(optimizer, lambda y, w: 0.5 * ops.sum(h * ops.square(w), axis=-1))
    model.set_weights([np.full((1, width), start, "float32")])
    return model


ONES = np.ones((8, 1), "float32")


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_the_edge_is_that_of_the_curvature(momentum):
    model = quadratic([1.0, 10.0], keras.optimizers.SGD(0.1, momentum))
    found = rt.find_learning_rate(model, ONES, ONES, batch_size=8, orders=1)
    assert found.edge == pytest.approx(2 * (1 + momentum) / 10, rel=1e-3)


def test_the_edge_of_nesterov_is_where_keras_diverges():
    """w ← w + m v − η g with v ← m v − η g: unstable above 2 (1 + m) / ((1 + 2 m) λ)."""
    optimizer = keras.optimizers.SGD(0.1, 0.5, nesterov=True)
    found = rt.find_learning_rate(quadratic([10.0], optimizer), ONES, ONES, batch_size=8, orders=1)
    assert found.edge == pytest.approx(0.15, rel=1e-3)
    for factor, grows in ((0.98, False), (1.02, True)):
        w, v = 1.0, 0.0
        for _ in range(2000):
            g = 10 * w
            v = 0.5 * v - factor * found.edge * g
            w = w + 0.5 * v - factor * found.edge * g
        assert (abs(w) > 1) == grows


@pytest.mark.parametrize("seed", rows(range(4), 0))
@pytest.mark.parametrize("size", [1, 4])
def test_the_noise_of_small_batches_is_no_divergence(size, seed):
    model = network(keras.optimizers.SGD(0.1))
    found = rt.find_learning_rate(
        model, X, Y, batch_size=size, seed=seed, edge=False, span=(1e-5, 3)
    )
    known = np.isfinite(found.losses).sum(axis=1)
    assert known.min() > 50
    assert 1e-5 < found.valley < 3


def test_a_rate_that_is_a_function_and_a_loss_that_does_not_fall():
    model = quadratic([1.0], keras.optimizers.SGD(lambda: 0.1))
    rate = model.optimizer._learning_rate
    rt.find_learning_rate(model, ONES, ONES, batch_size=8, orders=1)
    assert model.optimizer._learning_rate is rate
    flat = quadratic([1.0], keras.optimizers.SGD(0.1), start=0.0)
    with pytest.warns(UserWarning, match="The loss does not fall at any rate between"):
        found = rt.find_learning_rate(flat, ONES, ONES, batch_size=8, orders=1, span=(1e-5, 0.1))
    assert math.isnan(found.valley)
    rt.plots.learning_rate_range(found)


def test_without_a_second_derivative_there_is_no_edge(monkeypatch):
    def fails(*args, **kwargs):
        raise ValueError("Expected finite derivatives")

    monkeypatch.setattr("keras_regtools.trial.learning_rate.hessian_eigenvalues", fails)
    model = quadratic([1.0], keras.optimizers.SGD(0.1))
    with pytest.warns(UserWarning, match="The edge of stability was not measured: Expected"):
        found = rt.find_learning_rate(model, ONES, ONES, batch_size=8, orders=1)
    assert math.isnan(found.edge)
    assert found.valley > 0


def test_within_a_fit_the_fit_goes_on():
    class Look(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            rt.find_learning_rate(self.model, X, Y, steps=12, orders=1, edge=False)

    twins = [network(keras.optimizers.SGD(0.1, momentum=0.9)) for _ in range(2)]
    for model, callbacks in zip(twins, ([Look()], []), strict=True):
        model.fit(X, Y, batch_size=20, epochs=3, verbose=0, shuffle=False, callbacks=callbacks)
    if keras.backend.backend() != "torch":
        same(everything(twins[0]), everything(twins[1]), named=False)


@pytest.mark.skipif(
    keras.backend.backend() == "torch", reason="Keras itself cannot train this there"
)
def test_a_batch_size_that_the_model_fixes():
    inputs = keras.Input(batch_shape=(12, 5, 4))
    layer = keras.layers.GRU(3, stateful=True)
    model = keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(layer(inputs)))
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    x = RNG.normal(size=(60, 5, 4)).astype("float32")
    before = np.array(numbers(layer.states)[0])
    rt.find_learning_rate(model, x, Y, batch_size=12, steps=12, orders=1, edge=False)
    np.testing.assert_array_equal(numbers(layer.states)[0], before)


def test_a_quadratic_by_hand():
    """Every batch is the same: w ← w (1 − η), and the sweep ends at four times the lowest loss."""
    model = quadratic([1.0], keras.optimizers.SGD(0.1))
    found = rt.find_learning_rate(
        model, ONES, ONES, batch_size=8, span=(1e-4, 1e4), steps=40, orders=2
    )
    rates = np.geomspace(1e-4, 1e4, 40)
    np.testing.assert_allclose(found.rates, rates)
    w, expected = 1.0, []
    for rate in rates:
        expected.append(0.5 * w**2)
        w *= 1 - rate
    count = int(np.isfinite(found.losses[0]).sum())
    assert 20 < count < 40
    np.testing.assert_allclose(found.losses[0, :count], expected[:count], rtol=1e-3, atol=1e-12)
    np.testing.assert_array_equal(found.losses[0], found.losses[1])
    assert found.diverged == pytest.approx(rates[count - 1])
    lowest = int(np.nanargmin(found.smoothed))
    assert found.tenth == pytest.approx(rates[lowest] / 10)
    assert 0.01 < found.valley < found.tenth * 10
    assert found.value == found.valley
    curve = found.smoothed[: lowest + 1]
    steepest = int(np.argmin(np.gradient(curve, np.log(rates[: lowest + 1]))))
    assert abs(int(np.argmin(np.abs(rates - found.steepest))) - steepest) <= 1


def network(optimizer, **settings):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(8, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.3),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"], **settings)
    return model


OPTIMIZERS = {
    "momentum": lambda: keras.optimizers.SGD(0.05, momentum=0.9),
    "adam": lambda: keras.optimizers.Adam(0.01),
    "schedule": lambda: keras.optimizers.SGD(
        keras.optimizers.schedules.ExponentialDecay(0.05, 10, 0.9), momentum=0.9
    ),
    "accumulated": lambda: keras.optimizers.Adam(0.01, gradient_accumulation_steps=2),
    "scaled": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.05)),
}


def everything(model):
    found = [*model.variables, *model.optimizer.variables, *model.metrics_variables]
    return [v.path for v in found], [np.array(v) for v in numbers(found)]


def generators():
    state = np.random.get_state()
    return random.getstate(), state[1].tolist(), state[2]


def same(a, b, named=True):
    assert not named or a[0] == b[0]
    for name, x, y in zip(a[0], a[1], b[1], strict=True):
        np.testing.assert_array_equal(x, y, err_msg=name)


@pytest.mark.parametrize("name", rows(OPTIMIZERS, "schedule", "accumulated"))
def test_it_leaves_no_trace(name):
    steps = 1 if keras.backend.backend() == "torch" else 4
    trained, other = (network(OPTIMIZERS[name](), steps_per_execution=steps) for _ in range(2))
    for model in (trained, other):
        model.fit(X, Y, batch_size=10, epochs=2, verbose=0, shuffle=False)
    before, drawn = everything(trained), generators()
    found = rt.find_learning_rate(trained, X, Y, batch_size=10, steps=12, orders=2)
    assert found.losses.shape == (2, 12)
    same(everything(trained), before)
    assert generators() == drawn
    assert trained.steps_per_execution == steps
    for model in (trained, other):  # and trains on as if nothing had been
        model.fit(X, Y, batch_size=10, epochs=2, verbose=0, shuffle=False)
    if keras.backend.backend() != "torch":  # where dropout draws from a global generator
        same(everything(trained), everything(other), named=False)
    if name == "schedule":
        assert isinstance(
            trained.optimizer._learning_rate, keras.optimizers.schedules.ExponentialDecay
        )


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_it_leaves_no_trace_after_an_interrupt(error, monkeypatch):
    model = network(keras.optimizers.Adam(0.01))
    model.fit(X, Y, batch_size=10, verbose=0)
    before, drawn, calls = everything(model), generators(), []
    own = type(model).train_on_batch

    def cut(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 7:
            raise error
        return own(self, *args, **kwargs)

    monkeypatch.setattr(type(model), "train_on_batch", cut)
    with pytest.raises(error):
        rt.find_learning_rate(model, X, Y, batch_size=10, steps=12)
    same(everything(model), before)
    assert generators() == drawn


def test_generators_that_the_data_draw_from_are_given_back():
    class Drawing(keras.utils.PyDataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            noise = np.random.rand() + random.random()
            return X[:10] + np.float32(noise), Y[:10]

    model, before = network("adam"), generators()
    rt.find_learning_rate(model, Drawing(), steps=12, orders=1)
    assert generators() == before


@pytest.mark.slow
def test_a_schedule_is_swept_like_a_number():
    rate = keras.optimizers.schedules.ExponentialDecay(0.05, 10, 0.9)
    losses = []
    for given in (0.05, rate):
        model = quadratic([1.0, 3.0], keras.optimizers.SGD(given))
        model.fit(ONES, np.ones((8, 2)), batch_size=2, verbose=0)
        model.set_weights([np.ones((1, 2), "float32")])
        found = rt.find_learning_rate(model, ONES, np.ones((8, 2)), steps=20, orders=1)
        losses.append(found.losses)
    np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.mark.slow
def test_several_batch_sizes_and_a_picture():
    import matplotlib

    matplotlib.use("Agg")
    model = network(keras.optimizers.SGD(0.1))
    found = rt.find_learning_rate(model, X, Y, batch_size=[5, 20], steps=15, orders=2)
    assert list(found) == [5, 20]
    assert found[5].edge == found[20].edge > 0
    assert found[5].batch_size == 5
    ax = rt.plots.learning_rate_range(found)
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels[:2] == ["batch size 5", "batch size 20"]
    assert labels[-1].startswith("edge of stability: ")
    assert ax.get_xscale() == "log"
    alone = rt.plots.learning_rate_range(found[5])
    line = alone.get_lines()[0]
    np.testing.assert_array_equal(line.get_xdata(), found[5].rates[: len(line.get_xdata())])
    for axes in (ax, alone):
        assert axes.get_title() == "Learning rate range test"
        axes.figure.canvas.draw()
    import matplotlib.pyplot as plt

    plt.close("all")


def test_a_dataset_and_other_optimizers():
    tf = pytest.importorskip("tensorflow")
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(12)
    model = network("adam")
    found = rt.find_learning_rate(model, data, steps=12, orders=1)
    assert math.isnan(found.edge)
    assert np.isfinite(found.losses).any()
    assert found.batch_size is None
    with pytest.raises(ValueError, match="Expected arrays, which can be cut"):
        rt.find_learning_rate(model, data, batch_size=[4, 8])
    with pytest.raises(ValueError, match="a dict of them"):
        rt.plots.learning_rate_range({})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 9}, "Argument `steps` must be an integer, 10 or above"),
        ({"span": (1.0, 0.1)}, "Argument `span` must be two positive finite numbers, the smaller"),
        ({"batch_size": 0}, "Argument `batch_size` must be a positive integer"),
    ],
)
def test_bad_input_is_told(arguments, message):
    model = network("sgd")
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        rt.find_learning_rate(model, X, Y, **arguments)
    with pytest.raises(ValueError, match="Expected losses that are finite for the smallest rates"):
        rt.find_learning_rate(quadratic([1.0], "sgd"), ONES * np.nan, ONES)
    with pytest.raises(ValueError, match="compiled"):
        rt.find_learning_rate(keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]), X, Y)
