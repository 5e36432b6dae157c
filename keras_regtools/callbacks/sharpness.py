"""Sharpness during a fit: the measures of flatness by name."""

from __future__ import annotations

import functools
import inspect
import warnings
from typing import Any

from keras_regtools import measures as catalogue
from keras_regtools.callbacks.measure import Measure
from keras_regtools.measures.declaration import by_short_name
from keras_regtools.validation import (
    keras_model,
    named_callables,
    one_of,
    positive,
    positive_integer,
)

NAMED = by_short_name()


class Sharpness(Measure):
    """Measures of flatness during a fit, as `sharpness/<name>` in the logs and the records.

    By default Keskar's, on a fixed subsample of 1,024 samples, every fifth epoch, with the batch
    statistics that Keskar et al. measured with.

    Args:
        x, y, sample_weight: The data to measure on, as `fit` takes them; a part of the training
            data.
        measures: A name, a list of names, or a dict from names to callables
            `(surface) -> result`. The names are `"keskar"`, `"sam"`, `"asam"`, `"average"`,
            `"adaptive_average"`, `"worst"`, `"adaptive_worst"`, `"pac_bayes"`,
            `"relative_flatness"`, `"fisher_rao"`, `"eigenvalue"`, `"trace"`, `"weight_norm"` and
            `"weight_distance"` (from where the fit began; the model must be built then), each with
            its own defaults.
        every: Measure in every `every`-th epoch, beginning with the first.
        every_steps: Measure every so many training steps instead.
        not_finite: What is logged for a number that is not finite, as for `Measure`.
        samples: Size of the subsample; `None` uses all data.
        epsilon: Relative size of the box, for `"keskar"`; 1e-3 by default.
        iterations: L-BFGS-B iterations, for `"keskar"`; 10 by default.
        mode, batch_size, penalties: Those of the `LossSurface`.
        seed: Seed of the subsample and of what is random in the named measures.

    Raises:
        TypeError, ValueError: as `Measure`, for an unknown name, and for an `epsilon` or
            `iterations` that is not positive.

    Reference:
        [Keskar et al., 2016](https://arxiv.org/abs/1609.04836); for the others see `measures`.

    Example:

    >>> import keras, numpy as np
    >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> x = np.ones((8, 1), "float32")
    >>> sharpness = Sharpness(x, x, measures=["keskar", "sam"])
    >>> history = model.fit(x, x, epochs=3, callbacks=[sharpness], verbose=0)
    >>> first, second, last = history.history["sharpness/keskar"]
    >>> first > 0 and first == second != last  # the second epoch repeats the first
    True
    """

    def __init__(
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        *,
        measures: Any = "keskar",
        every: int = 5,
        every_steps: int | None = None,
        not_finite: float = float("nan"),
        samples: int | None = 1024,
        epsilon: float | None = None,
        iterations: int | None = None,
        mode: str = "batch_statistics",
        batch_size: int = 256,
        penalties: bool = True,
        seed: int = 0,
    ) -> None:
        keskar = {
            name: check(name, value)
            for name, value, check in (
                ("epsilon", epsilon, positive),
                ("iterations", iterations, positive_integer),
            )
            if value is not None
        }
        named = [measures] if isinstance(measures, str) else measures
        if keskar and not (isinstance(named, (list, tuple)) and "keskar" in named):
            raise ValueError(
                f"Expected `{next(iter(keskar))}` only beside the name 'keskar'. "
                f"Received: measures={measures!r}"
            )
        self._distance = _DistanceFromTheBeginning()
        chosen = {}
        for name, measure in _chosen(measures).items():
            if measure is catalogue.weight_distance:
                measure = self._distance
            elif isinstance(measures, (str, list, tuple)):
                takes = inspect.signature(measure).parameters
                settings = {"seed": seed, **(keskar if name == "keskar" else {})}
                settings = {k: v for k, v in settings.items() if k in takes}
                measure = functools.partial(measure, **settings)
            chosen[f"sharpness/{name}"] = measure
        super().__init__(
            chosen,
            x,
            y,
            sample_weight,
            every=every,
            every_steps=every_steps,
            not_finite=not_finite,
            samples=samples,
            mode=mode,
            batch_size=batch_size,
            penalties=penalties,
            seed=seed,
            name="sharpness",
        )

    def on_train_begin(self, logs: Any = None) -> None:
        super().on_train_begin(logs)
        self._distance.start = None
        if self._distance in self.measures.values():
            keras_model(self.model)

    def fit_begins(self, epoch: int) -> None:
        super().fit_begins(epoch)
        if self._distance not in self.measures.values():
            return
        start = self.records.earlier.get("sharpness_start") if epoch > 0 else None
        shapes = [tuple(v.shape) for v in self.model.weights]
        if start is None or [w.shape for w in start] != shapes:
            if epoch > 0 and self.step() > 0:
                warnings.warn(
                    "The weights with which this run began are not known: 'weight_distance' is the "
                    f"distance from those of the beginning of epoch {epoch + 1}. A `Report` that "
                    "goes on in its directory keeps them.",
                    stacklevel=2,
                )
            start = self.model.get_weights()
        self._distance.start = start
        self.records.keep("sharpness_start", start)

    def __deepcopy__(self, memo):
        new = super().__deepcopy__(memo)  # which shares the measures
        new.measures = {
            name: new._distance if measure is self._distance else measure
            for name, measure in self.measures.items()
        }
        return new


def _chosen(measures):
    """A dict from names to measures."""
    if isinstance(measures, str):
        measures = [measures]
    if not isinstance(measures, (list, tuple)):
        return named_callables("measures", measures)
    if not measures:
        raise ValueError("Expected at least one measure. Received: measures=[]")
    return {name: NAMED[one_of("measures", name, tuple(NAMED))] for name in measures}


class _DistanceFromTheBeginning:
    """`weight_distance` from where the fit began."""

    start = None

    def __call__(self, surface):
        return catalogue.weight_distance(surface, self.start)
