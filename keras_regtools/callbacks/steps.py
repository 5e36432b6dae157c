"""Training steps of a fit, counted by the hooks of its batches, and callbacks that read at them."""

from keras_regtools.callbacks.recording import RecordingCallback
from keras_regtools.validation import positive_integer


class Steps:
    """How many steps a run has made.

    Args:
        before: Steps of the run before this fit, as of one that a fit goes on with.

    Attributes:
        made: Up to now.
    """

    def __init__(self, before=0):
        self._before = self.made = before

    def epoch_begins(self):
        self._before = self.made

    def batch_ends(self, batch, params):
        """Count up to the batch of this index, counted from the beginning of the epoch."""
        in_epoch, steps = batch + 1, (params or {}).get("steps")
        # Keras counts the last execution of an epoch as if it were full.
        self.made = self._before + (min(in_epoch, steps) if steps else in_epoch)


class ReadingCallback(RecordingCallback):
    """A callback that reads what the training step records, each epoch and every few steps.

    A subclass reads in `_read(epoch)` and keeps in `_logged` what goes into the history.

    Args:
        name: Name under which its time is recorded.
        every_steps: Read at the multiples of so many training steps too, or `None`: at the end of
            each epoch only.
    """

    logs = ()

    def __init__(self, name, every_steps):
        super().__init__(name)
        self.every_steps = every_steps
        if every_steps is not None:
            self.every_steps = positive_integer("every_steps", every_steps)
        self._start()

    def _start(self):
        self._steps, self._read_at = Steps(), 0
        self._logged, self._warned = {}, False

    def fit_begins(self, epoch):
        if epoch > 0 and self.every_steps is not None:  # as if the run had never been cut off
            self._steps = Steps(self.step())
            self._read_at = self._steps.made

    def on_epoch_begin(self, epoch, logs=None):
        super().on_epoch_begin(epoch, logs)
        self._steps.epoch_begins()

    def on_train_batch_end(self, batch, logs=None):
        if self.every_steps is not None:
            self._steps.batch_ends(batch, self.params)
            # At its multiples, like other callbacks, whenever an epoch ended.
            if self._steps.made // self.every_steps > self._read_at // self.every_steps:
                self._read_now(self._epoch)
        super().on_train_batch_end(batch, logs)

    def training_over(self, epoch, logs):
        if self.every_steps is None or self._read_at != self._steps.made or not self._logged:
            self._read_now(epoch)
        self.record(epoch, self._logged)

    def _read_now(self, epoch):
        self._read_at = self._steps.made
        _ = self.model  # which on JAX brings the variables up to date
        self._read(epoch)

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, logs)
        self.tell(logs, self._logged, self.logs)
