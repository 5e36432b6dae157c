"""The measures of flatness against closed forms, brute force, and a change of scale."""

import functools
import itertools
import math

import keras
import numpy as np
import problems
import pytest
from keras import layers, ops
from problems import doubles
from scipy import optimize, stats

import keras_regtools as rt
from keras_regtools import measures

pytestmark = pytest.mark.backends
SHARP = 1e-9 if problems.HAS_FLOAT64 else 1e-3
RNG = np.random.default_rng(0)
X = RNG.standard_normal((22, 3))
Y = RNG.standard_normal((22, 2))
LABELS = RNG.integers(0, 3, 22)
WEIGHTS = RNG.uniform(0.5, 2, 22)
RAGGED = [slice(start, start + 5) for start in range(0, 22, 5)]  # the last has two samples


@pytest.fixture(autouse=True)
def _double():
    with problems.float64():
        yield


def flat(tensors):
    return np.concatenate([t.ravel() for t in doubles(tensors)])


def hessian(surface):
    """The whole matrix, a column for each product with a unit vector."""
    params = surface.params
    units = np.eye(rt.vectors.size(params))
    vectors = [rt.vectors.unflatten(unit, params) for unit in units]
    return np.stack([flat(surface.hvp(params, [v])[0]) for v in vectors], 1)


def fill(model):
    """Weights that do not come from an initializer, the same on every backend."""
    rng = np.random.default_rng(1)
    values = [rng.standard_normal(v.shape) for v in model.weights]
    pairs = zip(model.weights, values, strict=True)
    model.set_weights([np.abs(w) if "variance" in v.path else w for v, w in pairs])


# --- one function for all that is known of a quadratic and of a linear one ------------------------

A = np.array([3.0, -1.0, 0.5])
AT = np.array([1.0, -2.0, 0.5])
H = np.array([[2.0, 1.0, 0.0], [1.0, 3.0, -0.5], [0.0, -0.5, 1.0]])
RHO = 0.1
MINIMUM = AT - [0.3, 0.1, -0.2]


def linear(w):
    return ops.sum(problems.constant(A, w) * w)


def quadratic_at(minimum):
    def function(w):
        d = w - problems.constant(minimum, w)
        return 0.5 * ops.sum(d * ops.matmul(problems.constant(H, w), d))

    return function


@functools.cache
def surface_of(name):
    functions = {
        "linear": linear,
        "minimum": quadratic_at(AT),
        "slope": quadratic_at(MINIMUM),
        "flat": lambda w: 0.0 * ops.sum(w) + 0.5,
        "wall": lambda w: -ops.sum(ops.log(1.06 - w)),
    }
    return problems.function_surface(functions[name], AT)


GRADIENT = H @ (AT - MINIMUM)


def rise(move):
    return GRADIENT @ move + move @ H @ move / 2


# --- SAM and ASAM ---------------------------------------------------------------------------------


def test_sam_is_the_rise_by_a_step_up_the_gradient():
    of_linear = measures.sam_sharpness(surface_of("linear"), rho=RHO)
    of_quadratic = measures.sam_sharpness(surface_of("slope"), rho=RHO)
    assert of_linear.value == pytest.approx(RHO * np.linalg.norm(A), rel=SHARP)
    step = RHO * GRADIENT / np.linalg.norm(GRADIENT)
    assert of_quadratic.value == pytest.approx(rise(step), rel=SHARP)
    assert of_quadratic.loss == pytest.approx(rise(MINIMUM - AT) * -1, rel=SHARP)
    assert (of_linear.rho, of_linear.m, of_linear.stderr) == (RHO, None, None)
    assert not of_linear.adaptive


def test_where_the_gradient_is_zero_there_is_no_rise():
    for measure in (measures.sam_sharpness, measures.asam_sharpness):
        for m in (None, 2):
            result = measure(surface_of("flat"), m=m)
            assert (result.value, result.finite) == (0.0, True)


def test_defaults_are_those_of_the_papers():
    surface = surface_of("flat")
    assert measures.sam_sharpness(surface).rho == 0.05
    assert measures.asam_sharpness(surface).rho == 0.5


@functools.cache
def regression_surface(weighted):
    """Plain, or with sample weights and a penalty."""
    weights, penalty = (WEIGHTS, 0.125) if weighted else (None, 0.0)
    return rt.LossSurface(regression(penalty), X, Y, weights, loss="mse", batch_size=5)


@functools.cache
def regression(penalty=0.0):
    """A linear regression with a kernel and a bias."""
    regularizer = keras.regularizers.L2(penalty) if penalty else None
    model = keras.Sequential(
        [keras.Input((3,)), layers.Dense(2, kernel_regularizer=regularizer, name="dense")]
    )
    fill(model)
    return model


def squares(w, b, x, y, weights, penalty):
    residual = x @ w + b - y
    scale = np.ones(len(x)) if weights is None else weights
    value = np.mean(scale * np.mean(residual**2, 1)) + penalty * np.sum(w**2)
    slope = residual * scale[:, None] / len(x)
    return value, x.T @ slope + 2 * penalty * w, np.sum(slope, 0)


def step_of_sam(w, b, gw, gb, rho):
    length = math.hypot(np.linalg.norm(gw), np.linalg.norm(gb))
    return rho * gw / length, rho * gb / length


def step_of_asam(w, b, gw, gb, rho, eta):
    """Biases have T = 1."""
    t = np.abs(w) + eta
    length = math.hypot(np.linalg.norm(t * gw), np.linalg.norm(gb))
    return rho * t**2 * gw / length, rho * gb / length


