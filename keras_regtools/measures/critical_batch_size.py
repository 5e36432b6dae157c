"""How large the batch may be before the loss gets worse for it: tried out, in branches."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_regtools.data import as_batches
from keras_regtools.keras_internals import rate_of_steps, set_train_step
from keras_regtools.measures.result import Result, frozen
from keras_regtools.surface import LossSurface
from keras_regtools.training import (
    base_optimizers,
    correct_momentum,
    rate_factor,
    restored,
)
from keras_regtools.validation import (
    at_least,
    checked,
    keras_model,
    optional,
    positive_integer,
    several,
    share,
    verbosity,
)

_RULES = ("linear", "sqrt")
_UPDATES = 16  # of the largest batch, unless the budget is given
_EVALUATED = 4096  # samples whose loss is compared
_ROUNDING = 1e-6  # of the loss at the start: smaller differences are none
_DIVERGED = 4.0  # times the loss at the start


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class CriticalBatchSize(Result):
    """Result of `critical_batch_size`.

    Attributes:
        value: The largest batch size up to which no branch is worse than that of the smallest.
        worse_from: The smallest batch size above it, whose branch is worse; infinite if none is.
        batch_sizes: Array, k B for each branch, in samples of an update.
        rates: Array, the learning rate of each.
        losses: Array, `(repeats, branches)`: the loss at the end; infinite where it is not finite
            or four times the loss at the start.
        differences: Array, by branch the mean of the loss less that of the first branch.
        low, high: Arrays, the confidence interval of it, paired over the repeats.
        confidence: Its level.
        rule: As it was.
        updates: Array, how many each branch makes.
        budget: Samples that each branch sees.
        repeats, seed: As they were.
    """

    value: float
    worse_from: float
    batch_sizes: np.ndarray
    rates: np.ndarray
    losses: np.ndarray
    differences: np.ndarray
    low: np.ndarray
    high: np.ndarray
    confidence: float
    rule: str
    updates: np.ndarray
    budget: int
    repeats: int
    seed: int


@checked(
    batch_size=positive_integer,
    budget=optional(positive_integer),
    repeats=at_least(2),
    confidence=share,
    seed=at_least(0),
    verbose=verbosity,
)
def critical_batch_size(
    model: keras.Model,
    x: Any,
    y: Any = None,
    sample_weight: Any = None,
    *,
    batch_size: int = 32,
    factors: Sequence[int] = (1, 2, 4, 8, 16),
    rule: Any = None,
    budget: int | None = None,
    repeats: int = 5,
    confidence: float = 0.95,
    seed: int = 0,
    verbose: int = 0,
) -> CriticalBatchSize:
    """The largest batch that costs nothing, found by training on from here with several sizes.

    From one state of weights and optimizer, branches are trained with the batch k B at the rate
    f(k) η that the rule gives it, each on the same samples in the same order, as in
    [Merrill et al., 2025](https://arxiv.org/abs/2505.23971). Then the loss on the training data is
    compared (on at most 4,096 samples, in the mode `"batch_statistics"`), as a difference within
    each repeat, which has an order of its own. A branch is worse when the whole confidence interval
    of its mean difference to the first is above zero, or when it diverges in any repeat; few
    repeats find few differences. With the rate, velocities are corrected. Afterwards the model is
    what it was: see `find_learning_rate`.

    It may disagree with `gradient_noise_scale`, which knows no curvature and no optimizer: it was
    found far above it for Adam and language models.

    Args:
        model: A built and compiled model, trained for a while: it is about what comes next.
        x, y, sample_weight: The training data, arrays.
        batch_size: B, of the training so far; with accumulated gradients what `fit` gets.
        factors: The k, growing from 1.
        rule: `"linear"`, `"sqrt"` or a function of k; by default `"linear"` for SGD and `"sqrt"`
            for all others.
        budget: Samples that each branch sees, rounded down to whole updates of the largest batch;
            16 of these by default.
        repeats: How many orders of the samples, 2 or above.
        confidence: Level of the intervals, between 0 and 1.
        seed: Of the orders.
        verbose: 1 draws a progress bar.

    Returns:
        A `CriticalBatchSize`, to be drawn by `plots.critical_batch_size`.

    Raises:
        TypeError: not a Keras model.
        ValueError: a model that is not built or compiled, a dataset, an argument out of its range,
            a budget below the largest batch, fewer samples than it has, a loss that is not finite,
            or a first branch that diverges.

    Example:

    >>> import keras, numpy as np
    >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    >>> model.compile(keras.optimizers.SGD(0.1), "mse")
    >>> model.set_weights([np.array([[1.0]])])
    >>> x = np.ones((256, 1))  # the loss is w²: stable for rates up to 1
    >>> found = critical_batch_size(model, x, np.zeros(256), batch_size=8, repeats=2)
    >>> found.value, found.worse_from, [round(float(rate), 1) for rate in found.rates]
    (64.0, 128.0, [0.1, 0.2, 0.4, 0.8, 1.6])
    """
    keras_model(model, compiled=True)
    factors = several("factors", factors, positive_integer)
    if factors[0] != 1 or sorted(set(factors)) != list(factors):
        raise ValueError(
            f"Argument `factors` must be integers that grow from 1. Received: factors={factors}"
        )
    optimizers = base_optimizers(model.optimizer)
    rule = _usual_rule(optimizers) if rule is None else rule
    if not callable(rule) and rule not in _RULES:
        raise ValueError(
            "Argument `rule` must be one of 'linear', 'sqrt', or a function. "
            f"Received: rule={rule!r}"
        )
    data = as_batches(x, y, sample_weight, batch_size).rebatched(batch_size)
    parts = optimizers[0].gradient_accumulation_steps or 1
    largest = factors[-1] * batch_size * parts
    if data.samples < largest:
        raise ValueError(
            f"Expected at least {largest} samples, those of the largest batch. "
            f"Received: {data.samples}. Pass smaller `factors`."
        )
    whole = _UPDATES if budget is None else budget // largest
    if whole < 1:
        raise ValueError(
            f"Expected a `budget` of at least {largest} samples, those of the largest batch. "
            f"Received: budget={budget}"
        )
    budget = whole * largest
    changes = [rate_factor(rule, k, 1) for k in factors]
    surface = LossSurface(model, data.subsample(_EVALUATED, seed), mode="batch_statistics")
    losses, start = np.empty((repeats, len(factors))), surface.value()
    if not math.isfinite(start):
        raise ValueError(
            f"Expected a finite loss at the weights as they are. Received: {start}. Look at the "
            "data."
        )
    most = start + (_DIVERGED - 1) * abs(start)
    bar = keras.utils.Progbar(repeats * len(factors), unit_name="branch") if verbose else None
    with restored(model) as reset:
        rates = [float(np.asarray(ops.convert_to_numpy(o.learning_rate))) for o in optimizers]
        for repeat in range(repeats):
            ordered = data.taken(_order(data.samples, budget, seed + repeat))
            for i, k in enumerate(factors):
                reset()
                _change_rates(model, optimizers, rates, changes[i])
                branch = ordered.rebatched(k * batch_size)
                losses[repeat, i] = _trained(model, branch, surface, most)
                if i == 0 and math.isinf(losses[repeat, 0]):
                    raise ValueError(
                        f"Expected a first branch that trains, with batches of {batch_size} at the "
                        f"rate {rates[0]:.3g}. Received: one that diverged from {start:.3g}"
                    )
                if bar is not None:
                    bar.add(1)
    sizes = np.array(factors) * batch_size * parts
    low, mean, high = _paired(losses, confidence)
    visible = low > _ROUNDING * abs(start)
    worse = [int(size) for size in sizes[visible]]
    first = min(worse, default=math.inf)
    return CriticalBatchSize(
        value=float(max(size for size in sizes if size < first)),
        worse_from=float(first),
        batch_sizes=frozen(sizes),
        rates=frozen(np.array(changes) * rates[0]),
        losses=frozen(losses),
        differences=frozen(mean),
        low=frozen(low),
        high=frozen(high),
        confidence=float(confidence),
        rule=rule if isinstance(rule, str) else "its own rule",
        updates=frozen(budget // sizes),
        budget=budget,
        repeats=repeats,
        seed=seed,
    )


def _usual_rule(optimizers):
    plain = (keras.optimizers.SGD,)
    return "linear" if all(isinstance(o, plain) for o in optimizers) else "sqrt"


def _order(samples, budget, seed):
    """The numbers of the samples that a branch sees: whole passes, each in another order."""
    rng = np.random.default_rng(seed)
    passes = -(-budget // samples)
    return np.concatenate([rng.permutation(samples) for _ in range(passes)])[:budget]


def _change_rates(model, optimizers, rates, factor):
    """A rate of its own for each optimizer; one that came from a schedule stays what it is now."""
    for optimizer, rate in zip(optimizers, rates, strict=True):
        if rate_of_steps(optimizer) is None:
            optimizer.learning_rate = rate * factor
        else:
            optimizer.learning_rate = _Constant(rate * factor)
            set_train_step(model, None)  # which has the last one in it
    correct_momentum(model.optimizer, factor)


class _Constant(keras.optimizers.schedules.LearningRateSchedule):
    """What an optimizer takes that was built with a schedule."""

    def __init__(self, rate):
        self._rate = rate

    def __call__(self, step):
        return self._rate


def _trained(model, data, surface, most):
    """The loss after a pass over the data, infinite where it is no number or above `most`."""
    for x, y, weight, _ in data:
        model.train_on_batch(x, y, sample_weight=weight)
    loss = surface.value()
    return loss if math.isfinite(loss) and loss <= most else math.inf


def _paired(losses, confidence):
    """By branch the mean difference to the first one, between its ends."""
    from scipy import stats

    with np.errstate(invalid="ignore"):
        apart = losses - losses[:, :1]
    diverged = np.isinf(losses).any(axis=0)
    known = np.where(diverged, 0.0, apart)
    mean = known.mean(axis=0)
    count = len(losses)
    error = stats.t.ppf((1 + confidence) / 2, count - 1) * known.std(axis=0, ddof=1) / count**0.5
    ends = (np.where(diverged, math.inf, end) for end in (mean - error, mean, mean + error))
    return tuple(ends)
