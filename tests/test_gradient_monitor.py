"""The gradients that training saw: against gradients taken by hand and what the weights did."""

import gc
import warnings

import keras
import numpy as np
import pytest
from problems import rows

from keras_regtools.backend import value_and_grad
from keras_regtools.callbacks import GradientMonitor

pytestmark = pytest.mark.backends
BACKEND = keras.backend.backend()
JIT = [False] if BACKEND == "torch" else [False, True]
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(16, 3)).astype("float32"), RNG.normal(size=(16, 2)).astype("float32")


def network(optimizer, jit_compile=False, **options):
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(
                4, "tanh", kernel_initializer=keras.initializers.GlorotUniform(1), name="first"
            ),
            keras.layers.Dense(
                2, kernel_initializer=keras.initializers.GlorotUniform(2), name="second"
            ),
        ]
    )
    model.compile(optimizer, "mse", jit_compile=jit_compile, **options)
    return model


def norms_of(model, x, y):
    """‖g‖ of both layers, and both gradients, by another way."""
    params = [keras.ops.convert_to_tensor(w) for w in model.get_weights()]

    def loss(params, x, y):
        outputs, _ = model.stateless_call(params, model.non_trainable_variables, x)
        return keras.ops.mean(keras.ops.square(outputs - y))

    _, gradient = value_and_grad(loss)(params, *map(keras.ops.convert_to_tensor, (x, y)))
    gradient = [np.array(keras.ops.convert_to_numpy(g)) for g in gradient]
    return gradient, [norm(gradient[:2]), norm(gradient[2:])]


def norm(arrays):
    return np.sqrt(sum((a.astype("float64") ** 2).sum() for a in arrays))


def read(monitor, quantity):
    names = [f"gradients/{layer}/{quantity}" for layer in ("first", "second")]
    return [monitor.records.last(name) for name in names]


@pytest.mark.parametrize("jit_compile", rows(JIT, JIT[0]))
def test_the_norms_are_those_of_the_gradients_of_each_step(jit_compile):
    model = network(keras.optimizers.SGD(0.1), jit_compile)
    expected, before = [], []
    weights = model.get_weights()
    for i in range(2):
        _, norms = norms_of(model, X[8 * i :][:8], Y[8 * i :][:8])
        expected.append(norms)
        before.append(model.get_weights())
        model.train_on_batch(X[8 * i :][:8], Y[8 * i :][:8])
    after = model.get_weights()
    model = network(keras.optimizers.SGD(0.1), jit_compile)
    model.set_weights(weights)
    monitor = GradientMonitor(every=1)
    history = model.fit(X, Y, batch_size=8, shuffle=False, callbacks=[monitor], verbose=0)
    for trained, plain in zip(model.get_weights(), after, strict=True):
        np.testing.assert_allclose(trained, plain, rtol=1e-6 * jit_compile, atol=1e-7 * jit_compile)
    np.testing.assert_allclose(read(monitor, "gradient_norm"), np.mean(expected, axis=0), rtol=1e-5)
    np.testing.assert_allclose(
        read(monitor, "largest_gradient_norm"), np.max(expected, axis=0), rtol=1e-5
    )
    np.testing.assert_allclose(read(monitor, "clipped_norm"), read(monitor, "gradient_norm"))
    sizes = [[norm(w[:2]), norm(w[2:])] for w in before]
    np.testing.assert_allclose(read(monitor, "weight_norm"), np.mean(sizes, axis=0), rtol=1e-5)
    # Plain gradient descent moves by the rate times the gradient.
    np.testing.assert_allclose(
        read(monitor, "update_norm"), 0.1 * np.mean(expected, axis=0), rtol=1e-3
    )
    ratios = 0.1 * np.array(expected) / np.array(sizes)
    np.testing.assert_allclose(read(monitor, "update_ratio"), ratios.mean(0), rtol=1e-3)
    total = np.sqrt(np.sum(np.square(np.mean(expected, axis=0))))
    assert history.history["gradients/norm"] == pytest.approx([total], rel=1e-5)


