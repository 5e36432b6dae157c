"""The only room that names tensorflow, jax or torch: derivatives and compilation, one file each.

Every backend offers the same functions. The first three turn a scalar function
`fn(params, *args)`, where `params` is a list of tensors and `args` are passed through without
being differentiated, into another function, not yet compiled:

- `value_and_grad(fn)`: `(params, *args)` -> `(value, gradient)`;
- `hvp(fn)`: `(params, vectors, *args)` -> the Hessian times each of the vectors, as a list; they
  share the forward and the backward pass;
- `gnvp(outputs, loss)`, of `outputs(params, *args)`, a list of tensors, and a scalar
  `loss(outputs, *args)`: the same for the Gauss-Newton matrix Jᵀ (∇² loss) J;
- `jit(fn)` compiles;
- `mean_over(fn)` compiles a function `fn(*args, x, y, sample_weight)` -> `(scalars, tensors)`, a
  list and a structure, into `(args, batches)` -> their means over the samples of `Batches`. The
  scalars are added in double precision; `tensors` as they are;
- `frozen_draws()`, a context in which unseeded random draws repeat and leave no trace.
"""

import keras

_name = keras.backend.backend()
if _name == "tensorflow":
    from keras_regtools.backend._tensorflow import (
        frozen_draws,
        gnvp,
        hvp,
        jit,
        mean_over,
        value_and_grad,
    )
elif _name == "jax":
    from keras_regtools.backend._jax import frozen_draws, gnvp, hvp, jit, mean_over, value_and_grad
elif _name == "torch":
    from keras_regtools.backend._torch import (
        frozen_draws,
        gnvp,
        hvp,
        jit,
        mean_over,
        value_and_grad,
    )
else:
    raise ImportError(
        "keras_regtools needs derivatives. Expected the Keras backend to be one of 'tensorflow', "
        f"'jax', 'torch'. Received: {_name!r}"
    )

# TensorFlow's moments hide the mean inside the variance from second derivatives.
MOMENTS_HAVE_SECOND_DERIVATIVES = _name != "tensorflow"
# PyTorch's are computed as E[x²] − E[x]², which cancels, down to negative variances.
MOMENTS_CANCEL = _name == "torch"

__all__ = [
    "MOMENTS_CANCEL",
    "MOMENTS_HAVE_SECOND_DERIVATIVES",
    "frozen_draws",
    "gnvp",
    "hvp",
    "jit",
    "mean_over",
    "value_and_grad",
]
