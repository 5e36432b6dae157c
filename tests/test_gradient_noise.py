"""The noise scale while training, and the rate that follows it: against numpy, update by update.

The loss of these models is their output, so the gradients are the inputs.
"""

import copy
import math

import keras
import numpy as np
import pytest
from problems import rows

import keras_regtools as rt
from keras_regtools.callbacks import GradientMonitor, GradientNoise, LinearScalingLR
from keras_regtools.training import adascale_gain

pytestmark = pytest.mark.backends
BACKEND = keras.backend.backend()
JIT = {"tensorflow": [False, True], "jax": [True], "torch": [False]}[BACKEND]
RNG = np.random.default_rng
NAMES = ("trace", "squared_norm", "scale")


def output(y, p):
    return p[:, 0]


def linear(steps, rate=0.0, width=3, **options):
    model = keras.Sequential([keras.Input((width,)), keras.layers.Dense(1, use_bias=False)])
    optimizer = keras.optimizers.SGD(rate, gradient_accumulation_steps=steps)
    model.compile(optimizer, loss=output, **options)
    return model


def fit(model, x, callbacks, batch_size=2, **options):
    return model.fit(
        x, x, batch_size=batch_size, shuffle=False, verbose=0, callbacks=callbacks, **options
    )


def by_update(x, size, steps):
    """σ² of the gradient of `size` samples, from the last part against the others, and ‖ḡ‖²."""
    parts = x.astype("float64").reshape(-1, steps, size, x.shape[1]).mean(axis=2)
    apart = parts[:, -1] - parts[:, :-1].mean(axis=1)
    return (apart**2).sum(1) * (steps - 1) / steps, (parts.mean(axis=1) ** 2).sum(1)


@pytest.mark.parametrize("steps", [2, 3])
@pytest.mark.parametrize("every", rows([1, 2], 2))
def test_the_numbers_are_those_of_numpy(steps, every):
    x = RNG(0).normal(1.0, 1, (4 * steps * 6, 3)).astype("float32")
    noise = GradientNoise(4, every=every)
    history = fit(linear(steps), x, [noise], batch_size=4, epochs=2).history
    variance, of_mean = (values[::every].mean() for values in by_update(x, 4, steps))
    trace, norm = 4 * variance, of_mean - variance / steps
    for name, value in zip(NAMES, (trace, norm, trace / norm), strict=True):
        np.testing.assert_allclose(history[f"gradient_noise/{name}"], [value] * 2, rtol=1e-5)


def test_a_fixed_loss_scale_is_taken_out_again():
    x = RNG(0).normal(1.0, 1, (36, 3)).astype("float32")
    model = linear(3)
    model.compile(
        keras.optimizers.SGD(0.0, gradient_accumulation_steps=3, loss_scale_factor=8.0), loss=output
    )
    history = fit(model, x, [GradientNoise(2, every=1)]).history
    variance, of_mean = (values.mean() for values in by_update(x, 2, 3))
    assert history["gradient_noise/trace"][0] == pytest.approx(2 * variance, rel=1e-5)
    wanted = of_mean - variance / 3
    assert history["gradient_noise/squared_norm"][0] == pytest.approx(wanted, rel=1e-5)


def test_the_mean_is_the_truth_of_gaussian_gradients():
    """tr Σ = 3 · 4, |G|² = 3 · .25, to three standard errors; and what the measure finds."""
    x = RNG(1).normal(0.5, 2.0, (12000, 3)).astype("float32")
    history = fit(linear(4), x, [GradientNoise(5, every=1)], batch_size=5).history
    trace, norm = (history[f"gradient_noise/{name}"][0] for name in NAMES[:2])
    variance, of_mean = by_update(x, 5, 4)
    spread = np.array([5 * variance, of_mean - variance / 4]).std(axis=1) / math.sqrt(600)
    assert abs(trace - 12) < 3 * spread[0]
    assert abs(norm - 0.75) < 3 * spread[1]
    surface = rt.LossSurface(linear(4), x, x, loss=output)
    found = rt.measures.gradient_noise_scale(surface, 5)
    assert found.interval[0] < trace / norm < found.interval[1]


def test_no_gradient_behind_the_noise_is_nan():
    x = np.array([[1.0], [-1.0]] * 4, "float32")
    history = fit(linear(2, width=1), x, [GradientNoise(1, every=1)], batch_size=1).history
    assert math.isnan(history["gradient_noise/scale"][0])
    assert history["gradient_noise/trace"][0] == pytest.approx(2)


def test_readings_between_epochs_and_names_in_the_logs():
    x = RNG(0).normal(1.0, 1, (24, 3)).astype("float32")
    noise, logs = GradientNoise(2, every=1, every_steps=4, logs=["gradient_noise/scale"]), []
    watch = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, found: logs.append(found))
    fit(linear(2), x, [noise, watch], epochs=2)
    steps, values = noise.records.series("gradient_noise/trace", by="step")
    assert steps == [4, 8, 12, 16, 20, 24]
    variance, _ = by_update(x, 2, 2)
    np.testing.assert_allclose(values, 2 * [*(2 * variance.reshape(3, 2).mean(1))], rtol=1e-5)
    assert [set(found) for found in logs] == [{"loss", "gradient_noise/scale"}] * 2