@pytest.mark.parametrize("clip", [{"clipnorm": 0.05}, {"global_clipnorm": 0.2}, {"clipvalue": 0.1}])
def test_after_clipping_is_what_the_optimizer_applied(clip):
    model = network(keras.optimizers.SGD(1.0, **clip))
    _, expected = norms_of(model, X, Y)
    before = model.get_weights()
    monitor = GradientMonitor()
    model.fit(X, Y, batch_size=16, callbacks=[monitor], verbose=0)
    moved = [a - b for a, b in zip(model.get_weights(), before, strict=True)]
    applied = [norm(moved[:2]), norm(moved[2:])]
    np.testing.assert_allclose(read(monitor, "gradient_norm"), expected, rtol=1e-5)
    np.testing.assert_allclose(read(monitor, "clipped_norm"), applied, rtol=1e-4)
    np.testing.assert_allclose(read(monitor, "update_norm"), applied, rtol=1e-4)
    assert (np.array(applied) < 0.9 * np.array(expected)).any()


def test_accumulated_gradients_are_their_average_once_an_update():
    model = network(keras.optimizers.SGD(0.1, gradient_accumulation_steps=2))
    _, expected = norms_of(model, X, Y)  # the mean of two halves is that of the whole
    monitor = GradientMonitor(every=1)
    model.fit(X, Y, batch_size=8, shuffle=False, callbacks=[monitor], verbose=0)
    np.testing.assert_allclose(read(monitor, "gradient_norm"), expected, rtol=1e-5)
    np.testing.assert_allclose(read(monitor, "update_norm"), 0.1 * np.array(expected), rtol=1e-3)


class Unused(keras.layers.Dense):
    """A dense layer with a weight that nothing comes from."""

    def build(self, input_shape):
        self.unused = self.add_weight(shape=(3,), name="unused")
        super().build(input_shape)


def test_a_variable_without_a_gradient_is_left_out_of_what_accumulates():
    model = keras.Sequential([keras.Input((3,)), Unused(2, name="first")])
    plain = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    plain.set_weights(model.get_weights()[1:])
    _, expected = norms_of(plain, X, Y)
    model.compile(
        keras.optimizers.SGD(0.1, gradient_accumulation_steps=2), "mse", jit_compile=False
    )
    monitor = GradientMonitor(every=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras says that there is no gradient
        model.fit(X, Y, batch_size=8, shuffle=False, callbacks=[monitor], verbose=0)
    found = monitor.records.last("gradients/first/gradient_norm")
    assert found == pytest.approx(expected[0], rel=1e-5)


@pytest.mark.skipif(BACKEND == "jax", reason="the fit of Keras refuses it there")
def test_layers_that_are_frozen_between_two_fits_are_left_out():
    model = network(keras.optimizers.SGD(0.1, gradient_accumulation_steps=2))
    model.fit(X, Y, batch_size=8, shuffle=False, verbose=0)
    _, expected = norms_of(model, X, Y)
    model.layers[0].trainable = False
    monitor = GradientMonitor(every=1)
    model.fit(X, Y, batch_size=8, shuffle=False, callbacks=[monitor], verbose=0)
    assert "gradients/first/gradient_norm" not in monitor.records.names()
    found = monitor.records.last("gradients/second/gradient_norm")
    assert found == pytest.approx(expected[1], rel=1e-5)


@pytest.mark.parametrize("clip", [{"clipnorm": 1e-3}, {"global_clipnorm": 1e-3}])
def test_clipped_norms_of_half_precision(clip):
    keras.config.set_dtype_policy("bfloat16")
    try:
        model = network(keras.optimizers.SGD(1.0, **clip))
    finally:
        keras.config.set_dtype_policy("float32")
    monitor = GradientMonitor()
    model.fit(X, Y, batch_size=16, callbacks=[monitor], verbose=0)
    found = np.array(read(monitor, "clipped_norm"))
    total = np.sqrt(np.sum(found**2)) if "global_clipnorm" in clip else found.max()
    # Of a layer with a kernel and a bias, each clipped by itself.
    assert total == pytest.approx(1e-3 * (1 if "global_clipnorm" in clip else 2**0.5), rel=0.02)


def test_a_fit_that_is_cut_off_leaves_no_hook_behind():
    model = network(keras.optimizers.SGD(0.1))

    def stop(batch, logs):
        raise KeyboardInterrupt

    stopping = keras.callbacks.LambdaCallback(on_train_batch_end=stop)
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, Y, batch_size=8, callbacks=[GradientMonitor(), stopping], verbose=0)
    del stopping
    gc.collect()
    assert "apply" not in vars(model.optimizer)
    model.fit(X, Y, batch_size=8, verbose=0)


@pytest.mark.parametrize("scaling", ["inner", "outer"])
def test_the_loss_scale_is_taken_out(scaling):
    if scaling == "inner":
        optimizer = keras.optimizers.SGD(0.1, loss_scale_factor=64.0)
    else:
        optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), 64.0)
    model = network(optimizer)
    _, expected = norms_of(model, X, Y)
    monitor = GradientMonitor()
    model.fit(X, Y, batch_size=16, callbacks=[monitor], verbose=0)
    np.testing.assert_allclose(read(monitor, "gradient_norm"), expected, rtol=1e-5)


