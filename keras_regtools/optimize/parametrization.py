"""Boxes of moved weights, in coordinates of their own: the full space, or a random subspace."""

import math

import numpy as np
from keras import ops

from keras_regtools import vectors


class FullBox:
    """x + ε (|x| + 1) z for z in [-1, 1]ⁿ, one flat numpy array.

    Args:
        params: List of tensors x.
        epsilon: ε.
    """

    def __init__(self, params, epsilon):
        self.epsilon = epsilon
        self.size = vectors.size(params)
        self._arrays = [np.array(ops.convert_to_numpy(x)).ravel() for x in params]
        self._shapes = [tuple(x.shape) for x in params]

    def point(self, z):
        """The weights at z, a list of tensors."""
        moved = []
        for x, part, shape in zip(self._arrays, _slices(self._arrays), self._shapes, strict=True):
            there, z_here = np.empty_like(x), z[part]
            for some in _chunks(x):
                there[some] = x[some] + self._half_width(x[some]) * z_here[some]
            moved.append(ops.convert_to_tensor(there.reshape(shape)))
        return moved

    def slope(self, gradient, out=None):
        """The derivatives by z, one flat array: `out`, if it is given."""
        found = np.empty(self.size) if out is None else out
        for x, g, part in zip(self._arrays, gradient, _slices(self._arrays), strict=True):
            g, here = ops.convert_to_numpy(g).ravel(), found[part]
            for some in _chunks(x):
                here[some] = self._half_width(x[some]) * g[some]
        return found

    def _half_width(self, x):
        return self.epsilon * (np.abs(x) + 1)


class SubspaceBox:
    """x + A (b ∘ z) for z in [-1, 1]ᵖ, with b = ε (|A⁺x| + 1).

    Args:
        params: List of tensors x.
        epsilon: ε.
        columns: The matrix A, as `columns.RandomColumns`.
        orthonormal: Whether A is made orthonormal, by the Cholesky factor of AᵀA.
    """

    def __init__(self, params, epsilon, columns, orthonormal=False):
        self.params, self.columns = params, columns
        self.size = columns.count
        gram, product = columns.normal_equations(_Flat(params))
        if orthonormal:
            self._inverse = np.linalg.inv(np.linalg.cholesky(gram))
            coefficients = self._inverse @ product
        else:
            self._inverse = None
            coefficients = np.linalg.solve(gram, product)
        self.half_width = epsilon * (np.abs(coefficients) + 1)

    def point(self, z):
        """The weights at z, a list of tensors."""
        moved = self.half_width * z
        if self._inverse is not None:
            moved = self._inverse.T @ moved
        moved = self.columns.times(moved)
        pieces = zip(self.params, _slices(self.params), strict=True)
        return [x + _like(x, moved[part]) for x, part in pieces]

    def slope(self, gradient, out=None):
        """The derivatives by z, an array."""
        found = self.columns.transposed_times(_Flat(gradient))
        if self._inverse is not None:
            found = self._inverse @ found
        return self.half_width * found


class Scaled:
    """x + c(x) ∘ z, with z a list of tensors: coordinates that stay on the device.

    Args:
        params: List of tensors x.
        scale: A function of one tensor that gives c, or `None` for 1.
    """

    def __init__(self, params, scale=None):
        self.params = params
        self.scale = scale or (lambda x: 1.0)

    def point(self, z):
        """The weights at z, a list of tensors."""
        return [x + self.scale(x) * d for x, d in zip(self.params, z, strict=True)]

    def slope(self, gradient, out=None):
        """The derivatives by z, a list of tensors."""
        return [self.scale(x) * g for x, g in zip(self.params, gradient, strict=True)]


class _Flat:
    """A list of tensors that can be sliced as if it were one flat array; nothing is joined."""

    def __init__(self, tensors):
        self._arrays = [ops.convert_to_numpy(t).reshape(-1) for t in tensors]
        self._starts = np.cumsum([0, *map(len, self._arrays)])

    def __getitem__(self, part):
        start = part.start or 0
        first = np.searchsorted(self._starts, start, "right") - 1
        pieces = []
        for begin, array in zip(self._starts[first:], self._arrays[first:], strict=False):
            if begin >= part.stop:
                break
            pieces.append(array[max(0, start - begin) : part.stop - begin])
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def _chunks(array):
    """Parts that fit into the cache: one kernel may be nearly all of the weights."""
    return [slice(start, start + 2**16) for start in range(0, len(array), 2**16)]


def _slices(like):
    start = 0
    for x in like:
        stop = start + math.prod(x.shape)
        yield slice(start, stop)
        start = stop


def _like(x, flat):
    return ops.convert_to_tensor(flat.reshape(tuple(x.shape)), x.dtype)
