"""Internal: files of records, one JSON object a line.

A run that was cut off leaves everything up to its last epoch, and any tool can read it. NaN and the
infinities are written as strings, since JSON has none.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keras_regtools.records.records import Record

RECORDS_FILE = "records.jsonl"  # in the directory of a run


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


def _lines(rows):
    return [json.dumps({**row._asdict(), "value": _to_json(row.value)}) + "\n" for row in rows]


def _to_json(value):
    if isinstance(value, list):
        return [_to_json(v) for v in value]
    return value if math.isfinite(value) else str(value)
