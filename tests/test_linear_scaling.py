"""`LinearScalingLR`: exact rates in every step, shown by weights whose gradient is always one.

The loss of these models is their one weight, so after n steps of plain SGD it is minus the sum of
the n rates that were really applied, whatever anybody reports.
"""

import gc
import math

import keras
import numpy as np
import problems
import pytest
from keras import ops
from problems import rows

import keras_regtools as rt
from keras_regtools.callbacks import LinearScalingLR
from keras_regtools.training import warmup_factor

pytestmark = pytest.mark.backends
STEPS_PER_EXECUTION = [1] if keras.backend.backend() == "torch" else [1, 8]  # it refuses more


def slope_model(optimizer, **compile_arguments):
    return problems.function_model(
        lambda w: ops.sum(w), (0.0,), optimizer=optimizer, **compile_arguments
    )


def weight(model):
    return float(model.get_weights()[0][0])


def rate(model):
    return float(ops.convert_to_numpy(model.optimizer.learning_rate))


def fit(model, steps=10, epochs=1, callbacks=(), **arguments):
    x = np.zeros((4 * steps, 1), "float32")
    return model.fit(
        x, x, batch_size=4, epochs=epochs, callbacks=list(callbacks), verbose=0, **arguments
    )


def ramp(base, factor, warmup, steps):
    return [base + (factor - 1) * base * min(t / warmup, 1) for t in range(steps)]


def momentum_run(rates, momentum, correct):
    """SGD with momentum in numpy: gradient one, Keras' form of the velocity."""
    w, velocity, last = 0.0, 0.0, rates[0]
    for now in rates:
        if correct:
            velocity *= now / last
        velocity = momentum * velocity - now
        w, last = w + velocity, now
    return w


class Rates(keras.callbacks.Callback):
    """The rate left behind by each step."""

    def on_train_begin(self, logs=None):
        self.rates = []

    def on_train_batch_end(self, batch, logs=None):
        self.rates.append(rate(self.model))


class SetRate(keras.callbacks.Callback):
    """Set the rate at the beginning of each epoch, as a user's own schedule would."""

    def __init__(self, rates):
        super().__init__()
        self.rates = rates

    def on_epoch_begin(self, epoch, logs=None):
        self.model.optimizer.learning_rate = self.rates[epoch]


class StopAt(keras.callbacks.Callback):
    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise KeyboardInterrupt


def test_the_published_ramp():
    model = slope_model(keras.optimizers.SGD(0.1))
    seen = Rates()
    fit(model, 60, callbacks=[LinearScalingLR(32, 1, warmup_steps=50), seen])
    assert [seen.rates[t] for t in (0, 1, 25, 50, 59)] == pytest.approx(
        [0.1, 0.162, 1.65, 3.2, 3.2], rel=1e-6
    )


@pytest.mark.filterwarnings("ignore:A warm-up of")
@pytest.mark.parametrize("steps_per_execution", STEPS_PER_EXECUTION)
@pytest.mark.parametrize("warmup", rows([0, 1, 7, 30], 0, 7))
def test_every_step_gets_its_rate(warmup, steps_per_execution):
    model = slope_model(keras.optimizers.SGD(0.1), steps_per_execution=steps_per_execution)
    fit(model, 24, callbacks=[LinearScalingLR(16, 2, warmup_steps=warmup)])
    expected = ramp(0.1, 8, warmup, 24) if warmup else [0.8] * 24
    assert weight(model) == pytest.approx(-sum(expected), rel=1e-5)


def test_warmup_epochs_count_the_steps_of_the_fit():
    model = slope_model(keras.optimizers.SGD(0.1))
    fit(model, 10, epochs=4, callbacks=[LinearScalingLR(4, 1, warmup_epochs=2)])
    assert weight(model) == pytest.approx(-sum(ramp(0.1, 4, 20, 40)), rel=1e-5)


@pytest.mark.parametrize(("rule", "factor"), [("linear", 9), ("sqrt", 3)])
def test_the_rules(rule, factor):
    model = slope_model(keras.optimizers.SGD(0.1))
    fit(model, callbacks=[LinearScalingLR(36, 4, rule=rule, warmup_epochs=0)])
    assert rate(model) == pytest.approx(0.1 * factor, rel=1e-6)


