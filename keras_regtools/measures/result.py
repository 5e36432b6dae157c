"""What every measure returns."""

import dataclasses
import math

import numpy as np
from keras import ops, tree


@dataclasses.dataclass(frozen=True)
class Result:
    """Base of the results: frozen, and flat for logs and tables."""

    def scalars(self) -> dict[str, float]:
        """The numbers and flags of the result, as a dict of floats."""
        fields = {name: getattr(self, name) for name in self._names()}
        return {k: float(v) for k, v in fields.items() if isinstance(v, (int, float))}

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if "__repr__" not in vars(cls):
            cls.__repr__ = Result.__repr__  # or the decorator of the subclass would make one

    def __repr__(self):
        """The number first, with its doubt; arrays are told by their shape."""
        value, doubt = getattr(self, "value", None), self._doubt()
        head = [] if value is None else [f"{value:.6g} ± {doubt:.2g}" if doubt else f"{value:.6g}"]
        rest = [
            f"{name}={shown(getattr(self, name))}"
            for name in self._names()
            if name not in ("value", "stderr") and getattr(self, name) is not None
        ]
        return f"{type(self).__name__}({', '.join(head + rest)})"

    def _names(self):
        """The fields: the value first, then its own, then those that many results share."""
        own = type(self).__annotations__
        names = (f.name for f in dataclasses.fields(self))
        return sorted(names, key=lambda name: (name != "value", name not in own))

    def _doubt(self):
        """The error that the value may have, where it is known."""
        stderr = getattr(self, "stderr", None)
        return None if stderr is None else float(stderr)

    def __eq__(self, other):
        if type(self) is not type(other):
            return NotImplemented
        return all(
            _same(getattr(self, f.name), getattr(other, f.name)) for f in dataclasses.fields(self)
        )

    __hash__ = None  # type: ignore[assignment]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class SharpnessResult(Result):
    """What every measure of flatness says of where its numbers come from.

    Attributes:
        value: The measure.
        loss: The loss at the weights.
        evaluations: Passes over the data, for the loss or for the loss and its gradient.
        mode, penalties, samples: Those of the surface.
    """

    value: float
    loss: float
    evaluations: int
    mode: str
    penalties: bool
    samples: int | None


def shown(value):
    """A field of a result in a few characters."""
    if isinstance(value, (float, np.floating)):
        return f"{value:.6g}"
    if isinstance(value, np.ndarray):
        if value.ndim == 1 and len(value) <= _FEW:
            return f"[{', '.join(shown(v) for v in value)}]"
        return f"<array of shape {value.shape}>"
    if isinstance(value, (list, tuple)) and len(value) > _FEW:
        return f"<{type(value).__name__} of {len(value)}>"
    if isinstance(value, list):
        return f"[{', '.join(shown(v) for v in value)}]"
    if ops.is_tensor(value):
        return f"<tensor of shape {tuple(value.shape)}>"
    return repr(value)


_FEW = 5  # of a list that is shown whole


def loss_surface(surface):
    """`surface`, if it is a `LossSurface`."""
    if not hasattr(surface, "gnvp"):
        raise TypeError(
            f"Expected a `LossSurface`. Received: {surface!r} (of type {type(surface)})"
        )
    return surface


def origin(surface):
    """What each result says of its surface."""
    return {
        "mode": surface.mode,
        "penalties": surface.penalties,
        "samples": surface.data.samples,
    }


def flat(name, result):
    """A result as a flat dict of floats: its value under the name, the rest as name/number.

    Args:
        name: What the user calls the measure.
        result: A `Result`, a number or a dict of numbers.
    """
    if hasattr(result, "scalars"):
        finite = getattr(result, "finite", True)
        result = result.scalars()
        if not finite:  # a lower bound of something infinite is no number for a log
            result["value"] = math.nan
    if not isinstance(result, dict):
        return {name: float(result)}
    return {name if k == "value" else f"{name}/{k}": float(v) for k, v in result.items()}


def _same(a, b):
    a, b = tree.flatten(a), tree.flatten(b)
    return len(a) == len(b) and all(_equal(_array(x), _array(y)) for x, y in zip(a, b, strict=True))


def _equal(x, y):
    floating = np.issubdtype(x.dtype, np.floating) and np.issubdtype(y.dtype, np.floating)
    return np.array_equal(x, y, equal_nan=floating)


def _array(x):
    return ops.convert_to_numpy(x) if ops.is_tensor(x) else np.asarray(x)


def frozen(array):
    """A numpy array that cannot be written to."""
    array = np.array(array)
    array.setflags(write=False)
    return array
