"""Statistics of single entries: extremes, percentiles, shares."""

import numpy as np
from keras import ops

from keras_regtools.layers.statistics.base import LARGEST, SUM, Statistic

CONSTANT_VARIANCE = 1e-6  # ours; a variance below BN's usual ε of 1e-3 is lost in it


class Minimum(Statistic):
    name = "minimum"
    formula = "the smallest entry"
    meaning = "whether single values run away"
    sampled_rows = {"negated_minimum": LARGEST}

    def of_entries(self, seen):
        return {"negated_minimum": seen.largest(-seen.x)}

    def read(self, reading):
        return {self.name: reading.sampled_only(reading.low)}

    def of_layer(self, values):
        return {self.name: np.min(values[self.name])}


class Maximum(Statistic):
    name = "maximum"
    formula = "the largest entry"
    meaning = "whether single values run away"
    sampled_rows = {"maximum": LARGEST}

    def of_entries(self, seen):
        return {"maximum": seen.largest(seen.x)}

    def read(self, reading):
        return {self.name: reading.sampled_only(reading.high)}

    def of_layer(self, values):
        return {self.name: np.max(values[self.name])}


class Percentiles(Statistic):
    """From the histogram that a recorder keeps for it; `percentile_15` and so on."""

    name = "percentiles"
    formula = "`percentile_15` …: from a histogram of up to 2,048 entries a step"
    meaning = "the band that most values lie in; `percentiles=` chooses others"
    needs = ("minimum", "maximum")

    def owns(self, name):
        return name.startswith("percentile_") and name[11:12].isdigit()

    def read(self, reading):
        return dict(reading.percentiles)


class ZeroShare(Statistic):
    name = "zero_share"
    formula = "share of zeros; in front of a ReLU, of what it makes zero"
    meaning = "how sparse the activations are"
    sampled_rows = {"zeros": SUM}

    def of_signal(self, seen, signal, rows):
        return {"zeros": seen.number(signal.affine.zeros(signal.rectified))}

    def read(self, reading):
        return {self.name: reading.per_entry("zeros")}

    def of_layer(self, values):
        shares = values[self.name]
        return {self.name: np.mean(shares), "active_units": np.sum(1 - shares)}


class AbsoluteMean(Statistic):
    name = "absolute_mean"
    formula = "mean of \\|a\\|; in front of a ReLU or ReLU6, of max(a, 0)"
    meaning = "how large the activations are"
    sampled_rows = {"absolute": SUM}

    def of_signal(self, seen, signal, rows):
        return {"absolute": seen.total(signal.affine.absolute(signal.rectified))}

    def read(self, reading):
        return {self.name: reading.per_entry("absolute")}

    def of_layer(self, values):
        return {self.name: np.mean(values[self.name]), "absolute_sum": np.sum(values[self.name])}


class ConstantShare(Statistic):
    name = "constant_share"
    formula = "share of steps with σ²_t < 1e-6"
    meaning = "1 means: this channel says the same for every sample"
    logged = "constant_share"
    sampled_rows = {"constant": SUM}

    def of_entries(self, seen):
        return {"constant": ops.cast(seen.variance < CONSTANT_VARIANCE, seen.x.dtype)}

    def read(self, reading):
        number = np.where(reading.sampled["readings"] > 0, reading.sampled["readings"], 1)
        return {self.name: reading.sampled_only(reading.sampled["constant"] / number)}


class Dead(Statistic):
    name = "dead"
    formula = "1 where the maximum never came above zero"
    meaning = "such a ReLU passes nothing on"
    logged = "dead_share"
    needs = ("minimum", "maximum")
    sampled_rows = {"signal_maximum": LARGEST}

    def of_signal(self, seen, signal, rows):
        if signal.apart:
            return {"signal_maximum": seen.largest(signal.affine.t)}
        highest = signal.affine.highest(-rows["negated_minimum"], rows["maximum"])
        # Of no entries there is no highest.
        return {"signal_maximum": ops.where(rows["count"] > 0, highest, rows["maximum"])}

    def read(self, reading):
        if not reading.spec.can_be_dead:
            return {}
        dead = reading.sampled["signal_maximum"] <= 0
        return {self.name: reading.sampled_only(dead.astype("float32"))}

    def of_layer(self, values):
        return {f"{name}_share": np.mean(value) for name, value in values.items()}


class SaturatedShare(Statistic):
    name = "saturated_share"
    formula = "share beyond 95 % of the range of a sigmoid, tanh …"
    meaning = "such a unit learns slowly"
    logged = "saturated_share"
    sampled_rows = {"saturated": SUM}

    def of_signal(self, seen, signal, rows):
        if signal.saturation is None:
            return {}
        return {"saturated": seen.number(signal.affine.outside(*signal.saturation))}

    def read(self, reading):
        return (
            {} if reading.spec.saturation is None else {self.name: reading.per_entry("saturated")}
        )
