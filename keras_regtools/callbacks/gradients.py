"""The gradients that training really saw, by layer, recorded inside the step."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np

from keras_regtools.callbacks.recording import finite_or_nan, names_of_logs
from keras_regtools.callbacks.steps import ReadingCallback
from keras_regtools.forward import names_of
from keras_regtools.measures.layers import layers_with_weights
from keras_regtools.training import (
    ROWS,
    GradientHook,
    end,
    watch_updates,
)
from keras_regtools.validation import keras_model, positive_integer

_LOGS = ("gradients/norm", "gradients/clipped_norm", "gradients/update_ratio")


class GradientMonitor(ReadingCallback):
    """Record the gradient of each layer as training sees it, without another pass over the data.

    The optimizer's `apply` is watched inside the compiled step: the gradients are without loss
    scale, averaged over accumulated steps, before and after clipping. On every `every`-th update
    the norms of each layer are taken. The records get, for each layer with trainable weights,
    `gradients/<layer>/gradient_norm` ‖g‖ before clipping, `clipped_norm` after it, `weight_norm`
    ‖w‖, `update_norm` ‖Δw‖ of the step the optimizer really made and `update_ratio` ‖Δw‖ / ‖w‖,
    means over the updates looked at since the last reading (NaN if there were none, where the
    history repeats its last values), and `largest_gradient_norm`. The history gets
    `gradients/norm`, ‖g‖ of all layers together from these means, `gradients/clipped_norm` and
    `gradients/update_ratio`, the largest of the layers. Weights, optimizer state and files are
    those of a training without it. Compiled by XLA on TensorFlow,
    norms are taken in every step. On several replicas the gradient is the sum of what each of them
    has clipped, as the optimizer takes it.

    Args:
        every: Look at every so many updates. A positive integer.
        every_steps: Read at the multiples of so many training steps, besides the end of each epoch.
        logs: Names among those of the history that go into the logs too, which the progress bar
            prints and other callbacks watch; `"all"` for all of them.

    Raises:
        ValueError: unknown `logs`, `every` or `every_steps` below 1; when the fit begins, a model
            that is not compiled or not built, or has nothing trainable.

    Example:

    >>> import keras, numpy as np
    >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, name="only")])
    >>> model.set_weights([np.array([[3.0]]), np.array([0.0])])
    >>> model.compile(keras.optimizers.SGD(0.1, clipvalue=1.0), "mse")
    >>> x = np.ones((8, 1), "float32")
    >>> history = model.fit(  # g = 2 (w + b − 1) = 4 for both, then clipped to 1
    ...     x, x, batch_size=8, callbacks=[GradientMonitor()], verbose=0)
    >>> [round(history.history[f"gradients/{n}"][0], 4) for n in ("norm", "clipped_norm")]
    [5.6569, 1.4142]
    """

    dropped = ("_hooks",)

    def __init__(self, *, every: int = 10, every_steps: int | None = None, logs: Any = ()) -> None:
        super().__init__("gradient_monitor", every_steps)
        self.logs = names_of_logs(logs, _LOGS)
        self.every = positive_integer("every", every)
        self._hooks: Any = None

    def on_train_begin(self, logs: Any = None) -> None:
        model = keras_model(self.model, compiled=True)
        self._start()
        self.on_train_end()  # of a fit that was cut off
        self._layers, groups = _groups(model)
        arguments = model.trainable_variables, groups, self.every, model.jit_compile
        self._hooks = watch_updates(self, model, lambda: GradientHook(*arguments))

    def on_train_end(self, logs: Any = None) -> None:
        for _, undo in self._hooks or []:
            end(self.model, undo)
        self._hooks = None

    def _read(self, epoch):
        with self.timed(epoch):
            means, largest = np.full((2, len(ROWS), len(self._layers)), np.nan)
            seen = False
            for hook, _ in self._hooks:  # each optimizer has layers of its own
                count, mean, top = hook.accumulator.read()
                own = mean[ROWS.index("weight_norm")] > 0
                own = own | (mean[0] > 0) | np.isnan(mean[0]) | (len(self._hooks) == 1)
                if count:
                    seen = True
                    means[:, own], largest[:, own] = mean[:, own], top[:, own]
            values = {}
            for i, layer in enumerate(self._layers):
                for row, name in enumerate(ROWS):
                    values[f"gradients/{layer}/{name}"] = finite_or_nan(means[row, i])
                values[f"gradients/{layer}/largest_gradient_norm"] = finite_or_nan(largest[0, i])
            ratios = means[ROWS.index("update_ratio")]
            total = {
                "gradients/norm": math.sqrt(np.sum(np.square(means[0]))),
                "gradients/clipped_norm": math.sqrt(np.sum(np.square(means[1]))),
                "gradients/update_ratio": max(ratios[~np.isnan(ratios)], default=math.nan),
            }
            if seen:
                self._warn(epoch, means[0])
                self._logged = {name: finite_or_nan(value) for name, value in total.items()}
            elif not self._logged:
                self._logged = dict.fromkeys(total, math.nan)
            self.record(epoch, values)

    def _warn(self, epoch, norms):
        bad = [
            name for name, norm in zip(self._layers, norms, strict=True) if not np.isfinite(norm)
        ]
        if bad and not self._warned:
            self._warned = True
            warnings.warn(
                f"The gradients of the layers {bad} became NaN or infinite in epoch {epoch + 1}; "
                "training goes on.",
                stacklevel=2,
            )


def _groups(model):
    """The names of the layers with trainable weights, and the places of their variables."""
    places = {id(v): i for i, v in enumerate(model.trainable_variables)}
    layers, groups = [], []
    for layer in layers_with_weights(model):
        own = [places.pop(id(v)) for v in layer.trainable_variables if id(v) in places]
        if own:
            layers.append(layer)
            groups.append(own)
    names = names_of(layers)
    if places:  # of a subclassed model itself
        names.append("model")
        groups.append(sorted(places.values()))
    return names, groups
