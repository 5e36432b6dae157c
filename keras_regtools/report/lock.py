"""One run at a time in a directory: a lock that dies with its process."""

import os
import weakref
from typing import Any

_HELD: dict[
    Any, Any
] = {}  # by path: the open directory, and a weak reference to the run that holds it


class Locked(RuntimeError):
    """Another run writes to the directory."""


class Lock:
    """A lock on a directory, for one run.

    Args:
        path: The directory.
    """

    def __init__(self, path):
        self.path = path.absolute()

    def acquire(self, run):
        """Take the lock for a run; one that was cut off in this process does not count.

        Args:
            run: An object that only this run has.

        Raises:
            Locked: another run is writing.
        """
        key = str(self.path)
        if key in _HELD and _HELD[key][1]() is run:
            raise Locked(_refusal(self.path, "two callbacks of one fit"))
        self.release()
        try:
            import fcntl
        except ImportError:  # where there are no such locks
            return
        file = os.open(self.path, os.O_RDONLY)  # open as long as the run
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(file)
            raise Locked(_refusal(self.path, "a run of another process")) from error
        _HELD[key] = (file, weakref.ref(run))

    def release(self):
        """Give it back."""
        file, _ = _HELD.pop(str(self.path), (None, None))
        if file is not None:
            os.close(file)

    def __deepcopy__(self, memo):
        return Lock(self.path)


def _refusal(path, who):
    return (
        "Expected a directory that no other run writes to at the same time. "
        f"Received: {str(path)!r}, which {who} is writing to"
    )
