"""A function near one point: is it the same twice, and is it twice what its slope says?"""

import re

import keras
import numpy as np
from keras import ops, tree

from keras_regtools import backend, vectors

_DIRECTIONS = 3
# In single precision a central difference with the best step is right to ε^(2/3) = 2e-5 of the
# function's own size, and to some ten times that of a slope: ten times more is a fault, not noise.
_TOLERANCE = 0.003


class Probe:
    """A function of a list of tensors, looked at near one point.

    Args:
        named: What it is, for sentences.
        outputs: `point -> structure of tensors`.
        point: List of tensors or variables, of which copies are taken.
    """

    def __init__(self, named, outputs, point):
        self.named, self._outputs = named, outputs
        self.point = [
            ops.convert_to_tensor(np.array(ops.convert_to_numpy(t)), dtype=t.dtype) for t in point
        ]
        self.rng = np.random.default_rng(0)
        self.readout = None
        self.hidden = []  # operations that the backend takes for constants

    def value(self, point):
        """⟨r, t + t²/2⟩ for the outputs t and fixed random r."""
        with backend.frozen_draws():
            outputs = [t for t in tree.flatten(self._outputs(point)) if is_float(t)]
        if self.readout is None:
            self.readout = [self.rng.standard_normal(tuple(t.shape)) for t in outputs]
        # The square makes the slope that comes back to the layer depend on the point.
        return sum(
            ops.sum((t + t * t / 2) * ops.cast(r, t.dtype))
            for t, r in zip(outputs, self.readout, strict=True)
        )

    def gradient(self, point):
        return vectors.flatten(backend.value_and_grad(self.value)(point)[1])

    def products(self, v):
        """The product as it is made of one vector, and of several."""
        hvp = backend.hvp(self.value, self.hidden)
        compiled = backend.jit(lambda point, v: hvp(point, [v]))
        return [
            vectors.flatten(compiled(self.point, v)[0]),
            vectors.flatten(hvp(self.point, [v, v])[0]),
        ]

    def refuses_second_derivative(self):
        """Why there is none, where there is a first one; `None` if there is one."""
        try:
            self.gradient(self.point)
        except Exception:
            return None
        try:
            self.products(self.point)
        except Exception as error:
            return first_line(error)
        return no_derivative(self.hidden[0][0]) if self.hidden else None

    def fault(self):
        """A sentence about what is wrong, or `None`."""
        try:
            first, second = (float(ops.convert_to_numpy(self.value(self.point))) for _ in range(2))
            if first != second and abs(first - second) > 1e-5 * abs(first):
                return (
                    f"Two calls of {self.named} on the same samples differ, so that the surface is "
                    "another function at each call. Give its random draws a seed that is part of "
                    "the model's state."
                )
            error = self._disagreement()
        except Exception as problem:
            if self.refuses_second_derivative():  # which a product says more clearly
                return None
            return f"It could not be checked whether {self.named} is right: {first_line(problem)}"
        if error is not None and not self.hidden:  # which are named where they do harm
            return (
                f"The Hessian product of {self.named} is {100 * error:.1f} % off the differences "
                "of its gradient: something in it hides a part of its second derivative, and "
                "curvature measured through it is wrong. On TensorFlow this is what "
                "`tf.nn.moments`, `keras.ops.moments` and stopped gradients do."
            )
        return None

    def _disagreement(self):
        """The relative distance of a product from a difference, if it can be told."""
        if not self.point or not all(_is_precise(t) for t in self.point):
            return None
        double = all(keras.backend.standardize_dtype(t.dtype) == "float64" for t in self.point)
        rounding = np.finfo("float64" if double else "float32").eps * np.linalg.norm(
            self.gradient(self.point)
        )
        for _ in range(_DIRECTIONS):
            v = [
                ops.convert_to_tensor(
                    self.rng.standard_normal(tuple(t.shape)) * _scale(t), dtype=t.dtype
                )
                for t in self.point
            ]
            products = self.products(v)
            for step in (1e-5, 1e-6) if double else (1e-3, 1e-4):
                near, far = self._difference(v, step), self._difference(v, 2 * step)
                for product in products:
                    off = np.linalg.norm(near - product)
                    largest = max(np.linalg.norm(near), np.linalg.norm(product))
                    # Curvature and kinks change with the step; what is hidden does not.
                    least = max(_TOLERANCE * largest, 4 * rounding / step)
                    if off > least and np.linalg.norm(near - far) < 0.25 * off:
                        return off / largest
        return None

    def _difference(self, v, step):
        ahead, behind = (self.gradient(vectors.axpy(s * step, v, self.point)) for s in (1, -1))
        return (ahead - behind) / (2 * step)


def no_derivative(operation):
    """Why there is no second derivative of what holds such an operation."""
    return f"{keras.backend.backend()} has no derivative of its operation {operation}"


def first_line(error):
    text = str(error)
    marked = re.search(r"\x1b\[1m(.*?)\x1b\[0m", text, re.DOTALL)  # Keras' own way to say it
    text = marked[1] if marked else text.partition("Arguments received by")[0]
    lines = [line for line in text.strip().splitlines() if line.strip()] or [repr(error)]
    node = re.search(r"Detected at node (\S+)", str(error))
    if node:
        return f"the operation {node[1].split('/')[-1]} cannot be run"
    return lines[-1 if lines[0].startswith("in user code") else 0].strip()


def _scale(t):
    return float(np.sqrt(np.mean(np.square(ops.convert_to_numpy(t))))) or 1.0


def is_float(leaf):
    return ops.is_tensor(leaf) and "float" in keras.backend.standardize_dtype(leaf.dtype)


def _is_precise(t):
    return keras.backend.standardize_dtype(t.dtype) in ("float32", "float64")
