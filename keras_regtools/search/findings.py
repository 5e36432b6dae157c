"""What a search found, in sentences that say how sure they are."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_regtools.search.answers import of_winners, rank_correlations
from keras_regtools.search.marginal import marginal
from keras_regtools.search.table import comparable

if TYPE_CHECKING:
    import pandas as pd

_FEW = 20  # trials, of which importance says little


def findings(table: pd.DataFrame, importance: Any = None, confirmation: Any = None) -> list[str]:
    """What a search found, in sentences: those at the top of its page.

    Args:
        table: A table of `tuner.table`, of failed trials, too.
        importance: That of `tuner.importance`, or `None`.
        confirmation: A `Confirmation`, or `None`.

    Returns:
        A list of sentences.
    """
    kept = comparable(table)
    found = [_best(table, kept), *_noise(kept), *_lost(table, kept)]
    if confirmation is not None:
        found += confirmation.findings
    else:
        found.append(
            "The best of many trials looks better than it is. `tuner.confirm` trains it again on "
            "fresh seeds, beside the plain network, and scores both on new data."
        )
    if importance is not None and len(importance):
        found += _mattered(importance)
    found += _batch_norm(kept)
    found += _measures(kept)
    return found


def _best(table, kept):
    objective = table.attrs["objective"]
    values = kept[objective].to_numpy(dtype=float)
    first = kept.iloc[0]
    return (
        f"The best of {len(kept)} trials is trial {first['trial']}, with {objective} "
        f"{first[objective]:.4g}; the median of all is {np.median(values):.4g}."
    )


def _noise(kept):
    objective = kept.attrs["objective"]
    spread = f"{objective}/sd"
    if spread not in kept or "seeds" not in kept or not (kept["seeds"] > 1).any():
        return [
            "No spread from seed to seed was recorded, so that nobody knows how much of the "
            "differences is luck: `seeds=3` says it."
        ]
    # Those that hardly learn vary far more, and say nothing of the good ones.
    several = kept.head((len(kept) + 1) // 2)
    several = several[several["seeds"] > 1]
    if not len(several):
        return []
    freedom = several["seeds"] - 1
    deviation = math.sqrt(float((freedom * several[spread] ** 2).sum() / freedom.sum()))
    error = deviation * np.sqrt(1 / kept["seeds"] + 1 / kept["seeds"].iloc[0])
    near = (kept[objective] - kept[objective].iloc[0]).abs() <= 2 * error
    others = int(near.sum()) - 1
    text = "no other trial lies" if not others else f"{others} other trials lie"
    text = "1 other trial lies" if others == 1 else text
    return [
        f"From seed to seed {objective} varies by {deviation:.3g} (standard deviation, in the "
        f"better half of the trials): {text} within two standard errors of the best."
    ]


def _lost(table, kept):
    found = []
    if "status" in table:
        failed = table[table["status"] == "failed"]
        if len(failed):
            reason = failed["reason"].iloc[0]
            found.append(f"{len(failed)} trials failed, the first one so: {reason}")
    fewer = len(table[table[table.attrs["objective"]].notna()]) - len(kept)
    if fewer > 0:
        found.append(
            f"{fewer} trials had fewer epochs than the {kept['epochs'].max():g} of those that are "
            "compared; they are in the table and in no picture."
        )
    return found


def _mattered(importance):
    trials = int(importance["trials"].iloc[0])
    sure = importance[importance["low"] > 0.05]
    told = ", ".join(
        f"{row['hyperparameter']} {row['importance']:.2f} ({row['low']:.2f} to {row['high']:.2f})"
        for _, row in (sure if len(sure) else importance).head(3).iterrows()
    )
    if not len(sure):
        return [f"{trials} trials do not show which hyperparameter mattered: {told}."]
    few = " Of so few trials these are first hints." if trials < _FEW else ""
    return [f"What mattered (importance with its 95 % interval): {told}.{few}"]


def _batch_norm(kept):
    if "batch_norm" not in kept or set(kept["batch_norm"]) != {True, False}:
        return []
    found = []
    objective = kept.attrs["objective"]
    means = marginal(kept, "batch_norm").set_index("part")
    if not means[["mean_low", "mean_high"]].isna().any(axis=None):
        without, with_it = means.loc[False], means.loc[True]
        apart = without["mean_low"] > with_it["mean_high"] or (
            with_it["mean_low"] > without["mean_high"]
        )
        say = "their intervals are apart" if apart else "their intervals overlap"
        found.append(
            f"Over all trials {objective} is {with_it['mean']:.4g} with batch normalization and "
            f"{without['mean']:.4g} without: {say}."
        )
    if min((kept["batch_norm"] == flag).sum() for flag in (True, False)) < 8:
        return found
    winners = of_winners(kept)
    winners = winners[winners["hyperparameter"].str.endswith(("dropout", "l2)"))]
    sure = winners[(winners["low"] > 0) | (winners["high"] < 0)]
    found += [
        f"The best quarter with batch normalization has {row['hyperparameter']} "
        f"{row['with']:.3g}, that without {row['without']:.3g} (difference "
        f"{row['difference']:+.2g}, 95 %: {row['low']:+.2g} to {row['high']:+.2g})."
        for _, row in sure.iterrows()
    ]
    if len(winners) > len(sure):
        rest = winners.drop(sure.index)["hyperparameter"]
        found.append(
            "Whether the best trials with batch normalization want more or less "
            f"{', '.join(rest)} than those without, these trials do not show."
        )
    return found


_KNOWN = {"val_loss", "loss", "generalization_gap", "generalization_ratio", "epochs", "seconds"}


def _measures(kept):
    if "generalization_gap" not in kept or len(kept) < 8:
        return []
    found = rank_correlations(kept, resamples=200)
    known = found["result"].map(lambda n: n in _KNOWN or n.startswith(("val_", "measuring")))
    found = found[~known & (found["result"] != "seeds")]
    return [
        f"Kendall's τ of {row['result']} with the generalization gap is {row['tau']:+.2f} "
        f"({row['low']:+.2f} to {row['high']:+.2f})."
        for _, row in found.head(2).iterrows()
    ]
