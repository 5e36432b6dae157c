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
from keras_regtools.tuner.trial_results import NAMES

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


CONV, DENSE = ({f"{kind}/l2", f"{kind}/l2/on", f"{kind}/dropout"} for kind in ("conv", "dense"))
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


def hyperparameters(hypermodel, values=()):
    """The hyperparameters of a hypermodel, some of them set."""
    hp = keras_tuner.HyperParameters()
    hypermodel.build(hp)
    hp.values.update(values)
    return hp


def build(model_fn, settings=None, values=()):
    hypermodel = RegularizationHyperModel(model_fn, **(settings or {}))
    return hypermodel.build(hyperparameters(hypermodel, values))


def test_the_model_that_is_built_has_what_was_chosen():
    values = {"dense/l2": 0.02, "dense/dropout": 0.3, "batch_norm": True, "learning_rate": 0.004}
    model = build(dense_only, values=values)
    hidden, batch_norm, activation, dropout, output = model.layers
    assert isinstance(batch_norm, layers.BatchNormalization)
    assert isinstance(activation, layers.Activation)
    assert dropout.rate == 0.3
    assert type(hidden.kernel_regularizer) is type(output.kernel_regularizer) is L2
    assert (hidden.kernel_regularizer.l2, output.kernel_regularizer.l2) == (0.02, 0.02)
    assert float(model.optimizer.learning_rate) == pytest.approx(0.004)


def test_convolutional_and_dense_layers_get_their_own_strength():
    model = build(nested, values={"conv/l2": 0.01, "dense/l2": 0.02})
    trunk, output = model.layers
    assert (trunk.layers[0].kernel_regularizer.l2, output.kernel_regularizer.l2) == (0.01, 0.02)


def test_a_penalty_that_is_switched_off_is_zero():
    model = build(dense_only, values={"dense/l2/on": False})
    assert model.layers[0].kernel_regularizer.l2 == 0.0


def test_tied_layers_have_one_strength():
    values = {"conv/l2": 0.01, "dense/l2": 0.02, "tied": True}
    trunk, output = build(nested, {"tied": "search"}, values).layers
    assert output.kernel_regularizer.l2 == trunk.layers[0].kernel_regularizer.l2 == 0.01
    trunk, output = build(nested, {"tied": "search"}, values | {"tied": False}).layers
    assert output.kernel_regularizer.l2 == 0.02
    hp = hyperparameters(RegularizationHyperModel(nested, tied=True))
    assert not any(name.startswith("dense/") for name in hp.values)


@pytest.mark.parametrize(
    ("given", "expected"), [("conv", [True, False]), ("dense", [False, True]), (True, [True, True])]
)
def test_batch_normalization_can_go_behind_one_group(given, expected):
    def model_fn():
        return keras.Sequential(
            [
                keras.Input((4, 4, 1)),
                layers.Conv2D(2, 3),
                layers.Flatten(),
                layers.Dense(4),
                layers.Dense(2),
            ]
        )

    model = build(model_fn, {"batch_norm": given})
    kinds = [type(layer).__name__ for layer in model.layers]
    pairs = [pair for pair in zip(kinds, kinds[1:], strict=False)]
    found = [(kind, "BatchNormalization") in pairs for kind in ("Conv2D", "Dense")]
    assert found == expected
    chosen = build(model_fn, {"batch_norm": [False, "conv", "dense"]}, {"batch_norm": "conv"})
    kinds = [type(layer).__name__ for layer in chosen.layers]
    assert kinds.count("BatchNormalization") == 1


def test_groups_of_the_user():
    settings = {
        "groups": {"first": (["hidden"], {"l1": 0.3, "l2": (0.0, 0.5), "orthogonal": 0.1})},
        "dense": {"dropout": 0.5},
        "batch_norm": False,
    }
    model = build(dense_only, settings, {"first/l2": 0.25})
    hidden, output = model.layers
    w = np.random.default_rng(0).normal(size=(3, 2)).astype("float32")
    expected = 0.3 * np.abs(w).sum() + 0.25 * (w**2).sum()
    expected += 0.1 * ((w.T @ w - np.eye(2)) ** 2).sum()
    found = float(ops.convert_to_numpy(hidden.kernel_regularizer(ops.convert_to_tensor(w))))
    assert found == pytest.approx(expected, rel=1e-5)
    assert output.kernel_regularizer is None


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


