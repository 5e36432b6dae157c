"""A measure is declared once: its names, its unit, whether there is chance, its arguments."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from keras_regtools.measures.result import loss_surface
from keras_regtools.validation import checked

_Function = TypeVar("_Function", bound=Callable[..., Any])


@dataclasses.dataclass(frozen=True)
class Declaration:
    """What is known of a measure.

    Attributes:
        measure: The function, from a `LossSurface` to a result.
        unit: Of its value, in words; empty for a number without one.
        short: Dict from the names under which `callbacks.Sharpness` knows it to the arguments of
            each that are not the defaults.
        constraints: Dict from names of parameters to a `validation.Constraint`.
    """

    measure: Callable
    unit: str
    short: dict
    constraints: dict

    @property
    def random(self):
        """Whether there is chance in it, and so a seed."""
        return "seed" in inspect.signature(self.measure).parameters

    def named(self, name):
        """The measure with the arguments of one of its short names."""
        preset = self.short[name]
        return functools.partial(self.measure, **preset) if preset else self.measure


DECLARED: dict[str, Declaration] = {}  # by the name of the function


def measure(
    unit: str = "", short: Any = (), **constraints: Any
) -> Callable[[_Function], _Function]:
    """Declare a function of a `LossSurface` as a measure; its arguments are checked at each call.

    Args:
        unit, short: As in `Declaration`; a single name, or names with other arguments.
        **constraints: By the name of the parameter; `None` is allowed where it is the default.
    """
    short = {short: {}} if isinstance(short, str) else dict(short)

    def declare(function: _Function) -> _Function:
        call = checked(surface=surface_of, **constraints)(function)
        DECLARED[call.__name__] = Declaration(call, unit, short, constraints)
        return call

    return declare


def surface_of(name, value):
    """The constraint of a parameter that is a `LossSurface`."""
    return loss_surface(value)


def by_short_name():
    """Dict from all short names to measures."""
    return {name: one.named(name) for one in DECLARED.values() for name in one.short}
