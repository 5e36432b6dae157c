"""Read what `files` wrote back into results."""

import json
import os

from keras_regtools.landscape.grid_cache import read_grid
from keras_regtools.landscape.line import LossLine
from keras_regtools.landscape.plane import LossPlane
from keras_regtools.measures.result import frozen


def load(path: str | os.PathLike[str]) -> LossPlane | LossLine:
    """Read a line or a plane that was kept in a file.

    The file is a plain `.npz`: `numpy.load(path)["loss"]` reads it without this package.

    Args:
        path: The file.

    Returns:
        A `LossLine` or a `LossPlane`; what was not computed yet is NaN.

    Raises:
        ValueError: a file that holds neither, or a broken one.

    Example:

    >>> import os, tempfile
    >>> import keras, numpy as np
    >>> from keras_regtools import LossSurface, landscape
    >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    >>> model.set_weights([np.ones((1, 1))])
    >>> surface = LossSurface(model, np.ones((1, 1)), np.zeros((1, 1)), loss="mse")
    >>> path = os.path.join(tempfile.mkdtemp(), "line.npz")
    >>> line = landscape.loss_line(surface, direction=[np.ones((1, 1))], points=3, file=path)
    >>> load(path).loss
    array([0., 1., 4.])
    """
    held = read_grid(path)
    kinds = {"line": LossLine, "plane": LossPlane}
    kind = kinds.get(str(held.pop("kind", "")))
    if kind is None:
        raise ValueError(
            f"Expected a file of a line or a plane. Received: {os.fspath(path)!r} with the arrays "
            f"{sorted(held)}"
        )
    try:
        settings = json.loads(str(held.pop("settings")))
        held = {k: frozen(v) for k, v in held.items() if k not in ("same", "done")}
        return kind(**held, **settings)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"Expected a file of a whole {kind.__name__}. "
            f"Received: {os.fspath(path)!r}, which gave: {error!r}"
        ) from error
