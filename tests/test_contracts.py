"""One row per measure, callback, layer and regularizer; every row goes through the same checks."""

import copy
import functools
import random

import keras
import numpy as np
import pytest
from keras import layers, ops
from problems import HAS_FLOAT64, numbers, rows

import keras_regtools as rt
from keras_regtools.measures.declaration import DECLARED

pytestmark = pytest.mark.backends
RNG = np.random.default_rng(0)
X = RNG.standard_normal((40, 8, 8, 1)).astype("float32")
Y = RNG.integers(0, 3, 40)
TOGETHER = "all together"
COMPILES = keras.backend.backend() != "torch"  # PyTorch refuses both on a CPU


def plain_model(**compile_arguments):
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(2, 3, kernel_regularizer=rt.regularizers.L2(1e-3), name="conv"),
            layers.BatchNormalization(name="bn"),
            layers.ReLU(name="relu"),
            layers.Flatten(name="flatten"),
            layers.Dense(4, activation="relu", name="hidden"),
            layers.Dropout(0.2, seed=3, name="dropout"),
            layers.Dense(3, activation="softmax", name="output"),
        ],
        name="plain",
    )
    arguments = {
        "optimizer": keras.optimizers.SGD(0.05, momentum=0.9),
        "loss": "sparse_categorical_crossentropy",
        "metrics": ["accuracy"],
    }
    model.compile(**{**arguments, **compile_arguments})
    return model


def model_for_fits(**compile_arguments):
    keras.utils.set_random_seed(1)
    return rt.instrument(plain_model(**compile_arguments))


def fit(model, callbacks=(), epochs=3, **arguments):
    keras.utils.set_random_seed(2)  # the order of the samples
    return model.fit(
        X, Y, batch_size=8, epochs=epochs, callbacks=list(callbacks), verbose=0, **arguments
    )


def differing(a, b):
    """The variables that are not the same to the bit, by name, with the largest difference."""
    pairs = zip(a, numbers(a), numbers(b), strict=True)
    return {v.path: np.abs(x - y).max() for v, x, y in pairs if not np.array_equal(x, y)}


# --- measures: a surface in, a result out ---------------------------------------------------------

MEASURES = {
    "asam_sharpness": rt.measures.asam_sharpness,
    "average_sharpness": functools.partial(rt.measures.average_sharpness, draws=2),
    "fisher_rao_norm": rt.measures.fisher_rao_norm,
    "gradient_flow": rt.measures.gradient_flow,
    "gradient_smoothness": functools.partial(
        rt.measures.gradient_smoothness, learning_rate=0.1, points=2
    ),
    "gradient_noise_scale": functools.partial(rt.measures.gradient_noise_scale, micro_batch_size=2),
    "gradient_share": functools.partial(rt.measures.gradient_share, k=3),
    "hessian_density": functools.partial(rt.measures.hessian_density, steps=6, draws=2),
    "hessian_eigenvalues": functools.partial(rt.measures.hessian_eigenvalues, k=2, which="both"),
    "hessian_trace": functools.partial(rt.measures.hessian_trace, tolerance=0.1),
    "internal_covariate_shift": functools.partial(
        rt.measures.internal_covariate_shift, learning_rate=0.1
    ),
    "keskar_sharpness": rt.measures.keskar_sharpness,
    "normalization_noise": functools.partial(rt.measures.normalization_noise, batch_size=8),
    "pac_bayes_sharpness": functools.partial(
        rt.measures.pac_bayes_sharpness, draws=2, bisections=3
    ),
    "recalibrated_loss": functools.partial(rt.measures.recalibrated_loss, x=X),
    "relative_flatness": functools.partial(rt.measures.relative_flatness, tolerance=0.1),
    "sam_sharpness": rt.measures.sam_sharpness,
    "weight_distance": lambda surface: rt.measures.weight_distance(
        surface, [2 * p for p in surface.params]
    ),
    "weight_norm": rt.measures.weight_norm,
    "worst_sharpness": functools.partial(rt.measures.worst_sharpness, steps=5),
}
TABLES = {  # measures of several surfaces, or of a model
    "critical_batch_size": lambda surface: rt.measures.critical_batch_size(
        surface.model, X, Y, batch_size=4, factors=(1, 2), repeats=2, budget=16
    ),
    "by_checkpoint": lambda surface: rt.measures.by_checkpoint(
        surface, MEASURES["hessian_trace"], {"here": surface.model.get_weights()}
    ),
    "distribution_shift": lambda surface: rt.measures.distribution_shift(
        surface.model, X, X + 1, batch_size=16
    ),
    "by_layer": lambda surface: rt.measures.by_layer(surface, MEASURES["hessian_trace"], ["conv"]),
}


