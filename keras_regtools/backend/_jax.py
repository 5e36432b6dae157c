"""Derivatives on JAX: forward over reverse for products."""

import contextlib
import functools

import jax

from keras_regtools.backend import _plain
from keras_regtools.backend._loop import batch_by_batch
from keras_regtools.backend._memory import PeakMemory
from keras_regtools.backend._plain import (  # noqa: F401
    after,
    all_reduce,
    assign_row,
    dense,
    draws,
    once,
    recompute_apart,
    replica_count,
    replicas,
    require,
    same_draws,
    squared_norms,
    traced_function,
)
from keras_regtools.keras_internals import make_step, shadow, unshadow


def jit(fn):
    return jax.jit(fn)


def value_and_grad(fn):
    return jax.value_and_grad(fn)


def hvp(fn, hidden=()):
    def call(params, vectors, *args):
        gradient = jax.grad(lambda p: fn(p, *args))
        _, product = jax.linearize(gradient, list(params))
        # One by one: XLA is many times slower with convolutions in a loop or with many filters.
        return [product(list(vector)) for vector in vectors]

    return call


def gnvp(outputs, loss, hidden=()):
    def call(params, vectors, *args):
        z, pull, more = jax.vjp(lambda p: outputs(p, *args), list(params), has_aux=True)
        push = jax.linear_transpose(pull, z)  # forward mode, also through a custom derivative
        _, curve = jax.linearize(jax.grad(lambda z: loss(z, more, *args)), z)
        return [pull(curve(*push((list(vector),))))[0] for vector in vectors]

    return call


def mean_over(fn):
    """One call a batch: XLA compiles a convolution inside a loop to code 5 to 25 times slower."""
    compiled = jax.jit(fn)
    return lambda args, batches: batch_by_batch(compiled, args, batches)


def describe():
    return {"jax": f"{jax.__version__} on {jax.default_backend()}"}


def peak_memory():
    """Of an accelerator the peak is that of the whole process: ask in growing order."""
    device = jax.local_devices()[0]
    if device.platform == "cpu" or not device.memory_stats():
        return PeakMemory()

    def told():
        found = device.memory_stats()
        return found["peak_bytes_in_use"], found["bytes_in_use"], found.get("bytes_limit")

    return PeakMemory(told)


def process_index():
    return jax.process_index()


def frozen_draws():
    """Seeds are variables here, and a functional call does not write variables."""
    return contextlib.nullcontext()


def conditional_assign(condition, update, variables, others, given, assigned):
    if _is_traced(condition):
        _plain.conditional_assign(condition, update, variables, others, given, assigned)
    elif condition:
        _plain.assign(update, variables, others, given)


def cond(condition, one, other):
    if _is_traced(condition):
        return _plain.cond(condition, one, other)
    return one() if condition else other()


def separate_step(model):
    """`jax.jit` knows functions again that are equal, as bound methods are."""
    own = shadow(model, "train_step", functools.partial(model.train_step))
    try:
        return make_step(model)
    finally:
        unshadow(model, "train_step", own)


def watch_steps(model, due, watch):
    """Two compiled steps: one that can call the host is slow to start even where it does not."""
    if model.steps_per_execution != 1:
        return _plain.watch_steps(model, due, watch)
    _plain.two_steps(model, due, watch, separate_step)


def _is_traced(condition):
    """If not, a branch that is known already is not compiled again in each call."""
    return isinstance(condition, jax.core.Tracer)


class StepAccumulator(_plain.StepAccumulator):
    def __init__(self, shape, compiled, like=None):
        super().__init__(shape, compiled, like, settle=jax.effects_barrier)

    def put(self, condition, values):
        """A functional step has no variables for this: the host is called.

        With the values alone: a branch would have its own layout of larger things it is given. Of
        several processes each has to hear of them, so each of its devices tells.
        """
        made, apart = values(), jax.process_count() > 1

        def tell():
            jax.debug.callback(self.receive, made, partitioned=apart)

        jax.lax.cond(condition, tell, lambda: None)


def snapshot(condition, variables):
    return [variable.value for variable in variables]


def dropout(x, rate, shape, seeds):
    """As `keras.random.dropout` draws and scales, with a rate that is in a variable."""
    rate = jax.numpy.asarray(rate)
    if not _is_traced(rate):
        return _plain.dropout(x, rate, shape, seeds)
    shape = x.shape if shape is None else shape
    kept = jax.random.bernoulli(seeds.next(), p=rate[1], shape=shape)
    # Compiled, Keras' division by a constant becomes a product with its inverse.
    raised = x * (1 / rate[1].astype(x.dtype))
    kept = jax.numpy.broadcast_to(kept, x.shape)
    return jax.lax.select(kept, raised, jax.numpy.zeros_like(x))
