"""A measure is declared once: its names, its unit, whether there is chance, its arguments."""

import dataclasses
import functools
import inspect
from collections.abc import Callable

from keras_regtools.measures.result import loss_surface


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


DECLARED = {}  # by the name of the function


def measure(unit="", short=(), **constraints):
    """Declare a function of a `LossSurface` as a measure; its arguments are checked at each call.

    Args:
        unit, short: As in `Declaration`; a single name, or names with other arguments.
        **constraints: By the name of the parameter; `None` is allowed where it is the default.
    """
    short = {short: {}} if isinstance(short, str) else dict(short)

    def declare(function):
        signature = inspect.signature(function)

        @functools.wraps(function)
        def checked(*args, **kwargs):
            try:
                given = signature.bind(*args, **kwargs)
            except TypeError:
                return function(*args, **kwargs)  # which says what is missing
            loss_surface(next(iter(given.arguments.values())))
            for name, constraint in constraints.items():
                if name in given.arguments and not _is_default(signature, given, name):
                    given.arguments[name] = constraint(name, given.arguments[name])
            return function(*given.args, **given.kwargs)

        DECLARED[function.__name__] = Declaration(checked, unit, short, constraints)
        return checked

    return declare


def _is_default(signature, given, name):
    return given.arguments[name] is None and signature.parameters[name].default is None


def by_short_name():
    """Dict from all short names to measures."""
    return {name: one.named(name) for one in DECLARED.values() for name in one.short}
