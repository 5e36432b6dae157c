"""Internal: where a report puts records, so that what goes wrong there ends no training."""

import contextlib
import warnings

from keras_regtools.records.records import Writing, refuse_no_writer
from keras_regtools.report.pictures import pictures


class Surviving:
    """The files of a report as a sink whose failures end no training.

    Args:
        owner: The `Report`.
    """

    def __init__(self, owner):
        self._owner = owner

    def begin(self, rows):
        with self._owner._surviving():
            self._owner.files.begin(rows)

    def append(self, rows):
        if not self._owner._failed:
            with self._owner._surviving():
                self._owner.files.append(rows)

    def keep(self, name, value):
        if not self._owner._failed:
            with self._owner._surviving():
                self._owner.files.keep(name, value)


class Writers:
    """The writers of a report; one that fails gets nothing more in this fit.

    Args:
        owner: The `Report`.
        writers: List of them.
    """

    def __init__(self, owner, writers):
        if not isinstance(writers, (list, tuple)):
            raise TypeError(
                "Argument `writers` must be a list. "
                f"Received: writers={writers!r} (of type {type(writers)})"
            )
        for writer in writers:
            refuse_no_writer(writer)
        self._owner, self._all, self._writing = owner, tuple(writers), []

    def __deepcopy__(self, memo):
        new = Writers(memo.get(id(self._owner), self._owner), ())
        new._all = self._all  # files and connections, which a copy shares
        return new

    def begin(self, info, first_epoch):
        """Begin a run, with the records that there are of `first_epoch` and later ones: a run that
        goes on has written the others."""
        self._writing = [_Writing(writer, first_epoch) for writer in self._all]
        for one in self._writing:
            one.call("begin", info)
            self._owner.records.sink_into(one)

    def end(self):
        """Write the pictures, and end."""
        records = self._owner.records
        if not self._writing:
            return
        step = max((row.step for row in records.rows), default=0)
        drawn = pictures(records) if any(w.takes("picture") for w in self._writing) else []
        for one in self._writing:
            for picture in drawn:
                one.call("picture", picture.name, lambda p=picture: p.png(records), step)
            one.call("end")
            records.leave(one)
        self._writing = []


class _Writing(Writing):
    """A writer whose failures end no training."""

    def __init__(self, writer, first_epoch):
        super().__init__(writer)
        self._first_epoch, self.failed = first_epoch, False

    def begin(self, rows):
        rows = [row for row in rows if row.epoch >= self._first_epoch]
        if rows:
            self.call("write", rows)

    append = begin

    def takes(self, method):
        return not self.failed and callable(getattr(self.writer, method, None))

    def call(self, method, *args):
        """Call a method if there is one; what is a function among the arguments is called first."""
        if not self.takes(method):
            return
        try:
            getattr(self.writer, method)(*(a() if callable(a) else a for a in args))
        except Exception as error:
            self.failed = True
            warnings.warn(
                f"{self.writer!r} gets no more of this fit; training goes on. Received: {error!r}",
                stacklevel=2,
            )
            with contextlib.suppress(Exception):  # a tracker may wait for the end of the run
                if method != "end" and hasattr(self.writer, "end"):
                    self.writer.end()
