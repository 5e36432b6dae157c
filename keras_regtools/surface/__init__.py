"""Internal: the loss surface: a model's loss over data, as a function of the weights."""

from keras_regtools.surface.surface import MODES, LossSurface

__all__ = ["MODES", "LossSurface"]
