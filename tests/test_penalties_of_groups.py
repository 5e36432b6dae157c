"""Group lasso and soft orthogonality by numpy, on the kernels of layers of every kind."""

import keras
import numpy as np
import pytest

import keras_regtools as rt

pytestmark = pytest.mark.backends
array = keras.ops.convert_to_numpy
RNG = np.random.default_rng(0)
# The layer, its inputs, the name of its regularizer and its kernel's, and the axes of its outputs
# and of its inputs in the kernel.
# ruff: noqa: E501
LAYERS = {
    "Dense": (keras.layers.Dense, (4,), "kernel", (-1,), (-2,), {"units": 3}),
    "Conv1D": (keras.layers.Conv1D, (6, 4), "kernel", (-1,), (-2,), {"filters": 3, "kernel_size": 2}),
    "Conv2D": (keras.layers.Conv2D, (6, 6, 4), "kernel", (-1,), (-2,), {"filters": 3, "kernel_size": 2}),
    "Conv3D": (keras.layers.Conv3D, (4, 4, 4, 2), "kernel", (-1,), (-2,), {"filters": 3, "kernel_size": 2}),
    "DepthwiseConv1D": (keras.layers.DepthwiseConv1D, (6, 3), "depthwise", (-2, -1), (-2,), {"kernel_size": 2, "depth_multiplier": 2}),
    "DepthwiseConv2D": (keras.layers.DepthwiseConv2D, (6, 6, 3), "depthwise", (-2, -1), (-2,), {"kernel_size": 2, "depth_multiplier": 2}),
    "SeparableConv2D": (keras.layers.SeparableConv2D, (6, 6, 3), "pointwise", (-1,), (-2,), {"filters": 5, "kernel_size": 2}),
    "SeparableConv2D.depthwise": (keras.layers.SeparableConv2D, (6, 6, 3), "depthwise", (-2, -1), (-2,), {"filters": 5, "kernel_size": 2}),
    "Conv1DTranspose": (keras.layers.Conv1DTranspose, (6, 4), "kernel", (-2,), (-1,), {"filters": 3, "kernel_size": 2}),
    "Conv2DTranspose": (keras.layers.Conv2DTranspose, (6, 6, 4), "kernel", (-2,), (-1,), {"filters": 3, "kernel_size": 2}),
    "Conv3DTranspose": (keras.layers.Conv3DTranspose, (3, 3, 3, 4), "kernel", (-2,), (-1,), {"filters": 3, "kernel_size": 2}),
    "SimpleRNN": (keras.layers.SimpleRNN, (5, 4), "kernel", (-1,), (-2,), {"units": 3}),
    "Embedding": (keras.layers.Embedding, (5,), "embeddings", (-1,), (-2,), {"input_dim": 7, "output_dim": 3}),
}  # fmt: skip


def by_hand(w, axes, strength):
    axes = {a % w.ndim for a in axes}
    rest = tuple(a for a in range(w.ndim) if a not in axes)
    size = np.prod([w.shape[a] for a in rest])
    return strength * np.sqrt(size) * np.sqrt((w.astype("float64") ** 2).sum(rest)).sum()


def built(name, penalty):
    kind, shape, prefix, outputs, inputs, settings = LAYERS[name]
    layer = kind(**settings, **{f"{prefix}_regularizer": penalty})
    model = keras.Sequential([keras.Input(shape), layer])
    weight = next(v for v in layer.weights if v.regularizer is not None)
    weight.assign(RNG.normal(size=weight.shape))
    return model, layer, weight, {"filters": outputs, "units": outputs, "inputs": inputs}


@pytest.mark.parametrize("over", ["filters", "units", "inputs"])
@pytest.mark.parametrize("name", LAYERS)
def test_group_lasso_is_the_sum_over_groups(name, over):
    kind = "depthwise" if "epthwise" in name else "transposed" if "Transp" in name else "standard"
    penalty = rt.regularizers.GroupLasso(0.3, over=over, kernel=kind)
    model, layer, weight, axes = built(name, penalty)
    expected = by_hand(array(weight), axes[over], 0.3)
    assert float(array(sum(model.losses))) == pytest.approx(expected, rel=1e-5)
    assert sum(rt.regularizers.penalties(model).values()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("kind", "gates"), [("LSTM", 4), ("GRU", 3)])
