"""`Measure`, `Sharpness`, `ActivationMonitor` and `PenaltyMonitor`: when they measure and what."""

import math
import warnings

import keras
import numpy as np
import pytest
from keras import layers, ops
from problems import rows

import keras_regtools as rt
from keras_regtools.callbacks import ActivationMonitor, Measure, PenaltyMonitor, Sharpness

pytestmark = pytest.mark.backends
RNG = np.random.default_rng(0)
X = RNG.standard_normal((32, 4)).astype("float32")
Y = RNG.integers(0, 2, 32)


def model_of(*middle, rate=0.1):
    model = keras.Sequential([keras.Input((4,)), *middle, layers.Dense(2, "softmax", name="out")])
    model.compile(keras.optimizers.SGD(rate), "sparse_categorical_crossentropy")
    return model


def fit(model, callbacks, epochs=1, **arguments):
    x, y = arguments.pop("x", X), arguments.pop("y", Y)
    return model.fit(x, y, batch_size=8, epochs=epochs, callbacks=callbacks, verbose=0, **arguments)


def value(surface):
    return surface.value()


@pytest.mark.parametrize(
    ("every", "epochs"),
    [(1, [0, 1, 2, 3, 4, 5, 6]), (2, [0, 2, 4, 6]), (3, [0, 3, 6]), (5, [0, 5, 6])],
)
def test_measured_first_after_the_first_epoch_and_then_every_so_often(every, epochs):
    callback = Measure({"loss/measured": value}, X, Y, every=every)
    history = fit(model_of(), [callback], epochs=7)
    measured, values = callback.records.series("loss/measured")
    assert measured == epochs
    logged = history.history["loss/measured"]
    assert [logged[epoch] for epoch in epochs] == values
    assert len(set(logged)) == len(epochs)  # the last value is repeated in between
    assert callback.records.last("time/measure") > 0


def test_the_schedule_holds_when_a_fit_begins_later():
    callback = Measure({"m": value}, X, Y, every=3)
    fit(model_of(), [callback], epochs=9, initial_epoch=4)
    assert callback.records.series("m")[0] == [4, 6, 8]  # at once, then as in the whole run


def test_the_measure_sees_the_weights_after_the_epoch():
    model = model_of()
    history = fit(model, [Measure({"m": value}, X, Y)], epochs=2)
    assert history.history["m"][-1] == pytest.approx(rt.LossSurface(model, X, Y).value())


def test_one_traced_surface_serves_the_whole_fit():
    surfaces = []
    callback = Measure({"m": lambda surface: surfaces.append(surface) or 1.0}, X, Y)
    fit(model_of(), [callback], epochs=3)
    assert len({id(surface) for surface in surfaces}) == 1


def test_results_dicts_and_floats_become_log_keys():
    measures = {
        "plain": lambda surface: 1,
        "many": lambda surface: {"a": 2.0, "b": 3.0},
        "sharp": rt.measures.keskar_sharpness,
    }
    callback = Measure(measures, X, Y)
    history = fit(model_of(), [callback])
    ours = {k: v for k, v in history.history.items() if k != "loss"}
    assert set(ours) == {"plain", "many/a", "many/b", "sharp"}
    assert ours["plain"] == [1.0]
    assert ours["many/b"] == [3.0]
    assert {"sharp/evaluations", "sharp/epsilon", "sharp/loss"} <= set(callback.records.names())


@pytest.mark.parametrize(
    ("measure", "said"),
    [
        (lambda surface: math.nan, "{'m': nan}"),
        (lambda surface: math.inf, "{'m': inf}"),
        (lambda surface: 1 / 0, "ZeroDivisionError('division by zero')"),
    ],
)
def test_a_measure_that_fails_is_nan_with_one_warning_and_the_run_goes_on(measure, said):
    callback = Measure({"m": measure}, X, Y)
    with pytest.warns(UserWarning) as caught:
        history = fit(model_of(), [callback], epochs=3)
    assert [str(w.message) for w in caught if w.category is UserWarning] == [
        "The measure 'm' gave no finite number in epoch 1; it is logged as NaN and training goes "
        f"on. Received: {said}"
    ]
    assert np.isnan(history.history["m"]).tolist() == [True] * 3
    assert np.isnan(callback.records.series("m")[1]).tolist() == [True] * 3


