"""Kinds of networks whose numbers were once wrong in silence, judged by numpy and differences."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_regtools as rt

pytestmark = pytest.mark.backends
BACKEND = keras.backend.backend()
TENSORFLOW = pytest.mark.skipif(BACKEND != "tensorflow", reason="the gaps are TensorFlow's")
RNG = np.random.default_rng(0)
IDS = np.array([[1, 2, 0, 0, 0], [3, 1, 4, 2, 0], [2, 0, 0, 0, 0], [4, 3, 1, 1, 2]])
STEP_LABELS = RNG.integers(0, 3, (4, 5))
IMAGES = RNG.standard_normal((2, 4, 4, 1)).astype("float32")
A = RNG.normal(0, 1, (24, 2)).astype("float32")
B = RNG.normal(8, 2, (24, 2)).astype("float32")
RECORDERS = (rt.layers.ActivationStatistics, rt.layers.InstrumentedBatchNormalization)


def array(tensor):
    return np.array(ops.convert_to_numpy(tensor), "float64")


def flat(tensors):
    return np.concatenate([array(t).ravel() for t in tensors])


def normal(*shape):
    return RNG.standard_normal(shape).astype("float32")


def vector(surface):
    return [np.full(p.shape, 0.1, "float32") * (-1) ** p.ndim for p in surface.params]


def difference(surface, v, step=0.1):
    """The Hessian product by central differences of the gradient, with the error of order 4."""

    def at(t):
        moved = [array(p) + t * w for p, w in zip(surface.params, v, strict=True)]
        return flat(surface.value_and_gradient([m.astype("float32") for m in moved])[1])

    once, twice = ((at(t) - at(-t)) / 2 / t for t in (step, 2 * step))
    return (4 * once - twice) / 3


def assert_product_is_right(model, x, y, loss):
    model.compile("sgd", loss)
    surface = rt.LossSurface(model, x, y)
    v = vector(surface)
    expected = difference(surface, v)
    close = {"rtol": 1e-2, "atol": 1e-2 * np.abs(expected).max()}
    np.testing.assert_allclose(flat(surface.hvp(None, v)), expected, **close)
    two = surface.hvp(None, [v, [2 * w for w in v]])
    np.testing.assert_allclose(flat(two[0]), expected, **close)
    np.testing.assert_allclose(flat(two[1]), 2 * expected, **close)
    return surface


# --- second derivatives ---------------------------------------------------------------------------


class Calling(layers.Layer):
    def __init__(self, function, **kwargs):
        super().__init__(**kwargs)
        self.function = function

    def call(self, x):
        return self.function(x)


def around(*inside):
    """Something with a curvature on both sides of it."""
    first, last = (layers.Conv2D(2, 3, padding="same", activation="tanh") for _ in range(2))
    return keras.Sequential([keras.Input((4, 4, 1)), first, *inside, last, layers.Conv2D(1, 1)])


def test_curvature_goes_through_resizing_layers():
    down = layers.Resizing(2, 2, interpolation="bilinear")
    up = keras.Sequential([layers.UpSampling2D(2, interpolation="bicubic")])
    surface = assert_product_is_right(around(down, up), IMAGES, normal(2, 4, 4, 1), "mse")
    assert surface.check() == []


def through(name):
    import tensorflow as tf

    return {
        "quantized": lambda t: tf.quantization.fake_quant_with_min_max_args(t, -1, 1),
        "in a branch": lambda t: tf.cond(
            tf.reduce_sum(t) < 1e9, lambda: tf.image.resize(t, (4, 4), method="bicubic"), lambda: t
        ),
    }[name]


@TENSORFLOW
@pytest.mark.parametrize("name", ["in a branch", "quantized"])
def test_what_has_no_second_derivative_is_named(name):
    model = around(Calling(through(name), name="culprit"))
    model.compile("sgd", "mse")
    surface = rt.LossSurface(model, IMAGES, array(model(IMAGES)).astype("float32") + 1)
    v = vector(surface)
    with pytest.raises(NotImplementedError) as caught:
        surface.hvp(None, v)
    assert "'culprit' (of type Calling)" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_branches_are_not_refused():
    bend = Calling(lambda t: ops.cond(ops.sum(t) > 1e9, lambda: t, lambda: ops.sin(t)))
    members = [layers.Dense(2), bend, layers.Dense(1)]
    model = keras.Sequential([keras.Input((2,)), *members])
    model.compile("sgd", "mse")
    surface = rt.LossSurface(model, A, B[:, :1])
    v = vector(surface)
    got = flat(surface.hvp(None, v))
    np.testing.assert_allclose(got, difference(surface, v), rtol=1e-2, atol=1e-3)


@pytest.mark.slow
def test_curvature_of_tables_and_of_dense_layers_over_steps():
    members = [layers.Embedding(5, 2), layers.Dense(3), layers.Softmax()]
    model = keras.Sequential([keras.Input((5,), dtype="int32"), *members])
    loss = "sparse_categorical_crossentropy"
    surface = assert_product_is_right(model, IDS, STEP_LABELS, loss)
    top = rt.measures.hessian_eigenvalues(surface, k=1).eigenvalues[0]
    sharpness = rt.callbacks.Sharpness(IDS, STEP_LABELS, measures="eigenvalue")
    model.compile(keras.optimizers.SGD(0.0), loss)
    logs = model.fit(IDS, STEP_LABELS, callbacks=[sharpness], verbose=0).history
    assert logs["sharpness/eigenvalue"] == [pytest.approx(top, rel=1e-2)]
    size = sum(array(p).size for p in surface.params)
    sizes = np.cumsum([array(p).size for p in surface.params])[:-1]
    parts = [np.split(row, sizes) for row in np.eye(size, dtype="float32")]
    shapes = [p.shape for p in surface.params]
    units = [[w.reshape(s) for w, s in zip(ws, shapes, strict=True)] for ws in parts]
    hessian = np.array([difference(surface, unit) for unit in units])
    assert top == pytest.approx(np.linalg.eigvalsh((hessian + hessian.T) / 2)[-1], rel=1e-2)


# --- masks ----------------------------------------------------------------------------------------


def softmax(z):
    return np.exp(z) / np.exp(z).sum(-1, keepdims=True)


def test_masked_steps_and_a_pooled_output_have_the_gauss_newton_matrix_of_numpy():
    table = layers.Embedding(5, 2, mask_zero=True, embeddings_initializer="normal")
    kernel = layers.Dense(3, use_bias=False, name="kernel")
    inputs = keras.Input((5,), dtype="int32")
    logits = kernel(table(inputs))
    pooled = layers.GlobalAveragePooling1D()(logits)
    model = keras.Model(inputs, [layers.Activation("softmax")(logits), pooled])
    model.compile("sgd", ["sparse_categorical_crossentropy", "mse"], loss_weights=[1.0, 0.5])
    targets = [STEP_LABELS, normal(4, 3)]
    surface = rt.LossSurface(model, IDS, targets, layers="kernel")
    embedded, w = array(table.embeddings)[IDS], array(kernel.kernel)
    counts, matrix = IDS > 0, np.zeros((6, 6))
    for e in embedded[counts]:
        p = softmax(e @ w)
        matrix += np.kron(np.outer(e, e), np.diag(p) - np.outer(p, p)) / counts.sum()
    for rows, real in zip(embedded, counts, strict=True):
        mean = rows[real].mean(0)
        matrix += 0.5 * np.kron(np.outer(mean, mean), 2 / 3 * np.eye(3)) / 4
    v = normal(2, 3)
    got = flat(surface.gnvp(None, [v]))
    np.testing.assert_allclose(got, matrix @ v.ravel(), rtol=1e-3, atol=1e-7)


def test_only_positions_that_count_are_right_or_wrong():
    table = layers.Embedding(5, 3, mask_zero=True, embeddings_initializer="normal")
    members = [table, layers.GRU(4, return_sequences=True), layers.Dense(3)]
    model = keras.Sequential([keras.Input((5,), dtype="int32"), *members])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=2)
    model.compile("sgd", loss)
    value, accuracy = rt.LossSurface(model, IDS, STEP_LABELS, batch_size=3).value_and_accuracy()
    logits = model.predict(IDS, verbose=0)
    counts = (IDS > 0) & (STEP_LABELS != 2)
    assert accuracy == pytest.approx(np.mean((logits.argmax(-1) == STEP_LABELS)[counts]))
    whole = rt.LossSurface(model, IDS, STEP_LABELS)
    chances = np.take_along_axis(softmax(logits), STEP_LABELS[..., None], -1)[..., 0]
    assert whole.value() == pytest.approx(-np.log(chances[counts]).mean(), rel=1e-4)


def test_normalized_logits_leave_masked_steps_out():
    table = layers.Embedding(5, 2, mask_zero=True, embeddings_initializer="normal")
    inputs = keras.Input((5,), dtype="int32")
    model = keras.Model(inputs, layers.Dense(3)(table(inputs)))
    smooth = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.3)
    model.compile("sgd", smooth)
    y = np.eye(3, dtype="float32")[STEP_LABELS]
    z = model.predict(IDS, verbose=0).astype("float64")
    each = -(np.log(softmax(z / z.std(-1, keepdims=True))) * (0.7 * y + 0.1)).sum(-1)
    got = rt.LossSurface(model, IDS, y).with_normalized_logits().value()
    assert got == pytest.approx(each[IDS > 0].mean(), rel=1e-4)


# --- outputs with positions, losses that are not there ------------------------------------------


def test_slopes_are_those_of_surfaces_of_one_sample():
    inputs = keras.Input((4, 4, 1))
    z = layers.Conv2D(2, 3, activation="tanh")(inputs)
    ends = [layers.Conv2D(1, 1)(z), layers.Dense(2)(layers.GlobalAveragePooling2D()(z))]
    model = keras.Model(inputs, ends)
    model.compile("sgd", ["mae", "mse"], loss_weights=[0.3, 2.0])
    y = [normal(2, 2, 2, 1), normal(2, 2)]
    surface = rt.LossSurface(model, IMAGES, y)
    v = vector(surface)
    along, outwards = [], []
    for i in range(2):
        alone = rt.LossSurface(model, IMAGES[i : i + 1], [part[i : i + 1] for part in y])
        gradient = flat(alone.value_and_gradient()[1])
        along.append(gradient @ flat(v))
        outwards.append(gradient @ flat(surface.params))
    expected = [np.mean(np.power(along, n)) for n in (2, 4)]
    assert surface.slope_moments(v) == pytest.approx(expected, rel=1e-3)
    norm = rt.measures.fisher_rao_norm(surface).value
    assert norm == pytest.approx(np.mean(np.square(outwards)), rel=1e-3)


class SquaredOutputs(layers.Layer):
    def call(self, z):
        self.add_loss(3 * ops.mean(ops.square(z)))
        return z


def test_penalties_alone_are_no_loss_but_added_losses_are():
    dense = layers.Dense(2, kernel_regularizer="l2")
    model = keras.Sequential([keras.Input((2,)), dense])
    model.compile("sgd")
    with pytest.raises(ValueError) as caught:
        rt.LossSurface(model, A)
    assert "its penalties alone train nothing" in str(caught.value)
    model = keras.Sequential([keras.Input((2,)), dense, SquaredOutputs()])
    model.compile("sgd")
    z = A @ array(dense.kernel) + array(dense.bias)
    expected = 3 * np.mean(z**2) + 0.01 * np.sum(array(dense.kernel) ** 2)
    assert rt.LossSurface(model, A).value() == pytest.approx(expected, rel=1e-5)


# --- recorders that are called several times in a step -------------------------------------------


def assert_pooled(layer, steps, every=1):
    """`steps`: for each training step, the entries of all calls, by channel."""
    statistics = layer.statistics()
    seen = np.concatenate(steps[::every])
    normalizes = isinstance(layer, rt.layers.InstrumentedBatchNormalization)
    entries = np.concatenate(steps) if normalizes else seen
    assert statistics["steps"] == len(steps)
    np.testing.assert_allclose(statistics["mean"], entries.mean(0), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(statistics["variance"], entries.var(0), rtol=1e-3)
    np.testing.assert_allclose(statistics["minimum"], seen.min(0), rtol=1e-5)
    np.testing.assert_allclose(statistics["maximum"], seen.max(0), rtol=1e-5)


@pytest.mark.parametrize("recorder", RECORDERS)
def test_three_calls_in_a_step_are_one_step(recorder):
    layer = recorder(record_every=2)
    model = keras.Sequential([keras.Input((2,)), layer])
    inputs = [keras.Input((2,)) for _ in range(3)]
    outputs = layers.Dense(1)(layers.Concatenate()([model(z) for z in inputs]))
    whole = keras.Model(inputs, outputs)
    whole.compile("sgd", "mse", steps_per_execution=3 if BACKEND == "tensorflow" else 1)
    data = [A, B, B - A]
    whole.fit(data, A[:, :1], batch_size=4, epochs=2, shuffle=False, verbose=0)
    steps = [np.concatenate([part[i : i + 4] for part in data]) for i in range(0, 24, 4)]
    assert_pooled(layer, steps * 2, every=2)


def test_each_time_step_counts_as_its_part_of_one_training_step():
    layer = rt.layers.InstrumentedBatchNormalization(record_every=1)
    members = [layers.TimeDistributed(layer), layers.Flatten(), layers.Dense(1)]
    model = keras.Sequential([keras.Input((3, 2)), *members])
    model.compile("sgd", "mse")
    x = A.reshape(8, 3, 2) + np.arange(3, dtype="float32")[:, None]
    model.fit(x, x[:, 0, :1], batch_size=3, epochs=2, shuffle=False, verbose=0)
    assert_pooled(layer, [x[i : i + 3].reshape(-1, 2) for i in (0, 3, 6)] * 2)


# --- batches that do not hold equally much --------------------------------------------------------


@pytest.mark.parametrize("wrapped", [False, True])
def test_recalibrated_statistics_are_those_of_all_unmasked_entries(wrapped):
    x = np.zeros((4, 5, 1), "float32")
    x[:2] = normal(2, 5, 1) + 9
    x[2:, :1] = normal(2, 1, 1) + 1
    normalization = layers.BatchNormalization()
    member = layers.TimeDistributed(normalization) if wrapped else normalization
    members = [layers.Masking(), member, layers.GRU(1)]
    model = keras.Sequential([keras.Input((5, 1)), *members])
    rt.recalibrate(model, x, batch_size=2)
    assert array(normalization.moving_mean)[0] == pytest.approx(x[x != 0].mean(), rel=1e-4)
    assert array(normalization.moving_variance)[0] == pytest.approx(x[x != 0].var(), rel=1e-4)


def test_branches_of_unequal_length_count_by_their_entries():
    inputs = [keras.Input((3, 1)), keras.Input((24, 1))]
    layer = layers.BatchNormalization()
    pooled = [layers.GlobalAveragePooling1D()(layer(z)) for z in inputs]
    model = keras.Model(inputs, layers.Dense(1)(layers.Add()(pooled)))
    short, long = normal(2, 3, 1), B.reshape(2, 24, 1)
    rt.recalibrate(model, [short, long])
    entries = np.concatenate([short.ravel(), long.ravel()])
    assert array(layer.moving_mean)[0] == pytest.approx(entries.mean(), rel=1e-4)
    assert array(layer.moving_variance)[0] == pytest.approx(entries.var(), rel=1e-4)


def test_a_loss_of_the_whole_batch_has_no_slopes_of_samples():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, "sigmoid", use_bias=False)])
    model.compile("sgd", "dice")
    x = np.random.default_rng(0).standard_normal((6, 4)).astype("float32")
    surface = rt.LossSurface(model, x, (x > 0).astype("float32"))
    with pytest.raises(ValueError, match="gives one value for all samples"):
        surface.slope_moments([np.ones((4, 4), "float32")])
