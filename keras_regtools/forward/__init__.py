"""Internal: look inside a forward pass: override calls, walk layers, watch and pool what flows."""

from keras_regtools.forward.batch_norm_statistics import BatchNormStatistics
from keras_regtools.forward.input_statistics import InputStatistics
from keras_regtools.forward.overrides import call_model, overridden, watched
from keras_regtools.forward.walk import all_layers, channel_axis, names_of, unwrapped
from keras_regtools.forward.watcher import View, Watcher

__all__ = [
    "BatchNormStatistics",
    "InputStatistics",
    "View",
    "Watcher",
    "all_layers",
    "call_model",
    "channel_axis",
    "names_of",
    "overridden",
    "unwrapped",
    "watched",
]
