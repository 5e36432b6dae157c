"""NaN and infinity: on how many steps, how many, and where they began."""

import numpy as np
from keras import ops

from keras_regtools import backend
from keras_regtools.layers.statistics.base import FIRST, SUM, Statistic


class NanSteps(Statistic):
    name = "nan_steps"
    formula = "steps with NaN or infinity"
    meaning = "how often"
    chosen = False
    step_rows = {"nan_steps": SUM}

    def of_steps(self, steps, ops):
        return {"nan_steps": 1.0 - ops.cast(steps.finite, "float32")}

    def read(self, reading):
        return {self.name: reading.steps[self.name].astype("int64")}

    def of_layer(self, values):
        return {self.name: np.max(values[self.name])}


class NanCount(Statistic):
    name = "nan_count"
    formula = "entries that are NaN or infinite, in the sampled steps"
    meaning = "how many"
    chosen = False
    sampled_rows = {"nan_count": SUM}

    def of_entries(self, seen):
        def number():
            bad = ops.logical_not(ops.isfinite(seen.x))
            bad = bad if seen.counted is None else ops.logical_and(bad, seen.counted)
            return ops.sum(ops.cast(bad, seen.x.dtype), axis=seen.axes)

        # A mean that is finite is the mean of finite entries; only others are looked at.
        known = ops.all(ops.isfinite(seen.mean))
        return {"nan_count": backend.cond(known, lambda: ops.zeros_like(seen.mean), number)}

    def read(self, reading):
        return {self.name: reading.sampled[self.name].astype("int64")}

    def of_layer(self, values):
        return {}


class FirstNanStep(Statistic):
    name = "first_nan_step"
    formula = "the first such step of the layer, from 0 on, or −1"
    meaning = "where it began"
    chosen = False
    step_rows = {"first_nan": FIRST}  # counted from 1; 0 for none

    def of_steps(self, steps, ops):
        return {"first_nan": ops.where(steps.finite, np.inf, steps.number)}

    def read(self, reading):
        return {self.name: reading.steps["first_nan"].astype("int64") - 1}

    def of_layer(self, values):
        seen = values[self.name]
        return {self.name: min(seen[seen >= 0], default=-1)}
