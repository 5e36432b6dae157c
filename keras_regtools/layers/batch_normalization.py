"""Batch normalization that records the statistics of its batches."""

import keras
from keras import ops

from keras_regtools.layers.recorder import Recorder, Recording, mask_fits


@keras.saving.register_keras_serializable(package="keras_regtools")
class InstrumentedBatchNormalization(Recording, keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization` that records the statistics of its input in training.

    Outputs, gradients, moving statistics, weights and weight lists are the plain layer's. What is
    recorded lies in variables that are no weights; it is read with `statistics()` and forgotten
    with `reset_statistics()`. Recording happens in training steps only, also in a frozen layer.

    Args:
        *args, **kwargs: The arguments of `keras.layers.BatchNormalization`.
        record_every: Minimum, maximum and constant channels are recorded on every
            `record_every`-th training step, the rest on every step. A positive integer.

    Call arguments:
        inputs: Tensor of rank 2 or more.
        training: Whether to normalize with the batch's statistics and to record.
        mask: Tensor of one rank less than `inputs`; masked entries do not count.

    Raises:
        ValueError: `record_every` below 1.

    Reference:
        [Ioffe and Szegedy, 2015](https://arxiv.org/abs/1502.03167).

    Example:

    >>> import numpy as np
    >>> layer = InstrumentedBatchNormalization()
    >>> outputs = layer(np.array([[1.0, 10.0], [3.0, 10.0]]), training=True)
    >>> statistics = layer.statistics()
    >>> statistics["batch_mean"], statistics["batch_variance"], statistics["constant_share"]
    (array([ 2., 10.], dtype=float32), array([1., 0.], dtype=float32), array([0., 1.]...))
    """

    has_reference = True

    def __init__(self, *args, record_every=10, **kwargs):
        super().__init__(*args, **kwargs)
        self.recorder = Recorder(record_every, name="recorder")

    def build(self, input_shape):
        super().build(input_shape)
        self.recorder.build(input_shape[self.axis])

    def call(self, inputs, training=None, mask=None):
        # A mask of the wrong rank is refused below, as by the plain layer.
        if training and (mask is None or mask_fits(mask, inputs)):
            moving_std = ops.sqrt(self.moving_variance + self.epsilon)
            reference = (self.moving_mean, moving_std)
            self.recorder.record(inputs, self.axis, mask, reference, self.synchronized)
        return super().call(inputs, training=training, mask=mask)

    def silent_call(self, inputs, training=None, mask=None):
        """`call` without the recording."""
        return super().call(inputs, training=training, mask=mask)

    def get_config(self):
        return {**super().get_config(), "record_every": self.recorder.every}
