"""Trials that several processes share: each is run by one, and what a killed one leaves by another.

A result is a file, and a trial that is being run holds a lock, which goes with its process.
"""

import contextlib
import json
import os
import pathlib
import time

from keras_regtools.records.files import write_whole


class SharedTrials:
    """The results of trials in a directory.

    Args:
        directory: The directory; made if it is not there.
        settings: What the trials depend on, for JSON; those of a directory that is there must be
            the same.

    Raises:
        ValueError: a directory with trials of other settings.
    """

    def __init__(self, directory, settings):
        self._directory = pathlib.Path(directory)
        self._directory.mkdir(parents=True, exist_ok=True)
        wanted, path = json.loads(json.dumps(settings)), self._directory / "study.json"
        with self._locked("study", wait=True):
            if path.exists():
                _refuse_others(path, wanted)
            else:
                write_whole(path, json.dumps(wanted, indent=2) + "\n")

    def __repr__(self):
        return f"SharedTrials({str(self._directory)!r})"

    def result(self, name):
        """The result of a trial, or `None`."""
        try:
            return json.loads(self._path(name).read_text("utf-8")) or None
        except (OSError, ValueError):
            return None

    def run(self, names, trial, done=lambda name, result: None, pause=0.5):
        """Have every trial run, here or by another process, and give their results by name.

        Args:
            names: List of names.
            trial: Function of a name that gives a result for JSON.
            done: Called with a name and its result when this process has run one.
            pause: Seconds between two looks at what others do.
        """
        results = {}
        while len(results) < len(names):
            before = len(results)
            for name in names:
                if name in results:
                    continue
                found = self.result(name) or self._run_one(name, trial, done)
                if found is not None:
                    results[name] = found
            if len(results) == before:  # all that is left is run by others
                time.sleep(pause)
        return {name: results[name] for name in names}

    def _run_one(self, name, trial, done):
        with self._locked(name) as held:
            if not held:
                return None
            found = self.result(name)  # another may just have finished it
            if found is None:
                found = json.loads(json.dumps(trial(name)))
                write_whole(self._path(name), json.dumps(found) + "\n")
                done(name, found)
            return found

    def _path(self, name):
        return self._directory / f"{name}.json"

    @contextlib.contextmanager
    def _locked(self, name, wait=False):
        try:
            import fcntl
        except ImportError:  # where there are no such locks, one process runs them all
            yield True
            return
        file = os.open(self._directory / f"{name}.lock", os.O_RDWR | os.O_CREAT)
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except OSError:
                yield False
                return
            yield True
        finally:
            os.close(file)


def _refuse_others(path, wanted):
    try:
        there = dict(json.loads(path.read_text("utf-8")))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"Expected the settings of a study in {path}. Received: {error}"
        ) from error
    different = sorted(k for k in {*there, *wanted} if there.get(k) != wanted.get(k))
    if different:
        told = ", ".join(
            f"{k}={there.get(k)!r} there and {wanted.get(k)!r} here" for k in different
        )
        raise ValueError(
            f"Expected a directory of the same study. Received: {str(path.parent)!r}, with {told}"
        )
