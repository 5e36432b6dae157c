"""Derivatives on TensorFlow: graphs without XLA, whose second derivative of pooling is wrong."""

import contextlib
import functools
import os

import keras
import tensorflow as tf

from keras_regtools.backend._loop import batch_by_batch
from keras_regtools.backend._memory import PeakMemory
from keras_regtools.backend._plain import cond, draws, process_index, same_draws, separate_step  # noqa: F401
from keras_regtools.backend._tensorflow_hidden import hidden_operations
from keras_regtools.backend._tensorflow_replicas import (  # noqa: F401
    StepAccumulator,
    all_reduce,
    replica_count,
    replicas,
    watch_steps,
)
from keras_regtools.backend._tensorflow_steps import (  # noqa: F401
    after,
    assign_row,
    conditional_assign,
    dense,
    once,
    recompute_apart,
    require,
    snapshot,
    squared_norms,
    traced_function,
)

_ZERO = tf.UnconnectedGradients.ZERO


def jit(fn):
    # A partial is a function of its own: TensorFlow warns of retracing by the code behind it.
    own = functools.partial(fn)
    return tf.function(own, jit_compile=False, reduce_retracing=True)


def value_and_grad(fn):
    def call(params, *args):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(params)
            result = fn(params, *args)
        return result, _gradient(tape, result, params)

    return call


def hvp(fn, hidden=()):
    def forward_over_reverse(params, vector, *args):
        """For one vector: half the memory, because what it needs is made when it is needed."""
        with tf.autodiff.ForwardAccumulator(params, vector) as forward:
            _, gradient = value_and_grad(fn)(params, *args)
        return [_shaped(forward.jvp(g, _ZERO), p) for g, p in zip(gradient, params, strict=True)]

    def call(params, vectors, *args):
        if len(vectors) == 1 and _is_straight(fn, hidden, params, *args):
            return [forward_over_reverse(params, vectors[0], *args)]
        with tf.GradientTape(watch_accessed_variables=False, persistent=True) as outer:
            outer.watch(params)
            _, gradient = value_and_grad(fn)(params, *args)
        _note(hidden, params, gradient)
        return _in_turn(lambda vector: _gradient(outer, gradient, params, vector), vectors)

    return call


def _is_straight(fn, hidden, params, *args):
    """Whether there are no loops, branches and calls, which forward mode loses track of."""
    if tf.executing_eagerly():
        return False
    traced = jit(value_and_grad(fn)).get_concrete_function(params, *args).graph
    with traced.as_default():
        _note(hidden, traced.inputs[: len(params)], traced.outputs[1:])
    ends = ("While", "If", "Case", "PartitionedCall")
    return not any(op.type.endswith(ends) for op in traced.get_operations())


def _note(hidden, sources, targets):
    """Keep in a list what would count as zero where targets are differentiated once more."""
    if isinstance(hidden, list):
        hidden += [found for found in hidden_operations(sources, targets) if found not in hidden]


def gnvp(outputs, loss, hidden=()):
    def call(params, vectors, *args):
        with tf.GradientTape(watch_accessed_variables=False, persistent=True) as model:
            model.watch(params)
            z, more = outputs(params, *args)
        # Jᵀu is linear in u: its own transpose is J, and the value at u = 0 is never needed.
        u = [tf.zeros_like(t) for t in z]
        with tf.GradientTape(watch_accessed_variables=False, persistent=True) as transposed:
            transposed.watch(u)
            pulled = _gradient(model, z, params, u)
        with tf.GradientTape(watch_accessed_variables=False, persistent=True) as head:
            head.watch(z)
            _, slope = value_and_grad(loss)(z, more, *args)
        _note(hidden, u, pulled)
        _note(hidden, z, slope)

        def product(vector):
            pushed = _gradient(transposed, pulled, u, vector)
            curved = _gradient(head, slope, z, pushed)
            return _gradient(model, z, params, curved)

        return _in_turn(product, vectors)

    return call


def _in_turn(product, vectors):
    """The products, two at a time: all at once they would hold their memory all at once."""
    products = []
    for vector in vectors:
        with tf.control_dependencies(products[-2] if len(products) > 1 else []):
            vector = [tf.identity(t) for t in vector]
        products.append(product(vector))
    return products


def _gradient(tape, target, sources, seed=None):
    gradients = tape.gradient(target, sources, output_gradients=seed, unconnected_gradients=_ZERO)
    gradients = [tf.convert_to_tensor(gradient) for gradient in gradients]  # embeddings give slices
    for gradient, source in zip(gradients, sources, strict=True):
        gradient.set_shape(source.shape)
    return gradients


def _shaped(tensor, like):
    """Forward mode loses shapes behind products of rank 3, and gives slices of an embedding."""
    tensor = tf.convert_to_tensor(tensor)
    tensor.set_shape(like.shape)
    return tensor


