"""Shadow the `call` of single layers while tracing, and find the layers to shadow."""

import contextlib
import inspect

import keras


@contextlib.contextmanager
def shadowed(calls):
    """Within the block, a layer's `call` is another function.

    Args:
        calls: List of `(layer, function)`; the function gets the arguments of `call`.

    Nothing is patched globally: only these instances change, and only within the block.
    """
    done = []
    try:
        for layer, function in calls:
            object.__setattr__(layer, "call", function)
            done.append(layer)
        yield
    finally:
        for layer in done:
            object.__delattr__(layer, "call")


def call_model(model, params, state, x, training, **kwargs):
    """`model.stateless_call`, with `training` only for a `call` that takes it, as `fit` does."""
    if "training" in inspect.signature(type(model).call).parameters:
        kwargs["training"] = training
    return model.stateless_call(params, state, x, **kwargs)


def all_layers(model):
    """Every layer inside a model, at any depth, wrapped ones included, each once and in order."""
    found = {}

    def visit(owner):
        own = owner.layers if isinstance(owner, keras.Model) else []
        for value in [own, *vars(owner).values()]:
            members = list(value.values()) if isinstance(value, dict) else value
            for layer in members if isinstance(members, (list, tuple, set)) else [members]:
                if isinstance(layer, keras.layers.Layer) and id(layer) not in found:
                    found[id(layer)] = layer
                    visit(layer)

    found[id(model)] = model
    visit(model)
    return list(found.values())[1:]
