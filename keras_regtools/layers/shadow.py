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
    before = []
    try:
        for layer, function in calls:
            before.append((layer, vars(layer).get("call")))
            object.__setattr__(layer, "call", function)
        yield
    finally:
        for layer, call in reversed(before):  # a block may stand inside another
            if call is None:
                object.__delattr__(layer, "call")
            else:
                object.__setattr__(layer, "call", call)


def names_of(layers):
    """The names of layers, numbered where inner models use one twice: a name is no identity."""
    names, met = [], {}
    for layer in layers:
        met[layer.name] = number = met.get(layer.name, 0) + 1
        names.append(layer.name if number == 1 else f"{layer.name}_{number}")
    return names


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
