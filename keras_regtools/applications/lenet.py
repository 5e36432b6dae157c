"""LeNet-5, as the course's tutorial builds it."""

import keras
from keras import layers

from keras_regtools.validation import checked, image_shape, positive_integer


@checked(input_shape=image_shape, classes=positive_integer)
def lenet5(input_shape: tuple[int, ...] = (32, 32, 1), classes: int = 10) -> keras.Model:
    """LeNet-5: two convolutions with average pooling, three dense layers, softmax.

    Args:
        input_shape: Height, width and channels of the images, at least 16 pixels a side.
        classes: Number of classes.

    Returns:
        An uncompiled Sequential model that ends in probabilities: 61,706 parameters for the
        defaults, 62,006 for three channels.

    Reference:
        [LeCun et al., 1998](https://doi.org/10.1109/5.726791), with ReLU for the activations.

    Example:

    >>> lenet5().count_params()
    61706
    """
    return keras.Sequential(
        [
            keras.Input(input_shape),
            layers.Conv2D(6, 5, activation="relu", name="conv1"),
            layers.AveragePooling2D(2, name="pool1"),
            layers.Conv2D(16, 5, activation="relu", name="conv2"),
            layers.AveragePooling2D(2, name="pool2"),
            layers.Flatten(name="flatten"),
            layers.Dense(120, activation="relu", name="dense1"),
            layers.Dense(84, activation="relu", name="dense2"),
            layers.Dense(classes, activation="softmax", name="output"),
        ],
        name="lenet5",
    )