def with_adam():
    model = dense_only()
    model.compile(keras.optimizers.Adam(2e-4, beta_1=0.8), "sparse_categorical_crossentropy")
    return model


def test_a_compiled_optimizer_stays_and_its_rate_is_searched_around_its_own():
    hypermodel = RegularizationHyperModel(with_adam)
    hp = hyperparameters(hypermodel)
    model = hypermodel.build(hp)
    assert isinstance(model.optimizer, keras.optimizers.Adam)
    assert model.optimizer.beta_1 == 0.8
    (rate,) = (one for one in hp.space if one.name == "learning_rate")
    assert (rate.min_value, rate.max_value) == pytest.approx((2e-5, 2e-3))
    assert hp.get("learning_rate") == pytest.approx(2e-4)


def test_each_optimizer_of_several_has_rates_of_its_own():
    rates = {"sgd": (0.01, 0.1), "adam": (1e-4, 1e-3)}
    hypermodel = RegularizationHyperModel(with_adam, optimizer=rates)
    hp = hyperparameters(hypermodel, {"optimizer": "adam", "adam/learning_rate": 5e-4})
    model = hypermodel.build(hp)
    assert isinstance(model.optimizer, keras.optimizers.Adam)
    assert model.optimizer.beta_1 == 0.9
    assert float(model.optimizer.learning_rate) == pytest.approx(5e-4)


