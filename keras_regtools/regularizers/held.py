"""Hold the zeros of a model: a training of what is left."""

from __future__ import annotations

import keras
import numpy as np
from keras import ops

from keras_regtools.keras_internals import set_train_step, train_step_of
from keras_regtools.validation import flag, keras_model


def hold_zeros(model: keras.Model, hold: bool = True) -> int:
    """Let the weights that are zero now stay zero in later fits, or let them go again.

    A penalty that makes zeros makes all other weights smaller too. So one trains with
    `L1(…, proximal=True)` or `GroupLasso(…, proximal=True)` until enough is zero, holds the zeros,
    sets the strength to 0 and trains what is left: the relaxed lasso of
    [Meinshausen, 2007](https://doi.org/10.1016/j.csda.2006.12.019) in which the first fit chooses
    and the second one fits.

    Kernels are held, the trainable weights of two axes or more. Keras multiplies them with 0 or 1
    after each update; a constraint of the model's own is applied before. Files and copies of the
    model do not know of it, nor do the averages of an optimizer with `use_ema`.

    Args:
        model: A built model.
        hold: Whether to hold the zeros there are now, or to let all go.

    Returns:
        How many weights are held.

    Raises:
        TypeError: not a Keras model.
        ValueError: a model that is not built.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> from keras_regtools.regularizers import hold_zeros
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> model.set_weights([np.array([[0.0], [1.0]]), np.zeros(1)])
    >>> hold_zeros(model)
    1
    >>> model.compile("sgd", "mse")
    >>> history = model.fit(np.ones((8, 2)), np.zeros(8), verbose=0)
    >>> float(model.get_weights()[0][0, 0])
    0.0
    """
    hold = flag("hold", hold)
    keras_model(model)
    held = 0
    for variable in model.weights:
        if isinstance(variable.constraint, _Held):
            variable.constraint = variable.constraint.constraint
        if hold and variable.trainable and len(variable.shape) > 1:
            kept = np.array(ops.convert_to_numpy(variable)) != 0
            if not kept.all():
                variable.constraint = _Held(kept, variable.constraint)
                held += int(kept.size - kept.sum())
    if model.compiled and train_step_of(model) is not None:
        set_train_step(model, None)  # it was made without, or with others
    return held


class _Held:
    """A constraint that keeps zeros, after another one."""

    def __init__(self, kept, constraint):
        # A variable, as a compiled step would hold a constant as text.
        self.kept = keras.Variable(kept, dtype="bool", trainable=False, name="kept")
        self.constraint = constraint

    def __call__(self, variable):
        new = variable if self.constraint is None else self.constraint(variable)
        return ops.where(*map(ops.convert_to_tensor, (self.kept, new)), 0)
