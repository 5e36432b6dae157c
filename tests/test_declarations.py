"""What is declared of measures is what the docs say and what they refuse; junk gets a sentence."""

import inspect
import pathlib
import traceback

import keras
import numpy as np
import pytest

import keras_regtools as rt
from keras_regtools import records
from keras_regtools.layers.accumulators import NUMPY, SAMPLES, STEPS
from keras_regtools.layers.recording_spec import QUANTITIES
from keras_regtools.layers.statistics import STATISTICS
from keras_regtools.measures.declaration import DECLARED
from keras_regtools.plots.picture import declared as pictures_of_runs

ROOT = pathlib.Path(__file__).parents[1]
X = np.random.default_rng(0).standard_normal((12, 4)).astype("float32")
Y = np.arange(12) % 3


@pytest.mark.parametrize("name", DECLARED)
def test_a_declaration_is_of_the_function(name):
    declared = DECLARED[name]
    parameters = inspect.signature(declared.measure).parameters
    assert getattr(rt.measures, name) is declared.measure
    assert declared.unit
    assert set(declared.constraints) <= set(parameters)
    assert declared.random == ("seed" in parameters)
    assert all(set(preset) <= set(parameters) for preset in declared.short.values())


def table():
    lines = ["| name | measure | unit | seed |", "|---|---|---|---|"]
    for declared in sorted(DECLARED.values(), key=lambda d: d.measure.__name__):
        for name, preset in declared.short.items():
            call = "".join(f", `{k}={v}`" for k, v in preset.items())
            seed = "yes" if declared.random else "no"
            lines.append(
                f'| `"{name}"` | `{declared.measure.__name__}`{call} | {declared.unit} | {seed} |'
            )
    return "\n".join(lines)


def test_the_table_of_the_docs_is_that_of_the_declarations():
    assert table() in (ROOT / "docs" / "sharpness.md").read_text("utf-8")


def table_of_statistics():
    lines = ["| Name | What it is | How to read it |", "|---|---|---|"]
    for name, statistic in STATISTICS.items():
        lines.append(f"| `{name}` | {statistic.formula} | {statistic.meaning} |")
    return "\n".join(lines)


def test_the_table_of_statistics_is_that_of_their_declarations():
    assert table_of_statistics() in (ROOT / "docs" / "activations.md").read_text("utf-8")


@pytest.mark.parametrize("name", STATISTICS)
def test_a_statistic_declares_rows_that_somebody_keeps(name):
    statistic = STATISTICS[name]
    assert (name in QUANTITIES) == statistic.chosen
    assert statistic.formula
    assert statistic.meaning
    assert set(statistic.step_rows) <= set(STEPS.rows)
    assert set(statistic.sampled_rows) <= set(SAMPLES.rows)
    assert set(statistic.needs) <= set(STATISTICS)


@pytest.mark.parametrize("accumulator", [STEPS, SAMPLES])
def test_rows_are_merged_as_they_are_declared(accumulator):
    """Against numpy, whatever their places; NaN and infinity aside."""
    rng, rows = np.random.default_rng(0), accumulator.rows
    a, b = rng.uniform(1, 2, (2, len(rows), 3)).astype("float32")
    found = dict(zip(rows, accumulator.merged(a, b, NUMPY), strict=True))
    a, b = (dict(zip(rows, part, strict=True)) for part in (a, b))
    expected = {
        "sum": lambda row: a[row] + b[row],
        "first": lambda row: np.minimum(a[row], b[row]),
        "largest": lambda row: np.maximum(a[row], b[row]),
    }
    for kind, merge in expected.items():
        for row in accumulator.of_kind[kind]:
            np.testing.assert_allclose(found[row], merge(row), err_msg=row)
    mean = (a["count"] * a["mean"] + b["count"] * b["mean"]) / (a["count"] + b["count"])
    np.testing.assert_allclose(found["mean"], mean, rtol=1e-5)


# --- junk -----------------------------------------------------------------------------------------


class Thing:
    def __repr__(self):
        return "a thing"


