"""What a trial of a search does, against plain Keras; and what searches do on bad days."""

import math
import random

import keras
import keras_tuner
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops
from problems import rows

from keras_regtools.tuner import RegularizationHyperModel, optional, table
from keras_regtools.tuner.racing import goes_on, half_width, pooled
from keras_regtools.tuner.soft_targets import soft_loss, soft_targets
from keras_regtools.tuner.trial_rate import rate_at

# KerasTuner asks for the name of its thread in the way of Python 2.
pytestmark = pytest.mark.filterwarnings(r"ignore::DeprecationWarning:keras_tuner\.")

RNG = np.random.default_rng(0)
Y = RNG.integers(0, 3, 60)
X = (RNG.normal(size=(60, 4)) + Y[:, None]).astype("float32")
TRAINING, VALIDATION = (X[:40], Y[:40]), (X[40:], Y[40:])
PLAIN = {"batch_norm": False, "dense": {}, "warmup_epochs": 0, "batch_sizes": 8}
FAST = {**PLAIN, "results": ["val_loss"]}


def network():
    return keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(6, activation="relu"),
            layers.Dense(3, activation="softmax"),
        ]
    )


def compiled(metrics=("accuracy",), loss="sparse_categorical_crossentropy", optimizer=None):
    model = network()
    model.compile(optimizer or keras.optimizers.Adam(0.01), loss, metrics=list(metrics))
    return model


def one_trial(model_fn, settings, values=(), data=TRAINING, **kwargs):
    hypermodel = RegularizationHyperModel(model_fn, **{**PLAIN, **settings})
    hp = keras_tuner.HyperParameters()
    hypermodel.build(hp)
    hp.values.update(values)
    keras.utils.set_random_seed(3)
    model = hypermodel.build(hp)
    kwargs = {"validation_data": VALIDATION, "epochs": 2, "verbose": 0, **kwargs}
    return hypermodel.fit(hp, model, *data, **kwargs), model


