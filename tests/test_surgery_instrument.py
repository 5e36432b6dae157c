"""`instrument` and `strip`: what flows is recorded, what is computed stays, and back again."""

import json
import random

import keras
import numpy as np
import pytest
from keras import layers, ops
from problems import rows

from keras_regtools import instrument, regularize, regularizers, strip
from keras_regtools.layers import ActivationStatistics, InstrumentedBatchNormalization

BATCH_NORM = keras.layers.BatchNormalization


def lenet():
    """The course's style: activations fused into the layers."""
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(2, 3, activation="relu", name="conv"),
            layers.AveragePooling2D(2, name="pool"),
            layers.Flatten(name="flatten"),
            layers.Dense(4, activation="relu", name="dense"),
            layers.Dense(3, activation="softmax", name="output"),
        ],
        name="lenet",
    )


def alexnet():
    """The course's other style: every layer followed by BN, activation and dropout, each apart."""
    return keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            layers.Conv2D(2, 3, name="conv"),
            layers.BatchNormalization(name="conv_bn"),
            layers.Activation("relu", name="conv_relu"),
            layers.MaxPooling2D(2, name="pool"),
            layers.Flatten(name="flatten"),
            layers.Dense(4, name="dense"),
            layers.BatchNormalization(name="dense_bn"),
            layers.Activation("relu", name="dense_relu"),
            layers.Dropout(0.4, seed=5, name="dropout"),
            layers.Dense(3, name="output"),
            layers.BatchNormalization(name="output_bn"),
            layers.Activation("softmax", name="softmax"),
        ],
        name="alexnet",
    )


def residual():
    inputs = keras.Input((6, 6, 2), name="image")
    x = layers.Conv2D(2, 3, padding="same", name="conv1")(inputs)
    x = layers.BatchNormalization(name="bn1")(x)
    x = layers.ReLU(name="relu1")(x)
    y = layers.Conv2D(2, 3, padding="same", activation="tanh", name="conv2")(x)
    y = layers.Add(name="merge")([x, y])
    y = layers.LeakyReLU(name="leaky")(y)
    y = layers.GlobalAveragePooling2D(name="average")(y + 2 * inputs)
    return keras.Model(inputs, layers.Dense(3, activation="softmax", name="output")(y), name="res")


def several():
    """Two inputs, two outputs, a layer called with a list, one called with a keyword."""
    a, b = keras.Input((3,), name="a"), keras.Input((4, 3), name="b")
    x = layers.Dense(4, activation="relu", name="left")(a)
    y = layers.MultiHeadAttention(2, 2, name="attention")(b, value=b)
    y = layers.Dense(4, activation="tanh", name="right")(layers.Flatten(name="flat")(y))
    x = layers.PReLU(name="prelu")(layers.Concatenate(name="join")([x, y]))
    first = layers.Dense(1, activation="sigmoid", name="first")(x)
    second = layers.Dense(2, name="second")(x)
    return keras.Model([a, b], [first, second], name="several")


def shared():
    """A layer with a fused activation, a BN and an activation, each used twice."""
    a, b = keras.Input((3,), name="a"), keras.Input((3,), name="b")
    dense = layers.Dense(4, activation="relu", name="dense")
    normalize = layers.BatchNormalization(name="bn")
    narrow, squash = layers.Dense(2, name="narrow"), layers.Activation("tanh", name="tanh")
    branches = [squash(narrow(normalize(dense(x)))) for x in (a, b)]
    return keras.Model([a, b], layers.Subtract(name="difference")(branches), name="shared")


def nested():
    """A Sequential model and a functional one, used twice, inside a functional one."""
    trunk = keras.Sequential(
        [keras.Input((3,)), layers.Dense(4, activation="relu", name="dense")], name="trunk"
    )
    inputs = keras.Input((4,), name="inner_input")
    x = layers.Activation("elu", name="elu")(layers.BatchNormalization(name="bn")(inputs))
    head = keras.Model(inputs, layers.Dense(2, activation="softplus", name="dense")(x), name="head")
    a, b = keras.Input((3,), name="a"), keras.Input((4,), name="b")
    return keras.Model([a, b], layers.Add(name="sum")([head(trunk(a)), head(b)]), name="nested")