@pytest.mark.parametrize("given", [40.0, "result"])
def test_the_noise_scale_bounds_the_rate(given):
    """η(B) = η_max B / (B + B_noise), so 36 and 4 samples have the ratio 9 · 44 / 76."""

    class Result:
        value = 40.0

    noise = Result() if given == "result" else given
    scaling = LinearScalingLR(36, 4, rule="noise_scale", noise_scale=noise, warmup_epochs=0)
    model = slope_model(keras.optimizers.SGD(0.1))
    fit(model, callbacks=[scaling])
    assert rate(model) == pytest.approx(0.1 * 9 * 44 / 76, rel=1e-6)


def adam_run(rates, beta_1, beta_2, epsilon):
    """Adam in numpy as Keras has it (ε beside the raw average), with the gradient one."""
    w = m = v = 0.0
    for t, now in enumerate(rates, 1):
        m, v = beta_1 * m + 1 - beta_1, beta_2 * v + 1 - beta_2
        now *= math.sqrt(1 - beta_2**t) / (1 - beta_1**t)
        w -= now * m / (math.sqrt(v) + epsilon)
    return w


@pytest.mark.parametrize("accumulated", [1, 2])
def test_the_rule_for_adam(accumulated):
    """κ = 4: β 0.9 → 0.6 and 0.999 → 0.996, ε halved, the rate doubled (FACTS)."""
    optimizer = keras.optimizers.Adam(0.1, epsilon=0.5)
    optimizer.gradient_accumulation_steps = accumulated if accumulated > 1 else None
    model, seen = slope_model(optimizer), []

    class Settings(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append((optimizer.beta_1, optimizer.beta_2, optimizer.epsilon))

    scaling = LinearScalingLR(16 // accumulated, 4, rule="adam", warmup_steps=4)
    fit(model, 8 * accumulated, callbacks=[scaling, Settings()])
    assert seen[-1] == pytest.approx((0.6, 0.996, 0.25))
    assert (optimizer.beta_1, optimizer.beta_2, optimizer.epsilon) == (0.9, 0.999, 0.5)
    if accumulated == 1:
        expected = adam_run(ramp(0.1, 2, 4, 8), 0.6, 0.996, 0.25)
        assert weight(model) == pytest.approx(expected, rel=1e-4)


def test_a_file_saved_during_the_fit_holds_adams_own_settings(tmp_path):
    model = slope_model(keras.optimizers.Adam(0.1))
    checkpoint = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras")
    scaling = LinearScalingLR(16, 4, rule="adam", warmup_epochs=0)

    class Config(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            assert self.model.optimizer.beta_1 == pytest.approx(0.6)
            assert self.model.optimizer.get_config()["beta_1"] == 0.9

    fit(model, 3, epochs=2, callbacks=[scaling, Config()])
    assert "get_config" not in vars(model.optimizer)
    plain = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    plain.compile(keras.optimizers.Adam(0.1), "mse")
    plain.fit(np.ones((8, 1)), np.ones(8), batch_size=4, epochs=2, verbose=0, callbacks=[
        LinearScalingLR(16, 4, rule="adam", warmup_epochs=0), checkpoint])  # fmt: skip
    again = keras.models.load_model(tmp_path / "2.keras")
    assert again.optimizer.beta_1 == 0.9


def test_numbers_of_numpy_and_a_fit_beyond_the_warm_up():
    scaling = LinearScalingLR(64, 4, rule=lambda k: np.sqrt(np.float32(k)), warmup_steps=8)
    assert scaling.factor == 4
    model = slope_model(keras.optimizers.SGD(0.1))
    fit(model, 10, callbacks=[scaling])
    fit(model, 2, callbacks=[LinearScalingLR(64, 4, rule=scaling.rule, warmup_steps=8)])
    assert rate(model) == pytest.approx(0.4)


def test_adams_settings_come_back_after_a_fit_that_was_cut_off():
    optimizer = keras.optimizers.Adam(0.1)
    model = slope_model(optimizer)

    class Cut(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(model, callbacks=[LinearScalingLR(16, 4, rule="adam", warmup_epochs=0), Cut()])
    fit(model, 1)  # at the latest when another fit begins
    assert optimizer.beta_1 == 0.9


@pytest.mark.parametrize(
    ("optimizer", "arguments", "message"),
    [
        (
            "adam",
            {"batch_size": 40},
            "Expected less than 10 times the base batch size, as Adam's β = 0.9 averages over 10 "
            "steps. Received: 10 times. Use rule='sqrt', or a larger base batch size with its own "
            "rate.",
        ),
        (
            "sgd",
            {"batch_size": 8},
            "Expected Adam or AdamW for rule='adam'. Received: SGD. Use 'linear' for SGD, 'sqrt' "
            "for others.",
        ),
    ],
)
def test_what_the_rule_for_adam_cannot_do_is_said_before_the_first_step(
    optimizer, arguments, message
):
    model = slope_model(optimizer)
    with pytest.raises(ValueError) as caught:
        fit(model, callbacks=[LinearScalingLR(base_batch_size=4, rule="adam", **arguments)])
    assert str(caught.value) == message
    assert weight(model) == 0


def test_two_that_set_one_rate_are_named():
    model = slope_model(keras.optimizers.SGD(0.1))
    two = [LinearScalingLR(4, 2, warmup_epochs=0) for _ in range(2)]
    with pytest.raises(ValueError) as caught:
        fit(model, callbacks=two)
    assert str(caught.value) == (
        "Expected one `LinearScalingLR` in a fit, as it sets the rate. Received: 2"
    )

    class Own(LinearScalingLR):
        pass

    with pytest.raises(ValueError, match="Expected one `LinearScalingLR` in a fit"):
        fit(model, callbacks=[LinearScalingLR(4, 2), Own(4, 2)])
    scheduler = keras.callbacks.LearningRateScheduler(lambda epoch: 0.1)
    with pytest.warns(UserWarning, match="for 0 steps of warm-up the latter does"):
        fit(model, callbacks=[LinearScalingLR(4, 2, warmup_epochs=0), scheduler])
    with pytest.warns(UserWarning, match="`LearningRateScheduler` and `LinearScalingLR` both set"):
        fit(model, callbacks=[LinearScalingLR(4, 2, warmup_steps=5), scheduler])
    with pytest.warns(UserWarning, match="A warm-up of 20 steps is longer than this fit, which"):
        fit(model, 10, callbacks=[LinearScalingLR(4, 2, warmup_steps=20)])


def test_a_smaller_batch_gets_a_smaller_rate():
    model = slope_model(keras.optimizers.SGD(0.1))
    fit(model, callbacks=[LinearScalingLR(8, 32, warmup_epochs=0)])
    assert rate(model) == pytest.approx(0.025, rel=1e-6)


def test_a_given_base_rate_replaces_the_optimizers_own():
    model = slope_model(keras.optimizers.SGD(7.0))
    fit(model, callbacks=[LinearScalingLR(4, 1, 0.1, warmup_steps=5)])
    assert weight(model) == pytest.approx(-sum(ramp(0.1, 4, 5, 10)), rel=1e-5)


@pytest.mark.parametrize(("correct", "expected"), [(True, -91.67268), (False, -44.88482)])
def test_momentum_follows_a_rate_that_another_callback_changes(correct, expected):
    """FACTS 7: momentum .9, gradient 1, rate .1 five times, then 3.2 five times."""
    model = slope_model(keras.optimizers.SGD(0.1, momentum=0.9))
    scaling = LinearScalingLR(32, 32, warmup_epochs=0, momentum_correction=correct)
    fit(model, 5, epochs=2, callbacks=[SetRate([0.1, 3.2]), scaling])
    assert weight(model) == pytest.approx(expected, rel=1e-6)


def test_the_exact_case_in_numpy():
    assert momentum_run([0.1] * 5 + [3.2] * 5, 0.9, True) == pytest.approx(-91.67268, rel=1e-7)
    assert momentum_run([0.1] * 5 + [3.2] * 5, 0.9, False) == pytest.approx(-44.88482, rel=1e-6)


@pytest.mark.parametrize("steps_per_execution", STEPS_PER_EXECUTION)
@pytest.mark.parametrize("correct", [True, False])
def test_momentum_follows_the_warmup(correct, steps_per_execution):
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    model = slope_model(optimizer, steps_per_execution=steps_per_execution)
    scaling = LinearScalingLR(32, 1, warmup_steps=12, momentum_correction=correct)
    fit(model, 24, callbacks=[scaling])
    expected = momentum_run(ramp(0.1, 32, 12, 24), 0.9, correct)
    assert weight(model) == pytest.approx(expected, rel=1e-5)


def test_adams_moments_are_left_alone():
    model = slope_model(keras.optimizers.Adam(0.1))
    fit(model, callbacks=[LinearScalingLR(4, 1, warmup_steps=5)])
    # With a constant gradient each step of Adam is the rate, up to its epsilon.
    assert weight(model) == pytest.approx(-sum(ramp(0.1, 4, 5, 10)), rel=1e-4)


def test_a_schedule_is_scaled_and_given_back():
    decay = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5)
    model = slope_model(keras.optimizers.SGD(decay))
    fit(model, 20, callbacks=[LinearScalingLR(4, 1, warmup_steps=5)])
    rates = [0.1 * 0.5 ** (t / 10) * float(warmup_factor(t, 4, 5)) for t in range(20)]
    assert weight(model) == pytest.approx(-sum(rates), rel=1e-5)
    assert model.optimizer.get_config()["learning_rate"]["class_name"] == "ExponentialDecay"
    fit(model, 1)
    assert weight(model) == pytest.approx(-sum(rates) - 0.1 * 0.5**2, rel=1e-5)


def test_momentum_follows_a_schedule():
    decay = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5)
    model = slope_model(keras.optimizers.SGD(decay, momentum=0.9))
    fit(model, 20, callbacks=[LinearScalingLR(4, 1, warmup_steps=5)])
    rates = [0.1 * 0.5 ** (t / 10) * float(warmup_factor(t, 4, 5)) for t in range(20)]
    assert weight(model) == pytest.approx(momentum_run(rates, 0.9, True), rel=1e-5)


def test_a_resumed_run_ends_as_if_never_cut_off(tmp_path):
    def run(directory, stop=()):
        model = slope_model(keras.optimizers.SGD(0.1, momentum=0.9))
        model.optimizer.build(model.trainable_variables)
        backup = keras.callbacks.BackupAndRestore(directory)
        scaling = LinearScalingLR(16, 1, warmup_epochs=4)
        fit(model, 10, epochs=6, callbacks=[*stop, backup, scaling])
        return weight(model), rate(model)

    expected = run(tmp_path / "whole")
    assert expected[0] == pytest.approx(momentum_run(ramp(0.1, 16, 40, 60), 0.9, True), rel=1e-5)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", [StopAt(2)])
    assert run(tmp_path / "parts") == pytest.approx(expected, rel=1e-6)


def test_afterwards_other_callbacks_change_the_rate():
    model = slope_model(keras.optimizers.SGD(0.1))
    plateau = keras.callbacks.ReduceLROnPlateau(
        "loss", factor=0.5, patience=1, min_delta=1e9, mode="min"
    )
    fit(model, 10, epochs=4, callbacks=[LinearScalingLR(4, 1, warmup_epochs=1), plateau])
    assert rate(model) < 0.4
    before = weight(model)
    last = rate(model)
    fit(model, 1)
    assert weight(model) == pytest.approx(before - last, rel=1e-5)


@pytest.mark.filterwarnings("ignore:A warm-up of")
@pytest.mark.parametrize("new_callback", [True, False])
def test_a_second_fit_goes_on_and_does_not_scale_again(new_callback):
    model = slope_model(keras.optimizers.SGD(0.1))
    scaling = LinearScalingLR(4, 1, warmup_epochs=2)
    fit(model, 10, callbacks=[scaling])
    if new_callback:
        scaling = LinearScalingLR(4, 1, warmup_epochs=2)
    fit(model, 10, epochs=2, callbacks=[scaling])
    assert weight(model) == pytest.approx(-sum(ramp(0.1, 4, 20, 30)), rel=1e-5)


def test_a_trained_model_is_warmed_up_from_where_it_stands():
    model = slope_model(keras.optimizers.SGD(0.1))
    fit(model, 7)
    fit(model, 10, callbacks=[LinearScalingLR(4, 1, warmup_steps=5)])
    assert weight(model) == pytest.approx(-0.7 - sum(ramp(0.1, 4, 5, 10)), rel=1e-5)


def test_a_fit_after_a_plain_one_sees_the_callback_and_one_after_it_does_not():
    model = slope_model(keras.optimizers.SGD(0.1))
    fit(model, 3)
    fit(model, 3, callbacks=[LinearScalingLR(4, 1, warmup_epochs=0)])
    assert "apply" not in vars(model.optimizer)
    model.optimizer.learning_rate = 0.1
    before = weight(model)
    fit(model, 3)
    assert weight(model) - before == pytest.approx(-0.3, rel=1e-5)


@pytest.mark.filterwarnings("ignore:A warm-up of")
def test_a_cut_off_fit_leaves_no_hook_behind():
    model = slope_model(keras.optimizers.SGD(0.1))
    with pytest.raises(KeyboardInterrupt) as caught:
        fit(model, 3, epochs=3, callbacks=[LinearScalingLR(4, 1), StopAt(1)])
    assert "apply" in vars(model.optimizer)
    del caught
    gc.collect()
    assert "apply" not in vars(model.optimizer)
    model.optimizer.learning_rate = 0.1
    before = weight(model)
    fit(model, 3)  # compiled again, without the warm-up
    assert weight(model) - before == pytest.approx(-0.3, rel=1e-5)


def test_a_checkpoint_saved_during_the_fit_loads(tmp_path):
    model = slope_model(keras.optimizers.SGD(0.1))
    path = tmp_path / "{epoch}.weights.h5"
    checkpoint = keras.callbacks.ModelCheckpoint(path, save_weights_only=True)
    fit(model, 5, epochs=2, callbacks=[LinearScalingLR(4, 1, warmup_epochs=1), checkpoint])
    again = slope_model(keras.optimizers.SGD(0.1))
    again.load_weights(tmp_path / "2.weights.h5")
    assert weight(again) == weight(model)


def test_gradient_accumulation_warms_up_over_the_batches():
    optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=4)
    model = slope_model(optimizer)
    scaling = LinearScalingLR(4, 4, warmup_steps=8)  # of 4 samples, 4 times: 16
    fit(model, 12, callbacks=[scaling])
    assert scaling.effective_batch_size == 16
    rates = ramp(0.1, 4, 8, 12)
    assert weight(model) == pytest.approx(-(rates[3] + rates[7] + rates[11]), rel=1e-5)


def test_under_loss_scaling_the_inner_optimizer_is_scaled():
    inner = keras.optimizers.SGD(0.1, momentum=0.9)
    model = slope_model(keras.optimizers.LossScaleOptimizer(inner, initial_scale=4.0))
    fit(model, 10, callbacks=[LinearScalingLR(4, 1, warmup_steps=5)])
    expected = momentum_run(ramp(0.1, 4, 5, 10), 0.9, True)
    assert weight(model) == pytest.approx(expected, rel=1e-5)


def test_the_rate_is_logged_and_recorded_step_by_step():
    model = slope_model(keras.optimizers.SGD(0.1))
    scaling = LinearScalingLR(4, 1, warmup_epochs=2)
    history = fit(model, 10, epochs=3, callbacks=[scaling])
    assert history.history["learning_rate"] == pytest.approx([0.235, 0.385, 0.4], rel=1e-5)
    steps, rates = scaling.records.series("learning_rate", by="step")
    assert steps == list(range(30))
    assert rates == pytest.approx(ramp(0.1, 4, 20, 30), rel=1e-5)


def test_what_will_happen_is_printed(capsys):
    fit(
        slope_model(keras.optimizers.SGD(0.125)),
        callbacks=[LinearScalingLR(4, 1, warmup_steps=5, verbose=1)],
    )
    assert capsys.readouterr().out == (
        "LinearScalingLR: batch 4 for 1, linear: from 0.125 to 0.5 in 5 steps\n"
    )
    fit(
        slope_model(keras.optimizers.SGD(0.125, gradient_accumulation_steps=2)),
        callbacks=[LinearScalingLR(4, 2, rule=lambda k: k / 2, warmup_epochs=0, verbose=1)],
    )
    assert capsys.readouterr().out == (
        "LinearScalingLR: batch 4 × 2 accumulated for 2, its own rule: from 0.125 to 0.25 in 0 "
        "steps\n"
    )


def number(name, value, kind):
    return f"Argument `{name}` must be {kind}. Received: {name}={value} (of type {type(value)})"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, number("batch_size", 0, "a positive integer")),
        ({"batch_size": 2.5}, number("batch_size", 2.5, "a positive integer")),
        ({"base_batch_size": -1}, number("base_batch_size", -1, "a positive integer")),
        (
            {"base_learning_rate": 0.0},
            number("base_learning_rate", 0.0, "a positive finite number"),
        ),
        (
            {"base_learning_rate": math.nan},
            number("base_learning_rate", math.nan, "a positive finite number"),
        ),
        ({"warmup_epochs": -1}, number("warmup_epochs", -1, "a finite number, zero or above")),
        (
            {"rule": "cubic"},
            "Argument `rule` must be one of 'linear', 'sqrt', 'adam', 'noise_scale', 'adascale'. "
            "Received: rule='cubic'",
        ),
        (
            {"rule": "noise_scale"},
            "Expected `noise_scale=` for rule='noise_scale': a number, or what "
            "`measures.gradient_noise_scale(surface)` gave. Received: None",
        ),
        (
            {"rule": "noise_scale", "noise_scale": math.inf},
            number("noise_scale", math.inf, "a positive finite number"),
        ),
        (
            {"noise_scale": 3.0},
            "Expected `noise_scale` for rule='noise_scale' alone. Received: rule='linear'",
        ),
        (
            {"rule": lambda k: 0.0},
            "Expected a rule that gives a positive finite number. Received: 0.0 of 2 times the "
            "batch",
        ),
    ],
)
def test_bad_arguments_are_refused_at_once(arguments, message):
    with pytest.raises(ValueError) as caught:
        LinearScalingLR(**{"batch_size": 64, "base_batch_size": 32, **arguments})
    assert str(caught.value) == message


