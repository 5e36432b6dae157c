"""Record what the weights look like: their length, their zeros, how they are spread."""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import ops

from keras_regtools.backend._tensorflow_summaries import EventFile
from keras_regtools.callbacks.recording import RecordingCallback, finite_or_nan, names_of_logs
from keras_regtools.forward import names_of
from keras_regtools.measures.layers import layers_with_weights
from keras_regtools.validation import keras_model, non_negative, positive_integer

QUANTILES = (5, 50, 95)
_LOGS = ("kernels/norm", "kernels/zero_share", "kernels/small_share")
_SORTED = 20_000  # entries that quantiles are taken of: their error is that of 1 in 100


def weight_statistics(weights: Any, threshold: float = 1e-3, bins: int = 64) -> dict[str, Any]:
    """What some weights look like.

    Args:
        weights: List of arrays, taken as one.
        threshold: Weights of an absolute value below it count as small.
        bins: Of the histogram, equally wide from −a to a with the largest absolute weight a.

    Returns:
        Dict of `size`, `norm` (Euclidean), `largest` (absolute), `zero_share` (exact zeros),
        `small_share` (|w| < threshold), `percentile_5`, `percentile_50`, `percentile_95` of the
        weights, of more than 20,000 those of a part spread evenly, and `histogram`, the counts.

    Example:

    >>> found = weight_statistics([np.array([0.0, 0.0, 3.0, -4.0])], bins=4)
    >>> found["norm"], found["zero_share"], found["histogram"]
    (5.0, 0.5, [1, 0, 2, 1])
    """
    flat = np.concatenate([np.asarray(w, "float32").ravel() for w in weights])
    size = np.abs(flat)
    largest = float(size.max(initial=0.0))
    finite = np.isfinite(largest)
    edge = largest if finite and largest > 0 else 1.0
    part = flat[:: -(-flat.size // _SORTED)] if flat.size > _SORTED else flat
    counts = np.histogram(part, bins, (-edge, edge))[0] if finite else np.zeros(bins, int)
    return {
        "size": int(flat.size),
        "norm": float(np.linalg.norm(flat.astype("float64"))),
        "largest": largest,
        "zero_share": float(np.mean(flat == 0)),
        "small_share": float(np.mean(size < threshold)),
        **{f"percentile_{q}": float(np.percentile(part, q)) for q in QUANTILES},
        "histogram": counts.tolist(),
    }


class WeightMonitor(RecordingCallback):
    """Record after each epoch what the kernels of each layer look like.

    The records get `kernels/<layer>/norm`, `…/largest`, `…/zero_share` (exact zeros),
    `…/small_share` (below the threshold), `…/percentile_5`, `_50` and `_95` and `…/histogram`, and
    for all kernels together `kernels/norm`, `kernels/zero_share` and `kernels/small_share`, which
    go into the history too. Kernels are the trainable weights of two axes or more: without biases
    and the scales of normalization. Plain L1 makes weights small and not zero,
    a proximal step makes them zero: the two shares tell that apart.

    Args:
        threshold: Weights of an absolute value below it count as small.
        every: Do it in every so many epochs, beginning with the first.
        tensorboard: Directory to write a histogram of each layer to, for TensorBoard.
        logs: Names among those of the history, or `"all"`, that go into the logs too, which the
            progress bar prints and other callbacks watch.

    Raises:
        ValueError: a threshold that is negative or not finite, `every` that is no positive integer,
            unknown `logs`.

    Example:

    >>> import keras
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> model.compile(keras.optimizers.SGD(0.0), "mse")
    >>> model.set_weights([np.array([[0.0], [2.0]]), np.zeros(1)])
    >>> history = model.fit(np.ones((4, 2)), np.ones(4), verbose=0, callbacks=[WeightMonitor()])
    >>> history.history["kernels/norm"], history.history["kernels/zero_share"]
    ([2.0], [0.5])
    """

    claim = "kernels"
    dropped = ("_writer",)

    def __init__(
        self,
        *,
        threshold: float = 1e-3,
        every: int = 1,
        tensorboard: Any = None,
        logs: Any = (),
    ) -> None:
        super().__init__("weight_monitor")
        self.threshold = non_negative("threshold", threshold)
        self.every = positive_integer("every", every)
        self.tensorboard = None if tensorboard is None else str(tensorboard)
        self.logs = names_of_logs(logs, _LOGS)
        self._last: dict[str, float] = {}
        self._writer: Any = None

    def set_params(self, params: Any) -> None:
        super().set_params(params)
        self.records.claims.add(self.claim)

    def on_train_begin(self, logs: Any = None) -> None:
        keras_model(self.model, built=False, compiled=True)
        self._last = {}
        if self.tensorboard is not None:
            self._writer = EventFile(self.tensorboard)

    def on_train_end(self, logs: Any = None) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def training_over(self, epoch: int, logs: Any) -> None:
        if epoch % self.every and self._last:
            return
        with self.timed(epoch):
            found = kernels_by_layer(self.model)
            new, parts = {}, []
            for name, kernels in found.items():
                own = weight_statistics(kernels, self.threshold)
                parts.append(own)
                new |= {f"kernels/{name}/{what}": value for what, value in own.items()}
            self._last = _together(parts)
            self.record(epoch, new | self._last)
            if self._writer is not None:
                self._write(found, epoch)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        super().on_epoch_end(epoch, logs)
        self.tell(logs, {n: finite_or_nan(v) for n, v in self._last.items()}, self.logs)

    def _write(self, found, epoch):
        for name, kernels in found.items():
            flat = np.concatenate([k.ravel() for k in kernels])
            if np.isfinite(flat).all():
                counts, edges = np.histogram(flat, 64)
                buckets = np.stack([edges[:-1], edges[1:], counts], axis=1)
                self._writer.histogram(f"kernels/{name}", buckets, epoch)


def kernels_by_layer(model):
    """Dict from the names of layers to lists of their kernels, as arrays."""
    layers = [layer for layer in layers_with_weights(model) if _kernels(layer)]
    return {
        name: [np.asarray(ops.convert_to_numpy(v), "float32") for v in _kernels(layer)]
        for name, layer in zip(names_of(layers), layers, strict=True)
    }


def _kernels(layer):
    return [v for v in layer.trainable_variables if len(v.shape) > 1]


def _together(parts):
    sizes = np.array([part["size"] for part in parts], "float64")
    if not parts:
        return dict.fromkeys(_LOGS, float("nan"))
    shares = {
        f"kernels/{name}": float(np.average([part[name] for part in parts], weights=sizes))
        for name in ("zero_share", "small_share")
    }
    norm = float(np.sqrt(sum(part["norm"] ** 2 for part in parts)))
    return {"kernels/norm": norm, **shares}
