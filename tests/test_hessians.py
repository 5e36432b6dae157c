"""Whole Hessians, column by column, of a net for each kind of layer that a tutorial uses.

The second channel is central differences of the exact gradient, which knows no second derivative.
"""

import functools

import keras
import numpy as np
import problems
import pytest
from keras import layers, ops
from problems import doubles

import keras_regtools as rt

pytestmark = pytest.mark.backends
RNG = np.random.default_rng(0)
VECTORS = RNG.standard_normal((8, 5))
SEQUENCES = RNG.standard_normal((8, 3, 3))
IMAGES = RNG.standard_normal((8, 6, 6, 1))
WORDS = RNG.integers(0, 6, (8, 3))
LABELS = RNG.integers(0, 3, 8)
TOGETHER = 2
MODES = ("inference", "batch_statistics", "training")


def flat(tensors):
    return np.concatenate([t.ravel() for t in doubles(tensors)])


def unflat(vector, like):
    ends = np.cumsum([p.size for p in like])
    return [v.reshape(p.shape) for v, p in zip(np.split(vector, ends[:-1]), like, strict=True)]


def columns(product, surface):
    """The whole matrix, several unit vectors at a time, always as many."""
    like = doubles(surface.params)
    size = sum(p.size for p in like)
    units = np.concatenate([np.eye(size), np.zeros((-size % TOGETHER, size))])
    found = []
    for i in range(0, len(units), TOGETHER):
        several = [unflat(unit, like) for unit in units[i : i + TOGETHER]]
        found += [flat(p) for p in product(None, several)]
    return np.stack(found[:size], 1)


def differences(surface, step):
    """The whole Hessian, by central differences of the gradient."""
    like = doubles(surface.params)
    here = flat(like)

    def gradient(vector):
        return flat(surface.value_and_gradient(unflat(vector, like))[1])

    rows = [
        (gradient(here + step * unit) - gradient(here - step * unit)) / (2 * step)
        for unit in np.eye(here.size)
    ]
    return np.stack(rows, 1)


def error(matrix, truth):
    return np.linalg.norm(matrix - truth) / np.linalg.norm(truth)


def net(x, *middle, end="softmax"):
    """A classifier with these layers in the middle."""
    dtype = "int32" if x.dtype.kind == "i" else None
    stack = [keras.Input(x.shape[1:], dtype=dtype), *middle, layers.Flatten()]
    return with_weights(keras.Sequential([*stack, layers.Dense(3, end)]))


def with_weights(model):
    """The same ones on every backend, none of them where a layer begins."""
    rng = np.random.default_rng(4)
    for v in model.trainable_variables:
        start = 0 if len(v.shape) > 1 else ops.convert_to_numpy(v)
        v.assign(start + (0.5 if len(v.shape) > 1 else 0.2) * rng.standard_normal(v.shape))
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.moving_mean.assign(0.3 * rng.standard_normal(layer.moving_mean.shape))
            layer.moving_variance.assign(rng.uniform(0.5, 2, layer.moving_variance.shape))
    return model


def residual():
    inputs = keras.Input((5,))
    hidden = layers.Dense(5, "tanh")(inputs)
    hidden = layers.Add()([hidden, layers.Dense(5, "tanh")(hidden)])
    return with_weights(keras.Model(inputs, layers.Dense(3, "softmax")(hidden)))


def attention():
    inputs = keras.Input((3, 3))
    hidden = layers.MultiHeadAttention(2, 2)(inputs, inputs)
    hidden = layers.GlobalAveragePooling1D()(hidden)
    return with_weights(keras.Model(inputs, layers.Dense(3, "softmax")(hidden)))


def smooth(x, *middle, **arguments):
    """A row: a net, built anew, its inputs, and the arguments of the surface."""
    return lambda: net(x, *(make() for make in middle)), x, arguments


def part(kind, *args, **kwargs):
    return functools.partial(kind, *args, **kwargs)


def activated(name):
    return smooth(VECTORS, part(layers.Dense, 4), part(layers.Activation, name))


