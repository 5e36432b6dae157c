"""Internal: the records of a run, in the order in which they were made."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from keras_regtools.records.files import RecordsFile

if TYPE_CHECKING:
    import pandas as pd


class Record(NamedTuple):
    """One value of one quantity: a float, or a list of floats with one entry per channel."""

    epoch: int
    step: int
    name: str
    value: float | list


class Records:
    """The records of one run, in the order in which they were made.

    Example:

    >>> records = Records()
    >>> records.add(0, 45, {"loss": 0.5, "learning_rate": 0.1})
    >>> records.series("loss")
    ([0], [0.5])
    """

    def __init__(self, rows: Sequence[Sequence[Any]] = ()) -> None:
        self.rows = [Record(*row) for row in rows]
        self.claims = set()  # what a callback of this run already takes care of
        self.earlier = {}  # what the callbacks of a run that goes on had kept
        self._kept, self._sinks = {}, []

    def __repr__(self):
        epochs = len({row.epoch for row in self.rows})
        return f"Records({len(self.rows):,} of {len(self.names())} quantities in {epochs} epochs)"

    def _repr_html_(self):
        return self.to_frame().to_html(max_rows=20)

    def add(self, epoch: int, step: int, values: Mapping[str, Any]) -> None:
        """Add one record for each number of the dict `values`; what is no number is left out."""
        plain = {name: _plain(value) for name, value in values.items()}
        new = [Record(int(epoch), int(step), n, v) for n, v in plain.items() if v is not None]
        self.rows.extend(new)
        self._tell(lambda sink: sink.append(new))

    def keep(self, name: str, value: Any) -> None:
        """Keep what a callback must know to go on in another process, beside the records.

        Args:
            name: The callback's name.
            value: What JSON can hold, or a list of arrays.
        """
        self._kept[name] = value
        self._tell(lambda sink: sink.keep(name, value))

    def write_to(self, path: str | os.PathLike[str]) -> None:
        """Write all records to the file `path` now and every later one as it comes."""
        self.sink_into(RecordsFile(path))

    def sink_into(self, sink: Any) -> None:
        """Give a sink all records now and every later one as it comes.

        Args:
            sink: Has `begin(rows)`, `append(rows)` and `keep(name, value)`.
        """
        sink.begin(self.rows)
        for name, value in self._kept.items():
            sink.keep(name, value)
        self._sinks.append(sink)

    def add_writer(self, writer: Any) -> None:
        """Give a writer all records now and every later one as it comes.

        It is the interface to experiment trackers: those of `keras_regtools.trackers`, or an object
        of yours. `callbacks.Report(writers=[…])` adds writers to the records of a fit, and calls
        what else they have: `begin(run)` with a dict of what the run is, `picture(name, png, step)`
        with each picture as the bytes of a PNG file, `end()`.

        Args:
            writer: Has a method `write(rows)`, which takes a list of `Record`s.

        Raises:
            TypeError: something without `write`.

        Example:

        >>> class Printer:
        ...     def write(self, rows):
        ...         print([(row.step, row.name, row.value) for row in rows])
        >>> records = Records([(0, 45, "loss", 0.5)])
        >>> records.add_writer(Printer())
        [(45, 'loss', 0.5)]
        >>> records.add(1, 90, {"loss": 0.25})
        [(90, 'loss', 0.25)]
        """
        refuse_no_writer(writer)
        self.sink_into(Writing(writer))

    def leave(self, sink: Any) -> None:
        """Write no longer into a sink."""
        self._sinks = [other for other in self._sinks if other is not sink]

    def _tell(self, what):
        for sink in self._sinks:
            what(sink)

    def names(self) -> list[str]:
        """The names of the recorded quantities, in the order of their first record."""
        return list(dict.fromkeys(row.name for row in self.rows))

    def series(self, name: str, by: str = "epoch") -> tuple[list[int], list[Any]]:
        """`(epochs, values)` of one quantity, the last value of each epoch (or of each step)."""
        latest = {getattr(row, by): row.value for row in self.rows if row.name == name}
        keys = sorted(latest)
        return keys, [latest[key] for key in keys]

    def last(self, name: str, default: float = math.nan) -> Any:
        """The newest value of a quantity."""
        values = self.series(name)[1]
        return values[-1] if values else default

    def to_frame(self) -> pd.DataFrame:
        """A pandas `DataFrame` with the columns epoch, step, name and value."""
        import pandas as pd

        return pd.DataFrame(self.rows, columns=Record._fields)


def of_run(params: Any) -> Records:
    """The records shared by all callbacks of one fit.

    Keras gives the callbacks of a fit one and the same `params` dict, whatever their order, and a
    new one for every fit. That dict is the one thing they share, so it carries the records.
    """
    return params.setdefault("keras_regtools_records", Records())


def _plain(value):
    """A float, or a list of floats; `None` for what is no number."""
    try:
        value = np.asarray(value)
        if value.dtype.kind in "US":
            return None
        return float(value) if value.ndim == 0 else [float(v) for v in value.ravel()]
    except (TypeError, ValueError):
        return None


class Writing:
    """A writer as a sink of records.

    Args:
        writer: Has `write(rows)`.
    """

    def __init__(self, writer: Any) -> None:
        self.writer = writer

    def begin(self, rows: list[Record]) -> None:
        if rows:
            self.writer.write(list(rows))

    append = begin

    def keep(self, name: str, value: Any) -> None:
        """What callbacks must know is not for writers."""


def refuse_no_writer(writer: Any) -> None:
    """Raise if an object has no method `write`."""
    if isinstance(writer, type) or not callable(getattr(writer, "write", None)):
        raise TypeError(
            "Expected a writer, an object with a method `write(rows)`, as `trackers.TensorBoard`. "
            f"Received: {writer!r} (of type {type(writer)})"
        )
