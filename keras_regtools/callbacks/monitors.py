"""Read the instrumented layers and the weight penalties at the end of each epoch."""

import numpy as np

from keras_regtools import layers
from keras_regtools.callbacks.recording import RecordingCallback, finite_or_nan
from keras_regtools.layers.shadow import all_layers
from keras_regtools.regularizers import penalties
from keras_regtools.validation import keras_model


class ActivationMonitor(RecordingCallback):
    """Read, log and reset the statistics of the instrumented layers after each epoch.

    The records get one number per layer and quantity, `activations/<layer>/<quantity>`: `mean`,
    `std` (the root of the mean variance), `minimum`, `maximum`, `constant_share` and, of batch
    normalization, `mean_distance` and `std_distance` (means over the channels, see
    `layers.InstrumentedBatchNormalization.statistics`). The logs get the worst layer:
    `activations/constant_share`, `activations/mean_distance` and `activations/std_distance`.
    `batch_norm/initial_share` is momentum^steps, what the moving statistics still hold of their
    initial values: above 0.05, validation is judged with stale statistics.

    Args:
        per_channel: Whether to record the arrays with one entry per channel as well, under
            `channels/<layer>/<quantity>`.

    Raises:
        ValueError: when the fit begins, a model without an instrumented layer.

    Example:

    >>> import keras, numpy as np
    >>> from keras_regtools import instrument
    >>> model = instrument(keras.Sequential(
    ...     [keras.Input((2,)), keras.layers.Dense(3, "relu", name="hidden")]))
    >>> model.compile("sgd", "mse")
    >>> x = np.ones((8, 2), "float32")
    >>> monitor = ActivationMonitor()
    >>> history = model.fit(x, x[:, :1], callbacks=[monitor], verbose=0)
    >>> history.history["activations/constant_share"]  # the same sample over and over
    [1.0]
    >>> monitor.records.names()[0]
    'activations/hidden_statistics/mean'
    """

    claim = "activations"

    def __init__(self, *, per_channel=False):
        super().__init__("activation_monitor")
        self.per_channel = bool(per_channel)

    def set_params(self, params):
        super().set_params(params)
        self.records.claims.add(self.claim)

    def on_train_begin(self, logs=None):
        found = instrumented_layers(self.model)
        if not found:
            raise ValueError(
                "Expected a model with instrumented layers. Received: the model "
                f"{self.model.name!r} without any. Call `keras_regtools.instrument(model)` first."
            )
        for layer in found:
            layer.reset_statistics()

    def on_epoch_end(self, epoch, logs=None):
        with self.timed(epoch):
            values, found = {}, instrumented_layers(self.model)
            logged = _LOGGED if any(layer.has_reference for layer in found) else _LOGGED[:1]
            worst = dict.fromkeys(logged, np.nan)
            for own_name, layer in zip(_names(found), found, strict=True):
                for name, value in self._read(layer, own_name).items():
                    values[name] = value
                    quantity = name.rsplit("/", 1)[1]
                    if name.startswith("activations/") and quantity in worst:
                        worst[quantity] = float(np.fmax(worst[quantity], finite_or_nan(value)))
                layer.reset_statistics()
            self.record(epoch, values | self._initial_share())
        if logs is not None:
            logs.update({f"activations/{quantity}": value for quantity, value in worst.items()})

    def _initial_share(self):
        """How much of the initial moving statistics the steps so far have left."""
        momenta = [
            layer.momentum
            for layer in instrumented_layers(self.model)
            if isinstance(layer, layers.InstrumentedBatchNormalization)
        ]
        return {"batch_norm/initial_share": max(momenta) ** self.step()} if momenta else {}

    def _read(self, layer, own_name):
        try:
            statistics = layer.statistics()
        except ValueError:  # the layer saw no training step in this epoch
            return {}
        del statistics["steps"]
        values = {
            f"activations/{own_name}/{name}": value for name, value in _summary(statistics).items()
        }
        if self.per_channel:
            values |= {f"channels/{own_name}/{name}": v for name, v in statistics.items()}
        return values


_LOGGED = ("constant_share", "mean_distance", "std_distance")


def instrumented_layers(model):
    """The layers of a model that record, in order."""
    kinds = (layers.InstrumentedBatchNormalization, layers.ActivationStatistics)
    return [layer for layer in all_layers(model) if isinstance(layer, kinds)]


def _names(found):
    """The layers' names, numbered where models inside the model use one twice."""
    names = []
    for layer in found:
        number = 1 + sum(layer.name == other.name for other in found[: len(names)])
        names.append(layer.name if number == 1 else f"{layer.name}_{number}")
    return names


def _summary(statistics):
    """One number per quantity, over all channels of a layer."""
    reduce = {"minimum": np.min, "maximum": np.max}
    summary = {name: reduce.get(name, np.mean)(value) for name, value in statistics.items()}
    mean, variance = summary.pop("batch_mean"), summary.pop("batch_variance")
    return {"mean": mean, "std": np.sqrt(variance), **summary}


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
