"""The penalties: Keras' formulas, with a strength that acts at once whenever it is assigned."""

import functools
import math

import keras
import numpy as np
import pytest
from keras import ops
from problems import rows

from keras_regtools.regularizers import L1, L1L2, L2, penalties

pytestmark = pytest.mark.backends
BACKEND = keras.backend.backend()
JIT = [False] if BACKEND == "torch" else [False, True]  # torch.compile is not what we promise
TWINS = [
    (L1, keras.regularizers.L1, {"l1": 0.3}),
    (L2, keras.regularizers.L2, {"l2": 0.3}),
    (L1L2, keras.regularizers.L1L2, {"l1": 0.3, "l2": 0.7}),
]
KERNEL = np.random.default_rng(0).normal(size=(3, 3, 2, 4)).astype("float32")


def _net(conv=None, dense=None, bias=None):
    """A small net, always with the same initial weights."""
    start = keras.initializers.GlorotUniform(seed=1)
    return keras.Sequential(
        [
            keras.Input((5, 5, 2)),
            keras.layers.Conv2D(
                4, 3, kernel_initializer=start, kernel_regularizer=conv, name="conv"
            ),
            keras.layers.Flatten(name="flatten"),
            keras.layers.Dense(
                3,
                kernel_initializer=start,
                bias_initializer="ones",
                kernel_regularizer=dense,
                bias_regularizer=bias,
                name="dense",
            ),
        ],
        name="net",
    )


def _compiled(model, jit_compile="auto", **options):
    model.compile(keras.optimizers.SGD(0.05), "mse", jit_compile=jit_compile, **options)
    return model


def _fit(model, epochs=1, callbacks=(), **options):
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(24, 5, 5, 2)), rng.normal(size=(24, 3))
    return model.fit(
        x, y, 8, epochs, shuffle=False, verbose=0, callbacks=list(callbacks), **options
    ).history["loss"]


def _assert_equal(one, other, rtol=0.0):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol)


# Values.


@pytest.mark.parametrize(("ours", "keras_own", "strengths"), TWINS)
def test_values_are_those_of_keras(ours, keras_own, strengths):
    kernel = ops.convert_to_tensor(KERNEL)
    received = ops.convert_to_numpy(ours(**strengths)(kernel))
    expected = ops.convert_to_numpy(keras_own(**strengths)(kernel))
    np.testing.assert_allclose(received, expected, rtol=1e-7)


@pytest.mark.parametrize(
    ("penalty", "value"),
    [
        (L1(0.5), 3.0),
        (L2(0.5), 7.0),
        (L1L2(0.5, 0.25), 6.5),
        (L1L2(l2=0.25), 3.5),
        (L1L2(), 0.0),
        (L1(0.0), 0.0),
        (L2(0), 0.0),
    ],
    ids=repr,
)
def test_values_are_the_formulas(penalty, value):
    assert float(ops.convert_to_numpy(penalty(ops.array([1.0, -2.0, 3.0])))) == value


# JAX has no float64 unless the user asks for it before all else.
@pytest.mark.parametrize(
    "dtype", ["float16", "bfloat16", "float32", "float64"][: 4 - (BACKEND == "jax")]
)
@pytest.mark.parametrize("ours", [L1, L2, L1L2])
def test_the_value_has_the_dtype_of_the_kernel(ours, dtype):
    value = ours(0.5)(ops.ones((2, 2), dtype))
    assert keras.backend.standardize_dtype(value.dtype) == dtype


@pytest.mark.parametrize(
    ("penalty", "attributes"),
    [
        (L1(), {"l1": 0.01}),
        (L2(), {"l2": 0.01}),
        (L1L2(), {"l1": 0.0, "l2": 0.0}),
        (L1L2(0.1, 0.2), {"l1": 0.1, "l2": 0.2}),
        (L2(np.float32(0.25)), {"l2": 0.25}),
        (L1(2), {"l1": 2.0}),
    ],
    ids=repr,
)
def test_reading_a_strength_gives_the_float_given(penalty, attributes):
    for name, value in attributes.items():
        assert type(getattr(penalty, name)) is float
        assert getattr(penalty, name) == value
        setattr(penalty, name, 0.07)
        assert getattr(penalty, name) == 0.07


def test_one_strength_of_two_can_change_alone():
    penalty = L1L2(0.1, 0.2)
    penalty.l2 = 0.5
    assert (penalty.l1, penalty.l2) == (0.1, 0.5)


# Training.


