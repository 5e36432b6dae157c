"""Sharpness-aware minimization in fit, by hand, by numpy, and against plain fits."""

import copy

import keras
import numpy as np
import pytest
from keras import ops
from problems import numbers, rows

import keras_regtools as rt

pytestmark = pytest.mark.backends
SAM = rt.callbacks.SharpnessAwareMinimization
RNG = np.random.default_rng(0)
TORCH = keras.backend.backend() == "torch"
JITS = [False] if TORCH else [False, True]


def quadratic(y, outputs):
    return 0.5 * ops.sum(outputs**2, axis=-1)


def one_weight(optimizer, w=2.0, **settings):
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    model.compile(optimizer, quadratic, **settings)
    model.set_weights([np.array([[w]], "float32")])
    return model


ONE = np.ones((4, 1), "float32")


def fitted(model, sam, x=ONE, y=ONE, *, batch=4, epochs=1, more=(), **settings):
    callbacks = [*([] if sam is None else [sam]), *more]
    model.fit(
        x, y, batch_size=batch, epochs=epochs, verbose=0, shuffle=False, callbacks=callbacks,
        **settings,
    )  # fmt: skip
    return model


@pytest.mark.parametrize("jit", JITS)
@pytest.mark.parametrize("rho", [0.0, 0.05, 0.5])
def test_steps_on_a_quadratic_are_those_by_hand(rho, jit):
    model = fitted(one_weight(keras.optimizers.SGD(0.1), jit_compile=jit), SAM(rho), epochs=5)
    w = 2.0
    for _ in range(5):
        w -= 0.1 * (w + rho * np.sign(w))
    assert model.get_weights()[0][0, 0] == pytest.approx(w, abs=1e-6)


def test_an_adaptive_step_by_hand():
    model = fitted(one_weight(keras.optimizers.SGD(0.1)), SAM(0.5, adaptive=True))
    t = 2.0 + 0.01  # the gradient is w: ε = ρ t² g / |t g| = ρ t
    assert model.get_weights()[0][0, 0] == pytest.approx(2 - 0.1 * (2 + 0.5 * t), abs=1e-6)


def test_several_weights_take_one_step_together():
    x = RNG.normal(size=(6, 3)).astype("float32")
    y = RNG.normal(size=(6, 2)).astype("float32")
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(2, kernel_regularizer=keras.regularizers.L2(0.1))]
    )
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
    w, b = (a.astype("float64") for a in model.get_weights())
    fitted(model, SAM(0.3), x, y, batch=6, epochs=4)

    def slope(w, b):
        error = x @ w + b - y
        return 2 * x.T @ error / error.size + 0.2 * w, 2 * error.sum(0) / error.size

    velocity = [0.0, 0.0]
    for _ in range(4):
        g = slope(w, b)
        length = np.sqrt(sum((t**2).sum() for t in g))
        sharp = slope(w + 0.3 * g[0] / length, b + 0.3 * g[1] / length)
        velocity = [0.9 * v - 0.1 * s for v, s in zip(velocity, sharp, strict=True)]
        w, b = w + velocity[0], b + velocity[1]
    for found, expected in zip(model.get_weights(), (w, b), strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-6)


X = RNG.normal(size=(24, 6, 6, 2)).astype("float32")
Y = RNG.integers(0, 3, 24)


def network(optimizer=None, penalty=None, seed=3, policy=None, drop=0.4, **settings):
    keras.utils.set_random_seed(0)
    kwargs = {"dtype": policy}
    inputs = keras.Input((6, 6, 2))
    z = keras.layers.Conv2D(4, 3, kernel_regularizer=penalty, **kwargs)(inputs)
    z = keras.layers.BatchNormalization(momentum=0.7, **kwargs)(z)
    z = keras.layers.ReLU(**kwargs)(z)
    z = keras.layers.Flatten(**kwargs)(z)
    z = keras.layers.Dropout(drop, seed=seed, **kwargs)(z)
    z = keras.layers.Dense(8, "tanh", kernel_regularizer=penalty, **kwargs)(z)
    model = keras.Model(inputs, keras.layers.Dense(3, dtype="float32")(z))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer or keras.optimizers.SGD(0.1), loss, metrics=["accuracy"], **settings)
    return model