def test_every_second_update_is_looked_at_and_every_reading_begins_anew():
    model = network(keras.optimizers.SGD(0.0))
    batches = [norms_of(model, X[i : i + 4], Y[i : i + 4])[1] for i in (0, 4, 8, 12)]
    monitor = GradientMonitor(every=2, every_steps=2)
    model.fit(X, Y, batch_size=4, shuffle=False, callbacks=[monitor], verbose=0)
    _, found = monitor.records.series("gradients/first/gradient_norm", by="step")
    np.testing.assert_allclose(found, [batches[0][0], batches[2][0]], rtol=1e-5)


@pytest.mark.parametrize("scaled", rows([False, True], True))
def test_updates_are_counted_from_the_first_of_the_optimizer(scaled):
    optimizer = keras.optimizers.SGD(0.0)
    model = network(keras.optimizers.LossScaleOptimizer(optimizer, 1.0) if scaled else optimizer)
    batches = [norms_of(model, X[i : i + 4], Y[i : i + 4])[1] for i in (0, 4, 8, 12)]
    model.train_on_batch(X[:4], Y[:4])
    monitor = GradientMonitor(every=2, every_steps=1)
    model.fit(X, Y, batch_size=4, shuffle=False, callbacks=[monitor], verbose=0)
    # The second to the fifth update: of these, the third and the fifth.
    _, found = monitor.records.series("gradients/first/gradient_norm", by="step")
    expected = [np.nan, batches[1][0], np.nan, batches[3][0]]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_adam_moves_otherwise_than_the_gradient_and_that_is_recorded():
    model = network(keras.optimizers.Adam(0.01))
    before = model.get_weights()
    monitor = GradientMonitor()
    model.fit(X, Y, batch_size=16, callbacks=[monitor], verbose=0)
    moved = [a - b for a, b in zip(model.get_weights(), before, strict=True)]
    np.testing.assert_allclose(
        read(monitor, "update_norm"), [norm(moved[:2]), norm(moved[2:])], rtol=1e-4
    )


def test_the_optimizer_is_left_as_it_was():
    model = network(keras.optimizers.Adam(0.01))
    model.fit(X, Y, callbacks=[GradientMonitor()], verbose=0)
    assert "apply" not in vars(model.optimizer)
    plain = network(keras.optimizers.Adam(0.01))
    plain.fit(X, Y, verbose=0)
    shapes = [[v.shape for v in m.optimizer.variables] for m in (model, plain)]
    assert shapes[0] == shapes[1]


def test_a_gradient_that_is_not_finite_is_told_with_its_layers():
    model = network(keras.optimizers.SGD(0.1))
    x = np.where(np.arange(16)[:, None] == 3, np.nan, X)
    monitor = GradientMonitor()
    with pytest.warns(UserWarning) as caught:
        history = model.fit(x, Y, batch_size=16, epochs=2, callbacks=[monitor], verbose=0)
    said = [str(w.message) for w in caught if w.category is UserWarning]
    assert said == [
        "The gradients of the layers ['first', 'second'] became NaN or infinite in epoch 1; "
        "training goes on."
    ]
    assert np.isnan(history.history["gradients/norm"]).all()


@pytest.mark.parametrize("name", ["every", "every_steps"])
def test_how_often_must_be_a_positive_integer(name):
    with pytest.raises(ValueError) as error:
        GradientMonitor(**{name: 0})
    assert str(error.value) == (
        f"Argument `{name}` must be a positive integer. Received: {name}=0 (of type <class 'int'>)"
    )


def test_rows_of_an_embedding_that_come_twice_are_added():
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Embedding(10, 4, name="rows"), keras.layers.Flatten()]
    )
    model.compile(keras.optimizers.SGD(1.0), "mse")
    before = model.get_weights()[0]
    monitor = GradientMonitor()
    x = np.ones((8, 3), "int32")
    model.fit(x, np.ones((8, 12)), batch_size=8, callbacks=[monitor], verbose=0)
    moved = np.linalg.norm(model.get_weights()[0] - before)
    assert monitor.records.last("gradients/rows/gradient_norm") == pytest.approx(moved, rel=1e-4)


