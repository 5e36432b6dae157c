"""Self-contained HTML pages: a run from its records, a search, and a plane of the loss to turn."""

from keras_regtools.report.compare import compare
from keras_regtools.report.page import Page, write
from keras_regtools.report.relief import write_surface
from keras_regtools.report.search import write_search

__all__ = ["Page", "compare", "write", "write_search", "write_surface"]


def __dir__():
    return __all__
