"""Batches of mixed and distorted images, made by Keras' own layers."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_regtools.growing_batches import GrowingBatches


class AugmentedBatches(GrowingBatches):
    """Arrays of images and targets in batches that are changed anew in each epoch.

    Args:
        x: Images, of the shape (samples, height, width, channels).
        y: Targets, of the shape (samples, classes) for mixing.
        batch_size: Samples of a batch.
        chosen: Dict from `"mixup"`, `"cutmix"`, `"rand_augment"` to their strength.
        seed: Of the order and of all changes.

    Raises:
        TypeError, ValueError: as for `GrowingBatches`.

    Example:

    >>> x, y = np.random.default_rng(0).uniform(size=(8, 4, 4, 3)), np.eye(2).repeat(4, axis=0)
    >>> images, targets = AugmentedBatches(x, y, 4, {"mixup": 0.2})[0]
    >>> images.shape, targets.shape
    ((4, 4, 4, 3), (4, 2))
    """

    def __init__(
        self, x: Any, y: Any, batch_size: int, chosen: dict[str, float], seed: int = 0
    ) -> None:
        super().__init__(x, y, [batch_size], seed=seed)
        low, high = float(np.min(x)), float(np.max(x))
        made = {
            "rand_augment": lambda v: keras.layers.RandAugment((low, high), factor=v, seed=seed),
            "mixup": lambda v: keras.layers.MixUp(v, seed=seed + 1),
            "cutmix": lambda v: keras.layers.CutMix(v, seed=seed + 2),
        }
        self._layers = [make(chosen[name]) for name, make in made.items() if chosen.get(name)]

    def __getitem__(self, index: int) -> Any:
        x, y = super().__getitem__(index)
        batch = {"images": ops.convert_to_tensor(x), "labels": ops.convert_to_tensor(y)}
        for layer in self._layers:
            if isinstance(layer, keras.layers.RandAugment):
                batch = {**batch, "images": layer(batch["images"], training=True)}
            else:
                batch = layer(batch, training=True)
        return tuple(ops.convert_to_numpy(batch[name]) for name in ("images", "labels"))


AUGMENTATIONS = ("mixup", "cutmix", "rand_augment")
