"""State that we add to a model: among its `variables`, never among its `weights`."""

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
        if len(store.keys()):
            super().load_own_variables(store)
