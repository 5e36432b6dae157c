"""Settings that follow a schedule: the value in each step, by what the step itself reports."""

import copy

import keras
import numpy as np
import pytest
from keras import ops

import keras_regtools as rt

pytestmark = pytest.mark.backends
X = np.ones((24, 3), "float32")
Y = np.zeros((24, 1), "float32")


def network(penalty):
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, kernel_regularizer=penalty)])


def by_hand(values, rate=0.1, accumulate=1):
    """SGD on 0 · loss + l2 ‖w‖² with the strength of each step: w ← w (1 − 2 η l2)."""
    w = 1.0
    for value in values:
        w *= 1 - 2 * rate * value
    return w


def trained(callback, penalty, *, epochs=2, model=None, steps=1, jit="auto", initial=0, more=()):
    model = model or network(penalty)
    if not model.compiled:
        model.compile(keras.optimizers.SGD(0.1), "mse", steps_per_execution=steps, jit_compile=jit)
        model.layers[-1].set_weights([np.ones((3, 1), "float32"), np.zeros(1, "float32")])
    x = np.zeros_like(X)  # the loss has no gradient with respect to the kernel
    history = model.fit(
        x, Y, batch_size=3, epochs=epochs, initial_epoch=initial, verbose=0, shuffle=False,
        callbacks=[callback, *more],
    )  # fmt: skip
    return model, history.history


SCHEDULES = {
    "callable": lambda t: 0.01 + 0.02 * ops.cast(t, "float32"),
    "polynomial": keras.optimizers.schedules.PolynomialDecay(0.4, 12, 0.1),
    "cosine": keras.optimizers.schedules.CosineDecay(0.0, 10, warmup_target=0.3, warmup_steps=4),
    "piecewise": keras.optimizers.schedules.PiecewiseConstantDecay([3, 9], [0.1, 0.3, 0.0]),
}


@pytest.mark.parametrize("steps", [1, 8] if keras.backend.backend() != "torch" else [1])
@pytest.mark.parametrize("name", SCHEDULES)
def test_by_step_each_step_has_the_value_of_its_number(name, steps):
    schedule, penalty = SCHEDULES[name], rt.regularizers.L2(0.7)
    callback = rt.callbacks.Schedule(penalty, "l2", schedule, by="step", key="l2")
    model, history = trained(callback, penalty, steps=steps)
    values = [float(ops.convert_to_numpy(schedule(ops.convert_to_tensor(t)))) for t in range(16)]
    w = ops.convert_to_numpy(model.layers[-1].kernel)
    np.testing.assert_allclose(w, by_hand(values), rtol=2e-5)
    np.testing.assert_allclose(history["l2"], [values[7], values[15]], rtol=1e-6)
    assert penalty.l2 == pytest.approx(values[15])
    found = callback.records.series("l2")
    assert found[0] == [0, 1]
    assert found[1] == history["l2"]


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="nothing here is compiled there")
def test_by_step_under_xla():
    penalty = rt.regularizers.L2(0.0)
    callback = rt.callbacks.Schedule(penalty, "l2", SCHEDULES["polynomial"], by="step")
    model, history = trained(callback, penalty, jit=True)
    schedule = SCHEDULES["polynomial"]
    values = [float(ops.convert_to_numpy(schedule(ops.convert_to_tensor(t)))) for t in range(16)]
    w = ops.convert_to_numpy(model.layers[-1].kernel)
    np.testing.assert_allclose(w, by_hand(values), rtol=2e-5)
    assert len(next(v for k, v in history.items() if k.endswith("/l2"))) == 2


def test_by_epoch():
    penalty = rt.regularizers.L2(0.7)
    callback = rt.callbacks.Schedule(penalty, "l2", lambda e: [0.1, 0.3][e], key="l2")
    model, history = trained(callback, penalty)
    w = ops.convert_to_numpy(model.layers[-1].kernel)
    np.testing.assert_allclose(w, by_hand([0.1] * 8 + [0.3] * 8), rtol=2e-5)
    assert history["l2"] == [0.1, 0.3]