def masked():
    inputs = keras.Input((5,), dtype="int32", name="tokens")
    x = layers.Embedding(6, 3, mask_zero=True, name="embedding")(inputs)
    x = layers.BatchNormalization(name="bn")(layers.Dense(3, activation="tanh", name="dense")(x))
    return keras.Model(inputs, layers.GlobalAveragePooling1D(name="average")(x), name="masked")


def adapted():
    """A layer with state that is no weight: the mean and variance that it was adapted to."""
    normalization = layers.Normalization(name="normalization")
    normalization.adapt(np.arange(12.0).reshape(4, 3) ** 2)
    return keras.Sequential(
        [keras.Input((3,)), normalization, layers.Dense(2, activation="relu", name="dense")],
        name="adapted",
    )


def layer_as_activation():
    return keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(4, activation=layers.LeakyReLU(0.3, name="leaky"), name="dense"),
            layers.Dense(2, name="output"),
        ],
        name="layer_as_activation",
    )


ZOO = [
    lenet,
    alexnet,
    residual,
    several,
    shared,
    nested,
    masked,
    adapted,
    layer_as_activation,
]
each_model = pytest.mark.parametrize("build", ZOO)
each_surgery = pytest.mark.parametrize("surgery", [instrument, strip, regularize])


def trained(build):
    """The model of a builder with weights that no initializer would give."""
    model = build()
    model(data(model))
    rng = np.random.default_rng(1)
    for variable in model.weights:
        if "normalization" not in variable.path:
            low = 0.2 if "variance" in variable.path else -0.8
            variable.assign(rng.uniform(low, 1.0, variable.shape))
    return model


def data(model, samples=12):
    """Inputs for a model: small integers where it wants integers, else normal draws."""
    rng = np.random.default_rng(2)
    arrays = [
        rng.integers(0, 5, (samples, *x.shape[1:])).astype("int32")
        if "int" in x.dtype
        else rng.normal(size=(samples, *x.shape[1:])).astype("float32")
        for x in model.inputs
    ]
    return arrays if len(arrays) > 1 else arrays[0]


def outputs(model):
    return [ops.convert_to_numpy(y) for y in keras.tree.flatten(model(data(model)))]


def targets(model):
    zeros = [np.zeros(y.shape, "float32") for y in outputs(model)]
    return zeros if len(zeros) > 1 else zeros[0]


def compiled(model, **kwargs):
    model.compile(keras.optimizers.SGD(0.05), ["mse"] * len(model.outputs), **kwargs)
    return model


def fit(model):
    keras.utils.set_random_seed(3)
    return model.fit(data(model), targets(model), batch_size=6, shuffle=False, verbose=0).history


def same(first, second):
    return len(first) == len(second) and all(map(np.array_equal, first, second))


def inner_layers(model):
    for layer in model.layers:
        yield from inner_layers(layer) if isinstance(layer, keras.Model) else [layer]


def kinds(model):
    return [type(layer).__name__ for layer in model.layers]


def layer_list(model):
    return sorted(
        ((type(layer).__name__, layer.name, layer.get_config()) for layer in model.layers),
        key=lambda row: row[1],
    )


@pytest.mark.backends
@each_model
def test_an_instrumented_model_computes_the_same_bit_for_bit(build):
    model = trained(build)
    assert same(outputs(instrument(model)), outputs(model))


@pytest.mark.backends
@each_model
def test_an_instrumented_model_has_the_weights_of_the_plain_one_in_their_order(build):
    model = trained(build)
    assert same(instrument(model).get_weights(), model.get_weights())


@pytest.mark.backends
@each_model
def test_strip_undoes_instrument_bit_for_bit(build):
    model = trained(build)
    assert same(outputs(strip(instrument(model))), outputs(model))


@each_model
def test_strip_undoes_instrument_layer_for_layer(build):
    model = trained(build)
    assert layer_list(strip(instrument(model))) == layer_list(model)


