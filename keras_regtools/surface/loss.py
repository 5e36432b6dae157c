"""The loss of a model apart from the model: from outputs and targets to a scalar."""

import contextlib
import warnings

import keras
from keras import ops, tree

from keras_regtools.forward.masks import masks_of, with_masks


class Loss:
    """The compiled loss of a model, or another, as a function; penalties are not in it.

    Args:
        model: The `keras.Model`.
        loss: Anything that `compile(loss=)` takes; `None` for the model's own.
    """

    def __init__(self, model, loss=None):
        if loss is None and type(model).compute_loss is not keras.Model.compute_loss:
            raise NotImplementedError(
                "Expected a model that uses Keras' own `compute_loss`. Received: a model of "
                f"{type(model)}, which overrides it. Pass `loss=` to say what to measure."
            )
        self._outputs = len(tree.flatten(getattr(model, "outputs", None)) or [None])
        self._head = _LossHead(name="loss_head")
        self._head.output_names = getattr(model, "output_names", None)
        self._loss, weights = compiled_loss(model) if loss is None else (loss, None)
        if not self.is_none:
            self._head.compile(optimizer=None, loss=self._loss, loss_weights=weights)

    def __call__(self, x, y, outputs, sample_weight, training):
        """The loss of a batch, a scalar; zero for a model whose losses are all added ones."""
        if self.is_none:
            return ops.zeros((), keras.config.floatx())
        with keras.StatelessScope():  # several outputs write a metric each
            return self._head.compute_loss(x, y, outputs, sample_weight, training=training)

    def to_logits(self, outputs):
        """The outputs as the parameters in which their loss is convex, a list of tensors.

        Probabilities become logits, up to a constant that softmax forgets: the Gauss-Newton matrix
        of a network that ends in softmax is the one that it has without.
        """
        pairs = zip(tree.flatten(outputs), self._links(outputs), strict=True)
        return [inverse(t) for t, (inverse, _) in pairs]

    def from_logits(self, z, like, masks):
        """The inverse of `natural`, in the structure of `like` and with the masks it had."""
        flat = [link(t) for t, (_, link) in zip(z, self._links(like), strict=True)]
        return tree.pack_sequence_as(like, with_masks(flat, masks))

    def _links(self, outputs):
        """`(inverse, link)` for each output, in the order of `tree.flatten`."""
        return [_link(loss) for loss in self._of_outputs(outputs)]

    def _of_outputs(self, outputs):
        """The loss of each output, in the order of `tree.flatten`."""
        losses = self._loss
        if isinstance(losses, dict):
            named = sorted(outputs) if isinstance(outputs, dict) else self._head.output_names
            return [losses.get(name) for name in named]
        if isinstance(losses, (list, tuple)):
            return list(losses)
        return [losses] * len(tree.flatten(outputs))

    def weights_along(self, s, y, outputs):
        """Weights of the samples, for each output in a shape that its loss can be multiplied by."""
        ranks = [max(_rank(*part), 1) for part in self._parts(y, outputs)]
        weights = [along_samples(s, rank) for rank in ranks]
        return tree.pack_sequence_as(outputs, weights)

    def _parts(self, y, outputs):
        """`(loss, targets, outputs)` of each output; its targets may be unknown."""
        flat, losses = tree.flatten(outputs), self._of_outputs(outputs)
        if isinstance(y, dict) and not isinstance(outputs, dict):
            targets = [y.get(name) for name in self._head.output_names]
        else:
            targets = tree.flatten(y)
        if len(targets) != len(flat):  # of those with a loss only
            given = iter(targets)
            targets = [None if loss is None else next(given, None) for loss in losses]
        return list(zip(losses, targets, flat, strict=True))

    def not_of_samples(self, y, outputs):
        """Why the loss is not the mean over samples that each have their own; `None` if it is."""
        masks = masks_of(outputs)
        for (loss, *part), mask in zip(self._parts(y, outputs), masks, strict=True):
            if loss is None:
                continue
            reduction = getattr(loss, "reduction", "sum_over_batch_size")
            if reduction not in ("sum_over_batch_size", "mean"):
                return f"the loss {kind(loss)!r} with reduction={reduction!r}"
            # The mean over what counts weighs a sample by how much of it counts.
            if getattr(loss, "ignore_class", None) is not None:
                return f"the loss {kind(loss)!r} with ignore_class={loss.ignore_class}"
            if mask is not None:
                return "an output with a mask, the loss of which is the mean over its unmasked part"
            if _rank(loss, *part) == 0:
                return f"the loss {kind(loss)!r}, which gives one value for all samples"
        return None

    @property
    def single(self):
        """The one loss of one output; `None` if there are several of either, or none."""
        losses = tree.flatten(self._loss)
        return losses[0] if len(losses) == self._outputs == 1 else None

    @property
    def is_none(self):
        """Whether there is no compiled loss."""
        return all(loss is None for loss in tree.flatten(self._loss))

    @property
    def is_own(self):
        """Whether any of the losses is the user's own code."""
        return not all(
            loss is None or isinstance(loss, str) or _module(loss).startswith("keras.")
            for loss in tree.flatten(self._loss)
        )


def compiled_loss(model):
    """The loss and the loss weights that a model is compiled with."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a lambda that is not going to be saved
        return model.loss, (model.get_compile_config() or {}).get("loss_weights")


def _module(loss):
    return getattr(loss, "__module__", None) or type(loss).__module__


class _LossHead(keras.Model):
    """A model without layers: Keras' own way from outputs and targets to the loss, alone."""


def along_samples(s, rank):
    """A vector with an entry for each sample, in a shape that broadcasts against that rank."""
    return ops.reshape(s, (-1,) + (1,) * (rank - 1))


def _rank(loss, y, outputs):
    """The rank of the values of a loss before their mean is taken: one axis less, as a rule."""
    if loss is not None and y is not None:
        loss = keras.losses.get(loss)
        with contextlib.suppress(Exception):
            values = (loss.call if isinstance(loss, keras.losses.Loss) else loss)(y, outputs)
            return len(values.shape)
    return max(len(outputs.shape) - 1, 1)


def kind(loss):
    """The name of a loss, the same for a string, a function and an object."""
    if isinstance(loss, str):
        loss = keras.losses.get(loss)
    return getattr(loss, "__name__", type(loss).__name__).lower().replace("_", "")


def _link(loss):
    """`(inverse, link)`: from the outputs to what the loss is convex in, and back."""
    name = kind(loss)
    if not getattr(loss, "from_logits", False):
        if name in ("categoricalcrossentropy", "sparsecategoricalcrossentropy"):
            axis = getattr(loss, "axis", -1)
            return _log, lambda z: keras.activations.softmax(z, axis=axis)
        if name == "binarycrossentropy":
            return lambda p: _log(p) - _log(1 - p), ops.sigmoid
    return lambda t: t, lambda z: z


def _log(p):
    return ops.log(ops.maximum(p, 1e-30))
