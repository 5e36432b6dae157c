"""Climb the loss in a box or a ball: by L-BFGS-B, or by projected gradients on the device."""

import contextlib
import math

import numpy as np
from keras import ops

from keras_regtools import vectors
from keras_regtools.measures.unit_box import minimize_in_unit_box

NORMS = ("l2", "linf")


class Climb:
    """The loss in the coordinates of a space, and what was met on the way.

    Args:
        surface: A `LossSurface`.
        space: `point(z)` gives the weights, `slope(gradient)` the derivatives by z.
        loss: The loss at the weights.

    Attributes:
        maximum: The largest finite loss, `loss` at least.
        finite: Whether every loss and derivative was finite.
        evaluations: How many there were.
    """

    def __init__(self, surface, space, loss):
        self.surface, self.space = surface, space
        self.loss = self.maximum = loss
        self.finite, self.evaluations = True, 0

    def __call__(self, z, out=None):
        """The loss and its derivatives at z, in `out` if it is given; raises `NotFinite`."""
        loss, gradient = self.surface.value_and_gradient(self.space.point(z))
        self.evaluations += 1
        slope = self.space.slope(gradient, out)
        if math.isfinite(loss):
            self.maximum = max(self.maximum, loss)
        if not (math.isfinite(loss) and math.isfinite(_length(slope))):
            self.finite = False
            raise NotFinite
        return loss, slope


class NotFinite(Exception):
    """A loss or a derivative that is not finite."""


def _length(slope):
    if isinstance(slope, np.ndarray):
        return float(max(np.max(slope), -np.min(slope)))  # without an array of its own
    return vectors.norm(slope)


def lbfgsb(climb, start, iterations):
    """Climb from `start` in [-1, 1]ⁿ by L-BFGS-B.

    Where the loss is convex along the way, as near a minimum, the curvature pairs have the wrong
    sign for a maximum and L-BFGS-B skips them: then its steps are projected gradients.

    Returns:
        The number of iterations made, at most `iterations`.
    """
    scale = here = None

    def fall(z, out):
        nonlocal scale, here
        here = z
        loss, slope = climb(z, out)
        if scale is None:
            # The box is tiny beside the loss: stretch the slope so that a step reaches its faces.
            steepest = _length(slope)
            scale = _STRETCH / steepest if steepest > 0 else 1.0
        np.multiply(slope, -scale, out=out)
        return -scale * (loss - climb.loss)

    made = [0]
    for _ in range(_RETURNS):
        try:
            minimize_in_unit_box(fall, start, iterations, made)
        except NotFinite:
            found = _nearer(climb, here)
            if found is not None and made[0] < iterations:
                start = found[0]
                continue
        break
    return made[0]


_RETURNS = 3  # climbs that a loss which is not finite may cut off


def _nearer(climb, z):
    """Half the way back to the weights, and again, until the loss is finite.

    Returns:
        `(z, loss, slope)`, or `None` if it never is.
    """
    for _ in range(_HALVINGS):
        z = 0.5 * z if isinstance(z, np.ndarray) else vectors.scaled(0.5, z)
        with contextlib.suppress(NotFinite):
            return z, *climb(z)
    return None


_HALVINGS = 10
_STRETCH = 1000.0


def projected_gradient(climb, z, radius, norm, iterations):
    """Climb from `z` in the ball of a norm by projected gradients with momentum.

    APGD of [Croce and Hein, 2020](https://arxiv.org/abs/2003.01690): the first steps are twice the
    radius, and they are halved, going on from the best point, where the loss no longer grows.

    Args:
        climb: A `Climb` in a space of lists of tensors.
        z: List of tensors, the start.
        radius: That of the ball around zero.
        norm: One of `NORMS`.
        iterations: Steps, one evaluation each; the start is one more.

    Returns:
        The number of steps made.
    """
    ahead = _ahead_in_ball if norm == "l2" else _ahead_in_box
    made, found = 0, _finite(climb, z)
    if found is None:
        return made
    z, loss, slope, _ = found
    best = at_last = loss
    best_place, before = (z, slope), z
    step, halved, grew, since = 2 * radius, False, 0, 0
    for made in range(1, iterations + 1):
        found = _finite(climb, ahead(z, slope, step, radius, before if made > 1 else None))
        if found is None:
            return made
        before, previous = z, loss
        z, loss, slope, returned = found
        step /= 2 if returned else 1
        grew, since = grew + (loss > previous), since + 1
        if loss > best:
            best, best_place = loss, (z, slope)
        if made in _checkpoints(iterations):
            stalled = not halved and best <= at_last
            halved = grew < 0.75 * since or stalled
            if halved:
                step /= 2
                (z, slope), loss = best_place, best
                before = z
            at_last, grew, since = best, 0, 0
    return made


def _finite(climb, z):
    """`(z, loss, slope, returned)`, nearer to the weights if need be; `None` if it never is."""
    with contextlib.suppress(NotFinite):
        return z, *climb(z), False
    nearer = _nearer(climb, z)
    return None if nearer is None else (*nearer, True)


_MOMENTUM = 0.75


def _checkpoints(iterations):
    places, before, now = set(), 0.0, 0.22
    while now <= 1:
        places.add(math.ceil(now * iterations))
        before, now = now, now + max(now - before - 0.03, 0.06)
    return places


def _ahead_in_box(z, slope, step, radius, before):
    """One step by the signs of the slope, then some of the last move; variable by variable."""
    moved = []
    for i, (d, g) in enumerate(zip(z, slope, strict=True)):
        new = ops.clip(d + step * ops.sign(g), -radius, radius)
        if before is not None:
            new = ops.clip(_mixed(new, d, before[i]), -radius, radius)
        moved.append(new)
    return moved


def _ahead_in_ball(z, slope, step, radius, before):
    """One step along the slope, then some of the last move."""
    length = vectors.norm(slope)
    new = _into_ball(vectors.axpy(step / length if length > 0 else 0.0, slope, z), radius)
    if before is not None:
        new = [_mixed(*three) for three in zip(new, z, before, strict=True)]
    return _into_ball(new, radius)


def _mixed(new, now, before):
    return now + _MOMENTUM * (new - now) + (1 - _MOMENTUM) * (now - before)


def _into_ball(z, radius):
    length = vectors.norm(z)
    return vectors.scaled(radius / length, z) if length > radius else z