STEPS = {
    "sam": (measures.sam_sharpness, step_of_sam, {"rho": 0.2}),
    "asam": (measures.asam_sharpness, step_of_asam, {"rho": 0.3, "eta": 0.05}),
}


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted, penalized"])
def test_m_sharpness_is_the_mean_over_batches_of_their_own_rises(name, weighted):
    measure, step, arguments = STEPS[name]
    weights, penalty = (WEIGHTS, 0.125) if weighted else (None, 0.0)
    surface = regression_surface(weighted)
    results = {m: measure(surface, m=m, **arguments) for m in (None, 5, 1, 22, 100)}
    w, b = doubles(surface.params)
    parts = {
        None: [slice(None)],
        5: RAGGED,
        1: [slice(i, i + 1) for i in range(22)],
        22: [slice(None)],
        100: [slice(None)],
    }
    for m, result in results.items():
        rises, counts = [], []
        for part in parts[m]:
            data = X[part], Y[part], None if weights is None else weights[part], penalty
            value, gw, gb = squares(w, b, *data)
            dw, db = step(w, b, gw, gb, **arguments)
            rises.append(squares(w + dw, b + db, *data)[0] - value)
            counts.append(len(data[0]))
        expected = np.average(rises, weights=counts)
        assert result.value == pytest.approx(expected, rel=SHARP)
        whole = squares(w, b, X, Y, weights, penalty)[0]
        assert result.loss == pytest.approx(whole, rel=1e-5)
        assert (result.m, result.adaptive) == (m, name == "asam")
        if len(rises) > 1:
            spread = np.average((np.array(rises) - expected) ** 2, weights=counts)
            stderr = math.sqrt(spread / (len(rises) - 1))
            assert result.stderr == pytest.approx(stderr, rel=SHARP)
        elif m is not None:
            assert math.isnan(result.stderr)


def test_the_batches_of_m_samples_give_the_statistics(normalized_net):
    batches = rt.LossSurface(normalized_net, X, LABELS, batch_size=5, mode="batch_statistics")
    whole = rt.LossSurface(normalized_net, X, LABELS, mode="batch_statistics")
    cut, uncut = measures.sam_sharpness(whole, m=5), measures.sam_sharpness(whole)
    assert cut.loss == pytest.approx(batches.value(), rel=1e-5)
    assert uncut.loss == pytest.approx(whole.value(), rel=1e-5)
    assert cut.loss != pytest.approx(uncut.loss, rel=1e-4)
    assert cut.mode == "batch_statistics"


def test_a_step_to_where_the_loss_is_not_finite_is_reported():
    surface = surface_of("wall")
    assert measures.sam_sharpness(surface, rho=0.01).finite
    beyond = measures.sam_sharpness(surface, rho=1.0)
    assert not beyond.finite
    assert not math.isfinite(beyond.value)


# --- average case ---------------------------------------------------------------------------------

AVERAGES = {
    "normal": ({}, RHO**2 * np.trace(H) / 2),
    "uniform": ({"law": "uniform"}, RHO**2 * np.trace(H) / 6),
    "adaptive": ({"adaptive": True}, RHO**2 * np.diag(H) @ AT**2 / 2),
    "adaptive, uniform": (
        {"adaptive": True, "law": "uniform"},
        RHO**2 * np.diag(H) @ AT**2 / 6,
    ),
}


@pytest.mark.parametrize("name", problems.rows(AVERAGES, "normal", "adaptive, uniform"))
def test_the_average_rise_is_half_the_variance_times_the_trace(name):
    arguments, expected = AVERAGES[name]
    surface = surface_of("slope")  # whose slope cancels
    results = [
        measures.average_sharpness(surface, rho=RHO, seed=seed, draws=10, **arguments)
        for seed in range(20)
    ]
    values, errors = (np.array([getattr(r, k) for r in results]) for k in ("value", "stderr"))
    spread = np.std(values, ddof=1)
    assert abs(np.mean(values) - expected) < 3 * spread / math.sqrt(20)
    assert spread / 2 < np.sqrt(np.mean(errors**2)) < 2 * spread
    assert spread < expected / 2
    assert {(r.law, r.adaptive) for r in results} == {
        (arguments.get("law", "normal"), arguments.get("adaptive", False))
    }


def test_the_average_rise_of_a_linear_loss_is_zero_in_each_draw():
    result = measures.average_sharpness(surface_of("linear"), draws=5)
    assert result.value == pytest.approx(0, abs=1e-12 if problems.HAS_FLOAT64 else 1e-6)
    assert result.stderr == pytest.approx(0, abs=1e-12 if problems.HAS_FLOAT64 else 1e-6)


def test_a_single_draw_has_no_standard_error():
    result = measures.average_sharpness(surface_of("minimum"), draws=1)
    assert math.isnan(result.stderr)
    assert result.evaluations == 3


def test_draws_that_are_not_finite_are_left_out_of_the_mean():
    result = measures.average_sharpness(surface_of("wall"), rho=0.05, draws=30)
    assert not result.finite
    assert math.isfinite(result.value)
    nowhere = measures.average_sharpness(surface_of("wall"), rho=1e6, draws=2)
    assert math.isnan(nowhere.value)
    assert not nowhere.finite


# --- worst case -----------------------------------------------------------------------------------

CORNERS = [np.array(s) for s in itertools.product((-1, 1), repeat=3)]


def largest_in_ball(scale, rho):
    """max of the quadratic over ‖δ/c‖₂ ≤ ρ, from its eigenvectors and one unknown multiplier."""
    values, vectors = np.linalg.eigh(np.outer(scale, scale) * H)
    slope = vectors.T @ (scale * GRADIENT)

    def length(multiplier):
        return np.linalg.norm(slope / (multiplier - values)) - rho

    top = values[-1]
    multiplier = optimize.brentq(length, top + 1e-9, top + 1e6, xtol=1e-14, rtol=1e-15)
    return rise(scale * (vectors @ (slope / (multiplier - values))))


WORST = {
    "linear, l2": ("linear", {}, RHO * np.linalg.norm(A)),
    "linear, linf": ("linear", {"norm": "linf"}, RHO * np.sum(np.abs(A))),
    "linear, adaptive l2": ("linear", {"adaptive": True}, RHO * np.linalg.norm(A * AT)),
    "linear, adaptive linf": (
        "linear",
        {"adaptive": True, "norm": "linf"},
        RHO * np.sum(np.abs(A * AT)),
    ),
    "minimum, l2": ("minimum", {}, RHO**2 * np.linalg.eigvalsh(H)[-1] / 2),
    "minimum, linf": (
        "minimum",
        {"norm": "linf"},
        RHO**2 * max(s @ H @ s for s in CORNERS) / 2,
    ),
    "slope, l2": ("slope", {}, largest_in_ball(np.ones(3), RHO)),
    "slope, adaptive l2": ("slope", {"adaptive": True}, largest_in_ball(np.abs(AT), RHO)),
    "slope, linf": ("slope", {"norm": "linf"}, max(rise(RHO * s) for s in CORNERS)),
    "slope, adaptive linf": (
        "slope",
        {"norm": "linf", "adaptive": True},
        max(rise(RHO * s * np.abs(AT)) for s in CORNERS),
    ),
}


