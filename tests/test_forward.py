"""Looking into forward passes, where a surface looks from: numpy and plain Keras are right."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_regtools as rt

pytestmark = pytest.mark.backends
X = np.random.default_rng(0).standard_normal((24, 5, 3)).astype("float32")
Y = X[:, 0, :1]
RECURRENT = {
    "LSTM": lambda: layers.LSTM(2),
    "GRU": lambda: layers.GRU(2),
    "Bidirectional": lambda: layers.Bidirectional(layers.SimpleRNN(2)),
    "cells": lambda: layers.RNN(layers.StackedRNNCells([layers.GRUCell(2), layers.LSTMCell(3)])),
    "unrolled": lambda: layers.LSTM(2, unroll=True),
}


@pytest.mark.parametrize("name", RECURRENT)
def test_what_comes_into_a_recurrent_layer_is_seen_once(name):
    model = keras.Sequential([keras.Input((5, 3)), RECURRENT[name](), layers.Dense(1)])
    shift = rt.measures.distribution_shift(model, X, X + 1)
    old, new = X.reshape(-1, 3), X.reshape(-1, 3) + 1
    expected = np.sqrt(np.sum((new.mean(0) - old.mean(0)) ** 2) / np.sum(old.var(0)))
    np.testing.assert_allclose(shift.drifts[0], expected, rtol=1e-5)
    parts = 3 if name == "Bidirectional" else 1  # itself and its two directions
    assert len(shift.layers) == parts + 1


@keras.saving.register_keras_serializable(package="tests")
class NormalizingCell(layers.Layer):
    state_size = 2

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense, self.norm = layers.Dense(2), layers.BatchNormalization(name="inside")

    def build(self, shape):
        self.dense.build((None, shape[-1] + 2))
        self.norm.build((None, 2))

    def call(self, x, states, training=None):
        new = self.dense(keras.ops.concatenate([x, states[0]], axis=-1))
        return self.norm(new, training=training), [new]


def test_batch_normalization_in_a_loop_is_refused_by_name():
    model = keras.Sequential([keras.Input((5, 3)), layers.RNN(NormalizingCell()), layers.Dense(1)])
    with pytest.raises(NotImplementedError, match=r"Received: \['inside'\] of the model"):
        rt.recalibrate(model, X)


def network():
    keras.utils.set_random_seed(0)
    inner = [layers.Dense(3, activation="tanh"), layers.Dense(3), layers.BatchNormalization()]
    model = keras.Sequential([keras.Input((3,)), *inner, layers.Dense(1)])
    model.compile("sgd", "mse")
    return model


def test_what_is_trainable_may_change_after_it_was_traced():
    model, x = network(), X[:, 0]
    surface = rt.LossSurface(model, x, Y)
    model.layers[0].trainable = False
    expected = surface.recalibrated().value()
    model.layers[0].trainable, model.layers[1].trainable = True, False
    assert surface.recalibrated().value() == pytest.approx(expected, rel=1e-6)
    rt.recalibrate(model, x)
    assert model.evaluate(x, Y, verbose=0) == pytest.approx(expected, rel=1e-5)


def test_without_batch_normalization_there_is_nothing_to_recalibrate():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(1)])
    surface = rt.LossSurface(model, X[:, 0], Y, loss="mse")
    assert surface.recalibrated() is surface


def test_nan_is_told_and_not_taken_for_nothing():
    model, x = network(), X[:, 0].copy()
    bad = x.copy()
    bad[0] = np.nan
    noise = rt.measures.normalization_noise(rt.LossSurface(model, bad, Y), 8, draws=3)
    assert np.isnan(noise.value)
    assert np.isnan(rt.measures.distribution_shift(model, bad, x).value)
    assert np.isnan(rt.measures.distribution_shift(model, x, bad).value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (lambda v: 3, "Expected `values` to be pairs of a variable of the model"),
        (lambda v: [1], "Expected `values` to be pairs of a variable of the model"),
        (lambda v: [(1, 2)], "Expected `values` to be pairs of a variable of the model"),
        (lambda v: [(keras.Variable(1.0), 2.0)], "Expected `values` to be pairs of a variable"),
        (lambda v: [(v, np.ones(5))], "Expected a value of the shape (3,) for the variable"),
    ],
)
def test_a_surface_holds_variables_of_its_model_in_their_shape(values, message):
    model = network()
    surface = rt.LossSurface(model, X[:, 0], Y)
    with pytest.raises(ValueError) as caught:
        surface.holding(values(model.layers[2].beta))
    assert str(caught.value).startswith(message)
    there = surface.holding([(model.layers[2].beta, np.ones(3))])
    assert "other values" in repr(there)
    assert there.value() != surface.value()


def test_integers_flow_nowhere_that_could_shift():
    model = keras.Sequential([keras.Input((4,), dtype="int32"), layers.Embedding(5, 2)])
    numbers = np.ones((3, 4), "int32")
    with pytest.raises(ValueError, match="whose layers with weights receive integers"):
        rt.measures.distribution_shift(model, numbers, numbers)


def test_data_that_do_not_fit_are_told_by_their_shape():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2), layers.Dense(1)])
    x = X[:, 0]
    with pytest.raises(ValueError, match=r"Received: x of shape \(24, 2\), which gave: "):
        rt.measures.distribution_shift(model, x, x[:, :2])


def test_dead_channels_are_those_of_the_channel_axis():
    """The first of four is: its bias is far below zero."""
    convolution = layers.Conv1D(4, 2, data_format="channels_first", name="conv")
    ends = [layers.ReLU(), layers.Flatten(), layers.Dense(1, name="dense")]
    model = keras.Sequential([keras.Input((3, 5)), convolution, *ends])
    convolution.bias.assign([-100.0, 9.0, 9.0, 9.0])
    surface = rt.LossSurface(model, X.transpose(0, 2, 1), Y, loss="mse")
    flow = rt.measures.gradient_flow(surface)
    assert flow.dead_shares[flow.layers.index("conv")] == 0.25
