"""One self-contained HTML page from the records of a run."""

from keras_regtools.report.page import Page, write
from keras_regtools.report.run import RunFiles

__all__ = ["Page", "RunFiles", "write"]
