"""Internal: maximize a function in a box or a ball; nothing here knows of models."""

from keras_regtools.optimize.lbfgsb_in_box import lbfgsb, minimize_in_unit_box
from keras_regtools.optimize.objective import NotFinite, Objective
from keras_regtools.optimize.parametrization import FullBox, Scaled, SubspaceBox
from keras_regtools.optimize.projected_gradient import NORMS, projected_gradient
from keras_regtools.optimize.random_matrix import GivenColumns, RandomColumns

__all__ = [
    "NORMS",
    "FullBox",
    "GivenColumns",
    "NotFinite",
    "Objective",
    "RandomColumns",
    "Scaled",
    "SubspaceBox",
    "lbfgsb",
    "minimize_in_unit_box",
    "projected_gradient",
]
