"""The gradients of a training step as the optimizer gets and as it uses them."""

import math

import numpy as np
from keras import ops

from keras_regtools import backend
from keras_regtools.keras_internals import iteration, known_variables

ROWS = ("gradient_norm", "clipped_norm", "weight_norm", "update_norm", "update_ratio")


def used_gradients(optimizer, gradients, waiting):
    """What an optimizer makes of the gradients of a step before its own rule.

    Args:
        optimizer: A base optimizer, behind loss scaling.
        gradients: List of tensors, as `optimizer.apply` gets them.
        waiting: What `accumulators` held before the step, as a list of tensors, empty without
            accumulation.

    Returns:
        `(before, after)`: the gradients without the optimizer's loss scale and averaged over
        accumulated steps; the same clipped.
    """
    scale, steps = optimizer.loss_scale_factor, optimizer.gradient_accumulation_steps
    before = [backend.dense(g) for g in gradients]
    before = before if scale is None else [g / scale for g in before]
    if steps:
        before = [(g + sum_) / steps for g, sum_ in zip(before, waiting, strict=True)]
    return before, _clipped(optimizer, before)


def accumulators(optimizer, variables):
    """The variables in which gradients wait for an update, of each of `variables`, or none."""
    if not optimizer.gradient_accumulation_steps:
        return []
    # In the order in which the optimizer knows its variables; their paths may be the same.
    waiting = [v for v in optimizer.variables if v.name.endswith("_gradient_accumulator")]
    places = {id(v): i for i, v in enumerate(known_variables(optimizer))}
    return [waiting[places[id(v)]] for v in variables]


def _clipped(optimizer, gradients):
    if optimizer.clipnorm:
        factors = [_at_most(optimizer.clipnorm, _norm([g])) for g in gradients]
        return [g * ops.cast(f, g.dtype) for g, f in zip(gradients, factors, strict=True)]
    if optimizer.global_clipnorm:
        factor = _at_most(optimizer.global_clipnorm, _norm(gradients))
        return [g * ops.cast(factor, g.dtype) for g in gradients]
    if optimizer.clipvalue:
        return [ops.clip(g, -optimizer.clipvalue, optimizer.clipvalue) for g in gradients]
    return gradients


def _at_most(limit, norm):
    return ops.minimum(limit / ops.maximum(norm, 1e-30), 1.0)


def _norm(tensors):
    return ops.sqrt(ops.sum(squares(tensors)))


def squares(tensors):
    """The squared norm of each tensor, as one tensor."""
    return backend.squared_norms([ops.cast(t, "float32") for t in tensors])


class WatchingHook:
    """Hook that keeps numbers of what passes through an optimizer.

    A subclass makes them in `numbers`.

    Args:
        variables: The trainable variables of the model, in order.
        every: It is done on every so many updates, beginning with the first.
        compiled: Whether XLA compiles the step.
        shape: That of the numbers.

    Attributes:
        accumulator: Where they are, see `backend.StepAccumulator`.
        replicas: On how many the model is.
        watching: Whether steps that are traced now keep anything.
    """

    def __init__(self, variables, every, compiled, shape):
        self.variables, self.every = list(variables), every
        self.compiled, self.watching = compiled, True
        self.replicas = backend.replica_count(self.variables[0])
        self.accumulator = backend.StepAccumulator(shape, compiled, self.variables[0])

    def is_due(self, optimizer, iteration):
        """Whether the step of this number is looked at, as it will be found in the step."""
        steps = optimizer.gradient_accumulation_steps or 1
        return iteration // steps % self.every == 0 and (iteration + 1) % steps == 0

    def before(self, optimizer, gradients, variables):
        """Called before the update; gives what `after` needs."""
        if not self.watching:
            return None
        places = {id(v): i for i, v in enumerate(self.variables)}
        own = self.variables if variables is None else list(variables)
        gradients = list(gradients)
        known = [
            (places[id(v)], v, g)
            for v, g in zip(own, gradients, strict=True)
            if g is not None and id(v) in places
        ]
        variables = [v for _, v, _ in known]
        steps = optimizer.gradient_accumulation_steps or 1
        due = ops.equal(ops.mod(iteration(optimizer) // steps, self.every), 0)
        if steps > 1:  # the others only gather
            last = ops.equal(ops.mod(iteration(optimizer) + 1, steps), 0)
            due = ops.logical_and(due, last)
        held = backend.snapshot(due, variables + accumulators(optimizer, variables))
        return optimizer, known, held, due

    def after(self, before):
        """Called after the update, with what `before` gave."""
        if before is not None:
            optimizer, known, held, due = before
            self.accumulator.put(due, self.numbers(optimizer, known, held))

    def gradients(self, known):
        """The gradients that the optimizer gets, for the eyes of the hook."""
        return [g if self.compiled else backend.recompute_apart(g) for *_, g in known]


class GradientHook(WatchingHook):
    """Hook that keeps the norms of what passes through an optimizer, by layer.

    Args:
        variables, every, compiled: As for `WatchingHook`.
        groups: List of lists of places in `variables`, one for each layer.
    """

    def __init__(self, variables, groups, every, compiled):
        super().__init__(variables, every, compiled, (len(ROWS), len(groups)))
        self.groups = groups

    def numbers(self, optimizer, known, held):
        """A function that gives the rows."""

        def used():
            return used_gradients(optimizer, self.gradients(known), held[len(known) :])

        if self.replicas > 1:  # each clips its part, and the optimizer adds the parts up
            first, last = used()
            whole = backend.all_reduce(first)
            seen = whole, whole if last is first else backend.all_reduce(last)

        def norms():
            first, last = seen if self.replicas > 1 else used()
            old = held[: len(known)]
            moves = [v - weight for (_, v, _), weight in zip(known, old, strict=True)]
            of_first = squares(first)
            of_last = of_first if last is first else squares(last)
            # One sum for all layers: the operations of each would add up in large models.
            group_of = {at: i for i, group in enumerate(self.groups) for at in group}
            ids = np.array([group_of[at] for at, *_ in known], "int32")
            totals = [
                ops.sqrt(ops.segment_sum(each, ids, num_segments=len(self.groups)))
                for each in (of_first, of_last, squares(old), squares(moves))
            ]
            _, _, weight, update = totals
            ratio = ops.where(weight > 0, update / ops.maximum(weight, 1e-30), math.nan)
            return ops.stack([*totals, ratio])

        return norms
