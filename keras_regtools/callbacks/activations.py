"""Read the instrumented layers at the end of each epoch, or every few steps."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from keras_regtools import layers
from keras_regtools.backend._tensorflow_summaries import EventFile
from keras_regtools.callbacks.recording import finite_or_nan, names_of_logs
from keras_regtools.callbacks.steps import ReadingCallback
from keras_regtools.forward import all_layers, names_of
from keras_regtools.layers.histogram import buckets
from keras_regtools.layers.statistics import LOGGED, of_layer
from keras_regtools.validation import flag


class ActivationMonitor(ReadingCallback):
    """Read, log and reset the statistics of the instrumented layers after each epoch.

    The records get one number per layer and quantity, `activations/<layer>/<quantity>`: `mean`,
    `std` (the root of the mean variance), `minimum`, `maximum`, the percentiles, shares, drifts and
    whatever else is recorded (means over the channels, see
    `layers.InstrumentedBatchNormalization.statistics`), `dead_share`, the share of dead channels,
    `nan_steps` and `first_nan_step`. The history gets the worst layer, as
    `activations/constant_share` and so on: `constant_share`, `dead_share`, `saturated_share`,
    `mean_distance`, `std_distance`, as far as they are recorded. `batch_norm/initial_share` is
    momentum^steps, what the moving statistics still hold of their initial values: above 0.05,
    validation is judged with stale statistics. NaN in an activation is warned of once, with its
    layer, channel and step.

    Args:
        per_channel: Whether to record the arrays with one entry per channel as well, under
            `channels/<layer>/<quantity>`.
        every_steps: Read at the multiples of so many training steps, besides the end of each epoch.
        tensorboard: Log directory for a histogram of each layer, or `None`.
        logs: Names among those of the worst layer that go into the logs too, which the progress bar
            prints and other callbacks watch; `"all"` for all of them.

    Raises:
        ValueError: `every_steps` below 1, unknown `logs`; when the fit begins, a model without an
            instrumented layer.

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
    dropped = ("_writer",)

    def __init__(
        self,
        *,
        per_channel: bool = False,
        every_steps: int | None = None,
        tensorboard: Any = None,
        logs: Any = (),
    ) -> None:
        super().__init__("activation_monitor", every_steps)
        self.logs = names_of_logs(logs, tuple(f"activations/{name}" for name in LOGGED))
        self.per_channel = flag("per_channel", per_channel)
        self.tensorboard = None if tensorboard is None else str(tensorboard)
        self._writer: Any = None

    def set_params(self, params: Any) -> None:
        super().set_params(params)
        self.records.claims.add(self.claim)

    def on_train_begin(self, logs: Any = None) -> None:
        found = instrumented_layers(self.model)
        if not found:
            raise ValueError(
                "Expected a model with instrumented layers. Received: the model "
                f"{self.model.name!r} without any. Call `keras_regtools.instrument(model)` first."
            )
        for layer in found:
            layer.reset_statistics()
        self._start()
        if self.tensorboard is not None:
            self._writer = EventFile(self.tensorboard)

    def on_train_end(self, logs: Any = None) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _read(self, epoch):
        with self.timed(epoch):
            found, worst, values = instrumented_layers(self.model), {}, {}
            for own_name, layer in zip(names_of(found), found, strict=True):
                for name, value in self._values(layer, own_name, epoch).items():
                    values[name] = value
                    quantity = name.rsplit("/", 1)[1]
                    if name.startswith("activations/") and quantity in LOGGED:
                        key = f"activations/{quantity}"
                        worst.setdefault(key, np.nan)
                        worst[key] = float(np.fmax(worst[key], finite_or_nan(value)))
            # The keys are those of the first reading.
            keys = self._logged or worst
            self._logged = {key: worst.get(key, np.nan) for key in keys}
            self.record(epoch, values | self._initial_share())
        self._keep(epoch)

    def fit_begins(self, epoch: int) -> None:
        super().fit_begins(epoch)
        kept = self.records.earlier.get(self.name) if epoch > 0 else None
        before = kept.get(str(epoch - 1)) if isinstance(kept, dict) else None
        self._compared = {} if before is None else {str(epoch - 1): before}
        found = instrumented_layers(self.model)
        for name, layer in zip(names_of(found), found, strict=True):
            if before is not None and name in before:
                layer.compared_with = before[name]

    def _keep(self, epoch):
        """Keep what the next readings are compared with, of the last two epochs.

        A run may be cut off after this one was read and before it was backed up.
        """
        found = instrumented_layers(self.model)
        pairs = zip(names_of(found), (layer.compared_with for layer in found), strict=True)
        now = {
            name: {n: np.asarray(v).tolist() for n, v in reading.items()}
            for name, reading in pairs
            if reading is not None
        }
        earlier = {k: v for k, v in self._compared.items() if k == str(epoch - 1)}
        self._compared = {**earlier, str(epoch): now}
        self.records.keep(self.name, self._compared)

    def _initial_share(self):
        """How much of the initial moving statistics the steps so far have left."""
        momenta = [
            layer.momentum
            for layer in instrumented_layers(self.model)
            if isinstance(layer, layers.InstrumentedBatchNormalization)
        ]
        return {"batch_norm/initial_share": max(momenta) ** self.step()} if momenta else {}

    def _values(self, layer, own_name, epoch):
        reading = layer.take_reading()
        if reading is None:  # the layer saw no training step in this epoch
            return {}
        statistics, distributions = reading
        self._write_histogram(distributions, own_name, epoch)
        del statistics["steps"]
        self._warn(own_name, statistics, layer.recorder.spec.channels)
        values = {
            f"activations/{own_name}/{name}": value for name, value in of_layer(statistics).items()
        }
        if self.per_channel:
            values |= {f"channels/{own_name}/{name}": v for name, v in statistics.items()}
        return values

    def _warn(self, own_name, statistics, recorded):
        seen = statistics["first_nan_step"]
        if self._warned or not (seen >= 0).any():
            return
        self._warned = True
        first = seen[seen >= 0].min()
        channel = int(np.flatnonzero(seen == first)[0])
        channel = channel if recorded is None else recorded[channel]
        warnings.warn(
            f"NaN or infinity flowed through the layer {own_name!r}: {int((seen >= 0).sum())} of "
            f"{len(seen)} channels, first in channel {channel} at its training step {first}; "
            "training goes on.",
            stacklevel=2,
        )

    def _write_histogram(self, distributions, own_name, epoch):
        if self._writer is not None:
            found = buckets(distributions())
            at = epoch if self.every_steps is None else self._steps.made
            self._writer.histogram(f"activations/{own_name}", found, at)


def instrumented_layers(model):
    """The layers of a model that record, in order."""
    kinds = (layers.InstrumentedBatchNormalization, layers.ActivationStatistics)
    return [layer for layer in all_layers(model) if isinstance(layer, kinds)]