@pytest.mark.parametrize("prefix", ["kernel", "recurrent"])
def test_a_unit_of_a_gated_layer_owns_a_column_in_each_gate(kind, gates, prefix):
    penalty = rt.regularizers.GroupLasso(0.3, over="units", kernel=kind.lower())
    layer = getattr(keras.layers, kind)(5, **{f"{prefix}_regularizer": penalty})
    model = keras.Sequential([keras.Input((4, 2)), layer])
    w = array(layer.cell.kernel if prefix == "kernel" else layer.cell.recurrent_kernel)
    groups = [np.concatenate([w[:, g * 5 + u] for g in range(gates)]) for u in range(5)]
    expected = 0.3 * sum(np.sqrt(len(g)) * np.linalg.norm(g) for g in groups)
    assert float(array(model.losses[0])) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", [n for n in LAYERS if "." not in n])
def test_orthogonality_is_that_of_the_filters(name):
    kind = "depthwise" if "epthwise" in name else "transposed" if "Transp" in name else "standard"
    model, layer, weight, axes = built(name, rt.regularizers.Orthogonal(0.2, kernel=kind))
    w = array(weight).astype("float64")
    last = [a % w.ndim for a in axes["filters"]]
    rest = [a for a in range(w.ndim) if a not in last]
    matrix = np.transpose(w, rest + last).reshape(int(np.prod([w.shape[a] for a in rest])), -1)
    expected = 0.2 * ((matrix.T @ matrix - np.eye(matrix.shape[1])) ** 2).sum()
    assert float(array(model.losses[0])) == pytest.approx(expected, rel=1e-5)


def test_training_makes_filters_orthonormal():
    keras.utils.set_random_seed(0)
    model, layer, weight, _ = built("Conv2D", rt.regularizers.Orthogonal(1.0))
    weight.assign(0.3 * weight)
    model.compile(keras.optimizers.SGD(0.02), "mse")
    x = np.zeros((100, 6, 6, 4), "float32")  # the loss is the penalty alone
    model.fit(x, np.zeros((100, 5, 5, 3), "float32"), batch_size=1, verbose=0)
    w = array(weight).reshape(-1, 3)
    np.testing.assert_allclose(w.T @ w, np.eye(3), atol=1e-3)


def test_a_group_at_zero_has_the_gradient_zero_and_does_not_become_nan():
    penalty = rt.regularizers.GroupLasso(0.5)
    model, layer, weight, _ = built("Dense", penalty)
    weight.assign(np.array([[0.0, 1.0, 0.0]] * 4, "float32"))
    surface = rt.LossSurface(model, np.zeros((4, 4)), np.zeros((4, 3)), loss="mse")
    _, gradient = surface.value_and_gradient()
    expected = np.array([[0.0, 0.5 * 2 * 0.5, 0.0]] * 4)  # l21 √4 w/‖w‖, ‖w‖ = 2
    np.testing.assert_allclose(array(gradient[0]), expected, atol=1e-6)


