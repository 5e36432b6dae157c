"""`recalibrate`: moving statistics become those of the data, and nothing else changes."""

import random

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_regtools import instrument, recalibrate

pytestmark = pytest.mark.backends


def draws(*shape, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(3.0, 2.0, shape) * np.linspace(0.5, 2, shape[-1])


def sequential(*members, shape=(3,)):
    return keras.Sequential([keras.Input(shape), *members], name="net")


def batch_norm(name="bn", **kwargs):
    return layers.BatchNormalization(name=name, **kwargs)


def moving(layer):
    found = layer.moving_mean, layer.moving_variance
    return [np.asarray(ops.convert_to_numpy(v), "float64") for v in found]


def population(x, axis=-1):
    x = np.asarray(x, "float64")
    axes = tuple(i for i in range(x.ndim) if i != axis % x.ndim)
    return [x.mean(axes), x.var(axes)]


def received(model, layer, x):
    """What a layer is given in inference."""
    return ops.convert_to_numpy(keras.Model(model.inputs[0], layer.input)(x))


def assert_close(found, expected, rtol=1e-5):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 7, 10, 64])
@pytest.mark.parametrize(
    ("shape", "axis"), [((3,), -1), ((4, 3), -1), ((4, 4, 3), -1), ((3, 4), 1)]
)
def test_a_layer_on_the_input_gets_the_mean_and_variance_of_all_samples(shape, axis, batch_size):
    x = draws(20, *shape)
    model = sequential(batch_norm(axis=axis), shape=shape)
    recalibrate(model, x, batch_size=batch_size)
    assert_close(moving(model.layers[0]), population(x, axis))


def test_the_variance_is_right_far_from_zero():
    x = draws(50, 2) + 1e3
    model = recalibrate(sequential(batch_norm(), shape=(2,)), x, batch_size=8)
    assert_close(moving(model.layers[0]), population(x.astype("float32")), rtol=1e-3)


@pytest.mark.parametrize(
    "x",
    [
        np.arange(24).reshape(8, 3),
        np.arange(24, dtype="uint8").reshape(8, 3),
        np.arange(24, dtype="float64").reshape(8, 3),
        np.arange(24, dtype="float16").reshape(8, 3),
    ],
    ids=lambda x: str(x.dtype),
)
def test_the_data_may_be_of_any_number_type(x):
    model = recalibrate(sequential(batch_norm()), x, batch_size=3)
    assert_close(moving(model.layers[0]), population(x))


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_keeps_the_statistics_in_full_precision(policy):
    keras.config.set_dtype_policy(policy)
    x = np.random.default_rng(0).integers(-4, 5, (64, 3)).astype("float32")  # exact in half
    model = recalibrate(sequential(batch_norm()), x, batch_size=10)
    assert_close(moving(model.layers[0]), population(x))


def deep():
    return sequential(
        layers.Conv2D(2, 3, name="conv"),
        batch_norm("first"),
        layers.ReLU(name="relu"),
        layers.Dropout(0.5, seed=1, name="dropout"),
        layers.Flatten(name="flatten"),
        layers.Dense(4, name="dense"),
        batch_norm("second"),
        layers.Dense(2, name="output"),
        shape=(5, 5, 1),
    )


def with_frozen(name):
    model = deep()
    model.get_layer(name).trainable = False
    return model


def deep_instrumented():
    return instrument(deep())


def nested():
    inner = sequential(layers.Dense(3, name="dense"), batch_norm("first"), layers.ReLU())
    return sequential(inner, layers.Dense(2, name="output"), batch_norm("second"))


def batch_norms(model):
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from batch_norms(layer)
        elif isinstance(layer, layers.BatchNormalization):
            yield layer


@pytest.mark.parametrize(
    "build",
    [
        deep,
        deep_instrumented,
        lambda: with_frozen("first"),
        lambda: with_frozen("second"),
    ],
    ids=["plain", "instrumented", "first frozen", "second frozen"],
)
def test_after_one_batch_of_all_data_inference_sees_what_each_layer_expects(build):
    model = build()
    x = draws(16, *model.input_shape[1:]).astype("float32")
    recalibrate(model, x, batch_size=16)
    for layer in batch_norms(model):
        assert_close(moving(layer), population(received(model, layer, x)), rtol=1e-4)


def test_layers_in_inner_models_are_recalibrated():
    model = nested()
    x = draws(16, 3).astype("float32")
    recalibrate(model, x, batch_size=16)
    first, second = batch_norms(model)
    kernel, bias = model.layers[0].layers[0].get_weights()
    assert_close(moving(first), population(x @ kernel + bias), rtol=1e-4)
    assert_close(moving(second), population(received(model, second, x)), rtol=1e-4)


def test_a_layer_used_twice_gets_the_statistics_of_both_uses():
    a, b = keras.Input((2,)), keras.Input((2,))
    layer = batch_norm()
    model = keras.Model([a, b], layers.Concatenate()([layer(a), layer(b)]))
    first, second = draws(10, 2), draws(10, 2, seed=1) - 5
    recalibrate(model, [first, second], batch_size=4)
    assert_close(moving(layer), population(np.concatenate([first, second])))


def test_masked_steps_do_not_count():
    inputs = keras.Input((4, 2))
    outputs = batch_norm()(layers.Masking(0.0)(inputs))
    model = keras.Model(inputs, layers.GlobalAveragePooling1D()(outputs))
    x = draws(9, 4, 2)
    for i in range(9):
        x[i, 1 + i % 4 :] = 0.0
    recalibrate(model, x, batch_size=2)
    (layer,) = batch_norms(model)
    assert_close(moving(layer), population(x[np.any(x != 0, axis=-1)]))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.bn = batch_norm()

    def call(self, x):
        return self.bn(x)


