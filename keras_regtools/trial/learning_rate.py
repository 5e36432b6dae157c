"""The range test: train with a rate that grows, and look where the loss falls and where it ends."""

from __future__ import annotations

import dataclasses
import math
import warnings
from typing import Any

import keras
import numpy as np

from keras_regtools.data import as_batches
from keras_regtools.measures import hessian_eigenvalues
from keras_regtools.measures.result import Result, frozen
from keras_regtools.surface import LossSurface
from keras_regtools.training import base_optimizers, restored
from keras_regtools.trial.sweep import Rated, sweep
from keras_regtools.validation import (
    at_least,
    checked,
    flag,
    keras_model,
    optional,
    positive_integer,
    positive_pair,
    several,
    verbosity,
)

_FIRST = 5  # rates that all orders have to survive
_NO_FALL = 1e-3  # of the first loss
_SAMPLES = 512  # that the curvature is measured on


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class LearningRateRange(Result):
    """Result of `find_learning_rate`.

    Attributes:
        value: The suggestion to begin with, `valley`.
        steepest: The rate at which the loss falls fastest, per factor in the rate.
        valley: The middle, on a logarithmic scale, of the slope down to the lowest loss: between
            where a tenth and where nine tenths of the fall have happened.
        tenth: A tenth of the rate of the lowest loss.
        edge: 2 (1 + m) / λmax at the start, with the momentum m, divided by 1 + 2 m for Nesterov's:
            descent on the whole data is unstable above. NaN for other optimizers than SGD, and
            where it was not measured.
        diverged: The smallest rate at which an order was stopped; NaN if none was.
        rates: Array, the rates that were tried.
        losses: Array, `(orders, rates)`: the loss of each batch before its update, NaN behind a
            stop.
        smoothed: Array, the mean over the orders and over neighbouring rates.
        batch_size, orders, seed: As they were.
    """

    value: float
    steepest: float
    valley: float
    tenth: float
    edge: float
    diverged: float
    rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    batch_size: int | None
    orders: int
    seed: int


@checked(
    span=positive_pair,
    steps=at_least(10),
    orders=positive_integer,
    edge=flag,
    seed=at_least(0),
    verbose=verbosity,
)
def find_learning_rate(
    model: keras.Model,
    x: Any,
    y: Any = None,
    sample_weight: Any = None,
    *,
    batch_size: Any = 32,
    span: tuple[float, float] = (1e-6, 10.0),
    steps: int = 100,
    orders: int = 3,
    edge: bool = True,
    seed: int = 0,
    verbose: int = 0,
) -> Any:
    """Which learning rates train a model: the range test of [Smith, 2015](
    https://arxiv.org/abs/1506.01186), with a spread and with the edge of stability.

    From the weights as they are, the model is trained with its own optimizer for `steps` updates
    while the rate grows by a constant factor from one end of `span` to the other, several times
    with the samples in other orders. A sweep ends where the loss, over some batches, is four times
    its lowest and well above that of the beginning, or not finite. Afterwards weights, moving
    statistics, seeds, metrics, the optimizer's slots, iteration and rate, and the generators of
    Python, numpy and the backend are what they were, also after an interrupt; not what a dataset
    remembers of having been read. Batches are trained on by
    `train_on_batch`.

    None of the suggestions is the best rate of a training: they say where to begin. Below `edge`,
    gradient descent on all the data does not oscillate along the steepest direction
    ([Cohen et al., 2021](https://arxiv.org/abs/2103.00065)); trainings come to work near it.

    Args:
        model: A built and compiled model.
        x, y, sample_weight: The data, as `fit` takes them.
        batch_size: Samples per batch for arrays, or a list of such sizes.
        span: The smallest and the largest rate.
        steps: How many rates, 10 or above.
        orders: How many orders of the samples; of a dataset, how many passes.
        edge: Whether to measure λmax, on at most 512 samples.
        seed: Of the orders.
        verbose: 1 draws a progress bar.

    Returns:
        A `LearningRateRange`, to be drawn by `plots.learning_rate_range`; for a list of batch sizes
        a dict of them.

    Raises:
        TypeError: not a Keras model, or data that cannot be read twice.
        ValueError: a model that is not built or compiled, an argument out of its range, or no
            update at all with a finite loss.

    Example:

    >>> import keras, numpy as np
    >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    >>> model.compile("sgd", "mse")
    >>> model.set_weights([np.array([[3.0]])])
    >>> found = find_learning_rate(model, np.ones((8, 1)), np.zeros(8), batch_size=8)
    >>> round(found.edge, 4), found.steepest < 1.0  # the loss is w²
    (1.0, True)
    >>> float(model.get_weights()[0][0, 0])
    3.0
    """
    keras_model(model, compiled=True)
    if not model.trainable_variables:
        raise ValueError(
            "Expected a model with trainable weights. "
            f"Received: the model {model.name!r}, which has none. Call it on data first."
        )
    if isinstance(batch_size, (list, tuple)):
        sizes = several("batch_size", batch_size, positive_integer)
        as_batches(x, y, sample_weight, sizes[0]).rebatched(sizes[0])  # a dataset has its own
        arguments: dict[str, Any] = {"span": span, "steps": steps, "orders": orders, "seed": seed}
        found = {
            size: find_learning_rate(
                model, x, y, sample_weight, batch_size=size, edge=edge and i == 0,
                verbose=verbose, **arguments,
            )
            for i, size in enumerate(sizes)
        }  # fmt: skip
        first = found[sizes[0]].edge  # that of the model, whatever the batches are
        return {n: dataclasses.replace(one, edge=first) for n, one in found.items()}
    size = optional(positive_integer)("batch_size", batch_size)
    data = as_batches(x, y, sample_weight, size or 32)
    if data.dataset is not None:
        size = None
    rates = np.geomspace(*span, steps)
    bar = keras.utils.Progbar(orders * steps, unit_name="step") if verbose else None
    losses = np.full((orders, steps), np.nan)
    with restored(model) as reset:
        rated = Rated(model, rates)
        for order in range(orders):
            ordered = data.shuffled(seed + order) if data.dataset is None else data
            sweep(model, ordered, rated, losses[order], bar)
            reset()
    if not np.isfinite(losses[:, :_FIRST]).all():
        raise ValueError(
            "Expected losses that are finite for the smallest rates. Received: "
            f"{losses[:, :_FIRST].tolist()}. Look at the data, or begin the span further below."
        )
    top = math.nan
    optimizers = base_optimizers(model.optimizer)
    if edge and all(isinstance(o, keras.optimizers.SGD) for o in optimizers):
        settings: dict[str, Any] = {"batch_size": size or 32, "mode": "batch_statistics"}
        surface = LossSurface(model, x, y, sample_weight, **settings)
        try:
            top = _stability(surface.over(data.subsample(_SAMPLES)))
        except ValueError as error:  # the sweeps are worth telling without it
            warnings.warn(f"The edge of stability was not measured: {error}", stacklevel=3)
    told = None if data.dataset is not None else size or 32
    return _result(rates, losses, top, told, orders, seed)


