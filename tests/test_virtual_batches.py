"""Ghost batches: the plain layer on each chunk by itself, one chunk after the other."""

import keras
import numpy as np
import pytest
from keras import ops
from problems import HAS_FLOAT64, float64, rows

import keras_regtools as rt
from keras_regtools.backend import value_and_grad
from keras_regtools.layers import InstrumentedBatchNormalization

pytestmark = pytest.mark.backends
BACKEND = keras.backend.backend()
RNG = np.random.default_rng


def _pair(size, **options):
    """The plain layer and ours, with a gamma and beta that tell channels apart."""
    own = {
        "gamma_initializer": keras.initializers.RandomNormal(seed=1),
        "beta_initializer": keras.initializers.RandomNormal(seed=2),
        **options,
    }
    plain = keras.layers.BatchNormalization(**own)
    return plain, InstrumentedBatchNormalization(virtual_batch_size=size, record_every=1, **own)


def _chunks(x, size):
    return [x[i : i + size] for i in range(0, len(x), size)]


def _in_turn(plain, x, size, mask=None):
    """What the plain layer gives for the chunks, one after the other."""
    masks = [None] * len(x) if mask is None else _chunks(mask, size)
    parts = zip(_chunks(x, size), masks, strict=False)
    outputs = [plain(part, training=True, mask=m) for part, m in parts]
    return np.concatenate([ops.convert_to_numpy(part) for part in outputs])


def _assert_close(received, expected, rtol=1e-4, atol=2e-5):
    received = ops.convert_to_numpy(received)
    np.testing.assert_allclose(received, ops.convert_to_numpy(expected), rtol=rtol, atol=atol)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((12, 3), {}),
        ((12, 5, 3), {"momentum": 0.5, "epsilon": 0.1}),
        ((12, 2, 5, 3), {"scale": False, "center": False}),
        ((12, 3, 2, 5), {"axis": 1}),
        ((12, 3), {"axis": -1, "momentum": 0.0}),
    ],
    ids=str,
)
@pytest.mark.parametrize("size", rows([4, 5], 5))
def test_outputs_and_moving_statistics_are_those_of_the_chunks_in_turn(shape, options, size):
    plain, ours = _pair(size, **options)
    for seed in range(2):
        x = RNG(seed).normal(3, 2, shape).astype("float32")
        expected = _in_turn(plain, x, size)
        _assert_close(ours(x, training=True), expected)
        for a, b in zip(ours.weights, plain.weights, strict=True):
            _assert_close(a, b)
    # PyTorch's own variance is of the form E[x²] − E[x]².
    _assert_close(ours(x, training=False), plain(x, training=False), rtol=1e-3)


def test_masked_entries_count_in_no_chunk():
    plain, ours = _pair(4)
    x = RNG(0).normal(3, 2, (10, 5, 3)).astype("float32")
    mask = RNG(1).random((10, 5)) < 0.7
    expected = _in_turn(plain, x, 4, mask)
    _assert_close(ours(x, training=True, mask=mask), expected)
    for a, b in zip(ours.weights, plain.weights, strict=True):
        _assert_close(a, b)


def test_a_virtual_batch_as_large_as_the_batch_is_the_plain_layer():
    plain, ours = _pair(6)
    x = RNG(0).normal(3, 2, (6, 3)).astype("float32")
    _assert_close(ours(x, training=True), plain(x, training=True), rtol=1e-5)
    statistics = ours.statistics()
    _assert_close(statistics["mean"], x.mean(0))  # of the batch, whatever the virtual ones


def test_a_frozen_layer_normalizes_with_the_moving_statistics():
    plain, ours = _pair(4, trainable=False)
    x = RNG(0).normal(3, 2, (3, 3)).astype("float32")  # smaller than a virtual batch: none is made
    _assert_close(ours(x, training=True), plain(x, training=True))
    for a, b in zip(ours.weights, plain.weights, strict=True):
        _assert_close(a, b, atol=0)
    assert ours.statistics()["steps"] == 1


