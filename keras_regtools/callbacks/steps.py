"""Training steps of a fit, counted by the hooks of its batches, and callbacks that read at them."""

from keras_regtools.callbacks.recording import RecordingCallback
from keras_regtools.validation import positive_integer


class Steps:
    """How many steps a fit has made.

    Attributes:
        made: Up to now.
    """

    def __init__(self):
        self._before = self.made = 0

    def epoch_begins(self):
        self._before = self.made

    def batch_ends(self, batch, params):
        """Count up to the batch of this index, counted from the beginning of the epoch."""
        in_epoch, steps = batch + 1, (params or {}).get("steps")
        # Keras counts the last execution of an epoch as if it were full.
        self.made = self._before + (min(in_epoch, steps) if steps else in_epoch)


class ReadingCallback(RecordingCallback):
    """A callback that reads what the training step records, each epoch and every few steps.

    A subclass reads in `_read(epoch)` and keeps in `_logged` what goes into the logs.

    Args:
        name: Name under which its time is recorded.
        every_steps: Read at the multiples of so many training steps too, or `None`: at the end of
            each epoch only.
    """

    def __init__(self, name, every_steps):
        super().__init__(name)
        self.every_steps = every_steps
        if every_steps is not None:
            self.every_steps = positive_integer("every_steps", every_steps)
        self._begin()

    def _begin(self):
        self._steps, self._read_at, self._epoch = Steps(), 0, 0
        self._logged, self._warned = {}, False

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch
        self._steps.epoch_begins()

    def on_train_batch_end(self, batch, logs=None):
        if self.every_steps is None:
            return
        self._steps.batch_ends(batch, self.params)
        # At its multiples, like other callbacks, whenever an epoch ended.
        if self._steps.made // self.every_steps > self._read_at // self.every_steps:
            self._read_at = self._steps.made
            _ = self.model  # which on JAX brings the variables up to date
            self._read(self._epoch)

    def on_epoch_end(self, epoch, logs=None):
        if self.every_steps is None or self._read_at != self._steps.made or not self._logged:
            self._read_at = self._steps.made
            self._read(epoch)
        if logs is not None:
            logs.update(self._logged)
