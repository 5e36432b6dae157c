"""Internal: state that we add to a model: among its `variables`, never among its `weights`."""

import sys

import keras


class State(keras.layers.Layer):
    """A layer whose variables are state and not weights, as seeds and metrics are in Keras.

    Variables made with `add_weight` are trained through, saved in `.keras` and `.weights.h5`
    files and read back, but the model that holds this layer keeps the plain model's
    `get_weights()`, counts and weight files: files written without the state load too.
    """

    @property
    def weights(self):
        return []

    def load_own_variables(self, store):
        kept = [tuple(store[key].shape) for key in sorted(store.keys(), key=int)]
        # Of a layer that recorded something else, nothing can go on.
        if kept == [tuple(v.shape) for v in self._own_variables()]:
            super().load_own_variables(store)

    def _own_variables(self):
        return self.variables


def functional_scope():
    """The `keras.StatelessScope` that is open, or `None`: what `stateless_call` makes of itself."""
    return sys.modules[keras.StatelessScope.__module__].get_stateless_scope()
