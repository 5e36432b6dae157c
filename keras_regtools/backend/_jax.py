"""Derivatives on JAX: forward over reverse for Hessian products."""

import contextlib

import jax


def jit(fn):
    return jax.jit(fn)


def value(fn):
    return jax.jit(fn)


def value_and_grad(fn):
    return jax.jit(jax.value_and_grad(fn))


def hvp(fn):
    def call(params, vectors, *args):
        gradient = jax.grad(lambda p: fn(p, *args))
        return jax.jvp(gradient, (list(params),), (list(vectors),))[1]

    return jax.jit(call)


def frozen_draws():
    """Seeds are variables here, and a functional call does not write variables."""
    return contextlib.nullcontext()