def test_a_dropout_rate_by_step_drops_what_it_says():
    drop = rt.layers.Dropout(0.0, seed=0)
    model = keras.Sequential([keras.Input((2000,)), drop, keras.layers.Dense(1, use_bias=False)])
    model.compile(keras.optimizers.SGD(0.0), lambda y, p: p[:, 0])
    model.layers[-1].set_weights([np.ones((2000, 1), "float32")])

    def schedule(t):
        return ops.where(t < 2, 0.0, 0.5)

    losses = []

    class See(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            losses.append(logs["loss"])

    x = np.concatenate([np.ones((1, 2000)), np.zeros((1, 2000))]).astype("float32")
    callback = rt.callbacks.Schedule(drop, "rate", schedule, by="step")
    model.fit(x, np.zeros(2), batch_size=2, epochs=4, verbose=0, callbacks=[callback, See()])
    assert losses[:2] == [1000.0, 1000.0]
    assert all(850 < loss < 1150 and loss != 1000 for loss in losses[2:])
    assert drop.rate == 0.5


def test_a_fit_that_goes_on_is_one_that_was_never_cut_off(tmp_path):
    def make(penalty):
        return rt.callbacks.Schedule(penalty, "l2", SCHEDULES["cosine"], by="step", key="l2")

    whole = rt.regularizers.L2(0.0)
    expected, history = trained(make(whole), whole, epochs=4)
    penalty = rt.regularizers.L2(0.0)
    backup = keras.callbacks.BackupAndRestore(tmp_path / "b", double_checkpoint=True)

    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(make(penalty), penalty, epochs=4, more=[backup, Stop()])
    again = rt.regularizers.L2(0.0)
    back = keras.callbacks.BackupAndRestore(tmp_path / "b", double_checkpoint=True)
    model, rest = trained(make(again), again, epochs=4, more=[back])
    assert rest["l2"] == history["l2"][2:]
    np.testing.assert_allclose(
        ops.convert_to_numpy(model.layers[-1].kernel),
        ops.convert_to_numpy(expected.layers[-1].kernel),
        rtol=1e-5,
    )


def test_a_fit_cut_off_within_an_epoch_goes_on_at_the_step_that_was_saved(tmp_path):
    """Keras begins that epoch anew; the schedule goes on with the steps of the optimizer."""
    schedule = SCHEDULES["callable"]

    def backup():
        return keras.callbacks.BackupAndRestore(tmp_path / "b", save_freq=3)

    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if self.model is not None and batch == 3 and self.epoch == 1:
                raise KeyboardInterrupt

        def on_epoch_begin(self, epoch, logs=None):
            self.epoch = epoch

    penalty = rt.regularizers.L2(0.0)
    by_step = rt.callbacks.Schedule(penalty, "l2", schedule, by="step", key="l2")
    with pytest.raises(KeyboardInterrupt):
        trained(by_step, penalty, more=[backup(), Stop()])
    again = rt.regularizers.L2(0.0)
    by_step = rt.callbacks.Schedule(again, "l2", schedule, by="step", key="l2")
    model, history = trained(by_step, again, more=[backup()])
    made = int(ops.convert_to_numpy(model.optimizer.iterations))
    assert 16 < made < 24  # steps 0 to 11 or fewer, then the eight of the epoch
    last = float(ops.convert_to_numpy(schedule(made - 1)))
    assert again.l2 == pytest.approx(last)
    assert history["l2"] == [pytest.approx(last)]


def test_after_the_fit_the_step_is_the_models_own():
    penalty = rt.regularizers.L2(0.0)
    callback = rt.callbacks.Schedule(penalty, "l2", SCHEDULES["polynomial"], by="step")
    model, _ = trained(callback, penalty)
    assert "train_step" not in vars(model)
    penalty.l2 = 0.0
    before = ops.convert_to_numpy(model.layers[-1].kernel).copy()
    model.fit(np.zeros_like(X), Y, batch_size=3, verbose=0)
    np.testing.assert_array_equal(ops.convert_to_numpy(model.layers[-1].kernel), before)
    assert penalty.l2 == 0.0


def test_two_schedules_and_other_callbacks_in_one_fit():
    penalty = rt.regularizers.L1L2(0.0, 0.0)
    one = rt.callbacks.Schedule(penalty, "l2", SCHEDULES["polynomial"], by="step", key="l2")
    two = rt.callbacks.Schedule(penalty, "l1", lambda t: 0.0 * ops.cast(t, "float32"), by="step")
    scaling = rt.callbacks.LinearScalingLR(6, 3, warmup_steps=4)
    model, history = trained(one, penalty, more=[two, scaling, rt.callbacks.GradientMonitor()])
    schedule = SCHEDULES["polynomial"]
    w = 1.0
    for t in range(16):
        value = float(ops.convert_to_numpy(schedule(ops.convert_to_tensor(t))))
        w *= 1 - 2 * 0.1 * min(1 + t / 4, 2) * value
    np.testing.assert_allclose(ops.convert_to_numpy(model.layers[-1].kernel), w, rtol=2e-5)
    assert "train_step" not in vars(model)


def test_one_value_for_several_owners_and_owners_found_in_the_model():
    model = keras.Sequential(
        [keras.Input((3,)), rt.layers.Dropout(0.1), rt.layers.Dropout(0.2), keras.layers.Dense(1)]
    )
    model.compile("sgd", "mse")
    both = rt.callbacks.Schedule(model.layers[:2], "rate", lambda e: 0.25, key="both")
    assert model.fit(X, Y, verbose=0, callbacks=[both]).history["both"] == [0.25]
    assert [layer.rate for layer in model.layers[:2]] == [0.25, 0.25]
    found = rt.callbacks.Schedule(lambda m: m.layers[1], "rate", lambda e: 0.5)
    model.fit(X, Y, verbose=0, callbacks=[copy.deepcopy(found)])
    assert [layer.rate for layer in model.layers[:2]] == [0.25, 0.5]


def test_accumulated_steps_are_counted_as_steps():
    penalty = rt.regularizers.L2(0.0)
    model = network(penalty)
    model.compile(keras.optimizers.SGD(0.1, gradient_accumulation_steps=2), "mse")
    model.layers[-1].set_weights([np.ones((3, 1), "float32"), np.zeros(1, "float32")])
    schedule = SCHEDULES["polynomial"]
    callback = rt.callbacks.Schedule(penalty, "l2", schedule, by="step")
    trained(callback, penalty, model=model, epochs=1)
    values = [float(ops.convert_to_numpy(schedule(ops.convert_to_tensor(t)))) for t in range(8)]
    means = [(a + b) / 2 for a, b in zip(values[::2], values[1::2], strict=True)]
    kernel = ops.convert_to_numpy(model.layers[-1].kernel)
    np.testing.assert_allclose(kernel, by_hand(means), rtol=2e-5)


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda p: (p, "l1", lambda e: 0.1), ValueError, r"settings are \['l2'\]"),
        (lambda p: (p, "l2", 0.1), TypeError, "`LearningRateSchedule` or a function"),
        (lambda p: (p, "l2", lambda e: 0.1, "batch"), ValueError, "`by` must be one of"),
        (lambda p: (p, 3, lambda e: 0.1), ValueError, "`name` must be a text"),
        (lambda p: ([], "l2", lambda e: 0.1), ValueError, "an empty list"),
        (lambda p: (keras.layers.Dropout(0.1), "rate", abs), ValueError, "see `keras_regtools.lay"),
    ],
)
def test_what_cannot_be_scheduled_is_refused_at_once(make, kind, message):
    with pytest.raises(kind, match=message):
        rt.callbacks.Schedule(*make(rt.regularizers.L2(0.1)))


