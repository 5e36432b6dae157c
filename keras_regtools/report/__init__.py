"""One self-contained HTML page from the records of a run."""

from keras_regtools.report.page import Page, write

__all__ = ["Page", "write"]