@pytest.mark.backends
@pytest.mark.parametrize("earlier", [False, True])
def test_a_trial_is_what_plain_keras_does_to_the_bit(earlier):
    """Also in a model that an earlier trial has trained and compiled.

    On JAX and PyTorch the first fit of a model draws one order of the samples more than later ones.
    """
    order = {"shuffle": keras.backend.backend() == "tensorflow", "verbose": 0}
    hypermodel = RegularizationHyperModel(compiled, **{**PLAIN, "dense": {"l2": (0.0, 1.0)}})
    hp = keras_tuner.HyperParameters()
    hypermodel.build(hp)
    if earlier:
        hp.values.update({"learning_rate": 0.05, "dense/l2": 0.9})
        other = hypermodel.build(hp)
        hypermodel.fit(hp, other, *TRAINING, validation_data=VALIDATION, epochs=1, verbose=0)
    hp.values.update({"learning_rate": 0.02, "dense/l2": 0.125})
    keras.utils.set_random_seed(5)
    model = hypermodel.build(hp)
    found = hypermodel.fit(hp, model, *TRAINING, validation_data=VALIDATION, epochs=2, **order)

    keras.utils.set_random_seed(5)
    plain = hypermodel.build(hp)  # the same draws
    plain.optimizer.learning_rate = 0.02 * 8 / 32
    history = plain.fit(
        *TRAINING, batch_size=8, validation_data=VALIDATION, epochs=2, **order
    ).history
    penalty = 0.125 * sum(float(np.sum(w**2.0)) for w in plain.get_weights() if w.ndim == 2)
    assert found["val_loss"] == pytest.approx(history["val_loss"][1] - penalty, abs=1e-5)
    for one, other in zip(model.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_trial_of_a_new_kind_moves_no_generator_of_the_program():
    hypermodel = RegularizationHyperModel(compiled, **FAST)
    hp = keras_tuner.HyperParameters()
    model = hypermodel.build(hp)
    before = random.getstate(), repr(np.random.get_state())
    hypermodel.fit(hp, model, *TRAINING, validation_data=VALIDATION, epochs=1, verbose=0)
    assert (random.getstate(), repr(np.random.get_state())) == before


def test_a_later_trial_leaves_the_model_of_an_earlier_one_alone():
    hypermodel = RegularizationHyperModel(compiled, **{**FAST, "dense": {"l2": (0.0, 1.0)}})
    hp = keras_tuner.HyperParameters()
    models, weights = [], []
    for strength in (0.125, 0.9):
        hypermodel.build(hp)
        hp.values["dense/l2"] = strength
        model = hypermodel.build(hp)
        hypermodel.fit(hp, model, *TRAINING, validation_data=VALIDATION, epochs=1, verbose=0)
        models.append(model)
        weights.append(model.get_weights())
    for one, other in zip(models[0].get_weights(), weights[0], strict=True):
        np.testing.assert_array_equal(one, other)
    assert models[0].layers[0].kernel_regularizer.l2 == 0.125


def test_moving_statistics_of_a_trial_are_those_of_the_training_data():
    settings = {**FAST, "batch_norm": True, "batch_sizes": 40, "warmup_epochs": 0}
    found, model = one_trial(compiled, settings, epochs=1)
    dense, normal = model.layers[:2]
    before = TRAINING[0] @ dense.get_weights()[0] + dense.get_weights()[1]
    np.testing.assert_allclose(normal.moving_mean, before.mean(axis=0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(normal.moving_variance, before.var(axis=0), rtol=1e-4)
    _, lagging = one_trial(compiled, {**settings, "precise_batch_norm": False}, epochs=1)
    assert np.abs(lagging.layers[1].moving_mean).max() < 0.1 * np.abs(before.mean(axis=0)).max()


def test_a_network_may_know_what_to_do_with_nan():
    x = np.where(np.arange(40) == 3, np.nan, TRAINING[0].T).T

    def model_fn():
        inputs = keras.Input((4,))
        known = layers.Lambda(lambda t: ops.where(ops.isnan(t), 0.0, t))(inputs)
        return keras.Model(inputs, layers.Dense(3, "softmax")(known))

    found, _ = one_trial(model_fn, FAST, data=(x, TRAINING[1]))
    assert math.isfinite(found["val_loss"])


def test_trials_of_one_kind_share_a_compiled_step():
    traces = []

    def loss(y, p):
        traces.append(1)  # in Python, only while a graph is made
        return keras.losses.sparse_categorical_crossentropy(y, p)

    settings = {
        "dense": {"l2": optional((1e-4, 1.0)), "dropout": (0.1, 0.5)},
        "batch_sizes": [8, 16],
        "decay": (0.01, 1.0),
        "results": ["val_loss", "loss", "sharpness"],
    }
    hypermodel = RegularizationHyperModel(lambda: compiled(loss=loss), **{**PLAIN, **settings})
    hp = keras_tuner.HyperParameters()
    counts = []
    for i, size in enumerate([8, 16, 8, 16, 16, 8]):
        hypermodel.build(hp)
        chosen = {"dense/dropout": 0.1 + 0.05 * i, "batch_size": size, "decay": 0.1 + 0.1 * i}
        hp.values.update({"dense/l2/on": i % 2 == 0, "learning_rate": 0.01 * (i + 1), **chosen})
        model = hypermodel.build(hp)
        hypermodel.fit(hp, model, *TRAINING, validation_data=VALIDATION, epochs=2, verbose=0)
        counts.append(len(traces))
    assert counts[0] > 0
    assert counts[2:] == counts[1:2] * 4  # the second has the other batch size


def test_the_rate_is_that_of_keras_own_cosine_decay_with_warmup():
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 90, warmup_target=0.4, warmup_steps=10)
    found = [rate_at(t, 0.1, 4, 10, 100, "cosine") for t in range(0, 101, 5)]
    expected = [float(schedule(t)) for t in range(0, 101, 5)]
    np.testing.assert_allclose(found, expected, atol=1e-7)


@pytest.mark.backends
def test_the_rate_of_each_step_reaches_the_optimizer():
    class Rates(keras.callbacks.Callback):
        seen = []

        def on_train_batch_end(self, batch, logs=None):
            self.seen.append(float(self.model.optimizer.learning_rate))

    settings = {"warmup_epochs": 1, "decay": "cosine", "base_batch_size": 4}
    one_trial(
        lambda: compiled(optimizer=keras.optimizers.SGD(0.01)), settings, {"learning_rate": 0.05},
        callbacks=[Rates()], epochs=3,
    )  # fmt: skip
    expected = [rate_at(t, 0.05, 2, 5, 15, "cosine") for t in range(15)]
    np.testing.assert_allclose(Rates.seen, expected, rtol=1e-5)


def test_samples_and_batches_of_a_dataset_are_cut_anew():
    samples = tf.data.Dataset.from_tensor_slices(TRAINING)
    kwargs = {"shuffle": False, "validation_data": VALIDATION}
    expected, plain = one_trial(compiled, {}, **kwargs)
    for given in (samples, samples.batch(7)):
        validation = tf.data.Dataset.from_tensor_slices(VALIDATION)
        kwargs = {"data": (given,), "validation_data": validation}
        found, model = one_trial(compiled, {}, **kwargs)
        assert found["val_loss"] == pytest.approx(expected["val_loss"], rel=1e-5)
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        np.testing.assert_allclose(model.get_weights()[0], plain.get_weights()[0], rtol=1e-4)


@pytest.mark.slow
def test_a_share_of_the_arrays_can_be_the_validation_data():
    expected, _ = one_trial(compiled, {}, data=TRAINING)
    found, _ = one_trial(compiled, {}, data=(X, Y), validation_data=None, validation_split=1 / 3)
    assert found["val_loss"] == expected["val_loss"]


ENDLESS = tf.data.Dataset.from_tensor_slices(TRAINING).repeat()


@pytest.mark.parametrize(
    ("data", "kwargs", "message"),
    [
        ((ENDLESS,), {}, "Received: a dataset without an end. Take a part of it."),
        (
            (tf.data.Dataset.from_tensor_slices(TRAINING),),
            {"validation_data": None, "validation_split": 0.2},
            "Expected `validation_data` beside a dataset, whose samples are not known before they "
            "are read. Received: validation_split=0.2",
        ),
        ((TRAINING[0], TRAINING[1][:30]), {}, "the same number of samples"),
        (TRAINING, {"validation_data": (1, 2, 3, 4)}, "one input"),
        (
            (np.where(np.arange(40) == 3, np.nan, TRAINING[0].T).T, TRAINING[1]),
            {},
            "Received: training x with NaN or infinite numbers in 1 of 40, and a loss or",
        ),
        ((TRAINING[0], TRAINING[1] + 1), {}, "Received: training labels from 1 to 3"),
        ((TRAINING[0], np.eye(3)[TRAINING[1]]), {}, "Pass `loss='categorical_crossentropy'`"),
    ],
)
def test_other_data_are_refused(data, kwargs, message):
    if message == "one input":
        kwargs, message = {"validation_data": (*VALIDATION, None, None)}, "Received: 4 parts"
    with pytest.raises(keras_tuner.errors.FatalValueError) as caught:
        one_trial(compiled, {}, data=data, **kwargs)
    assert message in str(caught.value)


def random_search(tmp_path, hypermodel, objective="val_loss", trials=3, **kwargs):
    return keras_tuner.RandomSearch(
        hypermodel, objective, max_trials=trials, seed=1, directory=tmp_path, **kwargs
    )


def search(tuner, **kwargs):
    kwargs = {"validation_data": VALIDATION, "epochs": 2, "verbose": 0, **kwargs}
    tuner.search(*TRAINING, **kwargs)


def test_a_search_tells_of_trials_and_not_of_epochs(tmp_path, capsys):
    hypermodel = RegularizationHyperModel(compiled, **FAST)
    search(random_search(tmp_path, hypermodel, trials=2), verbose=1)
    printed = capsys.readouterr().out
    assert printed.count("Best val_loss So Far: ") == 2
    assert "Epoch" not in printed
    assert len(printed.splitlines()) < 60


@pytest.mark.slow
def test_a_metric_of_the_users_can_be_the_objective(tmp_path):
    y = np.eye(3)[Y]

    def model_fn():
        return compiled([keras.metrics.AUC(name="auc")], "categorical_crossentropy")

    tuner = random_search(
        tmp_path,
        RegularizationHyperModel(model_fn, **FAST),
        keras_tuner.Objective("val_auc", "max"),
    )
    tuner.search(X[:40], y[:40], validation_data=(X[40:], y[40:]), epochs=2, verbose=0)
    frame = table(tuner)
    assert frame["val_auc"].is_monotonic_decreasing
    assert (frame.attrs["objective"], frame.attrs["direction"]) == ("val_auc", "max")
    model = tuner.get_best_models()[0]
    found = model.evaluate(X[40:], y[40:], verbose=0, return_dict=True)["auc"]
    assert found == pytest.approx(frame["val_auc"][0], abs=1e-6)


def test_an_objective_that_nobody_reports_ends_the_search_before_a_step(tmp_path):
    tuner = random_search(
        tmp_path,
        RegularizationHyperModel(compiled, batch_norm=False),
        keras_tuner.Objective("val_f1", "max"),
    )
    with pytest.raises(ValueError) as caught:
        search(tuner)
    assert "Expected an objective out of ['epochs', 'generalization_gap'," in str(caught.value)
    assert "'val_accuracy', 'val_loss']. Received: val_f1" in str(caught.value)


def test_a_trial_that_diverges_is_failed_with_the_reason_and_the_search_goes_on(tmp_path):
    def model_fn(hp):
        model = network()
        factor = hp.Choice("factor", [1.0, float("inf")])
        loss = keras.losses.sparse_categorical_crossentropy
        model.compile("sgd", lambda y, p: factor * loss(y, p))
        return model

    settings = {**FAST, "batch_sizes": [8, 16], "learning_rates": 0.01}
    hypermodel = RegularizationHyperModel(model_fn, **settings)
    tuner = keras_tuner.GridSearch(hypermodel, "val_loss", directory=tmp_path)
    search(tuner)
    frame = table(tuner, failed=True)
    bad = frame[frame["factor"] == math.inf]
    assert (len(frame), len(bad)) == (4, 2)
    assert set(bad["status"]) == {"failed"}
    assert all(r.startswith("Diverged: the training loss was ") for r in bad["reason"])
    assert "in epoch 1. factor=inf" in bad["reason"].iloc[0]
    assert len(table(tuner)) == 2


@pytest.mark.slow
def test_hyperbands_budgets_are_kept_and_told(tmp_path):
    epochs = []

    class Count(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            epochs.append(epoch)

        def __deepcopy__(self, memo):
            return self

    hypermodel = RegularizationHyperModel(compiled, **FAST)
    tuner = keras_tuner.Hyperband(
        hypermodel, "val_loss", max_epochs=4, factor=2, directory=tmp_path
    )
    search(tuner, callbacks=[Count()])
    spent = [
        t.hyperparameters.values["tuner/epochs"] - t.hyperparameters.values["tuner/initial_epoch"]
        for t in tuner.oracle.trials.values()
    ]
    assert len(epochs) == sum(spent)
    frame = table(tuner)
    assert not [name for name in frame.columns if name.startswith("tuner/")]
    assert frame["epochs"].is_monotonic_decreasing
    assert set(frame["epochs"]) == {1.0, 2.0, 4.0}
    first = frame[frame["epochs"] == 4]
    assert first["val_loss"].is_monotonic_increasing


@pytest.mark.slow
def test_a_search_that_was_cut_off_goes_on(tmp_path):
    class CutOff(keras.callbacks.Callback):
        left = [3]

        def on_train_begin(self, logs=None):
            self.left[0] -= 1
            if self.left[0] == 0:
                raise KeyboardInterrupt

    hypermodel = RegularizationHyperModel(compiled, **FAST)
    tuner = random_search(tmp_path, hypermodel, trials=4)
    with pytest.raises(KeyboardInterrupt):
        search(tuner, callbacks=[CutOff()])
    again = random_search(tmp_path, RegularizationHyperModel(compiled, **FAST), trials=4)
    search(again)
    frame = table(again)
    assert len(frame) == 4
    done = {t.trial_id: t.score for t in tuner.oracle.trials.values() if t.score is not None}
    assert len(done) == 2
    assert all(frame.set_index("trial")["val_loss"][k] == v for k, v in done.items())


def test_a_directory_with_other_hyperparameters_is_refused(tmp_path):
    first = {"results": ["val_loss"], "batch_norm": False, "dense": {"dropout": (0, 0.5)}}
    search(random_search(tmp_path, RegularizationHyperModel(compiled, **first), trials=1))
    other = {**first, "dense": {"l2": (1e-3, 1e-2)}}
    with pytest.raises(ValueError) as caught:
        search(random_search(tmp_path, RegularizationHyperModel(compiled, **other), trials=2))
    assert "that has ['dense/dropout'] too. Pass `overwrite=True`" in str(caught.value)
    other = {**first, "learning_rates": (1e-3, 2e-3)}
    with pytest.raises(ValueError) as caught:
        search(random_search(tmp_path, RegularizationHyperModel(compiled, **other), trials=2))
    assert "with learning_rates=None there and [0.001, 0.002] here" in str(caught.value)


@pytest.mark.slow
def test_conditions_of_the_users_go_along_and_resume(tmp_path):
    def model_fn(hp):
        units = 4
        if hp.Choice("kind", ["narrow", "wide"]) == "wide":
            with hp.conditional_scope("kind", ["wide"]):
                units = hp.Int("units", 8, 16)
        return keras.Sequential([keras.Input((4,)), layers.Dense(units), layers.Dense(3)])

    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    settings = {**FAST, "loss": loss}
    for trials in (3, 6):
        tuner = random_search(tmp_path, RegularizationHyperModel(model_fn, **settings), "val_loss",
                              trials)  # fmt: skip
        search(tuner, epochs=1)
    assert len(table(tuner)) == 6


@pytest.mark.slow
def test_a_hypermodel_of_the_users_is_searched_along(tmp_path):
    class Mine(keras_tuner.HyperModel):
        def build(self, hp):
            units = hp.Int("units", 2, 6)
            model = keras.Sequential([keras.Input((4,)), layers.Dense(units), layers.Dense(3)])
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            with hp.name_scope("own"):
                rate = hp.Float("rate", 0.01, 0.02)
            model.compile(keras.optimizers.SGD(hp.Choice("learning_rate", [0.1])), loss)
            assert rate > 0
            return model

    tuner = random_search(tmp_path, RegularizationHyperModel(Mine(), **FAST))
    search(tuner)
    frame = table(tuner)
    assert {"units", "own/rate", "learning_rate"} <= set(frame.columns)
    assert set(frame["learning_rate"]) == {0.1}
    units = tuner.get_best_models()[0].layers[0].units
    assert units == frame["units"][0]


@pytest.mark.by_hand  # 80 s
def test_keras_tuners_own_applications_go_along(tmp_path):
    images = np.random.default_rng(0).uniform(size=(32, 32, 32, 3)).astype("float32")
    y = np.eye(3)[Y[:32]]
    application = keras_tuner.applications.HyperResNet(input_shape=(32, 32, 3), classes=3)
    hp = keras_tuner.HyperParameters()
    hp.Fixed("conv3_depth", 4)
    hp.Fixed("conv4_depth", 6)
    settings = {**FAST, "conv": {"l2": (1e-6, 1e-3)}, "dense": {"dropout": (0.0, 0.5)}}
    hypermodel = RegularizationHyperModel(application, **settings)
    tuner = random_search(tmp_path, hypermodel, trials=1, hyperparameters=hp)
    tuner.search(images, y, validation_data=(images, y), epochs=1, verbose=0)
    assert {"version", "pooling", "conv/l2", "dense/dropout"} <= set(table(tuner).columns)


def test_results_are_chosen_by_name_or_are_the_users_own():
    found, model = one_trial(compiled, {"results": ["loss", "parameters", "weight_norm"]})
    costs = {"epochs", "seconds", "measuring_seconds"}
    assert set(found) == {"val_loss", "loss", "parameters", "weight_norm", "val_accuracy", *costs}
    assert found["parameters"] == model.count_params() == 4 * 6 + 6 + 6 * 3 + 3
    norm = math.sqrt(sum(np.sum(w**2.0) for w in model.get_weights()))
    assert found["weight_norm"] == pytest.approx(norm, rel=1e-5)
    found, _ = one_trial(compiled, {"results": {"twice": lambda surface: 2 * surface.value()}})
    assert found["twice"] == pytest.approx(2 * found["loss"])


def test_smoothed_labels_are_trained_and_not_measured():
    settings = {"label_smoothing": (0.0, 0.5)}
    found, model = one_trial(compiled, settings, {"label_smoothing": 0.3})
    assert model.loss.label_smoothing == 0.3
    predicted = model.predict(VALIDATION[0], verbose=0)
    expected = -np.mean(np.log(predicted[np.arange(20), VALIDATION[1]]))
    assert found["val_loss"] == pytest.approx(expected, rel=1e-5)
    accuracy = np.mean(predicted.argmax(1) == VALIDATION[1])
    assert found["val_accuracy"] == pytest.approx(accuracy)


def test_soft_targets_are_rows_with_a_one():
    expected = [[0, 1, 0], [0, 0, 1]]
    for labels in ([1, 2], [[1], [2]], expected):
        np.testing.assert_array_equal(soft_targets(np.array(labels), 3), expected)
    probabilities = ops.convert_to_tensor([[0.2, 0.3, 0.5]])
    loss = soft_loss(keras.losses.SparseCategoricalCrossentropy(from_logits=False), 0.3)
    smooth = np.array([0.1, 0.1, 0.8])
    found = float(ops.convert_to_numpy(loss(np.array([[0, 0, 1]]), probabilities)))
    assert found == pytest.approx(-np.sum(smooth * np.log([0.2, 0.3, 0.5])), rel=1e-5)
    with pytest.raises(ValueError, match=r"categorical cross-entropy.*Received: 'mse'"):
        soft_loss("mse")


@pytest.mark.backends
@pytest.mark.filterwarnings("ignore:.*Explicitly requested dtype")  # of Keras' layers on JAX
@pytest.mark.parametrize("name", rows(["mixup", "cutmix", "rand_augment"], "mixup"))
def test_images_are_mixed_and_distorted(name):
    def model_fn():
        model = keras.Sequential(
            [
                keras.Input((8, 8, 3)),
                layers.Conv2D(2, 3),
                layers.GlobalAveragePooling2D(),
                layers.Dense(3),
            ]
        )
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.1), loss, metrics=["accuracy"])
        return model

    images = np.random.default_rng(0).uniform(size=(40, 8, 8, 3)).astype("float32")
    data, validation = (images, TRAINING[1]), (images[:20], VALIDATION[1])
    settings = {"conv": {}, name: (0.1, 0.5), "results": ["val_loss"]}
    found, model = one_trial(model_fn, settings, data=data, validation_data=validation)
    logits = model.predict(images[:20], verbose=0).astype(float)
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(20), VALIDATION[1]]
    assert found["val_loss"] == pytest.approx(losses.mean(), rel=1e-4)
    plain, other = one_trial(
        model_fn, {**settings, name: None}, data=data, validation_data=validation
    )
    assert not np.allclose(model.get_weights()[0], other.get_weights()[0])