@pytest.mark.parametrize(
    "name",
    problems.rows(
        WORST, "linear, adaptive linf", "minimum, l2", "slope, l2", "slope, adaptive linf"
    ),
)
def test_the_largest_rise_in_a_ball_is_found(name):
    function, arguments, expected = WORST[name]
    result = measures.worst_sharpness(
        surface_of(function), rho=RHO, restarts=3, steps=50, **arguments
    )
    default = measures.worst_sharpness(surface_of(function), rho=RHO, restarts=3, **arguments)
    rel = 1e-6 if problems.HAS_FLOAT64 else 1e-3
    assert result.value == pytest.approx(expected, rel=rel)
    assert default.value == pytest.approx(expected, rel=0.005)
    assert result.value <= expected * (1 + rel)
    assert result.maximum == pytest.approx(result.loss + result.value, rel=1e-5)
    assert result.evaluations == 1 + 4 * 51
    assert (result.norm, result.adaptive) == (
        arguments.get("norm", "l2"),
        arguments.get("adaptive", False),
    )


def test_restarts_of_the_worst_case_find_the_higher_corner_of_a_tilted_bowl():
    surface = problems.tilted_bowl()
    arguments = {"rho": 0.2, "norm": "linf", "steps": 5}  # the box of ε = .1 around (1, 1)
    alone = [measures.worst_sharpness(surface, **arguments, seed=s).value for s in range(8)]
    best = [
        measures.worst_sharpness(surface, **arguments, seed=s, restarts=8).value for s in range(8)
    ]
    assert {round(value, 2) for value in alone} == {0.14, 0.02}
    assert best == pytest.approx([0.14] * 8, rel=1e-3)


def test_behind_a_wall_the_largest_finite_loss_counts():
    surface = surface_of("wall")  # a step of .06 before the first weight's
    results = [measures.worst_sharpness(surface, rho=0.2, restarts=3, seed=s) for s in range(5)]
    assert not all(r.finite for r in results)
    assert all(0 <= r.value < math.inf for r in results)
    assert any(r.value > 0.1 for r in results)


def test_where_the_loss_is_not_finite_there_is_no_worst_case():
    surface = problems.function_surface(lambda w: ops.sum(ops.log(w)), (-1.0,))
    result = measures.worst_sharpness(surface)
    assert math.isnan(result.value)
    assert (result.finite, result.evaluations) == (False, 1)


# --- PAC-Bayes ------------------------------------------------------------------------------------


@functools.cache
def signs(count):
    """`count` samples, each with a weight of its own that is 1: right where it stays positive."""
    model = keras.Sequential(
        [keras.Input((count,)), layers.Dense(1, "sigmoid", use_bias=False, name="signs")]
    )
    model.set_weights([np.ones((count, 1))])
    return rt.LossSurface(model, np.eye(count), np.ones(count), loss="binary_crossentropy")


@pytest.mark.slow
def test_the_noise_that_flips_one_sign_in_ten():
    """P(1 + σ z < 0) = .1: σ = 1/Φ⁻¹(.9)."""
    results = [
        measures.pac_bayes_sharpness(signs(400), draws=6, bisections=9, seed=seed)
        for seed in range(20)
    ]
    sigmas, errors = (np.array([getattr(r, k) for r in results]) for k in ("sigma", "stderr"))
    spread = np.std(sigmas, ddof=1)
    assert abs(np.mean(sigmas) - 0.780304) < 3 * spread / math.sqrt(20) + 2 / 2**10
    assert spread / 2 < np.sqrt(np.mean(errors**2)) < 2 * spread
    assert spread < 0.08
    assert all(r.value == 1 / r.sigma**2 for r in results)
    assert all(r.converged and r.accuracy == 1 for r in results)
    assert {r.evaluations for r in results} == {1 + 6 * 10}


def test_the_noise_that_flips_one_sign_in_five():
    result = measures.pac_bayes_sharpness(signs(400), drop=0.2)
    assert abs(result.sigma - 1 / stats.norm.ppf(0.8)) < 3 * result.stderr
    assert result.stderr < 0.1


def test_the_noise_that_flips_the_sign_of_one_weight():
    result = measures.pac_bayes_sharpness(signs(1), draws=100, bisections=12)
    rng = np.random.default_rng(0)
    z = np.sort([rng.standard_normal() for _ in range(100)])
    exact = -1 / z[9]  # at which the tenth of 100 draws flips
    assert result.sigma == pytest.approx(exact, abs=2 / 2**12)
    assert abs(result.sigma - 0.780304) < 3 * result.stderr


def test_noise_that_flips_nothing_is_said_not_to_have_converged():
    result = measures.pac_bayes_sharpness(signs(400), largest=0.1, draws=2)
    assert not result.converged
    assert (result.sigma, result.largest) == (0.1, 0.1)
    assert result.value == pytest.approx(100)
    assert result.evaluations == 1 + 2


def test_the_noise_of_a_single_draw_has_no_standard_error():
    result = measures.pac_bayes_sharpness(signs(400), draws=1, bisections=6)
    assert math.isnan(result.stderr)
    assert result.converged


# --- relative flatness ----------------------------------------------------------------------------


@functools.cache
def small_surface():
    return rt.LossSurface(small_network(), IMAGES, LABELS, loss=of_logits())