@pytest.mark.parametrize("jit_compile", rows(JIT, JIT[0]))
@pytest.mark.parametrize(("ours", "keras_own", "strengths"), TWINS)
def test_training_is_that_of_keras(ours, keras_own, strengths, jit_compile):
    models = [
        _compiled(_net(one(**strengths), bias=one(**strengths)), jit_compile)
        for one in (ours, keras_own)
    ]
    losses = [_fit(model, epochs=2) for model in models]
    rtol = 1e-5 if jit_compile else 0
    _assert_equal(*losses, rtol=rtol)
    _assert_equal(*(model.get_weights() for model in models), rtol=rtol)


@functools.cache
def _with_keras_own(jit_compile, first, then):
    """Weights and losses of two epochs with one fixed strength and two with another."""
    losses, weights = [], None
    for strength in (first, then):
        model = _compiled(_net(dense=keras.regularizers.L2(strength)), jit_compile)
        if weights is not None:
            model.set_weights(weights)
        losses += _fit(model, epochs=2)
        weights = model.get_weights()
    return weights, losses


@pytest.mark.parametrize("jit_compile", rows(JIT, JIT[0]))
@pytest.mark.parametrize("when", ["between fits", "during a fit", "during a fit, by the model"])
def test_a_changed_strength_acts_at_once(when, jit_compile):
    first, then = 0.0, 0.5  # nothing of the first may be frozen into the training step
    expected, expected_losses = _with_keras_own(jit_compile, first, then)
    penalty = L2(first)
    model = _compiled(_net(dense=penalty), jit_compile)

    def change(epoch, logs):
        if epoch == 1:
            ours = penalty
            if when == "during a fit, by the model":
                ours = callback.model.get_layer("dense").kernel_regularizer
            ours.l2 = then

    callback = keras.callbacks.LambdaCallback(on_epoch_end=change)
    if when == "between fits":
        losses = _fit(model, epochs=2)
        penalty.l2 = then
        losses += _fit(model, epochs=2)
    else:
        losses = _fit(model, epochs=4, callbacks=[callback])
    rtol = 1e-5 if jit_compile else 0
    _assert_equal(losses, expected_losses, rtol)
    _assert_equal(model.get_weights(), expected, rtol)
    assert penalty.l2 == then


def test_a_strength_changed_at_a_batch_end_acts_in_the_next_batch():
    penalty = L1(0.0)

    def change(batch, logs):
        _ = callback.model  # on JAX, what brings the variables up to date
        penalty.l1 = 2.0 if batch == 1 else 0.0

    callback = keras.callbacks.LambdaCallback(on_train_batch_end=change)
    model, plain = _compiled(_net(dense=penalty)), _compiled(_net())
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(24, 5, 5, 2)), rng.normal(size=(24, 3))
    options = {"batch_size": 8, "shuffle": False, "verbose": 0}
    model.fit(x, y, callbacks=[callback], **options)
    plain.fit(x[:16], y[:16], **options)
    before = plain.get_layer("dense").get_weights()[0]
    plain.fit(x[16:], y[16:], **options)
    expected = plain.get_layer("dense").get_weights()[0] - 0.05 * 2 * np.sign(before)
    received = model.get_layer("dense").get_weights()[0]
    np.testing.assert_allclose(received, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("strength", "rise"), [(0.0, 0.0), (0.25, 0.25), (2.0, 2.0)])
def test_evaluation_adds_the_penalty_of_the_present_strength(strength, rise):
    penalty = L2(0.1)
    model, plain = _compiled(_net(dense=penalty)), _compiled(_net())
    x, y = np.ones((4, 5, 5, 2)), np.ones((4, 3))
    model.evaluate(x, y, verbose=0)
    penalty.l2 = strength
    kernel = plain.get_layer("dense").get_weights()[0]
    expected = plain.evaluate(x, y, verbose=0) + rise * np.sum(kernel**2)
    assert math.isclose(model.evaluate(x, y, verbose=0), expected, rel_tol=1e-6)


# Keras has no steps_per_execution on PyTorch.
@pytest.mark.parametrize("steps_per_execution", [1] if BACKEND == "torch" else rows([2, 3], 3))
def test_several_steps_per_execution_train_the_same(steps_per_execution):
    one = _compiled(_net(L2(0.3)))
    several = _compiled(_net(L2(0.3)), steps_per_execution=steps_per_execution)
    _fit(one, epochs=2)
    _fit(several, epochs=2)
    _assert_equal(several.get_weights(), one.get_weights(), rtol=1e-6)


