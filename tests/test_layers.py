"""The recording layers: what they record, and that nothing else changes through them."""

import h5py
import keras
import numpy as np
import pytest
from keras import ops
from problems import rows

from keras_regtools.backend import value_and_grad
from keras_regtools.layers import ActivationStatistics, InstrumentedBatchNormalization

pytestmark = pytest.mark.backends
BACKEND = keras.backend.backend()
JIT = [False] if BACKEND == "torch" else [False, True]  # torch.compile is not what we promise
# Both hold one and the same recorder: on the other backends one of them does.
LAYERS = [InstrumentedBatchNormalization, ActivationStatistics]
LAYERS = LAYERS if BACKEND == "tensorflow" else LAYERS[:1]
PER_STEP = ["batch_mean", "batch_variance", "mean_distance", "std_distance"]
SAMPLED = ["minimum", "maximum", "constant_share"]
IMAGES = (6, 6, 2)


def _steps(count, shape=(8, 4, 3), seed=0):
    """Batches of small integers, whose sums are exact in float32; some channels are constant."""
    rng = np.random.default_rng(seed)
    batches = rng.integers(-8, 9, size=(count, *shape)).astype("float32")
    for step in range(0, count, 3):
        batches[step, ..., 0] = 5
    return batches


def _expected(batches, axis=-1, every=10, momentum=0.99, epsilon=1e-3, masks=None):
    """What is to be recorded, written down once more with numpy alone."""
    channels = batches.shape[1:][axis] if axis < 0 else batches.shape[1 + axis]
    moving_mean, moving_variance = np.zeros(channels), np.ones(channels)
    rows = []
    for step, batch in enumerate(batches.astype("float64")):
        flat = np.moveaxis(batch, axis, -1).reshape(-1, channels)
        if masks is not None:
            flat = flat[masks[step].ravel()]
        mean, variance = flat.mean(0), flat.var(0)
        std = np.sqrt(moving_variance + epsilon)
        row = {"entries": flat, "batch_mean": mean, "batch_variance": variance}
        row["mean_distance"] = np.abs(mean - moving_mean) / std
        row["std_distance"] = np.abs(np.sqrt(variance) - std) / std
        rows.append(row)
        moving_mean = momentum * moving_mean + (1 - momentum) * mean
        moving_variance = momentum * moving_variance + (1 - momentum) * variance
    entries = np.concatenate([row["entries"] for row in rows[::every]])
    with np.errstate(invalid="ignore", divide="ignore"):
        z = (entries - entries.mean(0)) / entries.std(0)
    return {
        "rows": rows,
        "every": every,
        "steps": len(batches),
        "skewness": (z**3).mean(0),
        "kurtosis": (z**4).mean(0) - 3,
        "minimum": entries.min(0),
        "maximum": entries.max(0),
        "zero_share": (entries == 0).mean(0),
        "absolute_mean": np.abs(entries).mean(0),
        "dead": (entries.max(0) <= 0).astype(float),
        "constant_share": np.mean([row["batch_variance"] < 1e-6 for row in rows[::every]], axis=0),
        "nan_steps": np.zeros(channels),
        "nan_count": np.zeros(channels),
        "first_nan_step": np.full(channels, -1.0),
    }


def _of_steps(expected, layer):
    """What is averaged or pooled over the steps, of which an identity samples some."""
    identity = isinstance(layer, ActivationStatistics)
    rows = expected["rows"][:: expected["every"] if identity else 1]
    entries = np.concatenate([row["entries"] for row in rows])
    names = [name for name in PER_STEP if not (identity and "distance" in name)]
    means = {name: np.mean([row[name] for row in rows], axis=0) for name in names}
    return means | {"mean": entries.mean(0), "variance": entries.var(0)}


