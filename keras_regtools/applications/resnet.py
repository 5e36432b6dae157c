"""Residual networks: ResNet-18 and ResNet-50, and the same plan in any size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers

from keras_regtools.validation import checked, flag, image_shape, positive_integer, shape


@checked(
    input_shape=image_shape,
    classes=positive_integer,
    blocks=shape,
    filters=positive_integer,
    bottleneck=flag,
    small=flag,
)
def resnet(
    input_shape: tuple[int, ...],
    classes: int,
    *,
    blocks: Sequence[int] = (2, 2, 2, 2),
    filters: int = 64,
    bottleneck: bool = False,
    small: bool = False,
    name: str = "resnet",
) -> keras.Model:
    """A residual network: stages of blocks that add what they compute to their input.

    A block is two 3x3 convolutions, or with `bottleneck` a 1x1, a 3x3 and a 1x1 one with four
    times the filters. Each convolution, without bias, is followed by batch normalization, and this
    by ReLU; the last ReLU of a block comes after the sum. Each stage but the first halves the
    image, in its first 3x3 convolution, and doubles the filters; where the shape changes, a 1x1
    convolution takes the input along.

    Args:
        input_shape: Height, width and channels of the images.
        classes: Number of classes.
        blocks: Number of blocks of each stage.
        filters: Of the 3x3 convolutions of the first stage.
        bottleneck: Whether blocks are bottlenecks.
        small: Begin with a 3x3 convolution, for images of 32 pixels and less, in place of a 7x7 one
            and a pooling that make them a quarter as large.
        name: Of the model.

    Returns:
        An uncompiled functional model that ends in probabilities.

    Reference:
        [He et al., 2016](https://arxiv.org/abs/1512.03385), section 3.3; the strides of the
        bottlenecks are in the 3x3 convolution.

    Example:

    >>> model = resnet((8, 8, 1), 10, blocks=(1, 1), filters=8, small=True)
    >>> model.count_params()
    5266
    """
    inputs = keras.Input(input_shape, name="image")
    x = _convolution(inputs, filters, 3 if small else 7, 1 if small else 2, "stem", "relu")
    if not small:
        x = layers.ZeroPadding2D(1, name="stem_pool_pad")(x)
        x = layers.MaxPooling2D(3, 2, name="stem_pool")(x)
    for stage, count in enumerate(blocks, 1):
        for block in range(1, count + 1):
            strides = 2 if stage > 1 and block == 1 else 1
            x = _block(x, filters * 2 ** (stage - 1), strides, bottleneck, f"{stage}_{block}")
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    outputs = layers.Dense(classes, activation="softmax", name="output")(x)
    return keras.Model(inputs, outputs, name=name)


def _block(x, filters, strides, bottleneck, name):
    plan = [(1, 1), (3, strides), (1, 1)] if bottleneck else [(3, strides), (3, 1)]
    width, y = filters * (4 if bottleneck else 1), x
    for i, (size, step) in enumerate(plan, 1):
        last = i == len(plan)
        y = _convolution(
            y,
            width if last else filters,
            size,
            step,
            f"block{name}_conv{i}",
            None if last else "relu",
        )
    if strides != 1 or x.shape[-1] != width:
        x = _convolution(x, width, 1, strides, f"block{name}_skip")
    y = layers.Add(name=f"block{name}_sum")([x, y])
    return layers.Activation("relu", name=f"block{name}_relu")(y)


def _convolution(x, filters, size, strides, name, activation=None):
    """A convolution with normalization, padded alike on all sides."""
    if strides > 1 and size > 1:
        x = layers.ZeroPadding2D(size // 2, name=f"{name}_pad")(x)
    padding = "valid" if strides > 1 else "same"
    x = layers.Conv2D(filters, size, strides, padding=padding, use_bias=False, name=name)(x)
    x = layers.BatchNormalization(name=f"{name}_norm")(x)
    return layers.Activation(activation, name=f"{name}_{activation}")(x) if activation else x


def resnet18(input_shape: Any = (224, 224, 3), classes: int = 1000) -> keras.Model:
    """ResNet-18.

    Args:
        input_shape: Height, width and channels of the images.
        classes: Number of classes.

    Returns:
        An uncompiled functional model that ends in probabilities: for the defaults 11,689,512
        parameters and 9,600 moving statistics.

    Reference:
        [He et al., 2016](https://arxiv.org/abs/1512.03385), table 1.

    Example:

    >>> resnet18().count_params() - 9600
    11689512
    """
    return resnet(input_shape, classes, name="resnet18")


def resnet50(input_shape: Any = (224, 224, 3), classes: int = 1000) -> keras.Model:
    """ResNet-50.

    Args:
        input_shape: Height, width and channels of the images.
        classes: Number of classes.

    Returns:
        An uncompiled functional model that ends in probabilities: for the defaults 25,557,032
        parameters and 53,120 moving statistics.

    Reference:
        [He et al., 2016](https://arxiv.org/abs/1512.03385), table 1; the strides are in the 3x3
        convolutions.

    Example:

    >>> resnet50().count_params() - 53120
    25557032
    """
    return resnet(input_shape, classes, blocks=(3, 4, 6, 3), bottleneck=True, name="resnet50")
