"""A KerasTuner hypermodel: penalties, dropout, batch normalization, batch size, learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import keras_tuner

from keras_regtools import measures, regularizers
from keras_regtools.callbacks import LinearScalingLR
from keras_regtools.callbacks.recording import finite_or_nan
from keras_regtools.data import Batches, is_arrays
from keras_regtools.surface import LossSurface
from keras_regtools.surgery import regularize
from keras_regtools.surgery.compilation import copy_compilation
from keras_regtools.surgery.graph import group
from keras_regtools.validation import (
    flag,
    keras_model,
    non_negative,
    one_of,
    optional,
    positive_integer,
    positive_pair,
    several,
)


class RegularizationHyperModel(keras_tuner.HyperModel):
    """Search how to regularize a model: convolutional and dense layers apart, rate tied to batch.

    Hyperparameters (those of a group only if the model has such layers): `conv_l2`, `dense_l2`
    (1e-6 to 1e-1, logarithmic), `conv_dropout`, `dense_dropout` (0 to 0.7), `batch_norm`,
    `batch_size`, and `learning_rate`, the rate at `base_batch_size`: the rate of a trial is scaled
    from it by the rule as its batch is, with warm-up.

    The batch size is the trial's, so pass arrays to `search`. Each trial keeps the weights of its
    epoch with the lowest validation loss and returns, measured on them: `val_loss` and `loss`
    without the penalties (losses with penalties of different strength cannot be compared),
    `val_accuracy` where the model has one output with class probabilities, `generalization_gap` =
    val_loss − loss, `generalization_ratio` = val_loss / loss, and `sharpness`, Keskar's.

    Args:
        model_fn: Function without arguments that returns a new Sequential or functional model,
            compiled or not; a compiled one keeps its loss and metrics.
        optimizer: `"sgd"` (momentum 0.9) or `"adam"`.
        loss: The loss for a model that is not compiled.
        batch_sizes: The batch sizes to choose from.
        base_batch_size: The batch size to which `learning_rate` refers.
        learning_rates: Lowest and highest base rate.
        rule: `"linear"` or `"sqrt"`, as for `callbacks.LinearScalingLR`.
        warmup_epochs: Length of the warm-up.
        samples: Training samples on which the loss and the sharpness are measured.
        batch_norm: Whether batch normalization is searched; `True` or `False` fixes it.
        name, tunable: Those of `keras_tuner.HyperModel`.

    Raises:
        TypeError: a `model_fn` that cannot be called or does not return a Keras model.
        ValueError: batch sizes that are not positive, an unknown optimizer or rule; in `search`,
            data other than arrays, or no validation data.

    Reference:
        Convolutional and dense layers tuned apart: Pathak and Chang, 2020.

    Example:

    >>> import keras_tuner
    >>> from keras_regtools.applications import lenet5
    >>> hypermodel = RegularizationHyperModel(lenet5, batch_sizes=(32, 256))
    >>> hp = keras_tuner.HyperParameters()
    >>> model = hypermodel.build(hp)
    >>> sorted(hp.values)  # doctest: +NORMALIZE_WHITESPACE
    ['batch_norm', 'batch_size', 'conv_dropout', 'conv_l2', 'dense_dropout', 'dense_l2',
     'learning_rate']
    """

    def __init__(
        self,
        model_fn: Callable[..., keras.Model],
        *,
        optimizer: Any = "sgd",
        loss: Any = "sparse_categorical_crossentropy",
        batch_sizes: Sequence[int] = (32, 64, 128, 256),
        base_batch_size: int = 32,
        learning_rates: tuple[float, float] = (1e-3, 1e-1),
        rule: str = "linear",
        warmup_epochs: float = 1,
        samples: int | None = 1024,
        batch_norm: Any = None,
        name: str | None = None,
        tunable: Any = True,
    ) -> None:
        super().__init__(name=name, tunable=tunable)
        if not callable(model_fn):
            raise TypeError(
                "Expected `model_fn` to be a function without arguments that returns a model. "
                f"Received: model_fn={model_fn!r}"
            )
        self.model_fn = model_fn
        self.optimizer = one_of("optimizer", optimizer, ("sgd", "adam"))
        self.loss = loss
        self.batch_sizes = several("batch_sizes", batch_sizes, positive_integer)
        self.base_batch_size = positive_integer("base_batch_size", base_batch_size)
        self.learning_rates = list(positive_pair("learning_rates", learning_rates))
        self.rule = one_of("rule", rule, ("linear", "sqrt"))
        self.warmup_epochs = non_negative("warmup_epochs", warmup_epochs)
        self.samples = positive_integer("samples", samples)
        self.batch_norm = optional(flag)("batch_norm", batch_norm)

    def build(self, hp: Any) -> keras.Model:
        model = keras_model(self.model_fn())
        groups = {kind for kind in map(group, _inner_layers(model)) if kind}
        settings: dict[str, Any] = {}
        # Around the usual values, 5e-4 for L2 (VGG) and .5 for dropout (Srivastava et al., 2014):
        # from what changes nothing to where a network no longer fits.
        for name in sorted(groups):
            strength = hp.Float(f"{name}_l2", 1e-6, 1e-1, sampling="log", default=1e-4)
            settings[name] = regularizers.L2(strength)
            settings[f"{name}_dropout"] = hp.Float(f"{name}_dropout", 0.0, 0.7, step=0.1)
        if self.batch_norm is None:
            settings["batch_norm"] = hp.Boolean("batch_norm")
        else:
            settings["batch_norm"] = bool(self.batch_norm)
        hp.Choice("batch_size", self.batch_sizes)
        low, high = self.learning_rates
        rate = hp.Float("learning_rate", low, high, sampling="log", default=math.sqrt(low * high))
        new = regularize(model, **settings)
        self._compile(new, model, rate)
        return new

    def _compile(self, new, model, rate):
        if self.optimizer == "sgd":
            optimizer = keras.optimizers.SGD(rate, momentum=0.9)
        else:
            optimizer = keras.optimizers.Adam(rate)
        if model.compiled:
            copy_compilation(model, new, optimizer=optimizer)
        else:
            new.compile(optimizer, self.loss, metrics=["accuracy"])
            optimizer.build(new.trainable_variables)  # so that the tuner can load its state

    def fit(
        self,
        hp: Any,
        model: keras.Model,
        x: Any = None,
        y: Any = None,
        *args: Any,
        validation_data: Any = None,
        callbacks: Any = (),
        **kwargs: Any,
    ) -> Any:
        if x is None or not is_arrays(x):
            raise keras_tuner.errors.FatalValueError(  # a ValueError that ends the search
                "Expected arrays as `x`, because each trial has its own batch size. "
                f"Received: x={x!r}"
            )
        if validation_data is None:
            raise keras_tuner.errors.FatalValueError(
                "Expected `validation_data` in `search`. Received: None"
            )
        batch_size = hp.get("batch_size")
        scaling = LinearScalingLR(
            batch_size,
            self.base_batch_size,
            hp.get("learning_rate"),
            rule=self.rule,
            # A tuner that trains a trial in parts, as Hyperband does, goes on at the full rate.
            warmup_epochs=0
            if kwargs.get("initial_epoch")
            else min(self.warmup_epochs, kwargs.get("epochs", 1)),
        )
        best = keras.callbacks.EarlyStopping(
            "val_loss", mode="min", patience=kwargs.get("epochs", 1), restore_best_weights=True
        )
        kwargs.pop("batch_size", None)
        model.fit(
            x,
            y,
            *args,
            batch_size=batch_size,
            validation_data=validation_data,
            callbacks=[*callbacks, scaling, best],
            **kwargs,
        )
        for callback in callbacks:
            if type(callback).__name__ == "SaveBestEpoch":  # by another quantity, perhaps
                model.save_weights(callback.filepath)
        return self.measure(model, x, y, validation_data, kwargs.get("sample_weight"))

    def measure(
        self, model: keras.Model, x: Any, y: Any, validation_data: Any, sample_weight: Any = None
    ) -> Any:
        """The results of a trained model, as a dict of floats.

        Args:
            model: The trained model.
            x, y: Training data; a fixed subsample is measured.
            validation_data: `(x, y)`, `(x, y, sample_weight)` or a dataset.
            sample_weight: Weights of the training data.

        Returns:
            A dict with `val_loss`, `loss`, `generalization_gap`, `generalization_ratio`,
            `sharpness` and, where it can be computed, `val_accuracy`.
        """
        training = LossSurface(
            model,
            Batches(x, y, sample_weight).subsample(self.samples),
            mode="batch_statistics",
            penalties=False,
        )
        loss = LossSurface(model, training.data, penalties=False).value()
        if not isinstance(validation_data, (tuple, list)):
            validation_data = (validation_data,)
        validation = LossSurface(model, *validation_data, penalties=False).value()
        results = {
            "val_loss": validation,
            "loss": loss,
            "generalization_gap": validation - loss,
            "generalization_ratio": validation / loss if loss > 0 else math.nan,
            "sharpness": measures.keskar_sharpness(training).value,
        }
        weights = dict(zip(["sample_weight"], validation_data[2:], strict=False))
        accuracy = model.evaluate(*validation_data[:2], **weights, verbose=0, return_dict=True)
        results |= {f"val_{k}": v for k, v in accuracy.items() if k.endswith(("accuracy", "acc"))}
        return {name: finite_or_nan(value) for name, value in results.items()}


def _inner_layers(model):
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _inner_layers(layer)
        else:
            yield layer
