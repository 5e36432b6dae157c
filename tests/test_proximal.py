"""Zeros that are zeros: proximal steps under Keras' optimizers, by hand and by scikit-learn."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_regtools as rt

pytestmark = pytest.mark.backends
array = keras.ops.convert_to_numpy
RNG = np.random.default_rng(0)
TORCH = keras.backend.backend() == "torch"


def soft(w, t):
    return np.sign(w) * np.maximum(np.abs(w) - t, 0)


X = RNG.normal(size=(12, 4)).astype("float32")
Y = RNG.normal(size=(12, 3)).astype("float32")


def slope(w):
    return 2 * X.T @ (X @ w - Y) / Y.size


def linear(penalty, optimizer, **settings):
    keras.utils.set_random_seed(0)
    layer = keras.layers.Dense(3, use_bias=False, kernel_regularizer=penalty)
    model = keras.Sequential([keras.Input((4,)), layer])
    model.compile(optimizer, "mse", **settings)
    return model


def stepped(model, steps):
    """So many steps on all samples, as one epoch, which takes a tenth of the time of as many."""
    x, y = np.tile(X, (steps, 1)), np.tile(Y, (steps, 1))
    model.fit(x, y, batch_size=12, verbose=0, shuffle=False)
    return array(model.layers[0].kernel)


def fitted(model, epochs=5, batch=12, **settings):
    history = model.fit(X, Y, batch_size=batch, epochs=epochs, verbose=0, shuffle=False, **settings)
    return array(model.layers[0].kernel), history.history


@pytest.mark.parametrize("jit", [False] if TORCH else [False, True])
def test_under_sgd_it_is_soft_thresholding_after_each_update(jit):
    model = linear(
        rt.regularizers.L1(0.05, proximal=True), keras.optimizers.SGD(0.3, 0.9), jit_compile=jit
    )
    w, v, losses = array(model.layers[0].kernel).astype("float64"), 0.0, []
    for _ in range(8):
        losses.append(((X @ w - Y) ** 2).mean() + 0.05 * np.abs(w).sum())
        v = 0.9 * v - 0.3 * slope(w)
        w = soft(w + v, 0.3 / (1 - 0.9) * 0.05)
    found, history = fitted(model, 8)
    np.testing.assert_allclose(found, w, atol=2e-6)
    assert (found == 0).tolist() == (w == 0).tolist()
    np.testing.assert_allclose(history["loss"], losses, rtol=1e-5)


@pytest.mark.parametrize("kind", ["SGD", "Nesterov", "RMSprop"])
def test_momentum_does_not_change_which_lasso_is_solved(kind):
    made = {
        "SGD": lambda: keras.optimizers.SGD(0.03, 0.9),
        "Nesterov": lambda: keras.optimizers.SGD(0.03, 0.9, nesterov=True),
        "RMSprop": lambda: keras.optimizers.RMSprop(
            keras.optimizers.schedules.CosineDecay(0.02, 1500)
        ),
    }[kind]()
    model = linear(rt.regularizers.L1(0.05, proximal=True), made)
    often = 1500
    model.fit(np.tile(X, (often, 1)), np.tile(Y, (often, 1)), 12, shuffle=False, verbose=0)
    found, w = array(model.layers[0].kernel), np.zeros((4, 3))
    for _ in range(3000):
        w = soft(w - 0.3 * slope(w), 0.3 * 0.05)
    assert 0 < (w == 0).sum() < w.size
    np.testing.assert_allclose(found, w, atol=2e-4)
    assert (found == 0).tolist() == (w == 0).tolist()


def adam(v, t, rate, b2=0.999, eps=1e-7):
    return rate / (np.sqrt(v / (1 - b2**t)) + eps)


@pytest.mark.parametrize(
    "kind", ["Adam", "AdamW", "amsgrad", "RMSprop", "RMSprop momentum", "Adagrad"]
)
def test_under_optimizers_with_a_metric_each_weight_has_its_own_threshold(kind):
    rate, strength = 0.05, 0.02
    made = {
        "Adam": lambda: keras.optimizers.Adam(rate),
        "AdamW": lambda: keras.optimizers.AdamW(rate, weight_decay=0.0),
        "amsgrad": lambda: keras.optimizers.Adam(rate, amsgrad=True),
        "RMSprop": lambda: keras.optimizers.RMSprop(rate),
        "RMSprop momentum": lambda: keras.optimizers.RMSprop(rate, momentum=0.5),
        "Adagrad": lambda: keras.optimizers.Adagrad(rate),
    }[kind]()
    model = linear(rt.regularizers.L1(strength, proximal=True), made)
    w = array(model.layers[0].kernel).astype("float64")
    m = v = 0.0
    if kind == "Adagrad":
        v = 0.1
    for t in range(1, 13):
        g = slope(w)
        if kind.startswith("RMSprop"):
            kept = 0.5 if "momentum" in kind else 0.0
            v = 0.9 * v + 0.1 * g**2
            steps = rate / np.sqrt(v + 1e-7)
            m = kept * m + steps * g
            w = soft(w - m, strength * steps / (1 - kept))
        elif kind == "Adagrad":
            v = v + g**2
            steps = rate / np.sqrt(v + 1e-7)
            w = soft(w - steps * g, strength * steps)
        else:
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            alpha = rate * np.sqrt(1 - 0.999**t) / (1 - 0.9**t)
            w = w - alpha * m / (np.sqrt(v) + 1e-7)
            w = soft(w, strength * adam(v, t, rate))
    found, _ = fitted(model, 12)
    np.testing.assert_allclose(found, w, atol=2e-4)


@pytest.mark.parametrize("over", ["units", "inputs"])
def test_whole_groups_become_zero(over):
    penalty = rt.regularizers.GroupLasso(0.12, over=over, proximal=True)
    model = linear(penalty, keras.optimizers.SGD(0.3))
    w = array(model.layers[0].kernel).astype("float64")
    axis = 0 if over == "units" else 1
    for _ in range(30):
        w = w - 0.3 * slope(w)
        norms = np.sqrt((w**2).sum(axis, keepdims=True))
        w = w * np.maximum(1 - 0.3 * 0.12 * np.sqrt(w.shape[axis]) / norms, 0)
    found = stepped(model, 30)
    np.testing.assert_allclose(found, w, atol=2e-6)
    assert 0 < (found == 0).all(axis).sum() < found.shape[1 - axis]


KERNELS = {
    "Conv2D": lambda p: (keras.layers.Conv2D(3, 2, kernel_regularizer=p), "standard"),
    "Conv2DTranspose": lambda p: (
        keras.layers.Conv2DTranspose(3, 2, kernel_regularizer=p),
        "transposed",
    ),
    "DepthwiseConv2D": lambda p: (
        keras.layers.DepthwiseConv2D(2, depth_multiplier=2, depthwise_regularizer=p),
        "depthwise",
    ),
}


@pytest.mark.parametrize("over", ["filters", "inputs"])
@pytest.mark.parametrize("name", KERNELS)
def test_a_group_of_every_kind_of_kernel_shrinks_by_its_own_factor(name, over):
    kernel = KERNELS[name](None)[1]
    penalty = rt.regularizers.GroupLasso(0.05, over=over, kernel=kernel, proximal=True)
    layer, _ = KERNELS[name](penalty)
    model = keras.Sequential([keras.Input((4, 4, 4)), layer])
    model.compile(keras.optimizers.SGD(1.0), "mse")
    x = np.zeros((2, 4, 4, 4), "float32")
    before = array(layer.kernel).astype("float64")
    model.fit(x, np.zeros((2, *layer.output.shape[1:])), verbose=0)
    outputs = {"standard": (3,), "transposed": (2,), "depthwise": (2, 3)}[kernel]
    inputs = {"standard": (2,), "transposed": (3,), "depthwise": (2,)}[kernel]
    axes = outputs if over == "filters" else inputs
    rest = tuple(a for a in range(4) if a not in axes)
    norms = np.sqrt((before**2).sum(rest, keepdims=True))
    size = np.prod([before.shape[a] for a in rest])
    expected = before * np.maximum(1 - 0.05 * np.sqrt(size) / norms, 0)
    np.testing.assert_allclose(array(layer.kernel), expected, atol=1e-6)


@pytest.mark.parametrize("spread", [0.0, 1.0, 4.0])
def test_groups_with_a_step_for_each_weight_take_the_proximal_step_of_that_metric(spread):
    """The minimum of ½ Σ (u − w)² / steps + l21 √size ‖u‖, where its gradient is zero."""
    rng = np.random.default_rng(5)
    w = rng.normal(size=(7, 40)).astype("float32")
    steps = np.exp(spread * rng.normal(size=w.shape)).astype("float32")
    steps[0, :5] = 2e4  # no gradient has ever come there
    w[:, 0] = 0
    penalty = rt.regularizers.GroupLasso(0.4, proximal=True)
    penalty(ops.convert_to_tensor(w))  # which comes first in each step
    u = array(penalty.shrunk(ops.convert_to_tensor(w), ops.convert_to_tensor(steps)))
    norms, strength = np.sqrt((u.astype("float64") ** 2).sum(0)), 0.4 * np.sqrt(7)
    away = norms > 0
    assert 0 < away.sum() < 40
    slope = (u - w) / steps + strength * u / np.where(away, norms, 1)
    scale = np.abs(w / steps).max(0) + strength
    assert (np.abs(slope) / scale)[:, away].max() < 2e-5
    assert (np.sqrt(((w / steps) ** 2).sum(0)) <= strength * (1 + 1e-6))[~away].all()
    off = rt.regularizers.GroupLasso(0.0, proximal=True)
    off(ops.convert_to_tensor(w))
    kept = off.shrunk(ops.convert_to_tensor(w), ops.convert_to_tensor(steps))
    np.testing.assert_allclose(array(kept), w, rtol=1e-6)


def test_under_adam_a_group_lasso_is_that_of_plain_descent():
    rate = keras.optimizers.schedules.CosineDecay(0.05, 1500)
    model = linear(rt.regularizers.GroupLasso(0.08, proximal=True), keras.optimizers.Adam(rate))
    often = 1500
    model.fit(np.tile(X, (often, 1)), np.tile(Y, (often, 1)), 12, shuffle=False, verbose=0)
    w = np.ones((4, 3))
    for _ in range(5000):
        w = w - 0.3 * slope(w)
        norms = np.sqrt((w**2).sum(0))
        w = w * np.maximum(1 - 0.3 * 0.08 * 2 / np.where(norms > 0, norms, 1), 0)
    assert 0 < (w == 0).all(0).sum() < 3
    np.testing.assert_allclose(array(model.layers[0].kernel), w, atol=1e-3)
    assert (array(model.layers[0].kernel) == 0).tolist() == (w == 0).tolist()


@pytest.mark.parametrize("gates", [("LSTM", 4), ("GRU", 3)])
def test_units_of_gated_layers_go_whole(gates):
    kind, count = gates
    penalty = rt.regularizers.GroupLasso(0.25, over="units", kernel=kind.lower(), proximal=True)
    layer = getattr(keras.layers, kind)(5, kernel_regularizer=penalty)
    model = keras.Sequential([keras.Input((3, 2)), layer])
    model.compile(keras.optimizers.SGD(0.5), "mse")
    model.fit(RNG.normal(size=(8, 3, 2)), RNG.normal(size=(8, 5)), epochs=3, verbose=0)
    w = array(layer.cell.kernel).reshape(2, count, 5)
    zero = (w == 0).all((0, 1))
    assert zero.any()
    assert ((w == 0).any((0, 1)) == zero).all()


def test_a_lasso_is_that_of_scikit_learn():
    lasso = pytest.importorskip("sklearn.linear_model").Lasso(
        alpha=0.1, fit_intercept=False, tol=1e-7
    )
    rng = np.random.default_rng(3)
    x = rng.normal(size=(60, 12)).astype("float32")
    truth = np.where(rng.random(12) < 0.4, rng.normal(size=12), 0.0)
    y = (x @ truth + 0.1 * rng.normal(size=60)).astype("float32")
    lasso.fit(x, y)
    layer = keras.layers.Dense(
        1, use_bias=False, kernel_regularizer=rt.regularizers.L1(0.1, proximal=True)
    )
    model = keras.Sequential([keras.Input((12,)), layer])
    model.compile(keras.optimizers.SGD(0.3), lambda y, p: 0.5 * ops.mean((y - p) ** 2, axis=-1))
    model.fit(
        np.tile(x, (300, 1)), np.tile(y, 300)[:, None], batch_size=60, shuffle=False, verbose=0
    )
    found = array(layer.kernel)[:, 0]
    assert (found != 0).tolist() == (lasso.coef_ != 0).tolist()
    np.testing.assert_allclose(found, lasso.coef_, atol=1e-4)


def test_a_strength_that_changes_acts_at_once():
    penalty = rt.regularizers.L1(0.0, proximal=True)
    model = linear(penalty, keras.optimizers.SGD(0.3))
    w = array(model.layers[0].kernel).astype("float64")
    schedule = rt.callbacks.Schedule(penalty, "l1", lambda e: [0.0, 0.2, 0.05][e])
    for strength in (0.0, 0.2, 0.05):
        w = soft(w - 0.3 * slope(w), 0.3 * strength)
    found, _ = fitted(model, 3, callbacks=[schedule])
    np.testing.assert_allclose(found, w, atol=2e-6)


def test_accumulated_steps_are_followed_by_one():
    penalty = rt.regularizers.L1(0.1, proximal=True)
    model = linear(penalty, keras.optimizers.SGD(0.3, gradient_accumulation_steps=3))
    w = array(model.layers[0].kernel).astype("float64")
    for _ in range(4):
        w = soft(w - 0.3 * slope(w), 0.3 * 0.1)
    found, _ = fitted(model, 4, batch=4)
    np.testing.assert_allclose(found, w, atol=2e-6)


def test_with_a_loss_scale_and_a_schedule_of_the_rate():
    rate = keras.optimizers.schedules.ExponentialDecay(0.3, 1, 0.5)
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(rate))
    model = linear(rt.regularizers.L1(0.1, proximal=True), optimizer)
    w = array(model.layers[0].kernel).astype("float64")
    for t in range(4):
        w = soft(w - 0.3 * 0.5**t * slope(w), 0.3 * 0.5**t * 0.1)
    found, _ = fitted(model, 4)
    np.testing.assert_allclose(found, w, atol=2e-6)


def test_a_constraint_of_the_users_follows():
    penalty = rt.regularizers.L1(0.05, proximal=True)
    keras.utils.set_random_seed(0)
    layer = keras.layers.Dense(
        3, use_bias=False, kernel_regularizer=penalty, kernel_constraint=keras.constraints.NonNeg()
    )
    model = keras.Sequential([keras.Input((4,)), layer])
    model.compile(keras.optimizers.SGD(0.3), "mse")
    w = array(layer.kernel).astype("float64")
    for _ in range(5):
        w = np.maximum(soft(w - 0.3 * slope(w), 0.3 * 0.05), 0)
    np.testing.assert_allclose(fitted(model)[0], w, atol=2e-6)
    assert type(keras.models.clone_model(model).layers[0].kernel_constraint).__name__ == "NonNeg"


def test_the_surface_has_the_gradient_of_its_loss():
    model = linear(rt.regularizers.L1(0.5, proximal=True), "sgd")
    fitted(model, 1)
    surface = rt.LossSurface(model, X, Y)
    w = surface.params
    _, g = surface.value_and_gradient(w)
    np.testing.assert_allclose(
        array(g[0]), slope(array(w[0])) + 0.5 * np.sign(array(w[0])), atol=1e-5
    )


def test_together_with_sharpness_aware_minimization():
    penalty = rt.regularizers.L1(0.1, proximal=True)
    model = linear(penalty, keras.optimizers.SGD(0.3))
    w = array(model.layers[0].kernel).astype("float64")
    for _ in range(4):
        g = slope(w)
        w = soft(w - 0.3 * slope(w + 0.2 * g / np.linalg.norm(g)), 0.3 * 0.1)
    sam = rt.callbacks.SharpnessAwareMinimization(0.2)
    found, _ = fitted(model, 4, callbacks=[sam])
    np.testing.assert_allclose(found, w, atol=5e-6)


def test_saved_copied_and_stripped(tmp_path):
    penalty = rt.regularizers.L1(0.1, proximal=True)
    model = linear(penalty, keras.optimizers.SGD(0.3))
    fitted(model, 1)
    model.save(tmp_path / "m.keras")
    back = keras.saving.load_model(tmp_path / "m.keras")
    assert back.layers[0].kernel_regularizer.proximal
    before = (stepped(back, 30) == 0).sum()
    assert before > 0
    again = rt.regularize(model, dense=rt.regularizers.GroupLasso(0.3, proximal=True))
    again.compile(keras.optimizers.SGD(0.3), "mse")
    assert (stepped(again, 100) == 0).any()
    assert rt.strip(model).layers[0].kernel_regularizer.get_config()["l1"] == pytest.approx(0.1)
    assert repr(penalty) == "L1(l1=0.1, proximal=True)"


def test_without_it_nothing_changes():
    ends = []
    for penalty in (rt.regularizers.L1(0.1), keras.regularizers.L1(0.1)):
        ends.append(fitted(linear(penalty, keras.optimizers.SGD(0.3)))[0])
    np.testing.assert_array_equal(*ends)
    with pytest.raises(ValueError, match="`proximal` must be"):
        rt.regularizers.L1(0.1, proximal="yes")


def zeros_of(model):
    return [array(w) == 0 for w in model.trainable_variables if len(w.shape) > 1]


def test_zeros_are_held_while_the_rest_is_trained():
    lasso = rt.regularizers.L1(0.1, proximal=True)
    model = linear(lasso, keras.optimizers.Adam(0.05))
    sparse = stepped(model, 60)
    assert 0 < (sparse == 0).sum() < sparse.size
    fitted(model, 1)  # the step is compiled
    (before,) = zeros_of(model)
    assert rt.regularizers.hold_zeros(model) == before.sum()
    lasso.l1 = 0.0
    refit = stepped(model, 400)
    assert ((refit == 0) == before).all()
    for column in range(3):  # the least squares of what is left
        kept = ~before[:, column]
        exact = np.linalg.lstsq(X[:, kept], Y[:, column], rcond=None)[0]
        np.testing.assert_allclose(refit[kept, column], exact, atol=1e-3)
    assert rt.regularizers.hold_zeros(model, False) == 0
    free = stepped(model, 20)
    assert (free != 0).all()
    lasso.l1 = 0.1  # and the step is still one, not two
    again = stepped(model, 200)
    w = sparse.astype("float64")
    for _ in range(3000):
        w = soft(w - 0.3 * slope(w), 0.3 * 0.1)
    np.testing.assert_allclose(again, w, atol=2e-3)


def test_zeros_are_held_after_the_users_constraint():
    keras.utils.set_random_seed(0)
    layer = keras.layers.Dense(3, kernel_constraint=keras.constraints.UnitNorm(axis=0))
    model = keras.Sequential([keras.Input((4,)), layer])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    kernel = np.array(array(layer.kernel))
    kernel[1] = 0
    layer.kernel.assign(kernel)
    assert rt.regularizers.hold_zeros(model) == 3
    assert rt.regularizers.hold_zeros(model) == 3  # once more holds the same
    found, _ = fitted(model)
    assert (found[1] == 0).all()
    assert (found[[0, 2, 3]] != kernel[[0, 2, 3]]).all()
    assert np.linalg.norm(found, axis=0).max() < 1 + 1e-6
    layer.trainable = False  # which a release does not miss
    rt.regularizers.hold_zeros(model, False)
    layer.trainable = True
    assert isinstance(layer.kernel.constraint, keras.constraints.UnitNorm)
    with pytest.raises(ValueError, match="Argument `hold` must be"):
        rt.regularizers.hold_zeros(model, "no")
