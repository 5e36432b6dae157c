"""Read the weight penalties at the end of each epoch."""

from __future__ import annotations

from typing import Any

from keras_regtools.callbacks.recording import RecordingCallback, finite_or_nan, names_of_logs
from keras_regtools.regularizers import penalties
from keras_regtools.validation import keras_model

_LOGS = ("penalty", "data_loss", "val_data_loss")


class PenaltyMonitor(RecordingCallback):
    """Record how large each weight penalty is after each epoch, beside the data loss.

    The records get `penalty/<weight>` for each regularized weight, `penalty`, their sum,
    `data_loss`, the training loss less the mean of the penalties before and after the epoch, and
    `val_data_loss`, the validation loss without the penalties, in epochs with validation. The
    history gets `penalty`, and the others if they are in the logs. Of a model without penalties
    nothing is recorded unless `logs` ask for it: then they are zero, so that a plain run can be
    compared.

    Args:
        logs: Names among `penalty`, `data_loss` and `val_data_loss`, or `"all"`: what goes into
            the logs too, which the progress bar prints and other callbacks watch.

    Raises:
        ValueError: unknown `logs`; when the fit begins, a model that is not compiled.

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

    def __init__(self, *, logs: Any = ()) -> None:
        super().__init__("penalty_monitor")
        self.logs = names_of_logs(logs, _LOGS)
        self._total: Any = None
        self._apart: dict[str, float] = {}

    def set_params(self, params: Any) -> None:
        super().set_params(params)
        self.records.claims.add(self.claim)

    def on_train_begin(self, logs: Any = None) -> None:
        keras_model(self.model, built=False, compiled=True)
        self._total = None

    def fit_begins(self, epoch: int) -> None:
        self._before = sum(penalties(self.model).values()) if self.model.built else 0.0

    def training_over(self, epoch: int, logs: Any) -> None:
        values = penalties(self.model)
        if not values and not self.logs:
            return
        with self.timed(epoch):
            self._total = sum(values.values(), 0.0)
            new = {f"penalty/{path}": value for path, value in values.items()}
            new["penalty"] = self._total
            self._apart = {}
            if "loss" in (logs or {}):
                new["data_loss"] = logs["loss"] - (self._before + self._total) / 2
                self._apart = {"data_loss": new["data_loss"]}
            self._before = self._total
            self.record(epoch, new)

    def on_test_end(self, logs: Any = None) -> None:
        if self._over and self._total is not None and "loss" in (logs or {}):
            self._apart["val_data_loss"] = logs["loss"] - self._total
            self.record(self._epoch, {"val_data_loss": self._apart["val_data_loss"]})

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        super().on_epoch_end(epoch, logs)
        if self._total is not None:
            self.tell(logs, {"penalty": finite_or_nan(self._total)}, self.logs)
            wanted = {n: finite_or_nan(v) for n, v in self._apart.items() if n in self.logs}
            self.tell(logs, wanted, self.logs)
