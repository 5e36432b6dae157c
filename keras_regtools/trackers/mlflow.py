"""The records of a fit in MLflow."""

from __future__ import annotations

import os
import pathlib
import tempfile
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from keras_regtools.records.settings import flat_settings

if TYPE_CHECKING:
    from keras_regtools.records import Record

_AT_ONCE = 1000  # numbers that MLflow takes in one call


class MLflow:
    """A writer for `callbacks.Report(writers=[…])` and `Records.add_writer`.

    Each fit is one run of MLflow: numbers become metrics at the number of the training step, with
    points for the slashes in their names, the settings parameters, the pictures of the report
    artifacts. Lists with a number for each channel are left out, as MLflow has no place for them.
    A fit that goes on is another run; one that is interrupted stays `RUNNING`. Needs
    `pip install "keras_regtools[mlflow]"`.

    Args:
        experiment: Name of the experiment; made if it is not there.
        run: Name of the run; MLflow makes one up by default.
        uri: Where MLflow keeps its runs, as `"sqlite:///mlflow.db"` or the address of a server;
            by default what MLflow is set to.

    Attributes:
        run_id: Of the run that goes on, or of the last one.

    Raises:
        ImportError: MLflow is not installed.
        TypeError: names that are no texts.
    """

    def __init__(
        self, experiment: str = "Default", run: str | None = None, *, uri: str | None = None
    ) -> None:
        from mlflow import MlflowClient, entities

        for name, value in (("experiment", experiment), ("run", run or "-"), ("uri", uri or "-")):
            if not isinstance(value, str):
                raise TypeError(f"Argument `{name}` must be a text. Received: {name}={value!r}")
        self._metric, self._name, self._experiment = entities.Metric, run, experiment
        self._client = MlflowClient(tracking_uri=uri)
        self.run_id: str | None = None
        self._goes_on, self._names = False, {}

    def __repr__(self):
        return f"MLflow({self._experiment!r}, {self._name!r})"

    def begin(self, run: dict[str, Any]) -> None:
        """Begin a run of MLflow with these settings."""
        self.end()
        number = self._started()
        for name, value in flat_settings(run).items():
            self._client.log_param(number, _allowed(name), value)

    def write(self, rows: Sequence[Record]) -> None:
        """Write records."""
        number, now = self._started(), int(time.time() * 1000)
        metrics = [
            self._metric(self._named(row.name), row.value, now, row.step)
            for row in rows
            if not isinstance(row.value, list)
        ]
        for first in range(0, len(metrics), _AT_ONCE):
            self._client.log_batch(number, metrics=metrics[first : first + _AT_ONCE])

    def picture(self, name: str, png: bytes, step: int) -> None:
        """Write a picture, given as the bytes of a PNG file."""
        number = self._started()
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / f"{name}.png"
            path.write_bytes(png)
            self._client.log_artifact(number, os.fspath(path), "pictures")

    def end(self) -> None:
        """Say that the run is over; a later record begins another one."""
        if self._goes_on and self.run_id is not None:
            self._goes_on = False
            self._client.set_terminated(self.run_id)

    def _named(self, name):
        """The name of a metric: one for each name of a record."""
        if name not in self._names:
            short, number = _allowed(name).replace("/", "."), 2  # `a` is no folder for `a/b`
            found = short
            while found in self._names.values():
                found, number = f"{short}_{number}", number + 1
            self._names[name] = found
        return self._names[name]

    def _started(self):
        """The number of the run that goes on, or of a new one."""
        if not self._goes_on or self.run_id is None:
            found = self._client.get_experiment_by_name(self._experiment)
            known = found.experiment_id if found else None
            experiment = known or self._client.create_experiment(self._experiment)
            self.run_id = self._client.create_run(experiment, run_name=self._name).info.run_id
            self._goes_on, self._names = True, {}
        return self.run_id


def _allowed(name):
    """A name with the characters that MLflow takes."""
    return "".join(c if c.isalnum() or c in "_-. /" else "_" for c in name) or "_"
