"""`regularize`: penalties, dropout and batch normalization go where they belong, by layer group."""

import json
import re

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_regtools import instrument, regularize, regularizers, strip
from keras_regtools.regularizers import L1, L2


def sequential(*members, shape=(3,), name="net"):
    return keras.Sequential([keras.Input(shape), *members], name=name)


def conv(name, activation=None, **kwargs):
    return layers.Conv2D(2, 3, padding="same", activation=activation, name=name, **kwargs)


def dense(name, activation=None, **kwargs):
    return layers.Dense(4, activation=activation, name=name, **kwargs)


def lenet():
    return sequential(
        conv("conv1", "relu"),
        layers.AveragePooling2D(2, name="pool1"),
        conv("conv2", "relu"),
        layers.Flatten(name="flatten"),
        dense("dense1", "relu"),
        dense("dense2", "relu"),
        dense("output", "softmax"),
        shape=(4, 4, 1),
        name="lenet",
    )


def alexnet():
    return sequential(
        conv("conv"),
        layers.BatchNormalization(name="conv_bn"),
        layers.Activation("relu", name="conv_relu"),
        layers.MaxPooling2D(2, name="pool"),
        layers.Flatten(name="flatten"),
        dense("dense"),
        layers.BatchNormalization(name="dense_bn"),
        layers.Activation("relu", name="dense_relu"),
        layers.Dropout(0.4, name="dense_drop"),
        dense("output"),
        layers.BatchNormalization(name="output_bn"),
        layers.Activation("softmax", name="softmax"),
        shape=(4, 4, 1),
        name="alexnet",
    )


def residual():
    """A skip around two convolutions, the first of which also feeds the addition."""
    inputs = keras.Input((4, 4, 2), name="image")
    x = conv("first", "relu")(inputs)
    y = layers.ReLU(name="relu")(layers.BatchNormalization(name="bn")(conv("second")(x)))
    z = layers.Activation("relu", name="end")(layers.Add(name="merge")([x, conv("third")(y)]))
    z = layers.GlobalAveragePooling2D(name="average")(z)
    return keras.Model(inputs, dense("output", "softmax")(z), name="residual")


def several():
    """Two inputs, two outputs, one of which also feeds what comes behind it."""
    a, b = keras.Input((3,), name="a"), keras.Input((3,), name="b")
    early = dense("early", "sigmoid")(
        layers.Concatenate(name="join")([dense("left", "relu")(a), b])
    )
    late = dense("late", "sigmoid")(dense("middle", "relu")(early))
    return keras.Model([a, b], [early, late], name="several")


def shared():
    a, b = keras.Input((3,), name="a"), keras.Input((3,), name="b")
    twice, relu = dense("twice", "relu"), layers.ReLU(name="relu")
    other = dense("other")
    ends = [relu(other(twice(x))) for x in (a, b)]
    return keras.Model([a, b], dense("output")(layers.Subtract(name="minus")(ends)), name="shared")


def nested():
    """An inner model that something follows, and one that gives the output."""
    trunk = sequential(conv("conv", "relu"), layers.Flatten(name="flatten"), shape=(4, 4, 1))
    trunk.name = "trunk"
    head = sequential(dense("dense", "relu"), dense("output"), shape=(32,), name="head")
    return sequential(trunk, head, shape=(4, 4, 1), name="nested")


def masked():
    inputs = keras.Input((5,), dtype="int32", name="tokens")
    x = dense("dense")(layers.Embedding(6, 3, mask_zero=True, name="embedding")(inputs))
    x = layers.Activation("relu", name="relu")(layers.BatchNormalization(name="bn")(x))
    x = layers.GlobalAveragePooling1D(name="average")(x)
    return keras.Model(inputs, dense("output")(x), name="masked")


def adapted():
    normalization = layers.Normalization(name="normalization")
    normalization.adapt(np.arange(12.0).reshape(4, 3) ** 2)
    return sequential(normalization, dense("dense", "relu"), dense("output"), name="adapted")


ZOO = [lenet, alexnet, residual, several, shared, nested, masked, adapted]
each_model = pytest.mark.parametrize("build", ZOO)


def data(model, samples=6):
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


def same(first, second):
    return len(first) == len(second) and all(map(np.array_equal, first, second))