@functools.cache
def small_network():
    """A convolution of three filters and a head of three classes, both without many weights."""
    model = keras.Sequential(
        [
            keras.Input((4, 4, 1)),
            layers.Conv2D(3, 2, activation="tanh", name="conv"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(3, name="head"),
        ]
    )
    fill(model)
    return model


IMAGES = RNG.standard_normal((22, 4, 4, 1))


def of_logits():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@pytest.mark.parametrize("layer", problems.rows(["conv", "head", None], "head"))
def test_relative_flatness_is_a_double_sum_over_neurons(layer):
    surface = small_surface()
    result = measures.relative_flatness(surface, layer)
    kernel = small_network().get_layer(layer or "head").kernel
    block = hessian(surface.restricted(kernel))
    w = doubles([kernel])[0]
    neurons = w.shape[-1]
    w = w.reshape(-1, neurons)
    block = block.reshape(*w.shape, *w.shape)
    expected = sum(
        w[:, s] @ w[:, t] * np.trace(block[:, s, :, t])
        for s in range(neurons)
        for t in range(neurons)
    )
    assert result.value == pytest.approx(expected, rel=SHARP)
    assert result.converged
    assert result.kernel == kernel.path
    assert result.matrix == "hessian"


def test_relative_flatness_takes_the_layer_itself_and_the_gauss_newton_matrix():
    """Of the last layer, in which the logits are linear, both matrices are the same."""
    surface = small_surface()
    head = small_network().get_layer("head")
    named, given, gauss_newton = (
        measures.relative_flatness(surface, layer, matrix=matrix).value
        for layer, matrix in (("head", "hessian"), (head, "hessian"), (head, "gauss_newton"))
    )
    assert named == given
    assert gauss_newton == pytest.approx(given, rel=max(SHARP, 1e-8))


@pytest.mark.slow
def test_the_relative_flatness_of_many_weights_is_within_its_error():
    model = keras.Sequential([keras.Input((12,)), layers.Dense(6)])
    fill(model)
    x = np.random.default_rng(2).standard_normal((40, 12)) * np.linspace(0.1, 2, 12)
    labels = np.arange(40) % 6
    surface = rt.LossSurface(model, x, labels, loss=of_logits())
    results = [
        measures.relative_flatness(surface, sketch=3, max_products=20, seed=seed)
        for seed in range(20)
    ]
    w = doubles([model.layers[0].kernel])[0]
    block = hessian(surface.restricted(model.layers[0].kernel))
    gram = np.einsum("is,it->st", w, w)
    expected = np.einsum("st,isit->", gram, block.reshape(12, 6, 12, 6))
    values, errors = (np.array([getattr(r, k) for r in results]) for k in ("value", "stderr"))
    spread = np.std(values, ddof=1)
    assert abs(np.mean(values) - expected) < 3 * spread / math.sqrt(20)
    assert spread / 2 < np.sqrt(np.mean(errors**2)) < 2 * spread


# --- Fisher-Rao -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "weighted", problems.rows([False, True], True), ids=["plain", "weighted, penalized"]
)
def test_the_fisher_rao_norm_is_a_mean_over_samples(weighted):
    weights, penalty = (WEIGHTS, 0.125) if weighted else (None, 0.0)
    surface = regression_surface(weighted)
    result = measures.fisher_rao_norm(surface)
    w, b = doubles(surface.params)
    slopes = []
    for i in range(22):
        one = slice(i, i + 1)
        _, gw, gb = squares(
            w, b, X[one], Y[one], None if weights is None else weights[one], penalty
        )
        slopes.append(np.sum(w * gw) + b @ gb)
    expected = np.square(slopes)
    rel = 1e-9 if problems.HAS_FLOAT64 else 1e-4
    assert result.value == pytest.approx(np.mean(expected), rel=rel)
    assert result.stderr == pytest.approx(np.std(expected, ddof=1) / math.sqrt(22), rel=10 * rel)
    assert result.loss == pytest.approx(surface.value(), rel=1e-6)


def test_the_fisher_rao_norm_of_one_sample_has_no_standard_error():
    surface = regression_surface(False).over(X[:1], Y[:1])
    assert math.isnan(measures.fisher_rao_norm(surface).stderr)


# --- the weights themselves -----------------------------------------------------------------------


@pytest.fixture
def normalized_net():
    return normalized()


@functools.cache
def normalized():
    model = keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(4, kernel_regularizer=keras.regularizers.L2(0.1), name="hidden"),
            layers.BatchNormalization(name="bn"),
            layers.Activation("tanh"),
            layers.Dense(3, "softmax", name="head"),
        ],
        name="normalized",
    )
    model.compile("sgd", "sparse_categorical_crossentropy")
    fill(model)
    return model


def test_the_norm_is_that_of_all_trainable_weights_or_of_a_layer(normalized_net):
    surface = rt.LossSurface(normalized_net, X, LABELS)
    w = flat(normalized_net.trainable_variables)
    norm = measures.weight_norm(surface)
    assert norm.value == pytest.approx(np.linalg.norm(w), rel=1e-6)
    assert norm.largest == pytest.approx(np.max(np.abs(w)))
    assert (norm.relative, norm.size) == (1.0, len(w))
    head = measures.weight_norm(surface.restricted("head"))
    expected = np.linalg.norm(flat(normalized_net.get_layer("head").trainable_variables))
    assert head.value == pytest.approx(expected, rel=1e-6)
    assert head.size == 15


OTHERS = {
    "a model": lambda model, weights: weights and copy_with(model, weights),
    "all of its weights": lambda model, weights: weights,
    "the trainable ones": lambda model, weights: trainable_of(model, weights),
}


def copy_with(model, weights):
    other = keras.models.clone_model(model)
    other.set_weights(weights)
    return other


def trainable_of(model, weights):
    own = [v.path for v in model.trainable_variables]
    return [w for v, w in zip(model.weights, weights, strict=True) if v.path in own]