@pytest.mark.parametrize("by", ["epoch", "step"])
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), "much"])
def test_a_value_that_the_setting_cannot_take_ends_the_fit_before_its_first_step(by, value):
    penalty = rt.regularizers.L2(0.25)
    callback = rt.callbacks.Schedule(penalty, "l2", lambda e: value, by=by)
    with pytest.raises(ValueError, match=r"`schedule\(0\)` must be a finite number, zero or above"):
        trained(callback, penalty)
    assert penalty.l2 == 0.25


def test_a_part_of_another_model_and_a_second_schedule_are_refused():
    penalty, other = rt.regularizers.L2(0.1), rt.regularizers.L2(0.1)
    with pytest.raises(ValueError, match="which the model does not have"):
        trained(rt.callbacks.Schedule(other, "l2", lambda e: 0.1), penalty)
    one = rt.callbacks.Schedule(penalty, "l2", lambda e: 0.1)
    two = rt.callbacks.Schedule(penalty, "l2", lambda e: 0.2)
    with pytest.raises(ValueError, match="one schedule for each setting"):
        trained(one, penalty, more=[two])
    trained(one, penalty)
    trained(one, penalty, epochs=1)


def test_a_model_with_a_step_of_its_own():
    class Own(keras.Model):
        def __init__(self, penalty):
            super().__init__()
            self.dense = keras.layers.Dense(1, kernel_regularizer=penalty)
            self.layer = self.dense

        def call(self, x):
            return self.dense(x)

        def train_step(self, *args):
            return super().train_step(*args)

    penalty = rt.regularizers.L2(0.0)
    model = Own(penalty)
    model.compile(keras.optimizers.SGD(0.1), "mse")
    model(X[:1])
    model.dense.set_weights([np.ones((3, 1), "float32"), np.zeros(1, "float32")])
    schedule = SCHEDULES["polynomial"]
    callback = rt.callbacks.Schedule(penalty, "l2", schedule, by="step")
    trained(callback, penalty, model=model, epochs=1)
    values = [float(ops.convert_to_numpy(schedule(ops.convert_to_tensor(t)))) for t in range(8)]
    kernel = ops.convert_to_numpy(model.dense.kernel)
    np.testing.assert_allclose(kernel, by_hand(values), rtol=2e-5)


