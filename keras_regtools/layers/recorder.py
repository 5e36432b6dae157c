"""The recorder inside a layer: statistics of training steps, kept in the graph as hidden state."""

import weakref

import keras
import numpy as np
from keras import ops

from keras_regtools import backend
from keras_regtools.layers import histogram
from keras_regtools.layers.moments import (
    average,
    entries,
    moments,
    reduced,
    reduction_axes,
    shape_moments,
    spread,
)
from keras_regtools.layers.quantities import CONSTANT_VARIANCE
from keras_regtools.layers.rows import (
    MOMENTS,
    NUMPY,
    SAMPLED_ROWS,
    STEP_ROWS,
    WAITING_ROWS,
    merged_samples,
    merged_steps,
    not_finite,
    of_channels,
    of_steps,
    sampled_rows,
    waiting_rows,
)
from keras_regtools.layers.signal import Signal
from keras_regtools.state import State, functional_scope

_LONGEST = 16  # the most steps that wait


class Recorder(State):
    """Per-channel statistics of a tensor over the training steps since the last reading.

    Args:
        wanted: `Wanted`.
        each_step: Whether moments are kept of every step, as where a layer computes them anyway,
            or of the sampled steps only: every `wanted.every`-th one, beginning with the first
            after a reading, and those with NaN or infinity.
        epsilon: Of the batch normalization, added to moving variances.
    """

    def __init__(self, wanted, each_step, epsilon=0.0, **kwargs):
        super().__init__(**kwargs)
        self.wanted, self.each_step, self.epsilon = wanted, each_step, epsilon
        self._calls = weakref.WeakKeyDictionary()  # the steps in which it was called, while traced

    def build(self, channels):
        if self.wanted.channels is not None:
            if max(self.wanted.channels) >= channels:
                raise ValueError(
                    f"Expected `record_channels` to be below {channels}, the number of channels. "
                    f"Received: record_channels={list(self.wanted.channels)}"
                )
            channels = len(self.wanted.channels)
        # Training steps in all, and since the last reading.
        self.clock = self._state("clock", (2,), "int32")
        if self.each_step:
            self.waiting = self._state("waiting", (self.cycle, len(WAITING_ROWS), channels))
        self.totals = self._state("totals", (len(STEP_ROWS), channels))
        self.samples = self._state("samples", (len(SAMPLED_ROWS), channels))
        self.grid = self._state("grid", (2, channels))
        bins = histogram.BINS if self._has_histogram else 0
        self.histogram = self._state("histogram", (bins, channels))
        self.built = True

    @property
    def cycle(self):
        """Steps that wait until they are added together, which costs less than one by one."""
        every = self.wanted.every if self.each_step else 1
        return max(n for n in range(1, _LONGEST + 1) if every % n == 0)

    def _state(self, name, shape, dtype="float32"):
        return self.add_weight(
            name=name,
            shape=shape,
            dtype=dtype,
            initializer="zeros",
            trainable=False,
            **({} if dtype == "int32" else {"autocast": False}),
        )

    @property
    def _has_histogram(self):
        return self.wanted.any_of("percentiles", "percentile_drift")

    def record(self, x, axis, mask=None, reference=None, synchronized=False, signal=None):
        """Add one step.

        Args:
            x: The tensor.
            axis: The channel axis.
            mask: `None`, or a tensor of one rank less than `x`, true where entries count.
            reference: `(mean, variance)` to measure the distance to, or `None`.
            synchronized: Whether the moments are those over all replicas.
            signal: What the activation gets, where that is not `x`: a tensor, or a function that
                makes a scale and an offset by channel of the mean and the variance.
        """
        x = ops.cast(x, keras.backend.result_type(x.dtype, "float32"))
        axes = reduction_axes(len(x.shape), axis)
        first = self._begins_step()
        clock = ops.convert_to_tensor(self.clock) * 1
        if first:
            self.clock.assign(clock + 1)
        else:  # once more in the step that is counted already
            clock = clock - 1
        slot = ops.mod(clock[1], self.cycle if self.each_step else self.wanted.every)
        due = ops.equal(slot, 0)
        sampled = [self.samples] + ([self.grid, self.histogram] if self._has_histogram else [])

        if not self.each_step:
            # One pass, so that no NaN comes and goes unseen.
            finite = ops.all(ops.isfinite(average(x, axes, spread(mask, x))))
            due = ops.logical_or(due, ops.logical_not(finite))

            def add():
                mean, variance = moments(x, axes, mask)
                rows = waiting_rows(x, axes, mask, mean, variance, reference)
                rows = of_channels(self.wanted.channels, 1, rows)[None]
                totals = merged_steps(self.totals * 1, of_steps(rows, clock[0], self.epsilon))
                return [totals, *self._sample(x, axis, axes, mask, signal, mean, variance)]

            backend.when(due, add, [self.totals, *sampled], self.clock)
            return

        mean, variance = moments(x, axes, mask, synchronized)
        rows = waiting_rows(x, axes, mask, mean, variance, reference)
        rows = of_channels(self.wanted.channels, 1, rows)

        def add_steps():
            """Those of the cycle that is over; at the first step after a reset, zeros."""
            waited = of_steps(self.waiting * 1, clock[0] - self.cycle, self.epsilon)
            return [merged_steps(self.totals * 1, waited)]

        def add_sample():
            own = moments(x, axes, mask) if synchronized else (mean, variance)
            behind = signal(mean, variance) if callable(signal) else signal
            return self._sample(x, axis, axes, mask, behind, *own)

        if not first:  # a second use of the layer: of the same step, and not to wait
            own = of_steps(rows[None], clock[0], self.epsilon)
            self.totals.assign(merged_steps(self.totals * 1, own))
            due = ops.equal(ops.mod(clock[1], self.wanted.every), 0)
            backend.when(due, add_sample, sampled, self.clock)
            return
        if self.cycle == self.wanted.every:
            both = [self.totals, *sampled]
            backend.when(due, lambda: add_steps() + add_sample(), both, self.clock)
        else:
            backend.when(due, add_steps, [self.totals], self.clock)
            due = ops.equal(ops.mod(clock[1], self.wanted.every), 0)
            backend.when(due, add_sample, sampled, self.clock)
        backend.put(self.waiting, slot, rows, self.clock)

    def _begins_step(self):
        """Whether this is the layer's first call in a training step, as far as a call can tell.

        One functional call of a model is a step, one traced function of TensorFlow is, and, where
        there is neither, one call of the outermost layer.
        """
        key, replica = functional_scope(), None
        if key is None:
            key, replica = backend.traced_function()
        if key is None:
            key = self._get_call_context()
            if key.entry_layer is self:  # a `call` outside of any layer
                self._maybe_reset_call_context()
                return True
        seen = self._calls.setdefault(key, set())
        begins = replica not in seen
        seen.add(replica)
        return begins

    def _sample(self, x, axis, axes, mask, signal, mean, variance):
        """What a sampled step makes of `samples`, and of `grid` and `histogram`, as a list."""
        wanted = self.wanted
        counted = spread(mask, x)
        mapped = signal if isinstance(signal, tuple) else ()
        x, counted = (of_channels(wanted.channels, axis, t) for t in (x, counted))
        by_channel = (mean, variance, *mapped)
        mean, variance, *mapped = (of_channels(wanted.channels, 0, t) for t in by_channel)
        own = signal is None or isinstance(signal, tuple)
        taken = x if own else ops.cast(of_channels(wanted.channels, axis, signal), x.dtype)
        signal = Signal(taken, axes, *mapped)
        zero = ops.zeros_like(mean)
        new = dict.fromkeys(SAMPLED_ROWS, zero)
        new |= {"readings": zero + 1, "count": entries(x, axes, counted)}
        new |= {"mean": mean, "variance": variance}
        new["constant"] = ops.cast(variance < CONSTANT_VARIANCE, x.dtype)
        # A mean that is finite is the mean of finite entries; only others are looked at.
        new["nan_count"] = backend.choose(
            ops.all(ops.isfinite(mean)), lambda: zero, lambda: not_finite(x, axes, counted)
        )
        shape = wanted.any_of("skewness", "kurtosis")  # of a channel that does not stand still
        if shape:
            new["skewness"], new["kurtosis"] = shape_moments(x, axes, mean, variance, counted)
        if self._has_histogram or shape or wanted.any_of("minimum", "maximum", "dead"):
            low = x if counted is None else ops.where(counted, x, np.inf)
            high = x if counted is None else ops.where(counted, x, -np.inf)
            new["low"] = -reduced(ops.min, low, axes)
            new["high"] = new["signal_high"] = reduced(ops.max, high, axes)
            if mapped:  # of no entries, there is no highest
                highest = signal.highest(-new["low"], new["high"])
                new["signal_high"] = ops.where(new["count"] > 0, highest, new["high"])
        if not own and wanted.any_of("dead"):
            high = taken if counted is None else ops.where(counted, taken, -np.inf)
            new["signal_high"] = reduced(ops.max, high, axes)
        if wanted.any_of("zero_share"):
            zeros = signal.zeros(wanted.rectified)
            new["zeros"] = average(ops.cast(zeros, x.dtype), axes, counted) * new["count"]
        if wanted.saturation is not None and wanted.any_of("saturated_share"):
            outside = signal.outside(*wanted.saturation)
            new["saturated"] = average(ops.cast(outside, x.dtype), axes, counted) * new["count"]
        seen = self.samples * 1
        merged = [merged_samples(seen, sampled_rows(new))]
        if self._has_histogram:
            fresh = ops.cast(histogram.grid(mean, variance), "float32")
            low, high = (seen[SAMPLED_ROWS.index(name)] for name in ("low", "high"))
            found, grid = histogram.regridded(self.histogram * 1, self.grid * 1, fresh, -low, high)
            part = histogram.sampled(ops.cast(x, "float32"), axis)
            kept = None if counted is None else histogram.sampled(counted, axis)
            # What was left out weighs with what was taken.
            rows = ops.maximum(ops.cast(ops.shape(part)[0], x.dtype), 1)  # a replica may get none
            weight = entries(x, axes) / rows
            added = histogram.counts(part, grid, kept) * ops.cast(weight, "float32")
            merged += [grid, found + added]
        return merged

    def read(self):
        """What was recorded, a `dict` of arrays with one entry per channel, and the histograms.

        Returns:
            `(rows, parts)`, or `None` before the first training step: `rows` from the names of
            `STEP_ROWS` and `SAMPLED_ROWS`, those of the moments of every step with `step_` before
            them, and `"clock"`; `parts` a list of `(grid, histogram)`, one for each replica.
        """
        variables = [self.clock, self.totals, self.samples, self.grid, self.histogram]
        variables += [self.waiting] if self.each_step else []
        copies = list(zip(*(backend.replicas(v) for v in variables), strict=True))
        clock = copies[0][0]
        if clock[1] == 0:
            return None
        totals = samples = None
        for _, own, sampled, _, _, *waiting in copies:
            if waiting:
                number = (clock[1] - 1) % self.cycle + 1
                with np.errstate(all="ignore"):  # NaN and infinity are what may be found
                    rows = of_steps(waiting[0][:number], clock[0] - number, self.epsilon, NUMPY)
                    own = merged_steps(own, rows, NUMPY)
            with np.errstate(all="ignore"):
                totals = own if totals is None else merged_steps(totals, own, NUMPY)
                new = sampled if samples is None else merged_samples(samples, sampled, NUMPY)
            samples = new
        rows = dict(zip(SAMPLED_ROWS, samples, strict=True))
        for name, row in zip(STEP_ROWS, totals, strict=True):
            rows[f"step_{name}" if name in MOMENTS else name] = row
        return {"clock": clock, **rows}, [copy[3:5] for copy in copies]

    def reset(self):
        """Begin a new reading."""
        for variable in self.variables:
            if variable is not self.clock:
                variable.assign(np.zeros(variable.shape, variable.dtype))
        total = int(ops.convert_to_numpy(self.clock)[0])
        self.clock.assign(np.array([total, 0], "int32"))
