"""Measures: a function of a `LossSurface`, a result that carries its doubt."""

from keras_regtools.measures.asam import asam_sharpness
from keras_regtools.measures.average_case import AverageSharpness, average_sharpness
from keras_regtools.measures.covariate_shift import (
    InternalCovariateShift,
    internal_covariate_shift,
)
from keras_regtools.measures.critical_batch_size import CriticalBatchSize, critical_batch_size
from keras_regtools.measures.density import HessianDensity, hessian_density
from keras_regtools.measures.distribution_shift import DistributionShift, distribution_shift
from keras_regtools.measures.eigenvalues import HessianEigenvalues, hessian_eigenvalues
from keras_regtools.measures.fisher_rao import FisherRaoNorm, fisher_rao_norm
from keras_regtools.measures.gradient_flow import GradientFlow, gradient_flow
from keras_regtools.measures.gradient_noise_scale import (
    GradientNoiseScale,
    gradient_noise_scale,
)
from keras_regtools.measures.gradient_share import GradientShare, gradient_share
from keras_regtools.measures.keskar import KeskarSharpness, keskar_sharpness
from keras_regtools.measures.normalization_noise import NormalizationNoise, normalization_noise
from keras_regtools.measures.pac_bayes import PACBayesSharpness, pac_bayes_sharpness
from keras_regtools.measures.recalibrated import RecalibratedLoss, recalibrated_loss
from keras_regtools.measures.relative_flatness import RelativeFlatness, relative_flatness
from keras_regtools.measures.result import Result
from keras_regtools.measures.sam import SAMSharpness, sam_sharpness
from keras_regtools.measures.smoothness import GradientSmoothness, gradient_smoothness
from keras_regtools.measures.sweeps import Table, by_checkpoint, by_layer
from keras_regtools.measures.trace import HessianTrace, hessian_trace
from keras_regtools.measures.weight_distance import weight_distance
from keras_regtools.measures.weight_norm import weight_norm
from keras_regtools.measures.weights import WeightDistance
from keras_regtools.measures.worst_case import WorstSharpness, worst_sharpness

__all__ = [
    "NormalizationNoise",
    "normalization_noise",
    "AverageSharpness",
    "CriticalBatchSize",
    "DistributionShift",
    "FisherRaoNorm",
    "GradientFlow",
    "GradientNoiseScale",
    "GradientShare",
    "GradientSmoothness",
    "HessianDensity",
    "HessianEigenvalues",
    "HessianTrace",
    "InternalCovariateShift",
    "KeskarSharpness",
    "PACBayesSharpness",
    "RecalibratedLoss",
    "RelativeFlatness",
    "Result",
    "SAMSharpness",
    "Table",
    "WeightDistance",
    "WorstSharpness",
    "asam_sharpness",
    "average_sharpness",
    "by_checkpoint",
    "by_layer",
    "critical_batch_size",
    "distribution_shift",
    "fisher_rao_norm",
    "gradient_flow",
    "gradient_noise_scale",
    "gradient_share",
    "gradient_smoothness",
    "hessian_density",
    "hessian_eigenvalues",
    "hessian_trace",
    "internal_covariate_shift",
    "keskar_sharpness",
    "pac_bayes_sharpness",
    "recalibrated_loss",
    "relative_flatness",
    "sam_sharpness",
    "weight_distance",
    "weight_norm",
    "worst_sharpness",
]


def __dir__():
    return __all__
