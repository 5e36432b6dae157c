"""Training steps of a fit, counted by the hooks of its batches."""


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
