"""Projected gradient ascent in a ball, on the device."""

import contextlib
import math

from keras import ops

from keras_regtools import vectors
from keras_regtools.optimize.objective import NotFinite, nearer

NORMS = ("l2", "linf")


def projected_gradient(objective, z, radius, norm, iterations):
    """Maximize from `z` in the ball of a norm by projected gradients with momentum.

    APGD of [Croce and Hein, 2020](https://arxiv.org/abs/2003.01690): the first steps are twice the
    radius, and they are halved, going on from the best point, where the loss no longer grows.

    Args:
        objective: An `Objective` in a space of lists of tensors.
        z: List of tensors, the start.
        radius: That of the ball around zero.
        norm: One of `NORMS`.
        iterations: Steps, one evaluation each; the start is one more.

    Returns:
        The number of steps made.
    """
    ahead = _ahead_in_ball if norm == "l2" else _ahead_in_box
    made, found = 0, _finite(objective, z)
    if found is None:
        return made
    z, loss, slope, _ = found
    best = at_last = loss
    best_place, before = (z, slope), z
    step, halved, grew, since = 2 * radius, False, 0, 0
    for made in range(1, iterations + 1):
        found = _finite(objective, ahead(z, slope, step, radius, before if made > 1 else None))
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


def _finite(objective, z):
    """`(z, loss, slope, returned)`, nearer to the weights if need be; `None` if it never is."""
    with contextlib.suppress(NotFinite):
        return z, *objective(z), False
    found = nearer(objective, z)
    return None if found is None else (*found, True)


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