@each_model
def test_instrumenting_an_instrumented_model_changes_nothing(build):
    once = instrument(trained(build))
    assert layer_list(instrument(once)) == layer_list(once)


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (
            lenet,
            "Conv2D ActivationStatistics Activation AveragePooling2D Flatten Dense "
            "ActivationStatistics Activation Dense ActivationStatistics Activation",
        ),
        (
            alexnet,
            "Conv2D InstrumentedBatchNormalization Activation MaxPooling2D Flatten Dense "
            "InstrumentedBatchNormalization Activation Dropout Dense "
            "InstrumentedBatchNormalization Activation",
        ),
    ],
)
def test_each_batch_norm_and_each_other_activation_records(build, expected):
    assert kinds(instrument(build())) == expected.split()


@pytest.mark.backends
@pytest.mark.parametrize("build", rows(ZOO, alexnet, masked))
def test_every_recorder_has_something_to_read_after_a_training_step(build):
    model = instrument(compiled(build()))
    fit(model)
    kinds = (ActivationStatistics, InstrumentedBatchNormalization)
    recorders = [layer for layer in inner_layers(model) if isinstance(layer, kinds)]
    assert recorders
    assert all(np.isfinite(layer.statistics()["batch_mean"]).all() for layer in recorders)


@pytest.mark.parametrize(
    ("layer", "axis"),
    [
        (layers.Conv2D(2, 3, activation="relu", data_format="channels_first", name="layer"), 1),
        (layers.Conv2D(2, 3, activation="relu", data_format="channels_last", name="layer"), -1),
        (layers.Softmax(axis=2, name="layer"), 2),
    ],
)
def test_the_recorder_reads_the_channel_axis_of_its_layer(layer, axis):
    model = instrument(keras.Sequential([keras.Input((4, 4, 4)), layer]))
    assert model.get_layer("layer_statistics").axis == axis


def test_record_every_reaches_each_recorder():
    model = keras.Sequential(
        [keras.Input((3,)), layers.BatchNormalization(), layers.Dense(2, activation="relu")]
    )
    batch_norm, _, statistics, _ = instrument(model, record_every=7).layers
    every = [layer.get_config()["record_every"] for layer in (batch_norm, statistics)]
    assert every == [7, 7]


# A TensorFlow graph computes a product and the tanh behind it in one kernel, which rounds another
# way, unless something reads what is between them: with a tanh the promise is for eager steps.
@pytest.mark.backends
@pytest.mark.parametrize(
    ("build", "how"),
    rows(
        [
            (alexnet, {"jit_compile": False}),
            (nested, {"jit_compile": False}),
            (shared, {"run_eagerly": True}),
        ],
        (alexnet, {"jit_compile": False}),
        (shared, {"run_eagerly": True}),
    ),
)
def test_an_instrumented_model_trains_to_the_weights_of_the_plain_one_bit_for_bit(build, how):
    plain = compiled(trained(build), **how)
    recorded, start = instrument(plain), plain.get_weights()
    fit(plain)
    fit(recorded)
    assert not same(plain.get_weights(), start)
    assert same(recorded.get_weights(), plain.get_weights())


def with_dropout():
    return keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(8, activation="relu", name="dense"),
            layers.GaussianNoise(0.5, seed=6, name="noise"),
            layers.Dropout(0.5, seed=5, name="dropout"),
            layers.Dense(2, name="output"),
        ]
    )


@pytest.mark.backends
@each_surgery
def test_a_copy_draws_the_noise_that_the_original_would_have_drawn(surgery):
    model = compiled(with_dropout(), jit_compile=False)
    fit(model)  # the seeds move on from where the configuration of the layers puts them
    copy = surgery(model)
    fit(model)
    fit(copy)
    assert same(copy.get_weights(), model.get_weights())


@each_surgery
def test_a_copy_keeps_the_compile_configuration_but_not_the_optimizer_state(surgery):
    model = with_dropout()
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5)
    model.compile(
        keras.optimizers.SGD(schedule, momentum=0.8, clipnorm=2.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True, name="entropy"),
        metrics=["accuracy"],
        weighted_metrics=[keras.metrics.SparseTopKCategoricalAccuracy(1, name="top")],
        jit_compile=False,
        auto_scale_loss=False,
    )
    model.optimizer.build(model.trainable_variables)
    model.optimizer.iterations.assign(7)
    copy = surgery(model)
    assert copy.get_compile_config() == model.get_compile_config()
    assert copy.optimizer is not model.optimizer
    assert (int(copy.optimizer.iterations), int(model.optimizer.iterations)) == (0, 7)


