"""Internal: batches that grow from epoch to epoch, for `fit`."""

from __future__ import annotations

import warnings
from typing import Any

import keras
import numpy as np
from keras import tree

from keras_regtools.data import is_arrays
from keras_regtools.keras_internals import epoch_of_fit, renew_length
from keras_regtools.validation import at_least, flag, positive_integer


class GrowingBatches(keras.utils.PyDataset):
    """Arrays in batches whose size follows a schedule of the epoch.

    To multiply the batch size by a does to the noise of plain descent what dividing the rate by a
    does, with fewer updates ([Smith et al., 2018](https://arxiv.org/abs/1711.00489)): the noise is
    proportional to η N / B. Each epoch goes through all samples once, in another order; the last
    batch may be smaller. The epoch is that of `fit`, so that a resumed run goes on where it was.

    Args:
        x, y: Arrays, or structures of arrays, of one length; `y` may be `None`.
        schedule: The batch size of each epoch, counted from 0: a function of the epoch, a dict from
            the epochs at which it changes to sizes, `{0: 32, 10: 128}`, or a list, whose last
            entry goes on.
        sample_weight: Array, or `None`.
        shuffle: Whether the samples change their order from epoch to epoch.
        seed: Of the orders: epoch and seed make the order, whatever was before.

    Attributes:
        batch_size: That of the present epoch.

    Raises:
        TypeError: data that are no arrays, whose length is not known.
        ValueError: arrays of different lengths, a schedule that is none, or a size that is no
            positive integer or above the number of samples.

    Example:

    >>> import numpy as np
    >>> batches = GrowingBatches(np.zeros((8, 1)), np.zeros(8), {0: 2, 1: 4})
    >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> history = model.fit(batches, epochs=2, verbose=0)
    >>> int(model.optimizer.iterations)  # 4 updates, then 2
    6
    """

    def __init__(
        self,
        x: Any,
        y: Any = None,
        schedule: Any = None,
        sample_weight: Any = None,
        *,
        shuffle: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        given = [part for part in (x, y, sample_weight) if part is not None]
        for part in given:
            if not is_arrays(part):
                raise TypeError(
                    "Expected arrays, as the length of the epochs follows from the batch size. "
                    f"Received: {part!r} (of type {type(part)})"
                )
        self._parts = [tree.map_structure(np.asarray, part) for part in given]
        lengths = sorted({len(array) for array in tree.flatten(self._parts)})
        if len(lengths) != 1 or lengths[0] == 0:
            raise ValueError(
                f"Expected arrays of one length above zero. Received: the lengths {lengths}"
            )
        if y is None and sample_weight is not None:
            raise ValueError("Expected `y` beside `sample_weight`. Received: y=None")
        self.samples = lengths[0]
        self.schedule = schedule
        self._sizes = _checked(schedule, self.samples)
        self.shuffle, self.seed = flag("shuffle", shuffle), at_least(0)("seed", seed)
        self._warned = False
        self._begin(0)

    def size_of(self, epoch: int) -> int:
        """The batch size of an epoch."""
        size = positive_integer("schedule", self._sizes(epoch))
        if size > self.samples and not self._warned:
            self._warned = True
            warnings.warn(
                f"The schedule gives {size} for epoch {epoch}, and there are {self.samples} "
                "samples: all of them are one batch.",
                stacklevel=2,
            )
        return min(size, self.samples)

    def _begin(self, epoch):
        self.epoch, self.batch_size = epoch, self.size_of(epoch)
        order = np.arange(self.samples)
        if self.shuffle:
            order = np.random.default_rng([self.seed, epoch]).permutation(self.samples)
        self._order = order

    def on_epoch_begin(self) -> None:
        epoch = epoch_of_fit()
        if epoch is not None and epoch != self.epoch:
            self._begin(epoch)
            renew_length(self)

    def __len__(self) -> int:
        return -(-self.samples // self.batch_size)

    def __getitem__(self, index: int) -> Any:
        chosen = self._order[index * self.batch_size : (index + 1) * self.batch_size]
        return tuple(tree.map_structure(lambda a: a[chosen], part) for part in self._parts)


def _checked(schedule, samples):
    """A schedule as a function of the epoch."""
    if callable(schedule):
        first = positive_integer("schedule", schedule(0))
        _refuse_large([first], samples)
        return schedule
    if isinstance(schedule, (list, tuple)) and schedule:
        sizes = [positive_integer("schedule", size) for size in schedule]
        _refuse_large(sizes, samples)
        return lambda epoch: sizes[min(epoch, len(sizes) - 1)]
    if isinstance(schedule, dict) and 0 in schedule:
        steps = {at_least(0)("schedule", e): positive_integer("schedule", n)
                 for e, n in schedule.items()}  # fmt: skip
        _refuse_large(steps.values(), samples)
        return lambda epoch: steps[max(begin for begin in steps if begin <= epoch)]
    raise ValueError(
        "Expected `schedule` to be a function of the epoch, a list of batch sizes or a dict from "
        f"epochs to sizes that has the epoch 0. Received: schedule={schedule!r}"
    )


def _refuse_large(sizes, samples):
    if max(sizes) > samples:
        raise ValueError(
            f"Expected batch sizes up to {samples}, the number of samples. Received: {max(sizes)}"
        )
