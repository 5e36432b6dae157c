"""Targets that have a number for each class, as mixed samples and smoothed labels need them."""

import keras
import numpy as np

_SPARSE = ("sparse_categorical_crossentropy", keras.losses.sparse_categorical_crossentropy)
_SOFT = ("categorical_crossentropy", keras.losses.categorical_crossentropy)


def is_sparse(loss):
    """Whether a loss is the cross-entropy of labels."""
    kind = keras.losses.SparseCategoricalCrossentropy
    return isinstance(loss, kind) or loss in _SPARSE


def soft_loss(loss, label_smoothing=None):
    """The cross-entropy of targets for each class that stands for a compiled loss.

    Args:
        loss: A cross-entropy of classes, of labels or of one number for each.
        label_smoothing: What is taken from the right class and given to all, from 0 to 1.
    """
    logits = False
    if isinstance(
        loss, (keras.losses.SparseCategoricalCrossentropy, keras.losses.CategoricalCrossentropy)
    ):
        config = loss.get_config()
        logits, known = config["from_logits"], config.get("ignore_class") is None
    else:
        known = isinstance(loss, str) or callable(loss)
        known = known and (loss in _SPARSE or loss in _SOFT)
    if not known:
        raise ValueError(
            "Expected a model compiled with a categorical cross-entropy, as mixed samples and "
            f"smoothed labels have a share of each class. Received: {loss!r}"
        )
    return keras.losses.CategoricalCrossentropy(
        from_logits=logits, label_smoothing=label_smoothing or 0.0
    )


def soft_metric(metric):
    """A metric of labels as one of targets for each class."""
    if isinstance(metric, str):
        return metric.removeprefix("sparse_")
    if type(metric) is keras.metrics.SparseCategoricalAccuracy:
        return keras.metrics.CategoricalAccuracy(metric.name)
    if type(metric) is keras.metrics.SparseTopKCategoricalAccuracy:
        return keras.metrics.TopKCategoricalAccuracy(metric.k, metric.name)
    return metric


def soft_targets(y, classes):
    """Labels as rows with a one; targets that have a number for each class stay.

    Args:
        y: Array of labels, of the shape (samples,) or (samples, 1), or (samples, classes).
        classes: Their number.
    """
    y = np.asarray(y)
    if y.ndim == 2 and y.shape[1] == classes and classes > 1:
        return y.astype("float32")
    labels = y.reshape(len(y))
    return np.eye(classes, dtype="float32")[labels.astype(int)]