@each_surgery
def test_a_copy_starts_with_the_rate_that_the_optimizer_has_by_now(surgery):
    model = compiled(lenet())
    model.optimizer.learning_rate = 0.25
    assert float(surgery(model).optimizer.learning_rate) == 0.25


@each_surgery
def test_a_model_that_is_not_compiled_gives_one_that_is_not_compiled(surgery):
    assert not surgery(lenet()).compiled


def squared(y_true, y_pred):
    return ops.mean(ops.square(y_true - y_pred), axis=-1)


class Squared(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return squared(y_true, y_pred)


def two_heads():
    x = keras.Input((3,), name="x")
    heads = [
        layers.Dense(1, activation="sigmoid", name="first")(x),
        layers.Dense(2, activation="tanh", name="second")(x),
    ]
    return keras.Model(x, heads, name="heads")


def times(factor):
    def loss(y_true, y_pred):
        return factor * squared(y_true, y_pred)

    return loss


@pytest.mark.parametrize(
    ("build", "settings"),
    [
        (lenet, {"loss": squared}),
        (lenet, {"loss": lambda y_true, y_pred: 2 * squared(y_true, y_pred)}),
        (two_heads, {"loss": [times(1.0), times(100.0)]}),
        (lenet, {"loss": Squared()}),
        (lenet, {"loss": "mse", "metrics": [squared]}),
        (two_heads, {"loss": [squared, "mse"], "loss_weights": [0.5, 1.0]}),
        (two_heads, {"loss": {"first": squared, "second": Squared()}}),
        (two_heads, {"loss": ["mse", "mae"], "metrics": {"first": ["mae"], "second": [squared]}}),
    ],
    ids=[
        "function",
        "lambda",
        "functions of one name",
        "object",
        "metric",
        "list",
        "by output name",
        "metrics by output name",
    ],
)
@pytest.mark.parametrize("surgery", rows([instrument, strip, regularize], instrument))
def test_losses_and_metrics_are_kept_those_that_the_user_wrote_too(surgery, build, settings):
    model = trained(build)
    model.compile("sgd", **settings)
    y = targets(model)
    if build is two_heads:
        y = dict(zip(("first", "second"), y, strict=True))
    expected, found = (
        m.evaluate(data(m), y, verbose=0, return_dict=True) for m in (model, surgery(model))
    )
    assert found == expected


@each_surgery
def test_a_function_in_a_lambda_layer_is_kept(surgery):
    members = [layers.Lambda(lambda x: 2 * x), layers.Dense(2, activation="relu")]
    model = keras.Sequential([keras.Input((3,)), *members])
    assert same(outputs(surgery(model)), outputs(model))


@pytest.mark.parametrize("loaded", [False, True], ids=["fresh", "loaded from a file"])
@each_surgery
def test_the_bins_that_a_layer_was_adapted_to_are_kept(surgery, loaded, tmp_path):
    bins = layers.Discretization(num_bins=4, name="bins")
    bins.adapt(np.linspace(-1, 1, 50).reshape(-1, 1))
    members = [bins, layers.Rescaling(0.5), layers.Dense(2, activation="relu")]
    model = keras.Sequential([keras.Input((3,)), *members])
    if loaded:
        model.save(tmp_path / "model.keras")
        model = keras.models.load_model(tmp_path / "model.keras")
    expected = outputs(model)
    assert same(outputs(surgery(model)), expected)
    assert same(outputs(model), expected)


@each_surgery
def test_a_fused_activation_with_weights_keeps_them(surgery):
    prelu = layers.PReLU("ones", name="prelu")
    model = keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(4, activation=prelu, name="dense"),
            layers.BatchNormalization(name="bn"),
        ]
    )
    model(data(model))
    prelu.alpha.assign([0.1, 0.2, 0.3, 0.4])
    copy = surgery(model)
    assert same(outputs(copy), outputs(model))
    assert same(copy.get_weights(), model.get_weights())


def activation(x):
    return 1.7 * ops.tanh(x)


@each_surgery
def test_an_activation_that_the_user_wrote_is_kept(surgery):
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2, activation=activation)])
    assert same(outputs(strip(surgery(model))), outputs(model))


