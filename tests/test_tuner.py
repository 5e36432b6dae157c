"""The hypermodel: what is searched, what a trial does, and what it tells."""

import math

import keras
import keras_tuner
import numpy as np
import pytest
from keras import layers, ops
from problems import rows

from keras_regtools import LossSurface, measures
from keras_regtools.regularizers import L2
from keras_regtools.tuner import RegularizationHyperModel, table

# KerasTuner asks for the name of its thread in the way of Python 2.
pytestmark = pytest.mark.filterwarnings(r"ignore::DeprecationWarning:keras_tuner\.")

CLASSES = 3


def data(samples=40, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, CLASSES, samples)
    return rng.normal(size=(samples, 4)) + y[:, None], y


TRAINING, VALIDATION = data(), data(20, seed=1)


def dense_only():
    return keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(5, activation="relu", name="hidden"),
            layers.Dense(CLASSES, activation="softmax", name="output"),
        ],
        name="net",
    )


def conv_only():
    return keras.Sequential(
        [
            keras.Input((4, 4, 1)),
            layers.Conv2D(2, 3, activation="relu"),
            layers.Conv2D(2, 2),
            layers.GlobalAveragePooling2D(),
        ]
    )


def nested():
    trunk = keras.Sequential([keras.Input((4, 4, 1)), layers.Conv2D(2, 3), layers.Flatten()])
    return keras.Sequential([keras.Input((4, 4, 1)), trunk, layers.Dense(CLASSES)])


def no_groups():
    return keras.Sequential([keras.Input((4,)), layers.PReLU()])


CONV, DENSE = {"conv_l2", "conv_dropout"}, {"dense_l2", "dense_dropout"}
ALWAYS = {"batch_size", "learning_rate"}


@pytest.mark.parametrize(
    ("model_fn", "settings", "expected"),
    [
        (dense_only, {}, {*DENSE, "batch_norm"}),
        (dense_only, {"batch_norm": True}, DENSE),
        (conv_only, {}, {*CONV, "batch_norm"}),
        (nested, {}, {*CONV, *DENSE, "batch_norm"}),
        (nested, {"batch_norm": False}, {*CONV, *DENSE}),
        (no_groups, {"batch_norm": False}, set()),
    ],
)
def test_the_groups_that_the_model_has_are_searched(model_fn, settings, expected):
    hp = keras_tuner.HyperParameters()
    RegularizationHyperModel(model_fn, **settings).build(hp)
    assert set(hp.values) == {*expected, *ALWAYS}


def hyperparameters(hypermodel, **values):
    """The hyperparameters of a hypermodel, some of them set."""
    hp = keras_tuner.HyperParameters()
    hypermodel.build(hp)
    hp.values.update(values)
    return hp


def build(model_fn, settings=None, **values):
    hypermodel = RegularizationHyperModel(model_fn, **(settings or {}))
    return hypermodel.build(hyperparameters(hypermodel, **values))


def test_the_model_that_is_built_has_what_was_chosen():
    model = build(
        dense_only, dense_l2=0.02, dense_dropout=0.3, batch_norm=True, learning_rate=0.004
    )
    hidden, batch_norm, activation, dropout, output = model.layers
    assert isinstance(batch_norm, layers.BatchNormalization)
    assert isinstance(activation, layers.Activation)
    assert dropout.rate == 0.3
    assert type(hidden.kernel_regularizer) is type(output.kernel_regularizer) is L2
    assert (hidden.kernel_regularizer.l2, output.kernel_regularizer.l2) == (0.02, 0.02)
    assert float(model.optimizer.learning_rate) == pytest.approx(0.004)


def test_convolutional_and_dense_layers_get_their_own_strength():
    model = build(nested, conv_l2=0.01, dense_l2=0.02)
    trunk, output = model.layers
    assert (trunk.layers[0].kernel_regularizer.l2, output.kernel_regularizer.l2) == (0.01, 0.02)


def test_two_models_share_no_penalty():
    hypermodel = RegularizationHyperModel(dense_only)
    hp = hyperparameters(hypermodel)
    first, second = (hypermodel.build(hp).layers[0].kernel_regularizer for _ in range(2))
    assert first is not second


