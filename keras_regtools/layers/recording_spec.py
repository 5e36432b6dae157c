"""What can be recorded of what flows through a layer, and which arguments say it."""

import math

from keras_regtools.layers.statistics import STATISTICS
from keras_regtools.validation import one_of, positive_integer

QUANTITIES = tuple(name for name, statistic in STATISTICS.items() if statistic.chosen)

_RANGE = 0.95  # of the range of a bounded activation; what lies beyond is saturated
_RECTIFIERS = ("relu", "relu6")
_LOGIT = math.log((1 + _RANGE) / (1 - _RANGE))
# By activation: where its input, and where its output, is saturated (below, above).
_BOUNDED = {
    "sigmoid": ((-_LOGIT, _LOGIT), (0.5 - _RANGE / 2, 0.5 + _RANGE / 2)),
    "tanh": ((-_LOGIT / 2, _LOGIT / 2), (-_RANGE, _RANGE)),
    "hard_sigmoid": ((-3 * _RANGE, 3 * _RANGE), (0.5 - _RANGE / 2, 0.5 + _RANGE / 2)),
    "hard_tanh": ((-_RANGE, _RANGE), (-_RANGE, _RANGE)),
    "softsign": ((-_RANGE / (1 - _RANGE), _RANGE / (1 - _RANGE)), (-_RANGE, _RANGE)),
}
ACTIVATIONS = (*_RECTIFIERS, *_BOUNDED)


class RecordingSpec:
    """The arguments that say what a layer records; each is checked.

    Args:
        record: Names of `QUANTITIES`, or `None` for all.
        record_every: The costlier ones are recorded on every so many training steps.
        record_channels: Indices of the channels to record, or `None` for all.
        percentiles: Numbers between 0 and 100.
        before, after: The activation that follows what is recorded, or that gave it: a name of
            `ACTIVATIONS` or any other, which says nothing.
    """

    def __init__(self, record, record_every, record_channels, percentiles, before=None, after=None):
        self.every = positive_integer("record_every", record_every)
        self.names = QUANTITIES if record is None else _names(record)
        self.channels = None if record_channels is None else _channels(record_channels)
        self.percentiles = _percentiles(percentiles)
        self.before, self.after = _activation("before", before), _activation("after", after)
        if before is not None and after is not None:
            raise ValueError(
                "Expected one of `before` and `after`. "
                f"Received: before={before!r}, after={after!r}"
            )
        self._given = {
            "record": None if record is None else list(self.names),
            "record_every": self.every,
            "record_channels": None if self.channels is None else list(self.channels),
            "percentiles": list(self.percentiles),
        }

    def config(self):
        """The arguments, as they are saved."""
        return dict(self._given)

    def any_of(self, *names):
        return any(name in self.names for name in names)

    @property
    def rectified(self):
        """Whether a ReLU follows, which makes a zero of all that is not above it."""
        return self.before in _RECTIFIERS

    @property
    def can_be_dead(self):
        """Whether a channel that is never above zero says nothing: not with other activations."""
        known = self.before or self.after
        return known is None or known in _RECTIFIERS

    @property
    def saturation(self):
        """Below and above which values a unit is saturated, or `None`."""
        return saturation_of(self.before, self.after)


def saturation_of(before=None, after=None):
    """Below and above which values the input or the output of an activation is saturated."""
    if before in _BOUNDED:
        return _BOUNDED[before][0]
    return _BOUNDED[after][1] if after in _BOUNDED else None


def _names(record):
    if not isinstance(record, (list, tuple)):
        raise ValueError(
            f"Argument `record` must be a list of names or `None`. Received: record={record!r}"
        )
    names = tuple(one_of("record", name, QUANTITIES) for name in record)
    return tuple(name for name in QUANTITIES if name in names)


def _channels(channels):
    try:
        found = tuple(int(c) for c in channels if int(c) == c and c >= 0)
        fits = len(set(found)) == len(list(channels)) > 0
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise ValueError(
            "Argument `record_channels` must be `None` or different indices of channels, 0 or "
            f"above. Received: record_channels={channels!r}"
        )
    return found


def _percentiles(percentiles):
    try:
        found = tuple(float(p) for p in percentiles)
        fits = (
            not isinstance(percentiles, str)
            and all(0 < p < 100 for p in found)
            and list(found) == sorted(set(found))
        )
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise ValueError(
            "Argument `percentiles` must be increasing numbers between 0 and 100, both excluded. "
            f"Received: percentiles={percentiles!r}"
        )
    return found


def _activation(name, value):
    if value is not None and not isinstance(value, str):
        raise ValueError(
            f"Argument `{name}` must be the name of an activation, such as 'relu', or `None`. "
            f"Received: {name}={value!r}"
        )
    return value
