"""One hyperparameter: fixed, from a range, one of a list, or with a switch."""

from __future__ import annotations

import dataclasses
from typing import Any

from keras_regtools.validation import Constraint


@dataclasses.dataclass(frozen=True)
class Optional:
    """A value with a switch, see `optional`.

    Attributes:
        value: What it is when it is on.
    """

    value: Any


def optional(value: Any) -> Optional:
    """A hyperparameter with a switch `…/on`: where that is off, the ingredient is left out.

    That is how a cocktail is found, which leaves out what does not help
    ([Kadra et al., 2021](https://arxiv.org/abs/2106.11189)).

    Args:
        value: A number, a range `(low, high)` or a list of values.

    Example:

    >>> optional((1e-6, 1e-2))
    Optional(value=(1e-06, 0.01))
    """
    if isinstance(value, Optional):
        return value
    return Optional(value)


@dataclasses.dataclass(frozen=True)
class Kind:
    """What values a hyperparameter may have, and how a range of it is searched.

    Attributes:
        constraint: Of a single value.
        is_log: Whether a range that begins above zero is searched on a logarithmic axis.
        is_integer: Whether it is a whole number.
    """

    constraint: Constraint
    is_log: bool = False
    is_integer: bool = False


class Value:
    """A hyperparameter with its name, as it was given.

    Args:
        name: Its name, such as `"conv/l2"`.
        given: A value, which is fixed; `(low, high)` or `(low, high, step)`; a list of values; or
            one of these in `optional`.
        kind: Its `Kind`.
        default: The first value that is tried, by default the middle of the range.

    Raises:
        ValueError: a range upside down, or values that the constraint does not accept.
    """

    def __init__(self, name, given, kind, default=None):
        self.name, self.kind, self.default = name, kind, default
        self.has_switch = isinstance(given, Optional)
        value = given.value if self.has_switch else given
        self.low, self.high, self.step, self.choices, self.fixed = None, None, None, None, None
        if isinstance(value, tuple):
            self._take_range(value)
        elif isinstance(value, list):
            if not value:
                raise ValueError(f"Expected values for `{name}`. Received: an empty list")
            self.choices = [self._checked(v) for v in value]
        else:
            self.fixed = self._checked(value)

    def _checked(self, value):
        return self.kind.constraint(self.name, value)

    def _take_range(self, value):
        if len(value) not in (2, 3) or any(isinstance(v, str) for v in value):
            raise ValueError(
                f"Expected `{self.name}` to be a value, a range (low, high), a list of values or "
                f"`optional` of one of them. Received: {value!r}"
            )
        self.low, self.high = (self._checked(v) for v in value[:2])
        if not self.low < self.high:
            raise ValueError(
                f"Expected the range of `{self.name}` to be (low, high), the smaller one first. "
                f"Received: {value!r}"
            )
        self.step = value[2] if len(value) == 3 else None

    @property
    def is_searched(self):
        """Whether there is more than one possibility."""
        return self.fixed is None or self.has_switch

    def __call__(self, hp):
        """The value in these hyperparameters, which learn of it; `None` if it is switched off."""
        if not self.has_switch:
            return self._plain(hp)
        on = hp.Boolean(f"{self.name}/on", default=True)
        with hp.conditional_scope(f"{self.name}/on", [True]):
            value = self._plain(hp)
        return value if on else None

    def _plain(self, hp):
        if self.fixed is not None:
            return self.fixed
        if self.choices is not None:
            return hp.Choice(self.name, self.choices)
        log = self.kind.is_log and self.low > 0 and self.step is None
        settings = {"sampling": "log" if log else "linear", "default": self.default}
        if self.default is None:
            middle = (self.low * self.high) ** 0.5 if log else (self.low + self.high) / 2
            settings["default"] = middle if self.step is None else self.low
        if self.kind.is_integer:
            settings["default"] = round(settings["default"])
            return hp.Int(self.name, self.low, self.high, step=self.step, **settings)
        return hp.Float(self.name, self.low, self.high, step=self.step, **settings)

    def told(self):
        """What is searched, for JSON: to compare two searches."""
        if self.choices is not None:
            found = list(self.choices)
        elif self.fixed is not None:
            found = self.fixed
        else:
            found = [self.low, self.high, *([] if self.step is None else [self.step])]
        return {"optional": found} if self.has_switch else found


def among_kinds(kinds: dict[str, Kind], group: str, given: Any) -> dict[str, Value]:
    """The hyperparameters of a dict such as `{"l2": (1e-6, 1e-2)}`, by the names of ingredients.

    Args:
        kinds: Dict from the names that there are to their kinds.
        group: What they belong to, the first part of their names.
        given: The dict.
    """
    if not isinstance(given, dict):
        raise TypeError(
            f"Expected `{group}` to be a dict from ingredients to values or ranges. "
            f"Received: {given!r}"
        )
    unknown = sorted(set(map(str, given)) - set(kinds))
    if unknown:
        raise ValueError(f"Expected ingredients out of {list(kinds)}. Received: {unknown}")
    return {
        name: Value(f"{group}/{name}", value, kinds[name])
        for name, value in given.items()
        if value is not None
    }
