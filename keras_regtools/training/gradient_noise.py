"""The noise between the parts of a training step, where it has parts."""

from keras import ops

from keras_regtools import backend
from keras_regtools.training.gradients import WatchingHook, squares


def parts_of(optimizer, replicas):
    """How many gradients an update is the mean of: accumulated steps or replicas, or 1."""
    return (optimizer.gradient_accumulation_steps or 1) * replicas


class NoiseHook(WatchingHook):
    """Hook that keeps the variance of the gradient of one part, and the square of their mean.

    The numbers are σ² and ‖ḡ‖². With the gradients g_i of S replicas
    σ² = (Σ ‖g_i‖² − S ‖ḡ‖²) / (S − 1). Of accumulated steps the earlier ones are known as a sum
    only: with the last one g and the mean ḡ' of the others σ² = ‖g − ḡ'‖² (S − 1) / S, which has
    the same expectation.

    Args:
        variables, every, compiled: As for `WatchingHook`.
    """

    def __init__(self, variables, every, compiled):
        super().__init__(variables, every, compiled, (2,))

    def numbers(self, optimizer, known, held):
        """A function that gives the two."""
        steps, scale = optimizer.gradient_accumulation_steps or 1, optimizer.loss_scale_factor
        waiting = len(known)

        def own():
            gradients = [backend.dense(g) for g in self.gradients(known)]
            return gradients if scale is None else [g / scale for g in gradients]

        if self.replicas > 1:  # which cannot add up in a branch
            count, gradients = self.replicas, own()
            each = ops.sum(squares(gradients)) * count  # each is divided by their number
            of_mean = ops.sum(squares(backend.all_reduce(gradients)))
            (of_parts,) = backend.all_reduce([each])
            variance = ops.maximum(of_parts - of_mean, 0) * count / (count - 1)
            return lambda: ops.stack([variance, of_mean])

        def of_accumulated():
            gradients, sums = own(), held[waiting:]
            apart = [g - s / (steps - 1) for g, s in zip(gradients, sums, strict=True)]
            means = [(g + s) / steps for g, s in zip(gradients, sums, strict=True)]
            variance = ops.sum(squares(apart)) * (steps - 1) / steps
            return ops.stack([variance, ops.sum(squares(means))])

        return of_accumulated