@pytest.mark.parametrize("surgery", rows([instrument, strip, regularize], regularize))
def test_the_original_stays_as_it_was_and_can_still_be_used(surgery):
    model = compiled(trained(nested))
    before = model.get_weights(), model.get_config(), model.get_compile_config(), outputs(model)
    copy = surgery(model)
    assert {id(v) for v in copy.variables}.isdisjoint(id(v) for v in model.variables)
    fit(copy)  # what the copy does afterwards does not reach the original either
    assert same(model.get_weights(), before[0])
    assert model.get_config() == before[1]
    assert model.get_compile_config() == before[2]
    assert same(outputs(model), before[3])
    assert np.isfinite(fit(model)["loss"]).all()


@each_surgery
def test_surgery_leaves_the_random_state_of_python_alone(surgery):
    model, state = compiled(alexnet()), random.getstate()
    surgery(model)
    assert random.getstate() == state


@each_surgery
def test_a_copy_keeps_its_name_and_its_frozen_layers(surgery):
    model = alexnet()
    model.get_layer("conv").trainable = False
    model.get_layer("dense_bn").trainable = False
    copy = surgery(model)
    assert copy.name == "alexnet"
    assert [layer.name for layer in copy.layers if not layer.trainable] == ["conv", "dense_bn"]


@pytest.mark.backends
@pytest.mark.parametrize("build", [lenet, alexnet])
@each_surgery
def test_a_copy_keeps_the_dtype_policies_whatever_the_present_one(surgery, build):
    keras.config.set_dtype_policy("mixed_float16")
    model = build()
    keras.config.set_dtype_policy("float32")
    assert {layer.dtype_policy.name for layer in surgery(model).layers} == {"mixed_float16"}


@pytest.mark.parametrize("taken", ["dense_activation", "dense_statistics"])
def test_the_new_layers_find_names_that_are_free(taken):
    model = keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(4, activation="relu", name="dense"),
            layers.Activation("tanh", name=taken),
        ]
    )
    new = instrument(model)
    names = [layer.name for layer in new.layers]
    assert len(names) == len(set(names)) == 5
    assert layer_list(strip(new)) == layer_list(model)


def test_an_activation_that_the_user_put_apart_stays_apart():
    model = keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(4, name="dense"),
            layers.Activation("relu", name="dense_activation"),
        ]
    )
    assert kinds(strip(instrument(model))) == ["Dense", "Activation"]


def test_batch_normalization_that_regularize_put_in_records_and_stays_after_strip():
    model = regularize(lenet(), batch_norm=True)
    kind = {type(layer) for layer in instrument(model).layers if isinstance(layer, BATCH_NORM)}
    assert kind == {InstrumentedBatchNormalization}
    assert layer_list(strip(instrument(model))) == layer_list(model)


def test_instrument_shares_our_regularizers_with_the_copy():
    penalty = regularizers.L2(0.1)
    model = keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(2, activation="relu", kernel_regularizer=penalty),
            layers.BatchNormalization(gamma_regularizer=penalty),
        ]
    )
    dense, _, _, batch_norm = instrument(model).layers
    assert dense.kernel_regularizer is penalty
    assert batch_norm.gamma_regularizer is penalty


@pytest.mark.parametrize(
    ("penalty", "expected"),
    [
        (regularizers.L1(0.5), keras.regularizers.L1(0.5)),
        (regularizers.L2(0.5), keras.regularizers.L2(0.5)),
        (regularizers.L1L2(0.5, 0.25), keras.regularizers.L1L2(0.5, 0.25)),
    ],
)
def test_strip_makes_our_regularizers_those_of_keras(penalty, expected):
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2, kernel_regularizer=penalty)])
    plain = strip(model).layers[0].kernel_regularizer
    assert type(plain) is type(expected)
    assert plain.get_config() == expected.get_config()


def test_strip_takes_the_present_strength():
    penalty = regularizers.L2(0.5)
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2, kernel_regularizer=penalty)])
    penalty.l2 = 0.25
    assert strip(model).layers[0].kernel_regularizer.get_config() == {"l2": 0.25}