class SubclassedWithTraining(Subclassed):
    def call(self, x, training=None):
        return self.bn(x, training=training)


@pytest.mark.parametrize("kind", [Subclassed, SubclassedWithTraining])
def test_a_subclassed_model_is_recalibrated(kind):
    model, x = kind(), draws(20, 3)
    model(np.zeros((1, 3)))
    recalibrate(model, x, batch_size=6)
    assert_close(moving(model.bn), population(x))


class Sequence(keras.utils.PyDataset):
    """Batches of 6, 6 and 2, with targets; an exception in place of the one that is asked for."""

    def __init__(self, x, fails_at=None):
        super().__init__()
        self.x, self.fails_at = x, fails_at

    def __len__(self):
        return 3

    def __getitem__(self, i):
        if i == self.fails_at:
            raise KeyboardInterrupt
        part = self.x[6 * i : 6 * i + 6]
        return part, np.full(len(part), np.nan)


def test_a_dataset_is_read_in_its_own_batches_and_its_targets_are_ignored():
    x = draws(14, 3)
    model = recalibrate(sequential(batch_norm()), Sequence(x))
    assert_close(moving(model.layers[0]), population(x))


def test_an_interrupted_pass_changes_nothing():
    model = sequential(batch_norm())
    before = model.get_weights()
    with pytest.raises(KeyboardInterrupt):
        recalibrate(model, Sequence(draws(14, 3), fails_at=2))
    assert all(map(np.array_equal, model.get_weights(), before))


@pytest.mark.parametrize("compiled", [True, False])
def test_nothing_but_the_moving_statistics_changes_and_the_same_model_is_given_back(compiled):
    model = deep_instrumented()
    x = draws(8, 5, 5, 1)
    if compiled:
        model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
        model.fit(x, np.zeros((8, 2)), verbose=0)
    optimizer = model.optimizer.variables if compiled else []
    variables = {v.path: v for v in [*model.variables, *optimizer]}
    before = {path: np.array(ops.convert_to_numpy(v)) for path, v in variables.items()}
    state = random.getstate(), np.random.get_state()[1].tolist()

    assert recalibrate(model, x, batch_size=3) is model

    changed = [
        n for n, v in variables.items() if not np.array_equal(before[n], ops.convert_to_numpy(v))
    ]
    assert sorted(changed) == [
        f"net/{layer}/moving_{what}"
        for layer in ("first", "second")
        for what in ("mean", "variance")
    ]
    assert (random.getstate(), np.random.get_state()[1].tolist()) == state
    assert all("call" not in vars(layer) for layer in model.layers)


def test_recalibrating_twice_gives_the_same_and_does_not_depend_on_the_old_statistics():
    model, x = deep(), draws(12, 5, 5, 1)
    first = recalibrate(model, x, batch_size=5).get_weights()
    for layer in batch_norms(model):
        layer.moving_mean.assign(layer.moving_mean + 7)
        layer.moving_variance.assign(layer.moving_variance * 3)
    second = recalibrate(model, x, batch_size=5).get_weights()
    assert all(map(np.array_equal, first, second))


BUILT = sequential(batch_norm())


@pytest.mark.parametrize(
    ("model", "x", "settings", "error", "message"),
    [
        (
            sequential(layers.Dense(2)),
            np.ones((2, 3)),
            {},
            ValueError,
            "Expected a model with batch normalization. Received: the model 'net', which has none",
        ),
        (
            keras.Sequential([layers.BatchNormalization()], name="raw"),
            np.ones((2, 3)),
            {},
            ValueError,
            "Expected a built model. Received: the model 'raw', which has no weights yet. Call "
            "`model.build(input_shape)` or call it once on data.",
        ),
        (
            "model",
            np.ones((2, 3)),
            {},
            TypeError,
            "Expected a `keras.Model`. Received: 'model' (of type <class 'str'>).",
        ),
        (
            BUILT,
            np.ones((0, 3)),
            {},
            ValueError,
            "Expected at least one sample. Received: x with 0 samples",
        ),
        (
            BUILT,
            np.ones((2, 3)),
            {"batch_size": 0},
            ValueError,
            "Argument `batch_size` must be a positive integer. Received: batch_size=0 (of type "
            "<class 'int'>)",
        ),
        (
            BUILT,
            None,
            {},
            TypeError,
            "Expected `x` to be an array, a list or dict of arrays, a `tf.data.Dataset` or a "
            "`keras.utils.PyDataset`. Received: x=None (of type <class 'NoneType'>)",
        ),
    ],
)
def test_recalibrate_says_what_it_cannot_do(model, x, settings, error, message):
    with pytest.raises(error) as caught:
        recalibrate(model, x, **settings)
    assert str(caught.value) == message


def test_a_one_shot_iterator_is_refused_with_what_to_pass_instead():
    batches = iter([np.ones((2, 3))])
    with pytest.raises(TypeError) as caught:
        recalibrate(BUILT, batches)
    assert str(caught.value) == (
        f"Expected data that can be read more than once. Received: the one-shot iterator "
        f"{batches!r}. Pass arrays, a `tf.data.Dataset` or a `keras.utils.PyDataset` instead."
    )