def test_a_measure_that_fails_later_keeps_its_keys():
    results = iter([{"a": 1.0, "b": 2.0}, ValueError("no"), {"a": 3.0, "c": 4.0}])

    def measure(surface):
        result = next(results)
        if isinstance(result, Exception):
            raise result
        return result

    with pytest.warns(UserWarning, match="ValueError"):
        history = fit(model_of(), [Measure({"m": measure}, X, Y)], epochs=3)
    np.testing.assert_equal(history.history["m/a"], [1.0, math.nan, 3.0])
    np.testing.assert_equal(history.history["m/b"], [2.0, math.nan, math.nan])
    assert set(history.history) == {"loss", "m/a", "m/b"}


@pytest.mark.parametrize("broken", rows(["data", "rate"], "data"))
def test_a_diverged_run_goes_on_and_says_nan(broken, tmp_path):
    x = np.where(np.arange(32)[:, None] == 5, np.nan, X) if broken == "data" else 1e18 * X
    model = rt.instrument(model_of(layers.Dense(3), layers.BatchNormalization(), rate=1e30))
    callbacks = [
        Sharpness(x, Y),
        ActivationMonitor(),
        PenaltyMonitor(),
        rt.callbacks.Report(tmp_path),
    ]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        history = fit(model, callbacks, epochs=3, x=x)
    said = [str(w.message) for w in caught if w.category is UserWarning]
    for sentence in ("'sharpness/keskar' gave no finite number", "NaN or infinity flowed through"):
        assert len([text for text in said if sentence in text]) == 1, said
    assert len(history.history["loss"]) == 3
    assert np.isnan(history.history["sharpness/keskar"]).all()
    assert np.isnan(callbacks[0].records.last("sharpness/keskar"))


def test_sharpness_is_the_measure_on_the_fixed_subsample_with_batch_statistics():
    model = model_of(layers.Dense(3), layers.BatchNormalization())
    callback = Sharpness(X, Y, samples=20, batch_size=10, seed=5, iterations=3, epsilon=5e-4)
    history = fit(model, [callback])
    chosen = np.sort(np.random.default_rng(5).choice(32, 20, replace=False))
    surface = rt.LossSurface(model, X[chosen], Y[chosen], batch_size=10, mode="batch_statistics")
    expected = rt.measures.keskar_sharpness(surface, epsilon=5e-4, iterations=3, seed=5)
    assert history.history["sharpness/keskar"] == [expected.value]


def test_early_stopping_can_watch_a_measure():
    stop = keras.callbacks.EarlyStopping("m", mode="min", patience=1)
    rising = iter(range(100))
    history = fit(model_of(), [Measure({"m": lambda s: next(rising)}, X, Y), stop], epochs=9)
    assert len(history.history["m"]) == 2


BAD = [
    (
        ValueError,
        lambda: Measure({}, X, Y),
        "Expected `measures` to be a dict from names to callables, not empty. "
        "Received: measures={}",
    ),
    (
        TypeError,
        lambda: Measure({"m": 3}, X, Y),
        "Expected each measure to be a callable of a `LossSurface`. Received: 'm': 3",
    ),
    (
        ValueError,
        lambda: Measure({"m": value}, X, Y, every=0),
        "Argument `every` must be a positive integer. Received: every=0 (of type <class 'int'>)",
    ),
    (
        ValueError,
        lambda: Sharpness(X, Y[:3]),
        "Expected `x`, `y` and `sample_weight` to have the same number of samples. "
        "Received: x with 32 samples, y with 3 samples",
    ),
    (
        ValueError,
        lambda: Sharpness(X, Y, epsilon=-1.0),
        "Argument `epsilon` must be a positive finite number. "
        "Received: epsilon=-1.0 (of type <class 'float'>)",
    ),
    (
        ValueError,
        lambda: Sharpness(X, Y, samples=0),
        "Argument `samples` must be a positive integer. "
        "Received: samples=0 (of type <class 'int'>)",
    ),
    (
        ValueError,
        lambda: Sharpness(X, Y, mode="moving"),
        "Argument `mode` must be one of 'inference', 'batch_statistics', 'training'. "
        "Received: mode='moving'",
    ),
    (
        ValueError,
        lambda: fit(model_of(), [ActivationMonitor()]) and None,
        None,
    ),
]