def test_mixing_needs_images_and_one_output_for_each_class():
    weighted = (*TRAINING,)
    with pytest.raises(ValueError, match="one array of images without sample weights"):
        one_trial(compiled, {"mixup": 0.2}, data=weighted, sample_weight=np.ones(40))
    with pytest.raises(ValueError, match="categorical cross-entropy"):
        one_trial(lambda: compiled(loss="mse"), {"mixup": 0.2})


@pytest.mark.slow
def test_sharpness_aware_minimization_is_an_ingredient():
    plain, first = one_trial(compiled, {})
    found, second = one_trial(compiled, {"sam": 0.5})
    assert not np.allclose(first.get_weights()[0], second.get_weights()[0])


def test_the_pooled_deviation_and_its_interval_are_those_of_scipy():
    from scipy import stats

    groups = [np.array([1.0, 2.0, 4.0]), np.array([3.0, 3.5])]
    deviation, freedom = pooled([(len(g), float(np.std(g, ddof=1))) for g in groups])
    within = sum(((g - g.mean()) ** 2).sum() for g in groups)
    assert (deviation, freedom) == (pytest.approx(math.sqrt(within / 3)), 3)
    low, high = stats.ttest_1samp(groups[0], 0.0).confidence_interval()
    assert half_width(3, float(np.std(groups[0], ddof=1)), 2) == pytest.approx((high - low) / 2)


