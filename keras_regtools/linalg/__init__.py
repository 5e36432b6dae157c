"""Internal: linear algebra on a symmetric matrix that is known only by its products.

A matrix is a callable from `(k, n)` to `(k, n)`: it multiplies each row. Vectors are rows of numpy
arrays in the precision of the products; scalars are Python floats. Nothing here knows of models.
"""

from keras_regtools.linalg.density import density
from keras_regtools.linalg.lanczos import WHICH, Eigenpairs, Lanczos, eigenpairs
from keras_regtools.linalg.trace import FEWEST_DRAWS, Trace, trace

__all__ = [
    "FEWEST_DRAWS",
    "WHICH",
    "Eigenpairs",
    "Lanczos",
    "Trace",
    "density",
    "eigenpairs",
    "trace",
]