@pytest.fixture(scope="module")
def trained():
    """A fitted model and its surface in training mode, which no measure changes."""
    model = model_for_fits()
    fit(model)
    return model, rt.LossSurface(model, X, Y, mode="training")


@pytest.fixture(scope="module")
def surfaces():
    """Of one model, by the size of their batches; they hold what was traced."""
    model = model_for_fits()
    return {size: rt.LossSurface(model, X, Y, batch_size=size) for size in (7, 40)}


@pytest.fixture(scope="module")
def measured(surfaces):
    """What a measure says of a surface, measured once."""
    return functools.cache(lambda name, size: {**MEASURES, **TABLES}[name](surfaces[size]))


@pytest.fixture(params=[*MEASURES, *TABLES])
def measure_or_table(request):
    return {**MEASURES, **TABLES}[request.param]


def test_every_measure_has_a_row():
    public = {n for n in rt.measures.__all__ if n[0].islower()}
    assert public == {*MEASURES, *TABLES}
    assert set(DECLARED) == set(MEASURES)


def test_a_measure_leaves_the_model_as_it_was(measure_or_table, trained):
    model, surface = trained
    before = numbers([*model.variables, *model.optimizer.variables])
    measure_or_table(surface)
    assert not differing([*model.variables, *model.optimizer.variables], before)


@pytest.mark.parametrize("name", [*MEASURES, *TABLES])
def test_a_measure_repeats_itself(name, surfaces, measured):
    assert {**MEASURES, **TABLES}[name](surfaces[7]) == measured(name, 7)


@pytest.mark.parametrize(
    "name", rows(MEASURES, "average_sharpness", "hessian_eigenvalues", "weight_norm")
)
def test_a_measure_in_inference_does_not_depend_on_the_batch_size(name, measured):
    values = [measured(name, size).value for size in (7, 40)]
    assert values[0] == pytest.approx(values[1], rel=0.02)


@pytest.mark.parametrize("name", MEASURES)
def test_a_result_is_frozen_and_flat(name, measured):
    result = measured(name, 7)
    assert type(result.value) is float
    assert all(type(value) is float for value in result.scalars().values())
    assert next(iter(result.scalars())) == "value"
    assert result.scalars()["value"] == result.value
    assert {"penalties", "samples"} <= set(result.scalars())
    assert ("seed" in result.scalars()) == DECLARED[name].random
    with pytest.raises(AttributeError):
        result.seed = 0


@pytest.mark.parametrize("name", [n for n in MEASURES if n != "hessian_density"])
def test_a_result_prints_its_number_first_and_no_long_arrays(name, measured):
    result = measured(name, 7)
    text, doubt = repr(result), getattr(result, "stderr", None)
    if name == "hessian_eigenvalues":
        doubt = result.residuals[0]
    expected = f"{type(result).__name__}({result.value:.6g}"
    assert text.startswith(f"{expected} ± {doubt:.2g}" if doubt else expected)
    assert "loss=" in text or "mode=" in text
    assert len(text) < 600
    assert "\n" not in text