@pytest.mark.parametrize("masked", [False, True])
def test_gradients_are_those_of_the_chunks(masked):
    x = RNG(2).normal(3, 2, (7, 2, 3)).astype("float32")
    weight = RNG(3).normal(size=x.shape).astype("float32")
    mask = (RNG(4).random((7, 2)) < 0.8) if masked else None
    plain, ours = _pair(3)
    found = []
    for layer in (plain, ours):
        layer.build(x.shape)
        states = [v.value for v in layer.non_trainable_variables]

        def call(trainable, x, mask, layer=layer, states=states):
            return layer.stateless_call(trainable, states, x, training=True, mask=mask)[0]

        def loss(params, layer=layer, call=call):
            trainable, inputs = params[:-1], params[-1]
            if layer is ours:
                outputs = call(trainable, inputs, mask)
            else:
                parts = [slice(0, 3), slice(3, 6), slice(6, 7)]
                outputs = ops.concatenate(
                    [call(trainable, inputs[p], None if mask is None else mask[p]) for p in parts]
                )
            return ops.sum(outputs * ops.convert_to_tensor(weight))

        params = [ops.copy(v.value) for v in layer.trainable_variables]
        found.append(value_and_grad(loss)([*params, ops.convert_to_tensor(x)])[1])
    for plain_gradient, own in zip(*found, strict=True):
        _assert_close(own, plain_gradient, rtol=1e-3, atol=1e-4)


def test_mixed_precision_computes_in_single_precision():
    plain, ours = _pair(4, dtype="mixed_float16")
    x = (RNG(0).normal(0, 1, (8, 3)) * 2e4).clip(-6e4, 6e4).astype("float16")
    expected = _in_turn(plain, x, 4)
    outputs = ours(x, training=True)
    assert keras.backend.standardize_dtype(outputs.dtype) == "float16"
    _assert_close(outputs, expected, rtol=1e-2, atol=1e-2)
    _assert_close(ours.moving_variance, plain.moving_variance)


# Too small batches.


MESSAGE = "Expected batches of at least 8 samples, the size of a virtual batch. Received: "


def _model(size=8):
    start = keras.initializers.GlorotUniform(seed=1)
    return keras.Sequential(
        [
            keras.Input((3,)),
            InstrumentedBatchNormalization(virtual_batch_size=size, name="norm"),
            keras.layers.Dense(1, kernel_initializer=start),
        ]
    )


def _fit(model, samples, batch_size, **compile_options):
    model.compile(keras.optimizers.SGD(0.1), "mse", **{"jit_compile": False, **compile_options})
    x = RNG(0).normal(size=(samples, 3)).astype("float32")
    y = x[:, :1] ** 2
    return model.fit(x, y, batch_size=batch_size, shuffle=False, verbose=0)


def test_a_batch_smaller_than_a_virtual_one_is_refused_before_anything_moves():
    layer = InstrumentedBatchNormalization(virtual_batch_size=8)
    with pytest.raises(ValueError) as error:
        layer(np.ones((7, 3), "float32"), training=True)
    assert MESSAGE + "a batch of 7" in str(error.value)  # Keras adds where
    np.testing.assert_array_equal(layer.moving_variance, [1, 1, 1])
    layer(np.ones((7, 3), "float32"), training=False)
    layer(np.ones((8, 3), "float32"), training=True)
    layer(np.ones((1, 3), "float32"), training=True)


@pytest.mark.parametrize("eagerly", [False, True])
def test_a_fit_with_batches_that_are_too_small_is_refused(eagerly):
    errors = (ValueError,)
    if BACKEND == "tensorflow" and not eagerly:
        import tensorflow as tf

        errors = (ValueError, tf.errors.InvalidArgumentError)
    with pytest.raises(errors, match=MESSAGE):
        _fit(_model(), 16, 4, run_eagerly=eagerly)


@pytest.mark.parametrize("eagerly", [False, True])
def test_a_smaller_last_batch_is_no_error(eagerly):
    model = _model()
    _fit(model, 20, 8, run_eagerly=eagerly)
    assert model.get_layer("norm").statistics()["steps"] == 3


def test_what_was_seen_in_eager_calls_counts_in_a_graph():
    model = _model()
    model(np.ones((8, 3), "float32"), training=True)
    _fit(model, 7, 4)
    assert model.get_layer("norm").statistics()["steps"] == 3


@pytest.mark.slow
@pytest.mark.skipif(BACKEND == "torch", reason="torch.compile is not what we promise")
def test_compiled_and_uncompiled_fits_end_in_the_same_weights():
    one, other = _model(), _model()
    _fit(one, 20, 10)
    _fit(other, 20, 10, jit_compile=True)
    for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
        _assert_close(a, b)


