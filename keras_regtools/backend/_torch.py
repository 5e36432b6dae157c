"""Derivatives on PyTorch: eager, reverse over reverse for Hessian products."""

import contextlib

import torch


def jit(fn):
    return fn


def value(fn):
    def call(params, *args):
        with torch.no_grad():
            return fn(params, *args)

    return call


def value_and_grad(fn):
    def call(params, *args):
        params = [p.detach().requires_grad_(True) for p in params]
        with torch.enable_grad():
            result = fn(params, *args)
            gradients = torch.autograd.grad(result, params, allow_unused=True)
        return result.detach(), _filled(gradients, params)

    return call


def hvp(fn):
    def call(params, vectors, *args):
        params = [p.detach().requires_grad_(True) for p in params]
        with torch.enable_grad():
            result = fn(params, *args)
            gradients = torch.autograd.grad(result, params, create_graph=True, allow_unused=True)
            product = sum(
                (g * v.detach()).sum()
                for g, v in zip(gradients, vectors, strict=True)
                if g is not None
            )
            if not getattr(product, "requires_grad", False):  # the loss is linear
                return [torch.zeros_like(p) for p in params]
            second = torch.autograd.grad(product, params, allow_unused=True)
        return _filled(second, params)

    return call


def _filled(gradients, params):
    return [
        torch.zeros_like(p) if g is None else g.detach()
        for g, p in zip(gradients, params, strict=True)
    ]


@contextlib.contextmanager
def frozen_draws():
    """Fix torch's global generator for the block and give it back as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
