"""What the user's own `model_fn` asks of the hyperparameters."""

from __future__ import annotations

import contextlib
import inspect
from typing import Any

import keras_tuner

_ASKING = ("Float", "Int", "Choice", "Boolean", "Fixed", "get", "__getitem__")


class Asked:
    """`keras_tuner.HyperParameters` that remember the names that were asked for.

    Args:
        hp: The hyperparameters.

    Attributes:
        names: Set of names, with the scopes that they were in.
    """

    def __init__(self, hp):
        self._hp, self._scopes, self.names = hp, [], set()

    def __getattr__(self, attribute):
        found = getattr(self._hp, attribute)
        if attribute not in _ASKING:
            return found

        def asked(name, *args, **kwargs):
            self.names.add("/".join([*self._scopes, str(name)]))
            return found(name, *args, **kwargs)

        return asked

    def __getitem__(self, name):
        return self.get(name)

    def __contains__(self, name):
        return name in self._hp

    @contextlib.contextmanager
    def name_scope(self, name):
        """As that of the hyperparameters."""
        self._scopes.append(name)
        try:
            with self._hp.name_scope(name):
                yield
        finally:
            self._scopes.pop()


def checked_model_fn(model_fn: Any) -> Any:
    """A function of hyperparameters that gives a model, of whatever gives one."""
    if isinstance(model_fn, keras_tuner.HyperModel):
        if type(model_fn).fit is not keras_tuner.HyperModel.fit:
            raise ValueError(
                "Expected a HyperModel without a `fit` of its own, as trials are trained here. "
                f"Received: {type(model_fn).__name__}"
            )
        return model_fn.build
    signature = None
    if callable(model_fn) and not hasattr(model_fn, "layers"):  # a model can be called, too
        with contextlib.suppress(TypeError, ValueError):
            signature = inspect.signature(model_fn)
        needed = [
            p for p in (signature.parameters.values() if signature else ())
            if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]  # fmt: skip
        if len(needed) == 1:
            return model_fn
        if not needed:
            return lambda hp: model_fn()
    raise TypeError(
        "Expected `model_fn` to be a function without arguments or of `hp`, or a "
        f"`keras_tuner.HyperModel`, that gives a model. Received: model_fn={model_fn!r}"
    )
