"""The gradient noise scale of a training, from the parts that its steps already have."""

from __future__ import annotations

import math
from typing import Any

from keras_regtools import backend
from keras_regtools.callbacks.recording import finite_or_nan, names_of_logs
from keras_regtools.callbacks.steps import ReadingCallback
from keras_regtools.training import (
    NoiseHook,
    base_optimizers,
    end,
    held_optimizers,
    parts_of,
    refuse_one_part,
    watch_updates,
)
from keras_regtools.validation import keras_model, positive_integer

_LOGS = ("gradient_noise/scale", "gradient_noise/trace", "gradient_noise/squared_norm")


class GradientNoise(ReadingCallback):
    """Record the noise scale tr Σ / |G|² while training, without another pass over the data.

    For steps that have parts: accumulated batches (`gradient_accumulation_steps` of the optimizer),
    or the replicas of a `tf.distribute` strategy. The gradients of S parts of b samples differ by
    their noise, whose variance σ² = tr Σ / b, and ‖ḡ‖² exceeds |G|² by σ² / S; see
    `measures.gradient_noise_scale`, which needs no parts and gives an interval. On every `every`-th
    update, from the first on, both numbers are taken; their means since the last reading are
    divided. Of accumulated batches the last is set against the mean of the others, which has the
    same expectation as the variance of all S, and about √(S − 1) times its error.

    Records and history get `gradient_noise/scale`, in samples, NaN where no gradient is seen behind
    the noise, `gradient_noise/trace`, tr Σ, and `gradient_noise/squared_norm`, |G|². If no update
    was looked at, the records hold NaN and the history repeats the last value. Batch normalization
    and dropout act in the parts as they do in training. Parts are taken to be of one size.

    Args:
        batch_size: What `fit` gets, on all replicas together.
        every: Look at every so many updates. A positive integer.
        every_steps: Read at the multiples of so many training steps, besides the end of each epoch.
        logs: Names among those of the history that go into the logs too, which the progress bar
            prints and other callbacks watch; `"all"` for all of them.

    Raises:
        ValueError: unknown `logs`, a size or number below 1; when the fit begins, a model that is
            not compiled or not built, has nothing trainable, or whose steps have one part only.

    Reference:
        [McCandlish et al., 2018](https://arxiv.org/abs/1812.06162).

    Example:

    >>> import keras, numpy as np
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
    >>> optimizer = keras.optimizers.SGD(0.0, gradient_accumulation_steps=2)
    >>> model.compile(optimizer, loss=lambda y, p: p[:, 0])  # whose gradients are the inputs
    >>> x = np.array([[1.0, 0.0], [1.0, 2.0]])
    >>> noise = GradientNoise(batch_size=1, every=1)
    >>> history = model.fit(x, x, batch_size=1, callbacks=[noise], verbose=0).history
    >>> [round(history[f"gradient_noise/{n}"][0], 4) for n in ("trace", "squared_norm", "scale")]
    [2.0, 1.0, 2.0]
    """

    dropped = ("_hooks",)

    def __init__(
        self, batch_size: int, *, every: int = 10, every_steps: int | None = None, logs: Any = ()
    ) -> None:
        super().__init__("gradient_noise", every_steps)
        self.batch_size = positive_integer("batch_size", batch_size)
        self.logs = names_of_logs(logs, _LOGS)
        self.every = positive_integer("every", every)
        self._hooks: Any = None

    def on_train_begin(self, logs: Any = None) -> None:
        model = keras_model(self.model, compiled=True)
        self._start()
        self.on_train_end()  # of a fit that was cut off
        first = base_optimizers(held_optimizers(model)[0])[0]
        replicas = backend.replica_count(model.variables[0]) if model.variables else 1
        self._parts = parts_of(first, replicas)
        refuse_one_part(self._parts)
        self._size = self.batch_size / replicas
        arguments = model.trainable_variables, self.every, model.jit_compile
        self._hooks = watch_updates(self, model, lambda: NoiseHook(*arguments))

    def on_train_end(self, logs: Any = None) -> None:
        for _, undo in self._hooks or []:
            end(self.model, undo)
        self._hooks = None

    def training_over(self, epoch: int, logs: Any) -> None:
        if self.every_steps is None or self._read_at != self._steps.made or not self._logged:
            self._read_now(epoch)

    def _read(self, epoch):
        with self.timed(epoch):
            read = [hook.accumulator.read() for hook, _ in self._hooks]
            if any(count for count, *_ in read):
                variance, of_mean = (sum(float(mean[i]) for _, mean, _ in read) for i in (0, 1))
                norm = of_mean - variance / self._parts
                trace = self._size * variance
                scale = trace / norm if norm > 0 else math.nan
                numbers = (scale, trace, norm)
                found = self._logged = dict(zip(_LOGS, map(finite_or_nan, numbers), strict=True))
            else:
                found = dict.fromkeys(_LOGS, math.nan)
                self._logged = self._logged or found
            self.record(epoch, found)