def _assert_recorded(layer, expected, rtol=1e-5):
    statistics = layer.statistics()
    expected = {k: v for k, v in expected.items() if k not in ("rows", "every")} | _of_steps(
        expected, layer
    )
    percentiles = {"percentile_15", "percentile_50", "percentile_85"}
    own = {"abs_gamma", "beta"} - {n for n in ("abs_gamma", "beta") if n not in statistics}
    assert set(statistics) == set(expected) | percentiles | own
    assert type(statistics["steps"]) is int
    for name in expected:
        np.testing.assert_allclose(
            statistics[name], expected[name], rtol=rtol, atol=2e-6, err_msg=name
        )


def _assert_same_statistics(one, other, rtol=0.0):
    one, other = one.statistics(), other.statistics()
    assert list(one) == list(other)
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=rtol, err_msg=name)


def _train(layer, batches, **call):
    for batch in batches:
        layer(batch, training=True, **call)


def _assert_equal(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


def _net(*middle, input_shape=IMAGES):
    """A small net around the given layers, always with the same initial weights."""
    start = keras.initializers.GlorotUniform(seed=1)
    return keras.Sequential(
        [
            keras.Input(input_shape),
            keras.layers.Conv2D(3, 3, kernel_initializer=start, name="conv"),
            *middle,
            keras.layers.Activation("relu", name="relu"),
            keras.layers.GlobalAveragePooling2D(name="pool"),
            keras.layers.Dense(3, kernel_initializer=start, name="dense"),
        ],
        name="net",
    )


def _data(samples=24, seed=3):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(samples, *IMAGES)).astype("float32"), rng.integers(0, 3, samples)


