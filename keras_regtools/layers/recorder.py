"""The recorder inside a layer: sums over training steps, kept in the graph as hidden state."""

import keras
import numpy as np
from keras import ops

from keras_regtools import backend
from keras_regtools.state import State
from keras_regtools.validation import positive_integer

CONSTANT_VARIANCE = 1e-6


class Recorder(State):
    """Per-channel statistics of a tensor over the training steps since the last reading.

    Args:
        record_every: Extremes and constant channels are taken on every so many steps, beginning
            with the first one after a reading; means and variances on every step.
    """

    def __init__(self, record_every=10, **kwargs):
        super().__init__(**kwargs)
        self.every = positive_integer("record_every", record_every)

    def build(self, channels):
        self.steps = self.add_weight(
            name="steps", shape=(), dtype="int32", initializer="zeros", trainable=False
        )
        # Rows: batch mean, batch variance, distance of the means, distance of the deviations.
        self.sums = self.add_weight(name="sums", **_float_state((4, channels)))
        # Rows: -minimum, maximum, steps on which the channel was constant.
        self.extremes = self.add_weight(name="extremes", **_float_state((3, channels)))
        self.built = True

    def record(self, x, axis, mask=None, reference=None, synchronized=False):
        """Add one step.

        Args:
            x: The tensor.
            axis: The channel axis.
            mask: `None`, or a tensor of one rank less than `x`, true where entries count.
            reference: `(mean, standard deviation)` to measure the distance to, or `None`.
            synchronized: Whether the moments are those over all replicas.
        """
        x = ops.cast(x, keras.backend.result_type(x.dtype, "float32"))
        axes = reduction_axes(len(x.shape), axis)
        mean, variance = moments(x, axes, mask, synchronized)
        if reference is None:
            distances = [ops.zeros_like(mean), ops.zeros_like(mean)]
        else:
            moving_mean, moving_std = (ops.cast(part, x.dtype) for part in reference)
            distances = [
                ops.abs(mean - moving_mean) / moving_std,
                ops.abs(ops.sqrt(variance) - moving_std) / moving_std,
            ]
        rows = ops.stack([mean, variance, *distances])
        self.sums.assign(self.sums + ops.cast(rows, "float32"))

        seen = self.extremes * 1  # a plain tensor, which both branches can return
        self.extremes.assign(
            ops.cond(
                ops.equal(ops.mod(self.steps, self.every), 0),
                lambda: _merge(seen, self.steps, x, axes, mask, variance),
                lambda: seen,
            )
        )
        self.steps.assign(self.steps + 1)

    def read(self):
        """The statistics as numpy arrays, or `None` before the first training step."""
        steps = int(ops.convert_to_numpy(self.steps))
        if steps == 0:
            return None
        sums = np.array(ops.convert_to_numpy(self.sums)) / steps
        extremes = np.array(ops.convert_to_numpy(self.extremes))
        return {
            "steps": steps,
            "batch_mean": sums[0],
            "batch_variance": sums[1],
            "mean_distance": sums[2],
            "std_distance": sums[3],
            "minimum": -extremes[0],
            "maximum": extremes[1],
            "constant_share": extremes[2] / -(-steps // self.every),
        }

    def reset(self):
        """Begin a new reading."""
        for variable in (self.steps, self.sums, self.extremes):
            variable.assign(np.zeros(variable.shape, variable.dtype))


class Recording:
    """What the layers with a recorder have in common: reading it."""

    def statistics(self):
        """The statistics of the layer's input over the training steps since the last reset.

        Returns:
            A dict of numpy arrays with one entry per channel, beside the int `"steps"`:
            `"batch_mean"` and `"batch_variance"` (biased), averaged over the steps; `"minimum"`,
            `"maximum"` and `"constant_share"` (the share of steps on which the channel's variance
            was below 1e-6), over every `record_every`-th step. Batch normalization adds
            `"mean_distance"` = |μ_batch − μ_moving| / σ_moving and `"std_distance"` =
            |σ_batch − σ_moving| / σ_moving, averaged over the steps, where
            σ_moving = √(moving variance + ε) and the moving statistics are those before the step.

        Raises:
            ValueError: no training step was made since the last reset.
        """
        statistics = self.recorder.read() if self.recorder.built else None
        if statistics is None:
            raise ValueError(
                "Expected at least one training step since the statistics were last reset. "
                f"Received: none, in the layer {self.name!r}"
            )
        if not self.has_reference:
            del statistics["mean_distance"], statistics["std_distance"]
        return statistics

    @property
    def torch_params(self):
        """On PyTorch, the plain layer's parameters: the recorder keeps its own."""
        params = super().torch_params
        for variable in self.recorder.variables:
            if variable.path in params:
                params.pop(variable.path)
        return params

    def reset_statistics(self):
        """Forget what was recorded and begin anew."""
        if self.recorder.built:
            self.recorder.reset()


def moments(x, axes, mask=None, synchronized=False):
    """Mean and biased variance over `axes`, of the unmasked part.

    Without a mask this is the very operation of Keras' batch normalization, so that a compiler
    finds it done already.
    """
    if mask is None and backend.MOMENTS_CANCEL:
        return ops.mean(x, axis=axes), ops.var(x, axis=axes)
    if mask is None:
        return ops.moments(x, axes=axes, synchronized=synchronized)
    weight = ops.cast(_spread(mask, x), x.dtype)
    count = ops.maximum(ops.sum(weight, axis=axes), 1)
    mean = ops.sum(weight * x, axis=axes) / count
    centered = x - ops.reshape(mean, [-1 if i not in axes else 1 for i in range(len(x.shape))])
    return mean, ops.sum(weight * ops.square(centered), axis=axes) / count


def mask_fits(mask, x):
    """Whether a mask still belongs to the tensor: one rank less, and sizes that broadcast."""
    if len(mask.shape) != len(x.shape) - 1:
        return False
    pairs = zip(mask.shape, x.shape[:-1], strict=True)
    return all(m is None or n is None or m in (1, n) for m, n in pairs)


def _spread(mask, x):
    return ops.broadcast_to(ops.expand_dims(ops.cast(mask, "bool"), -1), ops.shape(x))


def reduction_axes(rank, axis):
    """All axes of a tensor but the channel axis."""
    return [i for i in range(rank) if i != axis % rank]


def _merge(seen, steps, x, axes, mask, variance):
    low = high = x
    if mask is not None:
        counts = _spread(mask, x)
        low, high = ops.where(counts, x, np.inf), ops.where(counts, x, -np.inf)
    now = ops.cast(ops.stack([-ops.min(low, axis=axes), ops.max(high, axis=axes)]), "float32")
    # The first sampled step replaces the zeros that a reset leaves behind.
    extremes = ops.where(ops.equal(steps, 0), now, ops.maximum(seen[:2], now))
    constant = seen[2:] + ops.cast(variance < CONSTANT_VARIANCE, "float32")[None]
    return ops.concatenate([extremes, constant])


def _float_state(shape):
    return {
        "shape": shape,
        "dtype": "float32",
        "initializer": "zeros",
        "trainable": False,
        "autocast": False,
    }


def silent_calls(model_layers):
    """`(layer, call)` for each layer that records, without the recording."""
    return [(layer, layer.silent_call) for layer in model_layers if isinstance(layer, Recording)]
