"""The recorder inside a layer: statistics of training steps, kept in the graph as hidden state."""

import dataclasses
import math
import weakref

import keras
import numpy as np
from keras import ops

from keras_regtools import backend
from keras_regtools.forward.moments import average, broadcast_mask, moments, reduction_axes
from keras_regtools.layers import histogram
from keras_regtools.layers.accumulators import (
    NUMPY,
    SAMPLES,
    of_steps,
)
from keras_regtools.layers.accumulators import STEPS as OF_STEPS
from keras_regtools.layers.addition import SAMPLE, STEP, STEPS, Addition
from keras_regtools.layers.statistics.base import PENDING_ROWS
from keras_regtools.state import State, functional_scope

_LONGEST = 16  # the most steps that wait


class Recorder(State):
    """Per-channel statistics of a tensor over the training steps since the last reading.

    Args:
        spec: `RecordingSpec`.
        each_step: Whether moments are kept of every step, as where a layer computes them anyway,
            or of the sampled steps only: every `spec.every`-th one, beginning with the first
            after a reading, and those with NaN or infinity.
        epsilon: Of the batch normalization, added to moving variances.
    """

    def __init__(self, spec, each_step, epsilon=0.0, **kwargs):
        super().__init__(**kwargs)
        self.spec, self.each_step, self.epsilon = spec, each_step, epsilon
        self._calls = weakref.WeakKeyDictionary()  # the steps in which it was called, while traced

    def build(self, channels):
        if self.spec.channels is not None:
            if max(self.spec.channels) >= channels:
                raise ValueError(
                    f"Expected `record_channels` to be below {channels}, the number of channels. "
                    f"Received: record_channels={list(self.spec.channels)}"
                )
            channels = len(self.spec.channels)
        # Training steps in all, and since the last reading.
        self.counters = self._state("counters", (2,), "int32")
        if self.each_step:
            self.pending = self._state("pending", (self.cycle, len(PENDING_ROWS), channels))
        self.totals = self._state("totals", (len(OF_STEPS.rows), channels))
        self.samples = self._state("samples", (len(SAMPLES.rows), channels))
        self.grid = self._state("grid", (2, channels))
        bins = histogram.BINS if self._has_histogram else 0
        self.histogram = self._state("histogram", (bins, channels))
        self.built = True

    @property
    def cycle(self):
        """Steps that wait until they are added together, which costs less than one by one."""
        every = self.spec.every if self.each_step else 1
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
        return self.spec.any_of("percentiles", "percentile_drift")

    def record(self, x, axis, mask=None, reference=None, synchronized=False, signal=None):
        """Add one step.

        Args:
            x: The tensor.
            axis: The channel axis.
            mask: `None`, or a tensor of one rank less than `x`, true where entries count.
            reference: `(mean, variance)` to measure the distance to, or `None`.
            synchronized: Whether the moments are those over all replicas.
            signal: What the activation gets, where that is not `x`: a tensor, or the arguments of
                `scale_and_offset` as a dict.
        """
        x = ops.cast(x, keras.backend.result_type(x.dtype, "float32"))
        axes = reduction_axes(len(x.shape), axis)
        first = self._begins_step()
        counters = backend.after(x, ops.convert_to_tensor(self.counters) + int(first))
        if first:  # and not once more in the step that is counted already
            self.counters.assign(counters)
        number, since = ops.unstack(counters, 2)
        slot = self._place(since, self.cycle if self.each_step else self.spec.every)
        due = ops.equal(slot, 0)
        given = {"x": x}
        if mask is not None:
            given["mask"] = mask
        if not self.each_step:
            # One pass, so that no NaN comes and goes unseen.
            finite = ops.all(ops.isfinite(average(x, axes, broadcast_mask(mask, x))))
            due = ops.logical_or(due, ops.logical_not(finite))
            addition = self._addition((STEP, SAMPLE), own_moments=True)
            self._add(due, addition, axis, {**given, "number": number})
            return

        mean, variance = moments(x, axes, mask, synchronized)
        given |= {"mean": mean, "variance": variance}
        rows = self._addition((), axis=axis).rows({**given, "reference": reference})
        if isinstance(signal, dict):
            given["affine"] = {name: t for name, t in signal.items() if t is not None}
        elif signal is not None:
            given["signal"] = signal
        if synchronized:  # what each replica has is its own part
            del given["mean"], given["variance"]
        sample = self._addition((SAMPLE,), own_moments=synchronized)
        if not first:  # a second use of the layer: of the same step, and not to wait
            own = of_steps(rows[None], number - 1, self.epsilon)
            self.totals.assign(OF_STEPS.merged(self.totals * 1, own))
            due = ops.equal(self._place(since, self.spec.every), 0)
            self._add(due, sample, axis, given)
            return
        # Those of the cycle that is over; at the first step after a reset, zeros.
        if self.cycle == self.spec.every:
            both = dataclasses.replace(sample, parts=(STEPS, SAMPLE))
            self._add(due, both, axis, {**given, "number": number})
        else:
            self._add(due, self._addition((STEPS,)), axis, {"number": number})
            due = ops.equal(self._place(since, self.spec.every), 0)
            self._add(due, sample, axis, given)
        backend.assign_row(self.pending, slot, rows, self.counters)

    def _place(self, since, every):
        """Where the step that is counted stands in a cycle of so many steps."""
        return ops.mod(since - 1, every)

    def _addition(self, parts, own_moments=False, axis=-1):
        spec = self.spec
        return Addition(
            parts,
            axis,
            None if spec.channels is None else tuple(spec.channels),
            tuple(spec.names),
            spec.rectified,
            spec.saturation,
            self.epsilon,
            own_moments,
        )

    def _add(self, due, addition, axis, given):
        axis, given = _samples_by_positions(axis, given)
        addition = dataclasses.replace(addition, axis=axis)
        names = ["totals"] if {STEP, STEPS} & {*addition.parts} else []
        if SAMPLE in addition.parts:
            names += ["samples"] + (["grid", "histogram"] if self._has_histogram else [])
        reads = ["pending"] if STEPS in addition.parts else []
        variables, others = ({n: getattr(self, n) for n in part} for part in (names, reads))
        backend.conditional_assign(due, addition, variables, others, given, self.counters)

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

    def read(self):
        """What was recorded, a `dict` of arrays with one entry per channel, and the histograms.

        Returns:
            `(counters, steps, sampled, parts)`, or `None` before the first training step: the
            steps in all and since the last reading; dicts from the rows of `accumulators.STEPS`
            and of `SAMPLES` to arrays; a list of `(grid, histogram)`, one for each replica.
        """
        variables = [self.counters, self.totals, self.samples, self.grid, self.histogram]
        variables += [self.pending] if self.each_step else []
        copies = list(zip(*(backend.replicas(v) for v in variables), strict=True))
        counters = copies[0][0]
        if counters[1] == 0:
            return None
        totals = samples = None
        for _, own, sampled, _, _, *pending in copies:
            if pending:
                number = (counters[1] - 1) % self.cycle + 1
                with np.errstate(all="ignore"):  # NaN and infinity are what may be found
                    rows = of_steps(pending[0][:number], counters[0] - number, self.epsilon, NUMPY)
                    own = OF_STEPS.merged(own, rows, NUMPY)
            with np.errstate(all="ignore"):
                totals = own if totals is None else OF_STEPS.merged(totals, own, NUMPY)
                new = sampled if samples is None else SAMPLES.merged(samples, sampled, NUMPY)
            samples = new
        rows = dict(zip(OF_STEPS.rows, totals, strict=True))
        sampled = dict(zip(SAMPLES.rows, samples, strict=True))
        return counters, rows, sampled, [copy[3:5] for copy in copies]

    def reset(self):
        """Begin a new reading."""
        total, since = (int(n) for n in ops.convert_to_numpy(self.counters))
        if not since:
            return  # all is as it was made, or as the last reset left it
        for variable in self.variables:
            if variable is not self.counters:
                variable.assign(np.zeros(variable.shape, variable.dtype))
        self.counters.assign(np.array([total, 0], "int32"))


def _samples_by_positions(axis, given):
    """The channel axis and tensors as samples, positions and channels where that costs nothing.

    Layers of different rank then have the same function.
    """
    x = given.get("x")
    if x is None or "mask" in given:
        return axis, given
    *_, channels = sizes = x.shape
    if axis % len(sizes) != len(sizes) - 1 or None in sizes[1:]:
        return axis, given
    sizes = [-1, math.prod(sizes[1:-1]), channels]
    flat = {n: ops.reshape(given[n], sizes) for n in ("x", "signal") if n in given}
    return -1, {**given, **flat}
