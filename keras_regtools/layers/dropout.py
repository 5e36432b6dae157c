"""Dropout with a rate that can change during training."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_regtools import backend
from keras_regtools.state import Setting, State
from keras_regtools.validation import rate as rate_below_one


class _Rate(Setting):
    """Held as rate, 1 − rate and 1 / (1 − rate), as Python rounds them in Keras' own layers."""

    def __init__(self):
        super().__init__(rate_below_one)

    def __set__(self, owner, value):
        if not hasattr(owner, "held"):  # while Keras' own constructor runs
            value = self.constraint(self.name, value)
            wide = owner.compute_dtype == "float64"
            owner.held = _Held(self.encoded(value, np), "float64" if wide else "float32")
        super().__set__(owner, value)

    def encoded(self, value, ops):
        return ops.stack([value, 1 - value, 1 / (1 - value)])


class _Held(State):
    """Where the rate is: among the layer's variables, never among its weights."""

    def __init__(self, values, dtype):
        super().__init__(name="rate")
        self.rate = self.add_weight(
            name="rate",
            shape=(3,),
            dtype=dtype,
            initializer=lambda shape, dtype: ops.convert_to_tensor(values, dtype),
            trainable=False,
            autocast=False,
            aggregation="only_first_replica",  # may be assigned inside a step
        )
        self.built = True


class VariableRate:
    """What all kinds share. Keras' constructors draw no seed at rate 0, which may change later."""

    rate = _Rate()

    def __init__(self, rate: float, *args: Any, **kwargs: Any) -> None:
        rate = rate_below_one("rate", rate)
        super().__init__(rate or 0.5, *args, **kwargs)  # type: ignore[call-arg]
        self.rate = rate

    @property
    def settings(self):
        """The variables that hold what can be changed, by name."""
        return {"rate": self.held.rate}

    def call(self, inputs, training=False):
        if not training:
            return inputs
        shape = self._shape_of_draws(ops.shape(inputs))
        return backend.dropout(inputs, self.settings["rate"], shape, self.seed_generator)


@keras.saving.register_keras_serializable(package="keras_regtools")
class Dropout(VariableRate, keras.layers.Dropout):
    """Keras' `Dropout` with a rate that can be changed, between fits or during one.

    At the same rate and seed the outputs are those of `keras.layers.Dropout`, bit for bit. At the
    rate 0 a compiled step draws too, which Keras' layer does not: the seed moves on.

    Args:
        rate: Share of the entries that are set to zero, in [0, 1); the others are multiplied by
            1 / (1 − rate).
        noise_shape: Shape of what is drawn, where entries are dropped together; `None` for the
            shape of the inputs.
        seed: An integer for draws that repeat.
        **kwargs: Those of a `keras.layers.Layer`.

    Raises:
        ValueError: a rate outside [0, 1), when made or assigned.

    Example:

    >>> import keras
    >>> layer = Dropout(0.5, seed=0)
    >>> x = keras.ops.ones((1, 1000))
    >>> bool(keras.ops.any(layer(x, training=True) == 0.0))
    True
    >>> layer.rate = 0.0  # acts at once, in a compiled training step too
    >>> bool(keras.ops.any(layer(x, training=True) == 0.0))
    False
    """

    def __init__(
        self, rate: float, noise_shape: Any = None, seed: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(rate, noise_shape=noise_shape, seed=seed, **kwargs)

    def _shape_of_draws(self, shape):
        if self.noise_shape is None:
            return None
        return [
            own if size is None else size for size, own in zip(self.noise_shape, shape, strict=True)
        ]


class _Spatial(VariableRate):
    def _shape_of_draws(self, shape):
        """One draw for each sample and channel."""
        first = getattr(self, "data_format", "channels_last") == "channels_first"
        ones = [1] * (len(shape) - 2)
        return [shape[0], shape[1], *ones] if first else [shape[0], *ones, shape[-1]]


@keras.saving.register_keras_serializable(package="keras_regtools")
class SpatialDropout1D(_Spatial, keras.layers.SpatialDropout1D):
    """Keras' `SpatialDropout1D`, which drops whole channels, with a rate that can be changed.

    Args:
        rate: Share of the channels that are set to zero, in [0, 1).
        seed: An integer for draws that repeat.
        name, dtype: Those of a `keras.layers.Layer`.

    Inputs are of the shape (samples, steps, channels). See `Dropout` of this module.

    Raises:
        ValueError: a rate outside [0, 1), when made or assigned.

    Example:

    >>> layer = SpatialDropout1D(0.3)
    >>> layer.rate = 0.1
    >>> layer.rate
    0.1
    """

    def __init__(
        self, rate: float, seed: int | None = None, name: str | None = None, dtype: Any = None
    ) -> None:
        super().__init__(rate, seed=seed, name=name, dtype=dtype)


class _OfImages(_Spatial):
    def __init__(
        self,
        rate: float,
        data_format: str | None = None,
        seed: int | None = None,
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(rate, data_format=data_format, seed=seed, name=name, dtype=dtype)


@keras.saving.register_keras_serializable(package="keras_regtools")
class SpatialDropout2D(_OfImages, keras.layers.SpatialDropout2D):
    """Keras' `SpatialDropout2D`, which drops whole channels, with a rate that can be changed.

    Args:
        rate: Share of the channels that are set to zero, in [0, 1).
        data_format: `"channels_last"` or `"channels_first"`; `None` for Keras' setting.
        seed: An integer for draws that repeat.
        name, dtype: Those of a `keras.layers.Layer`.

    Inputs are of the shape (samples, rows, columns, channels). See `Dropout` of this module.

    Raises:
        ValueError: a rate outside [0, 1), when made or assigned.

    Example:

    >>> layer = SpatialDropout2D(0.3)
    >>> layer.rate = 0.1
    >>> layer.rate
    0.1
    """


@keras.saving.register_keras_serializable(package="keras_regtools")
class SpatialDropout3D(_OfImages, keras.layers.SpatialDropout3D):
    """Keras' `SpatialDropout3D`, which drops whole channels, with a rate that can be changed.

    Args:
        rate: Share of the channels that are set to zero, in [0, 1).
        data_format: `"channels_last"` or `"channels_first"`; `None` for Keras' setting.
        seed: An integer for draws that repeat.
        name, dtype: Those of a `keras.layers.Layer`.

    Inputs are of the shape (samples, depth, rows, columns, channels). See `Dropout` of this module.

    Raises:
        ValueError: a rate outside [0, 1), when made or assigned.

    Example:

    >>> layer = SpatialDropout3D(0.3)
    >>> layer.rate = 0.1
    >>> layer.rate
    0.1
    """
