"""Batch normalization that records the statistics of its batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_regtools.forward.moments import mask_fits
from keras_regtools.layers.ghost_batch import VirtualBatches, by_sample, followed
from keras_regtools.layers.recorder import Recorder
from keras_regtools.layers.recording import Recording
from keras_regtools.layers.recording_spec import RecordingSpec
from keras_regtools.validation import positive_integer


@keras.saving.register_keras_serializable(package="keras_regtools")
class InstrumentedBatchNormalization(Recording, keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization` that records the statistics of its input in training.

    Outputs, gradients, moving statistics, weights and weight lists are the plain layer's. What is
    recorded lies in variables that are no weights; it is read with `statistics()`, which tells what
    each quantity is, and forgotten with `reset_statistics()`. Recording happens in training steps
    only, also in a frozen layer.

    Args:
        *args, **kwargs: The arguments of `keras.layers.BatchNormalization`.
        record: Names of the quantities to record, those of `statistics()` (`"percentiles"` for all
            of them); `None` records all.
        record_every: Moments of the batch, which the layer computes anyway, are recorded on every
            training step, the rest on every `record_every`-th one. A positive integer.
        record_channels: Indices of the channels to record; `None` records all.
        percentiles: The percentiles, increasing numbers between 0 and 100.
        before: Name of the activation that follows, such as `"relu"`: zeros, dead channels and
            saturated units are then those of the layer's output, which the activation gets.
        virtual_batch_size: Normalize each so many samples by themselves (ghost batch
            normalization), so that the n of the statistics stays while the batch grows. Where it
            does not divide the batch, the last virtual batch is smaller. The moving statistics
            follow the virtual batches in turn, as in as many steps.

    Call arguments:
        inputs: Tensor of rank 2 or more.
        training: Whether to normalize with the batch's statistics and to record.
        mask: Tensor of one rank less than `inputs`; masked entries do not count.

    Raises:
        ValueError: `record_every` or `virtual_batch_size` below 1, percentiles outside (0, 100), an
            unknown quantity or a channel that is not there, virtual batches together with
            `synchronized` or `renorm`; in training, a batch smaller than a virtual one if none
            before was large enough (unseen on TensorFlow with XLA and in functional calls).

    Reference:
        [Ioffe and Szegedy, 2015](https://arxiv.org/abs/1502.03167); virtual batches:
        [Hoffer et al., 2017](https://arxiv.org/abs/1705.08741).

    Example:

    >>> import numpy as np
    >>> layer = InstrumentedBatchNormalization()
    >>> outputs = layer(np.array([[1.0, 10.0], [3.0, 10.0]]), training=True)
    >>> statistics = layer.statistics()
    >>> statistics["batch_mean"], statistics["batch_variance"], statistics["constant_share"]
    (array([ 2., 10.], dtype=float32), array([1., 0.], dtype=float32), array([0., 1.]...))
    """

    has_reference = True

    def __init__(
        self,
        *args: Any,
        record: Any = None,
        record_every: int = 10,
        record_channels: Any = None,
        percentiles: Sequence[float] = (15, 50, 85),
        before: Any = None,
        virtual_batch_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.before = before
        spec = RecordingSpec(record, record_every, record_channels, percentiles, before)
        self.recorder = Recorder(spec, each_step=True, epsilon=self.epsilon, name="recorder")
        self.virtual_batch_size = virtual_batch_size
        if virtual_batch_size is not None:
            self.virtual_batch_size = positive_integer("virtual_batch_size", virtual_batch_size)
            for name in ("synchronized", "renorm"):
                if getattr(self, name, False):
                    raise ValueError(
                        f"Expected no `{name}` together with `virtual_batch_size`. "
                        f"Received: {name}=True, virtual_batch_size={virtual_batch_size}"
                    )
            self.virtual_batches = VirtualBatches(self.virtual_batch_size, name="virtual_batches")

    def build(self, input_shape: tuple[int, ...]) -> None:
        if len(input_shape) < 2:
            raise ValueError(
                "Expected an input of rank 2 or more, with samples and channels. "
                f"Received: input_shape={tuple(input_shape)}"
            )
        super().build(input_shape)
        self.recorder.build(input_shape[self.axis])
        if self.virtual_batch_size is not None:
            self.virtual_batches.build()

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        # A mask of the wrong rank is refused below, as by the plain layer.
        records = training and (mask is None or mask_fits(mask, inputs))
        if not records:
            return self.silent_call(inputs, training=training, mask=mask)
        reference = (self.moving_mean, self.moving_variance)
        if self.before is None or self._maps_by_channel:
            signal = None if self.before is None else self._affine()
            self._record(inputs, mask, reference, signal)
            return self.silent_call(inputs, training=training, mask=mask)
        # Before the output is made, which moves the moving statistics.
        reference = (self.moving_mean * 1, self.moving_variance * 1)
        outputs = self.silent_call(inputs, training=training, mask=mask)
        self._record(inputs, mask, reference, outputs)
        return outputs

    def _record(self, inputs, mask, reference, signal):
        self.recorder.record(inputs, self.axis, mask, reference, self.synchronized, signal)

    @property
    def _maps_by_channel(self):
        """Whether all samples get the same scale and offset, which are those of the batch."""
        apart = self.synchronized or getattr(self, "renorm", False)  # the whole batch's, if so
        return self.virtual_batch_size is None and not apart

    def _affine(self):
        """What the scale and the offset by channel are made of."""
        own = {"gamma": self.gamma, "beta": self.beta}
        own = {n: None if v is None else ops.convert_to_tensor(v) for n, v in own.items()}
        moving = (self.moving_mean, self.moving_variance)
        moving = None if self.trainable else tuple(ops.convert_to_tensor(v) for v in moving)
        return {**own, "moving": moving}

    def silent_call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """`call` without the recording."""
        if self.virtual_batch_size is None or not (training and self.trainable):
            return super().call(inputs, training=training, mask=mask)
        x = ops.cast(inputs, keras.backend.result_type(inputs.dtype, "float32"))
        means, variances, batches = self.virtual_batches(x, self.axis, mask)
        for moving, values in ((self.moving_mean, means), (self.moving_variance, variances)):
            values = ops.cast(values, moving.dtype)
            moving.assign(followed(moving, values, self.momentum))
        scale = ops.rsqrt(variances + self.epsilon)
        if self.gamma is not None:
            scale = scale * ops.cast(self.gamma, x.dtype)
        offset = -means * scale
        if self.beta is not None:
            offset = offset + ops.cast(self.beta, x.dtype)
        outputs = x * by_sample(scale, batches, x, self.axis)
        outputs = outputs + by_sample(offset, batches, x, self.axis)
        return ops.cast(outputs, self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        own = {"before": self.before, "virtual_batch_size": self.virtual_batch_size}
        return {**super().get_config(), **self.recorder.spec.config(), **own}
