"""Records of a run: one record is an epoch, a step, a name and a value.

Files hold one JSON object a line, so a run that was cut off leaves everything up to its last
epoch and any tool can read it. NaN and the infinities are written as strings, since JSON has none.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from keras_regtools import validation

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Record", "Records", "RecordsFile", "of_run", "read"]


def __dir__():
    return __all__


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


class RecordsFile:
    """A file with one record a line.

    Args:
        path: Where it is, or shall be.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = pathlib.Path(path)

    def begin(self, rows: list[Record]) -> None:
        """Write these rows in place of what there is, all of them or none."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.path, "".join(_lines(rows)))

    def append(self, rows: list[Record]) -> None:
        """Add rows at the end."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.writelines(_lines(rows))

    def keep(self, name: str, value: Any) -> None:
        """There is no place for it here."""


def write_whole(path, content):
    """Write a file so that a run that is cut off leaves the old one or the new one, whole.

    Args:
        path: A `pathlib.Path`.
        content: Text or bytes.
    """
    new = path.with_name(f".{path.name}.{os.getpid()}")
    data = content.encode("utf-8") if isinstance(content, str) else content
    try:
        with open(new, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


@validation.checked(path=validation.path)
def read(path: str | os.PathLike[str]) -> Records:
    """Read the records of a file that `Records.write_to` wrote; a torn last line is left out.

    Raises:
        ValueError: a file that holds something else.
    """
    rows = []
    try:
        lines = pathlib.Path(path).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"Expected one record a line in {path}. Received a file that is no text"
        ) from error
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            record = Record(int(row["epoch"]), int(row["step"]), row["name"], row["value"])
            if not isinstance(record.name, str):
                raise TypeError(record.name)
            rows.append(record._replace(value=_from_json(record.value)))
        except (KeyError, TypeError, ValueError) as error:
            if number < len(lines) or not _is_torn(line):
                raise ValueError(
                    f"Expected one record a line in {path}. "
                    f"Received in line {number}: {line[:80]!r}"
                ) from error
    return Records(rows)


def _is_torn(line):
    """Whether a line may be the beginning of a record: a run was cut off while it was written."""
    line = line.strip("\x00")
    return line.startswith(_BEGIN[: len(line)])


_BEGIN = '{"epoch": '


def of_run(params: Any) -> Records:
    """The records shared by all callbacks of one fit.

    Keras gives the callbacks of a fit one and the same `params` dict, whatever their order, and a
    new one for every fit. That dict is the one thing they share, so it carries the records.
    """
    return params.setdefault("keras_regtools_records", Records())


def _lines(rows):
    return [json.dumps({**row._asdict(), "value": _to_json(row.value)}) + "\n" for row in rows]


def _plain(value):
    """A float, or a list of floats; `None` for what is no number."""
    try:
        value = np.asarray(value)
        if value.dtype.kind in "US":
            return None
        return float(value) if value.ndim == 0 else [float(v) for v in value.ravel()]
    except (TypeError, ValueError):
        return None


def _to_json(value):
    if isinstance(value, list):
        return [_to_json(v) for v in value]
    return value if math.isfinite(value) else str(value)


def _from_json(value):
    return [float(v) for v in value] if isinstance(value, list) else float(value)