def _fit(model, jit_compile="auto", epochs=1, validation=None, batch_size=8, **compile_options):
    model.compile(
        keras.optimizers.SGD(0.1, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=jit_compile,
        **compile_options,
    )
    x, y = _data()
    return model.fit(
        x,
        y,
        batch_size=batch_size,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        validation_data=validation,
    )


# What is recorded.


@pytest.mark.parametrize("layer_class", LAYERS)
@pytest.mark.parametrize(
    ("steps", "options"),
    [
        (1, {}),
        (11, {}),  # the second sampled step
        (5, {"record_every": 1}),
        (7, {"record_every": 3}),
        (12, {"record_every": 100}),
    ],
)
def test_the_record_is_what_numpy_computes(layer_class, steps, options):
    layer = layer_class(**options)
    batches = _steps(steps)
    _train(layer, batches)
    _assert_recorded(layer, _expected(batches, every=options.get("record_every", 10)))


@pytest.mark.parametrize("layer_class", LAYERS)
@pytest.mark.parametrize("axis", [2, -3])
def test_any_axis_can_be_the_channel_axis(layer_class, axis):
    layer = layer_class(axis=axis, record_every=2)
    batches = _steps(3, shape=(4, 2, 5, 3))
    _train(layer, batches)
    _assert_recorded(layer, _expected(batches, axis=axis, every=2))


@pytest.mark.parametrize("layer_class", LAYERS)
def test_inputs_of_rank_two_are_recorded(layer_class):
    layer = layer_class()
    batches = _steps(2, shape=(8, 3))
    _train(layer, batches)
    _assert_recorded(layer, _expected(batches))


@pytest.mark.parametrize("options", [{"momentum": 0.5}, {"epsilon": 0.1}])
def test_distances_follow_the_momentum_and_epsilon_of_the_layer(options):
    layer = InstrumentedBatchNormalization(**options)
    batches = _steps(6)
    _train(layer, batches)
    _assert_recorded(layer, _expected(batches, **options))


@pytest.mark.parametrize("sampled", [True, False])
def test_extremes_are_those_of_the_sampled_steps(sampled):
    layer = ActivationStatistics(record_every=3)
    batches = np.zeros((4, 2, 1), "float32")
    batches[3 if sampled else 2] = [[-9], [7]]
    _train(layer, batches)
    statistics = layer.statistics()
    extremes = statistics["minimum"].item(), statistics["maximum"].item()
    assert extremes == ((-9, 7) if sampled else (0, 0))


def test_extremes_on_one_side_of_zero_do_not_include_zero():
    layer = ActivationStatistics(record_every=1)
    _train(layer, np.array([[[3.0, -5.0], [4.0, -6.0]], [[2.0, -4.0], [5.0, -7.0]]]))
    statistics = layer.statistics()
    np.testing.assert_array_equal(statistics["minimum"], [2, -7])
    np.testing.assert_array_equal(statistics["maximum"], [5, -4])


@pytest.mark.parametrize(("spread", "share"), [(0.9e-3, 1.0), (1.1e-3, 0.0)])
def test_a_channel_counts_as_constant_below_a_variance_of_one_millionth(spread, share):
    layer = ActivationStatistics()
    layer(np.array([[-spread], [spread]]), training=True)
    assert layer.statistics()["constant_share"].item() == share


@pytest.mark.parametrize("value", [0.1, -0.1, 5.1])
def test_a_constant_channel_has_no_variance_and_full_distance(value):
    layer = InstrumentedBatchNormalization(epsilon=1e-3)
    layer(np.full((64, 2), value), training=True)
    statistics = layer.statistics()
    np.testing.assert_allclose(statistics["batch_variance"], [0, 0], atol=1e-9)
    np.testing.assert_allclose(statistics["std_distance"], [1, 1], rtol=1e-4)
    np.testing.assert_array_equal(statistics["constant_share"], [1, 1])


@pytest.mark.parametrize("layer_class", LAYERS)
def test_the_variance_of_a_channel_far_from_zero_is_recorded_right(layer_class):
    layer = layer_class()
    batch = np.random.default_rng(0).normal(3000, 1, size=(64, 2)).astype("float32")
    layer(batch, training=True)
    expected = batch.astype("float64").var(0)
    np.testing.assert_allclose(layer.statistics()["batch_variance"], expected, rtol=1e-3)


@pytest.mark.parametrize("layer_class", LAYERS)
def test_after_a_reset_recording_begins_anew_with_a_sampled_step(layer_class):
    layer = layer_class(record_every=4)
    batches = _steps(9)
    _train(layer, batches[:6])
    layer.reset_statistics()
    _train(layer, batches[6:])
    fresh = _expected(batches[6:], every=4)
    fresh["rows"] = _expected(batches)["rows"][6:]  # the moving statistics were not reset
    statistics = layer.statistics()
    assert {"mean_drift", "percentile_drift"} <= set(statistics)
    layer._last = None  # what is compared with the last reading has tests of its own
    _assert_recorded(layer, fresh)


@pytest.mark.parametrize("layer_class", LAYERS)
def test_a_reading_does_not_move_on_with_training(layer_class):
    layer = layer_class(record_every=1)
    batches = _steps(3)
    _train(layer, batches[:2])
    reading = layer.statistics()
    kept = {name: np.copy(value) for name, value in reading.items()}
    _train(layer, batches[2:])
    layer.reset_statistics()
    for name, value in reading.items():
        np.testing.assert_array_equal(value, kept[name])


@pytest.mark.parametrize("steps", [1, 20])
def test_identical_batches_move_the_statistics_by_the_closed_form(steps):
    layer = InstrumentedBatchNormalization(epsilon=1e-3)
    batch = _steps(2)[1]
    mean, variance = batch.mean((0, 1)), batch.var((0, 1))
    _train(layer, [batch] * steps)
    remains = 0.99**steps
    np.testing.assert_allclose(layer.moving_mean, mean * (1 - remains), rtol=1e-5)
    np.testing.assert_allclose(layer.moving_variance, remains + variance * (1 - remains), rtol=1e-5)
    remains = 0.99 ** np.arange(steps)[:, None]
    distance = np.abs(mean) * remains / np.sqrt(remains + variance * (1 - remains) + 1e-3)
    statistics = layer.statistics()
    np.testing.assert_allclose(statistics["mean_distance"], distance.mean(0), rtol=1e-5)
    np.testing.assert_array_equal(statistics["batch_mean"], mean)


@pytest.mark.parametrize("layer_class", LAYERS)
def test_masked_entries_do_not_count(layer_class):
    layer = layer_class(record_every=2)
    batches = _steps(3)
    masks = np.random.default_rng(1).random((3, 8, 4)) < 0.6
    batches[~masks] = 1000
    for batch, mask in zip(batches, masks, strict=True):
        layer(batch, training=True, mask=mask)
    expected = _expected(batches, every=2, masks=masks)
    _assert_recorded(layer, expected)


def test_a_mask_moves_the_statistics_of_the_plain_layer():
    mask = np.random.default_rng(1).random((8, 4)) < 0.6
    layers = keras.layers.BatchNormalization(), InstrumentedBatchNormalization()
    plain, ours = (layer(_steps(1)[0], training=True, mask=mask) for layer in layers)
    np.testing.assert_array_equal(ops.convert_to_numpy(ours), ops.convert_to_numpy(plain))
    _assert_equal(layers[1].get_weights(), layers[0].get_weights())


@pytest.mark.parametrize("shape", [(8,), (8, 4, 3)])
def test_a_mask_of_the_wrong_rank_is_refused_as_by_the_plain_layer(shape):
    messages = []
    for layer_class in (keras.layers.BatchNormalization, InstrumentedBatchNormalization):
        with pytest.raises(ValueError, match="mask provided should be one dimension") as error:
            layer_class(name="n")(_steps(1)[0], training=True, mask=np.ones(shape, "bool"))
        messages.append(str(error.value).replace(layer_class.__name__, ""))
    assert messages[1] == messages[0]


@pytest.mark.parametrize("layer_class", LAYERS)
def test_the_mask_of_a_masking_layer_arrives_and_is_passed_on(layer_class):
    layer = layer_class(record_every=1)
    model = keras.Sequential([keras.Input((4, 3)), keras.layers.Masking(), layer])
    batch = _steps(2)[1]
    batch[:, 2:] = 0
    outputs = model(batch, training=True)
    np.testing.assert_array_equal(layer.statistics()["batch_mean"], batch[:, :2].mean((0, 1)))
    mask = ops.convert_to_numpy(outputs._keras_mask)
    np.testing.assert_array_equal(mask, batch.any(-1))


@pytest.mark.parametrize("inner", [keras.layers.Flatten, lambda: keras.layers.Conv2D(2, 3)])
def test_a_mask_that_does_not_fit_the_input_any_more_is_left_out(inner):
    layer = ActivationStatistics()
    model = keras.Sequential(
        [
            keras.Input((3, *IMAGES)),
            keras.layers.Masking(),
            keras.layers.TimeDistributed(inner()),  # passes the mask of its input on
            layer,
        ]
    )
    batch = _steps(2, shape=(4, 3, *IMAGES))[1]
    batch[:, 2] = 0
    outputs = ops.convert_to_numpy(model(batch, training=True))
    channels = outputs.shape[-1]
    expected = outputs.reshape(-1, channels).mean(0)
    received = layer.statistics()["batch_mean"]
    np.testing.assert_allclose(received, expected, rtol=1e-4, atol=1e-5)


def test_a_frozen_layer_records_and_stays_as_it_is():
    layer = InstrumentedBatchNormalization(trainable=False)
    batches = _steps(4)
    _train(layer, batches)
    _assert_recorded(layer, _expected(batches, momentum=1.0))
    _assert_equal(layer.get_weights(), [np.ones(3), np.zeros(3), np.zeros(3), np.ones(3)])


@pytest.mark.parametrize("layer_class", LAYERS)
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float16"])
def test_half_precision_does_not_overflow(layer_class, policy):
    layer = layer_class(dtype=policy)
    batch = np.array([[300.0, 1.0], [-300.0, 1.0]])
    assert keras.backend.standardize_dtype(layer(batch, training=True).dtype) == layer.compute_dtype
    statistics = layer.statistics()
    np.testing.assert_array_equal(statistics["batch_variance"], [90000, 0])
    np.testing.assert_array_equal(statistics["minimum"], [-300, 1])
    assert statistics["batch_variance"].dtype == "float32"


@pytest.mark.parametrize("layer_class", LAYERS)
def test_nan_in_one_channel_is_recorded_as_nan_there_and_nowhere_else(layer_class):
    layer = layer_class()
    layer(np.array([[np.nan, 1.0], [2.0, 3.0]]), training=True)
    statistics = layer.statistics()
    for name in ("batch_mean", "batch_variance", "minimum", "maximum"):
        np.testing.assert_array_equal(np.isnan(statistics[name]), [True, False], err_msg=name)
    np.testing.assert_array_equal(statistics["constant_share"], [0, 0])


# When it is recorded.


@pytest.mark.parametrize("layer_class", LAYERS)
@pytest.mark.parametrize("use", ["never", "inference", "default", "symbolic", "reset"])
def test_statistics_before_any_training_step_are_an_error(layer_class, use):
    layer = layer_class(name="here")
    if use == "inference":
        layer(_steps(1)[0], training=False)
    elif use == "default":
        layer(_steps(1)[0])
    elif use == "symbolic":
        layer(keras.Input((4, 3)), training=True)
    elif use == "reset":
        _train(layer, _steps(1))
        layer.reset_statistics()
    with pytest.raises(ValueError) as error:
        layer.statistics()
    assert str(error.value) == (
        "Expected at least one training step. Received: none, in the layer 'here'"
    )


@pytest.mark.parametrize("layer_class", LAYERS)
def test_a_layer_that_was_never_built_can_be_reset(layer_class):
    layer = layer_class()
    layer.reset_statistics()
    _train(layer, _steps(1))
    assert layer.statistics()["steps"] == 1


@pytest.mark.parametrize("layer_class", rows(LAYERS, InstrumentedBatchNormalization))
def test_evaluation_and_prediction_record_nothing(layer_class):
    layer = layer_class()
    model = _net(layer)
    _fit(model)
    before = layer.statistics()
    x, y = _data(seed=9)
    model.evaluate(x, y, verbose=0)
    model.predict(x, verbose=0)
    for name, value in layer.statistics().items():
        np.testing.assert_array_equal(value, before[name])


# Inside `fit`.


@pytest.mark.parametrize("jit_compile", rows(JIT, JIT[0]))
@pytest.mark.parametrize("layer_class", rows(LAYERS, InstrumentedBatchNormalization))
def test_fit_records_every_training_step(layer_class, jit_compile):
    layer = layer_class(name="here", record_every=4)
    model = _net(layer)
    conv = model.get_layer("conv")
    conv.trainable = False  # the same inputs in every epoch
    x, y = _data()
    inputs = ops.convert_to_numpy(conv(x)).reshape(3, 8, 4, 4, 3)
    _fit(model, jit_compile=jit_compile, epochs=2, validation=(x[:8], y[:8]))
    _assert_recorded(layer, _expected(np.concatenate([inputs, inputs]), every=4))


OPTIONS = [
    {},
    {"momentum": 0.5, "epsilon": 0.1, "scale": False, "axis": 1},
    {"trainable": False, "center": False},
    {"renorm": True},
]


@pytest.mark.parametrize(
    ("options", "jit_compile"),
    rows(
        [(options, jit) for options in OPTIONS for jit in JIT],
        (OPTIONS[0], JIT[0]),
        (OPTIONS[-1], JIT[0]),
    ),
    ids=str,
)
def test_a_fit_ends_in_the_weights_of_the_plain_layer(options, jit_compile):
    plain = _net(keras.layers.BatchNormalization(**options))
    ours = _net(InstrumentedBatchNormalization(**options))
    expected = _fit(plain, jit_compile).history
    received = _fit(ours, jit_compile).history
    if jit_compile:
        np.testing.assert_allclose(received["loss"], expected["loss"], rtol=1e-5)
        for a, b in zip(ours.get_weights(), plain.get_weights(), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    else:
        assert received == expected
        _assert_equal(ours.get_weights(), plain.get_weights())


@pytest.mark.slow
@pytest.mark.parametrize("layer_class", LAYERS)
def test_a_fit_in_mixed_precision_ends_in_the_weights_of_the_plain_layer(layer_class):
    keras.config.set_dtype_policy("mixed_float16")
    recording = layer_class is InstrumentedBatchNormalization
    plain = _net(*[keras.layers.BatchNormalization()] * recording)
    ours = _net(layer_class(name="here"))
    _fit(plain, jit_compile=False)
    _fit(ours, jit_compile=False)
    _assert_equal(ours.get_weights(), plain.get_weights())
    assert ours.get_layer("here").statistics()["steps"] == 3


@pytest.mark.parametrize("training", [True, False])
# JAX has no float64 unless the user asks for it before all else.
@pytest.mark.parametrize("dtype", ["float32", "mixed_float16", "float64"][: 3 - (BACKEND == "jax")])
def test_outputs_and_gradients_are_those_of_the_plain_layer(training, dtype):
    x = np.random.default_rng(2).normal(3, 2, size=(8, 4, 3))
    weight = np.random.default_rng(3).normal(size=(8, 4, 3))
    found = []
    for layer_class in (keras.layers.BatchNormalization, InstrumentedBatchNormalization):
        layer = layer_class(dtype=dtype)
        layer.build(x.shape)
        states = [v.value for v in layer.non_trainable_variables]

        def loss(params, x, layer=layer, states=states):
            trainable, inputs = params[:-1], params[-1]
            outputs, _ = layer.stateless_call(trainable, states, inputs, training=training)
            return ops.sum(ops.cast(outputs, "float32") * ops.cast(weight, "float32")), outputs

        params = [ops.copy(v.value) for v in layer.trainable_variables]
        params.append(ops.convert_to_tensor(x, layer.variable_dtype))
        outputs = loss(params, x)[1]
        gradients = value_and_grad(lambda p, loss=loss, x=x: loss(p, x)[0])(params)[1]
        found.append([ops.convert_to_numpy(t) for t in (outputs, *gradients)])
    _assert_equal(found[1], found[0])


@pytest.mark.parametrize("jit_compile", rows(JIT, JIT[0]))
def test_activation_statistics_do_not_change_the_training(jit_compile):
    plain, ours = _net(), _net(ActivationStatistics(record_every=3))
    _fit(plain, jit_compile, epochs=2)
    _fit(ours, jit_compile, epochs=2)
    for a, b in zip(ours.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4 if jit_compile else 0, atol=1e-6 * jit_compile)


@pytest.mark.slow
@pytest.mark.parametrize("layer_class", LAYERS)
# Keras has no steps_per_execution on PyTorch.
@pytest.mark.parametrize("steps_per_execution", [1] if BACKEND == "torch" else [4])
def test_several_steps_per_execution_record_the_same(layer_class, steps_per_execution):
    one, several = layer_class(record_every=3), layer_class(record_every=3)
    _fit(_net(one), batch_size=4)  # six steps
    _fit(_net(several), batch_size=4, steps_per_execution=steps_per_execution)
    _assert_same_statistics(one, several, rtol=1e-5)


@pytest.mark.parametrize("layer_class", LAYERS)
def test_a_layer_used_twice_records_both_uses(layer_class):
    layer = layer_class(record_every=1, trainable=False)  # the order of the uses is Keras' own
    first, second = keras.Input((3,)), keras.Input((3,))
    model = keras.Model([first, second], [layer(first), layer(second)])
    batches = _steps(2, shape=(8, 3))
    model(list(batches), training=True)
    expected = _expected(batches, every=1, momentum=1.0)
    _assert_recorded(layer, {**expected, "steps": 1})  # two calls, one step


# Weights, files, configuration.


def test_weights_of_the_layer_are_those_of_the_plain_layer():
    plain, ours = (
        keras.layers.BatchNormalization(name="n"),
        InstrumentedBatchNormalization(name="n"),
    )
    for layer in (plain, ours):
        layer.build((None, 4))
    for names in ("weights", "trainable_weights", "non_trainable_weights", "trainable_variables"):
        listed = [(w.path, w.shape, w.dtype) for w in getattr(plain, names)]
        assert [(w.path, w.shape, w.dtype) for w in getattr(ours, names)] == listed
    assert ours.count_params() == plain.count_params() == 16
    values = [np.full(4, i) for i in range(4)]
    ours.set_weights(values)
    _assert_equal(ours.get_weights(), values)


@pytest.mark.parametrize(
    ("ours", "plain"),
    [
        (InstrumentedBatchNormalization, [keras.layers.BatchNormalization]),
        (ActivationStatistics, []),
    ],
)
def test_weights_of_a_model_are_those_of_the_plain_model(ours, plain):
    ours, plain = _net(ours()), _net(*(layer() for layer in plain))
    assert [w.shape for w in ours.weights] == [w.shape for w in plain.weights]
    assert ours.count_params() == plain.count_params()
    ours.set_weights(plain.get_weights())
    _assert_equal(ours.get_weights(), plain.get_weights())


def test_activation_statistics_have_no_weights():
    layer = ActivationStatistics()
    layer.build((None, 3))
    assert (layer.weights, layer.trainable_variables, layer.count_params()) == ([], [], 0)


@pytest.mark.parametrize("layer_class", LAYERS)
@pytest.mark.parametrize("suffix", rows([".keras", ".weights.h5"], ".keras"))
def test_files_carry_the_record(layer_class, suffix, tmp_path):
    model = _net(layer_class(name="here", record_every=3))
    _fit(model)
    path = tmp_path / f"model{suffix}"
    if suffix == ".keras":
        model.save(path)
        loaded = keras.models.load_model(path)
    else:
        model.save_weights(path)
        loaded = _net(layer_class(name="here", record_every=3))
        loaded.load_weights(path)
    _assert_equal(loaded.get_weights(), model.get_weights())
    layers = [m.get_layer("here") for m in (model, loaded)]
    _assert_same_statistics(*layers)
    for layer in layers:  # the record goes on where it stood
        layer.trainable = True
        _train(layer, _steps(3, shape=(8, 4, 4, 3)))
    assert layers[1].statistics()["steps"] == 6
    _assert_same_statistics(*layers)


@pytest.mark.parametrize("layer_class", rows(LAYERS, LAYERS[-1]))
def test_a_weight_file_without_the_record_loads(layer_class, tmp_path):
    model = _net(layer_class(name="here"))
    _fit(model)
    path = tmp_path / "model.weights.h5"
    model.save_weights(path)
    with h5py.File(path, "a") as file:
        recorders = []
        file.visit(lambda name: recorders.append(name) if name.endswith("/recorder") else None)
        assert len(recorders) == 1
        del file[recorders[0]]
    fresh = _net(layer_class(name="here"))
    fresh.load_weights(path)
    _assert_equal(fresh.get_weights(), model.get_weights())
    _fit(fresh)
    assert fresh.get_layer("here").statistics()["steps"] == 3


@pytest.mark.slow
@pytest.mark.parametrize("layer_class", LAYERS)
def test_a_weight_file_of_other_settings_loads_without_its_record(layer_class, tmp_path):
    model = _net(layer_class(name="here", record=["mean"], record_channels=[0], record_every=3))
    _fit(model)
    model.save_weights(tmp_path / "model.weights.h5")
    fresh = _net(layer_class(name="here"))
    fresh.load_weights(tmp_path / "model.weights.h5")
    _assert_equal(fresh.get_weights(), model.get_weights())
    with pytest.raises(ValueError, match="Expected at least one training step"):
        fresh.get_layer("here").statistics()
    _fit(fresh)
    assert fresh.get_layer("here").statistics()["steps"] == 3


def test_the_stored_variables_of_a_plain_layer_load():
    plain, ours = keras.layers.BatchNormalization(), InstrumentedBatchNormalization()
    _train(plain, _steps(3))
    _train(ours, _steps(2))
    store = {}
    plain.save_own_variables(store)
    ours.load_own_variables(store)
    _assert_equal(ours.get_weights(), plain.get_weights())
    ours.recorder.load_own_variables({})
    assert ours.statistics()["steps"] == 2


def test_the_stored_variables_are_those_of_a_plain_layer():
    plain, ours = keras.layers.BatchNormalization(), InstrumentedBatchNormalization()
    stores = {}, {}
    for layer, store in zip((plain, ours), stores, strict=True):
        _train(layer, _steps(3))
        layer.save_own_variables(store)
    assert list(stores[1]) == list(stores[0])
    _assert_equal([np.asarray(v) for v in stores[1].values()], plain.get_weights())


@pytest.mark.parametrize("layer_class", LAYERS)
def test_the_configuration_brings_the_layer_back(layer_class):
    layer = layer_class(axis=1, record_every=7, name="here")
    twin = layer_class.from_config(layer.get_config())
    assert twin.get_config() == layer.get_config()
    assert (twin.axis, twin.get_config()["record_every"], twin.name) == (1, 7, "here")


@pytest.mark.parametrize("layer_class", LAYERS)
def test_a_cloned_model_has_a_record_of_its_own(layer_class):
    model = _net(layer_class(name="here", record_every=2))
    model(_data()[0], training=True)
    clone = keras.models.clone_model(model)
    clone(_data()[0], training=True)
    clone(_data()[0], training=True)
    steps = [m.get_layer("here").statistics()["steps"] for m in (model, clone)]
    assert steps == [1, 2]
    assert clone.get_layer("here").get_config()["record_every"] == 2


@pytest.mark.parametrize("layer_class", LAYERS)
@pytest.mark.parametrize(
    ("value", "received"),
    [
        (0, "0 (of type <class 'int'>)"),
        (-1, "-1 (of type <class 'int'>)"),
        (2.5, "2.5 (of type <class 'float'>)"),
        (True, "True (of type <class 'bool'>)"),
        (None, "None (of type <class 'NoneType'>)"),
        ("10", "10 (of type <class 'str'>)"),
    ],
)
def test_record_every_must_be_a_positive_integer(layer_class, value, received):
    with pytest.raises(ValueError) as error:
        layer_class(record_every=value)
    assert str(error.value) == (
        f"Argument `record_every` must be a positive integer. Received: record_every={received}"
    )


# ActivationStatistics alone.


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float16", "int32"])
def test_activation_statistics_give_back_their_input(training, dtype):
    inputs = ops.convert_to_tensor([[1, 2], [3, 5]], dtype)
    outputs = ActivationStatistics(dtype=None if dtype == "int32" else dtype)(
        inputs, training=training
    )
    assert keras.backend.standardize_dtype(outputs.dtype) == dtype
    np.testing.assert_array_equal(ops.convert_to_numpy(outputs), [[1, 2], [3, 5]])


def test_activation_statistics_of_integers_are_recorded():
    layer = ActivationStatistics()
    layer(ops.convert_to_tensor([[1, 2], [3, 5]], "int32"), training=True)
    np.testing.assert_array_equal(layer.statistics()["batch_mean"], [2, 3.5])


def test_activation_statistics_keep_the_shape():
    assert ActivationStatistics().compute_output_shape((None, 4, 3)) == (None, 4, 3)
    assert ActivationStatistics()(keras.Input((4, 3))).shape == (None, 4, 3)


def test_activation_statistics_of_rank_one_are_refused():
    with pytest.raises(ValueError) as error:
        ActivationStatistics().build((8,))
    assert str(error.value) == (
        "Expected an input of rank 2 or more, with samples and channels. Received: input_shape=(8,)"
    )
