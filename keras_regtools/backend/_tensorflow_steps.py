"""What layers and callbacks do inside a training step on TensorFlow."""

import threading

import tensorflow as tf

from keras_regtools.backend import _plain


def require(condition, message, assigned):
    """Checked when the graph runs; XLA leaves it out, and a functional call keeps no state."""
    if not _only_notes(assigned):
        tf.debugging.Assert(condition, [message])


def when(condition, values, variables, assigned):
    if _only_notes(assigned):
        return _plain.when(condition, values, variables, assigned)

    def assign():
        for variable, value in zip(variables, values(), strict=True):
            variable.assign(value)
        return True

    # No copies of large variables in the steps in which nothing is to be done.
    return tf.cond(condition, _apart(assign), lambda: False)


def traced_function():
    """The graph of the function that is traced, loops and branches inside it aside; the replica."""
    if tf.executing_eagerly():
        return None, None
    graph = tf.compat.v1.get_default_graph()
    while type(graph).__name__ in _BRANCHES:
        graph = graph.outer_graph
    return graph, threading.get_ident()  # each replica is traced in a thread of its own


_BRANCHES = ("CondBranchFuncGraph", "WhileBodyFuncGraph", "WhileCondFuncGraph")


def _apart(branch):
    """A branch as one node: of one that is not taken, TensorFlow goes through every node."""
    if not tf.inside_function():
        return branch
    return tf.function(branch, autograph=False, experimental_attributes={"_noinline": True})


def put(variable, index, value, assigned):
    if _only_notes(assigned):
        return _plain.put(variable, index, value, assigned)
    # Assigning to a slice would make XLA compile anew for each index.
    return variable.value.scatter_update(tf.IndexedSlices(value[None], index[None]))


def _only_notes(assigned):
    """Whether assignments are only noted, as inside a `keras.StatelessScope`."""
    return not hasattr(assigned.value, "assign")


class Mailbox:
    """Arrays that a step gives, in variables of no model."""

    def __init__(self, shape, compiled):
        self._count = tf.Variable(0, dtype="int64", trainable=False)
        self._kept = tf.Variable(tf.zeros([2, *shape]), trainable=False)
        self._compiled = compiled

    def put(self, condition, values):
        def add(new, count):
            total, largest = self._kept[0] + new, tf.maximum(self._kept[1], new)
            self._kept.assign(tf.stack([total, largest]))
            self._count.assign_add(count)
            return True

        if self._compiled:  # a branch would have its own layout of what it is given
            add(tf.where(condition, values(), 0.0), tf.cast(condition, "int64"))
        else:
            tf.cond(condition, _apart(lambda: add(values(), 1)), lambda: False)

    def read(self):
        count, (total, largest) = int(self._count.numpy()), self._kept.numpy()
        self._count.assign(0)
        self._kept.assign(tf.zeros_like(self._kept))
        return count, total / max(count, 1), largest


def held(condition, variables):
    return [tf.identity(variable.value) for variable in variables]


def aside(gradient):
    """Made again in the branch that looks at it, from what TensorFlow cannot merge.

    Sums and products with one consumer become part of it: η (a b) is computed as (η a) b. With
    another consumer in the same graph they would not, and the update would be rounded otherwise.
    """
    if isinstance(gradient, tf.IndexedSlices):
        return tf.IndexedSlices(aside(gradient.values), gradient.indices, gradient.dense_shape)
    if not tf.is_symbolic_tensor(gradient):
        return gradient
    made, waiting = {}, [gradient]
    while waiting:  # chains may be longer than Python's calls go deep
        tensor = waiting[-1]
        inputs = tensor.op.inputs if tensor.op.type in _MERGED else []
        missing = [t for t in inputs if t.ref() not in made]
        if missing:
            waiting += missing
            continue
        waiting.pop()
        if tensor.op.type == "Const":  # which may be pushed through what it is multiplied with
            made[tensor.ref()] = tf.constant(tf.get_static_value(tensor), tensor.dtype)
        elif tensor.op.type in _MERGED:
            made[tensor.ref()] = _MERGED[tensor.op.type](*(made[t.ref()] for t in inputs))
        else:
            made[tensor.ref()] = tensor
    return made[gradient.ref()]


_MERGED = {
    "Add": tf.add,
    "AddN": lambda *inputs: tf.add_n(inputs),
    "AddV2": tf.add,
    "Identity": tf.identity,
    "Mul": tf.multiply,
    "Neg": tf.negative,
    "RealDiv": tf.divide,
    "Reshape": tf.reshape,
    "Sub": tf.subtract,
}


def dense(gradient):
    """That of an embedding comes as slices, in which a row may stand twice."""
    return tf.convert_to_tensor(gradient)