def test_surfaces_records_and_tables_print_what_they_are(surfaces, tmp_path):
    surface = surfaces[7]
    assert repr(surface) == (
        "LossSurface(model='plain', 331 weights, 40 samples, batch_size=7, mode='inference', "
        "penalties=True)"
    )
    records = rt.records.Records()
    records.add(0, 1, {"loss": 1.0, "accuracy": 0.5})
    records.add(1, 2, {"loss": 0.5})
    assert repr(records) == "Records(3 of 2 quantities in 2 epochs)"
    assert repr(rt.callbacks.Report(tmp_path / "here")).endswith("here')")
    table = rt.measures.by_layer(surface, {"norm": rt.measures.weight_norm}, ["conv", "hidden"])
    lines = repr(table).splitlines()
    assert lines[0].split()[:2] == ["parameters", "norm"]
    assert [line.split()[0] for line in lines[1:]] == ["layer", "conv", "hidden"]
    assert table._repr_html_().startswith("<table")
    assert records._repr_html_().startswith("<table")


@pytest.fixture(scope="module")
def elsewhere(trained):
    """A surface that looks from other weights, and what a measure says of a model that has them."""
    model, surface = trained
    own, rng = model.get_weights(), np.random.default_rng(3)
    other = [np.abs(w + 0.1 * rng.standard_normal(w.shape)) for w in own]

    @functools.cache
    def expected(name):
        model.set_weights(other)
        try:
            return MEASURES[name](surface)
        finally:
            model.set_weights(own)

    return surface.at(other), expected, other


@pytest.mark.parametrize("name", MEASURES)
def test_a_measure_at_other_weights_is_that_of_a_model_that_has_them(name, elsewhere):
    there, expected, _ = elsewhere
    expected = expected(name).scalars()
    assert MEASURES[name](there).scalars() == pytest.approx(expected, rel=1e-5, nan_ok=True)


@pytest.mark.parametrize("name", rows(MEASURES, "normalization_noise", "gradient_flow"))
def test_a_measure_of_a_checkpoint_is_that_of_a_model_that_has_it(name, elsewhere):
    there, expected, other = elsewhere
    checkpoints = {"own": there.model.get_weights(), "other": other}
    table = rt.measures.by_checkpoint(there, {"it": MEASURES[name]}, checkpoints).to_frame()
    assert table.loc["other", "it"] == pytest.approx(expected(name).value, rel=1e-5)


def generators():
    """The states of the generators that a program may draw from, as text."""
    states = [repr(np.random.get_state()), repr(random.getstate())]
    if keras.backend.backend() == "torch":
        import torch

        states.append(torch.random.get_rng_state().tolist())
    return states


@pytest.fixture(scope="module")
def unseeded():
    """Of a model whose layers draw from what is global, where the backend has such a thing."""
    model = model_for_fits()
    drawing = [layers.Dropout(0.2), layers.GaussianNoise(0.1)]
    ends = [layers.Dense(4, activation="relu"), layers.Dense(3, activation="softmax")]
    model = keras.Sequential([model, *drawing, *ends])
    model.compile("sgd", "sparse_categorical_crossentropy")
    return rt.LossSurface(model, X, Y, mode="training")


@pytest.mark.parametrize("name", ["gradient_flow", "normalization_noise", "recalibrated_loss"])
def test_a_measure_that_looks_inside_moves_no_random_generator(name, unseeded):
    before = generators()
    MEASURES[name](unseeded)
    assert generators() == before


def test_a_measure_moves_no_random_generator(measure_or_table, trained):
    before = generators()
    measure_or_table(trained[1])
    assert generators() == before


# --- callbacks ------------------------------------------------------------------------------------


def gradient_norm(surface):
    return rt.vectors.norm(surface.value_and_gradient()[1])


def decay(step):
    return 1e-3 / (1 + ops.cast(step, "float32"))


