"""KerasTuner's chief and workers on one machine, by one call."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from keras_regtools.validation import non_negative, positive, positive_integer

_IP, _PORT, _ID = "KERASTUNER_ORACLE_IP", "KERASTUNER_ORACLE_PORT", "KERASTUNER_TUNER_ID"
_ENDING = 30.0  # seconds for a chief whose workers have all ended; it looks every 20


def is_chief() -> bool:
    """Whether this process is to read the results: the chief of a search, or one that is alone.

    A worker cannot: its trials are with the chief, which has ended before.

    Example:

    >>> is_chief()
    True
    """
    return _IP not in os.environ or "chief" in os.environ.get(_ID, "")


def run_workers(
    script: Any,
    n: int,
    arguments: Sequence[str] = (),
    *,
    threads: int | None = None,
    timeout: float | None = None,
    start_timeout: float = 120.0,
    verbose: int = 1,
) -> list[int]:
    """Run a script that searches as KerasTuner's chief and `n` workers, on the loopback interface.

    Each worker trains a trial at a time; the chief gives out the trials and keeps the results. A
    worker that dies loses its trial only. Two faults of KerasTuner's are worked around: a chief
    waits for ever for a worker that has died, and a tuner with `overwrite=True` in a worker
    deletes what the chief has written: say `overwrite=tuner.is_chief()`, and read results under
    `if tuner.is_chief():`.

    Args:
        script: Path of a Python script that makes a tuner and calls `search`.
        n: Number of workers.
        arguments: For the script.
        threads: Threads of a worker; by default the processors are shared out.
        timeout: Seconds after which all of them are ended; `None` for none.
        start_timeout: Seconds for the chief to be there.
        verbose: 1 says what happens.

    Returns:
        The exit codes of the workers, in order; negative for one that was killed by a signal.

    Raises:
        FileNotFoundError: no such script.
        RuntimeError: the chief ended with an error, or before a worker.
        TimeoutError: not done in time. All processes that were started have ended then, as after
            every other error and after an interrupt; no other is touched.
    """
    script, n = pathlib.Path(script), positive_integer("n", n)
    start_timeout = positive("start_timeout", start_timeout)
    until = time.monotonic() + (non_negative("timeout", timeout) if timeout is not None else 1e9)
    if not script.is_file():
        raise FileNotFoundError(f"Expected a Python script. Received: {str(script)!r}")
    threads = threads or max(1, (os.cpu_count() or 1) // n)
    port = _free_port()
    started = []

    def start(name):
        given = {_IP: "127.0.0.1", _PORT: str(port), _ID: name}
        given |= {k: str(threads) for k in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS")}
        command = [sys.executable, str(script), *map(str, arguments)]
        started.append(subprocess.Popen(command, env={**os.environ, **given}))
        return started[-1]

    def say(text):
        if verbose:
            print(text, flush=True)

    try:
        chief = start("chief")
        _wait_for(chief, port, min(until, time.monotonic() + start_timeout))
        workers = [start(f"worker{i}") for i in range(n)]
        say(f"A chief at 127.0.0.1:{port} and {n} workers")
        _watch(chief, workers, until, say)
        _end_chief(chief, say)
        return [worker.returncode for worker in workers]
    finally:
        for process in started:
            _end(process)


def _watch(chief, workers, until, say):
    """Wait until all workers have ended."""
    told = set()
    while any(worker.poll() is None for worker in workers):
        for i, worker in enumerate(workers):
            if worker.returncode and i not in told:
                told.add(i)
                say(f"Worker {i} ended with {worker.returncode}: its trial is lost, no other")
        if chief.poll() is not None and chief.returncode != 0:
            raise RuntimeError(f"The chief ended with {chief.returncode} before its workers")
        if time.monotonic() > until:
            raise TimeoutError("The search was not done in time; all its processes were ended")
        time.sleep(0.2)
    if all(worker.returncode for worker in workers):
        raise RuntimeError(
            f"All workers ended with errors: {[worker.returncode for worker in workers]}"
        )


def _end_chief(chief, say):
    """Let the chief end by itself, or end it: it waits for workers that have died for ever."""
    try:
        chief.wait(_ENDING)
    except subprocess.TimeoutExpired:
        say("The chief still waits for a worker that has died; the search is done, it is ended")
        _end(chief)
        return
    if chief.returncode != 0:
        raise RuntimeError(f"The chief ended with {chief.returncode}")


def _end(process):
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_for(chief, port, until):
    while True:
        if chief.poll() is not None:
            raise RuntimeError(
                f"The chief ended with {chief.returncode} before it searched. Run the script "
                "alone to see why."
            )
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        if time.monotonic() > until:
            raise TimeoutError("The chief did not search in time; it was ended")
        time.sleep(0.2)
