"""Checks of single arguments: what passes, and the whole message for what does not."""

import math

import keras
import numpy as np
import pytest

from keras_regtools import validation

KINDS = {
    validation.positive_integer: "a positive integer",
    validation.positive: "a positive finite number",
    validation.non_negative: "a finite number, zero or above",
    validation.rate: "a number in [0, 1)",
}
NO_NUMBERS = [math.nan, math.inf, -math.inf, -1, -0.5, None, True, False, "1", [1], (1,), {}, 1j]


def _refusal(error, call, *args, **kwargs):
    with pytest.raises(error) as caught:
        call(*args, **kwargs)
    return str(caught.value)


@pytest.mark.parametrize(
    ("check", "value", "checked"),
    [
        (validation.positive_integer, 1, 1),
        (validation.positive_integer, 3.0, 3),
        (validation.positive_integer, np.int64(5), 5),
        (validation.positive_integer, np.float32(5), 5),
        (validation.positive, 1, 1.0),
        (validation.positive, 1e-300, 1e-300),
        (validation.positive, np.float32(0.5), 0.5),
        (validation.non_negative, 0, 0.0),
        (validation.non_negative, 0.1, 0.1),
        (validation.non_negative, np.float64(2), 2.0),
        (validation.rate, 0, 0.0),
        (validation.rate, 0.999, 0.999),
        (validation.rate, np.float32(0.5), 0.5),
    ],
)
def test_good_numbers_come_back_as_plain_ones(check, value, checked):
    received = check("n", value)
    assert received == checked
    assert type(received) is type(checked)


@pytest.mark.parametrize(
    ("check", "value"),
    [
        *((check, value) for check in KINDS for value in NO_NUMBERS),
        *((check, np.array([0.5, 0.5])) for check in KINDS),
        *((check, 10**400) for check in (validation.positive, validation.non_negative)),
        (validation.positive_integer, 0),
        (validation.positive_integer, 2.5),
        (validation.positive, 0),
        (validation.positive, 0.0),
        (validation.rate, 1),
        (validation.rate, 1.5),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)[:8]),
)
def test_bad_numbers_are_refused(check, value):
    assert _refusal(ValueError, check, "n", value) == (
        f"Argument `n` must be {KINDS[check]}. Received: n={value} (of type {type(value)})"
    )


def test_one_of_gives_back_an_option():
    assert validation.one_of("rule", "sqrt", ("linear", "sqrt")) == "sqrt"
    assert validation.one_of("rule", None, (None, "sqrt")) is None


@pytest.mark.parametrize(
    ("value", "received"), [("cubic", "'cubic'"), ("", "''"), (None, "None"), (2, "2"), ([], "[]")]
)
def test_other_options_are_refused(value, received):
    assert _refusal(ValueError, validation.one_of, "rule", value, ("linear", "sqrt")) == (
        f"Argument `rule` must be one of 'linear', 'sqrt'. Received: rule={received}"
    )


def _model(built=True, compiled=False):
    layers = [keras.layers.Dense(1)]
    model = keras.Sequential(([keras.Input((2,))] if built else []) + layers, name="net")
    if compiled:
        model.compile("sgd", "mse")
    return model


@pytest.mark.parametrize(
    ("model", "asked"),
    [
        (_model, {}),
        (lambda: _model(built=False), {"built": False}),
        (lambda: _model(compiled=True), {"compiled": True}),
        (lambda: _model(built=False, compiled=True), {"built": False, "compiled": True}),
    ],
)
def test_good_models_come_back(model, asked):
    model = model()
    assert validation.keras_model(model, **asked) is model


@pytest.mark.parametrize("value", [None, "net", keras.Model, keras.layers.Dense], ids=str)
def test_what_is_no_model_is_refused(value):
    assert _refusal(TypeError, validation.keras_model, value) == (
        f"Expected a `keras.Model`. Received: {value!r} (of type {type(value)})."
    )


@pytest.mark.parametrize("module", ["tf_keras.src.engine.training", "tf_keras"])
def test_a_model_of_tf_keras_is_refused_by_name(module):
    model = type("Functional", (), {"__module__": module})()
    assert _refusal(TypeError, validation.keras_model, model) == (
        f"Expected a `keras.Model`. Received: {model!r} (of type {type(model)}). "
        "Models of `tf_keras` (Keras 2) are not supported: build the model with `keras`."
    )


@pytest.mark.parametrize("compiled", [True, False])
def test_an_unbuilt_model_is_refused(compiled):
    model = _model(built=False, compiled=compiled)
    assert _refusal(ValueError, validation.keras_model, model) == (
        "Expected a built model. Received: the model 'net', which has no weights yet. "
        "Call `model.build(input_shape)` or call it once on data."
    )


def test_an_uncompiled_model_is_refused():
    assert _refusal(ValueError, validation.keras_model, _model(), compiled=True) == (
        "Expected a compiled model. Received: the model 'net', which is not compiled. "
        "Call `model.compile(optimizer, loss)` first."
    )
