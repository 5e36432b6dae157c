"""A function that is maximized, in coordinates of its own."""

import contextlib
import math

import numpy as np

from keras_regtools import vectors


class Objective:
    """A function in other coordinates, to be maximized, and what was met on the way.

    Args:
        value_and_gradient: The function, from a point to its value and its gradient there.
        parametrization: `point(z)` gives the point, `slope(gradient)` the derivatives by z.
        start: The value at z = 0.

    Attributes:
        maximum: The largest finite value, `start` at least.
        finite: Whether every value and derivative was finite.
        evaluations: How many there were.
    """

    def __init__(self, value_and_gradient, parametrization, start):
        self._value_and_gradient, self._parametrization = value_and_gradient, parametrization
        self.start = self.maximum = start
        self.finite, self.evaluations = True, 0

    def __call__(self, z, out=None):
        """The value and its derivatives at z, in `out` if it is given; raises `NotFinite`."""
        value, gradient = self._value_and_gradient(self._parametrization.point(z))
        self.evaluations += 1
        slope = self._parametrization.slope(gradient, out)
        if math.isfinite(value):
            self.maximum = max(self.maximum, value)
        if not (math.isfinite(value) and math.isfinite(length(slope))):
            self.finite = False
            raise NotFinite
        return value, slope


class NotFinite(Exception):
    """A value or a derivative that is not finite."""


def length(slope):
    """The size of derivatives: the largest of an array, the norm of a list of tensors."""
    if isinstance(slope, np.ndarray):
        return float(max(np.max(slope), -np.min(slope)))  # without an array of its own
    return vectors.norm(slope)


def nearer(objective, z):
    """Half the way back to zero, and again, until the value is finite.

    Returns:
        `(z, value, slope)`, or `None` if it never is.
    """
    for _ in range(_HALVINGS):
        z = 0.5 * z if isinstance(z, np.ndarray) else vectors.scaled(0.5, z)
        with contextlib.suppress(NotFinite):
            return z, *objective(z)
    return None


_HALVINGS = 10