@pytest.mark.parametrize(
    ("values", "others", "direction", "expected"),
    [
        ([1.0], [], "min", True),  # nothing is known
        ([1.0, 1.1], [], "min", True),  # it is the best itself
        ([3.0], [(1.0, 3, 0.1)], "min", False),
        ([1.05], [(1.0, 3, 0.1)], "min", True),
        ([0.5], [(1.0, 3, 0.1)], "min", True),
        ([3.0], [(1.0, 3, 0.1)], "max", True),
        ([0.1], [(1.0, 3, 0.1), (3.0, 3, 0.1)], "max", False),
    ],
)
def test_a_trial_gets_another_seed_while_it_may_be_the_best(values, others, direction, expected):
    assert goes_on(values, others, direction) is expected


def test_a_raced_trial_is_the_mean_of_its_runs(tmp_path):
    hypermodel = RegularizationHyperModel(
        compiled, **{**PLAIN, "dense": {"dropout": 0.25}, "seeds": [7, 8], "results": ["val_loss"]}
    )
    tuner = random_search(tmp_path, hypermodel, trials=1)
    search(tuner)
    frame = table(tuner)
    hp = tuner.get_best_hyperparameters()[0]
    losses, models = [], []
    for seed in (7, 8):
        keras.utils.set_random_seed(seed)
        model = hypermodel.build(hp)
        model.optimizer.learning_rate = hp.get("learning_rate") / 4
        best = keras.callbacks.EarlyStopping(patience=9, restore_best_weights=True)
        history = model.fit(
            *TRAINING, batch_size=8, validation_data=VALIDATION, epochs=2, verbose=0,
            callbacks=[best],
        )  # fmt: skip
        losses.append(min(history.history["val_loss"]))
        models.append(model)
    assert frame["seeds"][0] == 2
    assert frame["val_loss"][0] == pytest.approx(np.mean(losses), rel=1e-5)
    assert frame["val_loss/sd"][0] == pytest.approx(np.std(losses, ddof=1), rel=1e-3)
    kept = tuner.get_best_models()[0]
    best = models[int(np.argmin(losses))]
    np.testing.assert_allclose(kept.get_weights()[0], best.get_weights()[0], rtol=1e-6)


