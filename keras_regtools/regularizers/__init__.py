"""Weight penalties whose strength is a variable: assign it at any time, it acts at once."""

from keras_regtools.regularizers.group_lasso import GroupLasso
from keras_regtools.regularizers.held import hold_zeros
from keras_regtools.regularizers.l1_l2 import L1, L1L2, L2
from keras_regtools.regularizers.orthogonal import Orthogonal
from keras_regtools.regularizers.strength import Penalty, Strength
from keras_regtools.regularizers.sum import Sum
from keras_regtools.regularizers.totals import penalties

__all__ = [
    "L1",
    "L1L2",
    "L2",
    "GroupLasso",
    "Orthogonal",
    "Penalty",
    "Strength",
    "Sum",
    "hold_zeros",
    "penalties",
]


def __dir__():
    return __all__
