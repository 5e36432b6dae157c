"""Group lasso: a penalty under which whole filters, units or inputs become zero."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from keras_regtools.regularizers.kernels import KERNELS, OVER, OfKernel, groups_of, like_kernel
from keras_regtools.regularizers.proximal import Proximal
from keras_regtools.regularizers.strength import Strength
from keras_regtools.validation import among

_TINY = 1e-30
_STEPS = 4  # of Newton's method: from where it starts, an error of 2e-6 at most was seen


def _lengths(w, t):
    """The length of each column of w after the step, r with Σ (w_i / (r + t_i))² = 1, or 0.

    The root of a secular equation: 1 / √Σ − 1 is nearly straight in r, and its tangents lie above
    it, so that Newton's method comes from the left and stays there.
    """
    t, size = t + _TINY, ops.abs(w)
    stays = ops.sum(ops.square(w / t), axis=0) > 1
    norm = ops.sqrt(ops.sum(ops.square(w), axis=0))
    r = ops.maximum(norm - ops.max(t, axis=0), ops.max(size - t, axis=0))
    r = ops.maximum(r, 0.0)
    for _ in range(_STEPS):
        inverse = 1.0 / (r + t)
        square = ops.square(w * inverse)
        total, slope = ops.sum(square, axis=0), ops.sum(square * inverse, axis=0)
        total, slope = (ops.where(stays, x, 1.0) for x in (total, slope))
        r = r + (ops.sqrt(total) - 1.0) * total / slope
    return ops.where(stays, r, 0.0)


@keras.saving.register_keras_serializable(package="keras_regtools")
class GroupLasso(OfKernel, Proximal):
    """The penalty `l21 * Σ_g √(size of g) * ‖w_g‖₂` over groups of the weights of a kernel.

    From [Yuan & Lin, 2006](https://doi.org/10.1111/j.1467-9868.2005.00532.x). The square root of
    the size makes groups of different sizes alike; sizes are those of a kernel's own groups.

    A kernel by itself does not say which of its axes are outputs. `regularize` looks at the layer
    and sets `kernel=` for each; by hand it is needed for depthwise, transposed, LSTM and GRU
    kernels.

    Args:
        l21: Strength, a finite float, zero or above.
        over: What a group is: `"filters"` of convolutions and `"units"` of other layers, which both
            are all weights that lead to one output, or `"inputs"`, all weights that come from one.
        kernel: `"standard"` for Dense, convolutional, simple recurrent and embedding layers,
            `"depthwise"`, `"transposed"`, `"lstm"` or `"gru"` (a unit owns its column in each
            gate).

        proximal: Whether it acts by a proximal step after each update, which gives groups of exact
            zeros, as for `L1`: w_g ← w_g · max(1 − η l21 √(size) / ‖w_g‖, 0). Under Adam and its
            like, where each weight i has an η_i of its own, it is w_i ← w_i r / (r + t_i) with
            t_i = η_i l21 √(size) and r the length that comes out, found by Newton's method; a
            group with Σ (w_i / t_i)² ≤ 1 becomes zero.

    Raises:
        ValueError: a strength that is negative, NaN or infinite; an unknown `over` or `kernel`;
            when called, a weight that is no such kernel.

    Example:

    >>> penalty = GroupLasso(0.1)
    >>> kernel = keras.ops.array([[3.0, 0.0], [4.0, 0.0]])  # two inputs, two units
    >>> round(float(penalty(kernel)), 6)  # 0.1 · √2 · (5 + 0)
    0.707107
    """

    l21 = Strength()

    def __init__(
        self,
        l21: float = 0.01,
        over: str = "filters",
        kernel: str = "standard",
        proximal: bool = False,
    ) -> None:
        self.over, self.kernel = among(OVER)("over", over), among(KERNELS)("kernel", kernel)
        super().__init__(proximal, l21=l21)

    def __call__(self, x: Any) -> Any:
        groups = groups_of(self.seen(x), self.over, self.kernel)
        squares = ops.sum(ops.square(groups), axis=0)
        away = squares > 0  # the norm has no derivative at zero: 0 is one of those it may have
        norms = ops.where(away, ops.sqrt(ops.where(away, squares, 1.0)), 0.0)
        size = math.prod(x.shape) // math.prod(squares.shape) if 0 not in x.shape else 0
        return ops.cast(self.strengths["l21"], x.dtype) * math.sqrt(size) * ops.sum(norms)

    def shrunk(self, w: Any, steps: Any) -> Any:
        groups = groups_of(w, self.over, self.kernel)
        strength = ops.cast(self.strength_of_step("l21"), w.dtype) * math.sqrt(groups.shape[0])
        if not len(steps.shape):
            norms = ops.sqrt(ops.sum(ops.square(groups), axis=0))
            kept = ops.maximum(1.0 - strength * steps / ops.where(norms > 0, norms, 1.0), 0.0)
            return w * like_kernel(kept, tuple(w.shape), self.over, self.kernel)
        thresholds = strength * groups_of(steps, self.over, self.kernel)
        lengths = like_kernel(_lengths(groups, thresholds), tuple(w.shape), self.over, self.kernel)
        return ops.where(lengths > 0, w * lengths / (lengths + strength * steps + _TINY), 0.0)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "over": self.over, "kernel": self.kernel}
