"""Record what a batch size that changes did: samples, updates, rate."""

from __future__ import annotations

from typing import Any

from keras_regtools.callbacks.recording import RecordingCallback, names_of_logs
from keras_regtools.validation import has

_LOGS = ("batch/size", "batch/samples", "batch/updates")
_BATCHES = has("size_of", "`GrowingBatches`")


class BatchSize(RecordingCallback):
    """Record the batch size of each epoch, and samples and updates so far.

    The records get `batch/size`, `batch/samples`, `batch/updates` and `learning_rate`; the first
    three go into the history too. Runs with other schedules can be compared by samples, which is
    work, and by updates, which is time where batches are parallelized.

    Args:
        batches: The `GrowingBatches` that `fit` gets.
        logs: Names among those of the history, or `"all"`, that go into the logs too, which the
            progress bar prints and other callbacks watch.

    Raises:
        ValueError: data of another kind, unknown `logs`.

    Example:

    >>> import keras, numpy as np
    >>> from keras_regtools import GrowingBatches
    >>> batches = GrowingBatches(np.zeros((8, 1)), np.zeros(8), [2, 4])
    >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> history = model.fit(batches, epochs=2, callbacks=[BatchSize(batches)], verbose=0)
    >>> history.history["batch/size"], history.history["batch/updates"]
    ([2.0, 4.0], [4.0, 6.0])
    """

    shared = ("batches",)

    def __init__(self, batches: Any, *, logs: Any = ()) -> None:
        super().__init__("batch_size")
        self.batches = _BATCHES("batches", batches)
        self.logs = names_of_logs(logs, _LOGS)
        self._last: dict[str, float] = {}

    def on_train_begin(self, logs: Any = None) -> None:
        self._last = {}

    def training_over(self, epoch: int, logs: Any) -> None:
        with self.timed(epoch):
            values = (self.batches.batch_size, (epoch + 1) * self.batches.samples, self.step())
            self._last = dict(zip(_LOGS, map(float, values), strict=True))
            self.record(epoch, self._last)
            if "learning_rate" not in self.records.claims:
                self.record_rate(epoch)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        super().on_epoch_end(epoch, logs)
        self.tell(logs, self._last, self.logs)