JUNK = {
    "None": None,
    "True": True,
    "numpy True": np.bool_(True),
    "-1": -1,
    "0": 0,
    "2": 2,
    "1.5": 1.5,
    "nan": float("nan"),
    "inf": float("inf"),
    "-inf": -float("inf"),
    "empty text": "",
    "text": "nothing like it",
    "bytes": b"1",
    "empty list": [],
    "empty dict": {},
    "list": [1, 2],
    "list of texts": ["a"],
    "tuple": (0.5, "a"),
    "set": {1},
    "dict": {"a": 1},
    "array": np.array([1.0, 2.0]),
    "complex": 1j,
    "function": lambda *args: 0.0,
    "class": int,
    "thing": Thing(),
}


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(3, name="hidden"),
            keras.layers.BatchNormalization(name="bn"),
            keras.layers.ReLU(),
            keras.layers.Dense(3, activation="softmax", name="output"),
        ]
    )
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


@pytest.fixture(scope="module")
def surface(model):
    return rt.LossSurface(model, X, Y, batch_size=4)


REQUIRED = {
    "gradient_smoothness": {"learning_rate": 0.1},
    "internal_covariate_shift": {"learning_rate": 0.1},
    "recalibrated_loss": {"x": X},
}


def sentence(error):
    """What is not right with an error, or nothing."""
    if isinstance(error, FileNotFoundError):
        return ""  # which names the file
    if not isinstance(error, (ValueError, TypeError, NotImplementedError)):
        return f"{type(error).__name__}: {error}"
    where = traceback.extract_tb(error.__traceback__)[-1].filename
    ours = "keras_regtools" in where or where == __file__
    said = "eceived" in str(error)
    ours = ours or str(error).startswith("Argument `name` must be")  # as well said by Keras
    return "" if ours and said else f"{type(error).__name__} of {where}: {error}"


@pytest.mark.parametrize("name", DECLARED)
def test_a_measure_takes_junk_or_says_what_it_expected(name, surface):
    """Of what is declared: what the constraint allows is not measured here."""
    declared, wrong = DECLARED[name], {}
    given = REQUIRED.get(name, {})
    for parameter, constraint in declared.constraints.items():
        default = inspect.signature(declared.measure).parameters[parameter].default
        for label, junk in JUNK.items():
            if constraint.allows(junk) or (junk is None and default is None):
                continue
            with pytest.raises(ValueError) as caught:
                declared.measure(surface, **{**given, parameter: junk})
            expected = f"Argument `{parameter}` must be {constraint.kind}. Received: {parameter}="
            if not str(caught.value).startswith(expected):
                wrong[parameter, label] = str(caught.value)
    assert not wrong


def lenet():
    return rt.applications.lenet5()


PUBLIC = {
    "LossSurface": (rt.LossSurface, lambda m: {"model": m, "x": X, "y": Y}),
    "L1": (rt.regularizers.L1, lambda m: {}),
    "L2": (rt.regularizers.L2, lambda m: {}),
    "L1L2": (rt.regularizers.L1L2, lambda m: {}),
    "ActivationStatistics": (rt.layers.ActivationStatistics, lambda m: {}),
    "regularize": (rt.regularize, lambda m: {"model": m}),
    "instrument": (rt.instrument, lambda m: {"model": m}),
    "strip": (rt.strip, lambda m: {"model": rt.instrument(m)}),
    "recalibrate": (rt.recalibrate, lambda m: {"model": rt.instrument(m), "x": X}),
    "LinearScalingLR": (
        rt.callbacks.LinearScalingLR,
        lambda m: {"batch_size": 8, "base_batch_size": 4},
    ),
    "Measure": (
        rt.callbacks.Measure,
        lambda m: {"measures": {"it": rt.measures.weight_norm}, "x": X, "y": Y},
    ),
    "Sharpness": (rt.callbacks.Sharpness, lambda m: {"x": X, "y": Y}),
    "ActivationMonitor": (rt.callbacks.ActivationMonitor, lambda m: {}),
    "GradientMonitor": (rt.callbacks.GradientMonitor, lambda m: {}),
    "PenaltyMonitor": (rt.callbacks.PenaltyMonitor, lambda m: {}),
    "PreciseBatchNorm": (rt.callbacks.PreciseBatchNorm, lambda m: {"x": X}),
    "WeightTrajectory": (rt.callbacks.WeightTrajectory, lambda m: {}),
    "RegularizationHyperModel": (
        rt.tuner.RegularizationHyperModel,
        lambda m: {"model_fn": lenet},
    ),
    "distribution_shift": (
        rt.measures.distribution_shift,
        lambda m: {"model": m, "x_train": X, "x_new": X},
    ),
}


