"""The most memory that this process held since it was last asked, where the system tells it."""

import ctypes

_STATUS, _PEAK = "/proc/self/status", "/proc/self/clear_refs"


def process_memory():
    """`(peak, present)` in bytes, or `None` where there is no such file."""
    try:
        with open(_STATUS, encoding="ascii", errors="replace") as file:
            told = dict(line.split(":", 1) for line in file if ":" in line)
        return tuple(int(told[name].split()[0]) * 1024 for name in ("VmHWM", "VmRSS"))
    except (OSError, KeyError, ValueError):
        return None


def give_back():
    """Have the C library give free memory back, which would be used again without being seen."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):  # another C library, another system
        return


def forget_peak():
    """Start again; gives whether the system allows it."""
    try:
        with open(_PEAK, "w", encoding="ascii") as file:
            file.write("5")
    except OSError:
        return False
    return process_memory() is not None


def available_memory():
    """What new arrays may take, in bytes, or `None`."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            told = dict(line.split(":", 1) for line in file)
        return int(told["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None


class PeakMemory:
    """The memory of the processor that the process computes on.

    Args:
        accelerator: `None`, or a function of no arguments that gives `(peak, present, total)` of
            an accelerator in bytes, `total` `None` if it is not known.
        forget: A function that has it start again.

    Attributes:
        known: Whether it can be told.
        room: Bytes that are free now, or `None`.
    """

    def __init__(self, accelerator=None, forget=None):
        self._accelerator, self._forget = accelerator, forget or (lambda: True)
        if accelerator is None:
            give_back()
            self.known, self.room = forget_peak(), available_memory()
        else:
            self.known, (_, present, total) = True, accelerator()
            self.room = None if total is None else total - present
        self._before = self._read()[1] if self.known else 0

    def _read(self):
        return self._accelerator()[:2] if self._accelerator else process_memory()

    def begin(self):
        """Count from here."""
        if self._accelerator is None:
            forget_peak()
        else:
            self._forget()

    def end(self):
        """The most that was held since, in bytes above what was held when this was made."""
        return self._read()[0] - self._before
