"""What a study of batch sizes gives."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np

from keras_regtools.tuner.study_analysis import analysed, knee, paired, sentences
from keras_regtools.tuner.study_trials import MEASURED

if TYPE_CHECKING:
    import pandas as pd


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class BatchSizes:
    """Result of `BatchSizeStudy.run`.

    Attributes:
        trials: DataFrame with a row for each training: its settings, the losses on training and
            validation data without penalties, `accuracy` on the latter, `gap`, `sharpness`
            (Keskar's), `noise_scale`, `distance` from the start, `steps` and `seconds`.
        table: DataFrame with a row for each batch size: the best rate with its interval, and the
            means of the trials at the rate that was best of those tried; `steps_to_target` and
            `seconds_to_target` to the end of the epoch in which the target is reached.
        rules: DataFrame: by `rule` and `batch_size` the `rate` that it gives from the best of the
            smallest batch, and `excess`, how much the validation loss there is above that at the
            best rate; NaN outside of the rates that were tried.
        exponent, exponent_interval: Of log best rate on log batch size.
        knee: The smallest batch size with nine tenths of the most samples per second.
        target: The validation loss that counts as reached.
        sentences: Tuple of a sentence for each claim, with its numbers.
        curves: Dict by batch size: the mean validation loss of each epoch at the best tried rate.
    """

    trials: pd.DataFrame
    table: pd.DataFrame
    rules: pd.DataFrame
    exponent: float
    exponent_interval: tuple
    knee: int
    target: float
    sentences: tuple
    curves: dict

    def __repr__(self):
        low, high = self.exponent_interval
        return (
            f"BatchSizes({len(self.table)} sizes, {len(self.trials)} trials, exponent "
            f"{self.exponent:.3g} ({low:.3g} to {high:.3g}), knee {self.knee})"
        )


def result_of(rows, rules, target):
    import pandas as pd

    curves = {i: row.pop("curve") for i, row in enumerate(rows)}
    spent = {i: row.pop("epoch_seconds") for i, row in enumerate(rows)}
    trials = pd.DataFrame(rows)
    sizes, rates = (np.array(sorted(trials[n].unique())) for n in ("batch_size", "learning_rate"))
    ordered = trials.sort_values(["batch_size", "learning_rate", "seed"])
    losses = ordered["val_loss"].fillna(math.inf).to_numpy()
    losses = losses.reshape(len(sizes), len(rates), -1)
    found = analysed(sizes, rates, losses, rules)
    chosen, by_size = {}, []
    for i, size in enumerate(sizes):
        tried = int(np.argmin(losses[i].mean(axis=1)))
        own = trials[(trials["batch_size"] == size) & (trials["learning_rate"] == rates[tried])]
        chosen[int(size)] = (own, losses[i, tried])
        speed = np.median([_speed(spent[j], row) for j, row in own.iterrows()])
        by_size.append(
            {
                "batch_size": int(size),
                "best_rate": found["best"][i],
                "low": found["low"][i],
                "high": found["high"][i],
                "at_edge": bool(found["edge"][i]),
                "tried_rate": float(rates[tried]),
                **{name: own[name].mean() for name in MEASURED},
                "samples_per_second": float(speed),
            }  # fmt: skip
        )
    means = {
        size: np.mean([curves[j] for j in own.index], axis=0)
        for size, (own, _) in chosen.items()
        if len({len(curves[j]) for j in own.index}) == 1
    }
    if target is None:
        target = max((float(np.min(curve)) for curve in means.values()), default=math.nan)
    for row in by_size:
        own, _ = chosen[row["batch_size"]]
        row |= _to_target(means.get(row["batch_size"]), own, spent, target)
    table = pd.DataFrame(by_size)
    last, first = (chosen[int(size)][1] for size in (sizes[-1], sizes[0]))
    with np.errstate(invalid="ignore"):
        apart = paired(last - first)
    judged = [
        {"rule": rule, "batch_size": int(size), "rate": float(rate), "excess": float(excess)}
        for rule, values in found["rules"].items()
        for size, (rate, excess) in zip(sizes, values, strict=True)
    ]
    return BatchSizes(
        trials=trials,
        table=table,
        rules=pd.DataFrame(judged),
        exponent=found["exponent"],
        exponent_interval=found["exponent_interval"],
        knee=knee(table["batch_size"], table["samples_per_second"].to_numpy()),
        target=float(target),
        sentences=sentences(table, found, apart, target),
        curves={size: curve.tolist() for size, curve in means.items()},
    )


def _speed(seconds, row):
    """Samples per second, of the epochs behind the first one, which may compile."""
    usual = seconds[1:] or seconds
    return row["samples"] / float(np.median(usual)) if usual else math.nan


def _to_target(curve, own, spent, target):
    if (
        curve is None
        or not math.isfinite(target)
        or not (np.asarray(curve) <= target * (1 + 1e-9)).any()
    ):
        return {"steps_to_target": math.nan, "seconds_to_target": math.nan}
    epochs = int(np.argmax(np.asarray(curve) <= target * (1 + 1e-9))) + 1
    each = np.median([np.median(spent[j][1:] or spent[j]) for j in own.index])
    steps = int(own["steps_per_epoch"].iloc[0])
    return {"steps_to_target": float(epochs * steps), "seconds_to_target": float(epochs * each)}
