"""Find operations of a traced gradient that TensorFlow cannot differentiate, before it counts zero.

An operation that is registered as not differentiable gives no gradient, which looks like one that
depends on nothing.
"""

import tensorflow as tf

# Their derivative is zero wherever there is one, or they are there to stop it.
_CONSTANT = {
    "Ceil",
    "Floor",
    "FloorDiv",
    "OnesLike",
    "Rint",
    "Round",
    "Sign",
    "StopGradient",
    "ZerosLike",
}
_CALLS = {  # the attributes that name the functions of an operation that calls some
    "Case": ("branches",),
    "If": ("then_branch", "else_branch"),
    "PartitionedCall": ("f",),
    "StatefulPartitionedCall": ("f",),
    "StatelessCase": ("branches",),
    "StatelessIf": ("then_branch", "else_branch"),
    "StatelessWhile": ("body",),
    "While": ("body",),
}


def hidden_operations(sources, targets):
    """The operations between two lists of tensors of one graph whose derivative would be lost.

    Returns:
        List of pairs `(type, name)`; empty outside of a graph, where nothing can be seen.
    """
    if tf.executing_eagerly():
        return []
    graph, known, found = tf.compat.v1.get_default_graph(), {}, []
    for operation, inputs in _between(graph, sources, targets):
        if operation.type in _CALLS:
            found += _inside(operation, graph, known)
        elif _loses(operation, inputs, known):
            found.append((operation.type, operation.name))
    return list(dict.fromkeys(found))


def _between(graph, sources, targets):
    """`(operation, places of the inputs that depend on the sources)` of what the targets need."""
    needed, waiting = set(), [t.op for t in targets if t.graph is graph]
    while waiting:
        operation = waiting.pop()
        if operation not in needed:
            needed.add(operation)
            waiting += [t.op for t in operation.inputs]
    reached = {t.ref() for t in sources}
    for operation in graph.get_operations():  # in the order in which they were made
        if operation not in needed:
            continue
        inputs = [i for i, t in enumerate(operation.inputs) if t.ref() in reached]
        if inputs:
            yield operation, inputs
            reached |= {t.ref() for t in operation.outputs if _has_derivative(t)}


def _has_derivative(t):
    return t.dtype.is_floating or t.dtype.is_complex or t.dtype == tf.variant


def _loses(operation, inputs, known):
    if operation.type in _CONSTANT or not any(_has_derivative(t) for t in operation.outputs):
        return False
    lost = _lost_inputs(operation, known)
    return any(i in lost for i in inputs if _has_derivative(operation.inputs[i]))


def _lost_inputs(operation, known):
    """The inputs that no gradient comes to, tried once for each type of operation, apart."""
    if operation.type not in known:
        places = [i for i, t in enumerate(operation.inputs) if _has_derivative(t)]
        node = tf.compat.v1.NodeDef()
        node.CopyFrom(operation.node_def)
        node.name, node.device = "tried", ""
        node.input[:] = [f"input_{i}" for i in range(len(operation.inputs))]
        for name in [name for name in node.attr if name.startswith("_")]:
            del node.attr[name]
        with tf.Graph().as_default():
            inputs = [tf.compat.v1.placeholder(t.dtype, t.shape) for t in operation.inputs]
            (tried,) = tf.graph_util.import_graph_def(
                tf.compat.v1.GraphDef(node=[node]),
                dict(zip(node.input, inputs, strict=True)),
                ["tried"],
            )
            outputs = [t for t in tried.outputs if _has_derivative(t)]
            try:
                slopes = tf.gradients(outputs, inputs, stop_gradients=inputs)
                known[operation.type] = {i for i in places if slopes[i] is None}
            except LookupError:  # no gradient is registered, or it says that there is none
                known[operation.type] = set(places)
            except Exception:  # it wants more than an operation alone
                known[operation.type] = set()
    return known[operation.type]


def _inside(operation, graph, known):
    """What loses derivatives in the functions that an operation calls, whatever is put in."""
    found = []
    for attribute in _CALLS[operation.type]:
        value = operation.get_attr(attribute)
        for function in value if isinstance(value, list) else [value]:
            inner = getattr(graph._get_function(function.name), "graph", None)
            if inner is None:  # a function of TensorFlow 1, of which there is no Python graph
                continue
            for inside, inputs in _between(inner, inner.inputs, inner.outputs):
                if inside.type in _CALLS:
                    found += _inside(inside, inner, known)
                elif _loses(inside, inputs, known):
                    found.append((inside.type, f"{operation.name}/{inside.name}"))
    return found
