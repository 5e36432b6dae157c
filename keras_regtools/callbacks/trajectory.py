"""Keep the weights that a fit goes through."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
from keras import ops

from keras_regtools.callbacks.recording import RecordingCallback
from keras_regtools.validation import keras_model, positive_integer


class WeightTrajectory(RecordingCallback):
    """Keep a copy of the trainable weights at the beginning and after epochs.

    `landscape.principal_directions` finds the plane in which they moved most, and
    `landscape.loss_plane` draws them there. The distance from the beginning goes into the records
    as `weights/distance`. The copies are in main memory, one of the model's size for each epoch.

    Args:
        every: Keep those of every `every`-th epoch, beginning with the first, and of the last.

    Attributes:
        weights: List of lists of arrays, in the order of `model.trainable_variables`; the first
            ones are those at the beginning.
        epochs: How many epochs had been trained at each of them, 0 for the first; more for a fit
            that begins with a later epoch. One that goes on where the last ended adds to it.

    Raises:
        ValueError: `every` below 1; when the fit begins, a model that is not built.

    Example:

    >>> import keras, numpy as np
    >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> x, trajectory = np.ones((8, 1)), WeightTrajectory()
    >>> history = model.fit(x, x, epochs=3, callbacks=[trajectory], verbose=0)
    >>> trajectory.epochs
    [0, 1, 2, 3]
    """

    def __init__(self, every: int = 1) -> None:
        super().__init__("trajectory")
        self.every = positive_integer("every", every)
        self.weights, self.epochs = [], []
        self._ended = 0

    def on_train_begin(self, logs: Any = None) -> None:
        keras_model(self.model)

    def fit_begins(self, epoch: int) -> None:
        if epoch == 0 or self.epochs[-1:] != [epoch]:  # or this fit goes on where the last ended
            self.weights, self.epochs = [], []
            self._begin_with(epoch)
        self.records.keep("trajectory_start", self.weights[0])

    def _begin_with(self, epoch):
        """The weights at the beginning of the run, which may have been in another process."""
        start = self.records.earlier.get("trajectory_start") if epoch > 0 else None
        shapes = [tuple(v.shape) for v in self.model.trainable_variables]
        if start is not None and [w.shape for w in start] == shapes:
            self.weights, self.epochs = [start], [0]
            return
        if epoch > 0 and self.step() > 0:
            warnings.warn(
                "The weights with which this run began are not known: `weights/distance` is the "
                f"distance from those of the beginning of epoch {epoch + 1}. A `Report` that goes "
                "on in its directory keeps them.",
                stacklevel=2,
            )
        self._keep(epoch)

    def training_over(self, epoch: int, logs: Any) -> None:
        self._ended = epoch + 1
        last = self._ended == (self.params or {}).get("epochs")
        if epoch % self.every == 0 or last:
            self._record()

    def on_train_end(self, logs: Any = None) -> None:
        if self.epochs and self._ended > self.epochs[-1]:
            self._record()

    def _record(self):
        with self.timed(self._ended - 1):
            self._keep(self._ended)
            pairs = zip(self.weights[-1], self.weights[0], strict=True)
            square = sum(float(np.sum(np.square(a - b, dtype="float64"))) for a, b in pairs)
            self.record(self._ended - 1, {"weights/distance": math.sqrt(square)})

    def _keep(self, epochs):
        variables = self.model.trainable_variables
        # A copy: on TensorFlow and PyTorch what is read follows the variable.
        self.weights.append([np.array(ops.convert_to_numpy(v)) for v in variables])
        self.epochs.append(epochs)
