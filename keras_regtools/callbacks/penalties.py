"""Read the weight penalties at the end of each epoch."""

import numpy as np

from keras_regtools.callbacks.recording import RecordingCallback, finite_or_nan
from keras_regtools.regularizers import penalties
from keras_regtools.validation import keras_model


class PenaltyMonitor(RecordingCallback):
    """Record how large each weight penalty is after each epoch, beside the data loss.

    The records get `penalty/<weight>` for each regularized weight and `data_loss`, the
    validation loss without the penalties, or, where there is no validation, the training loss less
    the mean of the penalties before and after the epoch. The logs get `penalty`, their sum.

    Raises:
        ValueError: when the fit begins, a model that is not compiled.

    Example:

    >>> import keras, numpy as np
    >>> from keras_regtools import regularizers
    >>> model = keras.Sequential(
    ...     [keras.Input((1,)), keras.layers.Dense(1, kernel_regularizer=regularizers.L2(0.0))])
    >>> model.compile("sgd", "mse")
    >>> x = np.ones((8, 1), "float32")
    >>> history = model.fit(x, x, callbacks=[PenaltyMonitor()], verbose=0)
    >>> history.history["penalty"]
    [0.0]
    """

    claim = "penalties"

    def __init__(self):
        super().__init__("penalty_monitor")

    def set_params(self, params):
        super().set_params(params)
        self.records.claims.add(self.claim)

    def on_train_begin(self, logs=None):
        keras_model(self.model, built=False, compiled=True)
        self._before = sum(penalties(self.model).values()) if self.model.built else 0.0

    def on_epoch_end(self, epoch, logs=None):
        logs = {} if logs is None else logs
        with self.timed(epoch):
            values = penalties(self.model)
            total = sum(values.values())
            if "val_loss" in logs:
                data_loss = logs["val_loss"] - total
            else:
                data_loss = logs.get("loss", np.nan) - (self._before + total) / 2
            self._before = total
            named = {f"penalty/{path}": value for path, value in values.items()}
            self.record(epoch, {**named, "penalty": total, "data_loss": data_loss})
        logs["penalty"] = finite_or_nan(total)
