"""`Sharpness` by name, at steps and for early stopping; `WeightTrajectory`."""

import copy
import functools
import math

import keras
import numpy as np
import pytest
from keras import layers
from problems import numbers

import keras_regtools as rt
from keras_regtools.callbacks import Sharpness, WeightTrajectory
from keras_regtools.callbacks.sharpness import NAMED

pytestmark = pytest.mark.backends
RNG = np.random.default_rng(0)
X = RNG.standard_normal((32, 4)).astype("float32")
Y = RNG.integers(0, 2, 32)
BACKEND = keras.backend.backend()


def model_of(middle=list, seed=0, **compile_arguments):
    keras.utils.set_random_seed(seed)
    model = keras.Sequential([keras.Input((4,)), *middle(), layers.Dense(2, "softmax")])
    optimizer = keras.optimizers.SGD(0.1)
    model.compile(optimizer, "sparse_categorical_crossentropy", **compile_arguments)
    return model


def normalised():
    return model_of(lambda: [layers.Dense(3, "tanh"), layers.BatchNormalization()])


def fit(model, callbacks, epochs=1, **arguments):
    """In epochs of four steps."""
    keras.utils.set_random_seed(1)  # the order of the samples
    return model.fit(X, Y, batch_size=8, epochs=epochs, callbacks=callbacks, verbose=0, **arguments)


def distance(a, b):
    return math.sqrt(sum(np.sum((x - y) ** 2) for x, y in zip(a, b, strict=True)))


def counting():
    """A measure that counts its calls."""
    calls = iter(range(100))
    return lambda surface: float(next(calls))


def steps_of(callback, name):
    return [row.step for row in callback.records.rows if row.name == name]


# --- what is measured -----------------------------------------------------------------------------


@functools.cache
def fit_with_every_measure():
    callback = Sharpness(X, Y, measures=list(NAMED), seed=3, samples=16)
    model = normalised()
    history = fit(model, [callback])
    return model, callback, history.history


@pytest.mark.parametrize("name", NAMED)
def test_every_measure_with_a_name_runs_in_a_fit(name):
    _, callback, history = fit_with_every_measure()
    (logged,) = history[f"sharpness/{name}"]
    assert math.isfinite(logged)
    recorded = callback.records.series(f"sharpness/{name}")
    assert (list(recorded[0]), list(recorded[1])) == ([0], [logged])
    if f"sharpness/{name}/seed" in callback.records.names():
        assert callback.records.last(f"sharpness/{name}/seed") == 3


def test_every_measure_means_what_its_name_says():
    model, callback, history = fit_with_every_measure()
    assert set(history) == {"loss", *(f"sharpness/{name}" for name in NAMED)}
    chosen = np.sort(np.random.default_rng(3).choice(32, 16, replace=False))
    surface = rt.LossSurface(model, X[chosen], Y[chosen], mode="batch_statistics")
    expected = {
        "sam": rt.measures.sam_sharpness(surface),
        "asam": rt.measures.asam_sharpness(surface),
        "weight_norm": rt.measures.weight_norm(surface),
        "fisher_rao": rt.measures.fisher_rao_norm(surface),
        "average": rt.measures.average_sharpness(surface, seed=3),
        "adaptive_average": rt.measures.average_sharpness(surface, adaptive=True, seed=3),
    }
    for name, result in expected.items():
        assert history[f"sharpness/{name}"] == pytest.approx([result.value], rel=1e-4)
    assert callback.records.last("sharpness/worst/adaptive") == 0
    assert callback.records.last("sharpness/adaptive_worst/adaptive") == 1


def test_the_settings_of_keskars_measure_are_for_that_alone():
    callback = Sharpness(X, Y, measures=["sam", "keskar"], epsilon=5e-4, iterations=2)
    fit(model_of(), [callback])
    assert callback.records.last("sharpness/keskar/epsilon") == 5e-4
    assert "sharpness/sam/epsilon" not in callback.records.names()


