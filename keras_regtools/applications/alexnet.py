"""AlexNet, as the course's tutorial builds it."""

from __future__ import annotations

from collections.abc import Sequence

import keras
from keras import layers

from keras_regtools.validation import at_least, checked, image_shape, positive_integer, rate, shape


def _five(name, value):
    found = shape(name, value)
    if len(found) != 5:
        raise ValueError(f"Argument `{name}` must be five positive integers. Received: {value!r}")
    return found


@checked(
    input_shape=image_shape,
    classes=positive_integer,
    filters=_five,
    dense=shape,
    dropout=rate,
    seed=at_least(0),
)
def alexnet(
    input_shape: tuple[int, ...] = (32, 32, 3),
    classes: int = 10,
    *,
    filters: Sequence[int] = (96, 256, 384, 384, 256),
    dense: Sequence[int] = (4096, 4096, 1000),
    dropout: float = 0.4,
    seed: int | None = None,
) -> keras.Model:
    """AlexNet with batch normalization: five convolutions, then dense layers.

    Each convolution and each dense layer is followed by batch normalization and ReLU, the first
    two and the last convolution by max pooling, the hidden dense layers by dropout; there is batch
    normalization before the softmax, too.

    Args:
        input_shape: Height, width and channels of the images.
        classes: Number of classes.
        filters: Of the five convolutions.
        dense: Units of the hidden dense layers.
        dropout: Rate after each of them.
        seed: Seed of the dropout.

    Returns:
        An uncompiled Sequential model that ends in probabilities: 25,730,506 parameters for the
        defaults, 21,156 of them moving statistics.

    Reference:
        [Krizhevsky et al., 2012](https://doi.org/10.1145/3065386), whose response normalization is
        batch normalization here.

    Example:

    >>> alexnet().count_params()
    25730506
    """
    model = keras.Sequential([keras.Input(input_shape)], name="alexnet")
    for i, (count, size) in enumerate(zip(filters, (11, 5, 3, 3, 3), strict=True), 1):
        strides = 4 if i == 1 else 1
        model.add(layers.Conv2D(count, size, strides, padding="same", name=f"conv{i}"))
        _normalized(model, f"conv{i}", "relu")
        if i in (1, 2, 5):
            model.add(layers.MaxPooling2D(2, 2, padding="same", name=f"pool{i}"))
    model.add(layers.Flatten(name="flatten"))
    for i, units in enumerate(dense, 1):
        model.add(layers.Dense(units, name=f"dense{i}"))
        _normalized(model, f"dense{i}", "relu")
        model.add(layers.Dropout(dropout, seed=seed, name=f"dropout{i}"))
    model.add(layers.Dense(classes, name="output"))
    _normalized(model, "output", "softmax")
    return model


def _normalized(model, name, activation):
    model.add(layers.BatchNormalization(name=f"{name}_norm"))
    model.add(layers.Activation(activation, name=f"{name}_{activation}"))