NATURAL = {
    "product": lambda t: 0.01 * t,
    "power": lambda t: 0.9**t,
    "exp": lambda t: ops.exp(-0.1 * t),
    "quotient": lambda t: t / 10,
}


@pytest.mark.parametrize("name", NATURAL)
def test_a_function_of_the_step_reckons_with_a_float(name):
    penalty = rt.regularizers.L2(0.0)
    callback = rt.callbacks.Schedule(penalty, "l2", NATURAL[name], by="step", key="l2")
    _, history = trained(callback, penalty, epochs=1)
    expected = {"product": 0.07, "power": 0.9**7, "exp": np.exp(-0.7), "quotient": 0.7}[name]
    assert history["l2"] == pytest.approx([expected], rel=1e-5)


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="steps are calls of Python there")
def test_a_function_that_cannot_be_traced_is_told():
    penalty = rt.regularizers.L2(0.0)
    callback = rt.callbacks.Schedule(
        penalty, "l2", lambda t: 0.1 if float(t) < 3 else 0.2, by="step"
    )
    with pytest.raises(ValueError, match="a function of a tensor, written with `keras.ops`"):
        trained(callback, penalty)


def test_names_in_the_logs_are_names_of_their_own():
    penalty = rt.regularizers.L1L2(0.0, 0.0)
    for key in ("", "loss", "val_loss"):
        with pytest.raises(ValueError, match="a `key` of its own in the logs|`key` must be"):
            rt.callbacks.Schedule(penalty, "l2", abs, key=key)
    one, two = (
        rt.callbacks.Schedule(penalty, name, lambda e: 0.1, key="x") for name in ("l1", "l2")
    )
    with pytest.raises(ValueError, match="a second 'x'"):
        trained(one, penalty, more=[two])
