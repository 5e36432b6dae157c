"""The range test: train with a rate that grows, and look where the loss falls and where it ends."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_regtools.data import as_batches
from keras_regtools.keras_internals import iteration, schedule_of
from keras_regtools.measures import hessian_eigenvalues
from keras_regtools.measures.result import Result, frozen
from keras_regtools.surface import LossSurface
from keras_regtools.training import base_optimizers
from keras_regtools.trial.restored import restored
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

_DIVERGED = 4.0  # times the lowest loss: the sweep ends there, as in fastai and PyTorch Lightning
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
        edge: 2 (1 + m) / λmax at the start, with the momentum m: plain descent on the whole data
            is unstable above. NaN for other optimizers than SGD, and where it was not measured.
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
    with the samples in other orders. A sweep ends where the loss is four times its lowest, or not
    finite. Afterwards weights, moving statistics, seeds, metrics, the optimizer's slots, iteration
    and rate, and the generators of Python, numpy and the backend are what they were, also after an
    interrupt.

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
    if isinstance(batch_size, (list, tuple)):
        sizes = several("batch_size", batch_size, positive_integer)
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
    rates = np.geomspace(*span, steps)
    bar = keras.utils.Progbar(orders * steps, unit_name="step") if verbose else None
    losses = np.full((orders, steps), np.nan)
    with restored(model) as reset:
        rated = _Rated(model, rates)
        for order in range(orders):
            ordered = data.shuffled(seed + order) if data.dataset is None else data
            _sweep(model, ordered, rated, losses[order], bar)
            reset()
    top = math.nan
    if edge:
        surface = LossSurface(model, x, y, sample_weight, mode="batch_statistics")
        top = _stability(surface.over(data.subsample(_SAMPLES)))
    return _result(rates, losses, top, data.batch_size, orders, seed)


def _sweep(model, data, rated, losses, bar):
    """Train with each rate in turn; the losses before the updates go into `losses`."""
    batches, lowest = _endlessly(data), math.inf
    for i in range(len(losses)):
        rated.take(i)
        losses[i] = np.mean([_step(model, next(batches)) for _ in range(rated.parts)])
        if bar is not None:
            bar.add(1)
        recent = np.mean(losses[max(i - 4, 0) : i + 1])
        if not (math.isfinite(losses[i]) and recent <= lowest + (_DIVERGED - 1) * abs(lowest)):
            return
        lowest = min(lowest, recent)


class _Rated:
    """The optimizers of a model, with one of some rates at a time.

    Attributes:
        parts: Batches of an update.
    """

    def __init__(self, model, rates):
        self._rates, self._optimizers = rates, base_optimizers(model.optimizer)
        self.parts = self._optimizers[0].gradient_accumulation_steps or 1
        for optimizer in self._optimizers:
            if schedule_of(optimizer) is not None:  # which cannot become a number
                begin = int(ops.convert_to_numpy(iteration(optimizer)))
                optimizer.learning_rate = _Swept(rates, begin, self.parts)

    def take(self, i):
        for optimizer in self._optimizers:
            if schedule_of(optimizer) is None:
                optimizer.learning_rate = float(self._rates[i])


class _Swept(keras.optimizers.schedules.LearningRateSchedule):
    """A rate for each update from an iteration on."""

    def __init__(self, rates, begin, parts):
        self._rates, self._begin, self._parts = rates, begin, parts

    def __call__(self, step):
        place = ops.cast(ops.convert_to_tensor(step) - self._begin, "int32") // self._parts
        return ops.take(ops.cast(self._rates, "float32"), ops.clip(place, 0, len(self._rates) - 1))


def _endlessly(data):
    while True:
        yield from ((x, y, weight) for x, y, weight, _ in data)


def _step(model, batch):
    x, y, weight = batch
    logs = model.train_on_batch(x, y, sample_weight=weight, return_dict=True)
    return float(np.asarray(ops.convert_to_numpy(logs["loss"])))


def _stability(surface):
    """2 (1 + m) / λmax; NaN for other optimizers than SGD."""
    optimizers = base_optimizers(surface.model.optimizer)
    if not all(isinstance(o, keras.optimizers.SGD) for o in optimizers):
        return math.nan
    top = hessian_eigenvalues(surface, tolerance=1e-2, max_products=60).value
    return 2 * (1 + float(optimizers[0].momentum)) / top if top > 0 else math.nan


def _result(rates, losses, edge, batch_size, orders, seed):
    known = np.isfinite(losses)
    whole = known.all(axis=0)  # where every order still was
    stops = [i for i in range(len(rates)) if not whole[i]]
    end = stops[0] if stops else len(rates)
    if end < 5:
        raise ValueError(
            "Expected losses that are finite for the smallest rates. Received: "
            f"{losses[:, :5].tolist()}. Begin the span further below."
        )
    smoothed = np.full(len(rates), np.nan)
    smoothed[:end] = _smooth(losses[:, :end].mean(axis=0), max(len(rates) // 20, 1))
    curve, logs = smoothed[:end], np.log(rates[:end])
    lowest = int(np.argmin(curve))
    slopes = np.gradient(curve, logs)[: max(lowest, 1) + 1]
    fall = (curve[0] - curve) / max(curve[0] - curve[lowest], 1e-30)
    begin, stop = (int(np.argmax(fall[: lowest + 1] >= part)) for part in (0.1, 0.9))
    valley = float(np.exp((logs[begin] + logs[stop]) / 2))
    last = [row[known[i]] for i, row in enumerate(losses)]
    ended = [len(row) for row in last if len(row) < len(rates)]
    return LearningRateRange(
        value=valley,
        steepest=float(rates[int(np.argmin(slopes))]),
        valley=valley,
        tenth=float(rates[lowest] / 10),
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
