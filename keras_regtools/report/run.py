"""The files of a run: its records, and what it was."""

import datetime
import json
import pathlib
import tempfile
import warnings

import numpy as np

from keras_regtools.records import RecordsFile, read
from keras_regtools.records.files import RECORDS_FILE, write_whole
from keras_regtools.report.lock import Lock
from keras_regtools.version import versions


class RunFiles(RecordsFile):
    """A directory with `records.jsonl` (the numbers) and `run.json` (the settings).

    `kept.json` and `kept.*.npz` hold what the callbacks of a run must know to go on in another
    process.
    """

    def __init__(self, directory):
        self.directory = pathlib.Path(directory)
        super().__init__(self.directory / RECORDS_FILE)
        self.records_path = self.path
        self.info_path = self.directory / "run.json"
        self.kept_path = self.directory / "kept.json"
        self._kept, self.lock = {}, Lock(self.directory)

    def refuse_unusable(self):
        """Raise if the directory can be neither written to nor made."""
        place = self.directory.absolute()
        while not place.exists() and place != place.parent:
            place = place.parent
        try:
            with tempfile.TemporaryFile(dir=place):
                pass
        except OSError as error:
            raise ValueError(
                "Expected a directory that can be written to, or made. "
                f"Received: {str(self.directory)!r}, which gave: {error}"
            ) from error

    def read(self):
        """`(records, info)` of a run that is over, cut off or still going on."""
        if not self.records_path.exists():
            raise ValueError(
                "Expected a directory with the records of a run, written by "
                f"`callbacks.Report(directory)`. Received: {self.directory}, without "
                f"{self.records_path.name}"
            )
        return read(self.records_path), self.read_info()

    def read_info(self):
        """What the run was, as `describe` gave it; empty if that is not known."""
        if not self.info_path.exists():
            return {}
        try:
            info = json.loads(self.info_path.read_text("utf-8"))
        except ValueError as error:
            raise ValueError(
                f"Expected the settings of a run in {self.info_path}. Received a file that is no "
                f"JSON: {error}"
            ) from error
        if not isinstance(info, dict):
            raise ValueError(
                f"Expected the settings of a run in {self.info_path}. Received: {info!r}"
            )
        return info

    def read_kept(self):
        """What callbacks kept, by their names; what cannot be read is left out."""
        try:
            kept = json.loads(self.kept_path.read_text("utf-8"))
            kept = dict(kept) if isinstance(kept, dict) else {}
        except (OSError, ValueError):
            kept = {}
        for path in self.directory.glob("kept.*.npz"):
            try:
                with np.load(path, allow_pickle=False) as file:
                    arrays = [file[name] for name in sorted(file.files, key=int)]
                kept[path.name.split(".")[1]] = arrays
            except Exception:  # a file of something else
                continue
        return kept

    def open(self, records, first_epoch, sink=None):
        """Begin to write the records of a run that starts with `first_epoch`.

        A resumed run goes on after the epochs that are there; a new run keeps the old files aside
        under a number. Returns how many records came from before. They go through `sink`, if one
        is given.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        kept, self._kept = self.earlier(records, first_epoch), {}
        if kept:
            self._kept = {n: v for n, v in self.read_kept().items() if not _are_arrays(v)}
        elif self._is_there():
            self._set_aside()
        records.sink_into(self if sink is None else sink)
        return kept

    def _is_there(self):
        return self.records_path.exists() and self.records_path.stat().st_size > 0

    def earlier(self, records, first_epoch):
        """Put what is there of the epochs before into the records, and give how many they are."""
        if not self._is_there():
            return 0
        try:
            before = read(self.records_path)
        except ValueError as error:
            warnings.warn(f"{error}. It is kept aside; a new one is begun.", stacklevel=2)
            return 0
        kept = [row for row in before.rows if row.epoch < first_epoch]
        records.rows[:0] = kept
        return len(kept)

    def _set_aside(self):
        number = 1
        while (self.directory / f"records.{number}.jsonl").exists():
            number += 1
        self.records_path.rename(self.directory / f"records.{number}.jsonl")
        if self.info_path.exists():
            self.info_path.rename(self.directory / f"run.{number}.json")
        for path in (self.kept_path, *self.directory.glob("kept.*.npz")):
            path.unlink(missing_ok=True)

    def keep(self, name, value):
        """Keep what a callback must know to go on."""
        if _are_arrays(value):
            with tempfile.TemporaryFile() as file:
                np.savez(file, **{str(i): array for i, array in enumerate(value)})
                file.seek(0)
                write_whole(self.directory / f"kept.{name}.npz", file.read())
        else:
            self._kept[name] = value
            write_whole(self.kept_path, json.dumps(self._kept) + "\n")

    def write_info(self, info):
        """Write what the run was."""
        self.directory.mkdir(parents=True, exist_ok=True)
        write_whole(self.info_path, json.dumps(info, indent=2, default=_of_numpy) + "\n")


def _of_numpy(value):
    return value.tolist() if isinstance(value, (np.generic, np.ndarray)) else str(value)


def _are_arrays(value):
    return isinstance(value, list) and any(isinstance(v, np.ndarray) for v in value)


def describe(model, params, settings):
    """What a run is, as a dict for `run.json`."""
    optimizer = model.optimizer
    return {
        "model": model.name,
        "parameters": model.count_params() if model.built else None,
        "optimizer": {"class": type(optimizer).__name__, **_settings(optimizer)},
        "loss": model.loss if isinstance(model.loss, str) else _name(model.loss),
        "epochs": params.get("epochs"),
        "steps_per_epoch": params.get("steps"),
        "settings": settings,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "finished": False,
        "versions": versions(),
    }


def _settings(optimizer):
    """The simple settings of an optimizer, which may be of a class that cannot tell them."""
    try:
        config = optimizer.get_config()
    except Exception:  # with a schedule that has no configuration, say
        names = ("weight_decay", "clipnorm", "momentum", "use_ema", "gradient_accumulation_steps")
        config = {name: getattr(optimizer, name, None) for name in names}
    config.pop("name", None)
    return {k: v for k, v in config.items() if isinstance(v, (int, float, str, bool))}


def _name(loss):
    return getattr(loss, "name", None) or getattr(loss, "__name__", None) or str(loss)
