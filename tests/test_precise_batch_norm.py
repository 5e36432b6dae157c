"""`PreciseBatchNorm` and `recalibrated_loss`: moving statistics that are those of the weights."""

import functools
import math

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_regtools as rt
from keras_regtools import callbacks, measures

pytestmark = pytest.mark.backends
RNG = np.random.default_rng(0)
X = (3 * RNG.standard_normal((48, 4)) + 5).astype("float32")
Y = (X[:, 0] > 5).astype("int32")


def model_of():
    keras.utils.set_random_seed(1)
    norm = layers.BatchNormalization(name="norm")
    model = keras.Sequential([keras.Input((4,)), norm, layers.Dense(2, "softmax", name="out")])
    model.compile(
        keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    return model


def fit(model, *given, **arguments):
    arguments = {"batch_size": 16, "epochs": 2, "shuffle": False, "verbose": 0, **arguments}
    return model.fit(X, Y, callbacks=list(given), **arguments).history


def numbers(model):
    return [np.array(ops.convert_to_numpy(v)) for v in model.weights]


def precise(model, x=X):
    """The loss and the accuracy with the statistics of `x`, in numpy."""
    gamma, beta, *_, kernel, bias = numbers_of_inference(model)
    z = (x - X.mean(0)) / np.sqrt(X.var(0) + 1e-3) * gamma + beta
    z = z @ kernel + bias
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    return -np.mean(np.log(p[np.arange(len(x)), Y[: len(x)]])), np.mean(p.argmax(1) == Y[: len(x)])


def numbers_of_inference(model):
    by_path = {v.path.split("/", 1)[-1]: np.array(ops.convert_to_numpy(v)) for v in model.weights}
    names = ("norm/gamma", "norm/beta", "norm/moving_mean", "out/kernel", "out/bias")
    return [by_path[name] for name in names]


def test_validation_is_that_of_the_weights_and_the_training_is_plain():
    plain, ours = model_of(), model_of()
    fit(plain, validation_data=(X, Y))
    callback = callbacks.PreciseBatchNorm(X, samples=None)
    history = fit(ours, callback, validation_data=(X, Y))
    for a, b in zip(plain.trainable_variables, ours.trainable_variables, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(a), ops.convert_to_numpy(b))
    norm = ours.get_layer("norm")
    np.testing.assert_allclose(ops.convert_to_numpy(norm.moving_mean), X.mean(0), rtol=1e-5)
    np.testing.assert_allclose(ops.convert_to_numpy(norm.moving_variance), X.var(0), rtol=1e-5)
    loss, accuracy = precise(ours)
    assert history["val_loss"][-1] == pytest.approx(loss, rel=1e-4)
    assert history["val_accuracy"][-1] == pytest.approx(accuracy, abs=1e-6)


@pytest.mark.parametrize("first", [True, False])
def test_a_checkpoint_holds_the_new_statistics_wherever_it_stands(tmp_path, first):
    model, path = model_of(), str(tmp_path / "best.weights.h5")
    kept = keras.callbacks.ModelCheckpoint(path, save_weights_only=True)
    ours = callbacks.PreciseBatchNorm(X, samples=None)
    fit(model, *((kept, ours) if first else (ours, kept)))
    other = model_of()
    other.load_weights(path)
    moving = ops.convert_to_numpy(other.get_layer("norm").moving_mean)
    np.testing.assert_allclose(moving, X.mean(0), rtol=1e-5)


def test_how_far_the_moving_means_were_is_recorded():
    callback = callbacks.PreciseBatchNorm(X, samples=None)
    fit(model_of(), callback, epochs=1)
    moving = np.zeros(4)
    for start in range(0, 48, 16):
        moving = 0.99 * moving + 0.01 * X[start : start + 16].mean(0)
    expected = math.sqrt(np.mean((moving - X.mean(0)) ** 2 / X.var(0)))
    assert callback.records.last("batch_norm/lag") == pytest.approx(expected, rel=1e-4)


def test_a_model_without_batch_normalization_is_left_alone():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2, "softmax")])
    model.compile("sgd", "sparse_categorical_crossentropy")
    assert len(fit(model, callbacks.PreciseBatchNorm(X))["loss"]) == 2


def test_the_loss_with_statistics_of_the_data_is_that_of_numpy():
    model = model_of()
    fit(model, epochs=1)
    before = numbers(model)
    found = measures.recalibrated_loss(rt.LossSurface(model, X[:20], Y[:20]), X)
    loss, accuracy = precise(model, X[:20])
    assert (found.value, found.accuracy) == pytest.approx((loss, accuracy), rel=1e-4)
    stale = model.evaluate(X[:20], Y[:20], verbose=0)
    assert (found.moving_loss, found.moving_accuracy) == pytest.approx(stale, rel=1e-5)
    for a, b in zip(before, numbers(model), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_page_tells_stale_statistics_from_what_the_weights_are_worth(tmp_path):
    model = model_of()
    measure = callbacks.Measure(
        {"recalibrated": functools.partial(measures.recalibrated_loss, x=X)}, X, Y
    )
    report = callbacks.Report(tmp_path)
    fit(model, measure, report, epochs=4, validation_data=(X, Y))
    page = report.page.path.read_text("utf-8")
    moving = measure.records.last("recalibrated/moving_accuracy")
    accuracy = measure.records.last("recalibrated/accuracy")
    assert moving == pytest.approx(model.evaluate(X, Y, verbose=0)[1])
    assert accuracy == pytest.approx(precise(model)[1])
    said = f"The validation accuracy is {moving:.3f} with the moving statistics"
    assert (said in page) == (abs(moving - accuracy) > 0.02)
    assert "The dashed curve is the validation with statistics" in page