@pytest.mark.parametrize(
    ("name", "kind", "momentum"),
    [("sgd", keras.optimizers.SGD, 0.9), ("adam", keras.optimizers.Adam, None)],
)
def test_the_optimizer_can_be_chosen(name, kind, momentum):
    optimizer = build(dense_only, {"optimizer": name}).optimizer
    assert isinstance(optimizer, kind)
    assert optimizer.get_config().get("momentum") == momentum


def squared(y_true, y_pred):
    return ops.mean(ops.square(y_true - y_pred), axis=-1)


@pytest.mark.parametrize(
    "loss", rows(["kld", keras.losses.MeanSquaredError(name="mine"), squared], squared)
)
def test_a_model_that_comes_compiled_keeps_its_loss_and_metrics(loss):
    def model_fn():
        model = dense_only()
        model.compile("rmsprop", loss, metrics=["mae"])
        return model

    expected, model = model_fn(), build(model_fn, {"batch_norm": False})
    y = np.eye(CLASSES)[VALIDATION[1]]
    model.layers[0].kernel_regularizer.l2 = 0.0
    model.set_weights(expected.get_weights())
    found, wanted = (
        m.evaluate(VALIDATION[0], y, verbose=0, return_dict=True) for m in (model, expected)
    )
    assert found == pytest.approx(wanted, rel=1e-6)
    assert set(found) == {"loss", "mae"}
    assert isinstance(model.optimizer, keras.optimizers.SGD)


def test_a_model_that_is_not_compiled_gets_the_loss_and_accuracy():
    model = build(dense_only, {"loss": "sparse_categorical_crossentropy"})
    assert model.loss == "sparse_categorical_crossentropy"
    assert set(model.evaluate(*VALIDATION, verbose=0, return_dict=True)) == {"loss", "accuracy"}


class Rates(keras.callbacks.Callback):
    """The learning rate of each step, and the logs of each epoch."""

    def __init__(self):
        super().__init__()
        self.rates, self.logs = [], []

    def on_train_batch_end(self, batch, logs=None):
        self.rates.append(float(self.model.optimizer.learning_rate))

    def on_epoch_end(self, epoch, logs=None):
        self.logs.append(dict(logs))


@pytest.mark.parametrize(
    ("rule", "batch_size", "factor"),
    rows(
        [("linear", 20, 2.0), ("linear", 5, 0.5), ("sqrt", 40, 2.0), ("linear", 10, 1.0)],
        ("sqrt", 40, 2.0),
    ),
)
def test_the_learning_rate_of_a_trial_follows_its_batch_size(rule, batch_size, factor):
    hypermodel = RegularizationHyperModel(
        dense_only, batch_sizes=(5, 10, 20, 40), base_batch_size=10, rule=rule
    )
    hp = hyperparameters(hypermodel, batch_size=batch_size, learning_rate=0.02)
    model, seen = hypermodel.build(hp), Rates()
    hypermodel.fit(
        hp, model, *TRAINING, validation_data=VALIDATION, epochs=2, callbacks=[seen], verbose=0
    )
    assert len(seen.rates) == 2 * 40 // batch_size
    assert (seen.rates[0], seen.rates[-1]) == pytest.approx((0.02, 0.02 * factor))


class Spoil(Rates):
    """Spoils the weights before the third epoch."""

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            self.model.set_weights([-5 * w for w in self.model.get_weights()])


def test_a_trial_is_measured_with_the_weights_of_its_best_epoch():
    hypermodel = RegularizationHyperModel(dense_only, batch_sizes=(10,), base_batch_size=10)
    hp = hyperparameters(hypermodel, learning_rate=0.01, dense_l2=1e-6)
    model, seen = hypermodel.build(hp), Spoil()
    results = hypermodel.fit(
        hp, model, *TRAINING, validation_data=VALIDATION, epochs=4, callbacks=[seen], verbose=0
    )
    losses = [logs["val_loss"] for logs in seen.logs]
    assert min(losses) == losses[1] < 0.9 * losses[-1]
    assert results["val_loss"] == pytest.approx(losses[1], rel=1e-3)


