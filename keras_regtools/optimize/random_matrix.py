"""The columns that span a random subspace: known by their products, made again for each of them."""

import concurrent.futures
import functools
import os

import numpy as np


class RandomColumns:
    """A matrix of independent N(0, 1) entries that is never stored.

    Every product makes the entries again, block by block of rows, from the seed: 100 columns for
    VGG-16 would be 54 GB. An entry is the quantile of 16 random bits, which takes a fraction of the
    time of numpy's normals; the 65,536 values have mean 0 and variance 1 exactly.

    Args:
        size: Number of rows n.
        count: Number of columns p.
        seed: An integer or a sequence of them.
        dtype: Type of the entries and of the products with them.
    """

    def __init__(self, size, count, seed, dtype="float32"):
        self.size, self.count, self.dtype = size, count, np.dtype(dtype)
        self._seed = tuple(np.atleast_1d(seed).tolist())
        self._rows = max(1, _ENTRIES // count)

    def times(self, z):
        """A z, an array of n entries."""
        z = np.asarray(z, self.dtype)
        found = np.empty(self.size, self.dtype)

        def part(start, stop, block):  # einsum: BLAS would start threads in each of ours
            np.einsum("ij,j->i", block, z, out=found[start:stop])

        for _ in self._each(part):
            pass
        return found

    def transposed_times(self, vector):
        """Aᵀ v of something of n entries that can be sliced, an array of p."""
        return sum(self._each(lambda start, stop, block: _along(vector[start:stop], block)))

    def normal_equations(self, vector):
        """`(AᵀA, Aᵀv)` in one pass."""

        # A⁺ squares the condition of A, which is bad only where there are almost as many columns.
        wide = "float64" if self.size < 16 * self.count else self.dtype

        def part(start, stop, block):
            along = _along(vector[start:stop], block)
            block = block.astype(wide, copy=False)
            return (block.T @ block).astype("float64"), along

        gram, product = np.zeros((self.count, self.count)), np.zeros(self.count)
        for of_block, along in self._each(part):  # one by one: together they would fill the memory
            gram += of_block
            product += along
        return gram, product

    def _each(self, part):
        """What `part` gives for each block of rows, in their order."""

        def run(number):
            start = number * self._rows
            stop = min(start + self._rows, self.size)
            return part(start, stop, self._block(number, stop - start))

        blocks = range(-(-self.size // self._rows))
        with concurrent.futures.ThreadPoolExecutor(_threads()) as pool:
            yield from pool.map(run, blocks)

    def _block(self, number, rows):
        bits = np.random.SFC64(np.random.SeedSequence((*self._seed, number)))
        entries = rows * self.count
        numbers = bits.random_raw(-(-entries // 4)).astype("<u8", copy=False).view("<u2")
        # Every 16 bits are an index: "wrap" only spares the check.
        return _quantiles(self.dtype).take(numbers[:entries], mode="wrap").reshape(rows, self.count)


class GivenColumns:
    """An array `(n, p)` as such a matrix."""

    def __init__(self, array):
        self.array = np.asarray(array, "float64")
        self.size, self.count = self.array.shape

    def times(self, z):
        return self.array @ z

    def transposed_times(self, vector):
        return vector[: self.size] @ self.array

    def normal_equations(self, vector):
        return self.array.T @ self.array, self.transposed_times(vector)


_ENTRIES = 2**18  # of a block: it fits into the second cache


def _along(vector, block):
    return np.einsum("i,ij->j", vector, block).astype("float64")


@functools.cache
def _quantiles(dtype):
    from scipy.special import ndtri

    values = ndtri((np.arange(2**16) + 0.5) / 2**16)
    return (values / np.sqrt(np.mean(values**2))).astype(dtype)


def _threads():
    usable = getattr(os, "sched_getaffinity", None)  # which not every system tells
    return len(usable(0)) if usable else os.cpu_count() or 1
