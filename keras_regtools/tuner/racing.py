"""How many seeds a trial gets: more only while it may still be the best one."""

from __future__ import annotations

import math
from typing import Any

from keras_regtools.validation import Constraint, positive_integer, several

_seed = Constraint("an integer from 0 to 2**32 - 1", lambda v: 0 <= v < 2**32, int)


def checked_seeds(seeds: Any) -> list[int] | None:
    """The seeds of each trial, or `None` for one run without a seed of its own."""
    if seeds is None:
        return None
    if isinstance(seeds, int):
        return list(range(positive_integer("seeds", seeds)))
    return list(dict.fromkeys(several("seeds", seeds, _seed)))


def half_width(runs: int, deviation: float, freedom: int, level: float = 0.95) -> float:
    """Half the interval of a mean, t · s / √n; infinite where no deviation is known.

    Args:
        runs: n.
        deviation: s, the standard deviation of single runs.
        freedom: Degrees of freedom of s.
        level: Of confidence.

    Example:

    >>> round(half_width(4, 2.0, 3), 4)  # 3.1824 · 2 / √4
    3.1824
    """
    from scipy import stats

    if freedom < 1 or not math.isfinite(deviation):
        return math.inf
    return float(stats.t.ppf(0.5 + level / 2, freedom)) * deviation / math.sqrt(runs)


def pooled(groups: list[tuple[int, float]]) -> tuple[float, int]:
    """The standard deviation of single runs over several trials, and its degrees of freedom.

    Args:
        groups: Pairs of the number of runs of a trial and their standard deviation.

    Example:

    >>> pooled([(3, 1.0), (2, 2.0)])  # √((2 · 1 + 1 · 4) / 3)
    (1.4142135623730951, 3)
    """
    freedom = sum(n - 1 for n, _ in groups if n > 1)
    if freedom < 1:
        return math.nan, 0
    return math.sqrt(sum((n - 1) * s**2 for n, s in groups if n > 1) / freedom), freedom


def goes_on(
    values: list[float], others: list[tuple[float, int, float]], direction: str = "min"
) -> bool:
    """Whether a trial needs another seed: whether its interval overlaps that of the best one.

    The deviation of single runs is taken to be the same in the better half of the trials, so that
    one run of a trial has an interval, too, once others had several. Trials that hardly learn vary
    far more, and say nothing of the good ones.

    Args:
        values: The results of its runs so far.
        others: Of each other trial the mean, the number of runs and their standard deviation.
        direction: `"min"` or `"max"`.

    Example:

    >>> others = [(1.0, 3, 0.1), (2.0, 3, 0.1)]
    >>> goes_on([1.1], others), goes_on([2.0], others)
    (True, False)
    """
    sign = 1.0 if direction == "min" else -1.0
    own = sum(values) / len(values)
    spread = math.sqrt(sum((v - own) ** 2 for v in values) / max(len(values) - 1, 1))
    better = sorted(others, key=lambda one: sign * one[0])[: (len(others) + 1) // 2]
    deviation, freedom = pooled([(len(values), spread), *((n, s) for _, n, s in better)])
    mean, runs = min(
        [(sign * own, len(values)), *((sign * m, n) for m, n, _ in others)], key=lambda one: one[0]
    )
    low = sign * own - half_width(len(values), deviation, freedom)
    return low <= mean + half_width(runs, deviation, freedom)
