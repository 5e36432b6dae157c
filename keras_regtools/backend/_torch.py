"""Derivatives on PyTorch: eager, reverse over reverse for products."""

import contextlib
import itertools

import torch

from keras_regtools.backend import _plain
from keras_regtools.backend._loop import batch_by_batch
from keras_regtools.backend._memory import PeakMemory
from keras_regtools.backend._plain import (  # noqa: F401
    after,
    all_reduce,
    assign_row,
    cond,
    dense,
    dropout,
    once,
    process_index,
    recompute_apart,
    replica_count,
    replicas,
    require,
    separate_step,
    squared_norms,
    traced_function,
)
from keras_regtools.keras_internals import make_step, set_train_step


def jit(fn):
    def call(*args):
        with torch.no_grad():
            return fn(*args)

    return call


def value_and_grad(fn):
    def call(params, *args):
        params = _watched(params)
        with torch.enable_grad():
            result = fn(params, *args)
        return result.detach(), _detached(_gradient(result, params, keep=False))

    return call


def hvp(fn, hidden=()):
    def call(params, vectors, *args):
        params = _watched(params)
        with torch.enable_grad(), _attention_twice():
            gradient = _gradient(fn(params, *args), params, create_graph=True)
        return [_detached(_gradient(gradient, params, vector)) for vector in vectors]

    return call


def gnvp(outputs, loss, hidden=()):
    def call(params, vectors, *args):
        params = _watched(params)
        with torch.enable_grad(), _attention_twice():
            z, more = outputs(params, *args)
            # Jᵀu is linear in u: its own transpose is J.
            u = [torch.zeros_like(t, requires_grad=True) for t in z]
            pulled = _gradient(z, params, u, create_graph=True)
            top = _watched(z)
            slope = _gradient(loss(top, more, *args), top, create_graph=True)
        products = []
        for vector in vectors:
            pushed = _gradient(pulled, u, vector)
            curved = _gradient(slope, top, pushed)
            products.append(_detached(_gradient(z, params, curved)))
        return products

    return call


def _attention_twice():
    """The one kernel of attention that can be differentiated twice."""
    return torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)


def _watched(tensors):
    return [t.detach().requires_grad_(True) for t in tensors]


def _detached(tensors):
    return [t.detach() for t in tensors]


def _gradient(targets, sources, seeds=None, create_graph=False, keep=True):
    """Of Σ ⟨target, seed⟩, with zeros where nothing depends."""
    targets = targets if isinstance(targets, list) else [targets]
    seeds = [torch.ones_like(t) for t in targets] if seeds is None else seeds
    pairs = [(t, s) for t, s in zip(targets, seeds, strict=True) if t.requires_grad]
    if not pairs:  # a constant, or a gradient of something linear
        return [torch.zeros_like(source) for source in sources]
    found = torch.autograd.grad(
        [t for t, _ in pairs],
        sources,
        [s for _, s in pairs],
        retain_graph=keep,
        create_graph=create_graph,
        allow_unused=True,
    )
    return [
        torch.zeros_like(source) if gradient is None else gradient
        for gradient, source in zip(found, sources, strict=True)
    ]


def mean_over(fn):
    def frozen(*args):
        with frozen_draws():
            return fn(*args)

    return lambda args, batches: batch_by_batch(frozen, args, batches)


@contextlib.contextmanager
def frozen_draws():
    """Fix torch's global generator for the block and give it back as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def describe():
    return {"torch": f"{torch.__version__}, {torch.get_num_threads()} threads"}


def conditional_assign(condition, update, variables, others, given, assigned):
    if condition:
        _plain.assign(update, variables, others, given)


def peak_memory():
    if not torch.cuda.is_available():
        return PeakMemory()

    def told():
        total = torch.cuda.get_device_properties(0).total_memory
        return torch.cuda.max_memory_allocated(), torch.cuda.memory_allocated(), total

    return PeakMemory(told, torch.cuda.reset_peak_memory_stats)


def watch_steps(model, due, watch):
    """Each step is a call of Python, which need not even count where nothing is due."""
    made, calls = make_step(model), itertools.count()

    def step(data):
        watch(due(next(calls)))
        return made(data)

    set_train_step(model, step)


class StepAccumulator(_plain.StepAccumulator):
    def put(self, condition, values):
        if condition:
            with torch.no_grad():
                self.receive(values().cpu())


def snapshot(condition, variables):
    if not condition:
        return None
    return [variable.value.detach().clone() for variable in variables]


def draws():
    return torch.get_rng_state()


@contextlib.contextmanager
def same_draws(draws, part=0):
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(draws)
        torch.rand(997 * part)  # others for another part
        yield
