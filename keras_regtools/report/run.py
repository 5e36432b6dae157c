"""The files of a run: its records, and what it was."""

import datetime
import json
import pathlib
import platform

import keras

from keras_regtools.records import read
from keras_regtools.version import __version__


class RunFiles:
    """A directory with `records.jsonl` (the numbers) and `run.json` (the settings)."""

    def __init__(self, directory):
        self.directory = pathlib.Path(directory)
        self.records_path = self.directory / "records.jsonl"
        self.info_path = self.directory / "run.json"

    def read(self):
        """`(records, info)` of a run that is over, cut off or still going on."""
        if not self.records_path.exists():
            raise ValueError(
                "Expected a directory with the records of a run, written by "
                f"`callbacks.Report(directory)`. Received: {self.directory}, without "
                f"{self.records_path.name}"
            )
        info = json.loads(self.info_path.read_text("utf-8")) if self.info_path.exists() else {}
        return read(self.records_path), info

    def open(self, records, first_epoch):
        """Begin to write the records of a run that starts with `first_epoch`.

        A resumed run goes on after the epochs that are there; a new run keeps the old files aside
        under a number. Returns how many records came from before.
        """
        kept = []
        if self.records_path.exists() and self.records_path.stat().st_size:
            before = read(self.records_path)
            kept = [row for row in before.rows if row.epoch < first_epoch]
            if first_epoch > 0 and kept:
                records.rows[:0] = kept
            else:
                self._set_aside()
        records.write_to(self.records_path)
        return len(kept)

    def _set_aside(self):
        number = 1
        while (self.directory / f"records.{number}.jsonl").exists():
            number += 1
        self.records_path.rename(self.directory / f"records.{number}.jsonl")
        if self.info_path.exists():
            self.info_path.rename(self.directory / f"run.{number}.json")

    def write_info(self, info):
        """Write what the run was."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self.info_path.write_text(json.dumps(info, indent=2, default=str) + "\n", "utf-8")


def describe(model, params, settings):
    """What a run is, as a dict for `run.json`."""
    import sys

    optimizer = model.optimizer
    config = optimizer.get_config() if optimizer is not None else {}
    simple = {k: v for k, v in config.items() if isinstance(v, (int, float, str, bool))}
    simple.pop("name", None)
    return {
        "model": model.name,
        "parameters": model.count_params() if model.built else None,
        "optimizer": {"class": type(optimizer).__name__, **simple},
        "loss": model.loss if isinstance(model.loss, str) else _name(model.loss),
        "epochs": params.get("epochs"),
        "steps_per_epoch": params.get("steps"),
        "settings": settings,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "finished": False,
        "versions": {
            "keras_regtools": __version__,
            "keras": keras.__version__,
            keras.backend.backend(): _backend_version(sys.modules),
            "python": platform.python_version(),
        },
    }


def _name(loss):
    return getattr(loss, "name", None) or getattr(loss, "__name__", None) or str(loss)


def _backend_version(modules):
    return getattr(modules.get(keras.backend.backend()), "__version__", "unknown")
