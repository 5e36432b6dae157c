"""Outputs that stand for classes: which of them are right, and their logits at one scale."""

from keras import ops, tree

from keras_regtools.forward.masks import masks_of
from keras_regtools.surface.loss import kind


def right_and_counted(loss, y, outputs):
    """Right answers, and answers that count, per sample of a batch: two scalars.

    Masked positions and those of the loss's `ignore_class` do not count; sample weights play no
    part.

    Args:
        loss: A `Loss` that `refuse_unless_it_classifies` accepted.
        y, outputs: Targets and outputs of a batch.
    """
    (mask,) = masks_of(outputs)
    (y,), (outputs,) = tree.flatten(y), tree.flatten(outputs)
    right = _RIGHT[kind(loss.single)](y, outputs, loss.single)
    right = ops.cast(right, "float32")
    counted = ops.ones_like(right)
    if mask is not None and len(mask.shape) <= len(right.shape):
        shape = [*ops.shape(mask), *[1] * (len(right.shape) - len(mask.shape))]
        counted = counted * ops.cast(ops.reshape(mask, shape), "float32")
    ignored = getattr(loss.single, "ignore_class", None)
    if ignored is not None:
        labels = ops.reshape(y, ops.shape(right))
        counted = counted * ops.cast(ops.not_equal(labels, ignored), "float32")
    samples = ops.cast(ops.shape(right)[0], "float32")
    return [ops.sum(right * counted) / samples, ops.sum(counted) / samples]


def normalized(loss, outputs):
    """The outputs with the logits behind them divided by their spread in each sample."""
    z = [t / ops.maximum(ops.std(t, -1, keepdims=True), 1e-12) for t in loss.to_logits(outputs)]
    return loss.from_logits(z, outputs, masks_of(outputs))


def classifies(loss):
    """Whether there is a share of right answers."""
    return kind(loss.single) in _RIGHT


def refuse_unless_it_classifies(model, loss):
    """Raise if there is no share of right answers."""
    if not classifies(loss):
        raise ValueError(
            "Expected a model whose accuracy can be computed: one output and a cross-entropy or "
            f"hinge loss. Received: the model {model.name!r} with {_received(loss)}"
        )


def refuse_unless_categorical(model, loss):
    """Raise if there are no logits of classes."""
    if "categorical" not in kind(loss.single):
        raise ValueError(
            "Expected a model whose logits can be normalized: one output and a categorical "
            f"cross-entropy. Received: the model {model.name!r} with {_received(loss)}"
        )


def _received(loss):
    return "several outputs" if loss.single is None else f"the loss {kind(loss.single)!r}"


def _of_classes(y, outputs, loss):
    return ops.argmax(y, -1) == ops.argmax(outputs, -1)


def _of_labels(y, outputs, loss):
    if len(y.shape) == len(outputs.shape):
        y = ops.squeeze(y, -1)
    answers = ops.argmax(outputs, -1)
    return ops.cast(y, answers.dtype) == answers


def _of_probabilities(y, outputs, loss):
    edge = 0.0 if getattr(loss, "from_logits", False) else 0.5
    y = ops.reshape(ops.cast(y, outputs.dtype), ops.shape(outputs))
    return (y > 0.5) == (outputs > edge)


def _of_signs(y, outputs, loss):
    y = ops.reshape(ops.cast(y, outputs.dtype), ops.shape(outputs))
    return (y > 0) == (outputs > 0)


_RIGHT = {  # by the kind of loss
    "sparsecategoricalcrossentropy": _of_labels,
    "categoricalcrossentropy": _of_classes,
    "categoricalfocalcrossentropy": _of_classes,
    "categoricalhinge": _of_classes,
    "binarycrossentropy": _of_probabilities,
    "binaryfocalcrossentropy": _of_probabilities,
    "hinge": _of_signs,
    "squaredhinge": _of_signs,
}