def test_both_batch_sizes_are_required():
    with pytest.raises(TypeError, match="base_batch_size"):
        LinearScalingLR(64)


def test_data_of_unknown_length_need_the_steps():
    def batches():
        while True:
            yield np.zeros((4, 1), "float32"), np.zeros((4, 1), "float32")

    class Unknown(keras.callbacks.Callback):
        def set_params(self, params):
            params["steps"] = None

    model = slope_model("sgd")
    with pytest.raises(ValueError) as caught:
        model.fit(
            batches(),
            steps_per_epoch=2,
            shuffle=False,
            verbose=0,
            callbacks=[Unknown(), LinearScalingLR(4, 1)],
        )
    assert str(caught.value) == (
        "Expected a known number of steps per epoch for `warmup_epochs`. Received: data of "
        "unknown length. Pass `warmup_steps=` or `steps_per_epoch=` to `fit`."
    )


def test_a_base_rate_beside_a_schedule_is_refused():
    decay = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5)
    model = slope_model(keras.optimizers.SGD(decay))
    with pytest.raises(ValueError) as caught:
        fit(model, callbacks=[LinearScalingLR(4, 1, 0.1)])
    assert str(caught.value) == (
        "Expected no `base_learning_rate` for an optimizer built with a schedule, which the factor "
        "multiplies. Received: 0.1"
    )
    assert "apply" not in vars(model.optimizer)


