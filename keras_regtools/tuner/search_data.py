"""The data of a search: training data that can be cut into batches of any size, and validation."""

import math

import numpy as np
from keras import tree

from keras_regtools.backend._tensorflow_datasets import of_length
from keras_regtools.data import Batches, is_arrays
from keras_regtools.tuner.soft_targets import soft_targets
from keras_regtools.validation import share

_VALIDATION_BATCH = 256
_WHAT = (
    "Expected `x` as arrays or as a `tf.data.Dataset`, which can be cut into batches of another "
    "size, as each trial has its own."
)


class SearchData:
    """What `search` got, checked.

    Args:
        model: A model of the search, which tells the rank of its inputs.
        x, y, sample_weight: Arrays; or a `tf.data.Dataset` of samples or of batches as `x`.
        validation_data: `(x, y)`, `(x, y, sample_weight)` or a dataset.
        validation_split: Share of the arrays, taken from their end, as in `fit`.
        classes: Their number, where targets have to have a number for each; or `None`.

    Attributes:
        samples: Number of training samples.
        training, validation: `Batches` to measure on.
        not_finite: Where there are NaN or infinite numbers, in words, or `None`. A network may
            know what to do with them.
    """

    def __init__(self, model, x, y, sample_weight, validation_data, validation_split, classes):
        self.dataset, self._arrays, self._classes = None, None, classes
        if x is not None and is_arrays(x):
            parts = (x, y, sample_weight)
            if validation_split and validation_data is None:
                parts, validation_data = _split(parts, validation_split)
            if classes is not None:
                parts = (parts[0], soft_targets(parts[1], classes), parts[2])
            self.training = Batches(*parts)
            self._arrays, self.samples = self.training.arrays, self.training.samples
        else:
            self._take_dataset(model, x, y, sample_weight, validation_split)
            if classes is not None:
                raise ValueError(
                    "Expected arrays, as mixed samples and smoothed labels need targets for each "
                    f"class. Received: x={x!r}"
                )
        if validation_data is None:
            raise ValueError(
                "Expected validation data, by which trials are compared: pass `validation_data=` "
                "to `search`, or `validation_split=` beside arrays. Received: none"
            )
        self.validation = _validation(model, validation_data, classes)
        self.not_finite = _not_finite("training", self.training.arrays) or _not_finite(
            "validation", self.validation.arrays
        )

    def _take_dataset(self, model, x, y, sample_weight, validation_split):
        if not (hasattr(x, "element_spec") and hasattr(x, "unbatch")):
            raise ValueError(f"{_WHAT} Received: x={x!r}")
        if y is not None or sample_weight is not None:
            raise ValueError("Expected no `y` and `sample_weight` beside a dataset. Received: one")
        if validation_split:
            raise ValueError(
                "Expected `validation_data` beside a dataset, whose samples are not known before "
                f"they are read. Received: validation_split={validation_split}"
            )
        if int(x.cardinality()) == -1:  # tf.data.INFINITE_CARDINALITY
            raise ValueError(f"{_WHAT} Received: a dataset without an end. Take a part of it.")
        self.dataset = x.unbatch() if _is_batched(model, x) else x
        batches = self.dataset.batch(_VALIDATION_BATCH)
        self.training = Batches(batches)
        self.samples = sum(count for *_, count in self.training)

    def like_training(self, x, y):
        """Other arrays as `Batches`, with targets of the kind that is trained on."""
        return Batches(x, y if self._classes is None else soft_targets(y, self._classes))

    def steps(self, batch_size):
        """Steps of an epoch."""
        return math.ceil(self.samples / batch_size)

    def for_fit(self, batch_size):
        """The arguments of `fit` for a batch size."""
        if self.dataset is not None:
            batches = of_length(self.dataset.batch(batch_size), self.steps(batch_size))
            return {"x": batches, "shuffle": False}  # as it is
        x, y, sample_weight = self._arrays
        return {"x": x, "y": y, "sample_weight": sample_weight, "batch_size": batch_size}

    def inputs(self):
        """The training inputs, as arrays or as a dataset."""
        return self.training.dataset if self._arrays is None else self._arrays[0]

    def images(self):
        """Arrays of images and targets, for batches that change them."""
        if self._arrays is None or self._arrays[2] is not None or tree.is_nested(self._arrays[0]):
            raise ValueError(
                "Expected one array of images without sample weights, to mix or distort them. "
                "Received: other data"
            )
        return self._arrays[:2]

    def validation_for_fit(self):
        """The argument `validation_data` of `fit`."""
        if self.validation.dataset is not None:
            return self.validation.dataset
        return tuple(part for part in self.validation.arrays if part is not None)


def _not_finite(kind, arrays):
    for name, part in zip(("x", "y", "sample_weight"), arrays or (), strict=False):
        for array in tree.flatten(part) if part is not None else []:
            floats = np.issubdtype(array.dtype, np.floating)
            if not floats or math.isfinite(np.sum(array, dtype="float64")):
                continue
            wrong = ~np.isfinite(array).reshape(len(array), -1).all(axis=1)
            return f"{kind} {name} with NaN or infinite numbers in {wrong.sum()} of {len(array)}"
    return None


def _is_batched(model, dataset):
    """Whether a dataset has batches: whether its first input has as many axes as the model's."""
    spec = tree.flatten(dataset.element_spec)[0]
    return len(spec.shape) == len(tree.flatten(model.inputs)[0].shape)


def _split(parts, part):
    part = share("validation_split", part)
    count = len(tree.flatten(parts[0])[0])
    at = math.floor(count * (1 - part))
    if not 0 < at < count:
        raise ValueError(
            f"Expected `validation_split` to leave samples on both sides. Received: {part} of "
            f"{count}"
        )
    whole = Batches(*parts)
    return (whole.taken(s).arrays for s in (slice(0, at), slice(at, None)))


def _validation(model, given, classes):
    if isinstance(given, (tuple, list)) and is_arrays(given[0]):
        parts = [*given, None][:3] if len(given) < 4 else given
        if len(given) not in (2, 3):
            raise ValueError(
                "Expected `validation_data` to be (x, y) or (x, y, sample_weight). "
                f"Received: {len(given)} parts"
            )
        x, y, weights = parts
        return Batches(x, y if classes is None else soft_targets(y, classes), weights)
    if classes is not None:
        raise ValueError(
            "Expected arrays as `validation_data`, as mixed samples and smoothed labels need "
            f"targets for each class. Received: {given!r}"
        )
    if hasattr(given, "element_spec") and hasattr(given, "batch"):
        given = given if _is_batched(model, given) else given.batch(_VALIDATION_BATCH)
    return Batches(given)


def classes_of(model):
    """The number of classes of a model with one output for each."""
    shapes = [tuple(t.shape) for t in tree.flatten(model.outputs)]
    if len(shapes) != 1 or len(shapes[0]) != 2 or shapes[0][1] < 2:
        raise ValueError(
            "Expected a model with one output for each class, for mixed samples and smoothed "
            f"labels. Received: outputs of the shapes {shapes}"
        )
    return shapes[0][1]