def network(policy="float32", jit_compile=JIT[0], **options):
    keras.utils.set_random_seed(1)
    keras.config.set_dtype_policy(policy)
    model = keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            keras.layers.Conv2D(3, 3, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Flatten(),
            keras.layers.Dropout(0.2, seed=1),
            keras.layers.Dense(3, kernel_regularizer=rt.regularizers.L2(1e-3)),
        ]
    )
    optimizer = keras.optimizers.Adam(0.01, gradient_accumulation_steps=3, clipnorm=0.5)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, jit_compile=jit_compile, **options)
    return model


X, Y = RNG(3).normal(size=(72, 6, 6, 1)).astype("float32"), RNG(4).integers(0, 3, 72)


def train(model, callbacks=(), epochs=3):
    keras.utils.set_random_seed(2)
    return model.fit(X, Y, batch_size=4, epochs=epochs, verbose=0, callbacks=list(callbacks))


@pytest.mark.parametrize("jit", rows(JIT, JIT[0]))
def test_to_watch_changes_no_bit(jit):
    alone, watched = network(jit_compile=jit), network(jit_compile=jit)
    train(alone)
    used = [GradientNoise(4, every=2), GradientMonitor(every=3)]
    history = train(watched, used).history
    for one, two in zip(
        [*alone.variables, *alone.optimizer.variables],
        [*watched.variables, *watched.optimizer.variables],
        strict=True,
    ):
        a, b = (keras.ops.convert_to_numpy(v) for v in (one, two))
        np.testing.assert_array_equal(a, b)
    alone = train(network(jit_compile=jit), [GradientMonitor(every=3)]).history["gradients/norm"]
    np.testing.assert_allclose(history["gradients/norm"], alone, rtol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"policy": "mixed_float16"},
        *([{"steps_per_execution": 2}] if BACKEND != "torch" else [{"run_eagerly": True}]),
    ],
    ids=str,
)
def test_it_works_however_the_step_is_made(options):
    noise = GradientNoise(4, every=1)
    try:
        model = network(**options)
        history = train(model, [noise]).history
        again = train(model, [copy.deepcopy(noise)]).history
    finally:
        keras.config.set_dtype_policy("float32")
    for found in (history, again):
        assert set(found) == {"loss", *(f"gradient_noise/{name}" for name in NAMES)}
        assert all(len(values) == 3 for values in found.values())
        assert all(type(v) is float and v > 0 for v in found["gradient_noise/trace"])


_ONE_PART = (
    "Expected a training step of several parts, whose gradients differ by their noise: accumulated "
    "batches, or replicas. Received: one batch for each update, on one device. Give the optimizer "
    "`gradient_accumulation_steps`, or measure at the ends of epochs: "
    "`callbacks.Measure({'noise': measures.gradient_noise_scale}, x, y)`."
)


@pytest.mark.parametrize(
    "callback", [GradientNoise(2), LinearScalingLR(4, 2, rule="adascale")], ids=lambda c: c.name
)
def test_a_step_of_one_part_is_refused(callback):
    with pytest.raises(ValueError) as error:
        fit(linear(None), np.ones((8, 3), "float32"), [callback])
    assert str(error.value) == _ONE_PART


# --- AdaScale -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variance", "norm", "parts", "gain"),
    [(1, 1, 4, 1.6), (0, 3, 4, 1), (2, 0, 8, 8), (5, 5, 8, 16 / 9), (2, -0.1, 8, 8), (0, 0, 3, 1)],
)
def test_gains_of_the_paper(variance, norm, parts, gain):
    assert adascale_gain(variance, norm, parts) == pytest.approx(gain)


def scaled_by_hand(x, size, steps, base, weight, running=(None, None, 0.0)):
    """The gain of each update, and the weights after them."""
    variance, norm, progress = running
    means = x.astype("float64").reshape(-1, steps * size, x.shape[1]).mean(axis=1)
    gains = []
    for found, of_mean, mean in zip(*by_update(x, size, steps), means, strict=True):
        gains.append(1.0 if variance is None else adascale_gain(variance, norm, steps))
        weight = weight - base * gains[-1] * mean
        keep = 0.0 if variance is None else 1 - steps / 1000
        variance = keep * (variance or 0.0) + (1 - keep) * found
        norm = keep * (norm or 0.0) + (1 - keep) * (of_mean - found / steps)
    return gains, weight, adascale_gain(variance, norm, steps)


