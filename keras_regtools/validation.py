"""Checks of single arguments: each says what was expected and what was received."""

import math


def _number(name, value, kind, accepts):
    if isinstance(value, bool) or not accepts(value):
        raise ValueError(
            f"Argument `{name}` must be {kind}. Received: {name}={value} (of type {type(value)})"
        )
    return value


def _is_integer(value):
    try:
        return int(value) == value
    except (TypeError, ValueError, OverflowError):
        return False


def _is_finite(value):
    try:
        return math.isfinite(value)
    except (TypeError, OverflowError):
        return False


def positive_integer(name, value):
    """`value` as an int above zero."""
    return int(_number(name, value, "a positive integer", lambda v: _is_integer(v) and v > 0))


def integer_from(name, value, least):
    """`value` as an int, at least `least`."""
    kind = f"an integer, {least} or above"
    return int(_number(name, value, kind, lambda v: _is_integer(v) and v >= least))


def positive(name, value):
    """`value` as a finite float above zero."""
    return float(
        _number(name, value, "a positive finite number", lambda v: _is_finite(v) and v > 0)
    )


def positive_pair(name, value):
    """`value` as two finite floats above zero, the smaller one first."""
    try:
        low, high = (float(v) for v in value)
        fits = 0 < low < high < math.inf
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise ValueError(
            f"Argument `{name}` must be two positive finite numbers, the smaller one first. "
            f"Received: {name}={value!r}"
        )
    return low, high


def non_negative(name, value):
    """`value` as a finite float, zero or above."""
    return float(
        _number(name, value, "a finite number, zero or above", lambda v: _is_finite(v) and v >= 0)
    )


def share(name, value):
    """`value` as a float between 0 and 1."""
    return float(
        _number(name, value, "a number between 0 and 1", lambda v: _is_finite(v) and 0 < v < 1)
    )


def rate(name, value):
    """`value` as a float in [0, 1), a dropout rate."""
    return float(_number(name, value, "a number in [0, 1)", lambda v: _is_finite(v) and 0 <= v < 1))


def one_of(name, value, options):
    """`value`, if it is among the options."""
    if value not in options:
        listed = ", ".join(repr(option) for option in options)
        raise ValueError(f"Argument `{name}` must be one of {listed}. Received: {name}={value!r}")
    return value


def named_callables(name, value):
    """`value` as a dict from names to callables; a single callable gets its own name."""
    if callable(value):
        inner = getattr(value, "func", value)  # of a partial
        return {getattr(inner, "__name__", name): value}
    if not isinstance(value, dict) or not value:
        raise ValueError(
            f"Expected `{name}` to be a dict from names to callables, not empty. "
            f"Received: {name}={value!r}"
        )
    for key, function in value.items():
        if not callable(function):
            raise TypeError(
                "Expected each measure to be a callable of a `LossSurface`. "
                f"Received: {key!r}: {function!r}"
            )
    return dict(value)


def keras_model(model, *, built=True, compiled=False):
    """`model`, if it is a Keras 3 model that is built (and compiled)."""
    import keras

    if not isinstance(model, keras.Model):
        hint = ""
        if type(model).__module__.split(".")[0] in ("tf_keras", "tensorflow_estimator"):
            hint = (
                " Models of `tf_keras` (Keras 2) are not supported: build the model with `keras`."
            )
        raise TypeError(
            f"Expected a `keras.Model`. Received: {model!r} (of type {type(model)}).{hint}"
        )
    if built and not model.built:
        raise ValueError(
            f"Expected a built model. Received: the model {model.name!r}, which has no weights "
            "yet. Call `model.build(input_shape)` or call it once on data."
        )
    if compiled and not model.compiled:
        raise ValueError(
            f"Expected a compiled model. Received: the model {model.name!r}, which is not "
            "compiled. Call `model.compile(optimizer, loss)` first."
        )
    return model
