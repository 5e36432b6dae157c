"""The package used as the README does, for the type checker: nothing here is run.

Where a comment ignores an error, the checker has to find that error: an unused one is an error too.
"""

from typing import assert_type

import keras
import numpy as np
from matplotlib.axes import Axes

import keras_regtools as rt
from keras_regtools.landscape import LossLine, LossPlane
from keras_regtools.measures import HessianEigenvalues, KeskarSharpness


def a_first_look(model: keras.Model, x: np.ndarray, y: np.ndarray) -> None:
    model = rt.instrument(rt.regularize(model, conv=rt.regularizers.L2(1e-4), dense_dropout=0.5))
    sharpness = rt.callbacks.Sharpness(x, y, measures=["keskar", "sam"], every=2)
    report = rt.callbacks.Report("runs/first", settings={"seed": 0})
    model.fit(x, y, callbacks=[rt.callbacks.ActivationMonitor(), sharpness, report])
    rt.recalibrate(model, x, batch_size=64)
    for name, value in rt.regularizers.penalties(model).items():
        assert_type((name, value), tuple[str, float])
    rt.recalibrate(model)  # type: ignore[call-arg]
    rt.regularize(model, dense_dropout="half")  # type: ignore[arg-type]


def measures(model: keras.Model, x: np.ndarray, y: np.ndarray) -> None:
    surface = rt.LossSurface(model, x, y, mode="batch_statistics")
    assert_type(surface.value(), float)
    loss, gradient = surface.value_and_gradient()
    assert_type(rt.vectors.norm(gradient) / loss, float)
    keskar = rt.measures.keskar_sharpness(surface, epsilon=1e-3)
    assert_type(keskar, KeskarSharpness)
    assert_type(keskar.value, float)
    assert_type(keskar.scalars(), dict[str, float])
    top = rt.measures.hessian_eigenvalues(surface, k=3)
    assert_type(top, HessianEigenvalues)
    assert_type(rt.plots.density(rt.measures.hessian_density(surface)), Axes)
    rt.measures.keskar_sharpness(surface, epsilon="small")  # type: ignore[arg-type]
    rt.measures.keskar_sharpness(surface, 1e-3)  # type: ignore[call-arg]
    rt.measures.keskar_sharpness(model=model)  # type: ignore[call-arg]


def landscapes(surface: rt.LossSurface) -> None:
    line = rt.landscape.loss_line(surface, points=11)
    assert_type(line, LossLine)
    plane = rt.landscape.loss_plane(surface, points=11, file="plane.npz")
    assert_type(plane, LossPlane)
    assert_type(rt.plots.contour(plane), Axes)
    rt.report.write_surface(plane, "plane.html")


def rates(optimizer: keras.optimizers.Optimizer) -> None:
    callback = rt.callbacks.LinearScalingLR(512, base_batch_size=32, warmup_epochs=2)
    assert_type(callback.factor, float)
    rt.callbacks.LinearScalingLR("512", 32)  # type: ignore[arg-type]
