"""Records of a run: one record is an epoch, a step, a name and a value.

Files hold one JSON object a line, so a run that was cut off leaves everything up to its last
epoch and any tool can read it. NaN and the infinities are written as strings, since JSON has none.
"""

from keras_regtools.records.files import RecordsFile
from keras_regtools.records.reading import read, read_many
from keras_regtools.records.records import Record, Records, of_run

__all__ = ["Record", "Records", "RecordsFile", "of_run", "read", "read_many"]


def __dir__():
    return __all__