@pytest.mark.parametrize("steps", rows([2, 5], 5))
def test_every_rate_is_the_base_rate_times_the_gain(steps):
    x = RNG(5).normal(0.3, 1, (2 * steps * 12, 3)).astype("float32")
    model = linear(steps, rate=0.1)
    begin = model.get_weights()[0][:, 0].astype("float64")
    scaling = LinearScalingLR(2, 2, rule="adascale")
    history = fit(model, x, [scaling], epochs=2).history
    gains, weight, last = scaled_by_hand(np.concatenate([x, x]), 2, steps, 0.1, begin)
    np.testing.assert_allclose(model.get_weights()[0][:, 0], weight, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(history["adascale/gain"][-1], last, rtol=1e-5)
    np.testing.assert_allclose(history["adascale/progress"], [sum(gains[:12]), sum(gains)], 1e-5)
    assert 1 < last < steps
    fit(model, x, [LinearScalingLR(2, 2, rule="adascale")])  # from the base rate again
    assert float(keras.ops.convert_to_numpy(model.optimizer.learning_rate)) < 0.1 * steps


def test_a_run_that_goes_on_keeps_its_gains(tmp_path):
    x = RNG(6).normal(0.3, 1, (60, 3)).astype("float32")

    def run(epochs, model, directory):
        used = [
            LinearScalingLR(2, 2, rule="adascale"),
            rt.callbacks.Report(directory),
            keras.callbacks.BackupAndRestore(directory / "backup", delete_checkpoint=False),
        ]
        return fit(model, x, used, epochs=epochs).history

    start = linear(3, rate=0.1)
    begin = start.get_weights()
    whole = run(4, start, tmp_path / "whole")
    for epochs in (2, 4):
        model = linear(3, rate=0.1)
        model.set_weights(begin)
        parts = run(epochs, model, tmp_path / "parts")
    for name in ("learning_rate", "adascale/gain", "adascale/progress"):
        np.testing.assert_allclose(parts[name], whole[name][2:], rtol=1e-6)


@pytest.mark.parametrize(
    ("optimizer", "arguments", "message"),
    [
        (
            keras.optimizers.SGD(0.1, gradient_accumulation_steps=4),
            (8, 4),
            "Expected base_batch_size=8 for rule='adascale', which compares the 4 parts of an "
            "update of 32 samples. Received: base_batch_size=4",
        ),
        (
            keras.optimizers.SGD(
                keras.optimizers.schedules.ExponentialDecay(0.1, 5, 0.5),
                gradient_accumulation_steps=4,
            ),
            (8, 8),
            "Expected a rate that is a number for rule='adascale', as a schedule would count "
            "updates, each of which is worth 1 to 4. Received: a schedule",
        ),
    ],
)
def test_what_gains_cannot_follow_is_refused(optimizer, arguments, message):
    model = linear(None)
    model.compile(optimizer, loss=output)
    with pytest.raises(ValueError) as error:
        fit(model, np.ones((32, 3), "float32"), [LinearScalingLR(*arguments, rule="adascale")])
    assert str(error.value) == message


def test_it_says_what_it_does(capsys):
    scaling = LinearScalingLR(2, 2, rule="adascale", verbose=1)
    fit(linear(4, rate=0.1), np.ones((16, 3), "float32"), [scaling])
    assert capsys.readouterr().out == (
        "LinearScalingLR: batch 2 × 4 accumulated for 2, adascale: from 0.1 to 0.4 at most, as the "
        "gain is\n"
    )


@pytest.mark.slow
def test_a_second_fit_goes_on_and_others_change_the_base_rate():
    x = RNG(7).normal(0.3, 1, (60, 3)).astype("float32")

    def run(parts, *others):
        model = linear(3, rate=0.1)
        model.set_weights([np.zeros((3, 1))])
        found = []
        for first, last in parts:
            scaling = LinearScalingLR(2, 2, rule="adascale")
            history = fit(model, x, [*others, scaling], initial_epoch=first, epochs=last).history
            found += history["adascale/progress"]
        return found, model.get_weights()[0][:, 0], history["learning_rate"][-1]

    whole, weights, rate = run([(0, 4)])
    parts, same, _ = run([(0, 2), (2, 4)])
    np.testing.assert_allclose(parts, whole, rtol=1e-6)
    np.testing.assert_allclose(same, weights, rtol=1e-5)

    def halve(epoch, current):
        return current / 2 if epoch == 2 else current

    gains, _, halved = run([(0, 4)], keras.callbacks.LearningRateScheduler(halve))
    np.testing.assert_allclose(gains, whole, rtol=1e-3)  # gains do not know of rates here
    assert halved == pytest.approx(rate / 2, rel=1e-5)


def test_nothing_to_train_and_nothing_looked_at():
    model = linear(2)
    model.layers[0].trainable = False
    model.compile(keras.optimizers.SGD(0.1, gradient_accumulation_steps=2), loss=output)
    with pytest.raises(ValueError, match="Expected a model with trainable weights"):
        fit(model, np.ones((8, 3), "float32"), [GradientNoise(2)])
    noise = GradientNoise(2, every=1000)
    x = RNG(0).normal(1.0, 1, (24, 3)).astype("float32")
    history = fit(linear(2), x, [noise], epochs=2).history
    traces = history["gradient_noise/trace"]
    assert traces[0] == traces[1] > 0
    assert math.isnan(noise.records.series("gradient_noise/trace")[1][1])