@pytest.mark.slow
def test_a_trial_that_is_clearly_worse_gets_no_second_seed(tmp_path):
    def model_fn():  # all seeds begin at one place
        zeros = layers.Dense(3, "softmax", kernel_initializer="zeros")
        model = keras.Sequential([keras.Input((4,)), zeros])
        model.compile("sgd", "sparse_categorical_crossentropy")
        return model

    settings = {**FAST, "seeds": 3, "learning_rates": [0.4, 1e-7], "batch_sizes": 16}
    hypermodel = RegularizationHyperModel(model_fn, **settings)
    tuner = keras_tuner.GridSearch(hypermodel, "val_loss", directory=tmp_path)
    search(tuner, epochs=5)
    runs = table(tuner).set_index("learning_rate")["seeds"]
    assert runs[0.4] == 3
    assert runs[1e-7] < 3


@pytest.mark.slow
def test_the_best_of_several_executions_is_kept(tmp_path):
    hypermodel = RegularizationHyperModel(compiled, **FAST)
    tuner = random_search(tmp_path, hypermodel, trials=1, executions_per_trial=3)
    losses, run = [], hypermodel.fit
    hypermodel.fit = lambda *args, **kwargs: losses.append(run(*args, **kwargs)) or losses[-1]
    search(tuner)
    assert len({found["val_loss"] for found in losses}) == 3
    mean = np.mean([found["val_loss"] for found in losses])
    assert table(tuner)["val_loss"][0] == pytest.approx(mean)
    model = tuner.get_best_models()[0]
    found = model.evaluate(*VALIDATION, verbose=0, return_dict=True)["loss"]
    assert found == pytest.approx(min(found["val_loss"] for found in losses), rel=1e-5)