@pytest.mark.parametrize("seed", rows([3, None], 3))
@pytest.mark.parametrize("jit", JITS)
def test_a_step_of_length_zero_is_a_plain_fit_with_the_same_masks(jit, seed):
    ends = []
    for sam in (None, SAM(0.0)):
        model = network(penalty=rt.regularizers.L2(0.01), seed=seed, jit_compile=jit)
        keras.utils.set_random_seed(5)
        ends.append(fitted(model, sam, X, Y, batch=8, epochs=2).get_weights())
    for plain, ours in zip(*ends, strict=True):
        np.testing.assert_allclose(ours, plain, atol=2e-6)


def test_moving_statistics_metrics_and_loss_are_those_of_the_clean_pass():
    ends = []
    for sam in (None, SAM(0.5)):
        model = network()
        history = model.fit(
            X, Y, batch_size=24, verbose=0, shuffle=False, callbacks=[] if sam is None else [sam]
        )
        ends.append((numbers(model.non_trainable_variables), history.history))
    for plain, ours in zip(ends[0][0], ends[1][0], strict=True):
        np.testing.assert_array_equal(ours, plain)
    assert ends[0][1] == ends[1][1]


def surface_step(model, x, y, rho, rate):
    """One step by the loss surface, which knows nothing of the callback."""
    surface = rt.LossSurface(model, x, y, mode="batch_statistics", batch_size=len(x))
    w = surface.params
    _, g = surface.value_and_gradient(w)
    above = rt.vectors.axpy(rho / rt.vectors.norm(g), g, w)
    _, sharp = surface.value_and_gradient(above)
    return [a - rate * b for a, b in zip(numbers(w), numbers(sharp), strict=True)]


@pytest.mark.parametrize("jit", JITS)
def test_a_step_of_a_network_is_that_of_the_loss_surface(jit):
    model = network(penalty=rt.regularizers.L2(0.01), drop=0.0, jit_compile=jit)
    expected = surface_step(model, X, Y, 0.2, 0.1)
    fitted(model, SAM(0.2), X, Y, batch=24)
    for found, wanted in zip(numbers(model.trainable_variables), expected, strict=True):
        np.testing.assert_allclose(found, wanted, atol=5e-6)


def alternated(steps, every=2, rho=lambda step: 0.5, w=2.0):
    for step in range(steps):
        w -= 0.1 * (w + (rho(step) if step % every == 0 else 0.0))
    return pytest.approx(w, abs=1e-6)


@pytest.mark.parametrize("jit", JITS)
@pytest.mark.parametrize("every", [2, 3])
def test_every_second_step_is_plain(every, jit):
    model = one_weight(keras.optimizers.SGD(0.1), jit_compile=jit)
    fitted(model, SAM(0.5, every=every), epochs=5)
    assert model.get_weights()[0][0, 0] == alternated(5, every)
    fitted(model, SAM(0.5, every=every), epochs=4)  # the count is the optimizer's
    assert model.get_weights()[0][0, 0] == alternated(9, every)
    fitted(model, None, epochs=2)
    after = alternated(9, every).expected * 0.81
    assert model.get_weights()[0][0, 0] == pytest.approx(after, abs=1e-6)


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.parametrize("jit", JITS)
@pytest.mark.parametrize("case", ["accumulated", "data of unknown length", "scaled", "several"])
def test_which_step_is_plain_whatever_the_step_is(case, jit):
    settings, x = {"jit_compile": jit}, np.ones((20, 1), "float32")
    optimizer, expected = keras.optimizers.SGD(0.1), alternated(5)
    if case == "accumulated":  # of ten batches two make an update
        optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)
        x = np.ones((40, 1), "float32")
    elif case == "scaled":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=4.0)
    elif case == "several" and not TORCH:
        settings["steps_per_execution"] = 5
    model = one_weight(optimizer, **settings)
    sam = SAM(0.5, every=2)
    if case == "data of unknown length":
        tf = pytest.importorskip("tensorflow")
        parts = tf.data.Dataset.from_generator(
            lambda: ((x[:4], x[:4]) for _ in range(5)),
            output_signature=(tf.TensorSpec((4, 1)), tf.TensorSpec((4, 1))),
        )
        model.fit(parts, epochs=2, verbose=0, shuffle=False, callbacks=[sam])
        expected = alternated(10)
        if keras.backend.backend() == "tensorflow" and not jit:
            # There Keras' own count of the steps takes the end of the data for one.
            expected = alternated(5, w=alternated(5).expected)
    else:
        fitted(model, sam, x, x)
    assert model.get_weights()[0][0, 0] == expected