def of_surfaces(surface, tmp_path):
    """The same of what takes a surface, records or a path."""
    weights = surface.model.get_weights()
    run = records.Records([(0, 1, "loss", 1.0)])
    norm = {"norm": rt.measures.weight_norm}
    line = rt.landscape.loss_line(surface, [0 * w for w in weights], points=2)
    plane = rt.landscape.loss_plane(surface, points=2)
    density = rt.measures.hessian_density(surface, steps=3, draws=1)
    pictures = {picture.name: picture.draw for picture in pictures_of_runs()}
    return {
        "by_layer": (rt.measures.by_layer, {"surface": surface, "measures": norm}),
        "by_checkpoint": (
            rt.measures.by_checkpoint,
            {"surface": surface, "measures": norm, "checkpoints": {"own": weights}},
        ),
        "loss_line": (rt.landscape.loss_line, {"surface": surface, "target": weights, "points": 2}),
        "loss_plane": (rt.landscape.loss_plane, {"surface": surface, "points": 2}),
        "at": (surface.at, {"weights": weights}),
        "over": (surface.over, {"x": X, "y": Y}),
        "recalibrated": (surface.recalibrated, {}),
        "restricted": (surface.restricted, {"layers": "hidden"}),
        "value": (surface.value, {}),
        "hvp": (surface.hvp, {"params": None, "v": surface.params}),
        "weight_distance": (
            rt.measures.weight_distance,
            {"surface": surface, "start": surface.params},
        ),
        "penalties": (rt.regularizers.penalties, {"model": surface.model}),
        "report.write": (rt.report.write, {"directory": tmp_path}),
        "Report": (rt.callbacks.Report, {"directory": tmp_path / "run"}),
        "records.read": (records.read, {"path": tmp_path / "none"}),
        "quantities": (rt.plots.quantities, {"records": run, "prefix": "loss"}),
        "line": (rt.plots.line, {"result": line}),
        "contour": (rt.plots.contour, {"result": plane}),
        "surface": (rt.plots.surface, {"result": plane}),
        "density": (rt.plots.density, {"result": density}),
        **{f"plots.{name}": (draw, {"records": run}) for name, draw in pictures.items()},
    }


def faults(function, given):
    wrong = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        for label, junk in JUNK.items():
            if (parameter.name, label) == ("measures", "class"):
                continue  # a callable is a measure; what it raises is its own
            try:
                function(**{**given, parameter.name: junk})
            except Exception as error:
                fault = sentence(error)
                if fault:
                    wrong[parameter.name, label] = fault
    return [f"{function.__name__}, {k}: {v[:200]}" for k, v in wrong.items()]


@pytest.mark.slow
def test_what_takes_surfaces_records_or_paths_takes_junk_or_says_what_it_expected(
    surface, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)  # "nothing like it" is a path, too
    rows = of_surfaces(surface, tmp_path).values()
    found = [fault for row in rows for fault in faults(*row)]
    assert not found, "\n".join(found)


NETWORKS = {
    "lenet5": (rt.applications.lenet5, {}),
    "f1": (rt.applications.f1, {"input_shape": (8, 8, 1), "units": 2}),
    "c1": (rt.applications.c1, {"input_shape": (8, 8, 1)}),
    "c2": (rt.applications.c2, {"input_shape": (8, 8, 1), "width": 2}),
    "vgg": (
        rt.applications.vgg,
        {"input_shape": (8, 8, 1), "classes": 2, "filters": [(2,)], "dense": (2,)},
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_of_the_course_takes_junk_or_says_what_it_expected(name):
    found = faults(*NETWORKS[name])
    assert not found, "\n".join(found)


@pytest.mark.parametrize("name", PUBLIC)
def test_whatever_is_public_takes_junk_or_says_what_it_expected(name, model):
    function, make = PUBLIC[name]
    assert not faults(function, make(model))