@pytest.mark.parametrize("ours", rows([L1, L2], L2))
def test_mixed_precision_trains_as_with_keras(ours):
    keras.config.set_dtype_policy("mixed_float16")
    keras_own = getattr(keras.regularizers, ours.__name__)
    models = [_compiled(_net(one(0.3)), jit_compile=False) for one in (ours, keras_own)]
    for model in models:
        _fit(model)
    _assert_equal(*(model.get_weights() for model in models))


def test_an_activity_regularizer_changes_at_once_too():
    penalty = L2(0.0)
    dense = keras.layers.Dense(2, activity_regularizer=penalty, kernel_initializer="ones")
    model = _compiled(keras.Sequential([keras.Input((3,)), dense]))
    x, y = np.ones((4, 3)), np.full((4, 2), 3.0)
    assert model.evaluate(x, y, verbose=0) == 0
    penalty.l2 = 0.5
    assert model.evaluate(x, y, verbose=0) == 0.5 * 2 * 9  # per sample


def test_one_object_serves_several_layers():
    shared = L2(0.1)
    model, apart = _net(shared, shared), _net(L2(0.1), L2(0.1))
    for one in (model, apart):
        _fit(_compiled(one, jit_compile=False))
    _assert_equal(model.get_weights(), apart.get_weights())
    shared.l2 = 1.0
    kernels = [model.get_layer(name).kernel for name in ("conv", "dense")]
    expected = [np.sum(ops.convert_to_numpy(kernel) ** 2) for kernel in kernels]
    np.testing.assert_allclose(list(penalties(model).values()), expected, rtol=1e-6)


def test_a_cloned_model_has_strengths_of_its_own():
    model = _net(L2(0.1))
    model.get_layer("conv").kernel_regularizer.l2 = 0.3
    clone = keras.models.clone_model(model)
    clone.get_layer("conv").kernel_regularizer.l2 = 0.5
    found = [m.get_layer("conv").kernel_regularizer.l2 for m in (model, clone)]
    assert found == [0.3, 0.5]


# Weights, files, configuration.


@pytest.mark.parametrize("ours", [L1, L2, L1L2])
def test_weights_are_those_of_the_plain_model(ours):
    model, plain = _net(ours(0.1), ours(0.2), ours(0.3)), _net()
    for names in ("weights", "trainable_weights", "non_trainable_weights", "trainable_variables"):
        listed = [(w.path, w.shape, w.dtype) for w in getattr(plain, names)]
        assert [(w.path, w.shape, w.dtype) for w in getattr(model, names)] == listed
    assert model.count_params() == plain.count_params()
    model.set_weights([w + 1 for w in plain.get_weights()])
    _assert_equal(model.get_weights(), [w + 1 for w in plain.get_weights()])


@pytest.mark.parametrize(("ours", "keras_own", "strengths"), TWINS)
def test_keras_files_carry_the_strength(ours, keras_own, strengths, tmp_path):
    model = _net(ours(**strengths))
    for name in strengths:
        setattr(model.get_layer("conv").kernel_regularizer, name, 0.07)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    penalty = loaded.get_layer("conv").kernel_regularizer
    assert type(penalty) is ours
    assert penalty.get_config() == dict.fromkeys(strengths, 0.07)
    assert list(penalties(loaded).values()) == list(penalties(model).values())


def test_keras_files_bring_a_shared_strength_back_to_each_layer(tmp_path):
    shared = L2(0.1)
    model = _net(shared, shared)
    shared.l2 = 0.3
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    strengths = [loaded.get_layer(name).kernel_regularizer.l2 for name in ("conv", "dense")]
    assert strengths == [0.3, 0.3]


@pytest.mark.parametrize(("ours", "keras_own", "strengths"), TWINS)
def test_weight_files_carry_the_strength(ours, keras_own, strengths, tmp_path):
    model = _net(ours(**strengths))
    for name in strengths:
        setattr(model.get_layer("conv").kernel_regularizer, name, 0.07)
    model.save_weights(tmp_path / "model.weights.h5")
    loaded = _net(ours())
    loaded.load_weights(tmp_path / "model.weights.h5")
    penalty = loaded.get_layer("conv").kernel_regularizer
    for name in strengths:
        assert np.float32(getattr(penalty, name)) == np.float32(0.07)
    _assert_equal(loaded.get_weights(), model.get_weights())
    assert penalties(loaded) == penalties(model)


def test_weight_files_carry_the_strength_of_a_shared_object(tmp_path):
    shared, fresh = L2(0.1), L2(0.2)
    _net(shared, shared).save_weights(tmp_path / "model.weights.h5")
    _net(fresh, fresh).load_weights(tmp_path / "model.weights.h5")
    assert np.float32(fresh.l2) == np.float32(0.1)