def test_a_stripped_model_needs_nothing_of_ours_to_be_loaded():
    model = instrument(regularize(lenet(), dense=regularizers.L1(0.1), batch_norm=True))
    assert "keras_regtools" in json.dumps(keras.saving.serialize_keras_object(model))
    assert "keras_regtools" not in json.dumps(keras.saving.serialize_keras_object(strip(model)))


class Subclassed(keras.Model):
    def call(self, x):
        return x


def subclassed():
    model = Subclassed(name="mine")
    model(np.zeros((1, 3)))
    return model


def with_subclassed_inside():
    inputs = keras.Input((3,))
    return keras.Model(inputs, layers.Dense(2)(Subclassed(name="mine")(inputs)))


class OwnStep:
    def train_step(self, *args, **kwargs):
        return {"loss": 1.0}


class OwnSequential(OwnStep, keras.Sequential):
    def __init__(self):
        super().__init__([keras.Input((3,)), layers.Dense(2, activation="relu")], name="mine")


class OwnFunctional(OwnStep, keras.Model):
    def __init__(self):
        inputs = keras.Input((3,))
        super().__init__(inputs, layers.Dense(2, activation="relu")(inputs), name="mine")


class OwnModel(OwnStep, keras.Model):
    """Made as `OwnModel(inputs, outputs)`."""


@each_surgery
def test_a_training_step_of_the_user_s_own_is_kept(surgery):
    inputs = keras.Input((3,))
    model = OwnModel(inputs, layers.Dense(2, activation="relu")(inputs))
    assert type(surgery(model)) is OwnModel


OfKeras2 = type("Model", (), {"__module__": "tf_keras.src.engine", "__repr__": lambda self: "it"})

REFUSED = [
    (
        subclassed,
        ValueError,
        "Expected a Sequential or functional model, whose layers are known. Received: the model "
        "'mine' of the subclassed type Subclassed. Put our layers into its `__init__` instead.",
    ),
    (
        with_subclassed_inside,
        ValueError,
        "Expected a Sequential or functional model, whose layers are known. Received: the model "
        "'mine' of the subclassed type Subclassed. Put our layers into its `__init__` instead.",
    ),
    *(
        (
            build,
            ValueError,
            "Expected a Sequential or functional model, whose layers are known. Received: the "
            f"model 'mine' of the subclassed type {build.__name__}. Put our layers into its "
            "`__init__` instead.",
        )
        for build in (OwnSequential, OwnFunctional)
    ),
    (
        lambda: keras.Sequential([layers.Dense(2)], name="raw"),
        ValueError,
        "Expected a built model. Received: the model 'raw', which has no weights yet. Call "
        "`model.build(input_shape)` or call it once on data.",
    ),
    (
        lambda: "lenet",
        TypeError,
        "Expected a `keras.Model`. Received: 'lenet' (of type <class 'str'>).",
    ),
    (
        OfKeras2,
        TypeError,
        "Expected a `keras.Model`. Received: it (of type <class 'tf_keras.src.engine.Model'>). "
        "Models of `tf_keras` (Keras 2) are not supported: build the model with `keras`.",
    ),
]


@pytest.mark.parametrize(("make", "error", "message"), REFUSED)
@each_surgery
def test_what_is_no_graph_of_layers_is_refused_by_name(surgery, make, error, message):
    model = make()
    with pytest.raises(error) as caught:
        surgery(model)
    assert str(caught.value) == message


FLAT = [keras.Input((3,)), layers.Dense(2), layers.Dropout(0.5)]


@pytest.mark.parametrize(
    ("model", "settings", "error", "message"),
    [
        (
            keras.Sequential(FLAT, name="flat"),
            {},
            ValueError,
            "Expected a model with batch normalization or an activation to instrument. Received: "
            "the model 'flat' with the layers ['Dense', 'Dropout']",
        ),
        (
            lenet(),
            {"record_every": 0},
            ValueError,
            "Argument `record_every` must be a positive integer. Received: record_every=0 (of "
            "type <class 'int'>)",
        ),
    ],
)
def test_instrument_says_what_it_cannot_do(model, settings, error, message):
    with pytest.raises(error) as caught:
        instrument(model, **settings)
    assert str(caught.value) == message
