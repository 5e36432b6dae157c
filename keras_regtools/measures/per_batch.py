"""Measures of each batch alone, and their mean."""

import math


def parts_of(surface, m):
    """Pairs of a surface and its number of samples: all data, or batches of `m` samples."""
    if m is None:
        return [(surface, 1)]
    batches = surface.data.rebatched(m).one_by_one()
    return ((surface.over(batch), count) for batch, count in batches)


def mean(values, counts):
    """The mean of values that stand for so many samples each."""
    return sum(v * count for v, count in zip(values, counts, strict=True)) / sum(counts)


def mean_and_error(values, counts):
    """The mean and its standard error; NaN for the error of a single value."""
    middle = mean(values, counts)
    spread = mean([(v - middle) ** 2 for v in values], counts)
    return middle, math.sqrt(spread / (len(values) - 1)) if len(values) > 1 else math.nan
