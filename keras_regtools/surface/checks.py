"""Look for what makes a surface wrong: chance in data or layers, hidden second derivatives.

Keras' own layers and ours are known (tests/test_hessians.py); others are called on a few samples.
"""

import contextlib
import math

import keras
import numpy as np
from keras import ops, tree

from keras_regtools import backend, vectors
from keras_regtools.layers.shadow import all_layers, shadowed

_SAMPLES, _BATCHES, _DIRECTIONS = 4, 8, 3
_TOLERANCE = 0.003  # in single precision a difference is right to about a tenth of that


def faults(surface):
    """Sentences about what is wrong, for `LossSurface.check`."""
    found = [*_data_faults(surface.data)]
    faulty = set()
    for suspect, calls in _calls_of_suspects(surface):
        inside = {id(layer) for layer in all_layers(suspect)} if _is_layer(suspect) else set()
        if inside & faulty:
            continue  # what holds a faulty layer need not be named too
        with contextlib.suppress(Exception), shadowed(surface.batch.shadows(exact=True)):
            sentence = next(filter(None, (_Probe(suspect, *call).fault() for call in calls)), None)
            if sentence:
                faulty.add(id(suspect))
                found.append(sentence)
    return found


def explain(surface, error):
    """Raise a sentence that names the layer without a second derivative, if there is one."""
    for suspect, calls in _calls_of_suspects(surface):
        with shadowed(surface.batch.shadows(exact=True)):
            for call in calls:
                reason = _Probe(suspect, *call).refuses_second_derivative()
                if reason:
                    raise NotImplementedError(
                        "Expected layers that can be differentiated twice. Received: "
                        f"{_named(suspect)}, whose second derivative gave: {reason}"
                    ) from error


def why_not_finite(surface, params):
    """Which batch has a loss that is not finite."""
    first = 0
    for number, (batch, count) in enumerate(surface.data.one_by_one(), 1):
        (value,), _ = surface.batch.functions["value"]((params, *surface.batch.state()), batch)
        if not math.isfinite(value):
            return (
                f"Expected a finite loss. Received: a loss of {value} in batch {number} "
                f"(samples {first} to {first + count - 1})"
            )
        first += count
    return "Expected finite derivatives. Received: a product that is not, of a finite loss"


def _data_faults(data):
    if data.dataset is None:
        return
    for number, (first, second) in enumerate(zip(data, data, strict=False), 1):
        if not _same(first, second):
            yield (
                "The data are not the same in two passes, so that the surface is another function "
                f"at each call. They differ in batch {number}; a dataset that shuffles or augments "
                "must be made without that."
            )
            return
        if number == _BATCHES:
            return


def _same(a, b):
    a, b = tree.flatten(a), tree.flatten(b)
    return len(a) == len(b) and all(
        np.array_equal(x, y, equal_nan=np.issubdtype(np.asarray(x).dtype, np.floating))
        for x, y in zip(a, b, strict=True)
    )


def _is_layer(suspect):
    return isinstance(suspect, keras.layers.Layer)


def _named(suspect):
    kind = "layer" if _is_layer(suspect) else "operation"
    return f"the {kind} {suspect.name!r} (of type {type(suspect).__name__})"


def _suspects(model):
    """Layers and operations with code that is neither Keras' nor ours, inner ones first."""
    layers = [model, *all_layers(model)]
    for layer in reversed(layers):
        ours = type(layer).__module__.startswith(("keras.", "keras_regtools."))
        if not ours or isinstance(layer, keras.layers.Lambda):
            yield layer
    if not backend.MOMENTS_HAVE_SECOND_DERIVATIVES:
        for layer in layers:
            for operation in getattr(layer, "operations", []):
                if not _is_layer(operation):
                    yield operation


def _calls_of_suspects(surface):
    """Each suspect with the arguments that it is called with on the first samples."""
    suspects = list(_suspects(surface.model))
    if not suspects:
        return []
    calls = {id(suspect): [] for suspect in suspects}
    x, _, _, _ = next(surface.data.first(_SAMPLES).tensors())
    batch = surface.batch
    own = {id(layer): call for layer, call in batch.shadows(exact=True)}

    def watched(suspect):
        call = own.get(id(suspect), suspect.call)

        def watching(*args, **kwargs):
            calls[id(suspect)].append((args, kwargs))
            return call(*args, **kwargs)

        return suspect, watching

    # The model's own call is what `stateless_call` makes.
    inner = [suspect for suspect in suspects if suspect is not surface.model]
    fixed, state = batch.state()
    try:
        with backend.frozen_draws(), _also(map(watched, inner)):
            batch.call_model(surface.params, fixed, state, x, exact=True)
    except Exception:  # what cannot be called eagerly cannot be looked into
        return []
    if surface.model in suspects:
        calls[id(surface.model)].append(((x,), {}))
    return [(suspect, calls[id(suspect)]) for suspect in suspects]