def test_the_rate_of_an_epoch_is_that_of_its_last_step_in_any_order_of_callbacks():
    def run(reverse):
        model = slope_model(keras.optimizers.SGD(0.1, momentum=0.9))
        plateau = keras.callbacks.ReduceLROnPlateau(
            "loss", factor=0.5, patience=1, min_delta=1e9, mode="min"
        )
        callbacks = [LinearScalingLR(4, 1, warmup_epochs=1), plateau]
        history = fit(model, 10, epochs=4, callbacks=callbacks[:: -1 if reverse else 1])
        return history.history["learning_rate"], weight(model)

    first, second = run(False), run(True)
    assert first[0] == pytest.approx(second[0])
    assert first[1] == pytest.approx(second[1])


def test_momentum_is_corrected_in_a_second_fit_too():
    model = slope_model(keras.optimizers.SGD(0.1, momentum=0.9))
    scaling = LinearScalingLR(32, 32, warmup_epochs=1)
    fit(model, 5, epochs=2, callbacks=[scaling])
    fit(model, 5, epochs=2, callbacks=[SetRate([0.1, 3.2]), scaling])
    expected = momentum_run([0.1] * 15 + [3.2] * 5, 0.9, True)
    assert weight(model) == pytest.approx(expected, rel=1e-5)


def test_a_copy_of_a_scaled_model_is_not_scaled_again():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, "relu")])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    fit(model, 10, callbacks=[LinearScalingLR(4, 1, warmup_steps=5)])
    copy = rt.instrument(model)
    assert rate(copy) == pytest.approx(0.4)
    fit(copy, 10, callbacks=[LinearScalingLR(4, 1, warmup_epochs=0)])
    assert rate(copy) == pytest.approx(0.4)


def test_a_callback_of_an_earlier_fit_that_goes_away_leaves_the_present_one_alone():
    model, held = slope_model(keras.optimizers.SGD(0.1)), [LinearScalingLR(4, 2, warmup_epochs=0)]
    fit(model, callbacks=held)

    def forget(epoch, logs=None):
        held.clear()
        gc.collect()

    after = LinearScalingLR(4, 2, warmup_epochs=0)
    before = weight(model)
    fit(model, callbacks=[keras.callbacks.LambdaCallback(on_epoch_begin=forget), after])
    assert weight(model) - before == pytest.approx(-10 * 0.2, rel=1e-5)
