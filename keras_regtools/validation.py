"""Internal: checks of single arguments: each says what was expected and what was received.

A `Constraint` is data: it tells what it expects, and can be declared beside a parameter.
"""

import dataclasses
import functools
import inspect
import math
import os
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np

_Function = TypeVar("_Function", bound=Callable[..., Any])


@dataclasses.dataclass(frozen=True)
class Constraint:
    """What a value has to be. Called with a parameter's name and a value, it gives the value.

    Args:
        kind: What is expected, in words.
        accepts: Whether a value is such a thing; what it raises counts as no.
        convert: What the value becomes.
        is_number: Whether a number is expected: then its type is told too.
    """

    kind: str
    accepts: Callable
    convert: Callable
    is_number: bool = True

    def __call__(self, name, value):
        if not self.allows(value):
            received = f"{value} (of type {type(value)})" if self.is_number else f"{value!r}"
            raise ValueError(f"Argument `{name}` must be {self.kind}. Received: {name}={received}")
        return self.convert(value)

    def allows(self, value):
        """Whether the value is what is expected."""
        try:
            return bool(self.accepts(value))
        except Exception:  # a comparison with anything may raise anything
            return False


def _is_number(value):
    single = getattr(value, "shape", ()) == ()
    return single and not isinstance(value, (bool, np.bool_, str, bytes))


def _is_integer(value):
    return _is_number(value) and int(value) == value


def _is_any_number(value):
    return _is_number(value) and isinstance(float(value), float)


def _is_finite(value):
    return _is_number(value) and math.isfinite(value)


positive_integer = Constraint("a positive integer", lambda v: _is_integer(v) and v > 0, int)
positive = Constraint("a positive finite number", lambda v: _is_finite(v) and v > 0, float)
non_negative = Constraint(
    "a finite number, zero or above", lambda v: _is_finite(v) and v >= 0, float
)
number = Constraint("a number", _is_any_number, float)
flag = Constraint("True or False", lambda v: isinstance(v, (bool, np.bool_)), bool, False)
share = Constraint("a number between 0 and 1", lambda v: _is_finite(v) and 0 < v < 1, float)
rate = Constraint("a number in [0, 1)", lambda v: _is_finite(v) and 0 <= v < 1, float)
positive_pair = Constraint(
    "two positive finite numbers, the smaller one first",
    lambda v: len(v) == 2 and all(map(_is_finite, v)) and 0 < v[0] < v[1],
    lambda v: tuple(map(float, v)),
    is_number=False,
)


def at_least(least):
    """An integer, `least` or above."""
    kind = f"an integer, {least} or above"
    return Constraint(kind, lambda v: _is_integer(v) and v >= least, int)


def among(options):
    """One of some texts, or `None` if that is among them."""
    listed = ", ".join(repr(option) for option in options)

    def accepts(value):
        return any(value is option or _is_text(value, option) for option in options)

    return Constraint(f"one of {listed}", accepts, lambda v: v, is_number=False)


def _is_text(value, option):
    return isinstance(value, str) and value == option


def optional(constraint):
    """`None`, or what another constraint wants."""
    return dataclasses.replace(
        constraint,
        accepts=lambda v: v is None or constraint.accepts(v),
        convert=lambda v: None if v is None else constraint.convert(v),
    )


def has(attribute, kind):
    """An object of ours or of another library, known by an attribute."""
    return Constraint(kind, lambda v: hasattr(v, attribute), lambda v: v, is_number=False)


path = Constraint(
    "a path",
    lambda v: isinstance(v, (str, os.PathLike)) and os.fspath(v) != "",
    lambda v: v,
    is_number=False,
)
text = Constraint("a text", lambda v: isinstance(v, str), lambda v: v, is_number=False)
shape = Constraint(
    "the shape of a sample, a tuple of positive integers",
    lambda v: isinstance(v, (list, tuple)) and len(v) > 0 and all(map(positive_integer.allows, v)),
    tuple,
    is_number=False,
)
image_shape = dataclasses.replace(
    shape,
    kind="height, width and channels, three positive integers",
    accepts=lambda v: shape.accepts(v) and len(v) == 3,
)
verbosity = Constraint(
    "0, 1 or 2", lambda v: isinstance(v, bool) or (_is_integer(v) and v in (0, 1, 2)), int
)


def checked(**constraints: Any) -> Callable[[_Function], _Function]:
    """Check the arguments of a function at each call.

    Args:
        **constraints: By the name of a parameter: a `Constraint`, or any function of the name and
            the value that gives the value or raises. `None` is allowed where it is the default.
    """

    def declare(function: _Function) -> _Function:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def call(*args, **kwargs):
            try:
                given = signature.bind(*args, **kwargs)
            except TypeError:
                return function(*args, **kwargs)  # which says what is missing
            for name, constraint in constraints.items():
                value = given.arguments.get(name)
                usual = value is None and signature.parameters[name].default is None
                if name in given.arguments and not usual:
                    given.arguments[name] = constraint(name, value)
            return function(*given.args, **given.kwargs)

        return cast(_Function, call)

    return declare


def integer_from(name, value, least):
    """`value` as an int, at least `least`."""
    return at_least(least)(name, value)


def one_of(name, value, options):
    """`value`, if it is among the options."""
    return among(tuple(options))(name, value)


def several(name, value, constraint):
    """`value` as a list, not empty, whose members are what a constraint wants."""
    if isinstance(value, np.ndarray) and value.ndim == 1:
        value = value.tolist()
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError(f"Argument `{name}` must be a list, not empty. Received: {name}={value!r}")
    return [constraint(name, member) for member in value]


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
        if not isinstance(key, str) or not key:
            raise ValueError(
                f"Expected the names in `{name}` to be texts, not empty. Received: {key!r}"
            )
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