@pytest.mark.parametrize("jit", JITS)
def test_a_length_assigned_and_gradients_watched_between_plain_steps(jit):
    model = one_weight(keras.optimizers.SGD(0.1), jit_compile=jit)
    sam = SAM(0.5, every=2)

    class Assign(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 3:
                sam.rho = 0.25

    fitted(model, sam, epochs=7, more=[Assign()])
    expected = alternated(7, rho=lambda step: 0.5 if step < 3 else 0.25)
    assert model.get_weights()[0][0, 0] == expected
    model = one_weight(keras.optimizers.SGD(0.1), jit_compile=jit)
    gradients = rt.callbacks.GradientMonitor()
    fitted(model, SAM(0.5, every=2), epochs=5, more=[gradients])
    assert model.get_weights()[0][0, 0] == alternated(5)


def logistic(y, outputs):
    return ops.softplus(-y * outputs[:, 0:1])


@pytest.mark.parametrize("m", [2, 3, 4])
def test_parts_of_a_batch_take_steps_of_their_own(m):
    x, y = RNG.normal(size=(8, 2)).astype("float32"), RNG.choice([-1.0, 1.0], (8, 1))
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
    model.compile(keras.optimizers.SGD(0.5), logistic)
    w = model.get_weights()[0].astype("float64")
    fitted(model, SAM(0.3, m=m), x, y.astype("float32"), batch=8)

    def slope(w, x, y):
        return (-y * x / (1 + np.exp(y * (x @ w)))).mean(0)[:, None]

    sharp = 0
    for i in range(0, 8, m):
        part = x[i : i + m], y[i : i + m]
        g = slope(w, *part)
        sharp = sharp + slope(w + 0.3 * g / np.linalg.norm(g), *part) * len(part[0]) / 8
    np.testing.assert_allclose(model.get_weights()[0], w - 0.5 * sharp, atol=1e-6)


def test_accumulated_batches_are_parts_of_the_whole_batch():
    x, y = RNG.normal(size=(8, 2)).astype("float32"), RNG.choice([-1.0, 1.0], (8, 1))
    ends = []
    for steps, batch, m in ((4, 2, None), (None, 8, 2)):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        model.compile(keras.optimizers.Adam(0.1, gradient_accumulation_steps=steps), logistic)
        ends.append(fitted(model, SAM(0.3, m=m), x, y, batch=batch, epochs=3).get_weights())
    for accumulated, whole in zip(*ends, strict=True):
        np.testing.assert_allclose(accumulated, whole, atol=1e-5)


@pytest.mark.slow
def test_half_precision_with_a_loss_scale_is_single_precision_within_its_rounding():
    ends = []
    for policy in ("float32", "mixed_float16"):
        optimizer = keras.optimizers.SGD(0.05)
        if policy != "float32":
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        model = network(optimizer, policy=policy, drop=0.0)
        ends.append(fitted(model, SAM(0.2), X, Y, batch=24, epochs=3).get_weights())
    for single, half in zip(*ends, strict=True):
        np.testing.assert_allclose(half, single, atol=5e-3)


def test_the_second_gradient_is_clipped():
    optimizer = keras.optimizers.SGD(0.1, clipvalue=2.25)
    model = fitted(one_weight(optimizer), SAM(0.5))
    assert model.get_weights()[0][0, 0] == pytest.approx(2 - 0.1 * 2.25, abs=1e-6)


def test_where_the_second_gradient_is_not_finite_the_step_is_plain():
    def walled(y, outputs):  # finite up to 2.2
        wall = ops.sqrt(2.2 - outputs[:, 0])
        return ops.sum(outputs, axis=-1) + 0.01 * wall

    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    model.compile(keras.optimizers.SGD(0.1), walled)
    model.set_weights([np.array([[2.0]], "float32")])
    fitted(model, SAM(0.5))
    assert model.get_weights()[0][0, 0] == pytest.approx(2 - 0.1 * (1 - 0.005 / 0.2**0.5), abs=1e-6)


def test_a_first_gradient_that_is_not_finite_is_what_keras_makes_of_it():
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1))
    x = np.array([[1.0], [np.inf], [1.0], [1.0]], "float32")
    model = fitted(one_weight(optimizer), SAM(0.5), x=x)
    assert model.get_weights()[0][0, 0] == 2.0  # the step was left out
    scale = ops.convert_to_numpy(optimizer.dynamic_scale)
    assert scale == 2.0**14


