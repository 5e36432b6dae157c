"""The networks of the experiment on small and large batches."""

import keras
from keras import layers

from keras_regtools.validation import at_least, checked, image_shape, positive_integer, shape


@checked(input_shape=shape, classes=positive_integer, units=positive_integer, hidden=at_least(0))
def f1(
    input_shape: tuple[int, ...] = (28, 28, 1),
    classes: int = 10,
    *,
    units: int = 512,
    hidden: int = 5,
) -> keras.Model:
    """F1: fully connected layers, each with batch normalization and ReLU.

    Args:
        input_shape: Shape of a sample; it is flattened.
        classes: Number of classes.
        units: Units of each hidden layer.
        hidden: Number of hidden layers.

    Returns:
        An uncompiled Sequential model that ends in probabilities: 1,467,914 parameters for the
        defaults, 5,120 of them moving statistics.

    Reference:
        [Keskar et al., 2016](https://arxiv.org/abs/1609.04836), appendix B.

    Example:

    >>> f1((8, 8, 1), units=16).count_params()
    2618
    """
    model = keras.Sequential([keras.Input(input_shape), layers.Flatten(name="flatten")], name="f1")
    for i in range(1, hidden + 1):
        _dense(model, units, i)
    model.add(layers.Dense(classes, activation="softmax", name="output"))
    return model


@checked(input_shape=image_shape, classes=positive_integer, seed=at_least(0))
def c1(
    input_shape: tuple[int, ...] = (32, 32, 3), classes: int = 10, *, seed: int | None = None
) -> keras.Model:
    """C1: two convolutions of 64 5x5 filters, each with pooling, and dense layers of 384 and 192.

    Batch normalization and ReLU after each, dropout of 0.5 after the dense ones.

    Args:
        input_shape: Height, width and channels of the images.
        classes: Number of classes.
        seed: Seed of the dropout.

    Returns:
        An uncompiled Sequential model that ends in probabilities.

    Reference:
        [Keskar et al., 2016](https://arxiv.org/abs/1609.04836), appendix B.

    Example:

    >>> [layer.units for layer in c1((16, 16, 1)).layers if hasattr(layer, "units")]
    [384, 192, 10]
    """
    model = keras.Sequential([keras.Input(input_shape)], name="c1")
    for i in (1, 2):
        model.add(layers.Conv2D(64, 5, padding="same", name=f"conv{i}"))
        model.add(layers.BatchNormalization(name=f"conv{i}_norm"))
        model.add(layers.ReLU(name=f"conv{i}_relu"))
        model.add(layers.MaxPooling2D(3, 2, padding="same", name=f"pool{i}"))
    model.add(layers.Flatten(name="flatten"))
    for i, units in enumerate((384, 192), 1):
        _dense(model, units, i)
        model.add(layers.Dropout(0.5, seed=seed, name=f"dropout{i}"))
    model.add(layers.Dense(classes, activation="softmax", name="output"))
    return model


@checked(
    input_shape=image_shape, classes=positive_integer, width=positive_integer, seed=at_least(0)
)
def c2(
    input_shape: tuple[int, ...] = (32, 32, 3),
    classes: int = 10,
    *,
    width: int = 16,
    seed: int | None = None,
) -> keras.Model:
    """A small C2: the plan of a VGG network with batch normalization and dropout.

    Three blocks of two 3x3 convolutions and a dense layer; the paper's has five blocks, from 64
    filters on.

    Args:
        input_shape: Height, width and channels of the images, at least 8 pixels a side.
        classes: Number of classes.
        width: Filters of the first block, doubled in each block.
        seed: Seed of the dropout.

    Returns:
        An uncompiled Sequential model that ends in probabilities.

    Reference:
        [Keskar et al., 2016](https://arxiv.org/abs/1609.04836), appendix B.

    Example:

    >>> [layer.filters for layer in c2((16, 16, 1)).layers if hasattr(layer, "filters")]
    [16, 16, 32, 32, 64, 64]
    """
    model = keras.Sequential([keras.Input(input_shape)], name="c2")
    for block in (1, 2, 3):
        for i in (1, 2):
            name = f"block{block}_conv{i}"
            model.add(layers.Conv2D(width * 2 ** (block - 1), 3, padding="same", name=name))
            model.add(layers.BatchNormalization(name=f"{name}_norm"))
            model.add(layers.ReLU(name=f"{name}_relu"))
        model.add(layers.MaxPooling2D(2, name=f"block{block}_pool"))
        model.add(layers.Dropout(0.3, seed=seed, name=f"block{block}_dropout"))
    model.add(layers.Flatten(name="flatten"))
    _dense(model, 16 * width, 1)
    model.add(layers.Dropout(0.5, seed=seed, name="dropout1"))
    model.add(layers.Dense(classes, activation="softmax", name="output"))
    return model


def _dense(model, units, number):
    model.add(layers.Dense(units, name=f"dense{number}"))
    model.add(layers.BatchNormalization(name=f"dense{number}_norm"))
    model.add(layers.ReLU(name=f"dense{number}_relu"))
