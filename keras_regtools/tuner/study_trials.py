"""The trials of a study of batch sizes: one model, trained again and again."""

import hashlib
import json
import math
import re
import time

import keras
import numpy as np
from keras import tree

from keras_regtools import measures
from keras_regtools.data import Batches
from keras_regtools.forward import all_layers
from keras_regtools.growing_batches import GrowingBatches
from keras_regtools.surface import LossSurface
from keras_regtools.surgery import recalibrate
from keras_regtools.training import base_optimizers

_MEASURED = 512  # samples for sharpness and noise
MEASURED = ("loss", "val_loss", "accuracy", "gap", "sharpness", "noise_scale", "distance")


def fingerprint(*data):
    """A few letters that differ for other data."""
    found = hashlib.sha256()
    for array in tree.flatten(data):
        if array is None:
            continue
        array = np.ascontiguousarray(keras.ops.convert_to_numpy(array))
        found.update(repr((array.shape, array.dtype.str)).encode())
        found.update(array.tobytes())
    return found.hexdigest()[:16]


def description(model, ignored=()):
    """What tells one network from another: all settings but names, and addresses in memory.

    Args:
        model: A compiled model.
        ignored: Names of other settings that may differ.
    """
    settings = [list(v.shape) for v in model.weights]
    for one in (*all_layers(model), model.optimizer, model.loss):
        settings.append([type(one).__name__, _settings(one)])
    text = json.dumps(settings, default=str, sort_keys=True)
    names = "|".join(["name", "learning_rate", *ignored])
    text = re.sub(rf'"({names})": [^,}}]*| at 0x[0-9a-f]+', "", text)
    letters = hashlib.sha256(text.encode()).hexdigest()[:16]
    return f"{model.count_params()} parameters, {letters}"


def _settings(one):
    """Of a layer, an optimizer or a loss; those of a model are in its layers."""
    if isinstance(one, keras.Model):
        return None
    if not hasattr(one, "get_config"):
        return str(one)
    try:
        return one.get_config()
    except NotImplementedError:  # of a layer with arguments that it does not tell
        return None


class Runner:
    """Trains one model again and again."""

    def __init__(self, model, model_fn, data, validation, epochs):
        self.model, self.model_fn, self.data, self.epochs = model, model_fn, data, epochs
        self.reset, self._starts = None, {}
        whole = Batches(*data)
        self.validation = LossSurface(model, *validation, penalties=False)
        self.training = LossSurface(model, whole.subsample(4096), penalties=False)
        chosen = whole.subsample(_MEASURED)
        self.micro = max(1, min(8, chosen.samples // 4))
        self.measured = LossSurface(model, chosen, penalties=False, mode="batch_statistics")

    def _start(self, seed):
        if seed not in self._starts:
            keras.utils.set_random_seed(seed)
            fresh = self.model_fn().variables  # seeds of dropout too
            self._starts[seed] = [np.array(keras.ops.convert_to_numpy(v)) for v in fresh]
        return self._starts[seed]

    def __call__(self, size, rate, seed):
        model, start = self.model, self._start(seed)
        self.reset()
        for variable, value in zip(model.variables, start, strict=True):
            variable.assign(value)
        for optimizer in base_optimizers(model.optimizer):
            optimizer.learning_rate = rate
        begun = [np.array(p) for p in map(keras.ops.convert_to_numpy, model.trainable_variables)]
        batches, curve = GrowingBatches(*self.data, [size], seed=seed), _Curve(self.validation)
        model.fit(batches, epochs=self.epochs, verbose=0, shuffle=False, callbacks=[curve])
        row = {"batch_size": size, "learning_rate": rate, "seed": seed}
        row |= {"steps_per_epoch": len(batches), "samples": batches.samples}
        row |= {"curve": curve.losses, "epoch_seconds": curve.seconds}
        row |= {"seconds": sum(curve.seconds), "steps": len(batches) * len(curve.losses)}
        ended = len(curve.losses) == self.epochs and math.isfinite(curve.losses[-1])
        return row | (self._measured(begun) if ended else {n: math.inf for n in MEASURED})

    def _measured(self, begun):
        model = self.model
        if any(isinstance(layer, keras.layers.BatchNormalization) for layer in model.layers):
            recalibrate(model, self.data[0])  # few large batches leave its averages behind
        loss, val_loss, accuracy = self.training.value(), self.validation.value(), math.nan
        try:
            _, accuracy = self.validation.value_and_accuracy()
        except (TypeError, ValueError):  # no class probabilities
            accuracy = math.nan
        now = [keras.ops.convert_to_numpy(v) for v in model.trainable_variables]
        distance = math.sqrt(sum(np.sum((a - b) ** 2.0) for a, b in zip(now, begun, strict=True)))
        return {
            "loss": loss,
            "val_loss": val_loss,
            "accuracy": accuracy,
            "gap": val_loss - loss,
            "sharpness": measures.keskar_sharpness(self.measured).value,
            "noise_scale": measures.gradient_noise_scale(self.measured, self.micro).value,
            "distance": distance,
        }


class _Curve(keras.callbacks.Callback):
    """The validation loss after each epoch, and the seconds of its training."""

    def __init__(self, validation):
        super().__init__()
        self._validation, self.losses, self.seconds = validation, [], []

    def on_epoch_begin(self, epoch, logs=None):
        self._begin = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        _ = self.model  # which on JAX brings the variables up to date
        self.seconds.append(time.perf_counter() - self._begin)
        loss = self._validation.value()
        self.losses.append(loss if math.isfinite(loss) else math.inf)
        if not math.isfinite(loss):
            self.model.stop_training = True