@pytest.mark.parametrize(("error", "build", "message"), BAD)
def test_bad_input(error, build, message):
    with pytest.raises(error) as caught:
        build()
    if message is None:
        message = (
            f"Expected a model with instrumented layers. Received: the model "
            f"{str(caught.value).split(chr(39))[1]!r} without any. "
            "Call `keras_regtools.instrument(model)` first."
        )
    assert str(caught.value) == message


def test_activation_statistics_are_those_of_the_epoch():
    model = rt.instrument(
        model_of(layers.Dense(3, name="hidden"), layers.BatchNormalization(name="bn"))
    )
    monitor = ActivationMonitor(per_channel=True)
    fit(model, [monitor], epochs=1)  # leaves nothing behind for the next fit but the last reading
    last = model.get_layer("bn").statistics()["batch_mean"]
    np.testing.assert_array_equal(last, monitor.records.series("channels/bn/batch_mean")[1][0])
    model.optimizer.learning_rate = 0.0  # from here on the layer receives the same every epoch
    history = fit(model, [monitor], epochs=2)
    w, b = model.get_layer("hidden").get_weights()
    received = X @ w + b
    mean = monitor.records.series("channels/bn/batch_mean")[1]
    np.testing.assert_allclose(mean, [received.mean(0)] * 2, rtol=1e-4, atol=1e-6)
    assert monitor.records.last("activations/bn/mean") == pytest.approx(received.mean(), rel=1e-4)
    logged = history.history["activations/mean_distance"]
    recorded = monitor.records.series("activations/bn/mean_distance")[1]
    assert logged == pytest.approx(recorded)


def test_the_share_of_initial_statistics_is_recorded():
    model = rt.instrument(model_of(layers.Dense(3), layers.BatchNormalization(momentum=0.9)))
    monitor = ActivationMonitor()
    fit(model, [monitor], epochs=2)  # of 4 steps each
    shares = monitor.records.series("batch_norm/initial_share")[1]
    assert shares == pytest.approx([0.9**4, 0.9**8])


@pytest.mark.parametrize("validated", [True, False])
def test_penalties_and_data_loss_add_up_to_the_loss(validated):
    penalty = rt.regularizers.L2(0.1)
    model = model_of(layers.Dense(3, kernel_regularizer=penalty, name="hidden"), rate=0.0)
    monitor = PenaltyMonitor()
    data = {"validation_data": (X[:10], Y[:10])} if validated else {}
    history = fit(model, [monitor], **data)
    kernel = model.get_layer("hidden").get_weights()[0]
    expected = 0.1 * np.sum(kernel**2)
    names = [n for n in monitor.records.names() if n.startswith("penalty/")]
    assert [name.split("/")[-2:] for name in names] == [["hidden", "kernel"]]
    assert monitor.records.last(names[0]) == pytest.approx(expected, rel=1e-5)
    assert history.history["penalty"] == pytest.approx([expected], rel=1e-5)
    for name, part in {"data_loss": slice(None), "val_data_loss": slice(0, 10)}.items():
        if name == "data_loss" or validated:
            surface = rt.LossSurface(model, X[part], Y[part], penalties=False)
            assert monitor.records.last(name) == pytest.approx(surface.value(), rel=1e-5)
    assert ("val_data_loss" in monitor.records.names()) == validated


