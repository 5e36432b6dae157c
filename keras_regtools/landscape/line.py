"""The loss along a line: between two models, or along a direction."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
from keras import ops

from keras_regtools import vectors
from keras_regtools.landscape.directions import Directions, refuse_zero
from keras_regtools.landscape.evaluation import Evaluation, positions
from keras_regtools.landscape.grid_cache import fill, fingerprint
from keras_regtools.measures.declaration import surface_of
from keras_regtools.measures.result import Result, frozen, origin
from keras_regtools.measures.weights import weights_of
from keras_regtools.validation import checked, one_of, verbosity
from keras_regtools.validation import path as validation_path

if TYPE_CHECKING:
    import os

    import pandas as pd

    from keras_regtools.surface import LossSurface

PATHS = ("linear", "curvilinear")


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class LossLine(Result):
    """Result of `loss_line`.

    Attributes:
        alphas: Array, the positions.
        loss, accuracy, test_loss, test_accuracy: Arrays of the same length; `None` if there are no
            test data or no accuracy.
        path: `"linear"`, `"curvilinear"` or `"direction"`.
        label: What the positions count.
        batch_norm: How batch normalization was treated; `"none"` if there is none, `"frozen"` if no
            layer of it is trainable.
        evaluations: Passes over training or test data for the points.
        batch_size, mode, penalties, samples: Those of the surface.
    """

    alphas: np.ndarray
    loss: np.ndarray
    accuracy: np.ndarray | None = None
    test_loss: np.ndarray | None = None
    test_accuracy: np.ndarray | None = None
    path: str
    label: str
    batch_norm: str
    evaluations: int
    batch_size: int
    mode: str
    penalties: bool
    samples: int | None

    def _repr_html_(self):
        return self.to_frame().to_html(float_format="{:.6g}".format)

    def to_frame(self) -> pd.DataFrame:
        """The quantities as a `pandas.DataFrame`, indexed by position."""
        import pandas as pd

        columns = {n: getattr(self, n) for n in QUANTITIES if getattr(self, n) is not None}
        return pd.DataFrame(columns, index=pd.Index(self.alphas, name="alpha"))


QUANTITIES = ("loss", "accuracy", "test_loss", "test_accuracy")


@checked(surface=surface_of, file=validation_path, verbose=verbosity)
def loss_line(
    surface: LossSurface,
    target: Any = None,
    *,
    direction: Any = None,
    alphas: Any = None,
    points: int | None = None,
    path: str = "linear",
    test: Any = None,
    batch_norm: Any = "auto",
    accuracy: bool | None = None,
    file: str | os.PathLike[str] | None = None,
    verbose: int = 0,
) -> LossLine:
    """Loss and accuracy along a line from the model's weights, on training and test data.

    Between the weights w of the surface and those v of another model, at (1 − α) w + α v or, on a
    curve, at cos(α π / 2) w + sin(α π / 2) v: the parametric plots of
    [Keskar et al., 2016](https://arxiv.org/abs/1609.04836), after
    [Goodfellow et al., 2014](https://arxiv.org/abs/1412.6544). Or along a direction d, at w + α d.

    Moving statistics belong to the weights that they were taken at. So each point has its own:
    those of the batch in a surface of another mode than `"inference"`, and otherwise moving
    statistics that are re-estimated on the surface's data.

    Args:
        surface: A `LossSurface`.
        target: Where α = 1: a model of the same structure, or a list of arrays as
            `model.get_weights()` gives them. Its moving statistics do not matter.
        direction: In its place a direction: a list of tensors or arrays like `surface.params`, or
            `Directions`, of which the first counts.
        alphas: The positions, in place of 25 in [−1, 2] between models and 51 in [−1, 1] along a
            direction.
        points: The number of those.
        path: `"linear"` or, between models, `"curvilinear"`.
        test: Test data, `(x, y)` or a dataset.
        batch_norm: `"auto"`, as said; `"recalibrate"`, `"batch_statistics"`; or `"moving"` for the
            moving statistics of the model as they are, at every point the same.
        accuracy: Whether to compute it; by default where that is possible.
        file: A `.npz` file to keep the points in while they are computed. If it is there and holds
            a part of the same line, the rest is computed.
        verbose: 1 draws a progress bar.

    Returns:
        A `LossLine`.

    Raises:
        ValueError: neither or both of `target` and `direction`, weights of another structure, a
            direction of length zero, fewer than two points, a model whose accuracy cannot be
            computed where it is wanted, or a file that holds something else.

    Example:

    >>> import keras, numpy as np
    >>> from keras_regtools import LossSurface
    >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    >>> model.set_weights([np.ones((1, 1))])
    >>> surface = LossSurface(model, np.ones((1, 1)), np.zeros((1, 1)), loss="mse")
    >>> loss_line(surface, [np.array([[3.0]])], alphas=[0.0, 0.5, 1.0]).loss
    array([1., 4., 9.])
    """
    if (target is None) == (direction is None):
        raise ValueError(
            "Expected either a `target` or a `direction`. Received: "
            + ("neither" if target is None else "both")
        )
    path = one_of("path", path, PATHS)
    start, others = surface.params, []
    if target is not None:
        end, others = weights_of(surface, target, "target")
        span, usual, label = (-1.0, 2.0), 25, "α: 0 at the first model, 1 at the second"
    else:
        if path != "linear":
            raise ValueError(
                "Expected `path='linear'` along a direction. Received: path='curvilinear'"
            )
        end, label = _direction(surface, direction)
        span, usual, path = (-1.0, 1.0), 51, "direction"
    alphas = positions("alphas", alphas, span, usual if points is None else points)
    measured = Evaluation(surface, test, batch_norm, accuracy)
    _refuse_other_frozen(measured, surface, others)
    at = {
        "linear": lambda a: _mix(1 - a, start, a, end),
        "curvilinear": lambda a: _mix(
            math.cos(a * math.pi / 2), start, math.sin(a * math.pi / 2), end
        ),
        "direction": lambda a: vectors.axpy(a, end, start),
    }[path]
    here = measured(start)  # a pass over the data, after which their number is known
    settings = {
        "path": path,
        "label": label,
        "batch_norm": measured.batch_norm,
        "evaluations": len(alphas) * len(measured.surfaces),
        "batch_size": surface.batch_size,
        **origin(surface),
    }
    found = fill(
        measured.names,
        alphas.shape,
        lambda index: measured(at(float(alphas[index]))),
        file,
        {
            "positions": alphas.tolist(),
            "path": path,
            "weights": fingerprint([*start, *end]),
            "batch_norm": measured.batch_norm,
            "mode": surface.mode,
            "penalties": surface.penalties,
            "quantities": measured.names,
            "data": here,
        },
        {"kind": "line", "alphas": alphas, "settings": json.dumps(settings)},
        verbose,
    )
    return LossLine(alphas=frozen(alphas), **found, **settings)


def _mix(a, first, b, second):
    return [a * x + b * y for x, y in zip(first, second, strict=True)]


def _direction(surface, direction):
    label = "steps along the direction"
    if isinstance(direction, Directions):
        direction, label = direction.vectors[0], f"steps along {direction.labels[0]}"
    direction, _ = weights_of(surface, direction, "direction")
    refuse_zero(direction, "`direction`")
    return direction, label


def _refuse_other_frozen(measured, surface, others):
    """The line runs through the trained weights; what is frozen must be the same at its ends."""
    moving = {id(v) for layer in measured.statistics.layers for v in layer.non_trainable_variables}
    for variable, value in others:
        own = ops.convert_to_numpy(surface.read(variable))
        if id(variable) not in moving and not np.array_equal(own, value):
            raise ValueError(
                "Expected `target` to have the same frozen weights as the model. "
                f"Received: another {variable.path}"
            )
