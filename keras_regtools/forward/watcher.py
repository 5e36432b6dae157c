"""Watch what flows through layers, batch by batch, where a view of a model looks from."""

import numpy as np
from keras import ops, tree

from keras_regtools import backend
from keras_regtools.forward.overrides import call_model, overridden


class View:
    """A model as it is now. A `LossSurface` is such a view where it looks from.

    Args:
        model: A built `keras.Model`.
    """

    def __init__(self, model):
        self.model = model

    def read(self, variable):
        """The value of a variable of the model."""
        return ops.convert_to_tensor(variable)


class Watcher:
    """What the calls of some layers note in a forward pass; traced once, nothing is written.

    Args:
        calls: Function `(note) -> list of (layer, function)`: how the layers are called. A function
            hands over what it sees with `note(key, *tensors)`, the key a number or text.
        forward: `(*values, x, calls)`, the pass.
    """

    def __init__(self, calls, forward):
        self._calls, self._forward = calls, forward
        self._seen = backend.jit(self._see)

    def __call__(self, values, x):
        """Everything noted in one batch, a dict from texts to lists of tuples of tensors.

        Args:
            values: What the pass is a function of, beside the inputs: a tuple of lists of tensors.
            x: The inputs.
        """
        with backend.frozen_draws():
            return self._seen(*values, x)

    def _see(self, *args):
        seen = {}

        def note(key, *tensors):
            seen.setdefault(str(key), []).append(tensors)

        self._forward(*args, self._calls(note))
        return seen


class InferenceWatcher(Watcher):
    """A `Watcher` of inference, whose `values` are those of a view.

    Args:
        model: A built `keras.Model`.
        calls: As for `Watcher`.
    """

    def __init__(self, model, calls):
        def forward(params, state, x, calls):
            with overridden(calls):
                call_model(model, params, state, x, training=False)

        super().__init__(calls, forward)
        self._order = None

    def pooled(self, view, batches):
        """The moments over all batches, from notes of `(number, mean, variance)` by channel.

        Args:
            view: Where to look from, an object with `.model` and `.read`.
            batches: `Batches`; targets are ignored.

        Returns:
            Dict from the keys of the notes to `(number, mean, variance)`, arrays over all entries,
            in double precision.
        """
        model = view.model
        variables = model.trainable_variables, model.non_trainable_variables
        order = [[id(v) for v in part] for part in variables]
        if order != self._order:  # what was traced takes the values by their places
            self._order, self._seen = order, backend.jit(self._see)
        values = [[view.read(v) for v in part] for part in variables]
        totals = {}
        for x, *_ in batches.tensors():
            try:
                seen = self(values, x)
            except NotImplementedError:
                raise
            except Exception as error:  # the backend's own, for shapes that do not fit
                if totals:
                    raise
                raise _refused(model, x, error) from error
            for key, uses in seen.items():
                for use in uses:
                    totals[key] = _added(totals.get(key, (0.0, 0.0, 0.0)), use)
        return totals


def _refused(model, x, error):
    shapes = tree.map_structure(lambda t: tuple(t.shape), x)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return ValueError(
        f"Expected data that the model {model.name!r} can take. "
        f"Received: x of shape {shapes}, which gave: {lines[-1] if lines else repr(error)}"
    )


def _added(total, more):
    """`(number, mean, variance)` of two sets of entries together."""
    old, old_mean, old_variance = total
    number, mean, variance = (np.asarray(ops.convert_to_numpy(t), "float64") for t in more)
    both = old + number
    share = number / np.maximum(both, 1)
    step = mean - old_mean
    variance = old_variance * (1 - share) + variance * share + step**2 * share * (1 - share)
    return both, old_mean + step * share, variance
