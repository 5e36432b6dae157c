"""Plug in, measure, see and search everything that regularizes a Keras model."""

from keras_regtools import (
    applications,
    callbacks,
    landscape,
    layers,
    measures,
    plots,
    records,
    regularizers,
    report,
    trackers,
    vectors,
)
from keras_regtools.growing_batches import GrowingBatches
from keras_regtools.surface import LossSurface
from keras_regtools.surgery import LayerGroup, instrument, recalibrate, regularize, shrink, strip
from keras_regtools.trial import find_learning_rate, suggest_batch_size
from keras_regtools.version import __version__, show_versions

__all__ = [
    "GrowingBatches",
    "LayerGroup",
    "LossSurface",
    "__version__",
    "applications",
    "callbacks",
    "find_learning_rate",
    "instrument",
    "landscape",
    "layers",
    "measures",
    "plots",
    "recalibrate",
    "records",
    "regularize",
    "regularizers",
    "report",
    "show_versions",
    "shrink",
    "strip",
    "suggest_batch_size",
    "trackers",
    "tuner",
    "vectors",
]


def __dir__():
    return __all__


def __getattr__(name):
    if name == "tuner":  # keras_tuner is heavy: it comes when it is asked for
        import importlib

        return importlib.import_module("keras_regtools.tuner")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
