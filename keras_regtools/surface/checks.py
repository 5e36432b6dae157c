"""Look for what makes a surface wrong: chance in data or layers, hidden second derivatives.

Keras' own layers and ours are known (tests/test_hessians.py); others are called on a few samples.
"""

import contextlib
import math

import keras
import numpy as np
from keras import ops, tree

from keras_regtools import backend
from keras_regtools.forward import all_layers, overridden, watched
from keras_regtools.forward.masks import masks_of, with_masks
from keras_regtools.surface.probe import Probe, first_line, is_float, no_derivative

_SAMPLES, _BATCHES = 4, 8
_DOUBTFUL = (keras.layers.Lambda, keras.layers.SpectralNormalization)


class _CannotLook(Exception):
    """The model cannot be called on a few samples outside of a graph."""


def faults(surface):
    """Sentences about what is wrong, for `LossSurface.check`."""
    found = [*_data_faults(surface.data)]
    try:
        found += _faults_of_layers(surface)
    except _CannotLook as reason:
        found.append(f"It could not be checked whether the model's layers are right: {reason}")
    if not surface.batch.has_products:
        with contextlib.suppress(Exception):  # a product will say it
            surface.over(surface.data.first(_SAMPLES)).product_of_params()
            surface.batch.has_products = True
    return found + [
        f"There is no second derivative of {owner}: {reason}."
        for owner, reason in _hidden(surface).items()
    ]


def _faults_of_layers(surface):
    found, faulty = [], set()
    for suspect, probes in _probes(surface, list(_suspects(surface.model))):
        inside = {id(layer) for layer in all_layers(suspect)} if _is_layer(suspect) else set()
        if inside & faulty:
            continue  # what holds a faulty layer need not be named too
        with overridden(surface.batch.overrides(exact=True)):
            sentence = next(filter(None, (probe.fault() for probe in probes)), None)
        if sentence:
            faulty.add(id(suspect))
            found.append(sentence)
    return found


def explain(surface, error):
    """Raise a sentence that names what has no second derivative, if a product failed for that."""
    reasons = _hidden(surface)
    if not reasons and error is not None:
        reasons = _refusals(surface)
    for owner, reason in reasons.items():
        raise NotImplementedError(
            "Expected layers and a loss that can be differentiated twice. Received: "
            f"{owner}, whose second derivative gave: {reason}"
        ) from None


def _hidden(surface):
    """What holds operations that the backend would take for constants, with the reason."""
    model, reasons = surface.model, {}
    for kind, name in surface.batch.hidden:
        owner = _owner(model, name)
        if owner is None:
            found = _refusals(surface) or {f"the model {model.name!r}": no_derivative(kind)}
            reasons = {**found, **reasons}
        else:
            reasons.setdefault(owner, no_derivative(kind))
    return reasons


def _owner(model, name):
    """The innermost layer in whose scope an operation was made, or `None`."""
    layers = {layer.name: layer for layer in all_layers(model) if layer is not model}
    for part in reversed(name.split("/")[:-1]):
        layer = layers.get(part) or layers.get(part.rpartition("_")[0])
        if layer is not None:
            return _named(layer)
    return None


def _refusals(surface):
    """The layer or the loss whose second derivative fails alone, as a dict with the reason."""
    model = surface.model
    with contextlib.suppress(_CannotLook):
        layers = [model, *all_layers(model)]
        inner_first = sorted(layers, key=lambda layer: len(all_layers(layer)))
        suspects = [x for x in _operations(layers) if not _is_layer(x)] + inner_first
        for _, probes in _probes(surface, suspects):
            for probe in probes:
                with overridden(surface.batch.overrides(exact=True)):
                    reason = probe.refuses_second_derivative()
                if reason:
                    return {probe.named: reason}
    return {}


def why_not_finite(surface, params):
    """Which batch has a loss that is not finite."""
    first = 0
    for number, (batch, count) in enumerate(surface.data.one_by_one(), 1):
        (value,), _ = surface.batch.functions["value"](
            (params, *surface.batch.state(surface.read)), batch
        )
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
        known = type(layer).__module__.startswith(("keras.", "keras_regtools."))
        doubtful = isinstance(layer, _DOUBTFUL) or getattr(layer, "renorm", False)
        if doubtful or not known:
            yield layer
    if not backend.MOMENTS_HAVE_SECOND_DERIVATIVES:
        yield from (x for x in _operations(layers) if not _is_layer(x))


def _operations(layers):
    return [x for layer in layers for x in getattr(layer, "operations", [])]


def _probes(surface, suspects):
    """Each suspect with a probe for each of its calls on the first samples."""
    batch = surface.batch
    if not suspects and not batch.loss.is_own:
        return
    calls = {id(suspect): [] for suspect in suspects}
    x, y, sample_weight, _ = next(surface.data.first(_SAMPLES).tensors())
    own = {id(layer): call for layer, call in batch.overrides(exact=True)}

    def watching(suspect):
        def see(outputs, *args, **kwargs):
            calls[id(suspect)].append((args, kwargs))

        return watched(suspect, see, own.get(id(suspect)))

    # The model's own call is what `stateless_call` makes.
    inner = [watching(suspect) for suspect in suspects if suspect is not surface.model]
    fixed, state = batch.state(surface.read)
    try:
        with backend.frozen_draws():
            outputs, _ = batch.call_model(surface.params, fixed, state, x, True, inner)
    except Exception as error:
        raise _CannotLook(first_line(error)) from error
    if surface.model in suspects:
        calls[id(surface.model)].append(((x,), {}))
    for suspect in suspects:
        yield suspect, [_probe(suspect, *call) for call in calls[id(suspect)]]
    if batch.loss.is_own or surface.model in suspects:
        masks = masks_of(outputs)

        def loss(point):
            z = tree.pack_sequence_as(outputs, with_masks(point, masks))
            return batch.loss(x, y, z, sample_weight, batch.training)

        yield batch.loss, [Probe("the loss function", loss, tree.flatten(outputs))]


def _probe(suspect, args, kwargs):
    """One layer or operation alone, as a function of its inputs and weights."""
    leaves = tree.flatten((args, kwargs))
    places = [i for i, leaf in enumerate(leaves) if is_float(leaf)]
    weights = suspect.trainable_variables if _is_layer(suspect) else []

    def outputs(point):
        inputs = dict(zip(places, point, strict=False))
        filled = [inputs.get(i, leaf) for i, leaf in enumerate(leaves)]
        args_now, kwargs_now = tree.pack_sequence_as((args, kwargs), filled)
        if not _is_layer(suspect):
            return suspect.call(*args_now, **kwargs_now)
        state = [ops.convert_to_tensor(v) for v in suspect.non_trainable_variables]
        return suspect.stateless_call(point[len(places) :], state, *args_now, **kwargs_now)[0]

    return Probe(_named(suspect), outputs, [*(leaves[i] for i in places), *weights])