def flatness(surface):
    return 0.5


@pytest.mark.parametrize(
    ("measures", "expected"),
    [
        ("weight_norm", {"sharpness/weight_norm"}),
        (
            ("weight_norm", "weight_distance"),
            {"sharpness/weight_norm", "sharpness/weight_distance"},
        ),
        (flatness, {"sharpness/flatness"}),
        (functools.partial(flatness), {"sharpness/flatness"}),
        ({"mine": flatness, "two": lambda s: {"a": 1, "b": 2}}, {"mine", "two/a", "two/b"}),
    ],
    ids=["a name", "names", "a callable", "a partial", "a dict"],
)
def test_measures_are_named_in_the_logs(measures, expected):
    history = fit(model_of(), [Sharpness(X, Y, measures=measures)])
    if isinstance(measures, dict):
        expected = {f"sharpness/{name}" for name in expected}
    assert set(history.history) == {"loss", *expected}


NAMES = ", ".join(map(repr, NAMED))
BAD = [
    (
        lambda: Sharpness(X, Y, measures="flatness"),
        f"Argument `measures` must be one of {NAMES}. Received: measures='flatness'",
    ),
    (
        lambda: Sharpness(X, Y, measures=["sam", "flatness"]),
        f"Argument `measures` must be one of {NAMES}. Received: measures='flatness'",
    ),
    (
        lambda: Sharpness(X, Y, measures=[]),
        "Expected at least one measure. Received: measures=[]",
    ),
    (
        lambda: Sharpness(X, Y, measures=7),
        "Expected `measures` to be a dict from names to callables, not empty. Received: measures=7",
    ),
    (
        lambda: Sharpness(X, Y, every_steps=-1),
        "Argument `every_steps` must be a positive integer. "
        "Received: every_steps=-1 (of type <class 'int'>)",
    ),
    (
        lambda: Sharpness(X, Y, iterations=0.5),
        "Argument `iterations` must be a positive integer. "
        "Received: iterations=0.5 (of type <class 'float'>)",
    ),
    (
        lambda: WeightTrajectory(every=0),
        "Argument `every` must be a positive integer. Received: every=0 (of type <class 'int'>)",
    ),
]


@pytest.mark.parametrize(("build", "message"), BAD)
def test_bad_input(build, message):
    with pytest.raises(ValueError) as caught:
        build()
    assert str(caught.value) == message


def test_measuring_every_zero_steps_is_refused():
    with pytest.raises(ValueError, match="`every_steps` must be a positive integer"):
        Sharpness(X, Y, every_steps=0)


# --- when -----------------------------------------------------------------------------------------


def test_every_fifth_epoch_by_default():
    callback = Sharpness(X, Y, measures={"m": counting()})
    history = fit(model_of(), [callback], epochs=7)
    assert callback.records.series("sharpness/m")[0] == [0, 5, 6]  # and in the last
    assert history.history["sharpness/m"] == [0, 0, 0, 0, 0, 1, 2]


