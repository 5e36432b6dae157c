"""Train with every batch size at every rate: which rate does each want, and is it worth it?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras

from keras_regtools.data import Batches, is_arrays
from keras_regtools.keras_internals import rate_of_steps
from keras_regtools.training import base_optimizers, restored
from keras_regtools.tuner.shared_trials import SharedTrials
from keras_regtools.tuner.study_result import BatchSizes, result_of
from keras_regtools.tuner.study_trials import Runner, description, fingerprint
from keras_regtools.validation import (
    Constraint,
    flag,
    keras_model,
    one_of,
    optional,
    path,
    positive,
    positive_integer,
    several,
)

_RULES = ("linear", "sqrt")
_seed = Constraint("an integer from 0 to 2**32 - 1", lambda v: 0 <= v < 2**32, int)


class BatchSizeStudy:
    """Every batch size at every learning rate, from several starts, with the same number of epochs.

    The trials are kept in a directory: a study that was killed goes on with the next one, and the
    same script in several processes shares them out. All trials of a process are trained in one
    model, so that its step is compiled once.

    Args:
        model_fn: Function without arguments that returns a new model. A compiled one keeps its
            optimizer, whose rate becomes the trial's, its loss and metrics; another is trained by
            SGD with momentum .9.
        batch_sizes: Two or more sizes, growing.
        learning_rates: The rates that each is trained with, growing; a factor of 2 to 4 apart, and
            so many that the best of no size is the first or the last.
        rules: Names of rules to judge: `"linear"`, `"sqrt"`.
        seeds: How many starts, or a list of seeds. Each is a start, orders of the samples and
            masks of dropout. They are set by `keras.utils.set_random_seed`; afterwards Keras'
            global seed is another one.
        full_batch: Whether all samples as one batch are a size, too.
        loss: The loss for a model that is not compiled.

    Raises:
        TypeError: a `model_fn` that is no function.
        ValueError: sizes or rates that do not grow, fewer than two, or an unknown rule.

    Example:

    >>> import keras, numpy as np, tempfile
    >>> def model_fn():
    ...     model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    ...     model.compile("sgd", "mse")
    ...     return model
    >>> x = np.linspace(-1, 1, 32)[:, None]
    >>> study = BatchSizeStudy(model_fn, [4, 16], [0.03, 0.1, 0.3, 1.0], seeds=2)
    >>> found = study.run(x, x, validation_data=(x, x), epochs=2, directory=tempfile.mkdtemp(),
    ...                   verbose=0)
    >>> len(found.trials), list(found.table["batch_size"])
    (16, [4, 16])
    """

    def __init__(
        self,
        model_fn: Callable[[], keras.Model],
        batch_sizes: Sequence[int],
        learning_rates: Sequence[float],
        rules: Sequence[str] = ("linear", "sqrt"),
        seeds: Any = 3,
        *,
        full_batch: bool = False,
        loss: Any = "sparse_categorical_crossentropy",
    ) -> None:
        if not callable(model_fn) or isinstance(model_fn, keras.Model):
            raise TypeError(
                "Expected `model_fn` to be a function without arguments that returns a model. "
                f"Received: model_fn={model_fn!r}"
            )
        self.model_fn, self.loss = model_fn, loss
        self.batch_sizes = _growing("batch_sizes", batch_sizes, positive_integer)
        self.learning_rates = _growing("learning_rates", learning_rates, positive)
        self.rules = [one_of("rules", rule, _RULES) for rule in rules]
        if isinstance(seeds, int):
            self.seeds = list(range(positive_integer("seeds", seeds)))
        else:
            self.seeds = sorted(set(several("seeds", seeds, _seed)))
        self.full_batch = flag("full_batch", full_batch)

    def run(
        self,
        x: Any,
        y: Any,
        *,
        validation_data: Any,
        epochs: int,
        directory: Any,
        target: float | None = None,
        verbose: int = 1,
    ) -> BatchSizes:
        """Run what is left of the trials, and say what all of them say.

        Args:
            x, y: Training data, arrays.
            validation_data: `(x, y)`.
            epochs: Of each trial.
            directory: Where the trials are kept.
            target: A validation loss; by default the least that all sizes reach.
            verbose: 1 prints a line for each trial.

        Returns:
            A `BatchSizes`, to be drawn by `plots.losses_by_rate`, `plots.best_rates` and
            `plots.speed_by_batch_size`.

        Raises:
            ValueError: data that are no arrays, no validation data, fewer samples than the largest
                batch, or a directory with another study: other settings, data or networks.
        """
        epochs = positive_integer("epochs", epochs)
        target = optional(positive)("target", target)
        if not is_arrays(x):
            raise ValueError(
                "Expected arrays as `x`, because each trial has its own batch size. "
                f"Received: {x!r} (of type {type(x)})"
            )
        if not isinstance(validation_data, (tuple, list)) or len(validation_data) != 2:
            raise ValueError(
                f"Expected `validation_data` to be (x, y). Received: {type(validation_data)}"
            )
        count = Batches(x, y).samples
        if count < self.batch_sizes[-1]:
            raise ValueError(
                f"Expected at least {self.batch_sizes[-1]} samples, those of the largest batch. "
                f"Received: {count}"
            )
        sizes = sorted({*self.batch_sizes, *([count] if self.full_batch else [])})
        model = self._model()
        settings = {
            "batch_sizes": sizes, "learning_rates": self.learning_rates, "seeds": self.seeds,
            "epochs": epochs, "samples": count,
            "data": fingerprint((x, y), validation_data), "model": description(model),
        }  # fmt: skip
        trials = {
            f"batch_{size}-rate_{rate:.6g}-seed_{seed}": (size, rate, seed)
            for seed in self.seeds
            for size in sizes
            for rate in self.learning_rates
        }
        shared = SharedTrials(path("directory", directory), settings)
        if all(shared.result(name) is not None for name in trials):
            rows = {name: shared.result(name) for name in trials}
        else:
            runner = Runner(model, self.model_fn, (x, y), validation_data, epochs)
            rows = self._trained(shared, trials, runner, verbose)
        return result_of([rows[name] for name in trials], self.rules, target)

    def _trained(self, shared, trials, runner, verbose):
        def done(name, found):
            if verbose:
                print(
                    f"{name}: validation loss {found['val_loss']:.4f} in {found['seconds']:.1f} s",
                    flush=True,
                )

        with restored(runner.model) as runner.reset:
            return shared.run(list(trials), lambda name: runner(*trials[name]), done)

    def _model(self):
        model = keras_model(self.model_fn())
        if model is self.model_fn():
            raise ValueError(
                "Expected `model_fn` to return a new model each time. Received: the same one twice"
            )
        if not model.compiled:
            model.compile(keras.optimizers.SGD(0.01, momentum=0.9), self.loss)
        if any(rate_of_steps(o) is not None for o in base_optimizers(model.optimizer)):
            raise ValueError(
                "Expected an optimizer whose rate is a number, which each trial sets. Received: a "
                "schedule"
            )
        return model


def _growing(name, values, constraint):
    values = several(name, values, constraint)
    if len(values) < 2 or sorted(set(values)) != list(values):
        raise ValueError(
            f"Argument `{name}` must be two or more numbers that grow. Received: {name}={values}"
        )
    return values
