"""Derivatives on TensorFlow: graphs without XLA, whose second derivative of pooling is wrong."""

import contextlib
import functools

import tensorflow as tf


def jit(fn):
    # A partial is a function of its own: TensorFlow warns of retracing by the code behind it.
    own = functools.partial(fn)
    return tf.function(own, jit_compile=False, reduce_retracing=True)


def value(fn):
    return jit(fn)


def value_and_grad(fn):
    def call(params, *args):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(params)
            result = fn(params, *args)
        return result, _gradient(tape, result, params)

    return jit(call)


def hvp(fn):
    def call(params, vectors, *args):
        with tf.GradientTape(watch_accessed_variables=False) as outer:
            outer.watch(params)
            with tf.GradientTape(watch_accessed_variables=False) as inner:
                inner.watch(params)
                result = fn(params, *args)
            gradients = _gradient(inner, result, params)
        return outer.gradient(
            gradients,
            params,
            output_gradients=vectors,
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )

    return jit(call)


def _gradient(tape, result, params):
    gradients = tape.gradient(result, params, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    return [tf.convert_to_tensor(gradient) for gradient in gradients]  # embeddings give slices


def frozen_draws():
    """Seeds are variables here, and a functional call does not write variables."""
    return contextlib.nullcontext()
