"""All recorded statistics: a new one is a class in this folder and a place in this list."""

from keras_regtools.layers.statistics.entries import (
    AbsoluteMean,
    ConstantShare,
    Dead,
    Maximum,
    Minimum,
    Percentiles,
    SaturatedShare,
    ZeroShare,
)
from keras_regtools.layers.statistics.moments import (
    BatchMean,
    BatchVariance,
    Kurtosis,
    Mean,
    MeanDistance,
    Skewness,
    StdDistance,
    Variance,
)
from keras_regtools.layers.statistics.not_finite import FirstNanStep, NanCount, NanSteps
from keras_regtools.layers.statistics.readings import (
    AbsGamma,
    Beta,
    MeanDrift,
    PercentileDrift,
)

STATISTICS = {  # by name, in the order of readings
    statistic.name: statistic
    for statistic in (
        BatchMean(),
        BatchVariance(),
        Mean(),
        Variance(),
        MeanDistance(),
        StdDistance(),
        Skewness(),
        Kurtosis(),
        Minimum(),
        Maximum(),
        Percentiles(),
        ZeroShare(),
        AbsoluteMean(),
        ConstantShare(),
        Dead(),
        SaturatedShare(),
        MeanDrift(),
        PercentileDrift(),
        AbsGamma(),
        Beta(),
        NanSteps(),
        NanCount(),
        FirstNanStep(),
    )
}

LOGGED = tuple(statistic.logged for statistic in STATISTICS.values() if statistic.logged)


def of_layer(values):
    """The numbers of a layer by name, from a reading: its arrays by channel."""
    found = {}
    for statistic in STATISTICS.values():
        own = {name: value for name, value in values.items() if statistic.owns(name)}
        if own:
            found |= statistic.of_layer(own)
    return found


def made_for(names):
    """The statistics whose rows a step makes where these are wanted, in order."""
    wanted, waiting = set(), [*names, *(n for n, s in STATISTICS.items() if not s.chosen)]
    while waiting:
        name = waiting.pop()
        if name not in wanted:
            wanted.add(name)
            waiting += STATISTICS[name].needs
    return [statistic for name, statistic in STATISTICS.items() if name in wanted]