CONV = part(layers.Conv2D, 2, 3, activation="tanh")
POOL = part(layers.AveragePooling2D, 2)
CASES = {
    "Dense": smooth(VECTORS, part(layers.Dense, 4, "tanh"), part(layers.Dense, 3, "sigmoid")),
    "Conv2D": smooth(IMAGES, CONV, part(layers.Conv2D, 2, 2, strides=2, padding="same")),
    "Conv1D": smooth(SEQUENCES, part(layers.Conv1D, 3, 2, activation="tanh")),
    "DepthwiseConv2D": smooth(
        IMAGES, CONV, part(layers.DepthwiseConv2D, 2, activation="tanh"), POOL
    ),
    "SeparableConv2D": smooth(
        IMAGES, CONV, part(layers.SeparableConv2D, 3, 2, activation="tanh"), POOL
    ),
    "MaxPooling2D": smooth(IMAGES, CONV, layers.MaxPooling2D),
    "AveragePooling2D": smooth(IMAGES, CONV, POOL),
    "GlobalAveragePooling2D": smooth(IMAGES, CONV, layers.GlobalAveragePooling2D),
    "LayerNormalization": smooth(VECTORS, part(layers.Dense, 4), layers.LayerNormalization),
    "GroupNormalization": smooth(
        IMAGES[:, :4, :4], part(layers.Conv2D, 4, 3), part(layers.GroupNormalization, 2)
    ),
    "RMSNormalization": smooth(VECTORS, part(layers.Dense, 4), layers.RMSNormalization),
    "UnitNormalization": smooth(VECTORS, part(layers.Dense, 4), layers.UnitNormalization),
    "Add": (residual, VECTORS, {}),
    "Embedding and LSTM": smooth(WORDS, part(layers.Embedding, 6, 2), part(layers.LSTM, 2)),
    "GRU": smooth(SEQUENCES, part(layers.GRU, 2)),
    "SimpleRNN": smooth(SEQUENCES, part(layers.SimpleRNN, 4)),
    "MultiHeadAttention": (attention, SEQUENCES, {}),
    "softmax": smooth(VECTORS),
    "logits": (
        lambda: net(VECTORS, layers.Dense(4, "tanh"), end="linear"),
        VECTORS,
        {"loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True)},
    ),
    "weight penalty": smooth(VECTORS, part(layers.Dense, 4, "tanh", kernel_regularizer="l2")),
    "activity penalty": smooth(VECTORS, part(layers.Dense, 4, "tanh", activity_regularizer="l2")),
    **{name: activated(name) for name in ("tanh", "gelu", "elu", "softplus", "relu")},
    **{
        f"BatchNormalization, {mode}": smooth(
            IMAGES,
            part(layers.Conv2D, 2, 3),
            layers.BatchNormalization,
            part(layers.Activation, "tanh"),
            POOL,
            mode=mode,
            batch_size=4,
        )
        for mode in MODES
    },
    **{
        f"Dropout, {mode}": smooth(
            VECTORS,
            part(layers.Dense, 5, "tanh"),
            part(layers.Dropout, 0.4, seed=1),
            mode=mode,
            batch_size=4,
        )
        for mode in MODES
    },
}


def surface_of(name, **more):
    make, x, arguments = CASES[name]
    model = make()
    arguments = {"loss": "sparse_categorical_crossentropy", **arguments, **more}
    if model.layers[-1].activation is keras.activations.linear:
        arguments["loss"] = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return rt.LossSurface(model, x, LABELS, **arguments)


def step_for(name):
    """Where there are kinks, a small one: what crosses one sees what is not there."""
    kinks = name in ("MaxPooling2D", "relu", "elu")
    if problems.HAS_FLOAT64:
        return 1e-6 if kinks else 1e-5
    return 3e-4 if kinks else 3e-3


DEFAULT = (
    "Dense",
    "Conv2D",
    "LayerNormalization",
    "BatchNormalization, batch_statistics",
    "Dropout, training",
)


@pytest.mark.parametrize("name", problems.rows(CASES, *DEFAULT))
def test_the_hessian_is_that_of_central_differences_and_symmetric(name):
    with problems.float64():
        surface = surface_of(name)
        hessian = columns(surface.hvp, surface)
        truth = differences(surface, step_for(name))
        if problems.HAS_FLOAT64:  # TensorFlow goes another way for a single vector
            like = doubles(surface.params)
            v = np.random.default_rng(6).standard_normal(len(hessian))
            alone = flat(surface.hvp(None, unflat(v, like)))
            assert error(alone, hessian @ v) < 1e-12
    assert len(hessian) <= 200
    assert error(hessian.T, hessian) < (1e-12 if problems.HAS_FLOAT64 else 1e-5)
    assert error(hessian, truth) < (1e-6 if problems.HAS_FLOAT64 else 2e-2)


@pytest.mark.parametrize("gap", problems.rows([1e-1, 1e-3, 1e-5], 1e-5))
def test_the_largest_of_a_window_is_found_however_close_the_next_one_is(gap):
    """A positive factor goes through a maximum: the net with pooling is the one without, on the
    largest inputs."""
    largest = RNG.uniform(1, 2, (6, 2, 2, 1))
    windows = np.repeat(np.repeat(largest, 2, 1), 2, 2)
    windows *= 1 - gap * RNG.permuted(np.tile(range(4), (24, 1)), axis=1).reshape(
        6, 2, 2, 2, 2, 1
    ).transpose(0, 1, 3, 2, 4, 5).reshape(6, 4, 4, 1)
    with problems.float64():
        factor = part(layers.Conv2D, 1, 1, use_bias=False, name="factor")
        rest = part(layers.Dense, 3, "tanh", name="rest")
        found = []
        for x, middle in (
            (windows, (factor(), layers.MaxPooling2D(), layers.Flatten(), rest())),
            (largest, (factor(), layers.Flatten(), rest())),
        ):
            model = net(x, *middle)
            model.get_layer("factor").kernel.assign([[[[1.5]]]])
            loss = "sparse_categorical_crossentropy"
            surface = rt.LossSurface(model, x, LABELS[:6], loss=loss)
            found.append(columns(surface.hvp, surface))
    assert error(*found) < (1e-12 if problems.HAS_FLOAT64 else 1e-5)


SPECTRA = ("Dense", "BatchNormalization, batch_statistics", "Add")


@pytest.mark.parametrize("name", problems.rows(SPECTRA, "Dense"))
def test_the_measures_see_the_spectrum_of_the_whole_matrix(name):
    with problems.float64():
        surface = surface_of(name)
        hessian = columns(surface.hvp, surface)
        truth = np.linalg.eigvalsh((hessian + hessian.T) / 2)
        found = rt.measures.hessian_eigenvalues(surface, k=3, which="both", tolerance=1e-4)
        trace = rt.measures.hessian_trace(surface, tolerance=0.05)
        rough = rt.measures.hessian_trace(surface, tolerance=0.1, method="hutchinson")
    expected = np.concatenate([truth[::-1][:3], truth[2::-1]])
    assert found.converged
    rounding = 1e-13 if problems.HAS_FLOAT64 else 1e-5
    np.testing.assert_array_less(
        np.abs(found.eigenvalues - expected), found.residuals + rounding * truth[-1]
    )
    assert truth[0] < 0 < truth[-1]  # a matrix that is not definite
    total = np.sum(truth)
    assert abs(trace.estimate - total) < 3 * trace.stderr
    assert abs(rough.estimate - total) < 3 * rough.stderr


# What PyTorch and the peer's imports warn of is not ours.
@pytest.mark.filterwarnings("ignore:CUDA init", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_largest_eigenvalue_and_a_product_are_those_of_curvlinops():
    """A peer, on PyTorch by itself, with the same weights; `.ci/run` installs it."""
    if keras.backend.backend() != "torch":
        pytest.skip("PyTorch crashes where it is loaded after TensorFlow or JAX")
    curvlinops = pytest.importorskip("curvlinops")
    torch = pytest.importorskip("torch")
    surface = surface_of("Dense")
    params = doubles(surface.params)
    peer = torch.nn.Sequential(
        torch.nn.Linear(5, 4),
        torch.nn.Tanh(),
        torch.nn.Linear(4, 3),
        torch.nn.Sigmoid(),
        torch.nn.Linear(3, 3),
    ).double()
    with torch.no_grad():
        for theirs, ours in zip(peer.parameters(), params, strict=True):
            theirs.copy_(torch.tensor(ours.T))
    data = [(torch.tensor(VECTORS), torch.tensor(LABELS))]
    theirs = list(peer.parameters())
    loss = torch.nn.CrossEntropyLoss()
    for matrix, kind in (
        ("hessian", curvlinops.HessianLinearOperator),
        ("gauss_newton", curvlinops.GGNLinearOperator),
    ):
        operator = kind(peer, loss, theirs, data)
        v = [np.random.default_rng(5).standard_normal(p.shape) for p in params]
        expected = [p.detach().numpy().T for p in operator @ [torch.tensor(t.T) for t in v]]
        product = surface.hvp if matrix == "hessian" else surface.gnvp
        assert error(flat(product(None, v)), flat(expected)) < 1e-4
        dense = operator @ torch.eye(operator.shape[1], dtype=torch.float64)
        top = np.linalg.eigvalsh(dense.detach().numpy())[-1]
        found = rt.measures.hessian_eigenvalues(surface, matrix=matrix, tolerance=1e-4)
        assert found.value == pytest.approx(top, rel=1e-3)
