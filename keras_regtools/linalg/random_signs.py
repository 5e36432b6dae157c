"""Random signs, the draws of estimators."""

import numpy as np


def random_signs(rng, shape, dtype):
    """An array of independent entries 1 and -1."""
    return rng.choice(np.array([-1, 1], dtype), shape)
