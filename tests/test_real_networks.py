"""Networks that we did not write: instrument, regularize, strip, recalibrate, fit and measure.

Outputs and trained weights are held against the plain network, moments against numpy, Hessian
products against differences of the gradient.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops
from problems import rows

import keras_regtools as rt

# What a copy leaves as it is, a warning names; that is tested elsewhere.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`regularize` acts on convolutional and dense layers"
)
RNG = np.random.default_rng(0)
SIZE, CLASSES = 4, 5
# Arguments: at most what makes them small; each of a family of its own.
APPLICATIONS = {
    "MobileNet": {"alpha": 0.25},
    "MobileNetV2": {"alpha": 0.35},
    "MobileNetV3Small": {"alpha": 0.35, "minimalistic": True},
    "EfficientNetB0": {},
    "EfficientNetV2B0": {},
    "DenseNet121": {},
    "ResNet50": {},
    "ResNet50V2": {},
    "VGG16": {},
    "Xception": {"shape": (71, 71, 3)},
    "InceptionV3": {"shape": (75, 75, 3)},
    "ConvNeXtTiny": {},
}


def application(name):
    options = {"shape": (32, 32, 3), **APPLICATIONS[name]}
    shape = options.pop("shape")
    make = getattr(keras.applications, name)
    model = make(weights=None, input_shape=shape, classes=CLASSES, **options)
    x = RNG.uniform(-1, 1, (SIZE, *shape))
    return model, x.astype("float32"), RNG.integers(0, CLASSES, SIZE), CROSS_ENTROPY


CROSS_ENTROPY = "sparse_categorical_crossentropy"


def u_net():
    def block(x, filters):
        for _ in range(2):
            x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
            x = layers.Activation("softplus")(layers.BatchNormalization()(x))
        return x

    inputs = keras.Input((16, 16, 2))
    fine = block(inputs, 4)
    coarse = block(layers.MaxPooling2D()(fine), 8)
    up = layers.UpSampling2D(interpolation="bilinear")(coarse)
    up = layers.Concatenate()([fine, layers.Conv2DTranspose(4, 1)(up)])
    model = keras.Model(inputs, layers.Conv2D(1, 1, activation="sigmoid")(block(up, 4)))
    x = RNG.normal(size=(SIZE, 16, 16, 2)).astype("float32")
    return model, x, (x[..., :1] > 0).astype("float32"), "binary_crossentropy"


def transformer():
    inputs = keras.Input((6,), dtype="int32")
    x = layers.Embedding(20, 8)(inputs)
    for _ in range(2):
        x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 4)(x, x))
        inner = layers.Dense(16, activation="gelu")(x)
        x = layers.LayerNormalization()(x + layers.Dense(8)(inner))
    outputs = layers.Dense(CLASSES, activation="softmax")(layers.GlobalAveragePooling1D()(x))
    x = RNG.integers(0, 20, (SIZE, 6)).astype("int32")
    return keras.Model(inputs, outputs), x, RNG.integers(0, CLASSES, SIZE), CROSS_ENTROPY


def text():
    inputs = keras.Input((None,), dtype="int32")
    x = layers.Embedding(20, 6, mask_zero=True)(inputs)
    x = layers.LSTM(5)(x)
    outputs = layers.Dense(1, activation="sigmoid")(layers.Dense(4, activation="relu")(x))
    x = RNG.integers(1, 20, (SIZE, 7)).astype("int32")
    x[:2, 4:] = 0
    y = RNG.integers(0, 2, (SIZE, 1)).astype("float32")
    return keras.Model(inputs, outputs), x, y, "binary_crossentropy"


def siamese():
    tower = keras.Sequential(
        [
            keras.Input((8,)),
            layers.Dense(6, use_bias=False),
            layers.BatchNormalization(),
            layers.Activation("relu"),
            layers.Dense(3),
        ],
        name="tower",
    )
    pair = [keras.Input((8,), name="one"), keras.Input((8,), name="other")]
    distance = layers.Subtract()([tower(pair[0]), tower(pair[1])])
    model = keras.Model(pair, layers.Dense(1, activation="sigmoid")(distance))
    x = [RNG.normal(size=(SIZE, 8)).astype("float32") for _ in range(2)]
    return model, x, RNG.integers(0, 2, (SIZE, 1)).astype("float32"), "binary_crossentropy"


def autoencoder():
    inputs = keras.Input((10,))
    code = layers.Dense(4, activation="softplus", activity_regularizer="l1")(inputs)
    model = keras.Model(inputs, layers.Dense(10)(layers.Dense(6, activation="softplus")(code)))
    x = RNG.normal(size=(SIZE, 10)).astype("float32")
    return model, x, x, "mse"


def many_to_many():
    image = keras.Input((8, 8, 1), name="image")
    number = keras.Input((3,), name="number")
    seen = layers.Flatten()(layers.Conv2D(3, 3, activation="relu")(image))
    both = layers.Concatenate()([seen, layers.Dense(4, activation="relu")(number)])
    both = layers.BatchNormalization()(layers.Dense(6)(both))
    kind = layers.Dense(CLASSES, activation="softmax", name="kind")(both)
    model = keras.Model([image, number], {"kind": kind, "size": layers.Dense(1, name="size")(both)})
    x = {
        "image": RNG.normal(size=(SIZE, 8, 8, 1)).astype("float32"),
        "number": RNG.normal(size=(SIZE, 3)).astype("float32"),
    }
    y = {
        "kind": RNG.integers(0, CLASSES, SIZE),
        "size": RNG.normal(size=(SIZE, 1)).astype("float32"),
    }
    return model, x, y, {"kind": CROSS_ENTROPY, "size": "mse"}


def frozen_base():
    base = keras.Sequential(
        [
            keras.Input((8,)),
            layers.Dense(6),
            layers.BatchNormalization(),
            layers.Activation("relu"),
        ],
        name="base",
    )
    base.trainable = False
    inputs = keras.Input((8,))
    outputs = layers.Dense(CLASSES, activation="softmax")(base(inputs, training=False))
    x = RNG.normal(size=(SIZE, 8)).astype("float32")
    return keras.Model(inputs, outputs), x, RNG.integers(0, CLASSES, SIZE), CROSS_ENTROPY


SMALL = {
    make.__name__: make
    for make in (u_net, transformer, text, siamese, autoencoder, many_to_many, frozen_base)
}
USUAL = ("MobileNetV2", "ResNet50")


def networks(*default, small=tuple(SMALL), applications=tuple(APPLICATIONS), usual=USUAL):
    """Some in the default run, a few with `-m slow`, all with `-m "slow or by_hand"`."""
    marks = {name: () for name in default}
    return [
        pytest.param(name, marks=marks.get(name, later(name, usual)))
        for name in (*small, *applications)
    ]


def later(name, usual):
    return pytest.mark.slow if name in SMALL or name in usual else pytest.mark.by_hand


WITH_NORMALIZATION = ("u_net", "many_to_many")
BATCH_NORMALIZED = [name for name in APPLICATIONS if name not in ("VGG16", "ConvNeXtTiny")]


def made(name):
    keras.utils.set_random_seed(0)
    return SMALL[name]() if name in SMALL else application(name)


def flat(arrays):
    return np.concatenate([ops.convert_to_numpy(a).ravel() for a in arrays])


def assert_same_outputs(one, other, x, **tolerance):
    pairs = zip(*(keras.tree.flatten(m.predict(x, verbose=0)) for m in (one, other)), strict=True)
    for a, b in pairs:
        np.testing.assert_allclose(a, b, **tolerance)


def monitors(path, x, y):
    return [
        rt.callbacks.Report(path),
        rt.callbacks.ActivationMonitor(),
        rt.callbacks.GradientMonitor(every=1),
        rt.callbacks.PenaltyMonitor(),
        rt.callbacks.WeightTrajectory(),
        rt.callbacks.Sharpness(x, y, measures=["sam"]),
    ]


def of_keras(path):
    """All callbacks that Keras brings with it and that need nothing else."""
    return [
        keras.callbacks.BackupAndRestore(str(path / "backup")),
        keras.callbacks.CSVLogger(str(path / "log.csv")),
        keras.callbacks.EarlyStopping("loss", patience=5),
        keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: None),
        keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.9),
        keras.callbacks.ModelCheckpoint(str(path / "best.weights.h5"), save_weights_only=True),
        keras.callbacks.ReduceLROnPlateau("loss", patience=5),
        keras.callbacks.SwapEMAWeights(),
        keras.callbacks.TensorBoard(str(path / "board")),
        keras.callbacks.TerminateOnNaN(),
    ]


@pytest.mark.parametrize("name", networks(*SMALL))
def test_copies_are_the_same_function(name):
    model, x, _, _ = made(name)
    seen = rt.instrument(model)
    assert_same_outputs(seen, model, x, rtol=1e-5, atol=1e-6)
    assert_same_outputs(rt.strip(seen), model, x, rtol=1e-5, atol=1e-6)
    convolves = any("Conv2D" in type(layer).__name__ for layer in model._flatten_layers())
    group = "conv" if convolves else "dense"
    calm = rt.regularize(model, **{group: rt.regularizers.L2(1e-3), f"{group}_dropout": 0.3})
    assert_same_outputs(calm, model, x, rtol=1e-5, atol=1e-6)


def trained(model, loss, x, y, callbacks):
    """The weights and what the optimizer holds after two fits in a row."""
    model.compile(keras.optimizers.SGD(1e-3, momentum=0.9, use_ema=True), loss)
    for _ in range(2):
        model.fit(x, y, batch_size=2, epochs=1, shuffle=False, callbacks=callbacks, verbose=0)
    return model.get_weights(), [ops.convert_to_numpy(v) for v in model.optimizer.variables]


def fits(name, path):
    """What `trained` gives of a plain network and of one with everything, and our callbacks."""
    model, x, y, loss = made(name)
    seen = rt.instrument(model)
    start, own = model.get_weights(), seen.get_weights()
    plain, ours = path / "plain", path / "ours"
    keras.utils.set_random_seed(1)
    expected = trained(model, loss, x, y, of_keras(plain))
    model.set_weights(start)
    seen.set_weights(own)
    keras.utils.set_random_seed(1)
    watching = monitors(ours / "run", x, y)
    found = trained(seen, loss, x, y, [*of_keras(ours), *watching])
    names = watching[0].records.names()
    assert {"loss", "gradients/norm", "sharpness/sam"} <= {*names}
    assert (ours / "run" / "report.html").exists()
    drawn = any(isinstance(layer, layers.Dropout) for layer in model._flatten_layers())
    return zip((*expected[0], *expected[1]), (*found[0], *found[1]), strict=True), drawn


@pytest.mark.parametrize("name", networks("siamese", usual=()))
def test_two_fits_with_everything_end_in_the_weights_of_plain_ones(name, tmp_path):
    pairs, drawn = fits(name, tmp_path)
    for one, other in pairs:
        if drawn:  # the copy has seeds of its own
            assert one.shape == other.shape
            assert np.isfinite(other).all()
        else:
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "name",
    networks(
        "u_net", "many_to_many", small=("u_net", "many_to_many"), applications=BATCH_NORMALIZED
    ),
)
def test_recalibrated_moments_are_those_of_numpy(name):
    model, x, _, _ = made(name)
    norms = [
        layer
        for layer in model.layers
        if isinstance(layer, layers.BatchNormalization) and len(layer._inbound_nodes) == 1
    ]
    received = keras.Model(model.inputs, norms[0].input).predict(x, verbose=0)
    rt.recalibrate(model, x, batch_size=3)
    axes = tuple(range(received.ndim - 1))
    mean = received.astype("float64").mean(axes)
    np.testing.assert_allclose(norms[0].moving_mean, mean, rtol=1e-3, atol=1e-5)


def product(name, floatx):
    """A Hessian product, its model and data and its direction."""
    model, x, y, loss = made(name)
    model.compile("sgd", loss)
    v = [RNG.normal(size=w.shape).astype(floatx) for w in model.trainable_variables]
    length = np.linalg.norm(flat(v))
    v = [part / length for part in v]
    surface = rt.LossSurface(model, x, y)
    return flat(surface.hvp(None, v)), surface, model, (x, y, loss), v


@pytest.mark.parametrize("name", rows(SMALL, "siamese", "frozen_base"))
def test_a_hessian_product_is_the_difference_of_gradients(name):
    keras.config.set_floatx("float64")  # so that a step is short enough to cross no kink
    keras.config.set_dtype_policy("float64")
    found, surface, model, _, v = product(name, "float64")
    weights = [ops.convert_to_numpy(w) for w in model.trainable_variables]
    step = 1e-6 * np.linalg.norm(flat(weights))
    ends = [
        flat(surface.value_and_gradient([w + s * d for w, d in zip(weights, v, strict=True)])[1])
        for s in (step, -step)
    ]
    differences = (ends[0] - ends[1]) / (2 * step)
    assert np.linalg.norm(differences) > 0
    assert np.linalg.norm(found - differences) < 0.01 * np.linalg.norm(differences)


@pytest.mark.parametrize("name", networks(small=()))
def test_a_hessian_product_is_that_of_two_tapes(name):
    """Their ReLUs have too many kinks for differences."""
    found, _, model, (x, y, loss), v = product(name, "float32")
    with tf.GradientTape() as outer:
        with tf.GradientTape() as inner:
            value = ops.mean(keras.losses.get(loss)(y, model(x, training=False)))
        gradient = inner.gradient(value, model.trainable_variables)
        along = sum(ops.sum(g * d) for g, d in zip(gradient, v, strict=True))
    expected = flat(outer.gradient(along, model.trainable_variables))
    assert np.linalg.norm(expected) > 0
    assert np.linalg.norm(found - expected) < 1e-2 * np.linalg.norm(expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SMALL if name != "autoencoder"])
def test_in_half_precision_the_weights_are_nearly_those_of_the_plain_fit(name, tmp_path):
    """TensorFlow rounds products once where nobody looks between them; Keras adds no activity
    penalty to a loss in half precision.
    """
    keras.config.set_dtype_policy("mixed_float16")
    for one, other in fits(name, tmp_path)[0]:
        np.testing.assert_allclose(one, other, rtol=5e-3, atol=1e-4)
