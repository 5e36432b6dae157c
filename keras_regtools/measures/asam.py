"""How far the loss rises by one step up the gradient that is scaled by the weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keras import ops

from keras_regtools.measures.declaration import measure
from keras_regtools.measures.sam import rise_by_a_step
from keras_regtools.validation import non_negative, positive, positive_integer

if TYPE_CHECKING:
    from keras_regtools.measures.sam import SAMSharpness
    from keras_regtools.surface import LossSurface


@measure("loss", "asam", rho=positive, eta=non_negative, m=positive_integer)
def asam_sharpness(
    surface: LossSurface, *, rho: float = 0.5, eta: float = 0.01, m: int | None = None
) -> SAMSharpness:
    """The rise of the loss by a step that is scaled by the weights: L(w + ρ T²g/‖T g‖) − L(w).

    T = |w| + η for kernels and 1 for what has one axis or none, as biases: the adaptive sharpness
    of [Kwon et al., 2021](https://arxiv.org/abs/2102.11600), which a rescaling of the weights that
    leaves the function alone does not change, but for η.

    Args:
        surface: A `LossSurface`.
        rho: Length of the step in the scaled coordinates; 0.5 in the paper.
        eta: What is added to |w|; 0.01 in the paper.
        m: As for `sam_sharpness`.

    Returns:
        A `SAMSharpness`.

    Raises:
        ValueError: `rho` or `m` that is not positive, `eta` below zero, or `m` for a dataset.

    Example:

    >>> import keras, numpy as np
    >>> from keras_regtools import LossSurface
    >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    >>> model.set_weights([np.array([[2.0]])])
    >>> surface = LossSurface(model, np.array([[1.0]]), np.array([0.0]), loss="mse")
    >>> round(asam_sharpness(surface, rho=0.1, eta=0.0).value, 4)  # 2.2² − 2²
    0.84
    """

    def scale(w):
        return ops.abs(w) + eta if len(w.shape) > 1 else ops.ones_like(w)

    return rise_by_a_step(surface, rho, m, scale)
