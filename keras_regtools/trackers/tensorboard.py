"""The records of a fit in TensorBoard."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_regtools import validation
from keras_regtools.backend._tensorflow_summaries import EventFile
from keras_regtools.records.settings import flat_settings

if TYPE_CHECKING:
    import os

    from keras_regtools.records import Record

_BUCKETS = 30  # TensorBoard's own number


class TensorBoard:
    """A writer for `callbacks.Report(writers=[…])` and `Records.add_writer`.

    Numbers become scalars, lists with a number for each channel histograms, both at the number of
    the training step; the pictures of the report become images; the settings of the run
    hyperparameters (the tab HPARAMS).

    Args:
        directory: The log directory of this run, as `"logs/first"`. `tensorboard --logdir logs`
            shows the runs beside each other.

    Raises:
        ValueError: no path.

    Example:

    >>> import pathlib, tempfile
    >>> from keras_regtools import records, trackers
    >>> directory = pathlib.Path(tempfile.mkdtemp())
    >>> rows = records.Records([(0, 10, "loss", 1.0), (1, 20, "loss", 0.5)])
    >>> with trackers.TensorBoard(directory) as writer:
    ...     rows.add_writer(writer)
    >>> len(list(directory.glob("events.out.tfevents.*")))
    1
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = validation.path("directory", directory)
        self._file: Any = None

    def __repr__(self):
        return f"TensorBoard({str(self.directory)!r})"

    def begin(self, run: dict[str, Any]) -> None:
        """Say what a run is: its settings become hyperparameters."""
        self._open().hyperparameters(flat_settings(run))

    def write(self, rows: Sequence[Record]) -> None:
        """Write records."""
        file = self._open()
        for row in rows:
            if isinstance(row.value, list):
                file.histogram(row.name, _buckets(row.value), row.step)
            else:
                file.scalar(row.name, row.value, row.step)
        file.flush()

    def picture(self, name: str, png: bytes, step: int) -> None:
        """Write a picture, given as the bytes of a PNG file, under `pictures/`: a number may have
        its name."""
        self._open().image(f"pictures/{name}", png, step)

    def end(self) -> None:
        """Close the file; a later record opens another one."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> TensorBoard:
        return self

    def __exit__(self, *error: Any) -> None:
        self.end()

    def _open(self):
        if self._file is None:
            self._file = EventFile(self.directory)
        return self._file


def _buckets(values):
    """Left edge, right edge and count of each bucket, of what is finite."""
    known = np.asarray([v for v in values if np.isfinite(v)], "float64")
    if not len(known):
        return np.zeros((0, 3))
    counts, edges = np.histogram(known, min(_BUCKETS, max(1, len(known))))
    return np.stack([edges[:-1], edges[1:], counts], axis=1)
