"""Pictures: records or a result in, an Axes out. matplotlib comes with the first one."""

from keras_regtools.plots.batch_size import batch_size_suggestion, critical_batch_size
from keras_regtools.plots.curvature import density
from keras_regtools.plots.curves import accuracy, generalization_gap, loss, quantities
from keras_regtools.plots.landscape import contour, line, surface
from keras_regtools.plots.layers import (
    activation_ranges,
    activation_scales,
    gradient_norms,
    moving_distances,
)
from keras_regtools.plots.learning_rate import learning_rate, learning_rate_range
from keras_regtools.plots.penalties import penalties
from keras_regtools.plots.runs import runs
from keras_regtools.plots.search import (
    best_so_far,
    marginal_effect,
    parallel_coordinates,
    pareto_front,
    search,
)
from keras_regtools.plots.search_answers import confirmation, conv_against_dense, importance
from keras_regtools.plots.sharpness import sharpness
from keras_regtools.plots.study import best_rates, losses_by_rate, speed_by_batch_size
from keras_regtools.plots.weights import kernel_norms, kernel_sparsity

__all__ = [
    "accuracy",
    "activation_ranges",
    "activation_scales",
    "contour",
    "density",
    "generalization_gap",
    "gradient_norms",
    "kernel_norms",
    "kernel_sparsity",
    "batch_size_suggestion",
    "best_rates",
    "best_so_far",
    "confirmation",
    "conv_against_dense",
    "importance",
    "marginal_effect",
    "parallel_coordinates",
    "pareto_front",
    "losses_by_rate",
    "speed_by_batch_size",
    "critical_batch_size",
    "learning_rate",
    "learning_rate_range",
    "line",
    "loss",
    "moving_distances",
    "penalties",
    "quantities",
    "runs",
    "search",
    "sharpness",
    "surface",
]


def __dir__():
    return __all__
