"""The trials of a search, as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


def table(tuner: Any) -> pd.DataFrame:
    """The completed trials of a KerasTuner search, the best first.

    Args:
        tuner: A `keras_tuner.Tuner` after `search`.

    Returns:
        A pandas `DataFrame` with one row per trial: `trial`, its hyperparameters and its results.

    Raises:
        ValueError: no trial was completed.
    """
    import pandas as pd

    trials = tuner.oracle.get_best_trials(len(tuner.oracle.trials))
    rows = [
        {
            "trial": trial.trial_id,
            **trial.hyperparameters.values,
            **{name: trial.metrics.get_best_value(name) for name in trial.metrics.metrics},
        }
        for trial in trials
    ]
    if not rows:
        raise ValueError("Expected a tuner with completed trials. Received: none")
    return pd.DataFrame(rows)