def test_weight_decay_leaves_biases_and_scales_alone():
    def model_fn():
        model = dense_only()
        model.compile(keras.optimizers.SGD(0.5), lambda y, p: 0.0 * ops.sum(p, axis=-1))
        return model

    settings = {"batch_norm": True, "weight_decay": 0.1, "dense": {}, "learning_rates": 0.5}
    model = build(model_fn, settings)
    before = [np.array(w) + 1.0 for w in model.get_weights()]
    model.set_weights(before)
    model.train_on_batch(TRAINING[0], TRAINING[1])
    for variable, old in zip(model.weights, before, strict=True):
        if variable.trainable:
            factor = 0.95 if len(variable.shape) > 1 else 1.0
            np.testing.assert_allclose(np.array(variable), factor * old, rtol=1e-6)


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

    expected, model = model_fn(), build(model_fn, {"batch_norm": False, "optimizer": "sgd"})
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
    hp = hyperparameters(hypermodel, {"batch_size": batch_size, "learning_rate": 0.02})
    model, seen = hypermodel.build(hp), Rates()
    hypermodel.fit(
        hp, model, *TRAINING, validation_data=VALIDATION, epochs=2, callbacks=[seen], verbose=0
    )
    assert len(seen.rates) == 2 * 40 // batch_size
    assert (seen.rates[0], seen.rates[-1]) == pytest.approx((0.02, 0.02 * factor))
    step = len(seen.rates) // 4  # in the middle of a warm-up of one epoch
    expected = 0.02 * (1 + (factor - 1) * step / (40 // batch_size))
    assert seen.rates[step] == pytest.approx(expected)


class Spoil(Rates):
    """Spoils the weights before the third epoch."""

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            self.model.set_weights([-5 * w for w in self.model.get_weights()])


def test_a_trial_is_measured_with_the_weights_of_its_best_epoch():
    hypermodel = RegularizationHyperModel(dense_only, batch_sizes=(10,), base_batch_size=10)
    hp = hyperparameters(hypermodel, {"learning_rate": 0.01, "dense/l2": 1e-6})
    model, seen = hypermodel.build(hp), Spoil()
    results = hypermodel.fit(
        hp, model, *TRAINING, validation_data=VALIDATION, epochs=4, callbacks=[seen], verbose=0
    )
    losses = [logs["val_loss"] for logs in seen.logs]
    assert min(losses) == losses[1] < 0.9 * losses[-1]
    assert results["val_loss"] == pytest.approx(losses[1], rel=1e-3)


def trained(model_fn, settings, values=(), data=TRAINING, **kwargs):
    """The results of one trial, and its model."""
    hypermodel = RegularizationHyperModel(model_fn, **{"batch_sizes": 10, **settings})
    hp = hyperparameters(hypermodel, values)
    model = hypermodel.build(hp)
    kwargs = {"validation_data": VALIDATION, "epochs": 1, "verbose": 0, **kwargs}
    return hypermodel.fit(hp, model, *data, **kwargs), model


def test_a_model_without_accuracy_gives_none_and_penalties_count_nowhere():
    def model_fn():
        model = keras.Sequential([keras.Input((4,)), layers.BatchNormalization(), layers.Dense(1)])
        model.compile("sgd", "mse")
        return model

    results, model = trained(model_fn, {"dense": {"l2": 0.5}})
    expected = {"val_loss", "loss", "generalization_gap", "generalization_ratio", "sharpness"}
    assert set(results) == expected | {"epochs", "seconds", "measuring_seconds"}
    losses = [
        np.mean((model.predict(x, verbose=0)[:, 0] - y) ** 2) for x, y in (VALIDATION, TRAINING)
    ]
    assert (results["val_loss"], results["loss"]) == pytest.approx(losses)
    surface = LossSurface(model, *TRAINING, mode="batch_statistics", penalties=False)
    assert results["sharpness"] == pytest.approx(measures.keskar_sharpness(surface).value, rel=1e-4)


def test_the_weights_of_validation_samples_count():
    weights = np.linspace(0, 2, 20)
    results, model = trained(dense_only, {}, validation_data=(*VALIDATION, weights))
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


COSTS = ["epochs", "seconds", "measuring_seconds"]
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
        assert set(trial.metrics.metrics) == {*RESULTS, *COSTS}
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
    hyperparameters = {*ALWAYS, *DENSE, "batch_norm"}
    assert {"trial", *RESULTS, *COSTS} < set(frame.columns)
    assert set(frame.columns) <= {"trial", *hyperparameters, *RESULTS, *COSTS}
    assert set(frame.attrs["space"]) == {*hyperparameters} & set(frame.columns)
    assert len(frame) == 2
    assert frame["val_loss"].is_monotonic_increasing
    assert frame["val_loss"][0] < frame["val_loss"][1]
    best = tuner.oracle.get_best_trials(1)[0]
    assert frame["trial"][0] == best.trial_id
    assert frame["dense/dropout"][0] == best.hyperparameters.get("dense/dropout")


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
            "Expected `model_fn` to be a function without arguments or of `hp`, or a "
            "`keras_tuner.HyperModel`, that gives a model. Received: model_fn='lenet5'",
        ),
        (
            {"optimizer": "unknown"},
            ValueError,
            "Expected the names of Keras' optimizers, such as 'sgd'. Received: 'unknown'",
        ),
        (
            {"rule": "cubic"},
            ValueError,
            "Argument `rule` must be one of 'linear', 'sqrt', 'free'. Received: rule='cubic'",
        ),
        (
            {"batch_sizes": (32, 0)},
            ValueError,
            "Argument `batch_size` must be a positive integer. Received: batch_size=0 (of type "
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
            {"learning_rates": (0.1, 0.01)},
            ValueError,
            "Expected the range of `learning_rate` to be (low, high), the smaller one first. "
            "Received: (0.1, 0.01)",
        ),
        (
            {"learning_rates": (0.0, 0.1)},
            ValueError,
            "Argument `learning_rate` must be a positive finite number. Received: "
            "learning_rate=0.0 (of type <class 'float'>)",
        ),
        (
            {"warmup_epochs": -1},
            ValueError,
            "Argument `warmup_epochs` must be a finite number, zero or above. Received: "
            "warmup_epochs=-1 (of type <class 'int'>)",
        ),
        (
            {"dense": {"l3": 0.1}},
            ValueError,
            "Expected ingredients out of ['l2', 'l1', 'group_lasso', 'orthogonal', 'dropout', "
            "'spatial_dropout']. Received: ['l3']",
        ),
        (
            {"dense": {"dropout": (0.5, 1.0)}},
            ValueError,
            "Argument `dense/dropout` must be a number in [0, 1). Received: dense/dropout=1.0 (of "
            "type <class 'float'>)",
        ),
        (
            {"dense": 0.1},
            TypeError,
            "Expected `dense` to be a dict from ingredients to values or ranges. Received: 0.1",
        ),
        (
            {"results": ["val_loss", "flatness"]},
            ValueError,
            f"Expected `results` out of {list(NAMES)}. Received: ['flatness']",
        ),
        (
            {"groups": {"early": {"l2": 0.1}}},
            ValueError,
            "Expected `groups` to be a dict from names, other than 'conv' and 'dense', to (layers, "
            "ingredients). Received: 'early': {'l2': 0.1}",
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


ONE = dense_only()
BOTH = {"a": (["hidden"], {"l2": 0.1}), "b": (lambda layer: layer.name == "hidden", {"l2": 0.1})}


@pytest.mark.parametrize(
    ("model_fn", "settings", "error", "message"),
    [
        (
            lambda: 3,
            {},
            TypeError,
            "Expected a `keras.Model`. Received: 3 (of type <class 'int'>).",
        ),
        (
            lambda: keras.Sequential([layers.Dense(2)], name="raw"),
            {},
            ValueError,
            "Expected a built model. Received: the model 'raw', which has no weights yet. Call "
            "`model.build(input_shape)` or call it once on data.",
        ),
        (
            subclassed,
            {},
            ValueError,
            "Expected a Sequential or functional model, whose layers are known. Received: the "
            "model 'mine' of the subclassed type Subclassed. Put our layers into its `__init__` "
            "instead.",
        ),
        (
            lambda: ONE,
            {},
            ValueError,
            "Expected `model_fn` to give a new model each time. Received: the same one twice",
        ),
        (
            dense_only,
            {"groups": {"none": (["conv9"], {"l2": 0.1})}},
            ValueError,
            "Expected a model with layers of the group 'none'. Received: one whose groups are "
            "['dense']",
        ),
        (
            dense_only,
            {"conv": {"l2": 0.1}},
            ValueError,
            "Expected a model with layers of the group 'conv'. Received: one whose groups are "
            "['dense']",
        ),
        (
            dense_only,
            {"groups": BOTH},
            ValueError,
            "Expected groups that have no layer in common. Received: the layer 'hidden' in "
            "['a', 'b']",
        ),
    ],
)
def test_a_model_that_cannot_be_regularized_is_refused(model_fn, settings, error, message):
    with pytest.raises(error) as caught:
        RegularizationHyperModel(model_fn, **settings).build(keras_tuner.HyperParameters())
    assert str(caught.value) == message


BATCHES = [(TRAINING[0][:8], TRAINING[1][:8])]
NOT_ARRAYS = (part for part in BATCHES)
WHAT = (
    "Expected `x` as arrays or as a `tf.data.Dataset`, which can be cut into batches of another "
    "size, as each trial has its own. Received: x="
)


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        ((NOT_ARRAYS,), {"validation_data": VALIDATION}, f"{WHAT}{NOT_ARRAYS!r}"),
        ((), {"validation_data": VALIDATION}, f"{WHAT}None"),
        (
            TRAINING,
            {},
            "Expected validation data, by which trials are compared: pass `validation_data=` to "
            "`search`, or `validation_split=` beside arrays. Received: none",
        ),
        (
            TRAINING,
            {"validation_data": VALIDATION, "batch_size": 16},
            "Expected no `batch_size` in `search`, as each trial has its own: pass `batch_sizes=` "
            "to the hypermodel, one number to fix it. Received: 16",
        ),
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
