"""Call single layers in another way than their own, while a forward pass is traced."""

import contextlib
import inspect

from keras_regtools.keras_internals import shadow, unshadow


@contextlib.contextmanager
def overridden(calls):
    """Within the block, a layer's `call` is another function.

    Args:
        calls: List of `(layer, function)`; the function gets the arguments of `call`.

    Nothing is patched globally: only these instances change, and only within the block.
    """
    before = []
    try:
        for layer, function in calls:
            before.append((layer, shadow(layer, "call", function)))
        yield
    finally:
        for layer, call in reversed(before):  # a block may stand inside another
            unshadow(layer, "call", call)


def watched(layer, see, call=None):
    """`(layer, function)` for `overridden`: the layer's own call, looked at.

    Args:
        layer: The layer.
        see: Called with what the layer gave, then with the arguments of its call.
        call: What is called in place of the layer's own `call`.
    """
    call = layer.call if call is None else call

    def watching(*args, **kwargs):
        outputs = call(*args, **kwargs)
        see(outputs, *args, **kwargs)
        return outputs

    return layer, watching


def call_model(model, params, state, x, training, **kwargs):
    """`model.stateless_call`, with `training` only for a `call` that takes it, as `fit` does."""
    if "training" in inspect.signature(type(model).call).parameters:
        kwargs["training"] = training
    return model.stateless_call(params, state, x, **kwargs)
