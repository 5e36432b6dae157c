"""Internal: whatever `fit` takes, as repeatable batches that know how many samples they hold."""

import functools

import keras
import numpy as np
from keras import tree

from keras_regtools.validation import positive_integer


class Batches:
    """Repeatable batches `(x, y, sample_weight, count)`, always in the same order.

    Args:
        x: Array, or list or dict of arrays with one input each; or a `tf.data.Dataset`,
            `keras.utils.PyDataset` or other re-iterable of `(x, y)` or `(x, y, sample_weight)`
            batches, in which case `y` and `sample_weight` must be `None`.
        y: Targets, an array or a structure of arrays of the same length as `x`.
        sample_weight: Weights, one per sample.
        batch_size: Samples per batch for arrays; the last batch may be smaller.

    Raises:
        TypeError: `x` is a one-shot generator or nothing that `fit` takes.
        ValueError: no samples, different lengths, or a target beside a dataset.

    Example:

    >>> import numpy as np
    >>> batches = Batches(np.zeros((5, 2)), np.zeros(5), batch_size=2)
    >>> [count for x, y, sample_weight, count in batches]
    [2, 2, 1]
    """

    def __init__(self, x, y=None, sample_weight=None, *, batch_size=256):
        self.batch_size = positive_integer("batch_size", batch_size)
        self.dataset = None
        if is_arrays(x):
            self._arrays = tuple(
                None if part is None else tree.map_structure(_as_array, part)
                for part in (x, y, sample_weight)
            )
            self.samples = _common_length(self._arrays)
        else:
            _check_dataset(x, y, sample_weight)
            self.dataset = x
            self.samples = None  # known after one pass, never needed before

    def __iter__(self):
        if self.dataset is not None:
            yield from self._iterate_dataset()
            return
        for start in range(0, self.samples, self.batch_size):
            stop = min(start + self.batch_size, self.samples)
            yield *_select(self._arrays, slice(start, stop)), stop - start

    def _iterate_dataset(self):
        batches = (
            (self.dataset[i] for i in range(len(self.dataset)))
            if isinstance(self.dataset, keras.utils.PyDataset)
            else iter(self.dataset)
        )
        empty = True
        for batch in batches:
            parts = keras.utils.unpack_x_y_sample_weight(batch)
            parts = tuple(
                None if part is None else tree.map_structure(_as_array, part) for part in parts
            )
            count = _common_length(parts)
            empty = False
            yield *parts, count
        if empty:
            self.refuse_nothing()

    @property
    def arrays(self):
        """`(x, y, sample_weight)` as arrays, or `None` for a dataset."""
        return None if self.dataset is not None else self._arrays

    @functools.cached_property
    def resident(self):
        """`(x, y, sample_weight)` as tensors on the device; `None` for a dataset or much data."""
        if self.dataset is not None:
            return None
        arrays = [array for array in tree.flatten(self._arrays) if array is not None]
        if sum(array.nbytes for array in arrays) > _RESIDENT_BYTES:
            return None
        return _tensors(self._arrays)

    def tensors(self):
        """The batches again, as tensors."""
        if self.resident is None:
            for *parts, count in self:
                yield *_tensors(parts), count
            return
        for start in range(0, self.samples, self.batch_size):
            stop = min(start + self.batch_size, self.samples)
            yield *_select(self.resident, slice(start, stop)), stop - start

    def one_by_one(self):
        """Each batch as `Batches` of its own, and its number of samples."""
        for *parts, count in self:
            yield Batches(*parts, batch_size=count), count

    def rebatched(self, batch_size):
        """The same samples in batches of another size, for arrays."""
        if self.dataset is not None:
            raise ValueError(
                "Expected arrays, which can be cut into batches of another size. "
                f"Received: the dataset {self.dataset!r}, which has batches of its own"
            )
        return Batches(*self._arrays, batch_size=batch_size)

    def shuffled(self, seed):
        """The same samples in random order, for arrays."""
        return self.taken(np.random.default_rng(seed).permutation(self.samples))

    def taken(self, order):
        """The samples of these numbers, in this order, for arrays."""
        return Batches(*_select(self._arrays, order), batch_size=self.batch_size)

    def first(self, samples):
        """The first samples of the first batch, or all of it, as `Batches`."""
        *parts, count = next(iter(self))
        return Batches(*_select(parts, slice(0, samples)), batch_size=samples or count)

    def refuse_nothing(self):
        """Say that a dataset gave no batch."""
        raise ValueError(
            "Expected at least one batch of data. Received: a dataset that gave none. "
            "If it was read before, pass one that can be read again."
        )

    def subsample(self, samples, seed=0):
        """A fixed part of the data: random samples of arrays, the first ones of a dataset.

        Args:
            samples: How many samples to keep; `None` or more than there are keeps them all.
            seed: Seed of the choice, for arrays.

        Returns:
            `Batches` of arrays; of a dataset, in batches as large as its first one.
        """
        if samples is None:
            return self
        samples = positive_integer("samples", samples)
        if self.dataset is None:
            if samples >= self.samples:
                return self
            chosen = np.random.default_rng(seed).choice(self.samples, samples, replace=False)
            return Batches(*_select(self._arrays, np.sort(chosen)), batch_size=self.batch_size)
        taken, sizes = [], []
        for *parts, size in self:
            taken.append(parts)
            sizes.append(size)
            if sum(sizes) >= samples:
                break
        # What was read is kept, in batches of the same size: a dataset may shuffle itself anew.
        whole = [_concatenate([parts[i] for parts in taken]) for i in range(3)]
        return Batches(*_select(whole, slice(0, samples)), batch_size=sizes[0])


