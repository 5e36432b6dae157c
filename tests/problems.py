"""Problems whose answers are known in closed form, as models, for every measure to be held to.

The weights of a `function_model` are one vector, and its loss is a function of that vector written
with `keras.ops`: what a measure must find is then a line of numpy.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable

import keras
import numpy as np
import pytest
from keras import ops

import keras_regtools as rt

HAS_FLOAT64 = keras.backend.backend() == "tensorflow"  # end to end


def rows(of_all, *default):
    """The rows of a test: these in the default run, the others with `pytest -m slow`."""
    of_all = [row if isinstance(row, tuple) else (row,) for row in of_all]
    default = [row if isinstance(row, tuple) else (row,) for row in default]
    assert all(row in of_all for row in default)
    marks = [() if row in default else pytest.mark.slow for row in of_all]
    return [pytest.param(*row, marks=mark) for row, mark in zip(of_all, marks, strict=True)]


def numbers(tensors):
    """Tensors or variables as a list of arrays."""
    return [np.array(ops.convert_to_numpy(t)) for t in tensors]


def doubles(tensors):
    """The same in double precision."""
    return [array.astype("float64") for array in numbers(tensors)]


@contextlib.contextmanager
def float64():
    """Double precision where the backend has it, for the sharp versions of the tests."""
    before = keras.config.floatx()
    policy = keras.config.dtype_policy()
    if HAS_FLOAT64:
        keras.config.set_floatx("float64")
        keras.config.set_dtype_policy("float64")
    try:
        yield
    finally:
        keras.config.set_floatx(before)
        keras.config.set_dtype_policy(policy)


class Function(keras.layers.Layer):
    """Gives `function(weights)` for each sample, whatever the input."""

    def __init__(self, function, weights):
        super().__init__()
        self.function, self.start = function, np.asarray(weights, "float64")

    def build(self, input_shape):
        self.w = self.add_weight(
            name="w",
            shape=self.start.shape,
            initializer=lambda shape, dtype: ops.convert_to_tensor(self.start, dtype),
        )

    def call(self, inputs):
        return ops.zeros_like(inputs) + self.function(ops.convert_to_tensor(self.w))


def mean_prediction(y_true, y_pred):
    return ops.mean(y_pred, axis=-1)


def function_model(function, weights, **compile_arguments):
    """A compiled model whose loss is `function` of its one weight vector."""
    model = keras.Sequential([keras.Input((1,)), Function(function, weights)])
    model.compile(**{"optimizer": "sgd", "loss": mean_prediction, **compile_arguments})
    return model


def function_surface(function, weights, samples=4, **arguments):
    """The `LossSurface` of a `function_model`."""
    x = np.zeros((samples, 1))
    return rt.LossSurface(function_model(function, weights), x, x, **arguments)


def constant(values, like):
    return ops.convert_to_tensor(np.asarray(values), dtype=like.dtype)


@dataclasses.dataclass(frozen=True)
class Problem:
    """A function of a weight vector, where it is looked at, and what is known about it there."""

    function: Callable
    weights: tuple
    value: float
    gradient: tuple
    hessian: tuple  # rows
    keskar: dict = dataclasses.field(default_factory=dict)  # epsilon -> largest rise

    def surface(self, **arguments):
        return function_surface(self.function, self.weights, **arguments)

    def sharpness(self, epsilon):
        return 100 * self.keskar[epsilon] / (1 + self.value)


def box(weights, epsilon):
    return epsilon * (np.abs(weights) + 1)


def diagonal_quadratic(h, at, minimum, floor):
    h, at, minimum = (np.asarray(v, "float64") for v in (h, at, minimum))
    gradient = h * (at - minimum)

    def rise(epsilon):
        b = box(at, epsilon)
        return float(np.sum(np.abs(gradient) * b + h * b**2 / 2))

    return Problem(
        lambda w: 0.5 * ops.sum(constant(h, w) * ops.square(w - constant(minimum, w))) + floor,
        tuple(at),
        float(floor + np.sum(h * (at - minimum) ** 2) / 2),
        tuple(gradient),
        tuple(map(tuple, np.diag(h))),
        {epsilon: rise(epsilon) for epsilon in (1e-3, 5e-4, 0.1)},
    )


def linear(a, at):
    a, at = np.asarray(a, "float64"), np.asarray(at, "float64")
    return Problem(
        lambda w: ops.sum(constant(a, w) * w),
        tuple(at),
        float(a @ at),
        tuple(a),
        tuple(map(tuple, np.zeros((len(a), len(a))))),
        {e: float(np.abs(a) @ box(at, e)) for e in (1e-3, 5e-4, 0.1)},
    )


def logistic(at):
    value = math.log1p(math.exp(-at))
    p = 1 / (1 + math.exp(at))
    return Problem(
        lambda w: ops.sum(ops.softplus(-w)),
        (at,),
        value,
        (-p,),
        ((p * (1 - p),),),
        {e: math.log1p(math.exp(-(at - e * (abs(at) + 1)))) - value for e in (1e-3, 5e-4, 0.1)},
    )


MINIMUM = ((1.0, 10.0, 100.0, 0.5), (1.0, -2.0, 0.0, 3.0))

PROBLEMS = {
    "quadratic at its minimum": diagonal_quadratic(MINIMUM[0], MINIMUM[1], MINIMUM[1], 0.25),
    "quadratic off its minimum": diagonal_quadratic(
        MINIMUM[0], (1.5, -2, 0.2, 3), MINIMUM[1], 0.25
    ),
    "saddle": Problem(
        lambda w: w[0] ** 2 - 2 * w[1] ** 2 + w[0] * w[1],
        (1.0, 0.5),
        1.0,
        (2.5, -1.0),
        ((2.0, 1.0), (1.0, -4.0)),
    ),
    "linear": linear((3.0, -1.0, 0.5), (1.0, 2.0, 4.0)),
    "logistic": logistic(2.0),
    "rescaled product": Problem(  # ½(w1 w2 - 1)², at (2a, .5/a), a = 3
        lambda w: 0.5 * ops.square(w[0] * w[1] - 1),
        (6.0, 0.5 / 3),
        0.0,
        (0.0, 0.0),
        (((0.5 / 3) ** 2, 1.0), (1.0, 36.0)),
    ),
}


def tilted_bowl():
    """FACTS 7: H = [[2, -1.5], [-1.5, 2]] at (1, 1): in the box of ε = .1 the loss rises by .14 in
    two corners and by .02 in the other two."""
    h = ((2.0, -1.5), (-1.5, 2.0))

    def function(w):
        d = w - 1
        return 0.5 * ops.sum(d * ops.sum(constant(h, w) * d[None], axis=1))

    return function_surface(function, (1.0, 1.0))


def with_all_state(optimizer):
    """A compiled network with weights, moving statistics and seeds, for six numbers a sample."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(8),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.Dropout(0.3, seed=1),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )
    model.compile(optimizer, "sparse_categorical_crossentropy")
    return model
