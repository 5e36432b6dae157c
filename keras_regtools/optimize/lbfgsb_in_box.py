"""scipy's L-BFGS-B in the box [-1, 1]ⁿ, without the Python loops that scipy makes over bounds."""

import functools

import numpy as np

from keras_regtools.optimize.objective import NotFinite, length, nearer


def lbfgsb(objective, start, iterations):
    """Maximize an `Objective` from `start` in [-1, 1]ⁿ by L-BFGS-B.

    Where it is convex along the way, as near a minimum, the curvature pairs have the wrong
    sign for a maximum and L-BFGS-B skips them: then its steps are projected gradients.

    Returns:
        The number of iterations made, at most `iterations`.
    """
    scale = here = None

    def descend(z, out):
        nonlocal scale, here
        here = z
        value, slope = objective(z, out)
        if scale is None:
            # The box is tiny beside the loss: stretch the slope so that a step reaches its faces.
            steepest = length(slope)
            scale = _STRETCH / steepest if steepest > 0 else 1.0
        np.multiply(slope, -scale, out=out)
        return -scale * (value - objective.start)

    made = [0]
    for _ in range(_RETURNS):
        try:
            minimize_in_unit_box(descend, start, iterations, made)
        except NotFinite:
            found = nearer(objective, here)
            if found is not None and made[0] < iterations:
                start = found[0]
                continue
        break
    return made[0]


_RETURNS = 3  # searches that a value which is not finite may cut off
_STRETCH = 1000.0  # any large number: L-BFGS-B's first step is one over the norm of the slope


def minimize_in_unit_box(function, start, iterations, made):
    """Minimize by at most so many iterations of L-BFGS-B.

    `scipy.optimize.minimize` goes through the bounds in Python, 3 µs for each weight, more than a
    dozen gradients of a small network. Here its own routine is called as scipy calls it; wherever
    that does not give the very same points, `minimize` is.

    Args:
        function: From a flat array and one to write the gradient into to the value; what it raises
            ends the search.
        start: A flat array, which is written to.
        iterations: The most iterations.
        made: List of one integer that counts them, from what it holds on.
    """
    search = _direct if _direct_is_the_same() else _public
    search(function, start, iterations, made)


def _public(function, start, iterations, made):
    from scipy.optimize import fmin_l_bfgs_b

    def count(_):
        made[0] += 1

    def with_gradient(x):
        gradient = np.empty_like(x)
        return function(x, gradient), gradient

    box = [(-1.0, 1.0)] * len(start)
    more = iterations - made[0]
    fmin_l_bfgs_b(
        with_gradient, start, bounds=box, maxiter=more, factr=0.0, pgtol=0.0, callback=count
    )


def _direct(function, start, iterations, made):
    from scipy.optimize import _lbfgsb

    n, m = len(start), _CORRECTIONS
    x, value, gradient = np.ascontiguousarray(start, "float64"), np.array(0.0), np.zeros(n)
    low, high, bounded = np.full(n, -1.0), np.full(n, 1.0), np.full(n, 2, np.int32)
    work, indices = np.zeros(2 * m * n + 5 * n + 11 * m * m + 8 * m), np.zeros(3 * n, np.int32)
    task, line = np.zeros(2, np.int32), np.zeros(2, np.int32)
    logical, integers, doubles = np.zeros(4, np.int32), np.zeros(44, np.int32), np.zeros(29)
    saved = logical, integers, doubles
    while True:
        _lbfgsb.setulb(
            *(m, x, low, high, bounded, value, gradient, 0.0, 0.0),
            *(work, indices, task, *saved, _LINE_SEARCH, line),
        )
        if task[0] == _EVALUATE:
            value = np.array(function(x, gradient))
        elif task[0] == _ITERATION:
            made[0] += 1
            if made[0] >= iterations:
                return
        else:
            return


_CORRECTIONS, _LINE_SEARCH = 10, 20  # scipy's defaults
_EVALUATE, _ITERATION = 3, 1


@functools.cache
def _direct_is_the_same():
    """Whether both ways go through the same points on a small problem."""
    matrix = np.array([[3.0, -2.0, 0.5], [-2.0, -1.0, 1.0], [0.5, 1.0, 2.0]])
    went = {_direct: [], _public: []}
    for search, points in went.items():

        def function(x, gradient, points=points):
            points.append(x.copy())
            gradient[:] = matrix @ x - 0.3
            return 0.5 * x @ matrix @ x - 0.3 * x.sum()

        try:
            search(function, np.array([0.5, -0.2, 0.9]), 8, [0])
        except Exception:  # another scipy: its routine is not ours to rely on
            return False
    return np.array_equal(went[_direct], went[_public])