@pytest.mark.parametrize("name", OTHERS)
def test_the_distance_counts_trainable_weights_alone(name, normalized_net):
    weights = [w + np.float32(i) for i, w in enumerate(normalized_net.get_weights())]
    start = OTHERS[name](normalized_net, weights)
    surface = rt.LossSurface(normalized_net, X, LABELS)
    far = measures.weight_distance(surface, start)
    there = np.concatenate([w.ravel() for w in trainable_of(normalized_net, weights)])
    move = flat(surface.params) - there
    assert far.value == pytest.approx(np.linalg.norm(move), rel=1e-5)
    assert far.relative == pytest.approx(far.value / np.linalg.norm(there), rel=1e-5)
    assert far.largest == pytest.approx(np.max(np.abs(move)), rel=1e-5)
    assert far.size == len(move)
    if name != "the trainable ones":  # which do not tell which of them are the layer's
        part = measures.weight_distance(surface.restricted("hidden"), start)
        assert part.value == pytest.approx(np.linalg.norm(move[:16]), rel=1e-5)


def test_the_distance_from_the_same_weights_is_zero_and_from_zero_has_no_scale(normalized_net):
    surface = rt.LossSurface(normalized_net, X, LABELS)
    here = measures.weight_distance(surface, normalized_net)
    assert (here.value, here.relative, here.largest) == (0.0, 0.0, 0.0)
    nothing = measures.weight_distance(surface, [0 * p for p in surface.params])
    assert math.isnan(nothing.relative)
    assert nothing.value == measures.weight_norm(surface).value


# --- normalized logits ----------------------------------------------------------------------------


def classifier(end):
    model = keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(4, "tanh", name="hidden"),
            layers.Dense(3, end, name="head"),
        ]
    )
    fill(model)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=end is None)
    model.compile("sgd", loss)
    return model


@pytest.mark.parametrize("end", problems.rows(["softmax", None], None), ids=["softmax", "logits"])
def test_the_scale_of_normalized_logits_does_not_count(end):
    """Of the last layer both kernel and bias are scaled."""
    model = classifier(end)
    weights = model.get_weights()
    surface = rt.LossSurface(model, X, LABELS)
    scaled = surface.at([*weights[:2], *(3 * w for w in weights[2:])])
    arguments = {"adaptive": True, "rho": 0.05, "normalize_logits": True}
    for measure in (
        lambda s: s.with_normalized_logits().value(),
        lambda s: measures.average_sharpness(s, draws=3, **arguments).value,
        lambda s: measures.worst_sharpness(s, steps=5, **arguments).value,
    ):
        assert measure(scaled) == pytest.approx(measure(surface), rel=2e-3)
    assert scaled.value() != pytest.approx(surface.value(), rel=0.01)
    for measure, few in (
        (measures.average_sharpness, {"draws": 3}),
        (measures.worst_sharpness, {"steps": 5}),
    ):
        arguments["normalize_logits"] = False
        here, there = (measure(s, **few, **arguments) for s in (surface, scaled))
        assert here.value != pytest.approx(there.value, rel=0.01)
        assert not here.normalize_logits

    hidden = np.tanh(X @ weights[0] + weights[1])
    z = hidden @ weights[2] + weights[3]
    z = z / np.std(z, 1, keepdims=True)
    expected = np.mean(np.log(np.sum(np.exp(z), 1)) - z[np.arange(22), LABELS])
    assert surface.with_normalized_logits().value() == pytest.approx(expected, rel=1e-4)


# --- rescaling ------------------------------------------------------------------------------------

SCALES = (1.0, 3.0, 10.0)


def product_surface(w1, w2):
    """½ (w1 w2 − 1)², as a network of two layers and one sample."""
    model = keras.Sequential(
        [
            keras.Input((1,)),
            layers.Dense(1, use_bias=False, name="first"),
            layers.Dense(1, use_bias=False, name="second"),
        ]
    )
    model.set_weights([np.array([[w1]]), np.array([[w2]])])
    one = np.array([[math.sqrt(0.5)]])
    return rt.LossSurface(model, one, one, loss="mse")


@functools.cache
def along_the_valley():
    """Surfaces of the same function: at the minimum, and beside it."""
    surface = product_surface(2.0, 0.5)
    return {
        (a, product): surface.at([np.array([[2 * a]]), np.array([[product / (2 * a)]])])
        for a in SCALES
        for product in (1.0, 2.0)
    }


def rise_of_product(w1, w2, d1, d2):
    return ((w1 + d1) * (w2 + d2) - 1) ** 2 / 2 - (w1 * w2 - 1) ** 2 / 2


def sam_of_product(w1, w2):
    length = math.hypot(w1, w2)
    return rise_of_product(w1, w2, 0.1 * w2 / length, 0.1 * w1 / length)


def keskar_of_product(w1, w2):
    rise = rise_of_product(w1, w2, 0.1 * (w1 + 1), 0.1 * (w2 + 1))
    return 100 * rise / (1 + (w1 * w2 - 1) ** 2 / 2)


def worst_of_product(w1, w2):
    angles = np.linspace(0, 2 * np.pi, 200_001)
    return np.max(rise_of_product(w1, w2, 0.1 * np.cos(angles), 0.1 * np.sin(angles)))


PAPERS = {  # FACTS, by a
    "λmax": (lambda s: np.linalg.eigvalsh(hessian(s))[-1], (4.25, 36.0278, 400.0025)),
    "trace": (lambda s: np.trace(hessian(s)), (4.25, 36.0278, 400.0025)),
    "Σ H_ii w_i²": (lambda s: np.diag(hessian(s)) @ flat(s.params) ** 2, (2.0,) * 3),
    "top eigenvalue": (
        lambda s: measures.hessian_eigenvalues(s).eigenvalues[0],
        (4.25, 36.0278, 400.0025),
    ),
    "relative flatness": (lambda s: measures.relative_flatness(s).value, (1.0,) * 3),
    "relative flatness of the first layer": (
        lambda s: measures.relative_flatness(s, "first").value,
        (1.0,) * 3,
    ),
    "adaptive worst case": (
        lambda s: measures.worst_sharpness(s, rho=0.1, adaptive=True, restarts=2).value,
        (0.0107196,) * 3,
    ),
}


@pytest.mark.parametrize("name", PAPERS)
def test_at_the_minimum_of_a_rescaled_product(name):
    measure, expected = PAPERS[name]
    found = [measure(along_the_valley()[a, 1.0]) for a in SCALES]
    assert found == pytest.approx(expected, rel=1e-5 if problems.HAS_FLOAT64 else 2e-3)


