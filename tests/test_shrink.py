"""`shrink`: smaller networks that compute the same, on networks of many kinds."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from problems import rows

import keras_regtools as rt

pytestmark = pytest.mark.backends
array = keras.ops.convert_to_numpy


def chain(shape, *members, name="net"):
    return keras.Sequential([keras.Input(shape), *members], name=name)


def lenet(activation="relu", **options):
    return chain(
        (16, 16, 1),
        layers.Conv2D(6, 3, activation=activation, name="conv1", **options),
        layers.AveragePooling2D(2),
        layers.Conv2D(16, 3, activation=activation, name="conv2", **options),
        layers.MaxPooling2D(2),
        layers.Flatten(),
        layers.Dense(20, activation=activation, name="dense1"),
        layers.Dense(12, activation=activation, name="dense2"),
        layers.Dense(5, activation="softmax", name="output"),
    )


def vgg():
    return chain(
        (8, 8, 3),
        *(
            x
            for i in range(4)
            for x in (
                layers.Conv2D(8, 3, padding="same", use_bias=False, name=f"conv{i}"),
                layers.BatchNormalization(name=f"bn{i}"),
                layers.Activation("relu", name=f"relu{i}"),
                *([layers.MaxPooling2D(2, padding="same", name=f"pool{i}")] if i % 2 else []),
            )
        ),
        layers.Flatten(),
        layers.Dense(10, use_bias=False, name="dense"),
        layers.BatchNormalization(center=False),
        layers.ReLU(6.0),
        layers.Dropout(0.3),
        layers.Dense(3, name="output"),
    )


def residual():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, padding="same", name="stem")(inputs)
    for i in range(2):
        y = layers.BatchNormalization(name=f"bn{i}")(x)
        y = layers.Activation("relu", name=f"act{i}")(y)
        y = layers.Conv2D(6, 3, padding="same", activation="relu", name=f"a{i}")(y)
        y = layers.Conv2D(8, 3, padding="same", name=f"b{i}")(y)
        x = layers.Add(name=f"add{i}")([x, y]) if i else x + y
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(4, name="output")(x), name="net")


def inception():
    inputs = keras.Input((9, 9, 2))
    a = layers.Conv2D(5, 3, padding="same", activation="elu", name="a")(inputs)
    b = layers.Conv2D(4, 1, activation="sigmoid", name="b")(inputs)
    b = layers.Conv2D(5, 5, padding="same", activation="relu", name="b2")(b)
    c = layers.MaxPooling2D(3, 1, padding="same")(inputs)
    x = layers.Concatenate()([a, b, c])
    x = layers.Conv2D(6, 3, strides=2, activation="relu", name="after")(x)
    x = layers.Reshape((-1,))(x)
    return keras.Model(inputs, [layers.Dense(3, name="one")(x), layers.Dense(2, name="two")(x)])


def mobile():
    inputs = keras.Input((10, 10, 3))
    x = layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False, name="stem")(inputs)
    x = layers.BatchNormalization()(x)
    x = layers.ReLU()(x)
    x = layers.DepthwiseConv2D(3, padding="valid", depth_multiplier=2, name="depthwise")(x)
    x = layers.BatchNormalization()(x)
    y = layers.GlobalAveragePooling2D()(x)  # squeeze and excite
    y = layers.Reshape((1, 1, 16))(y)
    y = layers.Conv2D(4, 1, activation="relu", name="squeeze")(y)
    y = layers.Conv2D(16, 1, activation="hard_sigmoid", name="excite")(y)
    x = layers.Multiply()([x, y])
    x = layers.SeparableConv2D(6, 3, activation="relu", name="separable")(x)
    x = layers.GlobalMaxPooling2D(keepdims=True)(x)
    x = layers.Flatten()(x)
    return keras.Model(inputs, layers.Dense(4, activation="softmax", name="output")(x))


def autoencoder():
    return chain(
        (8, 8, 2),
        layers.Conv2D(6, 3, strides=2, padding="same", activation="relu", name="down"),
        layers.ZeroPadding2D(1),
        layers.Conv2D(6, 3, activation="tanh", name="inner"),
        layers.PReLU(shared_axes=[1, 2], alpha_initializer="random_normal"),
        layers.PReLU(alpha_initializer="random_normal", name="each"),
        layers.Conv2DTranspose(5, 3, strides=2, padding="same", activation="relu", name="up"),
        layers.UpSampling2D(2),
        layers.Cropping2D(1),
        layers.SpatialDropout2D(0.2),
        layers.Conv2D(2, 3, padding="same", name="output"),
    )


def sequence():
    return chain(
        (14, 3),
        layers.Conv1D(8, 3, padding="causal", activation="relu", name="conv1"),
        layers.LayerNormalization(),
        layers.Conv1D(8, 3, dilation_rate=2, activation="gelu", name="conv2"),
        layers.Dense(6, activation="relu", name="steps"),
        layers.MaxPooling1D(2),
        layers.LSTM(5, return_sequences=True),
        layers.Conv1D(6, 2, groups=1, activation="silu", name="conv3"),
        layers.GlobalAveragePooling1D(),
        layers.RepeatVector(2),
        layers.Dense(4, activation="relu", name="again"),
        layers.Flatten(),
        layers.Dense(2, name="output"),
    )


def nested():
    inner = vgg()
    block = keras.Sequential(
        [keras.Input((3,)), layers.Dense(9, "relu", name="wide"), layers.Dense(4, name="narrow")]
    )
    inputs = keras.Input((8, 8, 3))
    x = layers.Rescaling(0.5)(inputs)
    x = layers.Dense(6, activation="leaky_relu", name="last")(block(inner(x)))
    return keras.Model(inputs, layers.Softmax()(x))


def instrumented():
    return rt.instrument(rt.regularize(lenet(), batch_norm=True, conv_dropout=0.1))


def together(x):
    return x / (1 + ops.sum(ops.abs(x), axis=-1, keepdims=True))


def volume():
    return chain(
        (6, 6, 6, 1),
        layers.Conv3D(4, 3, activation="softplus", name="conv1"),
        layers.MaxPooling3D(2),
        layers.Conv3DTranspose(4, 2, activation="relu", name="conv2"),
        layers.Dense(5, activation=layers.ReLU(), name="places"),
        layers.GlobalAveragePooling3D(),
        layers.Dense(2, activation=together, name="own"),
        layers.Dense(2, name="output"),
    )


def arithmetic():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, padding="same", name="first")(inputs)
    x = 1.0 - keras.ops.relu(x) * 2.0
    x = keras.ops.maximum(x, -0.5) / 3
    y = keras.ops.mean(x, axis=(1, 2))
    y = layers.Dense(8, activation="sigmoid", name="gate")(y)
    y = keras.ops.expand_dims(keras.ops.expand_dims(y, 1), 2)
    x = x * y
    x = layers.Conv2D(6, 2, strides=2, padding="same", activation="relu", name="halved")(x)
    x = layers.Permute((1, 3, 2))(x)
    x = keras.ops.transpose(x, (0, 2, 1, 3))
    x = layers.Permute((2, 3, 1))(x)
    z = keras.ops.max(x, axis=[1, 2], keepdims=True)
    x = keras.ops.concatenate([layers.Flatten()(x), layers.Flatten()(z)], axis=-1)
    return keras.Model(inputs, layers.Dense(3, name="output")(x))


def several_tensors():
    inputs = keras.Input((6, 3))
    pool, flat = layers.MaxPooling1D(2), layers.Flatten()
    x = layers.Conv1D(8, 3, padding="same", activation="relu", name="first")(inputs)
    y = layers.Conv1D(5, 3, padding="same", activation="tanh", name="second")(pool(x))
    _, state, cell = layers.LSTM(4, return_state=True)(y)
    a = layers.MultiHeadAttention(2, 3, name="attention")(y, y)
    x = layers.Concatenate()([flat(x), flat(pool(y)), flat(a), state, cell])
    return keras.Model(inputs, layers.Dense(3, name="output")(x))


def grouped():
    return chain(
        (6, 6, 4),
        layers.Conv2D(8, 1, padding="same", activation="elu", name="first"),
        layers.Conv2D(8, 3, groups=2, name="groups"),
        layers.Conv2D(6, 1, strides=2, padding="same", name="second"),
        layers.Reshape((4, 6)),
        layers.TimeDistributed(layers.Dense(4), name="steps"),
        layers.Flatten(),
        layers.Dense(8, activation="relu", name="hidden"),
        layers.Dense(3, name="output"),
    )


def channels_first():
    first = {"data_format": "channels_first"}
    return chain(
        (2, 8, 8),
        layers.Conv2D(5, 3, padding="same", activation="relu", name="conv1", **first),
        layers.BatchNormalization(axis=1),
        layers.MaxPooling2D(2, **first),
        layers.DepthwiseConv2D(3, padding="same", name="depthwise", **first),
        layers.PReLU(alpha_initializer="random_normal"),
        layers.Conv2D(6, 3, activation="relu", name="conv2", **first),
        layers.Flatten(**first),
        layers.Dense(3, name="output"),
    )


NETWORKS = {
    f.__name__: f
    for f in (lenet, vgg, residual, inception, mobile, autoencoder, sequence, nested)
    + (instrumented, volume, arithmetic, several_tensors, grouped)
}
if keras.backend.backend() != "tensorflow":  # which has no such convolution on a CPU
    NETWORKS["channels_first"] = channels_first


def everything(model):
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from everything(layer)
        else:
            yield layer


def disturb(model, seed):
    """Weights that are nowhere those of the initializers."""
    rng = np.random.default_rng(seed)
    for layer in everything(model):
        for w in layer.weights:
            value = array(w)
            if w.name in ("bias", "beta", "moving_mean"):
                w.assign(rng.normal(size=value.shape) * 0.3)
            elif w.name in ("gamma", "moving_variance"):
                w.assign(rng.uniform(0.5, 1.5, value.shape))


def zero(model, seed, share=0.5, inputs=0.2):
    """Zeros in whole filters, and in what is read of some inputs."""
    rng = np.random.default_rng(seed)
    for layer in everything(model):
        for w in layer.weights:
            value = np.array(array(w))
            if "kernel" in w.name and value.ndim > 1:
                turned = "Transpose" in type(layer).__name__
                out, before = (-2, -1) if turned else (-1, -2)
                np.moveaxis(value, out, 0)[rng.uniform(size=value.shape[out]) < share] = 0
                np.moveaxis(value, before, 0)[rng.uniform(size=value.shape[before]) < inputs] = 0
                w.assign(value)
            elif w.name == "gamma" and rng.uniform() < 0.5:
                value[rng.uniform(size=value.shape) < 0.2] = 0
                w.assign(value)


def outputs(model, x):
    return [array(y) for y in keras.tree.flatten(model(x, training=False))]


def same(model, small, seed=0, tolerance=2e-6):
    shape = (5, *model.inputs[0].shape[1:])
    x = np.random.default_rng(seed).normal(size=shape).astype("float32")
    for a, b in zip(outputs(model, x), outputs(small, x), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(b, a, atol=tolerance * max(1.0, np.abs(a).max()), rtol=0)


@pytest.mark.filterwarnings("ignore:.*leaves as they are")
@pytest.mark.parametrize("seed", rows(range(3), 0))
@pytest.mark.parametrize("name", list(NETWORKS))
def test_outputs_are_equal_and_the_network_smaller(name, seed, capsys):
    keras.utils.set_random_seed(seed)
    model = NETWORKS[name]()
    disturb(model, seed)
    zero(model, seed, share=(0.3, 0.5, 0.8)[seed])
    before = [np.array(array(w)) for w in model.weights]
    small = rt.shrink(model)
    same(model, small)
    table = capsys.readouterr().out
    (total,) = [line for line in table.splitlines() if line.startswith("total")]
    sizes = [f"{m.count_params():,}" for m in (model, small)]
    assert f"{sizes[0]} → {sizes[1]}" in total
    assert small.count_params() < model.count_params()
    for w, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(array(w), value)
    again = rt.shrink(small, verbose=False)
    assert again.count_params() <= small.count_params()
    same(model, again)


def set_kernel(model, name, change):
    kernel = model.get_layer(name).kernel
    value = np.array(array(kernel))
    change(value)
    kernel.assign(value)


def zero_filters(*which):
    def change(kernel):
        kernel[..., list(which)] = 0

    return change


def zero_inputs(*which):
    def change(kernel):
        kernel[..., list(which), :] = 0

    return change


def widths(model):
    return {x.name: x.output.shape[-1] for x in everything(model) if "kernel" in repr(x.weights)}


def test_a_filter_goes_with_its_places_behind_flatten():
    model = lenet()
    disturb(model, 0)
    set_kernel(model, "conv2", zero_filters(0, 5, 6, 7))
    set_kernel(model, "dense2", zero_inputs(3))  # nothing reads it
    small = rt.shrink(model, verbose=False)
    assert widths(small) == {"conv1": 6, "conv2": 12, "dense1": 19, "dense2": 12, "output": 5}
    assert small.get_layer("dense1").kernel.shape == (48, 19)
    kept = [1, 2, 3, 4, *range(8, 16)]
    np.testing.assert_array_equal(
        array(small.get_layer("conv2").kernel), array(model.get_layer("conv2").kernel)[..., kept]
    )
    dead = np.maximum(array(model.get_layer("conv2").bias)[[0, 5, 6, 7]], 0)
    wide = array(model.get_layer("dense1").kernel).reshape(2, 2, 16, 20)
    added = dead @ wide[:, :, [0, 5, 6, 7]].sum(axis=(0, 1))
    units = [0, 1, 2, *range(4, 20)]
    np.testing.assert_allclose(
        array(small.get_layer("dense1").bias),
        (array(model.get_layer("dense1").bias) + added)[units],
        atol=1e-6,
    )
    same(model, small)


def test_what_becomes_unread_or_constant_goes_too():
    model = chain(
        (4,), *(layers.Dense(6, "relu", name=f"d{i}") for i in range(4)), layers.Dense(1, name="o")
    )
    disturb(model, 0)
    set_kernel(model, "d3", zero_inputs(0, 1, 2))  # so that 0 to 2 of d2 have no reader
    set_kernel(model, "d2", lambda k: k.__setitem__((slice(2), slice(3, 6)), 0))
    set_kernel(model, "d0", zero_filters(0, 1, 2, 3))
    set_kernel(model, "d1", lambda k: k.__setitem__((slice(4, 6), slice(5, 6)), 0))  # constant now
    small = rt.shrink(model, verbose=False)
    assert widths(small) == {"d0": 2, "d1": 3, "d2": 3, "d3": 6, "o": 1}
    same(model, small)


def padded(use_bias):
    return chain(
        (6, 6, 2),
        layers.Conv2D(6, 3, padding="same", activation="relu", name="first"),
        layers.MaxPooling2D(2, padding="same"),
        layers.Conv2D(4, 3, padding="same", use_bias=use_bias, name="second"),
        layers.Flatten(),
        layers.Dense(2, name="output"),
    )


def test_before_padding_one_constant_stands_for_all():
    model = padded(False)
    disturb(model, 1)
    set_kernel(model, "first", zero_filters(0, 1, 2, 3))
    model.get_layer("first").bias.assign([0.2, 0.5, -1.0, 0.1, 0.0, 0.3])
    small = rt.shrink(model, verbose=False)
    assert widths(small)["first"] == 3  # the second stands for the first and the fourth
    np.testing.assert_allclose(array(small.get_layer("first").bias), [0.5, 0, 0.3], rtol=1e-6)
    before, after = (array(m.get_layer("second").kernel) for m in (model, small))
    together = before[:, :, 1] + 0.4 * before[:, :, 0] + 0.2 * before[:, :, 3]
    np.testing.assert_allclose(after[:, :, 0], together, rtol=1e-5, atol=1e-7)
    same(model, small)
    model.get_layer("first").bias.assign([-0.2, -0.5, -1.0, 0.0, 0.0, 0.3])
    small = rt.shrink(model, verbose=False)  # zeros need no one to stand for them
    assert widths(small)["first"] == 2
    same(model, small)


def test_a_bias_comes_in_where_a_constant_needs_one():
    model = chain(
        (4,),
        layers.Dense(3, "sigmoid", name="first"),
        layers.Dense(2, use_bias=False, name="output"),
    )
    set_kernel(model, "first", zero_filters(1))
    model.compile(keras.optimizers.AdamW(1e-3), "mse", metrics=["mae"])
    small = rt.shrink(model, verbose=False)
    assert small.layers[1].use_bias
    assert small.layers[0].units == 2
    np.testing.assert_allclose(
        array(small.layers[1].bias), 0.5 * array(model.layers[1].kernel)[1], rtol=1e-6
    )
    same(model, small)
    x = np.ones((8, 4), "float32")
    np.testing.assert_allclose(
        small.evaluate(x, np.ones((8, 2)), verbose=0),
        model.evaluate(x, np.ones((8, 2)), verbose=0),
        rtol=1e-5,
    )
    small.fit(x, np.ones((8, 2)), verbose=0)


def test_a_scale_of_zero_takes_the_filter_out():
    model = chain(
        (6, 6, 2),
        layers.Conv2D(5, 3, name="first"),
        layers.BatchNormalization(name="norm"),
        layers.Activation("tanh"),
        layers.Conv2D(4, 1, name="second"),
        layers.Flatten(),
        layers.Dense(2, name="output"),
    )
    disturb(model, 0)
    gamma = model.get_layer("norm").gamma
    gamma.assign(array(gamma) * [1, 0, 1, 0, 1])  # whatever the filters give, β is left
    small = rt.shrink(model, verbose=False)
    assert widths(small)["first"] == 3
    added = np.tanh(array(model.get_layer("norm").beta)[[1, 3]])
    kernel = array(model.get_layer("second").kernel)[0, 0]
    np.testing.assert_allclose(
        array(small.get_layer("second").bias) - array(model.get_layer("second").bias),
        added @ kernel[[1, 3]],
        atol=1e-6,
    )
    same(model, small)


def test_what_was_set_for_single_weights_stays_with_them():
    model = chain((4,), layers.Dense(3, "relu", name="a"), layers.Dense(2, name="b"))
    set_kernel(model, "a", zero_filters(1))
    optimizer = keras.optimizers.AdamW(0.1, weight_decay=0.5)
    model.compile(optimizer, "mse")
    optimizer.exclude_from_weight_decay(var_list=[model.get_layer("b").kernel])
    small = rt.shrink(model, verbose=False)
    before = [array(small.get_layer(name).kernel).copy() for name in "ab"]
    x = np.zeros((4, 4), "float32")
    small.compile(small.optimizer, lambda y, p: 0 * p[:, 0])
    small.fit(x, np.zeros((4, 2)), verbose=0)
    after = [array(small.get_layer(name).kernel) for name in "ab"]
    np.testing.assert_allclose(after[0], before[0] * (1 - 0.1 * 0.5), rtol=1e-5)
    np.testing.assert_array_equal(after[1], before[1])


def test_in_a_sum_a_channel_goes_where_all_branches_agree(capsys):
    model = residual()
    disturb(model, 0)
    for name in ("bn0", "bn1"):  # whose constants end behind the ReLU
        model.get_layer(name).beta.assign(np.full(8, -9.0))
    for name in ("stem", "b0", "b1"):
        model.get_layer(name).bias.assign(np.zeros(8))
        set_kernel(model, name, zero_filters(1, 2))
    set_kernel(model, "b0", zero_filters(4))
    set_kernel(model, "output", zero_inputs(7))
    small = rt.shrink(model)
    printed = capsys.readouterr().out
    sizes = widths(small)
    assert (sizes["stem"], sizes["b0"], sizes["b1"]) == (6, 6, 6)
    assert "b0: 1 zero output stays: 'add" in printed
    same(model, small)


def test_no_constant_stands_where_nothing_is_padded():
    for size, strides, width in ((1, 1, 8), (1, 3, 7), (2, 2, 8)):
        model = chain(
            (width, width, 2),
            layers.Conv2D(6, 1, name="first"),
            layers.Conv2D(4, size, strides, padding="same", name="second"),
            layers.Conv2D(4, 3, padding="same", name="third"),
            layers.Flatten(),
            layers.Dense(2, name="output"),
        )
        disturb(model, 0)
        set_kernel(model, "first", zero_filters(0, 1, 2))
        set_kernel(model, "second", zero_filters(3, 2))
        small = rt.shrink(model, verbose=False)
        assert widths(small) == {"first": 3, "second": 3, "third": 4, "output": 2}
        same(model, small)


def test_what_is_not_followed_is_told(capsys):
    model = grouped()
    for name in ("groups", "second"):
        set_kernel(model, name, zero_filters(0, 1))
    set_kernel(model, "first", zero_filters(0))
    inner = model.get_layer("steps").layer.kernel
    inner.assign(np.zeros(inner.shape))
    rt.shrink(model)
    told = capsys.readouterr().out
    assert "first: 1 zero output stays: 'groups' (Conv2D) takes it whole." in told
    assert "groups: 2 zero outputs stay: `shrink` does not take such a Conv2D apart." in told
    assert "second: 2 zero outputs stay: 'steps' (TimeDistributed) takes it whole." in told
    assert "steps: 4 zero outputs stay: `shrink` does not take such a TimeDistributed" in told
    assert "Multiplications are not counted of steps." in told


def test_the_table_of_a_normalization_and_of_a_model_inside(capsys):
    model = nested()
    inner = model.layers[2]
    disturb(model, 0)
    set_kernel(inner, "conv0", zero_filters(0, 1))
    inner.get_layer("bn0").beta.assign(np.full(8, -9.0))
    set_kernel(inner, "output", zero_filters(1))
    rt.shrink(model)
    told = capsys.readouterr().out
    rows = {line.split("  ")[0]: line.split() for line in told.splitlines()}
    assert rows["net/conv0"][1:7] == ["8", "→", "6", "216", "→", "162"]
    assert rows["net/bn0"][1:4] == ["8", "→", "6"]
    assert "net/output: 1 zero output stays: it is the output 'output' of 'net'." in told


@pytest.mark.skipif(  # on PyTorch Keras' matmul has single precision
    keras.backend.backend() != "tensorflow", reason="double precision is TensorFlow's"
)
def test_double_precision_stays_double():
    keras.config.set_dtype_policy("float64")
    try:
        model = lenet("tanh")
    finally:
        keras.config.set_dtype_policy("float32")
    disturb(model, 0)
    zero(model, 0)
    x = np.random.default_rng(0).normal(size=(5, 16, 16, 1))
    a, b = (outputs(m, x)[0] for m in (model, rt.shrink(model, verbose=False)))
    np.testing.assert_allclose(b, a, rtol=1e-12)


def test_the_table(capsys):
    model = lenet()
    set_kernel(model, "dense1", zero_filters(*range(15)))
    set_kernel(model, "conv1", zero_filters(*range(6)))
    rt.shrink(model)
    printed = capsys.readouterr().out
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in printed.splitlines()}
    assert rows["layer"] == "outputs parameters multiplications"
    assert rows["conv1"] == "6 → 1 60 → 10 10,584 → 1,764"


@pytest.mark.slow
def test_a_group_lasso_shrinks_what_it_trained():
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(256, 16, 16, 1)).astype("float32")
    y = (x[:, :8].mean(axis=(1, 2, 3)) > 0).astype(int)
    lasso = rt.regularizers.GroupLasso(3e-3, proximal=True)
    model = rt.regularize(lenet(), conv=lasso, dense=lasso)
    model.compile(keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy")
    model.fit(x, y, batch_size=32, epochs=15, verbose=0)
    small = rt.shrink(model, verbose=False)
    assert small.count_params() < model.count_params() / 2
    same(model, small)
    assert all(x.kernel_regularizer is lasso for x in small.layers if hasattr(x, "kernel"))


def test_saved_and_read_back(tmp_path):
    model = residual()
    disturb(model, 3)
    zero(model, 3)
    small = rt.shrink(model, verbose=False)
    small.save(tmp_path / "small.keras")
    same(small, keras.models.load_model(tmp_path / "small.keras"), tolerance=0)


def test_half_precision():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = lenet()
    finally:
        keras.config.set_dtype_policy("float32")
    disturb(model, 0)
    zero(model, 0)
    same(model, rt.shrink(model, verbose=False), tolerance=4e-3)


class Own(keras.Model):
    def __init__(self):
        super().__init__(name="own")
        self.dense = layers.Dense(2)

    def call(self, x):
        return self.dense(x)


def shared():
    inputs = keras.Input((3,))
    dense = layers.Dense(3, name="twice")
    return keras.Model(inputs, dense(dense(inputs)), name="net")


def wrapped():
    inputs = keras.Input((2, 3))
    dense = layers.Dense(3, name="inner")
    return keras.Model(inputs, dense(layers.TimeDistributed(dense)(inputs)), name="net")


def inside():
    model = Own()
    model(np.zeros((1, 2)))
    return keras.Sequential([keras.Input((2,)), model])


def several_times(name, kind):
    return (
        "`shrink` expected a model that uses each layer with weights once. Received: the model "
        f"'net', which uses these several times: '{name}' ({kind})"
    )


class NoConfig(layers.Layer):
    def __init__(self, width):
        super().__init__(name="mine")
        self.width = width

    def call(self, x):
        return x


def without_config():
    return chain((2,), NoConfig(3), layers.Dense(1))


NO_CONFIG = (
    "Expected layers that can be made again from their `get_config`. Received: 'mine' (NoConfig), "
    "which cannot"
)
SUBCLASSED = (
    "`shrink` expected a Sequential or functional model, whose layers are known. Received: the "
    "model 'own' of the subclassed type Own. Build it smaller and copy the weights that are not "
    "zero."
)


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (shared, ValueError, several_times("twice", "Dense")),
        (wrapped, ValueError, several_times("inner", "Dense")),
        (inside, ValueError, SUBCLASSED),
        (lambda: inside().layers[0], ValueError, SUBCLASSED),
        (without_config, ValueError, NO_CONFIG),
        (lambda: 3, TypeError, "Expected a `keras.Model`. Received: 3 (of type <class 'int'>)."),
    ],
)
def test_what_cannot_be_shrunk_is_refused_in_one_sentence(make, kind, message):
    with pytest.raises(kind) as error:
        rt.shrink(make())
    assert str(error.value) == message
