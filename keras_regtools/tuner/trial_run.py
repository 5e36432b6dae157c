"""One training of a trial, in a model that an earlier trial of the same kind has compiled."""

import collections
import contextlib
import math
import random
import time

import keras_tuner
import numpy as np
from keras import ops

from keras_regtools import backend
from keras_regtools.callbacks import PreciseBatchNorm, SharpnessAwareMinimization
from keras_regtools.keras_internals import rate_of_steps
from keras_regtools.regularizers import penalties
from keras_regtools.training import base_optimizers
from keras_regtools.training.scaling import ScaledSchedule
from keras_regtools.tuner.augmented import AUGMENTATIONS, AugmentedBatches
from keras_regtools.tuner.study_trials import description
from keras_regtools.tuner.trial_rate import BestWeights, TrialRate
from keras_regtools.tuner.trial_results import Yardstick, normalizes

_KEPT = 8  # models; a search with switches has some kinds of them


class Diverged(Exception):
    """A trial whose loss was not finite, with the reason."""


class Workshop:
    """Trains the trials of a search: models of one kind share a compiled step and its surfaces.

    Args:
        data: `SearchData`.
        samples, loss, measures, names: As for `Yardstick`.
        base_batch_size: To which base rates refer.
        precise: Whether moving statistics are re-estimated after each epoch.
    """

    def __init__(self, data, samples, loss, measures, names, base_batch_size, precise):
        self.data, self._arguments = data, (samples, loss, measures, names)
        self._base_batch_size, self._precise = base_batch_size, precise
        self._held = collections.OrderedDict()

    def run(self, model, plan, twin, settings, callbacks, seed, score=None):
        """Train a model as planned; it gets the weights of its best epoch.

        Args:
            model: The model, compiled and built.
            plan: Its `Plan`.
            twin: Function that builds another one like it, to be kept for later trials: what the
                caller has is not theirs to change.
            settings: Other arguments of `fit`.
            callbacks: List of callbacks.
            seed: Of the augmentations.
            score: Function of the `Yardstick` that gives more results, or `None`.

        Returns:
            Dict of the results.

        Raises:
            Diverged: no epoch had a finite validation loss.
        """
        chosen, rate = plan.chosen, plan.rate
        held, yardstick, precise = self._holding(model, plan, twin)
        _copy_state(model, held)
        value = self._validation_loss(held, yardstick, chosen)
        for callback in callbacks:
            if hasattr(callback, "validation_loss"):
                callback.validation_loss = value
        best = BestWeights(value)
        callbacks = [*callbacks, *self._rate(held, chosen, rate, settings), *precise, best]
        if chosen.training.get("sam"):
            callbacks.append(SharpnessAwareMinimization(chosen.training["sam"]))
        begun = time.perf_counter()
        held.fit(**{**settings, **self._data(chosen, seed)}, callbacks=callbacks)
        seconds = time.perf_counter() - begun
        if not best.restore():
            raise Diverged(best.diverged or "there was no epoch with a validation loss")
        results = yardstick.results() | (score(yardstick) if score else {})
        _copy_state(held, model)
        return results | {"epochs": float(best.epochs), "seconds": seconds}

    def _holding(self, model, plan, twin):
        if plan.rate is None:  # a schedule is a constant of the compiled step
            return model, self._measuring(model), self._precisely(model)
        strengths = ("l1", "l2", "l21", "strength", "rate")  # variables, which are copied
        key = description(model, strengths), repr(sorted(plan.own.items(), key=str))
        if key not in self._held:
            with _same_draws():
                other = twin()
            self._held[key] = other, self._measuring(other), self._precisely(other)
            while len(self._held) > _KEPT:
                self._held.popitem(last=False)
        self._held.move_to_end(key)
        return self._held[key]

    def _measuring(self, model):
        try:
            found = Yardstick(model, self.data, *self._arguments)
        except (TypeError, ValueError) as error:  # data that the model or its loss cannot take
            raise keras_tuner.errors.FatalValueError(str(error)) from error
        wrong = self.data.not_finite
        if wrong and not found.is_finite():
            raise keras_tuner.errors.FatalValueError(
                "Expected data of which the network makes a finite loss and gradient. Received: "
                f"{wrong}, and a loss or gradient that is not finite before any training"
            )
        return found

    def _precisely(self, model):
        if not (self._precise and normalizes(model)):
            return []
        return [PreciseBatchNorm(self.data.inputs())]

    def _validation_loss(self, model, yardstick, chosen):
        if chosen.training.get("label_smoothing"):
            return lambda logs: yardstick.validation_loss()
        return lambda logs: logs["val_loss"] - math.fsum(penalties(model).values())

    def _data(self, chosen, seed):
        changes = {n: chosen.training[n] for n in AUGMENTATIONS if chosen.training.get(n)}
        found = {"validation_data": self.data.validation_for_fit()}
        if changes:
            x, y = self.data.images()
            return found | {"x": AugmentedBatches(x, y, chosen.batch_size, changes, seed)}
        return found | self.data.for_fit(chosen.batch_size)

    def _rate(self, model, chosen, rate, settings):
        """The callbacks that set the rate; a schedule is scaled itself."""
        times = factor(chosen, self._base_batch_size)
        warmup = chosen.training.get("warmup_epochs") or 0.0
        if settings.get("initial_epoch"):  # a tuner that trains in parts goes on at the full rate
            warmup = 0.0
        if rate is not None:
            return [TrialRate(rate, times, warmup, chosen.training.get("decay"))]
        per_epoch = settings.get("steps_per_epoch") or self.data.steps(chosen.batch_size)
        warmup_steps = round(min(warmup, settings.get("epochs", 1)) * per_epoch)
        for optimizer in base_optimizers(model.optimizer):
            schedule = rate_of_steps(optimizer)
            optimizer.learning_rate = ScaledSchedule(schedule, times, warmup_steps)
        return []

    def like_training(self, x, y):
        """Other arrays as `Batches`, with targets of the kind that is trained on."""
        return self.data.like_training(x, y)

    def metrics_of(self, model):
        """The names under which the metrics of a model are told."""
        data = self.data.validation.first(1)
        x, y, sample_weight, _ = next(iter(data))
        found = model.evaluate(x, y, sample_weight=sample_weight, verbose=0, return_dict=True)
        return [f"val_{name}" for name in found if name != "loss"]


@contextlib.contextmanager
def _same_draws():
    """What is drawn within the block, as initial weights, leaves the generators as they were."""
    states = random.getstate(), np.random.get_state()
    try:
        with backend.frozen_draws():
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def factor(chosen, base_batch_size):
    """The multiple of the base rate that a trial's batch size has."""
    k = chosen.batch_size / base_batch_size
    return {"linear": k, "sqrt": math.sqrt(k), "free": 1.0}[chosen.training["rule"]]


def _copy_state(source, target):
    """Weights, moving statistics, strengths, seeds and the optimizer's state."""
    if source is target:
        return
    for old, new in zip(source.variables, target.variables, strict=True):
        new.assign(ops.convert_to_numpy(old))
    for old, new in zip(source.optimizer.variables, target.optimizer.variables, strict=True):
        new.assign(ops.convert_to_numpy(old))