def _stability(surface):
    """The rate above which SGD on all the data is unstable, with its momentum m.

    2 (1 + m) / λmax, and for Nesterov's as Keras has it 2 (1 + m) / ((1 + 2 m) λmax).
    """
    optimizer = base_optimizers(surface.model.optimizer)[0]
    top = hessian_eigenvalues(surface, tolerance=1e-2, max_products=60).value
    m = float(optimizer.momentum)
    slower = 1 + 2 * m if optimizer.nesterov else 1.0
    return 2 * (1 + m) / (slower * top) if top > 0 else math.nan


def _result(rates, losses, edge, batch_size, orders, seed):
    known = np.isfinite(losses)
    whole = known.all(axis=0)  # where every order still was
    stops = [i for i in range(len(rates)) if not whole[i]]
    end = stops[0] if stops else len(rates)
    smoothed = np.full(len(rates), np.nan)
    smoothed[:end] = _smooth(losses[:, :end].mean(axis=0), max(end // 20, 1))
    curve, logs = smoothed[:end], np.log(rates[:end])
    lowest = int(np.argmin(curve))
    fall = (curve[0] - curve) / max(curve[0] - curve[lowest], 1e-30)
    if curve[0] - curve[lowest] <= _NO_FALL * abs(curve[0]):
        warnings.warn(
            f"The loss does not fall at any rate between {rates[0]:.2g} and {rates[end - 1]:.2g}: "
            "there is nothing to suggest.",
            stacklevel=4,
        )
        valley = steepest = tenth = math.nan
    else:
        begin, stop = (int(np.argmax(fall[: lowest + 1] >= part)) for part in (0.1, 0.9))
        valley = float(np.exp((logs[begin] + logs[stop]) / 2))
        slopes = np.gradient(curve, logs)[: max(lowest, 1) + 1]
        steepest, tenth = float(rates[int(np.argmin(slopes))]), float(rates[lowest] / 10)
    last = [row[known[i]] for i, row in enumerate(losses)]
    ended = [len(row) for row in last if len(row) < len(rates)]
    return LearningRateRange(
        value=valley,
        steepest=steepest,
        valley=valley,
        tenth=tenth,
        edge=float(edge),
        diverged=float(rates[min(ended) - 1]) if ended else math.nan,
        rates=frozen(rates),
        losses=frozen(losses),
        smoothed=frozen(smoothed),
        batch_size=batch_size,
        orders=orders,
        seed=seed,
    )


def _smooth(values, width):
    """A running mean over 2 width + 1 values, over fewer at the ends."""
    kernel = np.ones(2 * width + 1)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones_like(values), kernel, "same")
