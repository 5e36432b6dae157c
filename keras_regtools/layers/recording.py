"""What the layers with a recorder have in common: reading it."""

import numpy as np

from keras_regtools.layers.histogram import Distribution
from keras_regtools.layers.statistics import STATISTICS
from keras_regtools.layers.statistics.base import Reading


class Recording:
    """Reading and forgetting what a layer's `recorder` holds."""

    _last = None  # of the last reading that was reset
    _reading = None  # that reading, whole

    def statistics(self):
        """The statistics of the layer's input over the training steps since the last reset.

        After a monitor has read them at the end of an epoch they are those of its reading, until
        another step is made.

        Over all entries of a channel (samples and positions; masked ones do not count), pooled over
        the steps exactly, whatever the sizes of the batches and on however many replicas:
        `"mean"` μ, `"variance"` σ² (biased), `"skewness"` E[((x − μ)/σ)³], `"kurtosis"`
        E[((x − μ)/σ)⁴] − 3, `"minimum"`, `"maximum"`. `"percentile_15"` and so on come from a
        histogram of up to 2,048 entries of a channel per step. Its bins are at most
        √(σ₁² + (x − μ₁)²) / 15 wide, with μ₁ and σ₁ of the first step on which the channel did not
        stand still, up to 200 σ₁ from μ₁; all that is further out is in one bin on each side.
        Between their edges the entries count as evenly spread. Where a step has more entries, the
        rank has a standard error of up to 1.1 % over the root of the number of steps, besides.

        `"absolute_mean"`, the mean of |x| (in front of a ReLU: of what it lets through).

        Shares: `"zero_share"` of entries that are zero (in front of a ReLU: that it makes zero);
        `"saturated_share"` of entries beyond 95 % of the range of a bounded activation, if `before`
        or `after` names one; `"dead"` 1.0 where a channel was never above zero, else 0.0 (not
        where another activation than ReLU is named); `"constant_share"` of steps on which the
        channel's variance was below 1e-6.

        Averages over the steps: `"batch_mean"`, `"batch_variance"` (biased), and, of batch
        normalization, `"mean_distance"` = |μ_batch − μ_moving| / σ_moving and `"std_distance"` =
        |σ_batch − σ_moving| / σ_moving, where σ_moving = √(moving variance + ε) and the moving
        statistics are those before the step.

        Against the reading before the last reset, from the second reading on: `"mean_drift"`
        |μ − μ'| / σ' and `"percentile_drift"`, the mean over the percentiles of |p − p'| / σ'.
        The layer's own `"abs_gamma"` |γ| and `"beta"`, of batch normalization, as they are now.

        `"nan_steps"`: steps on which the channel held NaN or infinity; `"nan_count"`: such entries,
        in the sampled steps; `"first_nan_step"`: the training step of this layer at which they were
        seen first, from 0 on, or −1. The moments of such a channel are NaN, its percentiles too.

        Batch normalization records moments of every step, as it computes them anyway; all else, and
        everything in `ActivationStatistics`, is of every `record_every`-th step; there, steps with
        NaN or infinity are recorded besides.

        Returns:
            A dict of numpy arrays with one entry per recorded channel, beside the int `"steps"`.

        Raises:
            ValueError: no training step was made since the last reset.
        """
        recorder = self.recorder
        found = recorder.read() if recorder.built else None
        if found is None and self._reading is not None:
            return {k: v if isinstance(v, int) else v.copy() for k, v in self._reading.items()}
        if found is None:
            raise ValueError(
                f"Expected at least one training step. Received: none, in the layer {self.name!r}"
            )
        return self._statistics(*self._reading_of(*found))

    def _reading_of(self, counters, *rows_and_parts):
        return counters, Reading(self, *rows_and_parts, self._last)

    def _statistics(self, counters, reading):
        values = {"steps": int(counters[1])}
        for statistic in STATISTICS.values():
            if statistic.of_batch_norm and not self.has_reference:
                continue
            if not statistic.chosen or statistic.name in self.recorder.spec.names:
                values |= statistic.read(reading)
        return values

    def _distributions(self, counters, reading):
        if not len(reading.parts[0][1]):
            return []
        return [
            Distribution(
                [(grid[0, c], grid[1, c], counts[:, c]) for grid, counts in reading.parts],
                reading.low[c],
                reading.high[c],
            )
            for c in range(len(reading.low))
        ]

    def distributions(self):
        """What is known of the distribution of each channel since the last reset.

        Returns:
            List of `Distribution`, one per recorded channel; empty if no percentiles are recorded
            or no training step was made.
        """
        found = self.recorder.read() if self.recorder.built else None
        return [] if found is None else self._distributions(*self._reading_of(*found))

    @property
    def compared_with(self):
        """What the next reading is compared with, a dict of arrays, or `None`."""
        if self._last is None or not self.recorder.spec.any_of("mean_drift", "percentile_drift"):
            return None
        kept = ("mean", "variance")
        return {n: v for n, v in self._last.items() if n in kept or n.startswith("percentile_")}

    @compared_with.setter
    def compared_with(self, reading):
        self._last = {name: np.asarray(values, "float32") for name, values in reading.items()}

    @property
    def torch_params(self):
        """On PyTorch, the plain layer's parameters: the recorder keeps its own."""
        params = super().torch_params
        for variable in self.recorder.variables:
            if variable.path in params:
                params.pop(variable.path)
        return params

    def reset_statistics(self):
        """Forget what was recorded and start again; the next reading is compared with this one."""
        if self.recorder.built:
            self._read_out()
            self.recorder.reset()
        self._reading = None

    def take_reading(self):
        """`statistics()` and a new beginning in one, as at the end of an epoch.

        Returns:
            `(statistics, distributions)`, the latter as a function without arguments; `None` if
            there was no training step.
        """
        found = self._read_out() if self.recorder.built else None
        if found is None:
            return None
        self.recorder.reset()
        return dict(self._reading), lambda: self._distributions(*found)

    def _read_out(self):
        """Keep the present reading as the last one."""
        found = self.recorder.read()
        if found is not None:
            found = _, reading = self._reading_of(*found)
            self._reading = self._statistics(*found)
            moments = {name: reading.steps[name] for name in ("mean", "variance")}
            self._last = {**moments, **reading.percentiles}
        return found


def silent_calls(model_layers):
    """`(layer, call)` for each layer that records, without the recording."""
    return [(layer, layer.silent_call) for layer in model_layers if isinstance(layer, Recording)]