@pytest.mark.parametrize("conv", [(None, L2(0.2)), (L2(0.1), None)], ids=str)
def test_weight_files_are_exchanged_with_the_plain_model(conv, tmp_path):
    saved, loaded = (_net(penalty) for penalty in conv)
    saved.set_weights([w + 1 for w in saved.get_weights()])
    saved.save_weights(tmp_path / "model.weights.h5")
    loaded.load_weights(tmp_path / "model.weights.h5")
    _assert_equal(loaded.get_weights(), saved.get_weights())
    assert conv[1] is None or conv[1].l2 == 0.2


@pytest.mark.parametrize(("ours", "keras_own", "strengths"), TWINS)
def test_the_configuration_is_the_strengths(ours, keras_own, strengths):
    penalty = ours(**strengths)
    assert penalty.get_config() == strengths
    assert ours.from_config(strengths).get_config() == strengths
    config = keras.regularizers.serialize(penalty)
    assert config["registered_name"] == f"keras_regtools>{ours.__name__}"
    assert keras.regularizers.deserialize(config).get_config() == strengths


@pytest.mark.parametrize(
    ("penalty", "shown"),
    [(L1(0.5), "L1(l1=0.5)"), (L2(1e-4), "L2(l2=0.0001)"), (L1L2(1, 2), "L1L2(l1=1, l2=2)")],
    ids=str,
)
def test_the_repr_shows_the_strengths(penalty, shown):
    assert repr(penalty) == shown


# Errors.

REFUSED = [
    (-0.1, "-0.1 (of type <class 'float'>)"),
    (-1, "-1 (of type <class 'int'>)"),
    (math.nan, "nan (of type <class 'float'>)"),
    (math.inf, "inf (of type <class 'float'>)"),
    ("0.1", "0.1 (of type <class 'str'>)"),
    (None, "None (of type <class 'NoneType'>)"),
    (True, "True (of type <class 'bool'>)"),
]


@pytest.mark.parametrize(("ours", "keras_own", "strengths"), TWINS)
@pytest.mark.parametrize(("value", "received"), REFUSED)
def test_bad_strengths_are_refused(ours, keras_own, strengths, value, received):
    for name in strengths:
        expected = (
            f"Argument `{name}` must be a finite number, zero or above. Received: {name}={received}"
        )
        with pytest.raises(ValueError) as error:
            ours(**{name: value})
        assert str(error.value) == expected
        penalty = ours(**strengths)
        with pytest.raises(ValueError) as error:
            setattr(penalty, name, value)
        assert str(error.value) == expected
        assert penalty.get_config() == strengths


# penalties(model).


def test_penalties_are_listed_by_the_path_of_the_weight():
    model = _net(L2(0.5), keras.regularizers.L1(0.25), L1L2(1.0, 1.0))
    conv, dense = model.get_layer("conv"), model.get_layer("dense")
    kernels = [ops.convert_to_numpy(layer.kernel) for layer in (conv, dense)]
    listed = penalties(model)
    assert list(listed) == [conv.kernel.path, dense.kernel.path, dense.bias.path]
    assert {type(value) for value in listed.values()} == {float}
    expected = [0.5 * np.sum(kernels[0] ** 2), 0.25 * np.sum(np.abs(kernels[1])), 6.0]
    np.testing.assert_allclose(list(listed.values()), expected, rtol=1e-6)


def test_penalties_add_up_to_what_the_loss_contains():
    model, plain = _compiled(_net(L2(0.5), L1(0.25), L2(1.0))), _compiled(_net())
    x, y = np.ones((4, 5, 5, 2)), np.ones((4, 3))
    rise = model.evaluate(x, y, verbose=0) - plain.evaluate(x, y, verbose=0)
    assert math.isclose(sum(penalties(model).values()), rise, rel_tol=1e-5)


def test_penalties_of_submodels_with_equal_names_are_all_listed():
    def tower():
        inputs = keras.Input((3,))
        layer = keras.layers.Dense(
            2, kernel_initializer="ones", kernel_regularizer=L2(0.5), name="d"
        )
        return keras.Model(inputs, layer(inputs))

    inputs = keras.Input((3,))
    model = keras.Model(inputs, tower()(inputs) + tower()(inputs))
    assert list(penalties(model).values()) == [3.0, 3.0]


def test_a_model_without_penalties_has_none():
    assert penalties(_net()) == {}


def test_frozen_weights_have_no_penalty_as_in_keras():
    model = _net(L2(0.5), L2(0.5))
    model.get_layer("conv").trainable = False
    assert list(penalties(model)) == [model.get_layer("dense").kernel.path]
    assert len(model.losses) == 1