MOVES = {  # beside the minimum, where w1 w2 = 2
    "sam": (lambda s: measures.sam_sharpness(s, rho=0.1).value, sam_of_product),
    "keskar": (
        lambda s: measures.keskar_sharpness(s, epsilon=0.1).value,
        keskar_of_product,
    ),
    "worst": (
        lambda s: measures.worst_sharpness(s, rho=0.1, restarts=2, steps=40).value,
        worst_of_product,
    ),
    "norm": (lambda s: measures.weight_norm(s).value, math.hypot),
}


@pytest.mark.parametrize("name", MOVES)
def test_what_moves_when_the_weights_are_rescaled(name):
    measure, expected = MOVES[name]
    found = [measure(along_the_valley()[a, 2.0]) for a in SCALES]
    expected = [expected(2 * a, 1 / a) for a in SCALES]
    assert found == pytest.approx(expected, rel=1e-5 if problems.HAS_FLOAT64 else 2e-3)
    assert found[2] > 2 * found[0]


def test_the_average_rise_moves_when_the_weights_are_rescaled():
    """E ½ (w1 w2 − 1)² is ½ (ρ² (w1² + w2²) + ρ⁴) at the minimum."""
    results = [
        measures.average_sharpness(along_the_valley()[a, 1.0], rho=0.1, draws=100) for a in SCALES
    ]
    for a, result in zip(SCALES, results, strict=True):
        expected = (0.01 * (4 * a**2 + 0.25 / a**2) + 1e-4) / 2
        assert abs(result.value - expected) < 3 * result.stderr
        assert result.stderr < 0.3 * expected


STAYS = {  # beside the minimum, where w1 w2 = 2
    "asam": (
        lambda s: measures.asam_sharpness(s, rho=0.1, eta=0.0).value,
        ((2 * (1 + 0.1 / math.sqrt(2)) ** 2 - 1) ** 2 - 1) / 2,
    ),
    "fisher-rao": (lambda s: measures.fisher_rao_norm(s).value, (2 * 2 * 1) ** 2),
    "adaptive average": (
        lambda s: measures.average_sharpness(s, adaptive=True, rho=0.1, draws=3).value,
        None,
    ),
}


@pytest.mark.parametrize("name", STAYS)
def test_what_stays_when_the_weights_are_rescaled(name):
    measure, expected = STAYS[name]
    found = [measure(along_the_valley()[a, 2.0]) for a in SCALES]
    expected = found[0] if expected is None else expected
    assert found == pytest.approx([expected] * 3, rel=SHARP if name != "fisher-rao" else 1e-4)
    assert expected > 1e-3


ON_A_NET = {  # name -> (measure, whether it stays)
    "adaptive worst case": (
        lambda s: measures.worst_sharpness(s, adaptive=True, rho=0.1, steps=8).value,
        True,
    ),
    "adaptive average": (
        lambda s: measures.average_sharpness(s, adaptive=True, rho=0.1, draws=3).value,
        True,
    ),
    "asam": (lambda s: measures.asam_sharpness(s, rho=0.1, eta=0.0).value, True),
    "fisher-rao": (lambda s: measures.fisher_rao_norm(s).value, True),
    "relative flatness": (lambda s: measures.relative_flatness(s, "hidden").value, True),
    "worst case": (lambda s: measures.worst_sharpness(s, rho=0.1, steps=8).value, False),
    "average": (lambda s: measures.average_sharpness(s, rho=0.1, draws=3).value, False),
    "sam": (lambda s: measures.sam_sharpness(s, rho=0.1).value, False),
    "keskar": (lambda s: measures.keskar_sharpness(s, epsilon=0.01).value, False),
    "pac-bayes": (
        lambda s: measures.pac_bayes_sharpness(s, draws=3, bisections=8).value,
        False,
    ),
    "norm": (lambda s: measures.weight_norm(s).value, False),
}


@functools.cache
def rescaled_nets():
    model = keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(4, "relu", use_bias=False, name="hidden"),
            layers.Dense(3, "softmax", use_bias=False, name="head"),
        ]
    )
    fill(model)
    w, v = model.get_weights()
    labels = np.argmax(np.maximum(X @ w, 0) @ v, 1)  # so that there is an accuracy to lose
    surface = rt.LossSurface(model, X, labels, loss="sparse_categorical_crossentropy")
    return [surface.at([w * a, v / a]) for a in SCALES]


def test_rescaling_relu_layers_leaves_the_function_alone():
    found = [surface.value_and_accuracy() for surface in rescaled_nets()]
    assert [loss for loss, _ in found] == pytest.approx([found[0][0]] * 3, rel=1e-5)
    assert [accuracy for _, accuracy in found] == [1.0] * 3


@pytest.mark.parametrize("name", ON_A_NET)
def test_what_rescaling_of_a_relu_net_does(name):
    measure, stays = ON_A_NET[name]
    found = [measure(surface) for surface in rescaled_nets()]
    if stays:
        assert found == pytest.approx([found[0]] * 3, rel=1e-6 if problems.HAS_FLOAT64 else 2e-3)
    else:
        assert abs(found[2] - found[0]) > 0.05 * abs(found[0])
    assert abs(found[0]) > 1e-4


# --- what every result says -----------------------------------------------------------------------

MEASURES = {
    "keskar": lambda s: measures.keskar_sharpness(s, epsilon=0.05, iterations=3),
    "subspace": lambda s: measures.keskar_sharpness(s, epsilon=0.05, subspace=3, iterations=3),
    "sam": measures.sam_sharpness,
    "m": lambda s: measures.sam_sharpness(s, m=11),
    "asam": measures.asam_sharpness,
    "average": lambda s: measures.average_sharpness(s, draws=2),
    "worst": lambda s: measures.worst_sharpness(s, steps=3),
}


@functools.cache
def three_surfaces(model):
    return {
        (mode, penalties): rt.LossSurface(model, X, LABELS, mode=mode, penalties=penalties)
        for mode, penalties in (
            ("inference", True),
            ("inference", False),
            ("batch_statistics", True),
        )
    }


