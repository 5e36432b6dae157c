"""The identity, which records the statistics of what flows through it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from keras_regtools.forward.moments import mask_fits
from keras_regtools.layers.recorder import Recorder
from keras_regtools.layers.recording import Recording
from keras_regtools.layers.recording_spec import RecordingSpec
from keras_regtools.validation import Constraint, flag

_axis = Constraint(
    "an integer that is not 0, the axis of the samples",
    lambda v: not isinstance(v, bool) and int(v) == v and v != 0,
    int,
)


@keras.saving.register_keras_serializable(package="keras_regtools")
class ActivationStatistics(Recording, keras.layers.Layer):
    """The identity, recording per channel what flows through it in training.

    For networks without batch normalization, or before and after any layer. It has no weights.
    What is recorded is read with `statistics()` and forgotten with `reset_statistics()`.

    Args:
        axis: The channel axis, an integer.
        record: Names of the quantities to record, those of `statistics()` (`"percentiles"` for all
            of them); `None` records all.
        record_every: They are recorded on every `record_every`-th training step, and on each that
            holds NaN or infinity. A positive integer.
        record_channels: Indices of the channels to record; `None` records all.
        percentiles: The percentiles, increasing numbers between 0 and 100.
        before, after: Name of the activation that follows this layer, or stands in front of it,
            such as `"relu"` or `"tanh"`; it tells what a zero, a dead channel and a saturated unit
            is. At most one of them.
        split: Whether `instrument` split the activation behind this layer out of the layer
            before it, so that `strip` puts it back there.
        **kwargs: The arguments of `keras.layers.Layer`.

    Call arguments:
        inputs: Tensor of rank 2 or more.
        training: Whether to record.

    Raises:
        ValueError: `record_every` below 1, percentiles outside (0, 100), an unknown quantity, a
            channel that is not there, both `before` and `after`, or an input of rank 1.

    Example:

    >>> import numpy as np
    >>> layer = ActivationStatistics()
    >>> outputs = layer(np.array([[-1.0, 4.0], [3.0, 4.0]]), training=True)
    >>> statistics = layer.statistics()
    >>> statistics["minimum"], statistics["maximum"]
    (array([-1.,  4.], dtype=float32), array([3., 4.], dtype=float32))
    """

    has_reference = False

    def __init__(
        self,
        axis: int | Sequence[int] = -1,
        *,
        record: Any = None,
        record_every: int = 10,
        record_channels: Any = None,
        percentiles: Sequence[float] = (15, 50, 85),
        before: Any = None,
        after: Any = None,
        split: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.axis = _axis("axis", axis)
        self.before, self.after = before, after
        self.split = flag("split", split)
        spec = RecordingSpec(record, record_every, record_channels, percentiles, before, after)
        self.recorder = Recorder(spec, each_step=False, name="recorder")
        self.supports_masking = True

    def can_record(self, shape: Any) -> bool:
        """Whether inputs of this shape have samples and a known number of channels."""
        if shape is None:
            return True
        return len(shape) > 1 and shape[self.axis] is not None

    def build(self, input_shape: tuple[int, ...]) -> None:
        if len(input_shape) < 2:
            raise ValueError(
                "Expected an input of rank 2 or more, with samples and channels. "
                f"Received: input_shape={tuple(input_shape)}"
            )
        self.recorder.build(input_shape[self.axis])
        self.built = True

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        if training:
            # Some layers pass on a mask that does not belong to their output any more.
            fits = mask is not None and mask_fits(mask, inputs)
            self.recorder.record(inputs, self.axis, mask if fits else None)
        return inputs

    def silent_call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """`call` without the recording."""
        return inputs

    def compute_output_shape(self, input_shape: tuple[int, ...]) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        own = {"axis": self.axis, "before": self.before, "after": self.after, "split": self.split}
        return {**super().get_config(), **self.recorder.spec.config(), **own}
