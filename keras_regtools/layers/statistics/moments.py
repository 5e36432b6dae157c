"""Moments: of all entries, of the batches, and against the moving statistics."""

import numpy as np

from keras_regtools.layers.statistics.base import MOMENTS, SUM, Statistic


class BatchMean(Statistic):
    name = "batch_mean"
    formula = "(1/T) Σ μ_t"
    meaning = "the mean, each batch counted once"
    step_rows = {"batch_mean": SUM}

    def of_steps(self, steps, ops):
        return {"batch_mean": steps.mean}

    def read(self, reading):
        return {self.name: reading.per_step(self.name)}

    def of_layer(self, values):
        return {}


class BatchVariance(Statistic):
    name = "batch_variance"
    formula = "(1/T) Σ σ²_t"
    meaning = "what batch normalization divides by; near zero, the channel carries nothing"
    step_rows = {"batch_variance": SUM}

    def of_steps(self, steps, ops):
        return {"batch_variance": steps.variance}

    def read(self, reading):
        return {self.name: reading.per_step(self.name)}

    def of_layer(self, values):
        return {}


class Mean(Statistic):
    name = "mean"
    formula = "μ of all entries of all steps"
    meaning = "where the channel lies; pooled exactly, whatever the sizes of the batches"

    def read(self, reading):
        return {"mean": reading.moment("mean")}


class Variance(Statistic):
    name = "variance"
    formula = "σ² of all entries of all steps"
    meaning = "how wide the channel is"

    def read(self, reading):
        return {"variance": reading.moment("variance")}

    def of_layer(self, values):
        return {"std": np.sqrt(np.mean(values["variance"]))}


class MeanDistance(Statistic):
    name = "mean_distance"
    formula = "(1/T) Σ \\|μ_t − m_t\\| / √(v_t + ε)"
    meaning = "how far training is from what inference will use, in moving standard deviations"
    logged, of_batch_norm = "mean_distance", True
    step_rows = {"mean_distance": SUM}

    def of_steps(self, steps, ops):
        return {"mean_distance": ops.abs(steps.mean - steps.moving_mean) / steps.moving_std}

    def read(self, reading):
        return {self.name: reading.per_step(self.name)}


class StdDistance(Statistic):
    name = "std_distance"
    formula = "(1/T) Σ \\|σ_t − √(v_t + ε)\\| / √(v_t + ε)"
    meaning = "the same for the width"
    logged, of_batch_norm = "std_distance", True
    step_rows = {"std_distance": SUM}

    def of_steps(self, steps, ops):
        apart = ops.abs(ops.sqrt(steps.variance) - steps.moving_std) / steps.moving_std
        return {"std_distance": ops.where(steps.made, apart, 0.0)}

    def read(self, reading):
        return {self.name: reading.per_step(self.name)}


class Skewness(Statistic):
    name = "skewness"
    formula = "E[z³], z = (x − μ)/σ"
    meaning = "0 for a normal distribution"
    needs = ("minimum", "maximum")
    sampled_rows = {"skewness": MOMENTS}

    def of_entries(self, seen):
        return {"skewness": seen.shape[0]}

    def read(self, reading):  # of a channel that stands still there is no shape
        value = np.where(reading.stands_still, np.nan, reading.sampled["skewness"])
        return {self.name: reading.sampled_only(value)}

    def of_layer(self, values):
        return _known(values)


class Kurtosis(Statistic):
    name = "kurtosis"
    formula = "E[z⁴] − 3"
    meaning = "0 for a normal distribution"
    needs = ("skewness", "minimum", "maximum")  # it is pooled with the skewness
    sampled_rows = {"kurtosis": MOMENTS}

    def of_entries(self, seen):
        return {"kurtosis": seen.shape[1]}

    def read(self, reading):
        value = np.where(reading.stands_still, np.nan, reading.sampled["kurtosis"] - 3)
        return {self.name: reading.sampled_only(value)}

    def of_layer(self, values):
        return _known(values)


def _known(values):
    """The mean over the channels that have it; nothing where none has."""
    known = {name: value[~np.isnan(value)] for name, value in values.items()}
    return {name: value.mean() for name, value in known.items() if len(value)}
