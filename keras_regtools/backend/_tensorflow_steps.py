"""What layers and callbacks do inside a training step on TensorFlow."""

import threading

import keras
import tensorflow as tf

from keras_regtools.backend import _plain

try:  # no public function tells it
    from tensorflow.python.ops.control_flow_util import GraphOrParentsInXlaContext
except ImportError:
    GraphOrParentsInXlaContext = None


def require(condition, message, assigned):
    """Checked when the graph runs; XLA leaves it out, and a functional call keeps no state."""
    if not _only_notes(assigned):
        tf.debugging.Assert(condition, [message])


def conditional_assign(condition, update, variables, others, given, assigned):
    if _only_notes(assigned):
        return _plain.conditional_assign(condition, update, variables, others, given, assigned)
    known = {**variables, **others}
    if tf.executing_eagerly():
        return _plain.assign(update, variables, others, given) if condition else None
    kept = {n: tf.TensorSpec([*v.shape[:-1], None], v.dtype) for n, v in known.items()}
    given_as = tf.nest.map_structure(lambda t: tf.TensorSpec([None] * t.shape.rank, t.dtype), given)
    act, rest = _branches(update, len(variables), kept, given_as)
    handles = [variable.value.handle for variable in known.values()]
    # As a call and not put in line: of a branch in line, TensorFlow goes through every node.
    return tf.raw_ops.If(
        cond=condition,
        input=[*handles, *tf.nest.flatten(given)],
        Tout=[tf.bool],
        then_branch=act,
        else_branch=rest,
    )


def once(fn, *args):
    if getattr(_TRACED, "alone", None) is None:
        return fn(*args)  # not in a branch: what comes out may be differentiated
    types = [_any_size(t) for t in args]
    traced = _as_it_is(lambda *args: fn(*args))
    made = _kept((fn, str(types)), lambda: traced.get_concrete_function(*types))
    found = _call(made, [t for t in args if t is not None], [t.dtype for t in made.outputs])
    for tensor, like in zip(found, made.outputs, strict=True):
        tensor.set_shape(like.shape)
    return tf.nest.pack_sequence_as(made.structured_outputs, found)


def _any_size(t):
    """The type of a tensor with any number of channels."""
    if t is None:
        return None
    return tf.TensorSpec([*t.shape[:-1], None], t.dtype)


def _branches(update, assigned, kept, given):
    """The functions that read variables by their handles, update and assign them, or do nothing.

    The same for all layers whose updates are equal: to trace it is most of what recording costs in
    a first step.
    """
    key = (update, assigned, str(kept), str(given))
    return _kept(key, lambda: _traced(update, assigned, kept, given))


_MADE = {}
_MOST = 256  # of the functions that are kept


def _kept(key, make):
    alone = _is_one_device()
    key = (keras.config.floatx(), alone, *key)
    with _LOCK:
        if key not in _MADE:
            while len(_MADE) >= _MOST:
                del _MADE[next(iter(_MADE))]
            before, _TRACED.alone = getattr(_TRACED, "alone", None), alone
            try:
                with tf.init_scope(), tf.device(None):
                    _MADE[key] = make()
            finally:
                _TRACED.alone = before
        return _MADE[key]


_TRACED = threading.local()  # where what this thread traces at present will run
_LOCK = threading.RLock()  # replicas are traced in threads of their own


def _traced(update, assigned, kept, given):
    def act(handles, given):
        values = {}
        for handle, (name, spec) in zip(handles, kept.items(), strict=True):
            values[name] = tf.raw_ops.ReadVariableOp(resource=handle, dtype=spec.dtype)
            values[name].set_shape(spec.shape)
        for handle, value in zip(handles[:assigned], update(values, given), strict=True):
            tf.raw_ops.AssignVariableOp(resource=handle, value=value)
        return tf.constant(True)

    def rest(handles, given):
        return tf.constant(False)

    handles = [tf.TensorSpec([], tf.resource)] * len(kept)
    act, rest = (_as_it_is(branch).get_concrete_function(handles, given) for branch in (act, rest))

    def call(handles, given):
        return _call(act, [*handles, *tf.nest.flatten(given)], [tf.bool])

    return _as_it_is(call).get_concrete_function(handles, given), rest