def _also(calls):
    return shadowed(list(calls))


class _Probe:
    """One layer or operation alone, as a scalar function of its inputs and weights."""

    def __init__(self, suspect, args, kwargs):
        self.suspect = suspect
        self.leaves = tree.flatten((args, kwargs))
        self.structure = (args, kwargs)
        self.places = [i for i, leaf in enumerate(self.leaves) if _is_float(leaf)]
        weights = suspect.trainable_variables if _is_layer(suspect) else []
        self.point = [
            ops.convert_to_tensor(np.array(ops.convert_to_numpy(t)), dtype=t.dtype)
            for t in [*(self.leaves[i] for i in self.places), *weights]
        ]
        self.rng = np.random.default_rng(0)
        self.readout = None

    def value(self, point):
        """⟨r, t + t²/2⟩ for the outputs t and fixed random r."""
        inputs, weights = point[: len(self.places)], point[len(self.places) :]
        leaves = list(self.leaves)
        for place, t in zip(self.places, inputs, strict=True):
            leaves[place] = t
        args, kwargs = tree.pack_sequence_as(self.structure, leaves)
        with backend.frozen_draws():
            if _is_layer(self.suspect):
                state = [ops.convert_to_tensor(v) for v in self.suspect.non_trainable_variables]
                outputs, _ = self.suspect.stateless_call(weights, state, *args, **kwargs)
            else:
                outputs = self.suspect.call(*args, **kwargs)
        outputs = [t for t in tree.flatten(outputs) if _is_float(t)]
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
        hvp = backend.hvp(self.value)
        return [vectors.flatten(hvp(self.point, several)[0]) for several in ([v], [v, v])]

    def refuses_second_derivative(self):
        """Why there is none, where there is a first one; `None` if there is one."""
        try:
            self.gradient(self.point)
        except Exception:
            return None
        try:
            self.products(self.point)
        except Exception as error:
            lines = str(error).strip().splitlines()
            return lines[0] if lines else repr(error)
        return None

    def fault(self):
        """A sentence about what is wrong, or `None`."""
        first, second = (float(ops.convert_to_numpy(self.value(self.point))) for _ in range(2))
        if first != second and abs(first - second) > 1e-5 * abs(first):
            return (
                f"Two calls of {_named(self.suspect)} on the same samples differ, so that the "
                "surface is another function at each call. Give its random draws a seed that is "
                "part of the model's state."
            )
        error = self._disagreement()
        if error is not None:
            return (
                f"The Hessian product of {_named(self.suspect)} is {100 * error:.1f} % off the "
                "differences of its gradient: something in it hides a part of its second "
                "derivative, and curvature measured through it is wrong. On TensorFlow this is "
                "what `tf.nn.moments`, `keras.ops.moments` and stopped gradients do."
            )
        return None

    def _disagreement(self):
        """The relative distance of a product from a difference, if it can be told."""
        if not self.point or not all(_is_precise(t) for t in self.point):
            return None
        double = all(keras.backend.standardize_dtype(t.dtype) == "float64" for t in self.point)
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
                    # Rounding, curvature and kinks change with the step; what is hidden does not.
                    if off > _TOLERANCE * largest and np.linalg.norm(near - far) < 0.25 * off:
                        return off / largest
        return None

    def _difference(self, v, step):
        ahead, behind = (self.gradient(vectors.axpy(s * step, v, self.point)) for s in (1, -1))
        return (ahead - behind) / (2 * step)


def _scale(t):
    return float(np.sqrt(np.mean(np.square(ops.convert_to_numpy(t))))) or 1.0


def _is_float(leaf):
    return ops.is_tensor(leaf) and "float" in keras.backend.standardize_dtype(leaf.dtype)


def _is_precise(t):
    return keras.backend.standardize_dtype(t.dtype) in ("float32", "float64")