@pytest.mark.parametrize(
    ("value", "received"),
    [
        (0, "0 (of type <class 'int'>)"),
        (-4, "-4 (of type <class 'int'>)"),
        (2.5, "2.5 (of type <class 'float'>)"),
        ("8", "8 (of type <class 'str'>)"),
    ],
)
def test_the_size_must_be_a_positive_integer(value, received):
    with pytest.raises(ValueError) as error:
        InstrumentedBatchNormalization(virtual_batch_size=value)
    assert str(error.value) == (
        "Argument `virtual_batch_size` must be a positive integer. "
        f"Received: virtual_batch_size={received}"
    )


@pytest.mark.parametrize("other", ["synchronized", "renorm"][BACKEND != "tensorflow" :])
def test_what_does_not_go_together_is_refused(other):
    with pytest.raises(ValueError) as error:
        InstrumentedBatchNormalization(virtual_batch_size=8, **{other: True})
    assert str(error.value) == (
        f"Expected no `{other}` together with `virtual_batch_size`. "
        f"Received: {other}=True, virtual_batch_size=8"
    )


# Files and surfaces.


def test_the_size_is_saved_and_taken_out(tmp_path):
    model = _model()
    _fit(model, 16, 8)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.get_layer("norm").virtual_batch_size == 8
    x = RNG(5).normal(size=(16, 3)).astype("float32")
    _assert_close(loaded(x, training=True), model(x, training=True), rtol=0, atol=0)
    plain = rt.strip(loaded)
    assert type(plain.get_layer("norm")) is keras.layers.BatchNormalization
    assert [w.shape for w in plain.weights] == [w.shape for w in model.weights]
    _assert_close(plain(x), loaded(x), rtol=0, atol=0)


def test_the_weights_of_a_plain_model_fit():
    ours = _model()
    plain = rt.strip(ours)
    assert len(ours.weights) == len(plain.weights)
    ours.set_weights(plain.get_weights())


def _surface(mode, samples=14, batch_size=None):
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(3, "tanh", kernel_initializer=keras.initializers.GlorotUniform(1)),
            InstrumentedBatchNormalization(virtual_batch_size=4, name="norm"),
            keras.layers.Dense(1, "tanh", kernel_initializer=keras.initializers.GlorotUniform(2)),
        ]
    )
    model.compile("sgd", "mse")
    x = RNG(0).normal(size=(samples, 3))
    more = {} if batch_size is None else {"batch_size": batch_size}
    return rt.LossSurface(model, x, x[:, :1] ** 2, mode=mode, **more), x


@pytest.mark.slow
@pytest.mark.skipif(not HAS_FLOAT64, reason="central differences want double precision")
def test_derivatives_of_the_surface_are_those_of_central_differences():
    with float64():
        surface, _ = _surface("batch_statistics")
        before = [np.array(v) for v in surface.model.variables]
        point = [ops.convert_to_numpy(p) for p in surface.params]
        v = [RNG(7).normal(size=p.shape) for p in point]
        step = 1e-5
        ahead, behind = ([p + s * step * d for p, d in zip(point, v, strict=True)] for s in (1, -1))
        slope = sum(
            np.sum(ops.convert_to_numpy(g) * d)
            for g, d in zip(surface.value_and_gradient()[1], v, strict=True)
        )
        values = [float(surface.value(p)) for p in (ahead, behind)]
        assert slope == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-6)
        gradients = [surface.value_and_gradient(p)[1] for p in (ahead, behind)]
        for product, a, b in zip(surface.hvp(None, v), *gradients, strict=True):
            expected = (ops.convert_to_numpy(a) - ops.convert_to_numpy(b)) / (2 * step)
            _assert_close(product, expected, rtol=1e-5, atol=1e-8)
        for variable, value in zip(surface.model.variables, before, strict=True):
            np.testing.assert_array_equal(np.array(variable), value)


def test_a_surface_normalizes_virtual_batches_and_moves_nothing():
    surface, x = _surface("batch_statistics")
    model = surface.model
    dense, norm, out = model.layers
    state = [np.array(ops.convert_to_numpy(v)) for v in model.variables]
    hidden = ops.convert_to_numpy(dense(x.astype("float32")))
    plain = keras.layers.BatchNormalization()
    outputs = ops.convert_to_numpy(out(_in_turn(plain, hidden, 4)))
    expected = np.mean((outputs - x[:, :1] ** 2) ** 2)
    assert float(surface.value()) == pytest.approx(expected, rel=1e-5)
    for variable, value in zip(model.variables, state, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(variable), value)


def test_a_surface_may_end_in_a_smaller_batch():
    surface, _ = _surface("batch_statistics", samples=10, batch_size=8)
    assert np.isfinite(float(surface.value()))