def _call(made, tensors, types):
    """One node of the graph, and one function for all nodes that call it."""
    if _is_one_device():
        # TensorFlow prepares what it takes for a call of another device once and as it is; any
        # other call it prepares for all devices, which takes longer than to run it many times.
        return tf.raw_ops.RemoteCall(target=_ALONE, args=tensors, Tout=types, f=made)
    return tf.raw_ops.StatefulPartitionedCall(
        args=tensors, Tout=types, f=made, config_proto=_AS_IT_IS
    )


_ALONE = "/job:localhost/replica:0/task:0/device:CPU:0"


def _is_one_device():
    """Whether all that is traced now will run on one processor, without XLA."""
    if getattr(_TRACED, "alone", None) is not None:
        return _TRACED.alone
    if [device.name for device in tf.config.list_logical_devices()] != ["/device:CPU:0"]:
        return False
    if tf.distribute.has_strategy() or GraphOrParentsInXlaContext is None:
        return False
    return not GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())


def _config():
    config = tf.compat.v1.ConfigProto()
    config.graph_options.rewrite_options.disable_meta_optimizer = True
    return config.SerializeToString()


_AS_IT_IS = _config()


def _as_it_is(fn):
    """A function that is called now and then: to rewrite it for speed takes longer than it saves.

    TensorFlow leaves functions alone that its input pipelines made.
    """
    own = {"_tf_data_function": True, "_noinline": True}
    return tf.function(fn, autograph=False, experimental_attributes=own)


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


def after(tensor, value):
    """Keras asks for data until there are none, and what needs none of the step runs even then."""
    with tf.control_dependencies([tensor]):
        return tf.identity(value)


def assign_row(variable, index, value, assigned):
    if _only_notes(assigned):
        return _plain.assign_row(variable, index, value, assigned)
    # Assigning to a slice would make XLA compile again for each index.
    handle = variable.value.handle
    return tf.raw_ops.ResourceScatterUpdate(resource=handle, indices=index, updates=value)


def _only_notes(assigned):
    """Whether assignments are only noted, as inside a `keras.StatelessScope`."""
    return not hasattr(assigned.value, "assign")


def branch(condition, act):
    """`tf.cond` without what makes it slow to build: outputs, gradients, a rest that does much."""
    act = _as_it_is(lambda: tf.constant(act())).get_concrete_function()
    given = act.captured_inputs
    specs = [tf.TensorSpec(t.shape, t.dtype) for t in given]

    def call(*given):
        return _call(act, given, [tf.bool])

    call, rest = (
        _as_it_is(branch).get_concrete_function(*specs)
        for branch in (call, lambda *given: tf.constant(False))
    )
    tf.raw_ops.If(cond=condition, input=given, Tout=[tf.bool], then_branch=call, else_branch=rest)


def snapshot(condition, variables):
    return [tf.identity(variable.value) for variable in variables]


def recompute_apart(gradient):
    """Made again in the branch that looks at it, from what TensorFlow cannot merge.

    Sums and products with one consumer become part of it: η (a b) is computed as (η a) b. With
    another consumer in the same graph they would not, and the update would be rounded otherwise.
    """
    if isinstance(gradient, tf.IndexedSlices):
        return tf.IndexedSlices(
            recompute_apart(gradient.values), gradient.indices, gradient.dense_shape
        )
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


def squared_norms(tensors):
    """In few operations: a model has hundreds of variables, and each operation takes its time."""
    return 2.0 * tf.stack([tf.nn.l2_loss(t) for t in tensors])