CALLBACKS = {
    "BatchSize": lambda tmp: rt.callbacks.BatchSize(rt.GrowingBatches(X, Y, [4])),
    "LinearScalingLR": lambda tmp: rt.callbacks.LinearScalingLR(16, 8, warmup_epochs=1),
    "Measure": lambda tmp: rt.callbacks.Measure({"gradient/norm": gradient_norm}, X, Y, every=2),
    "WeightTrajectory": lambda tmp: rt.callbacks.WeightTrajectory(),
    "Sharpness": lambda tmp: rt.callbacks.Sharpness(X, Y, samples=16, every=2, iterations=2),
    "ActivationMonitor": lambda tmp: rt.callbacks.ActivationMonitor(per_channel=True),
    "GradientMonitor": lambda tmp: rt.callbacks.GradientMonitor(every=1),
    "PenaltyMonitor": lambda tmp: rt.callbacks.PenaltyMonitor(),
    "PreciseBatchNorm": lambda tmp: rt.callbacks.PreciseBatchNorm(X),
    "Report": lambda tmp: rt.callbacks.Report(tmp / "report"),
    "Schedule": lambda tmp: rt.callbacks.Schedule(
        lambda model: model.get_layer("conv").kernel_regularizer, "l2", decay, by="step", key="l2"
    ),
    "WeightMonitor": lambda tmp: rt.callbacks.WeightMonitor(),
    "SharpnessAwareMinimization": lambda tmp: rt.callbacks.SharpnessAwareMinimization(),
}
# On rates, on moving statistics, on strengths, on gradients.
ACTING = ("LinearScalingLR", "PreciseBatchNorm", "Schedule", "SharpnessAwareMinimization")
WATCHING = [name for name in CALLBACKS if name not in ACTING]


def callbacks(row, tmp_path):
    names = CALLBACKS if row == TOGETHER else [row]
    return [CALLBACKS[name](tmp_path) for name in names]


# All together in the default run, or one of them where a fit is long; then all together in the long
# one, and each alone by hand.
def each_or(row):
    marks = {row: (), TOGETHER: () if row == TOGETHER else pytest.mark.slow}
    return pytest.mark.parametrize(
        "row",
        [
            pytest.param(name, marks=marks.get(name, pytest.mark.by_hand))
            for name in (TOGETHER, *CALLBACKS)
        ],
    )


@pytest.fixture
def make(row, tmp_path):
    return lambda: callbacks(row, tmp_path)


@functools.cache
def model_for_many_fits(number=1, policy="float32", **compile_arguments):
    """For checks of what a fit gives, not of what it begins with: its step is traced once."""
    keras.config.set_dtype_policy(policy)
    return model_for_fits(**compile_arguments)


@pytest.fixture(scope="module")
def alone():
    """A model fitted without anything that watches."""
    model = model_for_fits()
    fit(model)
    return model


def test_every_callback_has_a_row():
    others = {"GradientNoise"}  # which wants steps of several parts: test_gradient_noise
    assert set(rt.callbacks.__all__) == {*CALLBACKS, *others}


@each_or(TOGETHER)
def test_logs_are_floats_under_the_same_keys_in_every_epoch(make):
    seen = []
    watch = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(dict(logs)))
    history = fit(model_for_many_fits(), [*make(), watch], epochs=4)
    assert [set(logs) for logs in seen] == [set(seen[0])] * 4
    assert all(isinstance(value, float) for logs in seen for value in logs.values())
    assert all(len(values) == 4 for values in history.history.values())


@pytest.mark.slow  # all of them together: below
@pytest.mark.parametrize("name", WATCHING)
def test_watching_does_not_change_the_weights_by_a_bit(name, alone, tmp_path):
    watched = model_for_fits()
    fit(watched, [CALLBACKS[name](tmp_path)])
    assert not differing(watched.weights, alone.weights)
    assert not differing(watched.optimizer.variables, alone.optimizer.variables)