def test_regularize_tells_the_penalty_which_axes_are_what():
    inputs = keras.Input((8, 8, 2))
    x = keras.layers.DepthwiseConv2D(3, depth_multiplier=2, name="depthwise")(inputs)
    x = keras.layers.SeparableConv2D(3, 3, name="separable")(x)
    x = keras.layers.Conv2DTranspose(5, 2, name="transposed")(x)
    x = keras.layers.Conv2D(3, 2, name="conv")(x)
    x = keras.layers.Dense(2, name="out")(keras.layers.Flatten()(x))
    penalty = rt.regularizers.GroupLasso(0.1)
    new = rt.regularize(keras.Model(inputs, x), conv=penalty)

    def expected():
        kernels = {
            "depthwise": [(new.get_layer("depthwise").kernel, (-2, -1))],
            "separable": [
                (new.get_layer("separable").depthwise_kernel, (-2, -1)),
                (new.get_layer("separable").pointwise_kernel, (-1,)),
            ],
            "transposed": [(new.get_layer("transposed").kernel, (-2,))],
            "conv": [(new.get_layer("conv").kernel, (-1,))],
        }
        pairs = [pair for found in kernels.values() for pair in found]
        return sum(by_hand(array(w), axes, penalty.l21) for w, axes in pairs)

    for strength in (0.1, 0.7):
        penalty.l21 = strength  # one object for the group, whatever its layers are
        assert float(array(sum(new.losses))) == pytest.approx(expected(), rel=1e-5)


@pytest.mark.parametrize("make", [rt.regularizers.GroupLasso, rt.regularizers.Orthogonal])
def test_they_are_saved_and_read_back(make, tmp_path):
    penalty = make(0.2, kernel="transposed")
    model, layer, weight, _ = built("Conv2DTranspose", penalty)
    name = next(iter(penalty.strengths))
    setattr(penalty, name, 0.75)
    model.save(tmp_path / "m.keras")
    back = keras.saving.load_model(tmp_path / "m.keras")
    again = back.layers[0].kernel_regularizer
    assert (getattr(again, name), again.kernel) == (0.75, "transposed")
    assert float(array(back.losses[0])) == pytest.approx(float(array(model.losses[0])))
    assert len(model.get_weights()) == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rt.regularizers.GroupLasso(-1.0), "`l21` must be"),
        (lambda: rt.regularizers.GroupLasso(float("nan")), "`l21` must be"),
        (lambda: rt.regularizers.GroupLasso(0.1, over="channels"), "'filters', 'units', 'inputs'"),
        (lambda: rt.regularizers.GroupLasso(0.1, kernel="conv"), "'standard', 'depthwise'"),
        (lambda: rt.regularizers.Orthogonal(float("inf")), "`strength` must be"),
        (lambda: rt.regularizers.Orthogonal(0.1)(np.ones(3)), "two axes or more.*shape \\(3,\\)"),
        (lambda: rt.regularizers.GroupLasso(0.1)(np.ones(3)), "two axes or more"),
        (lambda: rt.regularizers.GroupLasso(kernel="gru")(np.ones((2, 4))), "3 · units"),
    ],
)
def test_what_it_cannot_take_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_strip_leaves_out_what_keras_does_not_have_and_says_so():
    model, *_ = built("Conv2D", rt.regularizers.Orthogonal(1.0))
    with pytest.warns(UserWarning, match="Keras has no Orthogonal"):
        assert rt.strip(model).layers[0].kernel_regularizer is None


@keras.saving.register_keras_serializable(package="test")
class L3(rt.regularizers.Penalty):
    l3 = rt.regularizers.Strength()

    def __init__(self, l3=0.01):
        super().__init__(l3=l3)

    def __call__(self, x):
        return self.strengths["l3"] * keras.ops.sum(keras.ops.abs(x) ** 3)


def test_a_penalty_of_ones_own_works_everywhere(tmp_path):
    base = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3), keras.layers.Dense(1)])
    penalty = L3(0.5)
    model = rt.regularize(base, dense=penalty)
    cubes = sum((np.abs(array(layer.kernel)) ** 3).sum() for layer in model.layers)
    for strength in (0.5, 2.0):
        penalty.l3 = strength
        assert sum(rt.regularizers.penalties(model).values()) == pytest.approx(strength * cubes)
    assert type(rt.strip(model).layers[0].kernel_regularizer) is L3
    model.save(tmp_path / "m.keras")
    assert keras.saving.load_model(tmp_path / "m.keras").layers[0].kernel_regularizer.l3 == 2.0
    assert repr(penalty) == "L3(l3=2)"
