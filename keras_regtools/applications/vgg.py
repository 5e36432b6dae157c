"""VGG networks: VGG-16 of the course's tutorial, and the same plan in any size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers

from keras_regtools.validation import checked, image_shape, positive_integer, several


def _units(name, value):
    if isinstance(value, (list, tuple)) and not value:
        return value
    return several(name, value, positive_integer)


def _blocks(name, value):
    blocks = value if isinstance(value, (list, tuple)) else [value]
    return [several(name, block, positive_integer) for block in blocks]


@checked(input_shape=image_shape, classes=positive_integer, filters=_blocks, dense=_units)
def vgg(
    input_shape: tuple[int, ...],
    classes: int,
    *,
    filters: Sequence[Sequence[int]],
    dense: Any,
    name: str = "vgg",
) -> keras.Model:
    """A VGG network: blocks of 3x3 convolutions, each followed by max pooling, then dense layers.

    Args:
        input_shape: Height, width and channels of the images; a side is halved by each block.
        classes: Number of classes.
        filters: One tuple per block, the filters of its convolutions.
        dense: Units of the hidden dense layers.
        name: Name of the model.

    Returns:
        An uncompiled Sequential model that ends in probabilities.

    Reference:
        [Simonyan and Zisserman, 2014](https://arxiv.org/abs/1409.1556).

    Example:

    >>> model = vgg((32, 32, 3), 10, filters=((32, 32), (64, 64), (128, 128)), dense=(128,))
    >>> model.count_params()
    550570
    """
    model = keras.Sequential([keras.Input(input_shape)], name=name)
    for block, widths in enumerate(filters, 1):
        for i, width in enumerate(widths, 1):
            convolution = layers.Conv2D(
                width, 3, padding="same", activation="relu", name=f"block{block}_conv{i}"
            )
            model.add(convolution)
        model.add(layers.MaxPooling2D(2, name=f"block{block}_pool"))
    model.add(layers.Flatten(name="flatten"))
    for i, units in enumerate(dense, 1):
        model.add(layers.Dense(units, activation="relu", name=f"dense{i}"))
    model.add(layers.Dense(classes, activation="softmax", name="output"))
    return model


@checked(input_shape=image_shape, classes=positive_integer)
def vgg16(input_shape: tuple[int, ...] = (224, 224, 3), classes: int = 2) -> keras.Model:
    """VGG-16, as the course's tutorial builds it: no batch normalization, dropout or penalty.

    Args:
        input_shape: Height, width and channels of the images, at least 32 pixels a side.
        classes: Number of classes.

    Returns:
        An uncompiled Sequential model that ends in probabilities: 134,268,738 parameters for the
        defaults.

    Reference:
        [Simonyan and Zisserman, 2014](https://arxiv.org/abs/1409.1556), configuration D.

    Example:

    >>> vgg16((32, 32, 3)).layers[-1].units
    2
    """
    blocks = ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3)
    return vgg(input_shape, classes, filters=blocks, dense=(4096, 4096), name="vgg16")