def test_all_that_record_and_measure_together_change_no_bit_of_a_plain_model(tmp_path):
    keras.utils.set_random_seed(1)
    plain = plain_model(jit_compile=False)
    watched = model_for_fits(jit_compile=False)
    fit(watched, [CALLBACKS[name](tmp_path) for name in WATCHING])
    fit(plain)
    assert not differing(watched.weights, plain.weights)
    assert not differing(watched.optimizer.variables, plain.optimizer.variables)


@each_or("Sharpness")
def test_a_copy_works_and_shares_the_data(make):
    original, model = make(), model_for_many_fits()
    fit(model, copy.deepcopy(original))
    fit(model, original)
    again = copy.deepcopy(original)
    history = fit(model_for_many_fits(2), again)
    assert set(history.history) >= {"loss", "accuracy"}
    for copied, callback in zip(again, original, strict=True):
        if hasattr(callback, "data"):
            assert copied.data is callback.data


@each_or("ActivationMonitor")
def test_one_callback_serves_two_fits_and_two_models(make):
    callbacks = make()
    model = model_for_many_fits()
    first = fit(model, callbacks)
    second = fit(model, callbacks)
    third = fit(model_for_many_fits(2), callbacks)
    assert set(first.history) == set(second.history) == set(third.history)


@each_or("GradientMonitor")
@pytest.mark.parametrize(
    "arguments",
    [{"steps_per_execution": 3}, pytest.param({"jit_compile": True}, marks=pytest.mark.slow)]
    if COMPILES
    else [{"run_eagerly": True}],
    ids=str,
)
def test_it_works_however_the_step_is_compiled(make, arguments):
    history = fit(model_for_many_fits(**arguments), make())
    assert all(np.all(np.isfinite(values)) for values in history.history.values())


@each_or("GradientMonitor")
def test_it_works_in_mixed_precision(make):
    keras.config.set_dtype_policy("mixed_float16")
    history = fit(model_for_many_fits(policy="mixed_float16"), make())
    assert all(np.all(np.isfinite(values)) for values in history.history.values())


@each_or(TOGETHER)
def test_it_works_on_one_epoch_of_one_batch(make):
    model = model_for_many_fits()
    history = model.fit(X[:8], Y[:8], batch_size=8, callbacks=make(), verbose=0)
    assert all(np.all(np.isfinite(values)) for values in history.history.values())


@pytest.mark.parametrize("order", rows([1, -1], 1))
def test_all_write_into_one_set_of_records_wherever_they_stand(order, tmp_path):
    together = [CALLBACKS[name](tmp_path) for name in CALLBACKS][::order]
    fit(model_for_many_fits(), together)
    (shared,) = {id(callback.records): callback.records for callback in together}.values()
    assert set(shared.names()) >= {
        "loss",
        "learning_rate",
        "gradient/norm",
        "sharpness/keskar",
        "activations/bn/mean_distance",
        "channels/bn/batch_mean",
        "penalty",
        "time/fit",
        "time/sharpness",
    }
    on_disk = rt.records.read(tmp_path / "report" / "records.jsonl")
    assert list(map(repr, on_disk.rows)) == list(map(repr, shared.rows))  # NaN is NaN here
    assert shared.series("gradient/norm")[0] == [0, 2]
    assert shared.series("loss")[0] == [0, 1, 2]


@pytest.mark.slow
def test_two_fits_have_two_sets_of_records():
    callback = rt.callbacks.PenaltyMonitor()
    fit(model_for_many_fits(), [callback])
    first = callback.records
    fit(model_for_many_fits(), [callback])
    assert callback.records is not first
    assert callback.records.series("penalty")[0] == [0, 1, 2]


# --- layers ---------------------------------------------------------------------------------------

