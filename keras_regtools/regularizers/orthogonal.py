"""Soft orthogonality: a penalty that keeps the filters of a layer apart from each other."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_regtools.regularizers.kernels import KERNELS, OfKernel, groups_of
from keras_regtools.regularizers.strength import Strength
from keras_regtools.validation import among


@keras.saving.register_keras_serializable(package="keras_regtools")
class Orthogonal(OfKernel):
    """The penalty `strength * ‖WᵀW − I‖²_F`, of a kernel of any rank as a matrix W.

    W has one column for each filter or unit, with all weights that lead to it. It is the soft
    orthogonality of [Bansal et al., 2018](https://arxiv.org/abs/1810.09102): it is zero where the
    filters have the length 1 and are orthogonal, which more filters than weights in each cannot
    be. Keras' `OrthogonalRegularizer` takes matrices only, and leaves the lengths alone.

    Args:
        strength: A finite float, zero or above.
        kernel: As for `GroupLasso`.

    Raises:
        ValueError: a strength that is negative, NaN or infinite; an unknown `kernel`; when called,
            a weight that is no such kernel.

    Example:

    >>> penalty = Orthogonal(0.5)
    >>> float(penalty(keras.ops.array([[1.0, 0.0], [0.0, 1.0]])))
    0.0
    >>> float(penalty(keras.ops.array([[2.0, 1.0], [0.0, 0.0]])))  # WᵀW − I = [[3, 2], [2, 0]]
    8.5
    """

    strength = Strength()

    def __init__(self, strength: float = 0.01, kernel: str = "standard") -> None:
        self.kernel = among(KERNELS)("kernel", kernel)
        super().__init__(strength=strength)

    def __call__(self, x: Any) -> Any:
        w = groups_of(x, "filters", self.kernel)
        apart = ops.matmul(ops.transpose(w), w) - ops.eye(w.shape[1], dtype=w.dtype)
        return ops.cast(self.strengths["strength"], x.dtype) * ops.sum(ops.square(apart))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "kernel": self.kernel}
