"""Images for the examples: scikit-learn's digits, or a data set of `keras.datasets`."""

import os
import pathlib

import _onednn  # noqa: F401
import keras
import numpy as np

DATASETS = ("digits", "fashion_mnist", "mnist", "cifar10")

_FILES = {
    "mnist": "mnist.npz",
    "fashion_mnist": "fashion-mnist/ with the four .gz files of Fashion-MNIST",
    "cifar10": "cifar-10-batches-py-target_archive, which is cifar-10-python.tar.gz renamed",
}


def load_images(dataset, seed=0, *, padded=True):
    """Images in [0, 1], of 32x32 pixels unless told otherwise, and labels.

    Args:
        dataset: One of `DATASETS`.
        seed: Seed of the split of the digits; the others come split.
        padded: Whether they are brought to 32x32 pixels; digits have 8x8, MNIST 28x28.

    Returns:
        `(x, y), (x_validation, y_validation)`, images with a channel axis.
    """
    if dataset == "digits":
        return _digits(seed, padded)
    module = getattr(keras.datasets, dataset)
    try:
        (x, y), (x_validation, y_validation) = module.load_data()
    except Exception as error:
        home = pathlib.Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser()
        raise SystemExit(
            f"The data set {dataset} could not be downloaded: {error}\n"
            f"If you have it, put it here: {home / 'datasets' / _FILES[dataset]}\n"
            "Or run with --dataset digits, which needs no download."
        ) from error
    x, x_validation = _prepare(x, padded), _prepare(x_validation, padded)
    return (x, y.ravel()), (x_validation, y_validation.ravel())


def _prepare(images, padded):
    """Scaled to [0, 1], with a channel axis, and padded with zeros to 32x32."""
    images = images.reshape(*images.shape[:3], -1).astype("float32") / 255
    pad = (32 - images.shape[1]) // 2 if padded else 0
    return np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))


def _digits(seed, resized):
    """The 1,797 digits of 8x8 pixels; one fifth for validation."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x = (x / 16).reshape(-1, 8, 8, 1).astype("float32")
    if resized:
        x = keras.ops.convert_to_numpy(keras.ops.image.resize(x, (32, 32)))
    order = np.random.default_rng(seed).permutation(len(x))
    training, validation = order[:1437], order[1437:]
    return (x[training], y[training]), (x[validation], y[validation])


# Validation accuracies that a small dense network reaches soon, but not at once.
TARGETS = {"digits": 0.95, "fashion_mnist": 0.75, "mnist": 0.9, "cifar10": 0.3}


class Shuffled(keras.utils.PyDataset):
    """Whole batches, in another order in each epoch.

    `fit` on arrays keeps one order on TensorFlow for all epochs, once `set_random_seed` was called.
    """

    def __init__(self, x, y, batch_size, seed):
        super().__init__()
        self.x, self.y, self.batch_size = x, y, batch_size
        self.chance = np.random.default_rng(seed)
        self.on_epoch_end()

    def __len__(self):
        return len(self.x) // self.batch_size

    def __getitem__(self, index):
        chosen = self.order[index * self.batch_size : (index + 1) * self.batch_size]
        return self.x[chosen], self.y[chosen]

    def on_epoch_end(self):
        self.order = self.chance.permutation(len(self.x))
