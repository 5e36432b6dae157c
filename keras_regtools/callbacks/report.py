"""Keep the records of a fit in a directory and write its report."""

from __future__ import annotations

import contextlib
import time
import warnings
from typing import TYPE_CHECKING, Any

from keras_regtools import backend, report, validation
from keras_regtools.callbacks.activations import ActivationMonitor, instrumented_layers
from keras_regtools.callbacks.penalties import PenaltyMonitor
from keras_regtools.callbacks.recording import RecordingCallback
from keras_regtools.callbacks.sinks import Surviving, Writers
from keras_regtools.callbacks.weights import WeightMonitor
from keras_regtools.report.lock import Locked
from keras_regtools.report.run import RunFiles, describe

if TYPE_CHECKING:
    import os


class Report(RecordingCallback):
    """Write the records, the pictures and one HTML page of a fit into a directory.

    The directory gets `records.jsonl` (after every epoch, so that a run that is cut off leaves
    what it had), `run.json`, the pictures as PNG and `report.html`, which holds everything and
    needs nothing else. All our callbacks of the fit write into the same records, wherever they
    stand in the list. Instrumented layers, kernels and weight penalties are recorded without
    further callbacks. Records of an earlier run in the directory are kept under a number; a resumed
    run goes on in its own. `keras_regtools.report.write(directory)` makes the report again, also of
    a run that was cut off. In a notebook the callback shows its report. If the disk is full or the
    directory goes, there is one warning and the training goes on. Of several processes that train
    one model together the first one writes.

    Args:
        directory: Where to write; made if it is not there. One run at a time.
        settings: Dict of what else the page should tell about the run, such as the batch size,
            which Keras does not tell its callbacks; `"title"` is the title of the page.
        writers: List of writers, which get the records, the settings and the pictures, too:
            `trackers.TensorBoard`, `trackers.MLflow`, or one of yours (`Records.add_writer`).

    Raises:
        TypeError: a writer that cannot write.
        ValueError: a directory that can be neither written to nor made.
        RuntimeError: when the fit begins, a directory that another run is writing to.

    Example:

    >>> import keras, numpy as np, tempfile
    >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> x = np.ones((8, 1), "float32")
    >>> directory = tempfile.mkdtemp()
    >>> history = model.fit(x, x, epochs=2, callbacks=[Report(directory)], verbose=0)
    >>> import os
    >>> sorted(name for name in os.listdir(directory) if name.endswith(".html"))
    ['report.html']
    """

    dropped = ("_monitors", "_sink")

    def __init__(
        self, directory: str | os.PathLike[str], *, settings: Any = None, writers: Any = ()
    ) -> None:
        super().__init__("report")
        self.files = RunFiles(validation.path("directory", directory))
        self.files.refuse_unusable()
        if not isinstance(settings, (dict, type(None))):
            raise ValueError(f"Argument `settings` must be a dict. Received: settings={settings!r}")
        self.settings, self.writers = dict(settings or {}), Writers(self, writers)
        self.page: Any = None
        self._monitors: Any = None
        self._sink: Any = None
        self._told: dict[str, Any] = {}  # what was recorded of this epoch's logs, by name

    def __repr__(self):
        return f"Report({str(self.files.directory)!r})"

    def set_params(self, params: Any) -> None:
        super().set_params(params)
        # Early, as other callbacks look into it when their first epoch begins.
        self.records.earlier = {**self.files.read_kept(), **self.records.earlier}

    def on_train_begin(self, logs: Any = None) -> None:
        self._begin = time.perf_counter()
        self.page, self._sink, self._failed = None, None, False
        self._writes = backend.process_index() == 0
        with self._surviving():
            if self._writes:
                self.files.directory.mkdir(parents=True, exist_ok=True)
                self.files.lock.acquire(self.records)
        self._info = describe(self.model, self.params or {}, self.settings)
        self._leads = "report" not in self.records.claims  # of several, the first tells the logs
        self.records.claims.add("report")
        self._monitors = []
        if "activations" not in self.records.claims and instrumented_layers(self.model):
            self._monitors.append(ActivationMonitor())
        if "penalties" not in self.records.claims:
            self._monitors.append(PenaltyMonitor())
        if WeightMonitor.claim not in self.records.claims:
            self._monitors.append(WeightMonitor())
        for monitor in self._monitors:
            monitor.set_params(self.params)
            monitor.set_model(self.model)
            monitor.on_train_begin(logs)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        super().on_epoch_begin(epoch, logs)
        for monitor in self._monitors:
            monitor.on_epoch_begin(epoch, logs)

    def fit_begins(self, epoch: int) -> None:
        self._told = {}
        rows = self.records.rows
        made = len(rows)
        with self._surviving():
            if self._writes:
                self._sink = Surviving(self)
                self.files.open(self.records, epoch, self._sink)
                self.files.write_info(self._info)
                self.writers.begin(self._info, epoch)
            else:
                self.files.earlier(self.records, epoch)
        before = {row.name for row in rows[: len(rows) - made]}
        kept = self.records.earlier.get("report") if before else None
        self._own = set(kept) & before if isinstance(kept, list) else set()
        self._others, self._looked_at = before - self._own, len(rows) - made

    def training_over(self, epoch: int, logs: Any) -> None:
        for monitor in self._monitors:
            monitor._end_training(logs)
        with self.timed(epoch):
            self._record_logs(epoch, logs)
            if self._leads and "learning_rate" not in self.records.claims:
                self.record_rate(epoch)

    def on_test_end(self, logs: Any = None) -> None:
        if self._over and logs:  # the validation of the epoch
            self._record_logs(self._epoch, {f"val_{name}": value for name, value in logs.items()})
            for monitor in self._monitors:
                monitor.on_test_end(logs)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        logs = {} if logs is None else logs
        super().on_epoch_end(epoch, logs)
        for monitor in self._monitors:
            monitor.on_epoch_end(epoch, logs)
        with self.timed(epoch):
            self._record_logs(epoch, logs)
        self._told = {}
        self._record_time()

    def _record_logs(self, epoch, logs):
        """Record what is new in the logs, and none of what other callbacks of ours record."""
        if not self._leads:
            return
        rows = self.records.rows
        self._others |= {row.name for row in rows[self._looked_at :]} - self._own
        self._looked_at = len(rows)
        names = [n for n in logs or {} if n not in self._others and n != "learning_rate"]
        new = {n: logs[n] for n in names if repr(self._told.get(n)) != repr(logs[n])}
        if not new:
            return
        self._told = {**self._told, **new}
        if not self._own.issuperset(new):
            self._own |= set(new)
            self.records.keep("report", sorted(self._own))
        self.record(epoch, new)
        self._looked_at = len(rows)

    def _record_time(self):
        self.record(self._epoch, {"time/fit": time.perf_counter() - self._begin})

    def on_train_end(self, logs: Any = None) -> None:
        if self._begun:
            self._record_time()
        if self._begun and self._writes:
            with self._surviving():
                if self._failed:  # the disk may have room again
                    self.files.begin(self.records.rows)
                self.files.write_info({**self._info, "finished": True})
                self.page = report.write(self.files.directory)
            self.writers.end()
        self.records.leave(self._sink)
        self.files.lock.release()

    @contextlib.contextmanager
    def _surviving(self):
        """Within the block, what goes wrong with files or pictures ends no training."""
        try:
            yield
        except Locked:
            raise
        except Exception as error:
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """Warn once that the report is not whole."""
        if not self._failed:
            self._failed = True
            warnings.warn(
                f"The report in {str(self.files.directory)!r} is not whole; training goes on. "
                f"Received: {error!r}",
                stacklevel=2,
            )

    def _repr_html_(self):
        if not self.files.records_path.exists():
            return "<p>No epoch is recorded yet.</p>"
        return (self.page or report.write(self.files.directory))._repr_html_()