@pytest.mark.parametrize("name", MEASURES)
def test_penalties_and_the_mode_change_the_number_and_stand_in_the_result(name, normalized_net):
    results = {k: MEASURES[name](s) for k, s in three_surfaces(normalized_net).items()}
    for (mode, penalties), result in results.items():
        assert (result.mode, result.penalties, result.samples) == (mode, penalties, 22)
        assert result.scalars()["penalties"] == float(penalties)
        assert result.scalars()["value"] == result.value
    values = [result.value for result in results.values()]
    assert values[0] != pytest.approx(values[1], rel=1e-3)
    assert values[0] != pytest.approx(values[2], rel=1e-3)


@pytest.mark.parametrize("measure", [measures.fisher_rao_norm, measures.relative_flatness])
def test_penalties_change_what_needs_second_derivatives(measure):
    without = rt.LossSurface(regression(0.125), X, Y, loss="mse", penalties=False)
    inside, outside = measure(regression_surface(True)), measure(without)
    assert (inside.penalties, outside.penalties) == (True, False)
    assert inside.value != pytest.approx(outside.value, rel=1e-3)


def test_the_mode_and_penalties_stand_in_a_result_that_they_do_not_change(normalized_net):
    for (mode, penalties), surface in three_surfaces(normalized_net).items():
        result = measures.weight_norm(surface)
        assert (result.mode, result.penalties, result.samples) == (mode, penalties, 22)
    surface = three_surfaces(normalized_net)["batch_statistics", True]
    result = measures.pac_bayes_sharpness(surface, draws=1, bisections=1)
    assert (result.mode, result.penalties, result.samples) == ("batch_statistics", True, 22)


@pytest.mark.parametrize("measure", [measures.average_sharpness, measures.worst_sharpness])
def test_the_seed_makes_the_number(measure):
    surface = surface_of("slope")
    few = {"draws": 2} if measure is measures.average_sharpness else {"steps": 1}
    assert measure(surface, seed=1, **few) == measure(surface, seed=1, **few)
    assert measure(surface, seed=1, **few).value != measure(surface, seed=2, **few).value


# --- bad input ------------------------------------------------------------------------------------

