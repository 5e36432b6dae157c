"""Statistics that only a reading makes: against the last one, and of the layer's own weights."""

import numpy as np
from keras import ops

from keras_regtools.forward.moments import stands_still
from keras_regtools.layers.statistics.base import Statistic


class MeanDrift(Statistic):
    name = "mean_drift"
    formula = "\\|μ − μ'\\| / σ' against the last reading"
    meaning = "internal covariate shift as Ioffe and Szegedy meant it"

    def read(self, reading):
        last = reading.last
        if last is None:
            return {}
        return {self.name: _in_units(reading.moment("mean") - last["mean"], last)}


class PercentileDrift(Statistic):
    name = "percentile_drift"
    formula = "mean of \\|p − p'\\| / σ' over the percentiles"
    meaning = "the same for the whole distribution"
    needs = ("percentiles",)

    def read(self, reading):
        last, now = reading.last, reading.percentiles
        known = [name for name in now if last is not None and name in last]
        gaps = [_in_units(now[name] - last[name], last) for name in known]
        return {self.name: np.mean(gaps, axis=0)} if gaps else {}


class AbsGamma(Statistic):
    name = "abs_gamma"
    formula = "\\|γ\\|, as it is now"
    meaning = "a small \\|γ\\| switches the channel off"
    of_batch_norm = True

    def read(self, reading):
        gamma = _weight(reading, "gamma")
        return {} if gamma is None else {self.name: np.abs(gamma)}


class Beta(Statistic):
    name = "beta"
    formula = "β, as it is now"
    meaning = "where the normalized channel is moved to"
    of_batch_norm = True

    def read(self, reading):
        beta = _weight(reading, "beta")
        return {} if beta is None else {self.name: beta}


def _weight(reading, name):
    """The layer's own variable of the recorded channels, an array, if it has one."""
    variable, channels = getattr(reading.layer, name, None), reading.spec.channels
    if variable is None:
        return None
    value = np.array(ops.convert_to_numpy(variable), "float32")
    return value if channels is None else value[list(channels)]


def _in_units(gap, last):
    """|gap| in standard deviations of the last reading; if there were none, 0 or infinite."""
    mean, variance = last["mean"], last["variance"]
    still = stands_still(mean, variance)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        nothing = stands_still(mean, np.square(gap))
        units = np.abs(gap) / np.where(still, 0, np.sqrt(variance))
    return np.where(still & nothing, 0.0, units).astype("float32")
