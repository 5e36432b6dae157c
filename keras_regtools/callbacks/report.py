"""Keep the records of a fit in a directory and write its report."""

import time

from keras_regtools import report
from keras_regtools.callbacks.activations import ActivationMonitor, instrumented_layers
from keras_regtools.callbacks.penalties import PenaltyMonitor
from keras_regtools.callbacks.recording import RecordingCallback
from keras_regtools.report.run import RunFiles, describe


class Report(RecordingCallback):
    """Write the records, the pictures and one HTML page of a fit into a directory.

    The directory gets `records.jsonl` (after every epoch, so that a run that is cut off leaves
    what it had), `run.json`, the pictures as PNG and `report.html`, which holds everything and
    needs nothing else. All our callbacks of the fit write into the same records, wherever they
    stand in the list. Instrumented layers and weight penalties are recorded without further
    callbacks. Records of an earlier run in the directory are kept under a number; a resumed run
    goes on in its own. `keras_regtools.report.write(directory)` makes the report again, also of a
    run that was cut off. In a notebook the callback shows its report.

    Args:
        directory: Where to write; made if it is not there.
        settings: Dict of what else the page should tell about the run, such as the batch size,
            which Keras does not tell its callbacks; `"title"` is the title of the page.

    Example:

    >>> import keras, numpy as np, tempfile
    >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> x = np.ones((8, 1), "float32")
    >>> directory = tempfile.mkdtemp()
    >>> history = model.fit(x, x, epochs=2, callbacks=[Report(directory)], verbose=0)
    >>> import os
    >>> sorted(os.listdir(directory))
    ['learning_rate.png', 'loss.png', 'records.jsonl', 'report.html', 'run.json']
    """

    dropped = ("_monitors",)

    def __init__(self, directory, *, settings=None):
        super().__init__("report")
        self.files = RunFiles(directory)
        self.settings = dict(settings or {})
        self.page = None
        self._monitors = None

    def on_train_begin(self, logs=None):
        self._begin = time.perf_counter()
        self.page = None
        self._open = False
        self._own = None
        self._info = describe(self.model, self.params or {}, self.settings)
        self._monitors = []
        if "activations" not in self.records.claims and instrumented_layers(self.model):
            self._monitors.append(ActivationMonitor())
        if "penalties" not in self.records.claims:
            self._monitors.append(PenaltyMonitor())
        for monitor in self._monitors:
            monitor.set_params(self.params)
            monitor.set_model(self.model)
            monitor.on_train_begin(logs)

    def on_epoch_begin(self, epoch, logs=None):
        if not self._open:
            self._open = True
            self.files.directory.mkdir(parents=True, exist_ok=True)
            self._before = self.files.open(self.records, epoch)
            self.files.write_info(self._info)

    def on_epoch_end(self, epoch, logs=None):
        logs = {} if logs is None else logs
        with self.timed(epoch):
            if self._own is None:  # what others record stays theirs, wherever they stand
                others = {row.name for row in self.records.rows[self._before :]}
                taken = {*others, "learning_rate"}
                self._own = [name for name in logs if name not in taken]
            self.record(epoch, {name: logs[name] for name in self._own if name in logs})
            if "learning_rate" not in self.records.claims:
                self.record_rate(epoch)
        for monitor in self._monitors:
            monitor.on_epoch_end(epoch, logs)
        self._epoch = epoch
        self._record_time()

    def _record_time(self):
        self.record(self._epoch, {"time/fit": time.perf_counter() - self._begin})

    def on_train_end(self, logs=None):
        if self._open:
            self._record_time()
            self.files.write_info({**self._info, "finished": True})
            self.page = report.write(self.files.directory)

    def _repr_html_(self):
        if not self.files.records_path.exists():
            return "<p>No epoch is recorded yet.</p>"
        return (self.page or report.write(self.files.directory))._repr_html_()
