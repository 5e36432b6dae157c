"""Internal: reads the records of a run, or of several runs into one table."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from keras_regtools import validation
from keras_regtools.records.files import RECORDS_FILE
from keras_regtools.records.records import Record, Records

if TYPE_CHECKING:
    import pandas as pd


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


def read_many(runs: Mapping[str, Any] | Sequence[Any]) -> pd.DataFrame:
    """Read the records of several runs into one table.

    Args:
        runs: A list of directories of `callbacks.Report` or of files of `Records.write_to`, or a
            dict from names of runs to them. Without a dict a run has the name of its directory or
            file, with as many of the directories above as tell it from the others.

    Returns:
        A pandas `DataFrame` with the columns `run`, `epoch`, `step`, `name` and `value`, run by
        run.

    Raises:
        TypeError: one path, or something else.
        ValueError: no run, the same twice, or a file that is not there or holds something else.

    Example:

    >>> import pathlib, tempfile
    >>> directory = pathlib.Path(tempfile.mkdtemp())
    >>> for run, loss in (("a", 0.5), ("b", 0.25)):
    ...     Records([(0, 10, "loss", loss)]).write_to(directory / run / "records.jsonl")
    >>> frame = read_many([directory / "a", directory / "b"])
    >>> frame.pivot(index="run", columns="name", values="value")
    name  loss
    run
    a     0.50
    b     0.25
    """
    import pandas as pd

    frames = []
    for name, path in named_runs(runs).items():
        file = path / RECORDS_FILE if path.is_dir() else path
        if not file.exists():
            raise ValueError(
                "Expected directories or files with the records of a run. "
                f"Received: {path}, and there is no {file}"
            )
        frame = read(file).to_frame()
        frame.insert(0, "run", name)
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def named_runs(runs: Any) -> dict[str, pathlib.Path]:
    """The paths of runs by name, as `read_many` has them."""
    if isinstance(runs, (str, bytes)) or not isinstance(runs, (Mapping, Sequence)):
        raise TypeError(
            "Expected a list of directories or files, or a dict from names to them. "
            f"Received: {runs!r} (of type {type(runs)})"
        )
    given = list(runs.values() if isinstance(runs, Mapping) else runs)
    paths = [pathlib.Path(validation.path("runs", one)) for one in given]
    whole = [path.resolve() for path in paths]
    whole = [path.parent if path.name == RECORDS_FILE else path for path in whole]
    names = list(map(str, runs)) if isinstance(runs, Mapping) else []
    if not paths or len(set(whole)) < len(whole) or len(set(names)) < len(names):
        raise ValueError(f"Expected one or more runs, none of them twice. Received: {runs!r}")
    if isinstance(runs, Mapping):
        return dict(zip(names, paths, strict=True))
    count = 1
    while len({path.parts[-count:] for path in whole}) < len(whole):
        count += 1
    return {
        str(pathlib.PurePath(*one.parts[-count:])): path
        for one, path in zip(whole, paths, strict=True)
    }


def _from_json(value):
    return [float(v) for v in value] if isinstance(value, list) else float(value)
