"""Dropout with a variable rate: Keras' own outputs, bit for bit, at every rate it is given."""

import keras
import numpy as np
import pytest

import keras_regtools as rt

pytestmark = pytest.mark.backends
array = keras.ops.convert_to_numpy
KINDS = {
    "Dropout": ((5, 40), {}),
    "noise_shape": ((5, 4, 40), {"noise_shape": (None, 1, 40)}),
    "SpatialDropout1D": ((5, 3, 40), {}),
    "SpatialDropout2D": ((5, 3, 2, 40), {}),
    "channels_first": ((5, 40, 3, 2), {"data_format": "channels_first"}),
    "SpatialDropout3D": ((5, 3, 2, 2, 40), {}),
}
CLASSES = {"noise_shape": "Dropout", "channels_first": "SpatialDropout2D"}


def pair(kind, rate, **more):
    _, settings = KINDS[kind]
    name = CLASSES.get(kind, kind)
    settings = {"seed": 7, **settings, **more}
    return getattr(rt.layers, name)(rate, **settings), getattr(keras.layers, name)(rate, **settings)


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5, 0.7, 0.99])
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_are_those_of_keras_bit_for_bit(kind, rate):
    x = np.random.default_rng(0).normal(size=KINDS[kind][0]).astype("float32")
    ours, theirs = pair(kind, rate)
    for _ in range(3):  # the seed moves as theirs
        np.testing.assert_array_equal(
            array(ours(x, training=True)), array(theirs(x, training=True))
        )
    np.testing.assert_array_equal(array(ours(x)), x)
    np.testing.assert_array_equal(array(ours(x, training=False)), x)


@pytest.mark.parametrize("dtype", ["float16", "mixed_float16", "float64"])
@pytest.mark.filterwarnings("ignore:Explicitly requested dtype float64")  # of JAX
def test_outputs_are_those_of_keras_in_other_precisions(dtype):
    x = np.random.default_rng(0).normal(size=(8, 50)).astype("float32")
    ours, theirs = pair("Dropout", 0.25, dtype=dtype)
    np.testing.assert_array_equal(array(ours(x, training=True)), array(theirs(x, training=True)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_rate_that_was_assigned_is_as_one_that_was_given(kind):
    x = np.random.default_rng(0).normal(size=KINDS[kind][0]).astype("float32")
    for first in (0.0, 0.6):
        ours, theirs = pair(kind, first)[0], pair(kind, 0.3)[1]
        ours.rate = 0.3
        assert ours.rate == 0.3
        np.testing.assert_array_equal(
            array(ours(x, training=True)), array(theirs(x, training=True))
        )
    ours.rate = 0.0
    np.testing.assert_array_equal(array(ours(x, training=True)), x)


def network(make, seed=3):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            keras.layers.Conv2D(4, 3, activation="relu"),
            make("SpatialDropout2D", 0.3, seed),
            keras.layers.Flatten(),
            keras.layers.Dense(8, "relu"),
            make("Dropout", 0.5, seed + 1),
            keras.layers.Dense(3),
        ]
    )
    model.compile(
        keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    return model


def ours(kind, rate, seed):
    return getattr(rt.layers, kind)(rate, seed=seed)


def theirs(kind, rate, seed):
    return getattr(keras.layers, kind)(rate, seed=seed)


RNG = np.random.default_rng(1)
X, Y = RNG.normal(size=(40, 6, 6, 2)).astype("float32"), RNG.integers(0, 3, 40)


def fitted(model, **settings):
    keras.utils.set_random_seed(1)
    model.fit(X, Y, batch_size=8, verbose=0, shuffle=False, **settings)
    return model


@pytest.mark.parametrize("jit", [False, True])
def test_a_fit_is_that_of_keras_layers(jit):
    if jit and keras.backend.backend() == "torch":
        pytest.skip("nothing of this package is compiled by PyTorch")
    ends = []
    for make in (ours, theirs):
        model = network(make)
        model.compile("sgd", model.loss, jit_compile=jit)
        ends.append(fitted(model, epochs=2).get_weights())
    for a, b in zip(*ends, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_rate_changed_during_a_fit_acts_at_once_and_nothing_is_traced_anew():
    traced = []

    class Counting(rt.layers.Dropout):
        def call(self, inputs, training=False):
            if training:
                traced.append(self.rate if keras.backend.backend() == "torch" else None)
            return super().call(inputs, training=training)

    model = keras.Sequential([keras.Input((50,)), Counting(0.0, seed=1), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.0), "mse")
    x, seen = np.ones((8, 50), "float32"), []
    model.layers[-1].set_weights([np.ones((50, 1), "float32"), np.zeros(1, "float32")])

    class Change(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.model.layers[0].rate = [0.0, 0.9, 0.0][epoch]

        def on_epoch_end(self, epoch, logs=None):
            seen.append((logs["loss"], len(traced)))

    model.fit(x, np.full((8, 1), 50.0), batch_size=4, epochs=3, verbose=0, callbacks=[Change()])
    losses, counts = zip(*seen, strict=True)
    assert losses[0] == losses[2] == 0.0
    assert losses[1] > 10.0
    if keras.backend.backend() != "torch":
        assert counts[0] == counts[2]


def test_weights_and_files_are_those_of_keras_layers(tmp_path):
    mine, plain = network(ours), network(theirs)
    assert [w.shape for w in mine.get_weights()] == [w.shape for w in plain.get_weights()]
    plain.save_weights(tmp_path / "plain.weights.h5")
    twin = network(ours)
    twin.set_weights(plain.get_weights())
    mine.layers[1].rate = 0.125
    fitted(mine)
    mine.save(tmp_path / "m.keras")
    back = keras.saving.load_model(tmp_path / "m.keras")
    assert [back.layers[i].rate for i in (1, 4)] == [0.125, 0.5]
    mine.save_weights(tmp_path / "m.weights.h5")
    mine.layers[1].rate = 0.75
    mine.load_weights(tmp_path / "m.weights.h5")
    assert mine.layers[1].rate == 0.125
    fitted(back)  # trains on


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5, float("nan"), "half", None])
@pytest.mark.parametrize("name", ["Dropout", "SpatialDropout1D"])
def test_a_rate_that_is_none_is_refused(name, rate):
    with pytest.raises(ValueError, match=r"`rate` must be a number in \[0, 1\)"):
        getattr(rt.layers, name)(rate)
    layer = getattr(rt.layers, name)(0.2)
    with pytest.raises(ValueError, match=r"`rate` must be a number in \[0, 1\)"):
        layer.rate = rate
    assert layer.rate == 0.2


def test_a_functional_model_of_unknown_shape_and_a_mask():
    inputs = keras.Input((None, 3))
    x = keras.layers.Masking()(inputs)
    x = rt.layers.SpatialDropout1D(0.5, seed=0)(rt.layers.Dropout(0.2, seed=0)(x))
    model = keras.Model(inputs, keras.layers.LSTM(2)(x))
    model.compile("sgd", "mse")
    model.fit(np.ones((4, 5, 3)), np.ones((4, 2)), verbose=0)
    assert model.predict(np.ones((2, 7, 3)), verbose=0).shape == (2, 2)


def tutorial():
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(3, 3, activation="relu", name="conv"),
            keras.layers.MaxPooling2D(),
            keras.layers.Conv2D(3, 3, name="conv2"),
            keras.layers.ReLU(),
            keras.layers.Dropout(0.1, seed=5, name="there"),
            keras.layers.Flatten(),
            keras.layers.Dense(4, "relu", name="dense"),
            keras.layers.Dense(2, name="out"),
        ]
    )


