"""The loss along lines and over planes of the space of weights."""

from keras_regtools.landscape.directions import (
    Directions,
    hessian_directions,
    principal_directions,
    random_directions,
)
from keras_regtools.landscape.line import LossLine, loss_line
from keras_regtools.landscape.load import load
from keras_regtools.landscape.plane import LossPlane, loss_plane

__all__ = [
    "Directions",
    "LossLine",
    "LossPlane",
    "hessian_directions",
    "load",
    "loss_line",
    "loss_plane",
    "principal_directions",
    "random_directions",
]


def __dir__():
    return __all__
