"""What a recorded statistic is: its rows, how a step makes them, how a reading is made of them."""

import functools
from typing import Any

import numpy as np
from keras import ops

from keras_regtools.forward.moments import average, entries, reduced, shape_moments
from keras_regtools.layers.histogram import percentiles

SUM, FIRST, LARGEST, MOMENTS = "sum", "first", "largest", "moments"  # how rows are merged


class Statistic:
    """One statistic by channel. A subclass declares what it needs and leaves out the rest.

    Attributes:
        name: Its name, in `record=` and in readings.
        formula, meaning: A line of the docs each: how it is made, and how to read it.
        chosen: Whether `record=` chooses it; others are in each reading.
        logged: The name under which its worst layer can be logged; empty if it cannot.
        needs: Names of statistics whose rows a step must make for it.
        step_rows: Dict from the rows that every step gives to how they are merged.
        sampled_rows: The same of the rows that a sampled step gives.
        of_batch_norm: Whether only batch normalization has it.
    """

    name = formula = meaning = ""
    logged = ""
    chosen, of_batch_norm = True, False
    needs: tuple[str, ...] = ()
    step_rows: dict[str, Any] = {}
    sampled_rows: dict[str, Any] = {}

    def owns(self, name):
        """Whether an array of this name in a reading is its own."""
        return name == self.name

    def of_steps(self, steps, ops):
        """Its `step_rows` of several steps, from a `Steps`: tensors with a row for each step."""
        return {}

    def of_entries(self, seen):
        """Those of its `sampled_rows` that the entries alone give, from a `Seen`."""
        return {}

    def of_signal(self, seen, signal, rows):
        """Those that depend on what the activation behind gets, a `Signal`, and earlier rows."""
        return {}

    def read(self, reading):
        """The arrays of a reading by name, from a `Reading`; several for a family."""
        return {}

    def of_layer(self, values):
        """A layer's numbers by name, from the arrays by channel that `read` gave."""
        return {name: np.mean(value) for name, value in values.items()}


class Steps:
    """Several steps: rows of moments, and those of the moving statistics before each.

    Args:
        pending: Tensor `(steps, rows, channels)` of the rows `PENDING_ROWS`.
        step: Number of the first of them.
        epsilon: That of the batch normalization, 0 elsewhere.
        ops: `keras.ops`, or numpy under its names.
    """

    def __init__(self, pending, step, epsilon, ops=ops):
        count, *_ = ops.split(pending, len(PENDING_ROWS), axis=1)
        pending = ops.where(count > 0, pending, 0.0)  # where nothing counted there was no step
        self.count, self.mean, self.variance, self.moving_mean, moving_variance = ops.unstack(
            pending, len(PENDING_ROWS), axis=1
        )
        self.made = self.count > 0
        self.moving_std = ops.where(self.made, ops.sqrt(moving_variance + epsilon), 1.0)
        self.finite = ops.isfinite(self.mean)
        number = step + 1 + ops.reshape(ops.arange(pending.shape[0], dtype="int32"), [-1, 1])
        self.number = ops.cast(number, "float32")


PENDING_ROWS = ("count", "mean", "variance", "moving_mean", "moving_variance")


class Seen:
    """The entries of one sampled step.

    Args:
        x: The tensor.
        axes: All its axes but that of the channels.
        mean, variance: Its moments by channel.
        counted: Booleans of the shape of `x`, or `None` if all entries count.
    """

    def __init__(self, x, axes, mean, variance, counted):
        self.x, self.axes, self.mean, self.variance = x, axes, mean, variance
        self.counted = counted

    @functools.cached_property
    def count(self):
        return entries(self.x, self.axes, self.counted)

    @functools.cached_property
    def shape(self):
        """Skewness and kurtosis, in one pass."""
        return shape_moments(self.x, self.axes, self.mean, self.variance, self.counted)

    def largest(self, x):
        """Of a tensor like `x`, by channel."""
        x = x if self.counted is None else ops.where(self.counted, x, -np.inf)
        return reduced(ops.max, x, self.axes)

    def number(self, true):
        """How many of the entries that count are true, by channel."""
        return self.total(ops.cast(true, self.x.dtype))

    def total(self, values):
        """The sum over the entries that count, by channel, of a tensor like `x`."""
        mean = average(values, self.axes, self.counted)
        return mean * ops.cast(self.count, self.x.dtype)


class Reading:
    """What a recorder held when it was read.

    Args:
        layer: The layer.
        steps, sampled: Dicts of arrays, the rows of every step and of the sampled ones.
        parts: List of `(grid, histogram)`, one for each replica.
        last: The arrays of the last reading, or `None`.
    """

    def __init__(self, layer, steps, sampled, parts, last):
        self.layer, self.spec = layer, layer.recorder.spec
        self.steps, self.sampled, self.parts, self.last = steps, sampled, parts, last

    def per_step(self, name):
        """A sum over the steps, over their number; NaN where there was none."""
        number = self.steps["steps"]
        return self.steps[name] / np.where(number > 0, number, np.nan)

    def moment(self, name):
        return self.steps[name] * np.where(self.steps["count"] > 0, np.float32(1), np.nan)

    def per_entry(self, name):
        """A number of entries, as their share of the sampled ones."""
        return self.sampled_only(self.sampled[name] / self._count)

    def sampled_only(self, values):
        """NaN where nothing was sampled."""
        return np.where(self.sampled["count"] > 0, values, np.nan).astype("float32")

    @property
    def _count(self):
        count = self.sampled["count"]
        return np.where(count > 0, count, np.nan)

    @property
    def low(self):
        return -self.sampled["negated_minimum"]

    @property
    def high(self):
        return self.sampled["maximum"]

    @functools.cached_property
    def percentiles(self):
        """Dict from names such as `percentile_15` to arrays; empty without a histogram."""
        if not len(self.parts[0][1]):
            return {}
        shares = self.spec.percentiles
        found = percentiles(self.parts, self.low, self.high, shares)
        found[~np.isfinite(self.sampled["mean"])] = np.nan
        return {f"percentile_{share:g}": found[:, i] for i, share in enumerate(shares)}

    @property
    def stands_still(self):
        """Whether all entries of a channel are the same."""
        return self.low >= self.high
