"""KerasTuner and Optuna searches over everything that regularizes a model."""

from keras_regtools.search import (
    findings,
    importance,
    marginal,
    of_winners,
    pareto,
    rank_correlations,
    table,
)
from keras_regtools.tuner.augmented import AugmentedBatches
from keras_regtools.tuner.batch_size_study import BatchSizes, BatchSizeStudy
from keras_regtools.tuner.confirm import confirm, cost_of_tying
from keras_regtools.tuner.confirmation import Confirmation
from keras_regtools.tuner.hypermodel import RegularizationHyperModel
from keras_regtools.tuner.optuna_objective import optuna_objective
from keras_regtools.tuner.trial_rate import BestEpoch, TrialRate
from keras_regtools.tuner.values import optional
from keras_regtools.tuner.workers import is_chief, run_workers

__all__ = [
    "AugmentedBatches",
    "BatchSizeStudy",
    "BatchSizes",
    "BestEpoch",
    "Confirmation",
    "RegularizationHyperModel",
    "TrialRate",
    "confirm",
    "cost_of_tying",
    "findings",
    "importance",
    "is_chief",
    "marginal",
    "of_winners",
    "optional",
    "optuna_objective",
    "pareto",
    "rank_correlations",
    "run_workers",
    "table",
]


def __dir__():
    return __all__