def test_a_model_without_accuracy_gives_none_and_penalties_count_nowhere():
    members = [layers.BatchNormalization(), layers.Dense(1, kernel_regularizer=L2(0.5))]
    model = keras.Sequential([keras.Input((4,)), *members])
    model.compile("sgd", "mse")
    hypermodel = RegularizationHyperModel(dense_only)
    results = hypermodel.measure(model, TRAINING[0], TRAINING[1], VALIDATION)
    expected = {"val_loss", "loss", "generalization_gap", "generalization_ratio", "sharpness"}
    assert set(results) == expected
    losses = [
        np.mean((model.predict(x, verbose=0)[:, 0] - y) ** 2) for x, y in (VALIDATION, TRAINING)
    ]
    assert (results["val_loss"], results["loss"]) == pytest.approx(losses)
    surface = LossSurface(model, *TRAINING, mode="batch_statistics", penalties=False)
    assert results["sharpness"] == pytest.approx(measures.keskar_sharpness(surface).value)


def test_the_weights_of_validation_samples_count():
    model = dense_only()
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    weights = np.linspace(0, 2, 20)
    hypermodel = RegularizationHyperModel(dense_only)
    results = hypermodel.measure(model, *TRAINING, (*VALIDATION, weights))
    predicted = model.predict(VALIDATION[0], verbose=0)
    losses = -np.log(predicted[np.arange(20), VALIDATION[1]])
    assert results["val_loss"] == pytest.approx(np.mean(weights * losses), rel=1e-5)


@pytest.fixture(scope="module")
def tuner(tmp_path_factory):
    keras.utils.set_random_seed(0)
    hypermodel = RegularizationHyperModel(dense_only, batch_sizes=(8, 16), samples=1000)
    tuner = keras_tuner.RandomSearch(
        hypermodel,
        objective="val_loss",
        max_trials=2,
        seed=0,
        directory=tmp_path_factory.mktemp("search"),
    )
    tuner.search(*TRAINING, validation_data=VALIDATION, epochs=3, verbose=0)
    return tuner


RESULTS = [
    "val_loss",
    "loss",
    "val_accuracy",
    "generalization_gap",
    "generalization_ratio",
    "sharpness",
]


def test_each_trial_of_a_search_gives_every_result_and_all_are_finite(tuner):
    trials = tuner.oracle.trials.values()
    assert len(trials) == 2
    for trial in trials:
        assert set(trial.metrics.metrics) == set(RESULTS)
        values = [trial.metrics.get_best_value(name) for name in RESULTS]
        assert all(math.isfinite(value) for value in values)
        assert trial.score == trial.metrics.get_best_value("val_loss")


def cross_entropy(model, x, y):
    predicted = np.asarray(model.predict(x, verbose=0), "float64")
    return np.mean(-np.log(predicted[np.arange(len(y)), y])), np.mean(predicted.argmax(1) == y)


@pytest.mark.parametrize("which", [0, 1])
def test_the_results_are_those_of_the_weights_that_the_trial_kept(tuner, which):
    trial = tuner.oracle.get_best_trials(2)[which]
    model = tuner.load_model(trial)
    val_loss, val_accuracy = cross_entropy(model, *VALIDATION)
    loss, _ = cross_entropy(model, *TRAINING)
    surface = LossSurface(model, *TRAINING, mode="batch_statistics", penalties=False)
    expected = {
        "val_loss": val_loss,
        "loss": loss,
        "val_accuracy": val_accuracy,
        "generalization_gap": val_loss - loss,
        "generalization_ratio": val_loss / loss,
        "sharpness": measures.keskar_sharpness(surface).value,
    }
    found = {name: trial.metrics.get_best_value(name) for name in RESULTS}
    assert found == pytest.approx(expected, rel=1e-3)


def test_the_table_holds_each_trial_the_best_first(tuner):
    frame = table(tuner)
    assert set(frame.columns) == {"trial", *ALWAYS, *DENSE, "batch_norm", *RESULTS}
    assert len(frame) == 2
    assert frame["val_loss"].is_monotonic_increasing
    assert frame["val_loss"][0] < frame["val_loss"][1]
    best = tuner.oracle.get_best_trials(1)[0]
    assert frame["trial"][0] == best.trial_id
    assert frame["dense_l2"][0] == best.hyperparameters.get("dense_l2")


