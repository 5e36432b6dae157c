"""What fresh seeds and unseen data say of the winners of a search."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


@dataclasses.dataclass(frozen=True)
class Confirmation:
    """Candidates on fresh seeds and on data that no trial saw.

    Attributes:
        table: A row for each candidate: `candidate`, `trial`, `test_loss` with `low` and `high`
            (95 %, Student's t), `test_accuracy`, `difference` to the baseline of the test loss,
            paired by seed, with `difference_low` and `difference_high`, `val_loss` on the fresh
            seeds, and `searched`, the objective that the search saw.
        runs: A row for each candidate and seed.
        baseline: The candidate that the others are compared with.
        objective: Of the search.
        trials: How many there were in it.
    """

    table: pd.DataFrame
    runs: pd.DataFrame
    baseline: str
    objective: str
    trials: int

    @property
    def seeds(self) -> list[int]:
        """The fresh seeds."""
        return sorted(set(self.runs["seed"]))

    @property
    def findings(self) -> list[str]:
        """What is found, in sentences."""
        first = self.table.iloc[0]
        found = [_against(first, self.baseline, len(self.seeds))]
        without = self.table[self.table["candidate"] == "without"]
        if len(without):
            paired = paired_differences(self.runs, first["candidate"], "without")
            found.append(
                "Against the same network at the same rate and batch size without its "
                f"regularization the difference is {_interval(*paired)}: {_verdict(*paired)}."
            )
        if self.objective == "val_loss" and math.isfinite(first["searched"]):
            own = self.runs[self.runs["candidate"] == first["candidate"]]["val_loss"].dropna()
            mean, low, high = mean_interval(own.to_numpy(dtype=float))
            curse = "which chance may explain"
            if low > first["searched"]:
                curse = f"the best of {self.trials} trials had luck, too (the winner's curse)"
            elif high < first["searched"]:
                curse = "it is better than it looked"
            found.append(
                f"In the search the winner had a validation loss of {first['searched']:.4f}, on "
                f"fresh seeds it has {mean:.4f} (95 %: {low:.4f} to {high:.4f}): {curse}."
            )
        lost = self.runs[self.runs["test_loss"].isna()]
        if len(lost):
            found.append(
                f"{len(lost)} of {len(self.runs)} trainings diverged and are left out: "
                f"{', '.join(sorted(set(lost['candidate'])))}."
            )
        return found

    def scalars(self) -> dict[str, float]:
        """The numbers of the first candidate, for logs."""
        first = self.table.iloc[0]
        names = ("test_loss", "test_accuracy", "difference", "difference_low", "difference_high")
        return {name: float(first[name]) for name in names}


def _against(row, baseline, seeds):
    interval = _interval(row["difference"], row["difference_low"], row["difference_high"])
    verdict = _verdict(row["difference"], row["difference_low"], row["difference_high"])
    return (
        f"{row['candidate']} has a test loss of {row['test_loss']:.4f}. Its difference to "
        f"{baseline}, over {seeds} fresh seeds, is {interval}: {verdict}."
    )


def _interval(mean, low, high):
    return f"{mean:+.4f} (95 %: {low:+.4f} to {high:+.4f})"


def _verdict(mean, low, high):
    if not math.isfinite(mean):
        return "not known"
    if high < 0:
        return "better than chance explains"
    return "worse than chance explains" if low > 0 else "no more than chance may explain"


def paired_differences(runs: Any, one: str, other: str) -> tuple[float, float, float]:
    """The mean difference of the test loss of two candidates over the seeds, and its interval."""
    wide = runs.pivot(index="seed", columns="candidate", values="test_loss")
    return mean_interval((wide[one] - wide[other]).dropna().to_numpy(dtype=float))


def mean_interval(values: Any) -> tuple[float, float, float]:
    """A mean and its 95 % interval by Student's t.

    Example:

    >>> import numpy as np
    >>> [round(v, 4) for v in mean_interval(np.array([1.0, 2.0, 3.0]))]  # 2 ± 4.3027 · 1 / √3
    [2.0, -0.4841, 4.4841]
    """
    from scipy import stats

    count = len(values)
    if count < 2:
        mean = float(values[0]) if count else math.nan
        return mean, -math.inf if count else math.nan, math.inf if count else math.nan
    mean = float(values.mean())
    half = float(stats.t.ppf(0.975, count - 1) * values.std(ddof=1) / math.sqrt(count))
    return mean, mean - half, mean + half


def confirmation_of(
    runs: pd.DataFrame,
    baseline: str,
    trials: dict[str, str],
    searched: dict[str, float],
    objective: str,
    count: int,
) -> Confirmation:
    """A `Confirmation` of runs.

    Args:
        runs: A row for each candidate and seed, with `test_loss` and `val_loss`.
        baseline: Name of the candidate that the others are compared with.
        trials: Dict from candidates to their trials in the search.
        searched: Dict from candidates to the objective that the search saw.
        objective: Its name.
        count: Of the trials of the search.
    """
    import pandas as pd

    rows = []
    for name in dict.fromkeys(runs["candidate"]):
        own = runs[runs["candidate"] == name]
        mean, low, high = mean_interval(own["test_loss"].dropna().to_numpy(dtype=float))
        accuracy = own["test_accuracy"].mean() if "test_accuracy" in own else math.nan
        difference = paired_differences(runs, name, baseline)
        rows.append(
            {"candidate": name, "trial": trials.get(name, ""), "test_loss": mean, "low": low,
             "high": high, "test_accuracy": accuracy, "difference": difference[0],
             "difference_low": difference[1], "difference_high": difference[2],
             "val_loss": own["val_loss"].mean(), "searched": searched.get(name, math.nan)}
        )  # fmt: skip
    return Confirmation(pd.DataFrame(rows), runs, baseline, objective, count)