POSITIVE = "Argument `{0}` must be a positive finite number. Received: {0}={1} (of type {2})"
COUNT = "Argument `{0}` must be a positive integer. Received: {0}={1} (of type {2})"
WRONG = {
    **{
        f"{name}, {rho}": (name, {"rho": rho}, POSITIVE.format("rho", rho, type(rho)))
        for name in ("sam_sharpness", "asam_sharpness", "average_sharpness", "worst_sharpness")
        for rho in (0, -0.05, math.inf)
    },
    **{
        f"{name}, {m}": (name, {"m": m}, COUNT.format("m", m, type(m)))
        for name in ("sam_sharpness", "asam_sharpness")
        for m in (0, 2.5)
    },
    "eta": (
        "asam_sharpness",
        {"eta": -0.01},
        "Argument `eta` must be a finite number, zero or above. "
        "Received: eta=-0.01 (of type <class 'float'>)",
    ),
    "draws": ("average_sharpness", {"draws": 0}, COUNT.format("draws", 0, int)),
    "law": (
        "average_sharpness",
        {"law": "cauchy"},
        "Argument `law` must be one of 'normal', 'uniform'. Received: law='cauchy'",
    ),
    "steps": ("worst_sharpness", {"steps": 0}, COUNT.format("steps", 0, int)),
    "restarts": (
        "worst_sharpness",
        {"restarts": -1},
        "Argument `restarts` must be an integer, 0 or above. "
        "Received: restarts=-1 (of type <class 'int'>)",
    ),
    "norm": (
        "worst_sharpness",
        {"norm": "l1"},
        "Argument `norm` must be one of 'l2', 'linf'. Received: norm='l1'",
    ),
    "drop": (
        "pac_bayes_sharpness",
        {"drop": 1},
        "Argument `drop` must be a number between 0 and 1. "
        "Received: drop=1 (of type <class 'int'>)",
    ),
    "largest": ("pac_bayes_sharpness", {"largest": -1}, POSITIVE.format("largest", -1, int)),
    "draws of noise": ("pac_bayes_sharpness", {"draws": 0}, COUNT.format("draws", 0, int)),
    "bisections": (
        "pac_bayes_sharpness",
        {"bisections": 0},
        COUNT.format("bisections", 0, int),
    ),
    "tolerance": (
        "relative_flatness",
        {"tolerance": 0.0},
        POSITIVE.format("tolerance", 0.0, float),
    ),
    "sketch": ("relative_flatness", {"sketch": 0}, COUNT.format("sketch", 0, int)),
    "matrix": (
        "relative_flatness",
        {"matrix": "fisher"},
        "Argument `matrix` must be one of 'hessian', 'gauss_newton'. Received: matrix='fisher'",
    ),
    "few products": (
        "relative_flatness",
        {"max_products": 3},
        "Expected `max_products` to be at least 40, 2 for each of the 15 rows of the "
        "sketch and 1 for each of 10 draws. "
        "Received: max_products=3",
    ),
    "a layer without a kernel": (
        "relative_flatness",
        {"layer": "bn"},
        "Expected weights with a kernel, of two axes or more. Received: the layer 'bn' with "
        "shapes [(4,), (4,)]",
    ),
    "no such layer": (
        "relative_flatness",
        {"layer": "conv"},
        "Expected `layers` to name layers or trainable variables of the model, such as "
        "['hidden', 'bn', 'head']. Received: 'conv'",
    ),
    "another structure": (
        "weight_distance",
        {"start": [np.zeros(3)]},
        "Expected `start` to have the structure of the model 'normalized', weights of the shapes "
        "[(3, 4), (4,), (4,), (4,), (4,), (4,), (4, 3), (3,)]. Received: shapes [(3,)]",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_input(name, normalized_net):
    measure, arguments, message = WRONG[name]
    with pytest.raises(ValueError) as caught:
        getattr(measures, measure)(three_surfaces(normalized_net)["inference", True], **arguments)
    assert str(caught.value) == message


def test_a_model_of_another_structure_is_refused(normalized_net):
    with pytest.raises(ValueError) as caught:
        measures.weight_distance(rt.LossSurface(normalized_net, X, LABELS), regression())
    assert str(caught.value) == (
        "Expected `start` to have the structure of the model 'normalized', weights of the shapes "
        "[(3, 4), (4,), (4,), (4,), (4,), (4,), (4, 3), (3,)]. Received: shapes [(3, 2), (2,)]"
    )


def test_a_surface_without_a_kernel_has_no_relative_flatness(normalized_net):
    with pytest.raises(ValueError) as caught:
        measures.relative_flatness(rt.LossSurface(normalized_net, X, LABELS, layers="bn"))
    assert str(caught.value) == (
        "Expected weights with a kernel, of two axes or more. Received: the surface's with "
        "shapes [(4,), (4,)]"
    )


@pytest.mark.parametrize("measure", [measures.sam_sharpness, measures.asam_sharpness])
def test_m_is_refused_for_a_dataset(measure):
    batches = [(X[part].astype("float32"), Y[part].astype("float32")) for part in RAGGED]
    data = Listed(batches)
    with pytest.raises(ValueError) as caught:
        measure(rt.LossSurface(regression(), data, loss="mse"), m=5)
    assert str(caught.value) == (
        "Expected arrays, which can be cut into batches of another size. Received: the dataset "
        f"{data!r}, which has batches of its own"
    )


class Listed(keras.utils.PyDataset):
    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, i):
        return self.batches[i]


def test_a_model_that_does_not_classify_has_no_accuracy_to_lose():
    with pytest.raises(ValueError) as caught:
        measures.pac_bayes_sharpness(rt.LossSurface(regression(), X, Y, loss="mse"))
    assert str(caught.value) == (
        "Expected a model whose accuracy can be computed: one output and a cross-entropy or hinge "
        f"loss. Received: the model {regression().name!r} with the loss 'meansquarederror'"
    )


@pytest.mark.parametrize("measure", [measures.average_sharpness, measures.worst_sharpness])
def test_logits_of_what_has_none_are_not_normalized(measure):
    with pytest.raises(ValueError) as caught:
        measure(signs(400), normalize_logits=True)
    assert str(caught.value) == (
        "Expected a model whose logits can be normalized: one output and a categorical "
        f"cross-entropy. Received: the model {signs(400).model.name!r} with the loss "
        "'binarycrossentropy'"
    )


# --- what a first review broke --------------------------------------------------------------------


def two_headed(**arguments):
    inputs = keras.Input((4,))
    outputs = [
        keras.layers.Dense(3, "softmax", name="a")(inputs),
        keras.layers.Dense(1, name="b")(inputs),
    ]
    model = keras.Model(inputs, outputs)
    model.compile("sgd", ["sparse_categorical_crossentropy", "mse"])
    rng = np.random.default_rng(5)
    x, y = rng.standard_normal((12, 4)), [rng.integers(0, 3, 12), rng.standard_normal((12, 1))]
    return rt.LossSurface(model, x, y, **arguments)


@pytest.mark.slow
def test_fisher_rao_with_sample_weights_for_each_output():
    rng = np.random.default_rng(6)
    surface = two_headed(sample_weight=[rng.uniform(size=12), rng.uniform(size=12)])
    params = surface.params
    slopes = [
        rt.vectors.dot(params, surface.over(one).value_and_gradient(params)[1])
        for one, _ in surface.data.rebatched(1).one_by_one()
    ]
    expected = np.mean(np.square(slopes))
    assert rt.measures.fisher_rao_norm(surface).value == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("loss", "received"),
    [
        (
            lambda y, z: ops.mean(ops.square(y - z)),
            "the loss '<lambda>', which gives one value for all samples",
        ),
        (
            lambda: keras.losses.MeanSquaredError(reduction="sum"),
            "the loss 'meansquarederror' with reduction='sum'",
        ),
    ],
)
def test_fisher_rao_needs_a_loss_that_is_a_mean_over_samples(loss, received):
    if loss.__code__.co_argcount == 0:
        loss = loss()
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    surface = rt.LossSurface(model, np.ones((4, 2)), np.ones((4, 1)), loss=loss)
    with pytest.raises(ValueError) as caught:
        rt.measures.fisher_rao_norm(surface)
    assert str(caught.value) == (
        "Expected a loss that is the mean over its samples, each with a value of its own. "
        f"Received: {received}"
    )


def test_a_network_that_diverged_is_not_the_flattest_of_all():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, "softmax")])
    surface = rt.LossSurface(
        model, np.ones((6, 2)), np.arange(6) % 3, loss="sparse_categorical_crossentropy"
    )
    model.set_weights([np.full(w.shape, np.nan) for w in model.get_weights()])
    diverged = rt.measures.pac_bayes_sharpness(surface, draws=2, bisections=2)
    assert np.isnan(diverged.value)
    assert not diverged.finite
    assert not diverged.converged
    model.set_weights([np.zeros((2, 3)), np.array([1.0, 0.0, 0.0])])
    low = rt.measures.pac_bayes_sharpness(surface, drop=0.5, draws=2, bisections=2)
    assert low.accuracy == pytest.approx(1 / 3)
    assert np.isnan(low.value)
    assert low.finite


def test_the_worst_case_of_each_batch_alone_is_their_mean():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    model.set_weights([np.array([[2.0]])])
    x = np.array([[1.0], [2.0], [3.0]])
    surface = rt.LossSurface(model, x, np.zeros((3, 1)), loss="mse")
    rises = [a * (2.1**2 - 2**2) for a in ((1 + 4) / 2, 9)]  # of two samples, and of one
    found = rt.measures.worst_sharpness(surface, rho=0.1, m=2)
    assert found.value == pytest.approx((2 * rises[0] + rises[1]) / 3, rel=1e-4)
    spread = (2 * (rises[0] - found.value) ** 2 + (rises[1] - found.value) ** 2) / 3
    assert found.stderr == pytest.approx(np.sqrt(spread), rel=1e-3)
    assert found.m == 2
    assert rt.measures.worst_sharpness(surface, rho=0.1).stderr is None