def test_a_tuner_without_completed_trials_has_no_table(tmp_path):
    hypermodel = RegularizationHyperModel(dense_only)
    tuner = keras_tuner.RandomSearch(hypermodel, "val_loss", max_trials=1, directory=tmp_path)
    with pytest.raises(ValueError) as caught:
        table(tuner)
    assert str(caught.value) == "Expected a tuner with completed trials. Received: none"


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (
            {"model_fn": "lenet5"},
            TypeError,
            "Expected `model_fn` to be a function without arguments that returns a model. "
            "Received: model_fn='lenet5'",
        ),
        (
            {"optimizer": "rmsprop"},
            ValueError,
            "Argument `optimizer` must be one of 'sgd', 'adam'. Received: optimizer='rmsprop'",
        ),
        (
            {"rule": "cubic"},
            ValueError,
            "Argument `rule` must be one of 'linear', 'sqrt'. Received: rule='cubic'",
        ),
        (
            {"batch_sizes": (32, 0)},
            ValueError,
            "Argument `batch_sizes` must be a positive integer. Received: batch_sizes=0 (of type "
            "<class 'int'>)",
        ),
        (
            {"base_batch_size": 2.5},
            ValueError,
            "Argument `base_batch_size` must be a positive integer. Received: "
            "base_batch_size=2.5 (of type <class 'float'>)",
        ),
        (
            {"samples": -1},
            ValueError,
            "Argument `samples` must be a positive integer. Received: samples=-1 (of type "
            "<class 'int'>)",
        ),
        (
            {"learning_rates": (0.0, 0.1)},
            ValueError,
            "Argument `learning_rates` must be two positive finite numbers, the smaller one first. "
            "Received: learning_rates=(0.0, 0.1)",
        ),
        (
            {"warmup_epochs": -1},
            ValueError,
            "Argument `warmup_epochs` must be a finite number, zero or above. Received: "
            "warmup_epochs=-1 (of type <class 'int'>)",
        ),
    ],
)
def test_the_constructor_says_what_it_expects(settings, error, message):
    with pytest.raises(error) as caught:
        RegularizationHyperModel(**{"model_fn": dense_only, **settings})
    assert str(caught.value) == message


class Subclassed(keras.Model):
    def call(self, x):
        return x


def subclassed():
    model = Subclassed(name="mine")
    model(np.zeros((1, 4)))
    return model


@pytest.mark.parametrize(
    ("model_fn", "error", "message"),
    [
        (
            lambda: 3,
            TypeError,
            "Expected a `keras.Model`. Received: 3 (of type <class 'int'>).",
        ),
        (
            lambda: keras.Sequential([layers.Dense(2)], name="raw"),
            ValueError,
            "Expected a built model. Received: the model 'raw', which has no weights yet. Call "
            "`model.build(input_shape)` or call it once on data.",
        ),
        (
            subclassed,
            ValueError,
            "Expected a Sequential or functional model, whose layers are known. Received: the "
            "model 'mine' of the subclassed type Subclassed. Put our layers into its `__init__` "
            "instead.",
        ),
    ],
)
def test_a_model_that_cannot_be_regularized_is_refused(model_fn, error, message):
    with pytest.raises(error) as caught:
        RegularizationHyperModel(model_fn).build(keras_tuner.HyperParameters())
    assert str(caught.value) == message


BATCHES = [(TRAINING[0][:8], TRAINING[1][:8])]
NOT_ARRAYS = (part for part in BATCHES)


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        (
            (NOT_ARRAYS,),
            {"validation_data": VALIDATION},
            "Expected arrays as `x`, because each trial has its own batch size. Received: "
            f"x={NOT_ARRAYS!r}",
        ),
        (
            (),
            {"validation_data": VALIDATION},
            "Expected arrays as `x`, because each trial has its own batch size. Received: x=None",
        ),
        (TRAINING, {}, "Expected `validation_data` in `search`. Received: None"),
    ],
)
def test_data_that_a_trial_cannot_use_are_refused_before_the_first_step(
    arguments, settings, message
):
    hypermodel = RegularizationHyperModel(dense_only)
    hp = hyperparameters(hypermodel)
    with pytest.raises(ValueError) as caught:
        hypermodel.fit(hp, hypermodel.build(hp), *arguments, epochs=1, verbose=0, **settings)
    assert str(caught.value) == message