@pytest.mark.parametrize(
    ("every_steps", "steps"),
    [
        (1, list(range(1, 17))),
        (3, [3, 6, 9, 12, 15]),
        (4, [4, 8, 12, 16]),  # where an epoch ends, once
        (5, [4, 9, 14]),  # the first one is not to wait for the second epoch
        (40, [4]),
    ],
)
def test_measured_every_so_many_steps(every_steps, steps):
    callback = Sharpness(X, Y, measures={"m": counting()}, every_steps=every_steps)
    seen = []
    watch = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(dict(logs)))
    history = fit(model_of(), [callback, watch], epochs=4)
    assert steps_of(callback, "sharpness/m") == steps
    epochs = [row.epoch for row in callback.records.rows if row.name == "sharpness/m"]
    assert epochs == [(step - 1) // 4 for step in steps]
    assert [set(logs) for logs in seen] == [{"loss", "sharpness/m"}] * 4
    last = [sum(step <= end for step in steps) - 1 for end in (4, 8, 12, 16)]
    assert history.history["sharpness/m"] == last


@pytest.mark.skipif(BACKEND == "torch", reason="has no `steps_per_execution`")
@pytest.mark.parametrize(("every_steps", "steps"), [(3, [4, 8, 12, 16]), (5, [4, 10, 16])])
def test_with_several_steps_at_once_at_the_first_chance_after_so_many(every_steps, steps):
    callback = Sharpness(X, Y, measures={"m": counting()}, every_steps=every_steps)
    history = fit(model_of(steps_per_execution=2), [callback], epochs=4)
    assert steps_of(callback, "sharpness/m") == steps
    assert len(history.history["sharpness/m"]) == 4


@pytest.mark.skipif(BACKEND == "torch", reason="has no `steps_per_execution`")
def test_steps_that_do_not_fill_an_execution_are_counted_as_they_are():
    callback = Sharpness(X, Y, measures={"m": counting()}, every_steps=5)
    fit(model_of(steps_per_execution=3), [callback], epochs=4)
    assert steps_of(callback, "sharpness/m") == [4, 11, 16]


def test_one_callback_begins_its_schedule_anew_in_each_fit():
    callback = Sharpness(X, Y, measures={"m": counting()}, every_steps=5)
    fit(model_of(), [callback], epochs=2)
    fit(model_of(), [callback], epochs=2)
    assert steps_of(callback, "sharpness/m") == [4]


# --- where the fit began --------------------------------------------------------------------------


def test_the_distance_is_from_where_each_fit_began():
    callback = Sharpness(X, Y, measures="weight_distance", every=1)
    model = normalised()
    for _ in range(2):
        start = numbers(model.trainable_variables)
        history = fit(model, [callback], epochs=2)
        expected = distance(numbers(model.trainable_variables), start)
        found = history.history["sharpness/weight_distance"]
        assert found[1] == pytest.approx(expected, rel=1e-5)
        assert 0 < found[0] < found[1]


def test_weight_distance_under_another_name_is_from_there_too():
    callback = Sharpness(X, Y, measures={"way": rt.measures.weight_distance})
    model = model_of()
    start = numbers(model.trainable_variables)
    history = fit(model, [callback])
    expected = distance(numbers(model.trainable_variables), start)
    assert history.history["sharpness/way"] == pytest.approx([expected], rel=1e-5)


def test_a_copy_measures_the_same():
    original = Sharpness(X, Y, measures=["sam", "keskar"], every=1, samples=20)
    again = copy.deepcopy(original)
    histories = [fit(normalised(), [callback], 2).history for callback in (original, again)]
    assert histories[0] == histories[1]
    assert again.data is original.data
    assert copy.deepcopy(original)._surface is None


@pytest.mark.parametrize("used", [False, True], ids=["fresh", "used"])
def test_a_copy_measures_the_distance_from_where_its_own_fit_began(used):
    original = Sharpness(X, Y, measures="weight_distance")
    if used:
        fit(model_of(seed=5), [original])
    model = model_of()
    start = numbers(model.trainable_variables)
    history = fit(model, [copy.deepcopy(original)])
    expected = distance(numbers(model.trainable_variables), start)
    assert history.history["sharpness/weight_distance"] == pytest.approx([expected], rel=1e-5)


# --- numbers that are not finite ------------------------------------------------------------------

CURVE = (math.nan, 3.0, 5.0, math.inf, 6.0, 7.0, 8.0)


def sharpness_along_a_curve(**arguments):
    values = iter(CURVE)
    return Sharpness(X, Y, measures={"m": lambda surface: next(values)}, every=1, **arguments)


def test_stopping_and_keeping_the_best_go_by_finite_numbers(tmp_path):
    best = tmp_path / "best.weights.h5"
    callback = sharpness_along_a_curve(not_finite=1e9)
    watched = {"monitor": "sharpness/m", "mode": "min"}
    trajectory = WeightTrajectory()
    callbacks = [
        callback,
        keras.callbacks.EarlyStopping(patience=3, restore_best_weights=True, **watched),
        keras.callbacks.ModelCheckpoint(
            best, save_best_only=True, save_weights_only=True, **watched
        ),
        trajectory,
    ]
    model = model_of()
    with pytest.warns(UserWarning) as caught:
        history = fit(model, callbacks, epochs=9)
    assert history.history["sharpness/m"] == [1e9, 3, 5, 1e9, 6]  # stopped 3 epochs after the best
    recorded = callback.records.series("sharpness/m")[1]
    np.testing.assert_equal(list(recorded), [math.nan, 3, 5, math.nan, 6])
    assert [str(w.message) for w in caught if w.category is UserWarning] == [
        "The measure 'sharpness/m' gave no finite number in epoch 1; it is logged as 1000000000.0 "
        "and training goes on. Received: {'sharpness/m': nan}"
    ]
    kept = trajectory.weights[2]
    for restored, expected in zip(numbers(model.trainable_variables), kept, strict=True):
        np.testing.assert_array_equal(restored, expected)
    model.set_weights([0 * w for w in model.get_weights()])
    model.load_weights(best)
    for loaded, expected in zip(numbers(model.trainable_variables), kept, strict=True):
        np.testing.assert_array_equal(loaded, expected)


def test_nan_is_what_is_logged_unless_another_number_is_asked_for():
    """And why one is: Keras never finds anything better than NaN."""
    callback = sharpness_along_a_curve()
    stop = keras.callbacks.EarlyStopping("sharpness/m", mode="min", patience=2)
    with pytest.warns(UserWarning, match="it is logged as NaN and training goes on"):
        history = fit(model_of(), [callback, stop], epochs=9)
    np.testing.assert_equal(history.history["sharpness/m"], [math.nan, 3.0, 5.0])


# --- the fit is the same --------------------------------------------------------------------------


@pytest.mark.slow
def test_the_weights_are_those_of_a_fit_without_it_to_the_bit():
    def ends(callbacks):
        model = rt.instrument(normalised())
        fit(model, callbacks, epochs=2)
        return numbers([*model.variables, *model.optimizer.variables])

    measures = ["keskar", "average", "weight_distance"]
    watched = ends([Sharpness(X, Y, measures=measures, every_steps=3), WeightTrajectory()])
    for a, b in zip(watched, ends([]), strict=True):
        np.testing.assert_array_equal(a, b)


# --- WeightTrajectory -----------------------------------------------------------------------------


def test_a_trajectory_keeps_copies_from_the_beginning_and_after_each_epoch():
    model, trajectory, seen = normalised(), WeightTrajectory(), []
    seen.append(numbers(model.trainable_variables))
    watch = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: seen.append(numbers(watch.model.trainable_variables))
    )
    fit(model, [trajectory, watch], epochs=3)
    model.set_weights([0 * w for w in model.get_weights()])
    assert trajectory.epochs == [0, 1, 2, 3]
    for kept, expected in zip(trajectory.weights, seen, strict=True):
        for a, b in zip(kept, expected, strict=True):
            np.testing.assert_array_equal(a, b)
            assert type(a) is np.ndarray
    epochs, distances = trajectory.records.series("weights/distance")
    assert list(epochs) == [0, 1, 2]
    assert distances == pytest.approx([distance(w, seen[0]) for w in seen[1:]], rel=1e-5)
    assert trajectory.records.last("time/trajectory") > 0


