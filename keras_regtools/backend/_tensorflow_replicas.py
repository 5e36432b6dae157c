"""One model on several replicas of TensorFlow, and what a step gives there."""

import contextlib

import numpy as np
import tensorflow as tf

from keras_regtools.backend import _plain
from keras_regtools.backend._tensorflow_steps import branch


def replicas(variable):
    """Each replica has a copy of its own of a variable without aggregation."""
    copies = getattr(variable.value, "values", None)  # of a `tf.distribute.DistributedValues`
    return [np.array(copy) for copy in (copies or [variable.value])]


def replica_count(variable):
    return len(getattr(variable.value, "values", None) or [variable])


def all_reduce(tensors):
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1 or not tensors:
        return tensors
    return list(context.all_reduce(tf.distribute.ReduceOp.SUM, tensors))


def watch_steps(model, due, watch):
    """Replicas add up in each step, as they cannot in a branch: two steps in turn, if they can."""
    if replica_count(model.trainable_variables[0]) > 1 and model.steps_per_execution == 1:
        _plain.two_steps(model, due, watch, _plain.separate_step)
    else:
        _plain.watch_steps(model, due, watch)


class StepAccumulator:
    """Arrays that a step gives, in variables of no model."""

    def __init__(self, shape, compiled, like):
        strategy = getattr(like.value, "distribute_strategy", None)
        self._replicated = replica_count(like) > 1
        self._in_line = compiled or self._replicated
        kind = {"trainable": False}
        if self._replicated:
            kind["synchronization"] = tf.VariableSynchronization.ON_READ
            kind["aggregation"] = tf.VariableAggregation.ONLY_FIRST_REPLICA
        with strategy.scope() if self._replicated else contextlib.nullcontext():
            self._count = tf.Variable(0, dtype="int64", **kind)
            self._kept = tf.Variable(tf.zeros([2, *shape]), **kind)

    def put(self, condition, values):
        def add(new, count):
            kept = tf.convert_to_tensor(self._kept)
            total, largest = kept[0] + new, tf.maximum(kept[1], new)
            self._kept.assign(tf.stack([total, largest]))
            self._count.assign_add(count)
            return True

        if self._in_line:  # a branch would have its own layout of what it is given
            add(tf.where(condition, values(), 0.0), tf.cast(condition, "int64"))
        elif tf.executing_eagerly():
            if condition:
                add(values(), 1)
        else:
            branch(condition, lambda: add(values(), 1))

    def read(self):
        """What all replicas know the same of, the first one tells."""
        counts, kept = (v.values if self._replicated else [v] for v in (self._count, self._kept))
        count, (total, largest) = int(counts[0].numpy()), kept[0].numpy()
        for variable in (*counts, *kept):
            variable.assign(tf.zeros_like(variable))
        return count, total / max(count, 1), largest
