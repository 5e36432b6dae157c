"""Moving statistics that are those of the weights, before each validation."""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import ops

from keras_regtools.callbacks.recording import RecordingCallback
from keras_regtools.data import Batches
from keras_regtools.forward import BatchNormStatistics, View
from keras_regtools.validation import integer_from, positive_integer


class PreciseBatchNorm(RecordingCallback):
    """Re-estimate the moving statistics of batch normalization before each validation.

    Moving averages lag behind the weights: with momentum 0.99 and 12 steps an epoch they still hold
    half of their initial values after six epochs, and validation judges a network that was never
    trained. At the end of each epoch's training, before validation and before a checkpoint is kept,
    one pass is made over the data as in `recalibrate`; the weights, and so the training, are not
    touched. The records get `batch_norm/lag`, how far the moving means were from the new ones, in
    standard deviations, in the layer where that is most ([Wu and Johnson, 2021](
    https://arxiv.org/abs/2105.07576) call it precise batch normalization).

    Args:
        x: Training inputs: arrays, or a re-iterable dataset whose targets are ignored.
        samples: Size of a fixed random subsample; `None` uses all data.
        batch_size: Samples per batch, for arrays.
        seed: Seed of the subsample.

    Raises:
        TypeError: data that cannot be read twice.
        ValueError: empty data, `samples` or `batch_size` below 1.

    Example:

    >>> import keras, numpy as np
    >>> model = keras.Sequential([keras.Input((1,)), keras.layers.BatchNormalization()])
    >>> model.compile("sgd", "mse")
    >>> x = np.array([[1.0], [3.0]])
    >>> history = model.fit(x, x, callbacks=[PreciseBatchNorm(x)], verbose=0)
    >>> float(model.layers[0].moving_mean[0]), float(model.layers[0].moving_variance[0])
    (2.0, 1.0)
    """

    shared = ("data",)
    dropped = ("_statistics",)
    claim = "moving statistics"

    def __init__(
        self, x: Any, *, samples: int | None = 1024, batch_size: int = 256, seed: int = 0
    ) -> None:
        super().__init__("precise_batch_norm")
        batch_size = positive_integer("batch_size", batch_size)
        self.data = Batches(x, batch_size=batch_size).subsample(
            samples, integer_from("seed", seed, 0)
        )
        self._statistics: Any = None

    def on_test_begin(self, logs: Any = None) -> None:
        if self._begun and not self._over:  # an epoch whose length was not known
            self._end_training(logs)

    def training_over(self, epoch: int, logs: Any) -> None:
        model = self.model  # which on JAX brings the variables up to date
        if self._statistics is None or self._statistics.model is not model:
            self._statistics = BatchNormStatistics(model, frozen=False)
        if not self._statistics.layers:
            return
        with self.timed(epoch):
            new = self._statistics(self.data, View(model))
            self.record(epoch, {"batch_norm/lag": _lag(new)})
            for variable, value in new:
                variable.assign(value)


def _lag(new):
    """The largest root mean square of (old mean − new mean) / new deviation over the layers."""
    lags = [0.0]
    for (mean, value), (_, variance) in zip(new[::2], new[1::2], strict=True):
        gap = np.asarray(ops.convert_to_numpy(mean), "float64") - value
        lags.append(float(np.sqrt(np.mean(gap**2 / np.maximum(variance, 1e-12)))))
    return max(lags)