def test_regularize_puts_ours_in_and_whole_channels_on_request():
    new = rt.regularize(tutorial(), conv_dropout=0.25, dense_dropout=0.5)
    names = ["conv_dropout", "there", "dense_dropout"]
    found = [new.get_layer(name) for name in names]
    assert {type(layer) for layer in found} == {rt.layers.Dropout}
    assert [layer.rate for layer in found] == [0.25, 0.25, 0.5]
    spatial = rt.regularize(tutorial(), conv_dropout=0.25, dense_dropout=0.5, spatial_dropout=True)
    kinds = [type(spatial.get_layer(name)) for name in names]
    assert kinds == [rt.layers.SpatialDropout2D] * 2 + [rt.layers.Dropout]
    assert spatial.get_layer("there").seed == 5
    plain = rt.strip(spatial)
    assert {type(layer).__module__.split(".")[0] for layer in plain.layers} == {"keras"}
    x = np.random.default_rng(0).normal(size=(3, 8, 8, 1))
    np.testing.assert_array_equal(array(plain(x)), array(spatial(x)))


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_whole_channels_are_dropped_behind_convolutions_of_every_rank(rank):
    conv = getattr(keras.layers, f"Conv{rank}D")
    inputs = keras.Input((*[6] * rank, 2))
    x = conv(5, 2, activation="relu", name="c", use_bias=False, kernel_initializer="ones")(inputs)
    outputs = keras.layers.Dense(1)(keras.layers.Flatten()(x))
    new = rt.regularize(keras.Model(inputs, outputs), conv_dropout=0.5, spatial_dropout=True)
    inner = keras.Model(new.input, new.get_layer("c_dropout").output)
    out = array(inner(np.ones((4, *[6] * rank, 2)), training=True))
    whole = out.reshape(4, -1, 5)
    assert ((whole == 0).all(1) | (whole != 0).all(1)).all()
    assert 0 < (whole == 0).mean() < 1


def test_time_steps_that_are_images_get_a_plain_dropout():
    inputs = keras.Input((3, 6, 6, 1))
    conv = keras.layers.Conv2D(2, 3, activation="relu")
    x = keras.layers.Flatten()(keras.layers.TimeDistributed(conv, name="t")(inputs))
    model = keras.Model(inputs, keras.layers.Dense(1)(x))
    new = rt.regularize(model, conv_dropout=0.5, spatial_dropout=True)
    assert type(new.get_layer("t_dropout")) is rt.layers.Dropout
