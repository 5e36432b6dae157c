"""Internal: copies of a model with layers exchanged and weights kept; `recalibrate`."""

from keras_regtools.surgery.instrument import instrument
from keras_regtools.surgery.layer_groups import LayerGroup
from keras_regtools.surgery.recalibrate import recalibrate
from keras_regtools.surgery.regularize import regularize
from keras_regtools.surgery.shrink import shrink
from keras_regtools.surgery.strip import strip

__all__ = [
    "LayerGroup",
    "instrument",
    "recalibrate",
    "regularize",
    "shrink",
    "strip",
]