def test_a_model_with_nothing_to_train_is_refused():
    model = network("sgd")
    model.trainable = False
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="Expected a model with trainable weights. Received: the"):
        model.fit(X, Y, callbacks=[GradientMonitor()], verbose=0)


OPTIMIZERS = {
    "sgd": lambda: keras.optimizers.SGD(0.05),
    "momentum": lambda: keras.optimizers.SGD(0.05, momentum=0.9),
    "nesterov": lambda: keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True, clipvalue=0.3),
    "accumulated": lambda: keras.optimizers.SGD(0.05, gradient_accumulation_steps=2),
    "decayed": lambda: keras.optimizers.AdamW(0.01, use_ema=True),
    "scaled": lambda: keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(0.05, nesterov=True, momentum=0.9), initial_scale=8.0
    ),
    "clipped": lambda: keras.optimizers.SGD(0.05, clipnorm=0.1),
}


STEPS = [(name, every, BACKEND == "jax") for name in OPTIMIZERS for every in (1, 3)]
if BACKEND == "tensorflow":
    STEPS += [("momentum", 1, True), ("clipped", 1, True)]


def convolutions():
    layers = [keras.layers.Embedding(20, 1), keras.layers.Reshape((8, 8, 1))]
    for _ in range(2):
        layers += [
            keras.layers.Conv2D(6, 3),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
        ]
    return [*layers, keras.layers.Flatten(), keras.layers.Dense(3)]


def assert_no_bit_changes(make_layers, make_optimizer, every=1, **options):
    x = np.random.default_rng(1).integers(0, 20, size=(64, 64))
    y = np.random.default_rng(2).integers(0, 3, 64)

    def fitted(callbacks):
        keras.utils.set_random_seed(1)
        model = keras.Sequential([keras.Input((64,)), *make_layers()])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(make_optimizer(), loss, **options)
        model.fit(x, y, batch_size=8, epochs=3, callbacks=callbacks, verbose=0)
        return [*model.weights, *model.optimizer.variables]

    for alone, watched in zip(fitted([]), fitted([GradientMonitor(every=every)]), strict=True):
        alone, watched = (np.array(keras.ops.convert_to_numpy(v)) for v in (alone, watched))
        np.testing.assert_array_equal(watched, alone)


@pytest.mark.parametrize(
    ("optimizer", "every", "jit_compile"),
    rows(STEPS, ("momentum", 1, BACKEND == "jax"), ("scaled", 3, BACKEND == "jax")),
)
def test_no_bit_of_the_weights_and_of_the_optimizer_changes(optimizer, every, jit_compile):
    """TensorFlow computes η (a b) as (η a) b, as for scales, where nobody else needs a b.

    And XLA adds up what it clips in the order of its layout, which others can have a say in.
    """
    assert_no_bit_changes(convolutions, OPTIMIZERS[optimizer], every, jit_compile=jit_compile)


@pytest.mark.parametrize("jit_compile", rows(JIT, JIT[0]))
def test_no_bit_changes_where_rows_and_penalties_are_added(jit_compile):
    def layers():
        l2 = keras.regularizers.L2(1e-2)
        embedding = keras.layers.Embedding(20, 4, embeddings_regularizer=l2)
        return [embedding, keras.layers.Flatten(), keras.layers.Dense(3)]

    assert_no_bit_changes(layers, OPTIMIZERS["momentum"], jit_compile=jit_compile)


@pytest.mark.parametrize("length", rows([32, 700], 32))
def test_no_bit_changes_behind_a_long_chain(length):
    """TensorFlow moves constants through products; Python does not call itself 700 times."""

    class Chain(keras.layers.Dense):
        def call(self, inputs):
            kernel = self.kernel
            for _ in range(length):
                kernel = kernel * 0.999 + 0.001
            return keras.ops.matmul(inputs, kernel)

    def layers():
        return [keras.layers.Rescaling(0.1), Chain(4, use_bias=False), keras.layers.Dense(3)]

    assert_no_bit_changes(layers, OPTIMIZERS["momentum"])


@pytest.mark.parametrize("floatx", ["float16", "bfloat16"])
def test_norms_whatever_the_floats_of_keras_are(floatx):
    model, monitor = network(keras.optimizers.SGD(0.1)), GradientMonitor(every=1)
    _, norms = norms_of(model, X[:8], Y[:8])
    keras.config.set_floatx(floatx)  # to which the data are cast
    model.fit(X[:8], Y[:8], batch_size=8, callbacks=[monitor], verbose=0)
    np.testing.assert_allclose(read(monitor, "gradient_norm"), norms, rtol=0.02)
