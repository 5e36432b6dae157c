"""Kinds of models that surgery once changed or broke, judged by plain Keras and numpy."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_regtools as rt

pytestmark = pytest.mark.backends
RNG = np.random.default_rng(0)
X = RNG.standard_normal((8, 4)).astype("float32")
Y = X[:, :1]
KEEPING = {
    "instrument": rt.instrument,
    "strip": rt.strip,
    "dropout": lambda model: rt.regularize(model, dense_dropout=0.5),
}


def caught(function, model):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        new = function(model)
    return new, [str(w.message) for w in seen if "regularize`" in str(w.message)]


def dropouts(model):
    return {m.name: m.rate for m in model.layers if isinstance(m, layers.Dropout)}


def added(model, **what):
    """The names that `regularize` adds, of models inside too."""

    def names(of):
        return {m.name for m in of._flatten_layers(include_self=False)}

    return {
        name.removesuffix("_batch_norm").removesuffix("_dropout")
        for name in names(rt.regularize(model, batch_norm=True, **what)) - names(model)
        if name.endswith(("_batch_norm", "_dropout"))
    }


# --- the function stays ---------------------------------------------------------------------------


def penalized():
    """One layer used twice, a model used twice, penalties on all that can have one."""
    inputs, inner = keras.Input((4,)), keras.Input((4,))
    dense = layers.Dense(4, "relu", activity_regularizer="l1", kernel_regularizer="l2")
    block = keras.Model(inner, layers.Dense(4, "tanh", activity_regularizer="l2")(inner))
    z = block(block(dense(dense(inputs))))
    z = layers.BatchNormalization(activity_regularizer="l1", gamma_regularizer="l2")(z)
    z = layers.ReLU(activity_regularizer="l2")(z)
    return keras.Model(inputs, layers.Dense(1)(z))


@pytest.mark.parametrize("how", KEEPING)
def test_penalties_of_shared_and_nested_layers_stay(how):
    model = penalized()
    model.compile("sgd", "mse")
    new = KEEPING[how](model)
    np.testing.assert_allclose(new.predict(X, verbose=0), model.predict(X, verbose=0), atol=1e-6)
    assert new.evaluate(X, Y, verbose=0) == pytest.approx(model.evaluate(X, Y, verbose=0))


def test_an_activity_penalty_stays_on_the_activation_behind_batch_normalization():
    members = [layers.Dense(3, "relu", activity_regularizer="l1"), layers.Dense(1)]
    model = keras.Sequential([keras.Input((4,)), *members])
    model.compile("sgd", "mse")
    kernel, _, last, _ = model.get_weights()
    hidden = np.maximum(X @ kernel / np.sqrt(1 + 1e-3), 0)
    expected = np.mean((hidden @ last - Y) ** 2) + 0.01 * np.abs(hidden).sum() / len(X)
    new = rt.regularize(model, batch_norm=True)
    assert new.evaluate(X, Y, verbose=0) == pytest.approx(expected, rel=1e-4)


def test_one_activation_serves_several_widths_and_ranks():
    inputs, act = keras.Input((2, 4)), layers.Activation("tanh")
    z = layers.Flatten()(act(layers.Dense(3)(inputs)))
    model = keras.Model(inputs, layers.Dense(1)(act(layers.Dense(5)(z))))
    x = X.reshape(4, 2, 4)[:, :, ::-1].repeat(2, 0)
    new = rt.instrument(model, record_every=1)
    np.testing.assert_allclose(new.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-6)
    new.compile("sgd", "mse")
    new.fit(x, Y, verbose=0)
    widths = [
        len(m.statistics()["mean"])
        for m in new.layers
        if isinstance(m, rt.layers.ActivationStatistics)
    ]
    assert sorted(widths) == [3, 5]


def test_attention_over_any_length_and_numbers_per_sample_stay():
    inputs = keras.Input((None, 4))
    scores = layers.Softmax()(layers.Dot(axes=2)([layers.Dense(4, "relu")(inputs), inputs]))
    mixed = layers.GlobalAveragePooling1D()(layers.Dot(axes=(2, 1))([scores, inputs]))
    model = keras.Model(inputs, layers.Activation("sigmoid")(ops.sum(mixed, -1)))
    with pytest.warns(UserWarning, match="Recorders need samples and a known number of channels"):
        new = rt.instrument(model)
    x = X.reshape(4, 2, 4)
    np.testing.assert_allclose(new.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-6)


class Sum(layers.Layer):
    def call(self, x, y=None):
        return x if y is None else x + y


def test_optional_and_named_inputs_stay():
    inputs = {"a": keras.Input((4,), name="a"), "b": keras.Input((4,), name="b", optional=True)}
    z = layers.Dense(3, "tanh")(Sum()(inputs["a"], inputs["b"]))
    model = keras.Model(inputs, {"one": layers.Dense(1)(z), "two": z})
    new = rt.strip(rt.instrument(model))
    for data in ({"a": X, "b": None}, {"a": X, "b": 2 * X}):
        expected, got = model(data), new(data)
        assert set(got) == {"one", "two"}
        for key in got:
            right = ops.convert_to_numpy(expected[key])
            np.testing.assert_allclose(ops.convert_to_numpy(got[key]), right, atol=1e-6)


def test_channels_first_layers_are_normalized_over_their_channels():
    kwargs = {"data_format": "channels_first", "padding": "same"}
    members = [
        layers.SeparableConv2D(5, 3, activation="relu", name="first", **kwargs),
        layers.Conv2DTranspose(2, 3, name="second", **kwargs),
    ]
    inputs = keras.Input((3, 6, 7))
    outputs = members[1](members[0](inputs))
    model = keras.Model(inputs, layers.Dense(1)(layers.Flatten()(outputs)))
    new = rt.regularize(model, batch_norm=True)
    made = [new.get_layer(f"{m.name}_batch_norm") for m in members]
    assert [(m.axis, tuple(m.gamma.shape)) for m in made] == [(1, (5,)), (1, (2,))]


# --- logits stay logits ---------------------------------------------------------------------------


def conv(name, activation=None):
    return layers.Conv2D(4, 3, padding="same", activation=activation, name=name)


def pooled_and_scaled(z):
    z = layers.Rescaling(2.0)(layers.GlobalMaxPooling2D()(conv("logits")(z)))
    return layers.Activation("softmax")(z)


def nested_head(z):
    inner = keras.Input((4, 4, 4))
    return keras.Model(inner, layers.Flatten()(conv("logits")(inner)))(z)


ENDS = {
    "pooled and scaled": pooled_and_scaled,
    "operations": lambda z: ops.mean(conv("logits")(z), (1, 2)) * 3,
    "a sum of two": lambda z: layers.Add()([conv("logits")(z), conv("others")(z)]),
    "a head": nested_head,
    "two outputs": lambda z: [conv("logits", "sigmoid")(z), layers.Flatten()(conv("others")(z))],
}


@pytest.mark.parametrize("end", ENDS)
def test_nothing_is_put_on_what_no_kernel_follows(end):
    inputs = keras.Input((4, 4, 1))
    model = keras.Model(inputs, ENDS[end](conv("hidden", "relu")(inputs)))
    assert added(model, conv_dropout=0.5) == {"hidden"}


def test_layers_inside_time_distributed_have_logits_too():
    inputs = keras.Input((3, 4))
    z = layers.TimeDistributed(layers.Dense(3, "relu"), name="hidden")(inputs)
    model = keras.Model(inputs, layers.Softmax()(layers.TimeDistributed(layers.Dense(2))(z)))
    assert added(model, dense_dropout=0.5) == {"hidden"}


def test_stochastic_depth_keeps_its_rate():
    inputs = keras.Input((4, 4, 4))
    depth = layers.Dropout(0.2, noise_shape=(None, 1, 1, 1), name="depth")
    z = layers.Add()([inputs, depth(conv("block", "relu")(inputs))])
    new = rt.regularize(keras.Model(inputs, conv("logits")(z)), conv_dropout=0.5)
    assert dropouts(new) == {"block_dropout": 0.5, "depth": 0.2}


class Block(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(4)

    def call(self, x):
        return self.dense(x)


def test_one_warning_names_all_that_is_left_as_it_is():
    inputs = keras.Input((3, 4))
    z = layers.MultiHeadAttention(1, 2, name="attention")(inputs, inputs)
    z = Block(name="block")(layers.LSTM(4, return_sequences=True, name="lstm")(z))
    both = layers.Dropout(0.1, name="both")
    z = both(layers.Dense(4, "relu")(z))
    z = both(layers.Conv1D(4, 1, activation="relu")(z))
    model = keras.Model(inputs, layers.Dense(1)(layers.Flatten()(z)))
    new, said = caught(lambda m: rt.regularize(m, dense_dropout=0.5, conv_dropout=0.3), model)
    (sentence,) = said
    for name in ("attention", "block", "lstm", "both"):
        assert f"'{name}'" in sentence
    assert dropouts(new)["both"] == 0.1


# --- what was compiled stays ----------------------------------------------------------------------


class OwnSGD(keras.optimizers.SGD):
    pass


class Warming(keras.optimizers.schedules.LearningRateSchedule):
    def __init__(self, rate):
        self.rate = rate

    def __call__(self, step):
        return self.rate * (1 + ops.cast(step, "float32"))


def excluding(optimizer):
    optimizer.exclude_from_weight_decay(var_names=["kernel"])
    return optimizer


def set_late(optimizer):
    optimizer.learning_rate = 0.003
    return optimizer


def scaled(optimizer):
    return keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=64.0)


SGD, AdamW = keras.optimizers.SGD, keras.optimizers.AdamW
OPTIMIZERS = {
    "excluded kernels": lambda: excluding(AdamW(0.01, weight_decay=0.5)),
    "clipped, rate set later": lambda: set_late(SGD(0.5, momentum=0.9, global_clipnorm=0.01)),
    "scaled loss": lambda: scaled(set_late(excluding(SGD(0.1, weight_decay=0.5)))),
    "own class and schedule": lambda: OwnSGD(Warming(0.01), use_ema=True, ema_momentum=0.5),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_copy_trains_as_the_original_would(name):
    keras.utils.set_random_seed(1)
    members = [layers.Dense(3, "tanh"), layers.Dense(1)]
    model = keras.Sequential([keras.Input((4,)), *members])
    model.compile(OPTIMIZERS[name](), "mse")
    new = rt.instrument(model)
    assert type(new.optimizer) is type(model.optimizer)
    for one in (model, new):
        one.fit(X, Y, batch_size=4, epochs=3, shuffle=False, verbose=0)
    for got, expected in zip(new.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)


def test_a_layer_used_inside_and_outside_of_time_distributed_stays_one():
    keras.utils.set_random_seed(0)
    tied = layers.Dense(4, "relu", kernel_regularizer="l2", name="tied")
    steps, vector = keras.Input((5, 4)), keras.Input((4,))
    pooled = layers.GlobalAveragePooling1D()(layers.TimeDistributed(tied)(steps))
    joined = layers.Concatenate()([pooled, tied(vector)])
    model = keras.Model([steps, vector], layers.Dense(1)(joined))
    model.compile("sgd", "mse")
    rng = np.random.default_rng(0)
    x = [rng.standard_normal(shape).astype("float32") for shape in ((6, 5, 4), (6, 4))]
    y = rng.standard_normal((6, 1)).astype("float32")
    new = rt.strip(model)
    assert len(new.weights) == len(model.weights) == 4
    expected = model.evaluate(x, y, verbose=0)
    assert new.evaluate(x, y, verbose=0) == pytest.approx(expected, rel=1e-5)


def test_a_rate_that_is_a_function_is_shared_with_the_copy():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2, "tanh")])
    model.compile(keras.optimizers.SGD(lambda: 0.02), "mse")
    rate = rt.instrument(model).optimizer.learning_rate
    assert float(keras.ops.convert_to_numpy(rate)) == pytest.approx(0.02)


def test_a_recorder_behind_a_channels_first_convolution_counts_channels():
    convolution = layers.Conv2D(4, 3, data_format="channels_first")
    ends = [layers.Flatten(), layers.Dense(2, "tanh", name="end")]
    model = keras.Sequential([keras.Input((3, 8, 8)), convolution, layers.ReLU(name="r"), *ends])
    new = rt.instrument(model)
    assert new.get_layer("r_statistics").axis == 1
    assert new.get_layer("end_statistics").axis == -1