@pytest.mark.parametrize(
    ("every", "epochs"), [(2, [0, 1, 3, 5]), (3, [0, 1, 4, 5]), (9, [0, 1, 5])]
)
def test_a_trajectory_of_every_so_many_epochs_has_the_first_and_the_last(every, epochs):
    trajectory = WeightTrajectory(every)
    fit(model_of(), [trajectory], epochs=5)
    assert trajectory.epochs == epochs
    assert len(trajectory.weights) == len(epochs)
    assert list(trajectory.records.series("weights/distance")[0]) == [e - 1 for e in epochs[1:]]


def test_a_trajectory_begins_anew_in_a_second_fit_and_in_a_copy():
    trajectory, model = WeightTrajectory(), model_of()
    fit(model, [trajectory], epochs=3)
    first = trajectory.weights
    again = copy.deepcopy(trajectory)
    fit(model, [trajectory], epochs=1)
    assert trajectory.epochs == [0, 1]
    assert len(first) == 4
    for a, b in zip(trajectory.weights[0], first[-1], strict=True):
        np.testing.assert_array_equal(a, b)
    assert trajectory.records.last("weights/distance") == pytest.approx(
        distance(trajectory.weights[1], first[-1]), rel=1e-5
    )
    assert again.epochs == [0, 1, 2, 3]
    fit(model_of(), [again], epochs=2)
    assert again.epochs == [0, 1, 2]