def mean_over(fn):
    """One call for all batches where they are arrays or a `tf.data.Dataset`: the loop is traced."""

    def start(args, batch):
        """`fn`, traced for any number of samples, and a total of nothing."""
        one = jit(fn).get_concrete_function(*args, *batch)
        scalars, tensors = one.structured_outputs
        zeros = tf.nest.map_structure(lambda t: tf.zeros(t.shape, t.dtype), tensors)
        return one, ([tf.zeros((), tf.float64) for _ in scalars], zeros, tf.zeros((), tf.int32))

    def add(total, one, args, batch):
        count = tf.shape(tf.nest.flatten(batch[0])[0])[0]
        scalars, tensors = one(*args, *batch)

        def weighted(a, b):
            return a + tf.cast(count, a.dtype) * tf.cast(b, a.dtype)

        return (
            tf.nest.map_structure(weighted, total[0], scalars),
            tf.nest.map_structure(weighted, total[1], tensors),
            total[2] + count,
        )

    def mean(scalars, tensors, seen):
        scalars, tensors = tf.nest.map_structure(
            lambda total: total / tf.cast(seen, total.dtype), (scalars, tensors)
        )
        return scalars, tensors, seen

    def over_arrays(args, arrays, size):
        one, total = start(args, tf.nest.map_structure(_any_batch, arrays))
        samples = tf.shape(tf.nest.flatten(arrays)[0])[0]

        def body(begin, total):
            part = tf.nest.map_structure(
                lambda t: None if t is None else t[begin : begin + size], arrays
            )
            return begin + size, add(total, one, args, part)

        _, total = tf.while_loop(
            lambda begin, _: begin < samples, body, (0, total), parallel_iterations=1
        )
        return mean(*total)

    def over_dataset(args, dataset):
        spec = tf.nest.map_structure(_any_batch, dataset.element_spec)
        one, total = start(args, _parts(spec))
        batches = iter(dataset)

        def body(_, total):
            element = batches.get_next_as_optional()
            more = element.has_value()
            total = tf.cond(
                more, lambda: add(total, one, args, _parts(element.get_value())), lambda: total
            )
            return more, total

        _, total = tf.while_loop(lambda more, _: more, body, (True, total), parallel_iterations=1)
        return mean(*total)

    arrays_mean, dataset_mean, one = jit(over_arrays), jit(over_dataset), jit(fn)
    traced = set()

    def run(args, batches):
        if batches.resident is not None:
            size = tf.constant(batches.batch_size)
            if not traced:  # for any number of samples, so that a part of them needs no other trace
                traced.add(arrays_mean)
                arrays_mean.get_concrete_function(
                    args, tf.nest.map_structure(_any_batch, batches.resident), size
                )
            scalars, tensors, _ = arrays_mean(args, batches.resident, size)
        elif isinstance(batches.dataset, tf.data.Dataset):
            scalars, tensors, seen = dataset_mean(args, batches.dataset)
            if not seen:
                batches.refuse_nothing()
            batches.samples = int(seen)
        else:
            return batch_by_batch(one, args, batches)
        return [float(scalar) for scalar in scalars], tensors

    return run


def _any_batch(t):
    """The type of a tensor with any number of samples."""
    return None if t is None else tf.TensorSpec([None, *t.shape[1:]], t.dtype)


def _parts(element):
    """x, y and sample weights of an element of a dataset, or of its type; floats as Keras's."""
    floatx = tf.as_dtype(keras.config.floatx())

    def converted(t):
        if t is None or not t.dtype.is_floating:
            return t
        return (
            tf.TensorSpec(t.shape, floatx) if isinstance(t, tf.TensorSpec) else tf.cast(t, floatx)
        )

    return tf.nest.map_structure(converted, keras.utils.unpack_x_y_sample_weight(element))


def frozen_draws():
    """Seeds are variables here, and a functional call does not write variables."""
    return contextlib.nullcontext()


def peak_memory():
    if not tf.config.list_logical_devices("GPU"):
        return PeakMemory()

    def told():
        found = tf.config.experimental.get_memory_info("GPU:0")
        return found["peak"], found["current"], None  # no public name tells how much there is

    return PeakMemory(told, lambda: tf.config.experimental.reset_memory_stats("GPU:0"))


def describe():
    return {"tensorflow": tf.__version__, "oneDNN": _onednn()}


def _onednn():
    """Whether convolutions run on oneDNN, which TensorFlow decides when it is imported."""
    given = os.environ.get("TF_ENABLE_ONEDNN_OPTS")
    if given is not None:
        return f"{'on' if given.lower() in ('1', 'true') else 'off'}, TF_ENABLE_ONEDNN_OPTS={given}"
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            flags = set(file.read().split())
    except OSError:
        return "not known: TF_ENABLE_ONEDNN_OPTS is not set"
    if "avx512_vnni" in flags:
        return "on, as on every processor with AVX-512 VNNI"
    return "off, as on every processor without AVX-512 VNNI; TF_ENABLE_ONEDNN_OPTS=1 turns it on"


def dropout(x, rate, shape, seeds):
    """As `keras.random.dropout` draws and scales, with a rate that is in a variable."""
    rate, _, scale = tf.unstack(tf.cast(tf.convert_to_tensor(rate), x.dtype))
    shape = tf.shape(x) if shape is None else shape
    seed = seeds.next()
    if seed.dtype != tf.int32:
        seed = tf.cast(tf.math.floormod(seed, tf.int32.max - 1), tf.int32)
    drawn = tf.random.stateless_uniform(shape, seed, dtype=x.dtype)
    return tf.where(drawn >= rate, x * scale, tf.zeros_like(x))