def inner_layers(model):
    for layer in model.layers:
        yield from inner_layers(layer) if isinstance(layer, keras.Model) else [layer]


def groups_of(model):
    kinds = {"conv": layers.Conv2D, "dense": layers.Dense}
    found = list(inner_layers(model))
    return {n for n, kind in kinds.items() if any(isinstance(layer, kind) for layer in found)}


def names(model):
    return [layer.name for layer in inner_layers(model)]


def put_in(build, **settings):
    """The layers that were put in, each with the layers that it follows."""
    model = build()
    new = regularize(model, **settings).get_config()["layers"]
    sources = {
        layer["name"]: re.findall(r'"keras_history": \["(\w+)"', json.dumps(layer["inbound_nodes"]))
        for layer in new
    }
    masks = {n for n in sources if n.startswith("not_equal")}
    return {n: set(s) - masks for n, s in sources.items() if n not in {*names(model), *masks}}


@pytest.mark.backends
@each_model
def test_penalties_and_dropout_do_not_change_what_the_model_predicts(build):
    model = build()
    settings = {}
    for group in groups_of(model):
        settings |= {group: L2(0.1), f"{group}_dropout": 0.5}
    new = regularize(model, **settings)
    assert same(outputs(new), outputs(model))
    assert same(new.get_weights(), model.get_weights())


@pytest.mark.backends
@each_model
def test_weights_are_copied_to_the_layer_of_the_same_name_when_batch_norm_is_put_in(build):
    model = build()
    model.set_weights([w + 1 for w in model.get_weights()])
    new = {layer.name: layer for layer in inner_layers(regularize(model, batch_norm=True))}
    old = list(inner_layers(model))
    assert all(same(new[layer.name].get_weights(), layer.get_weights()) for layer in old)


