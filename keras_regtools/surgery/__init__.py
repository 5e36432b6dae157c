"""A copy of a model with layers exchanged and weights kept; and moving statistics made anew."""

from keras_regtools.surgery.input_statistics import InputStatistics
from keras_regtools.surgery.instrument import instrument
from keras_regtools.surgery.recalibrate import MovingStatistics, recalibrate
from keras_regtools.surgery.regularize import regularize
from keras_regtools.surgery.strip import strip

__all__ = [
    "InputStatistics",
    "MovingStatistics",
    "instrument",
    "recalibrate",
    "regularize",
    "strip",
]