LAYERS = {
    "InstrumentedBatchNormalization": rt.layers.InstrumentedBatchNormalization,
    "ActivationStatistics": rt.layers.ActivationStatistics,
}
DROPOUTS = {"Dropout", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D"}  # test_dropout


@pytest.fixture(params=LAYERS)
def layer_class(request):
    return LAYERS[request.param]


def test_every_layer_has_a_row():
    assert set(rt.layers.__all__) == {*LAYERS, *DROPOUTS}


def test_a_layer_is_rebuilt_from_its_configuration(layer_class):
    layer = layer_class(record_every=3, name="mine")
    config = keras.saving.serialize_keras_object(layer)
    again = keras.saving.deserialize_keras_object(config)
    assert type(again) is layer_class
    assert again.get_config() == layer.get_config()


def test_a_layer_is_called_symbolically_and_on_data(layer_class):
    layer = layer_class()
    inputs = keras.Input((5,))
    assert layer(inputs).shape == (None, 5)
    assert layer(inputs, training=True).shape == (None, 5)
    x = RNG.standard_normal((4, 5)).astype("float32")
    assert tuple(layer(x, training=True).shape) == (4, 5)
    assert layer.compute_output_shape((None, 5)) == (None, 5)


@pytest.mark.parametrize(
    "policy",
    ["float32", "mixed_float16", "mixed_bfloat16", *(["float64"] if HAS_FLOAT64 else [])],
)
def test_a_layer_keeps_its_policys_types(layer_class, policy):
    layer = layer_class(dtype=policy)
    outputs = layer(RNG.standard_normal((4, 5)), training=True)
    assert keras.backend.standardize_dtype(outputs.dtype) == layer.compute_dtype
    statistics = layer.statistics()
    assert all(np.all(np.isfinite(value)) for value in statistics.values())


def test_a_layer_has_the_plain_layers_weights(layer_class):
    layer = layer_class()
    layer.build((None, 5))
    expected = 4 if layer_class is rt.layers.InstrumentedBatchNormalization else 0
    assert len(layer.weights) == len(layer.get_weights()) == expected
    assert len(layer.variables) == expected + len(layer.recorder.variables) > expected
    assert layer.count_params() == 5 * expected


# --- regularizers ---------------------------------------------------------------------------------

REGULARIZERS = {
    "L1": lambda: rt.regularizers.L1(0.01),
    "L2": lambda: rt.regularizers.L2(0.01),
    "L1L2": lambda: rt.regularizers.L1L2(0.01, 0.02),
    "GroupLasso": lambda: rt.regularizers.GroupLasso(0.01, over="inputs"),
    "Orthogonal": lambda: rt.regularizers.Orthogonal(0.01),
    "Sum": lambda: rt.regularizers.Sum(rt.regularizers.L1(0.02), rt.regularizers.L2(0.01)),
}


@pytest.fixture(params=REGULARIZERS)
def penalty(request):
    return REGULARIZERS[request.param]()


def test_every_regularizer_has_a_row():
    bases = {"Penalty", "Strength"}
    public = {n for n in rt.regularizers.__all__ if n[0].isupper()}
    assert public == {*REGULARIZERS, *bases}


def test_a_penalty_is_rebuilt_from_its_configuration(penalty):
    config = keras.saving.serialize_keras_object(penalty)
    again = keras.saving.deserialize_keras_object(config)
    assert type(again) is type(penalty)
    assert again.get_config() == penalty.get_config()
    assert all(type(penalty.get_config()[name]) is float for name in penalty.strengths)


def test_a_penalty_of_nothing_is_nothing_and_grows_with_the_weights(penalty):
    at_rest = ops.eye(3) if isinstance(penalty, rt.regularizers.Orthogonal) else ops.zeros((3, 3))
    assert float(penalty(at_rest)) == 0
    small, large = (float(penalty(scale * ops.ones((3, 3)))) for scale in (1, 2))
    assert 0 < small < large


def test_a_penalty_saves_and_loads_with_its_model(penalty, tmp_path):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2, kernel_regularizer=penalty)])
    for name in penalty.strengths:
        setattr(penalty, name, 0.5)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert again.layers[0].kernel_regularizer.get_config() == penalty.get_config()
    assert len(again.get_weights()) == 2