def test_the_beginning_of_a_model_that_the_fit_builds_is_known_or_missed_at_once():
    model = keras.Sequential([layers.Dense(2, "softmax")], name="raw")
    model.compile("sgd", "sparse_categorical_crossentropy")
    trajectory, sharpness = WeightTrajectory(), Sharpness(X, Y, measures="weight_distance")
    if BACKEND != "tensorflow":  # where it is built before the callbacks begin
        history = fit(model, [sharpness, trajectory])
        (found,) = history.history["sharpness/weight_distance"]
        assert found == pytest.approx(distance(*trajectory.weights), rel=1e-5)
        return
    for callback in (trajectory, sharpness):
        with pytest.raises(ValueError) as caught:
            fit(model, [callback])
        assert str(caught.value) == (
            "Expected a built model. Received: the model 'raw', which has no weights yet. Call "
            "`model.build(input_shape)` or call it once on data."
        )


def test_a_fit_that_goes_on_later_adds_to_the_trajectory():
    trajectory, model = WeightTrajectory(), model_of()
    fit(model, [trajectory], epochs=2)
    first = trajectory.weights[0]
    fit(model, [trajectory], epochs=4, initial_epoch=2)
    assert trajectory.epochs == [0, 1, 2, 3, 4]
    assert trajectory.weights[0] is first
    later = WeightTrajectory()
    with pytest.warns(UserWarning, match="weights with which this run began are not known"):
        fit(model, [later], epochs=6, initial_epoch=5)
    assert later.epochs == [5, 6]


def test_a_resumed_fit_begins_where_the_backup_was_restored(tmp_path):
    class CutOff(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    def backup():
        return keras.callbacks.BackupAndRestore(tmp_path)

    with pytest.raises(KeyboardInterrupt):
        fit(model_of(), [backup(), CutOff()], epochs=4)
    trajectory = WeightTrajectory()
    sharpness = Sharpness(X, Y, measures="weight_distance", every=1)
    with pytest.warns(UserWarning, match="weights with which this run began are not known"):
        history = fit(model_of(seed=3), [sharpness, trajectory, backup()], epochs=4)
    assert trajectory.epochs == [2, 3, 4]
    expected = [distance(w, trajectory.weights[0]) for w in trajectory.weights[1:]]
    assert history.history["sharpness/weight_distance"] == pytest.approx(expected, rel=1e-5)


def test_settings_of_keskar_beside_other_measures_are_refused():
    with pytest.raises(ValueError) as caught:
        Sharpness(X, Y, measures="sam", epsilon=1e-2)
    assert str(caught.value) == (
        "Expected `epsilon` only beside the name 'keskar'. Received: measures='sam'"
    )