def as_batches(x, y, sample_weight, batch_size):
    """The data as `Batches`, unless they are such already."""
    if isinstance(x, Batches):
        return x
    return Batches(x, y, sample_weight, batch_size=batch_size)


_RESIDENT_BYTES = 2**30  # more is sent to the device batch by batch


def is_arrays(x):
    """Whether `x` is an array, a tensor or a structure of them, rather than a dataset."""
    if isinstance(x, (list, tuple, dict)):
        return True
    return hasattr(x, "shape") and hasattr(x, "dtype") or hasattr(x, "iloc")


def _as_array(value):
    """A numpy array, floats in Keras' float type, as `fit` would make it."""
    if keras.ops.is_tensor(value):
        value = keras.ops.convert_to_numpy(value)
    array = np.asarray(value)
    if np.issubdtype(array.dtype, np.floating):
        array = array.astype(keras.config.floatx(), copy=False)
    return array


def _check_dataset(x, y, sample_weight):
    if hasattr(x, "__next__"):
        raise TypeError(
            "Expected data that can be read more than once. Received: the one-shot iterator "
            f"{x!r}. Pass arrays, a `tf.data.Dataset` or a `keras.utils.PyDataset` instead."
        )
    if x is None or not (hasattr(x, "__iter__") or isinstance(x, keras.utils.PyDataset)):
        raise TypeError(
            "Expected `x` to be an array, a list or dict of arrays, a `tf.data.Dataset` or a "
            f"`keras.utils.PyDataset`. Received: x={x!r} (of type {type(x)})"
        )
    try:
        len(x)
    except TypeError as error:  # which a dataset of unknown length raises too
        if "infinite" in str(error):
            raise ValueError(
                f"Expected data that come to an end. Received: the infinite dataset {x!r}"
            ) from error
    name = "y" if y is not None else "sample_weight"
    if y is not None or sample_weight is not None:
        raise ValueError(
            "Expected `y` and `sample_weight` to be `None` beside a dataset, which gives them "
            f"with each batch. Received: x={x!r} and {name}=not None"
        )


def _common_length(parts):
    lengths = {}
    for name, part in zip(("x", "y", "sample_weight"), parts, strict=True):
        for array in [] if part is None else tree.flatten(part):
            if array.ndim == 0:
                raise ValueError(
                    f"Expected `{name}` to hold arrays with a sample axis. "
                    f"Received: a scalar in {name}, {array}"
                )
            lengths.setdefault(len(array), name)
    if len(lengths) != 1:
        received = ", ".join(f"{name} with {n} samples" for n, name in lengths.items())
        raise ValueError(
            "Expected `x`, `y` and `sample_weight` to have the same number of samples. "
            f"Received: {received or 'no arrays'}"
        )
    (length,) = lengths
    if length == 0:
        raise ValueError("Expected at least one sample. Received: x with 0 samples")
    return length


def _tensors(parts):
    return tuple(
        None if part is None else tree.map_structure(keras.ops.convert_to_tensor, part)
        for part in parts
    )


def _select(parts, index):
    return tuple(
        None if part is None else tree.map_structure(lambda a: a[index], part) for part in parts
    )


def _concatenate(parts):
    if parts[0] is None:
        return None
    return tree.map_structure(lambda *arrays: np.concatenate(arrays), *parts)