@pytest.mark.backends
def test_batch_norm_put_in_computes_its_formula_before_the_activation():
    model = sequential(dense("dense", "relu"), dense("output"))
    new = regularize(model, batch_norm=True)
    _, batch_norm, _, _ = new.layers
    batch_norm.set_weights([np.full(4, v) for v in (2.0, 0.5, 1.0, 4.0)])
    kernel, bias, output_kernel, output_bias = model.get_weights()
    x = data(model)
    hidden = 2 * (x @ kernel + bias - 1) / np.sqrt(4 + 1e-3) + 0.5
    expected = np.maximum(hidden, 0) @ output_kernel + output_bias
    np.testing.assert_allclose(outputs(new)[0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("build", "settings", "expected"),
    [
        (
            lenet,
            {"batch_norm": True},
            "conv1 conv1_batch_norm conv1_activation pool1 conv2 conv2_batch_norm "
            "conv2_activation flatten dense1 dense1_batch_norm dense1_activation dense2 "
            "dense2_batch_norm dense2_activation output",
        ),
        (
            lenet,
            {"conv_dropout": 0.1},
            "conv1 conv1_dropout pool1 conv2 conv2_dropout flatten dense1 dense2 output",
        ),
        (
            lenet,
            {"dense_dropout": 0.1, "batch_norm": True},
            "conv1 conv1_batch_norm conv1_activation pool1 conv2 conv2_batch_norm "
            "conv2_activation flatten dense1 dense1_batch_norm dense1_activation dense1_dropout "
            "dense2 dense2_batch_norm dense2_activation dense2_dropout output",
        ),
        (lenet, {"conv_dropout": 0.0, "dense_dropout": 0}, " ".join(names(lenet()))),
        (lenet, {}, " ".join(names(lenet()))),
        (
            alexnet,
            {"conv_dropout": 0.1, "dense_dropout": 0.2, "batch_norm": True},
            "conv conv_bn conv_relu conv_relu_dropout pool flatten dense dense_bn dense_relu "
            "dense_drop output output_bn softmax",
        ),
        (
            nested,
            {"conv_dropout": 0.1, "dense_dropout": 0.2, "batch_norm": True},
            "conv conv_batch_norm conv_activation conv_dropout flatten dense dense_batch_norm "
            "dense_activation dense_dropout output",
        ),
        (
            lambda: sequential(sequential(dense("inner", "relu"), name="trunk"), dense("output")),
            {"dense_dropout": 0.2, "batch_norm": True},
            "inner inner_batch_norm inner_activation inner_dropout output",
        ),
    ],
)
def test_each_layer_is_put_where_it_belongs_in_a_chain(build, settings, expected):
    assert names(regularize(build(), **settings)) == expected.split()


@pytest.mark.parametrize(
    ("build", "settings", "expected"),
    [
        (
            residual,
            {"conv_dropout": 0.1},
            {
                "first_dropout": {"first"},
                "relu_dropout": {"relu"},
                "third_dropout": {"third"},
            },
        ),
        (
            residual,
            {"batch_norm": True},
            {
                "first_batch_norm": {"first"},
                "first_activation": {"first_batch_norm"},
                "third_batch_norm": {"third"},
            },
        ),
        (
            several,
            {"dense_dropout": 0.1, "batch_norm": True},
            {
                "left_batch_norm": {"left"},
                "left_activation": {"left_batch_norm"},
                "left_dropout": {"left_activation"},
                "middle_batch_norm": {"middle"},
                "middle_activation": {"middle_batch_norm"},
                "middle_dropout": {"middle_activation"},
            },
        ),
        (
            shared,
            {"dense_dropout": 0.1, "batch_norm": True},
            {
                "twice_batch_norm": {"twice"},
                "twice_activation": {"twice_batch_norm"},
                "twice_dropout": {"twice_activation"},
                "other_batch_norm": {"other"},
                "relu_dropout": {"relu"},
            },
        ),
        (masked, {"dense_dropout": 0.1, "batch_norm": True}, {"relu_dropout": {"relu"}}),
    ],
)
def test_each_layer_is_put_where_it_belongs_in_a_graph(build, settings, expected):
    assert put_in(build, **settings) == expected


@pytest.mark.parametrize(
    ("members", "settings"),
    [
        ([dense("output")], {}),
        ([dense("output", "softmax")], {}),
        ([dense("output"), layers.Activation("softmax", name="end")], {}),
        ([dense("output"), layers.Softmax(name="end")], {}),
        ([conv("output", "sigmoid")], {"shape": (4, 4, 1)}),
        ([sequential(dense("output", "softmax"), name="inner")], {}),
        ([sequential(dense("output"), layers.Softmax(name="end"), name="inner")], {}),
    ],
)
def test_output_layers_get_neither_dropout_nor_batch_norm(members, settings):
    model = sequential(*members, **settings)
    (group,) = groups_of(model)
    new = regularize(model, batch_norm=True, **{f"{group}_dropout": 0.5})
    assert names(new) == names(model)


def test_layers_that_share_one_activation_get_their_dropout_too():
    a, b = keras.Input((3,), name="a"), keras.Input((3,), name="b")
    relu = layers.ReLU(name="relu")
    ends = [relu(dense("first")(a)), relu(dense("second")(b))]

    def build():
        return keras.Model([a, b], dense("output")(layers.Concatenate(name="join")(ends)))

    found = put_in(build, dense_dropout=0.5)
    assert found in (
        {"relu_dropout": {"relu"}},
        {"first_dropout": {"first"}, "second_dropout": {"second"}},
    )


def test_dropout_reaches_a_layer_that_shares_its_activation_with_the_other_group():
    image, relu = keras.Input((4, 4, 1), name="image"), layers.ReLU(name="relu")
    hidden = layers.Flatten(name="flatten")(relu(conv("conv")(image)))
    outputs = [hidden, dense("output", use_bias=False)(relu(dense("dense")(hidden)))]
    model = keras.Model(image, outputs)
    x = data(model)
    first, second = regularize(model, dense_dropout=0.999999)(x, training=True)
    expected = ops.convert_to_numpy(model(x)[0])
    np.testing.assert_array_equal(ops.convert_to_numpy(first), expected)
    assert not ops.convert_to_numpy(second).any()


@pytest.mark.parametrize("build", [lenet, alexnet, residual, masked])
def test_an_instrumented_model_gets_everything_where_the_plain_one_would(build):
    settings = {"batch_norm": True}
    for group in groups_of(build()):
        settings[f"{group}_dropout"] = 0.5
    first, second = (
        strip(regularize(model, **settings)) for model in (instrument(build()), build())
    )
    assert [type(layer) for layer in first.layers] == [type(layer) for layer in second.layers]


def test_a_dropout_that_stands_there_gets_the_new_rate_and_others_keep_theirs():
    model = sequential(
        layers.Dropout(0.1, name="input_dropout"),
        dense("first", "relu"),
        layers.Dropout(0.2, seed=3, noise_shape=(None, None), name="after_fused"),
        dense("second"),
        layers.ReLU(name="relu"),
        layers.Dropout(0.3, name="after_separate"),
        layers.GaussianDropout(0.4, name="other_kind"),
        dense("output"),
    )
    new = regularize(model, dense_dropout=0.6)
    rates = {layer.name: layer.rate for layer in new.layers if hasattr(layer, "rate")}
    assert rates == {
        "input_dropout": 0.1,
        "after_fused": 0.6,
        "after_separate": 0.6,
        "other_kind": 0.4,
    }
    config = model.get_layer("after_fused").get_config()
    assert new.get_layer("after_fused").get_config() == {**config, "rate": 0.6}


def test_only_the_group_that_was_named_gets_dropout():
    model = sequential(
        conv("conv", "relu"),
        layers.Dropout(0.2, name="conv_drop"),
        layers.Flatten(),
        dense("dense", "relu"),
        layers.Dropout(0.3, name="dense_drop"),
        dense("output"),
        shape=(4, 4, 1),
    )
    new = regularize(model, conv_dropout=0.5)
    assert [new.get_layer(n).rate for n in ("conv_drop", "dense_drop")] == [0.5, 0.3]


@pytest.mark.parametrize(
    ("layer", "shape", "group", "keys"),
    [
        (layers.Dense(2), (3,), "dense", ["kernel_regularizer"]),
        (layers.EinsumDense("ab,bc->ac", 2), (3,), "dense", ["kernel_regularizer"]),
        (layers.Conv1D(2, 3), (4, 2), "conv", ["kernel_regularizer"]),
        (layers.Conv3D(2, 3), (4, 4, 4, 2), "conv", ["kernel_regularizer"]),
        (layers.Conv2DTranspose(2, 3), (4, 4, 2), "conv", ["kernel_regularizer"]),
        (layers.DepthwiseConv2D(3), (4, 4, 2), "conv", ["depthwise_regularizer"]),
        (
            layers.SeparableConv2D(2, 3),
            (4, 4, 2),
            "conv",
            ["depthwise_regularizer", "pointwise_regularizer"],
        ),
    ],
)
def test_every_kernel_of_the_group_gets_the_penalty_and_nothing_else_does(
    layer, shape, group, keys
):
    penalty = L1(0.1)
    (new,) = regularize(sequential(layer, shape=shape), **{group: penalty}).layers
    got = [k for k in new.get_config() if k.endswith("regularizer") and getattr(new, k) is penalty]
    assert sorted(got) == keys
    assert len(new.losses) == len(keys)


def test_convolutional_and_dense_layers_have_penalties_of_their_own_and_what_is_none_stays():
    mine, first, second = keras.regularizers.L1(0.3), L2(0.1), L2(0.2)
    model = lenet()
    both = regularize(model, conv=first, dense=second)
    one = regularize(both, conv=mine)
    found = [
        [layer.kernel_regularizer for layer in m.layers if hasattr(layer, "kernel_regularizer")]
        for m in (model, both, one)
    ]
    assert found == [[None] * 5, [first] * 2 + [second] * 3, [mine] * 2 + [second] * 3]


@pytest.mark.backends
def test_the_penalty_of_the_copy_follows_the_strength_of_the_shared_object():
    penalty = L2(0.5)
    model = regularize(nested(), dense=penalty)
    again = instrument(regularize(model, conv_dropout=0.5))
    kernels = [w for w in model.get_weights() if w.ndim == 2]
    for strength in (0.5, 0.25, 0.0):
        penalty.l2 = strength
        expected = strength * sum(np.sum(np.square(k)) for k in kernels)
        for m in (model, again):
            total = sum((float(ops.convert_to_numpy(v)) for v in m.losses), 0.0)
            assert total == pytest.approx(expected, rel=1e-6)


def test_a_penalty_that_the_model_was_built_with_is_shared_with_the_copy():
    penalty = regularizers.L1L2(0.1, 0.2)
    model = sequential(dense("dense", "relu", bias_regularizer=penalty), dense("output"))
    new = regularize(model, dense=L2(0.3), batch_norm=True)
    assert new.get_layer("dense").bias_regularizer is penalty


@pytest.mark.parametrize("name", ["l2", "L1"])
def test_a_penalty_can_be_named_as_in_keras(name):
    (new,) = regularize(sequential(dense("dense")), dense=name).layers
    assert type(new.kernel_regularizer) is type(keras.regularizers.get(name))


@each_model
def test_regularizing_twice_is_regularizing_once(build):
    settings = {"batch_norm": True}
    for group in groups_of(build()):
        settings |= {group: L2(0.1), f"{group}_dropout": 0.5}
    once = regularize(build(), **settings)
    twice = regularize(once, **settings)
    assert [layer.get_config() for layer in inner_layers(twice)] == [
        layer.get_config() for layer in inner_layers(once)
    ]


@pytest.mark.parametrize("taken", ["dense_batch_norm", "dense_activation", "dense_dropout"])
def test_the_new_layers_find_names_that_are_free(taken):
    model = sequential(dense("dense", "relu"), layers.Flatten(name=taken), dense("output"))
    found = names(regularize(model, batch_norm=True, dense_dropout=0.5))
    assert len(found) == len(set(found)) == 6


@pytest.mark.backends
@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "bfloat16"])
def test_the_new_layers_have_the_dtype_policy_of_their_layer(policy):
    model = sequential(dense("dense", "relu", dtype=policy), dense("output"))
    new = regularize(model, batch_norm=True, dense_dropout=0.5)
    assert [layer.dtype_policy.name for layer in new.layers] == [policy] * 4 + ["float32"]