def test_rho_can_be_assigned_during_a_fit():
    sam, w = SAM(0.0), 2.0

    class Change(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            sam.rho = [0.0, 0.5, 0.25][epoch]

    model = fitted(one_weight(keras.optimizers.SGD(0.1)), sam, epochs=3, more=[Change()])
    for rho in (0.0, 0.5, 0.25):
        w -= 0.1 * (w + rho)
    assert model.get_weights()[0][0, 0] == pytest.approx(w, abs=1e-6)
    assert sam.rho == 0.25


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("by", ["epoch", "step"])
def test_rho_follows_a_schedule(by, first):
    sam, w = SAM(0.7), 2.0
    schedule = rt.callbacks.Schedule(sam, "rho", lambda t: 0.1 * ops.cast(t, "float32"), by=by)
    model = one_weight(keras.optimizers.SGD(0.1))
    both = [schedule, sam] if first else [sam, schedule]
    fitted(model, None, batch=2, epochs=3, more=both)
    for step in range(6):
        w -= 0.1 * (w + 0.1 * (step if by == "step" else step // 2))
    assert model.get_weights()[0][0, 0] == pytest.approx(w, abs=2e-6)


def test_a_fit_that_goes_on_is_one_that_was_never_cut_off(tmp_path):
    whole = fitted(network(), SAM(0.1), X, Y, batch=8, epochs=4).get_weights()

    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    def backup():
        return keras.callbacks.BackupAndRestore(tmp_path / "b", double_checkpoint=True)

    with pytest.raises(KeyboardInterrupt):
        fitted(network(drop=0.0), SAM(0.1), X, Y, batch=8, epochs=4, more=[backup(), Stop()])
    again = fitted(network(drop=0.0), SAM(0.1), X, Y, batch=8, epochs=4, more=[backup()])
    whole = fitted(network(drop=0.0), SAM(0.1), X, Y, batch=8, epochs=4).get_weights()
    for a, b in zip(again.get_weights(), whole, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_after_the_fit_the_model_is_its_own_again():
    model = fitted(one_weight(keras.optimizers.SGD(0.1)), SAM(0.5))
    assert not {"train_step", "make_train_function"} & set(vars(model))
    assert "apply" not in vars(model.optimizer)
    before = model.get_weights()[0][0, 0]
    fitted(model, None)
    assert model.get_weights()[0][0, 0] == pytest.approx(before * 0.9, abs=1e-6)


def test_a_copy_for_a_search_is_a_callback_of_its_own():
    sam = SAM(0.1, adaptive=True, every=2, m=3)
    fitted(one_weight("sgd"), sam)
    twin = copy.deepcopy(sam)
    sam.rho = 0.5
    assert (twin.rho, twin.adaptive, twin.every, twin.m) == (0.1, True, 2, 3)
    fitted(one_weight("sgd"), twin)


class Two(keras.Model):
    """Two inputs in a dict, two outputs, an activity penalty, and no `training` argument."""

    def __init__(self):
        super().__init__()
        self.one = keras.layers.Dense(3, "tanh", activity_regularizer=keras.regularizers.L2(0.1))
        self.two, self.three = keras.layers.Dense(2), keras.layers.Dense(1)

    def call(self, inputs):
        z = self.one(inputs["a"]) + self.one(inputs["b"])
        return {"left": self.two(z), "right": self.three(z)}


def test_a_subclassed_model_with_dicts_weights_and_activity_penalties():
    x = {"a": RNG.normal(size=(8, 4)).astype("float32"), "b": np.ones((8, 4), "float32")}
    y = {"left": np.ones((8, 2), "float32"), "right": np.zeros((8, 1), "float32")}
    weight = RNG.uniform(0.5, 2, 8).astype("float32")
    ends = []
    for sam in (None, SAM(0.0), SAM(0.3)):
        keras.utils.set_random_seed(0)
        model = Two()
        model.compile(keras.optimizers.SGD(0.1), {"left": "mse", "right": "mae"})
        model.fit(
            x, y, sample_weight={"left": weight, "right": weight}, batch_size=4, epochs=2,
            verbose=0, shuffle=False, callbacks=[] if sam is None else [sam],
        )  # fmt: skip
        ends.append(model.get_weights())
    for plain, none in zip(*ends[:2], strict=True):
        np.testing.assert_allclose(none, plain, atol=1e-6)
    assert max(np.abs(a - b).max() for a, b in zip(ends[0], ends[2], strict=True)) > 1e-4


def test_frozen_and_unused_weights_stay():
    model = network()
    model.layers[1].trainable = False
    model.compile("adam", model.loss)
    before = model.layers[1].get_weights()
    fitted(model, SAM(0.1), X, Y, batch=8)
    for a, b in zip(before, model.layers[1].get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.skipif(TORCH, reason="Keras takes one step per execution there")
def test_several_steps_in_one_execution():
    model = one_weight(keras.optimizers.SGD(0.1), steps_per_execution=4)
    fitted(model, SAM(0.5), batch=1)
    w = 2.0
    for _ in range(4):
        w -= 0.1 * (w + 0.5)
    assert model.get_weights()[0][0, 0] == pytest.approx(w, abs=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rho": -0.1}, "`rho` must be a finite number, zero or above"),
        ({"rho": float("nan")}, "`rho` must be"),
        ({"rho": "much"}, "`rho` must be"),
        ({"every": 0}, "`every` must be a positive integer"),
        ({"m": 0}, "`m` must be a positive integer"),
        ({"adaptive": "yes"}, "`adaptive` must be"),
    ],
)
def test_bad_settings_are_refused_at_once(settings, message):
    with pytest.raises(ValueError, match=message):
        SAM(**settings)


def test_a_step_of_the_users_own_is_warned_of():
    class Own(keras.Sequential):
        def train_step(self, *args):
            return super().train_step(*args)

    model = Own([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    model.compile(keras.optimizers.SGD(0.1), quadratic)
    model.set_weights([np.array([[2.0]], "float32")])
    with pytest.warns(UserWarning, match="Own has a training step of its own"):
        fitted(model, SAM(0.5))
    assert model.get_weights()[0][0, 0] == pytest.approx(1.75, abs=1e-6)


def test_each_part_draws_masks_of_its_own():
    inputs = keras.Input((400,))
    drop = keras.layers.Dropout(0.5, seed=1)
    outputs = keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")(drop(inputs))
    for m in (None, 1, 4):
        model = keras.Model(inputs, outputs)
        model.set_weights([np.zeros((400, 1), "float32")])
        model.compile(keras.optimizers.SGD(1.0), lambda y, p: ops.mean(p, axis=-1))
        fitted(model, SAM(0.0, m=m), np.ones((8, 400), "float32"), np.zeros((8, 1)), batch=8)
        kept = -model.get_weights()[0] / 2 * 8  # in how many of the eight masks
        assert len(np.unique(np.round(kept))) >= 7, m


def test_states_of_layers_see_the_clean_pass_only():
    if TORCH:
        pytest.skip("plain Keras cannot train a stateful layer there")
    x, y = RNG.normal(size=(20, 3, 2)).astype("float32"), RNG.normal(size=(20, 2))
    ends = []
    for sam in (None, SAM(0.0)):
        keras.utils.set_random_seed(0)
        rnn = keras.layers.SimpleRNN(4, stateful=True)
        model = keras.Sequential([keras.Input((3, 2), batch_size=10), rnn, keras.layers.Dense(2)])
        model.compile(keras.optimizers.SGD(0.1), "mse")
        fitted(model, sam, x, y, batch=10, epochs=2)
        ends.append([*model.get_weights(), ops.convert_to_numpy(rnn.states[0])])
    for plain, ours in zip(*ends, strict=True):
        np.testing.assert_allclose(ours, plain, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*assign their own weights")
def test_layers_that_assign_their_own_weights():
    dense = keras.layers.SpectralNormalization(keras.layers.Dense(1, use_bias=False))
    model = keras.Sequential([keras.Input((1,)), dense])
    model.compile(keras.optimizers.SGD(0.05), quadratic)
    if keras.backend.backend() != "jax":
        with pytest.warns(UserWarning, match="assign their own weights in a step"):
            fitted(model, SAM(0.1))
        return
    ends = []
    for sam in (None, SAM(0.0)):
        keras.utils.set_random_seed(0)
        dense = keras.layers.SpectralNormalization(keras.layers.Dense(4))
        model = keras.Sequential([keras.Input((5,)), dense, keras.layers.Dense(2)])
        model.compile(keras.optimizers.SGD(0.05), "mse")
        x = np.random.default_rng(1).normal(size=(8, 5)).astype("float32")
        ends.append(fitted(model, sam, x, x[:, :2], batch=8, epochs=3).get_weights())
    for plain, ours in zip(*ends, strict=True):
        np.testing.assert_allclose(ours, plain, atol=1e-5)


def test_a_list_that_a_search_copies_keeps_its_schedule():
    sam = SAM(0.1)
    schedule = rt.callbacks.Schedule(sam, "rho", lambda epoch: 0.5, key="rho")
    for given in ([sam, schedule], [schedule, sam]):
        copies = copy.deepcopy(given)
        model = fitted(one_weight(keras.optimizers.SGD(0.1)), None, more=copies)
        assert model.get_weights()[0][0, 0] == pytest.approx(1.75, abs=1e-6)
    with pytest.raises(ValueError, match="not among the callbacks of this fit"):
        fitted(one_weight("sgd"), None, more=[schedule])


def test_a_second_one_in_a_fit_is_refused():
    with pytest.raises(ValueError, match="one `SharpnessAwareMinimization` in a fit"):
        fitted(one_weight("sgd"), SAM(0.1), more=[SAM(0.2)])


def test_settings_that_a_step_was_compiled_with_stay():
    sam = SAM(0.1)
    for name in ("every", "m", "adaptive"):
        with pytest.raises(AttributeError):
            setattr(sam, name, 0)


@pytest.mark.skipif(not TORCH, reason="PyTorch modules")
def test_modules_of_pytorch_are_refused():
    import torch

    class Mixed(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner, self.outer = torch.nn.Linear(5, 4), keras.layers.Dense(2)

        def call(self, x):
            return self.outer(self.inner(x))

    model = Mixed()
    x = np.ones((4, 5), "float32")
    model(x)
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="with PyTorch modules in"):
        fitted(model, SAM(0.1), x, x[:, :2])
