"""Which batch size: what fits, what the machine likes, and what the gradient's noise allows."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Any

import keras
import numpy as np

from keras_regtools import backend
from keras_regtools.data import as_batches
from keras_regtools.measures.gradient_noise_scale import gradient_noise_scale
from keras_regtools.measures.result import Result, frozen
from keras_regtools.surface import LossSurface
from keras_regtools.training import base_optimizers, restored
from keras_regtools.trial.cost import bytes_of_a_sample, fits, foreseen, memory_of_a_step, speeds
from keras_regtools.validation import (
    at_least,
    checked,
    keras_model,
    optional,
    positive,
    positive_integer,
    several,
    verbosity,
)

_SMALLEST = 8
_KNEE = 0.9  # of the most samples per second
_NOISE_SAMPLES = 2048
_SHARE_OF_ROOM = 0.8


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class BatchSizeSuggestion(Result):
    """Result of `suggest_batch_size`.

    Attributes:
        value: Of the sizes that were tried, the one with which the training is expected to reach
            its end first.
        fits: The largest size whose step is foreseen to stay below the limit; NaN if not known.
        knee: The smallest size with nine tenths of the most samples per second.
        noise_scale: tr Σ / |G|², in samples of a batch; `noise_interval`: its interval of 95 %.
        reasons: Tuple of a sentence for each of the three, and one for `value`.
        batch_sizes: Array, the sizes that were tried.
        samples_per_second: Array, for each; `slowest` and `fastest`: those of single turns.
        memory: Array, bytes that a step took above what was held before; NaN if not known.
        expected_time: Array, (B + B_noise) / samples per second: the time to one and the same
            loss, up to a factor.
        memory_limit: In bytes; NaN if not known.
        turns, seed: As they were.
    """

    value: float
    fits: float
    knee: float
    noise_scale: float
    noise_interval: tuple
    reasons: tuple
    batch_sizes: np.ndarray
    samples_per_second: np.ndarray
    slowest: np.ndarray
    fastest: np.ndarray
    memory: np.ndarray
    expected_time: np.ndarray
    memory_limit: float
    turns: int
    seed: int


@checked(
    memory_limit=optional(positive),
    seconds=positive,
    turns=at_least(2),
    seed=at_least(0),
    verbose=verbosity,
)
def suggest_batch_size(
    model: keras.Model,
    x: Any,
    y: Any = None,
    sample_weight: Any = None,
    *,
    batch_sizes: Any = None,
    memory_limit: float | None = None,
    seconds: float = 60.0,
    turns: int = 5,
    seed: int = 0,
    verbose: int = 0,
) -> BatchSizeSuggestion:
    """Three numbers for a batch size, with their reasons, measured on this machine.

    - What fits: the memory of a step is measured for growing sizes, and none is tried that is
      foreseen to need more than the limit.
    - Where samples per second stop growing: steps of all sizes are timed in turn.
    - What the noise allows: `measures.gradient_noise_scale` of the weights as they are. It grows in
      training, so ask again later.

    To one and the same loss a training with the batch B needs in proportion to 1 + B_noise / B
    steps ([McCandlish et al., 2018](https://arxiv.org/abs/1812.06162)), if its rate follows, so
    that its time is in proportion to (B + B_noise) / (samples per second). The size with the least
    is suggested. Afterwards the model is what it was: see `find_learning_rate`.

    Args:
        model: A built and compiled model.
        x, y, sample_weight: The training data, arrays.
        batch_sizes: The sizes to try, growing; powers of two from 8 up to the number of samples by
            default. A default size is left out where `seconds` are over.
        memory_limit: In bytes, above what is held now: what a step may take; eight tenths of what
            is free by default.
        seconds: When to stop trying larger sizes.
        turns: How often each is timed, 2 or above.
        seed: Of the choice of the samples.
        verbose: 1 prints each size.

    Returns:
        A `BatchSizeSuggestion`, to be drawn by `plots.batch_size_suggestion`.

    Raises:
        TypeError: not a Keras model.
        ValueError: a model that is not built or compiled, a dataset, an argument out of its range,
            fewer samples than the largest size or than three, a loss that is not finite, or a limit
            below what the smallest size takes.

    Example:

    >>> import keras, numpy as np
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(256, 2))
    >>> found = suggest_batch_size(model, x, x[:, 0] + rng.normal(size=256), batch_sizes=[8, 64])
    >>> found.value in (8, 64), len(found.reasons)
    (True, 4)
    """
    keras_model(model, compiled=True)
    data = as_batches(x, y, sample_weight, _SMALLEST).rebatched(_SMALLEST)
    sizes = _sizes(batch_sizes, data.samples)
    parts = base_optimizers(model.optimizer)[0].gradient_accumulation_steps or 1
    _refuse_unmeasurable(model, data)
    shuffled, begin = data.shuffled(seed), time.perf_counter()
    with restored(model):
        memory = backend.peak_memory()
        limit = _limit(memory, memory_limit)
        least = bytes_of_a_sample(model)
        tried: list[int] = []
        taken: list[float] = []
        for size in sizes:
            late = batch_sizes is None and time.perf_counter() - begin > seconds / 2
            if tried and (late or foreseen(tried, taken, size, least) > limit):
                break
            taken.append(memory_of_a_step(model, shuffled.rebatched(size), memory))
            tried.append(size)
            if verbose:
                print(f"batch size {size}: {taken[-1] / 2**20:.1f} MiB")
        if taken[0] > limit:
            raise ValueError(
                f"Expected a limit above what a step of {tried[0]} samples takes, "
                f"{taken[0] / 2**20:.1f} MiB. Received: {limit / 2**20:.1f} MiB"
            )
        within = [size for size, need in zip(tried, taken, strict=True) if not need > limit]
        rates = speeds(model, shuffled, within, turns)
    taken = taken[: len(within)]
    noise, most = _noise(model, data, seed), fits(within, taken, limit, least)
    return _suggestion(within, taken, rates, noise, limit, most, parts, turns, seed)


def _sizes(given, samples):
    if given is None:
        powers = [2**n for n in range(3, 1 + int(math.log2(max(samples, _SMALLEST))))]
        return [size for size in powers if size <= samples] or [samples]
    sizes = several("batch_sizes", given, positive_integer)
    if sorted(set(sizes)) != list(sizes):
        raise ValueError(
            f"Argument `batch_sizes` must be integers that grow. Received: batch_sizes={sizes}"
        )
    if sizes[-1] > samples:
        raise ValueError(
            f"Expected at least {sizes[-1]} samples, those of the largest batch. "
            f"Received: {samples}"
        )
    return sizes


def _limit(memory, given):
    if not memory.known:
        return math.nan
    if given is not None:
        return given
    return math.nan if memory.room is None else _SHARE_OF_ROOM * memory.room


def _refuse_unmeasurable(model, data):
    """Say what is wrong with data or model before anything is tried with them."""
    if data.samples < 3:
        raise ValueError(
            f"Expected at least three samples, whose gradients differ. Received: {data.samples}"
        )
    loss = LossSurface(model, data.first(_SMALLEST)).value()
    if not math.isfinite(loss):
        raise ValueError(
            f"Expected a finite loss at the weights as they are. Received: {loss}. Look at the "
            "data."
        )


def _noise(model, data, seed):
    micro = max(1, min(_SMALLEST, data.samples // 8))
    chosen = data.subsample(_NOISE_SAMPLES, seed)
    surface = LossSurface(model, chosen, batch_size=micro, mode="batch_statistics")
    return gradient_noise_scale(surface, micro, population=data.samples, seed=seed)


def _suggestion(sizes, taken, speeds, noise, limit, fits, parts, turns, seed):
    sizes, memory, speed = np.array(sizes), np.array(taken), np.median(speeds, axis=0)
    scale = noise.value / parts
    expected = (sizes + scale) / speed if math.isfinite(scale) else 1 / speed
    best, knee = sizes[np.argmin(expected)], sizes[np.argmax(speed >= _KNEE * speed.max())]
    low, high = (end / parts for end in noise.interval)
    took = f"one of {sizes[-1]} samples took {memory[-1] / 2**20:.0f} MiB"
    room = f"{limit / 2**20:.0f} MiB"
    if math.isnan(fits):
        first = "What a step takes is not known on this system."
    elif math.isinf(fits):
        first = f"No size that was tried comes near {room}: {took}."
    else:
        first = f"A step of up to {fits:.0f} samples is foreseen to stay below {room}: {took}."
    reasons = (
        first,
        f"{knee} samples are the smallest batch with which the machine makes nine tenths of the "
        f"{speed.max():.0f} samples per second that it made at most; up to {sizes[-1]} were tried.",
        f"The gradient noise scale is {scale:.3g} (95 %: {low:.3g} to {high:.3g}): far above it "
        "more samples in a batch save no steps."
        if math.isfinite(scale)
        else "The gradient noise scale is not known: no gradient is seen behind the noise.",
        f"With {best} samples (samples + noise scale) / (samples per second) is least: the time to "
        "a loss, if the rate follows the batch."
        if math.isfinite(scale)
        else f"With {best} samples the machine makes the most samples per second.",
    )
    return BatchSizeSuggestion(
        value=float(best),
        fits=fits,
        knee=float(knee),
        noise_scale=float(scale),
        noise_interval=(low, high),
        reasons=reasons,
        batch_sizes=frozen(sizes),
        samples_per_second=frozen(speed),
        slowest=frozen(speeds.min(axis=0)),
        fastest=frozen(speeds.max(axis=0)),
        memory=frozen(memory),
        expected_time=frozen(expected),
        memory_limit=float(limit),
        turns=turns,
        seed=seed,
    )