@pytest.mark.parametrize("activation", [layers.PReLU("ones"), layers.LeakyReLU(0.3)])
def test_a_layer_as_fused_activation_is_copied_and_not_shared_with_the_original(activation):
    model = sequential(dense("dense", activation), dense("output"))
    model(data(model))
    for variable in activation.weights:
        variable.assign([0.1, 0.2, 0.3, 0.4])
    new = regularize(model, batch_norm=True)
    new(data(model))
    assert {id(v) for v in new.variables}.isdisjoint(id(v) for v in model.variables)
    kept = [w.tobytes() for w in new.get_weights()]
    assert all(w.tobytes() in kept for w in model.get_weights())
    assert activation not in [getattr(layer, "activation", layer) for layer in new.layers]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"conv": L2(0.1)},
            "Expected a model with layers of the group 'conv'. Received: the model 'net', whose "
            "groups are ['dense']",
        ),
        (
            {"conv_dropout": 0.5},
            "Expected a model with layers of the group 'conv'. Received: the model 'net', whose "
            "groups are ['dense']",
        ),
        *(
            (
                {"dense_dropout": value},
                "Argument `dense_dropout` must be a number in [0, 1). Received: "
                f"dense_dropout={value} (of type {type(value)})",
            )
            for value in (-0.1, 1.0, float("nan"), "half", True)
        ),
    ],
)
def test_regularize_says_what_it_cannot_do(settings, message):
    with pytest.raises(ValueError) as caught:
        regularize(sequential(dense("dense")), **settings)
    assert str(caught.value) == message


def test_a_group_without_layers_is_refused_where_there_is_no_group_at_all():
    with pytest.raises(ValueError) as caught:
        regularize(sequential(layers.ReLU()), dense=L2(0.1))
    assert str(caught.value) == (
        "Expected a model with layers of the group 'dense'. Received: the model 'net', whose "
        "groups are []"
    )


@pytest.mark.parametrize("surgery", [instrument, strip, regularize])
def test_a_frozen_inner_model_stays_frozen_and_can_be_unfrozen(surgery):
    inputs = keras.Input((3,))
    inner = keras.Model(inputs, dense("inner", "relu")(inputs), name="trunk")
    model = keras.Sequential([keras.Input((3,)), inner, dense("head", "relu")])
    inner.trainable = False
    copy = surgery(model)
    assert not copy.layers[0].trainable
    assert len(copy.trainable_variables) == len(model.trainable_variables) == 2
    copy.layers[0].trainable = inner.trainable = True
    assert len(copy.trainable_variables) == len(model.trainable_variables) == 4