def test_the_penalties_stand_apart_from_the_data_loss_in_the_logs_on_request():
    model = model_of(layers.Dense(3, kernel_regularizer=rt.regularizers.L2(0.1)), rate=0.0)
    seen = []
    see = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(dict(logs)))
    callbacks = [PenaltyMonitor(logs=["penalty", "data_loss", "val_data_loss"]), see]
    fit(model, callbacks, validation_data=(X, Y), epochs=2)
    for logs in seen:
        assert logs["penalty"] + logs["data_loss"] == pytest.approx(logs["loss"], rel=1e-5)
        assert logs["penalty"] + logs["val_data_loss"] == pytest.approx(logs["val_loss"], rel=1e-5)
    assert len(model.history.history["data_loss"]) == 2


def test_without_penalties_the_data_loss_asked_for_is_the_loss():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    x = np.ones((8, 2), "float32")
    asked = PenaltyMonitor(logs="all")
    history = model.fit(
        x, x[:, :1], epochs=2, validation_data=(x, x[:, :1]), verbose=0, callbacks=[asked]
    ).history
    assert history["data_loss"] == history["loss"]
    assert history["val_data_loss"] == history["val_loss"]
    assert history["penalty"] == [0.0, 0.0]


def test_time_is_counted():
    def slow(surface):
        import time

        time.sleep(0.05)
        return 0.0

    callback = Measure({"m": slow}, X, Y, name="slow")
    fit(model_of(), [callback], epochs=2)
    epochs, seconds = callback.records.series("time/slow")
    assert epochs == [0, 1]
    assert 0.05 <= seconds[0] < seconds[1]


def test_the_weights_of_samples_count():
    weights = np.linspace(0, 1, 32).astype("float32")
    model = model_of()
    history = fit(model, [Measure({"m": value}, X, Y, weights)])
    expected = rt.LossSurface(model, X, Y, weights).value()
    assert history.history["m"] == [expected]
    assert expected != pytest.approx(rt.LossSurface(model, X, Y).value(), rel=1e-3)


def test_measuring_a_model_that_is_built_by_the_fit():
    model = keras.Sequential([layers.Dense(2, "softmax")])
    model.compile("sgd", "sparse_categorical_crossentropy")
    history = fit(model, [Measure({"m": value}, X, Y)])
    assert history.history["m"] == [
        pytest.approx(float(ops.convert_to_numpy(rt.LossSurface(model, X, Y).value())))
    ]


def test_inner_models_are_read_in_order_and_under_names_of_their_own():
    def part(name, units):
        inputs = keras.Input((4,))
        return keras.Model(inputs, layers.Dense(units, "relu", name="same")(inputs), name=name)

    model = keras.Sequential(
        [keras.Input((4,)), part("a", 4), part("b", 4), layers.Dense(2, "softmax", name="end")]
    )
    model = rt.instrument(model)
    model.compile("sgd", "sparse_categorical_crossentropy")
    monitor = ActivationMonitor()
    fit(model, [monitor])
    recorded = [n.split("/")[1] for n in monitor.records.names() if n.endswith("/std")]
    assert recorded == ["same_statistics", "same_statistics_2", "end_statistics"]


def test_a_model_compiled_or_frozen_anew_is_measured_as_it_is_now():
    model = model_of(layers.Dense(3, "tanh", name="hidden"))
    sizes = Measure({"size": lambda s: rt.vectors.size(s.params), "loss/now": value}, X, Y)
    model.get_layer("hidden").trainable = False
    model.compile("sgd", "sparse_categorical_crossentropy")
    first = fit(model, [sizes])
    assert first.history["size"] == [8]
    model.get_layer("hidden").trainable = True
    targets = np.eye(2, dtype="float32")[Y]
    model.compile(keras.optimizers.SGD(0.1), "mse")
    sizes.data = rt.callbacks.Measure({"a": value}, X, targets).data
    second = fit(model, [sizes], y=targets)
    assert second.history["size"] == [23]
    assert second.history["loss/now"][-1] == pytest.approx(
        model.evaluate(X, targets, verbose=0), rel=1e-5
    )
