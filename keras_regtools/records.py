"""Records of a run: one record is an epoch, a step, a name and a value.

Files hold one JSON object a line, so a run that was cut off leaves everything up to its last
epoch and any tool can read it. NaN and the infinities are written as strings, since JSON has none.
"""

import json
import math
import pathlib
from typing import NamedTuple

import numpy as np


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

    def __init__(self, rows=()):
        self.rows = [Record(*row) for row in rows]
        self.claims = set()  # what a callback of this run already takes care of
        self._path = None

    def add(self, epoch, step, values):
        """Add one record for each entry of the dict `values`."""
        new = [Record(int(epoch), int(step), name, _plain(v)) for name, v in values.items()]
        self.rows.extend(new)
        if self._path is not None:
            _append(self._path, new)

    def write_to(self, path):
        """Write all records to the file `path` now and every later one as it comes."""
        self._path = pathlib.Path(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text("", encoding="utf-8")
        _append(self._path, self.rows)

    def names(self):
        """The names of the recorded quantities, in the order of their first record."""
        return list(dict.fromkeys(row.name for row in self.rows))

    def series(self, name, by="epoch"):
        """`(epochs, values)` of one quantity, the last value of each epoch (or of each step)."""
        latest = {getattr(row, by): row.value for row in self.rows if row.name == name}
        keys = sorted(latest)
        return keys, [latest[key] for key in keys]

    def last(self, name, default=math.nan):
        """The newest value of a quantity."""
        values = self.series(name)[1]
        return values[-1] if values else default

    def to_frame(self):
        """A pandas `DataFrame` with the columns epoch, step, name and value."""
        import pandas as pd

        return pd.DataFrame(self.rows, columns=Record._fields)


def read(path):
    """Read the records of a file that `Records.write_to` wrote; a torn last line is left out."""
    rows = []
    lines = pathlib.Path(path).read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            rows.append((row["epoch"], row["step"], row["name"], _from_json(row["value"])))
        except (KeyError, TypeError, ValueError) as error:
            if number < len(lines):
                raise ValueError(
                    f"Expected one record a line in {path}. Received in line {number}: {line!r}"
                ) from error
    return Records(rows)


def of_run(params):
    """The records shared by all callbacks of one fit.

    Keras gives the callbacks of a fit one and the same `params` dict, whatever their order, and a
    new one for every fit. That dict is the one thing they share, so it carries the records.
    """
    return params.setdefault("keras_regtools_records", Records())


def _append(path, rows):
    lines = [json.dumps({**row._asdict(), "value": _to_json(row.value)}) + "\n" for row in rows]
    with open(path, "a", encoding="utf-8") as file:
        file.writelines(lines)


def _plain(value):
    value = np.asarray(value)
    return float(value) if value.ndim == 0 else [float(v) for v in value.ravel()]


def _to_json(value):
    if isinstance(value, list):
        return [_to_json(v) for v in value]
    return value if math.isfinite(value) else str(value)


def _from_json(value):
    return [float(v) for v in value] if isinstance(value, list) else float(value)
