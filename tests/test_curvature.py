"""The measures of curvature, against closed forms."""

import dataclasses
import functools
import math

import keras
import numpy as np
import problems
import pytest
from keras import layers, ops
from problems import doubles

import keras_regtools as rt
from keras_regtools import measures

pytestmark = pytest.mark.backends
RNG = np.random.default_rng(0)
X = RNG.standard_normal((32, 3))
LABELS = RNG.integers(0, 3, 32)
ONE_HOT = np.eye(3)[LABELS]
WEIGHTS = RNG.uniform(0.5, 2, 32)
SHARP = problems.HAS_FLOAT64
RTOL = 1e-9 if SHARP else 1e-5

MEASURES = {
    "eigenvalues": measures.hessian_eigenvalues,
    "trace": measures.hessian_trace,
    "density": measures.hessian_density,
    "share": lambda surface, **arguments: measures.gradient_share(surface, 1, **arguments),
}


def flat(tensors):
    return np.concatenate([t.ravel() for t in doubles(tensors)])


def matrix_of(surface, product):
    """The whole matrix; the surface has few weights."""
    like = doubles(surface.params)
    ends = np.cumsum([p.size for p in like])

    def column(unit):
        parts = np.split(unit, ends[:-1])
        vector = [v.reshape(p.shape) for v, p in zip(parts, like, strict=True)]
        return flat(product(None, vector))

    return np.stack([column(unit) for unit in np.eye(ends[-1])], 1)


def assert_spectrum(surface, truth):
    """Every measure agrees with the eigenvalues, in ascending order."""
    n, scale = len(truth), max(1.0, np.max(np.abs(truth)))
    found = measures.hessian_eigenvalues(surface, k=n)
    assert found.converged
    np.testing.assert_allclose(found.eigenvalues, truth[::-1], atol=RTOL * scale)
    trace = measures.hessian_trace(surface, sketch=n)
    assert trace.estimate == pytest.approx(np.sum(truth), abs=RTOL * n * scale)
    nodes = measures.hessian_density(surface, steps=n, draws=2).nodes
    np.testing.assert_allclose(nodes[:, [0, -1]], [truth[[0, -1]]] * 2, atol=RTOL * scale)


@pytest.fixture(scope="module")
def saddle():
    """No measure changes it, and it holds what was traced."""
    return problems.PROBLEMS["saddle"].surface()


@pytest.mark.parametrize(
    "name", problems.rows(problems.PROBLEMS, "quadratic off its minimum", "saddle")
)
def test_a_problem_has_the_spectrum_of_its_closed_form(name):
    problem = problems.PROBLEMS[name]
    with problems.float64():
        assert_spectrum(problem.surface(), np.linalg.eigvalsh(problem.hessian))


@pytest.mark.slow
def test_the_ends_of_a_saddle():
    """Of [[2, 1], [1, -4]]: -1 ± √10. The largest eigenvalue is not the one of largest size."""
    high, low = -1 + math.sqrt(10), -1 - math.sqrt(10)
    with problems.float64():
        surface = problems.PROBLEMS["saddle"].surface()
        for which, expected in (
            ("largest", [high]),
            ("smallest", [low]),
            ("magnitude", [low]),
            ("both", [high, low]),
        ):
            found = measures.hessian_eigenvalues(surface, which=which)
            np.testing.assert_allclose(found.eigenvalues, expected, rtol=RTOL)
            assert found.value == pytest.approx(expected[0], rel=RTOL)
        assert measures.hessian_trace(surface).estimate == pytest.approx(-2, rel=RTOL)


def test_the_value_of_several_is_the_most_extreme_one(saddle):
    high, low = -1 + math.sqrt(10), -1 - math.sqrt(10)
    for which, expected in (("largest", high), ("smallest", low), ("magnitude", low)):
        found = measures.hessian_eigenvalues(saddle, k=2, which=which)
        assert found.value == found.scalars()["value"] == pytest.approx(expected, rel=1e-4)


def test_something_that_is_no_surface_is_refused():
    with pytest.raises(TypeError) as caught:
        measures.hessian_trace("a model")
    assert str(caught.value) == (
        "Expected a `LossSurface`. Received: 'a model' (of type <class 'str'>)"
    )


@pytest.mark.parametrize(
    ("a", "expected"), problems.rows([(1, 4.25), (3, 36.0278), (10, 400.0025)], (10, 400.0025))
)
def test_rescaling_sharpens_what_is_the_same_function(a, expected):
    """Dinh et al., 2017: ½ (w₁ w₂ - 1)² at (2a, .5/a) is 0 for every a."""
    with problems.float64():
        surface = problems.function_surface(
            lambda w: 0.5 * ops.square(w[0] * w[1] - 1), (2.0 * a, 0.5 / a)
        )
        top = measures.hessian_eigenvalues(surface, k=2).eigenvalues
        trace = measures.hessian_trace(surface).estimate
    assert top[0] == pytest.approx(expected, rel=1e-5)
    assert top[1] == pytest.approx(0, abs=RTOL * expected)
    assert trace == pytest.approx(4 * a**2 + 0.25 / a**2, rel=RTOL)


def test_nothing_curves_in_a_linear_function():
    surface = problems.PROBLEMS["linear"].surface()
    found = measures.hessian_eigenvalues(surface, k=2, which="largest")
    assert found.converged
    np.testing.assert_array_equal(found.eigenvalues, [0, 0])
    trace = measures.hessian_trace(surface)
    assert (trace.estimate, trace.stderr, trace.converged) == (0, 0, True)
    numbers = measures.hessian_density(surface).scalars()
    assert (numbers["value"], numbers["smallest"], numbers["negative_share"]) == (0, 0, 0)


def test_linear_regression_has_two_over_n_times_the_gram_matrix():
    with problems.float64():
        model = keras.Sequential([keras.Input((3,)), layers.Dense(1, use_bias=False)])
        surface = rt.LossSurface(model, X, X[:, :1], loss="mse", batch_size=10)
        assert_spectrum(surface, np.linalg.eigvalsh(2 / len(X) * X.T @ X))


def test_softmax_regression_has_its_covariance_of_classes_times_inputs():
    """Mean of (diag p - p pᵀ) ⊗ x xᵀ."""
    with problems.float64():
        model = keras.Sequential([keras.Input((3,)), layers.Dense(3, "softmax", use_bias=False)])
        surface = rt.LossSurface(model, X, LABELS, loss="sparse_categorical_crossentropy")
        p = doubles([model(X)])[0]
        curved = np.einsum("ni,ij->nij", p, np.eye(3)) - np.einsum("ni,nj->nij", p, p)
        truth = np.linalg.eigvalsh(
            np.mean([np.kron(c, np.outer(x, x)) for c, x in zip(curved, X, strict=True)], 0)
        )
        assert_spectrum(surface, truth)


def small_net(end="softmax", loss="sparse_categorical_crossentropy", units=3, **dense):
    """tanh in the middle, with weights of a size."""
    model = keras.Sequential(
        [keras.Input((3,)), layers.Dense(4, "tanh", **dense), layers.Dense(units, end)]
    )
    model.compile("sgd", loss)
    return with_weights(model)


def with_weights(model):
    rng = np.random.default_rng(1)
    for v in model.trainable_variables:
        v.assign(0.7 * rng.standard_normal(v.shape))
    return model


@pytest.mark.parametrize("which", ["magnitude", "both"])
def test_eigenvectors_are_unit_vectors_that_the_hessian_stretches(which):
    with problems.float64():
        surface = rt.LossSurface(small_net(), X, LABELS)
        found = measures.hessian_eigenvalues(
            surface, k=3, which=which, tolerance=1e-4, eigenvectors=True
        )
        products = [flat(surface.hvp(None, v)) for v in found.eigenvectors]
        shapes = [[tuple(t.shape) for t in v] for v in found.eigenvectors]
    assert found.converged
    rows = np.stack([flat(v) for v in found.eigenvectors])
    np.testing.assert_allclose(rows @ rows.T, np.eye(len(rows)), atol=RTOL)
    true = np.linalg.norm(products - found.eigenvalues[:, None] * rows, axis=1)
    np.testing.assert_array_less(true, 1e-4 * np.abs(found.eigenvalues) + 1e-6)
    np.testing.assert_allclose(found.residuals, true, atol=RTOL)
    assert shapes == [[(3, 4), (4,), (4, 3), (3,)]] * len(rows)
    assert np.all(np.diff(found.eigenvalues) <= 0)


def test_eigenvectors_are_given_only_when_asked_for(saddle):
    assert measures.hessian_eigenvalues(saddle).eigenvectors is None


# --- the share of the gradient ------------------------------------------------------------------

H, SHIFT = np.array([1.0, 10.0, 100.0, 0.5]), np.array([1.0, 0.3, -0.05, 4.0])


@functools.cache
def bowl(*shift):
    return problems.diagonal_quadratic(H, shift, np.zeros(4), 0.25).surface()


@pytest.mark.parametrize("k", problems.rows([1, 2, 3, 4], 2))
def test_the_share_of_a_quadratic_is_that_of_its_steepest_axes(k):
    with problems.float64():
        found = measures.gradient_share(bowl(*SHIFT), k, tolerance=1e-6)
    squares = np.sort((H * SHIFT) ** 2)  # only for telling them apart from the axes
    along = ((H * SHIFT) ** 2)[np.argsort(-H)]
    assert not np.array_equal(squares[::-1], along)
    np.testing.assert_allclose(found.shares, along[:k] / np.sum(along), rtol=1e-5, atol=1e-6)
    assert found.value == pytest.approx(np.sum(along[:k]) / np.sum(along), rel=1e-5)
    assert found.gradient_norm == pytest.approx(math.sqrt(np.sum(along)), rel=1e-6)
    np.testing.assert_allclose(found.eigenvalues, np.sort(H)[::-1][:k], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("axis", "expected"), [(2, 1), (1, 0)])
def test_a_gradient_along_the_top_is_all_there_and_one_beside_it_not_at_all(axis, expected):
    with problems.float64():
        found = measures.gradient_share(bowl(*np.eye(4)[axis]), 1, tolerance=1e-6)
    assert found.value == pytest.approx(expected, abs=1e-5)


def test_at_a_minimum_there_is_no_share():
    found = measures.gradient_share(bowl(0, 0, 0, 0), 2)
    assert found.gradient_norm == 0
    assert math.isnan(found.value)
    assert np.all(np.isnan(found.shares))


def test_in_many_dimensions_the_share_of_all_eigenvectors_is_one():
    surface = rt.LossSurface(small_net(), X, LABELS)
    assert measures.gradient_share(surface, 31).value == pytest.approx(1, rel=1e-4)


# --- the Gauss-Newton matrix --------------------------------------------------------------------


def jacobians(params, heads):
    """dz/dw of each head of a net with one hidden layer of tanh: `(N, outputs, weights)`."""
    params = [np.asarray(p, "float64") for p in params]
    w, b = params[:2]
    hidden = np.tanh(X @ w + b)
    slope = 1 - hidden**2
    found = []
    for head in range(heads):
        v = params[2 + 2 * head]
        units = v.shape[1]
        eye = np.broadcast_to(np.eye(units), (len(X), units, units))
        parts = [
            np.einsum("ni,nj,jc->ncij", X, slope, v),
            np.einsum("nj,jc->ncj", slope, v),
        ]
        for other in range(heads):
            if other == head:
                parts += [np.einsum("nj,ncd->ncjd", hidden, eye), eye]
            else:
                zero = np.zeros((len(X), units))
                parts += [np.multiply.outer(zero, 0 * p) for p in params[2 + 2 * other :][:2]]
        found.append(np.concatenate([p.reshape(len(X), units, -1) for p in parts], 2))
    return found


def softmax_curvature(z):
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    return np.einsum("ni,ij->nij", p, np.eye(p.shape[1])) - np.einsum("ni,nj->nij", p, p)


def sigmoid_curvature(z):
    """The mean over the outputs."""
    p = 1 / (1 + np.exp(-z))
    return np.einsum("ni,ij->nij", p * (1 - p), np.eye(z.shape[1])) / z.shape[1]


def mse_curvature(z):
    return np.broadcast_to(2 * np.eye(z.shape[1]) / z.shape[1], (len(z), z.shape[1], z.shape[1]))


def gauss_newton(params, *curvatures, weights=None, scales=(1.0, 1.0)):
    """Σ scale · mean of w Jᵀ S J over the samples."""
    params = [np.asarray(p, "float64") for p in params]
    weights = np.ones(len(X)) if weights is None else weights
    hidden = np.tanh(X @ params[0] + params[1])
    total = 0
    found = jacobians(params, len(curvatures))
    for head, (curvature, jacobian) in enumerate(zip(curvatures, found, strict=True)):
        z = hidden @ params[2 + 2 * head] + params[3 + 2 * head]
        total = total + scales[head] * np.einsum(
            "n,nca,ncd,ndb->ab", weights, jacobian, curvature(z), jacobian
        ) / len(X)
    return total


BINARY = (X > 0.3).astype("float64")
L = keras.losses
# end, loss, targets, the Hessian of the loss in the logits
HEADS = {
    "softmax": ("softmax", lambda: "sparse_categorical_crossentropy", LABELS, softmax_curvature),
    "softmax, an object": (
        "softmax",
        lambda: L.SparseCategoricalCrossentropy(),
        LABELS,
        softmax_curvature,
    ),
    "softmax, a function": (
        "softmax",
        lambda: L.categorical_crossentropy,
        ONE_HOT,
        softmax_curvature,
    ),
    "softmax, smoothed": (
        "softmax",
        lambda: L.CategoricalCrossentropy(label_smoothing=0.1),
        ONE_HOT,
        softmax_curvature,
    ),
    "logits": (
        None,
        lambda: L.SparseCategoricalCrossentropy(from_logits=True),
        LABELS,
        softmax_curvature,
    ),
    "logits, one-hot": (
        None,
        lambda: L.CategoricalCrossentropy(from_logits=True),
        ONE_HOT,
        softmax_curvature,
    ),
    "sigmoid": ("sigmoid", lambda: "binary_crossentropy", BINARY, sigmoid_curvature),
    "sigmoid, an object": ("sigmoid", lambda: L.BinaryCrossentropy(), BINARY, sigmoid_curvature),
    "sigmoid, logits": (
        None,
        lambda: L.BinaryCrossentropy(from_logits=True),
        BINARY,
        sigmoid_curvature,
    ),
    "mse": (None, lambda: "mse", BINARY, mse_curvature),
}


@pytest.mark.parametrize(
    "name", problems.rows(HEADS, "softmax", "softmax, smoothed", "logits", "sigmoid", "mse")
)
def test_the_gauss_newton_matrix_is_the_fisher_matrix_computed_in_numpy(name):
    end, loss, y, curvature = HEADS[name]
    with problems.float64():
        surface = rt.LossSurface(small_net(end, loss()), X, y, batch_size=16)
        found = matrix_of(surface, surface.gnvp)
        expected = gauss_newton(surface.params, curvature)
    np.testing.assert_allclose(found, expected, atol=1e-9 if SHARP else 1e-6)


def test_sample_weights_weigh_the_gauss_newton_matrix():
    with problems.float64():
        surface = rt.LossSurface(small_net(), X, LABELS, WEIGHTS)
        found = matrix_of(surface, surface.gnvp)
        expected = gauss_newton(surface.params, softmax_curvature, weights=WEIGHTS)
    np.testing.assert_allclose(found, expected, atol=1e-9 if SHARP else 1e-6)


def two_heads(named):
    inputs = keras.Input((3,))
    hidden = layers.Dense(4, "tanh")(inputs)
    heads = {
        "b": layers.Dense(3, "softmax", name="b")(hidden),
        "a": layers.Dense(2, name="a")(hidden),
    }
    loss = {"b": "sparse_categorical_crossentropy", "a": "mse"}
    scales, y = {"b": 2.0, "a": 0.5}, {"b": LABELS, "a": BINARY[:, :2]}
    if named:
        model = keras.Model(inputs, heads)
    else:
        model = keras.Model(inputs, list(heads.values()))
        loss, scales, y = (list(d.values()) for d in (loss, scales, y))
    model.compile("sgd", loss, loss_weights=scales)
    return with_weights(model), y


@pytest.mark.parametrize("named", [True, False], ids=["by name", "in order"])
def test_several_outputs_add_up_with_their_loss_weights(named):
    with problems.float64():
        model, y = two_heads(named)
        surface = rt.LossSurface(model, X, y)
        found = matrix_of(surface, surface.gnvp)
        params = dict(zip((v.path for v in surface.variables), surface.params, strict=True))
        order = [*list(params)[:2], "b/kernel", "b/bias", "a/kernel", "a/bias"]
        expected = gauss_newton(
            [params[path] for path in order],
            softmax_curvature,
            mse_curvature,
            scales=(2.0, 0.5),
        )
        # the model's order of the variables may be another
        numbered = {}
        start = 0
        for path in order:
            numbered[path] = range(start, start + np.prod(params[path].shape))
            start = numbered[path].stop
        index = [i for path in params for i in numbered[path]]
    expected = expected[np.ix_(index, index)]
    np.testing.assert_allclose(found, expected, atol=1e-9 if SHARP else 1e-6)


@pytest.mark.parametrize("penalties", [True, False])
def test_a_penalty_adds_its_own_hessian(penalties):
    with problems.float64():
        model = small_net(kernel_regularizer=rt.regularizers.L2(0.3))
        surface = rt.LossSurface(model, X, LABELS, penalties=penalties)
        found = matrix_of(surface, surface.gnvp)
        expected = gauss_newton(surface.params, softmax_curvature)
    if penalties:
        expected[range(12), range(12)] += 2 * 0.3
    np.testing.assert_allclose(found, expected, atol=1e-9 if SHARP else 1e-6)


def test_of_a_linear_net_it_is_the_hessian():
    with problems.float64():
        model = keras.Sequential([keras.Input((3,)), layers.Dense(3)])
        surface = rt.LossSurface(with_weights(model), X, BINARY, loss="mse")
        hessian, gauss = (matrix_of(surface, p) for p in (surface.hvp, surface.gnvp))
    np.testing.assert_allclose(gauss, hessian, atol=1e-12 if SHARP else 1e-6)
    assert np.linalg.norm(hessian) > 1


def test_it_is_positive_semidefinite_where_the_hessian_is_not():
    with problems.float64():
        surface = rt.LossSurface(small_net(), X, LABELS)
        low = {
            matrix: measures.hessian_eigenvalues(surface, which="smallest", matrix=matrix).value
            for matrix in ("hessian", "gauss_newton")
        }
        expected = gauss_newton(surface.params, softmax_curvature)
        top = measures.hessian_eigenvalues(surface, k=3, matrix="gauss_newton", tolerance=1e-5)
        trace = measures.hessian_trace(surface, matrix="gauss_newton", sketch=31)
        density = measures.hessian_density(surface, matrix="gauss_newton", draws=2)
        share = measures.gradient_share(surface, 3, matrix="gauss_newton")
    assert low["hessian"] < -0.01
    assert low["gauss_newton"] > -1e-6
    truth = np.linalg.eigvalsh(expected)
    np.testing.assert_allclose(top.eigenvalues, truth[:-4:-1], rtol=1e-4)
    assert trace.estimate == pytest.approx(np.sum(truth), rel=1e-4)
    assert density.value == pytest.approx(truth[-1], rel=1e-4)
    np.testing.assert_allclose(share.eigenvalues, truth[:-4:-1], rtol=2e-2)
    assert {r.matrix for r in (top, trace, density, share)} == {"gauss_newton"}


# --- what is shown and what is given ------------------------------------------------------------


@pytest.mark.parametrize("name", MEASURES)
def test_a_bar_is_drawn_only_when_asked_for(name, saddle, capsys):
    quiet = MEASURES[name](saddle)
    assert capsys.readouterr() == ("", "")
    shown = MEASURES[name](saddle, verbose=1)
    out = capsys.readouterr().out
    assert f"{shown.products}/{shown.products}" in out
    assert out.endswith("\n")
    for word in {"eigenvalues": ["residual"], "trace": ["trace", "stderr"]}.get(name, []):
        assert f"{word}: " in out
    assert shown == quiet


@pytest.fixture(scope="module")
def without_penalties():
    problem = problems.PROBLEMS["quadratic off its minimum"]
    return problem.surface(mode="batch_statistics", penalties=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", problems.rows(MEASURES, "trace"))
def test_results_are_equal_when_all_of_them_is_and_cannot_be_written_to(name, without_penalties):
    found, again, other = (MEASURES[name](without_penalties, seed=seed) for seed in (0, 0, 1))
    assert found == again
    assert found != other
    assert found != dataclasses.replace(again, seed=5)
    assert found != "a result"
    assert (found.mode, found.penalties, found.samples) == ("batch_statistics", False, 4)
    assert (found.matrix, other.seed) == ("hessian", 1)
    arrays = [v for v in vars(found).values() if isinstance(v, np.ndarray)]
    assert len(arrays) == {"eigenvalues": 2, "trace": 0, "density": 3, "share": 3}[name]
    for array in arrays:
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.products = 0


def test_eigenvectors_count_in_equality(saddle):
    found = measures.hessian_eigenvalues(saddle, eigenvectors=True)
    assert found == measures.hessian_eigenvalues(saddle, eigenvectors=True)
    assert found != measures.hessian_eigenvalues(saddle)


SCALARS = {
    "eigenvalues": "converged eigenvalue_1 penalties products residual_1 samples seed tolerance",
    "trace": "converged draws estimate penalties products samples seed stderr tolerance",
    "density": "negative_share negative_share_stderr penalties products samples seed size smallest "
    "unresolved_share "
    "trace trace_stderr",
    "share": "converged gradient_norm penalties products samples seed",
}


@pytest.mark.parametrize("name", MEASURES)
def test_the_numbers_of_a_result(name, saddle):
    found = MEASURES[name](saddle)
    scalars = found.scalars()
    assert sorted(scalars) == sorted(["value", *SCALARS[name].split()])
    assert next(iter(scalars)) == "value"
    assert scalars["value"] == found.value
    assert all(type(value) is float for value in scalars.values())
    assert scalars["samples"] == 4


def test_a_density_knows_means_and_curves():
    with problems.float64():
        surface = rt.LossSurface(small_net(), X, LABELS)
        found = measures.hessian_density(surface, draws=20)
        truth = np.linalg.eigvalsh(matrix_of(surface, surface.hvp))
    for function in (np.abs, lambda t: t, lambda t: (t < 0).astype(float)):
        mean, stderr = found.mean(function)
        assert abs(mean - np.mean(function(truth))) < 3 * stderr
    scalars = found.scalars()
    assert scalars["trace"] == pytest.approx(31 * found.mean(lambda t: t)[0])
    assert (
        scalars["negative_share"] == found.mean(lambda t: (t < -1e-6 * truth[-1]).astype(float))[0]
    )
    grid = np.linspace(truth[0] - 1, truth[-1] + 1, 2001)
    curve = found.curve(grid, 0.1)
    assert np.trapezoid(curve, grid) == pytest.approx(1, abs=1e-6)
    assert np.trapezoid(curve * grid, grid) == pytest.approx(found.mean(lambda t: t)[0], abs=1e-6)
    assert math.isnan(measures.hessian_density(surface, draws=1).mean(np.abs)[1])


@pytest.fixture(scope="module")
def small():
    return rt.LossSurface(small_net(), X, LABELS)


@pytest.mark.parametrize("name", MEASURES)
def test_the_products_are_counted_and_what_is_allowed_is_kept(name, small, monkeypatch):
    made, product = [], small.hvp
    monkeypatch.setattr(small, "hvp", lambda params, v: made.append(len(v)) or product(params, v))
    allowed = {"trace": {"max_products": 42}, "density": {"steps": 4, "draws": 7}}.get(
        name, {"max_products": 4, "tolerance": 1e-9}
    )
    found = MEASURES[name](small, **allowed)
    assert found.products == sum(made) == {"trace": 40, "density": 28}.get(name, 4)
    if name != "density":
        assert not found.converged


# --- what cannot be measured --------------------------------------------------------------------

BAD = {
    "k of 0": (
        "eigenvalues",
        {"k": 0},
        "Argument `k` must be a positive integer. Received: k=0 (of type <class 'int'>)",
    ),
    "k above the weights": (
        "eigenvalues",
        {"k": 5},
        "Expected `k` eigenvalues of a surface of 4 weights. Received: k=5",
    ),
    "k above half of the weights": (
        "eigenvalues",
        {"k": 3, "which": "both"},
        "Expected `k` eigenvalues at each end of the spectrum of a surface of 4 weights. "
        "Received: k=3",
    ),
    "which": (
        "eigenvalues",
        {"which": "top"},
        "Argument `which` must be one of 'largest', 'smallest', 'magnitude', 'both'. "
        "Received: which='top'",
    ),
    "too few products": (
        "eigenvalues",
        {"k": 4, "max_products": 3},
        "Expected `max_products` to be at least 4, one for each eigenvalue. "
        "Received: max_products=3",
    ),
    "too few products for both ends": (
        "eigenvalues",
        {"k": 2, "which": "both", "max_products": 3},
        "Expected `max_products` to be at least 4, one for each eigenvalue. "
        "Received: max_products=3",
    ),
    "no products": (
        "eigenvalues",
        {"max_products": 0},
        "Argument `max_products` must be a positive integer. "
        "Received: max_products=0 (of type <class 'int'>)",
    ),
    "too few products for a trace": (
        "trace",
        {"sketch": 6, "max_products": 21},
        "Expected `max_products` to be at least 22, 2 for each of the 6 rows of the sketch and 1 "
        "for each of 10 draws. Received: max_products=21",
    ),
    "too few products for Hutchinson": (
        "trace",
        {"method": "hutchinson", "max_products": 9},
        "Expected `max_products` to be at least 10, 1 for each of 10 draws. "
        "Received: max_products=9",
    ),
    "method": (
        "trace",
        {"method": "xtrace"},
        "Argument `method` must be one of 'hutch++', 'hutchinson'. Received: method='xtrace'",
    ),
    "sketch": (
        "trace",
        {"sketch": 0},
        "Argument `sketch` must be a positive integer. Received: sketch=0 (of type <class 'int'>)",
    ),
    "steps": (
        "density",
        {"steps": 0},
        "Argument `steps` must be a positive integer. Received: steps=0 (of type <class 'int'>)",
    ),
    "draws": (
        "density",
        {"draws": -1},
        "Argument `draws` must be a positive integer. Received: draws=-1 (of type <class 'int'>)",
    ),
    **{
        f"tolerance of {tolerance} for {name}": (
            name,
            {"tolerance": tolerance},
            "Argument `tolerance` must be a positive finite number. "
            f"Received: tolerance={tolerance} (of type {type(tolerance)})",
        )
        for name in ("eigenvalues", "trace", "share")
        for tolerance in (0, -0.1, math.inf)
    },
    **{
        f"matrix for {name}": (
            name,
            {"matrix": "fisher"},
            "Argument `matrix` must be one of 'hessian', 'gauss_newton'. Received: matrix='fisher'",
        )
        for name in MEASURES
    },
}


@pytest.fixture(scope="module")
def without_products():
    surface = problems.PROBLEMS["quadratic at its minimum"].surface()
    surface.hvp = surface.gnvp = None
    return surface


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_in_one_sentence(name, without_products):
    """Before any product."""
    measure, arguments, expected = BAD[name]
    with pytest.raises(ValueError) as caught:
        MEASURES[measure](without_products, **arguments)
    assert str(caught.value) == expected


@pytest.mark.parametrize(
    ("name", "matrix"), [*((name, "hessian") for name in MEASURES), ("share", "gauss_newton")]
)
def test_a_loss_that_is_not_finite_is_said_with_its_batch(name, matrix):
    x = X.copy()
    x[19, 1] = math.inf
    model = keras.Sequential([keras.Input((3,)), layers.Dense(1)])
    surface = rt.LossSurface(with_weights(model), x, X[:, :1], loss="mse", batch_size=8)
    with pytest.raises(ValueError) as caught:
        MEASURES[name](surface, matrix=matrix)
    assert str(caught.value) == (
        "Expected a finite loss. Received: a loss of inf in batch 3 (samples 16 to 23)"
    )


# --- in a fit -----------------------------------------------------------------------------------

IN_A_FIT = {
    "curvature/eigenvalues": lambda surface: measures.hessian_eigenvalues(
        surface, 2, tolerance=0.1
    ),
    "curvature/trace": lambda surface: measures.hessian_trace(surface, tolerance=0.2, sketch=5),
    "curvature/density": lambda surface: measures.hessian_density(surface, steps=5, draws=2),
    "curvature/share": lambda surface: measures.gradient_share(surface, 2, tolerance=0.1),
}


@pytest.mark.slow
def test_they_are_logged_and_recorded_in_a_fit_that_they_do_not_change():
    runs = []
    for watched in (True, False):
        model = small_net()
        callback = rt.callbacks.Measure(IN_A_FIT, X, LABELS, every=2)
        keras.utils.set_random_seed(0)
        history = model.fit(
            X, LABELS, batch_size=8, epochs=3, verbose=0, callbacks=[callback] if watched else []
        ).history
        runs.append((doubles(model.variables), history, callback, model))
    (weights, logged, callback, model), (alone, plain, *_) = runs
    for a, b in zip(weights, alone, strict=True):
        np.testing.assert_array_equal(a, b)
    assert set(logged) == {*plain, *IN_A_FIT}
    assert callback.records.series("curvature/trace")[0] == [0, 2]
    for name in ("curvature/eigenvalues/eigenvalue_2", "curvature/trace/stderr"):
        assert name in callback.records.names()
    last = IN_A_FIT["curvature/eigenvalues"](rt.LossSurface(model, X, LABELS))
    assert logged["curvature/eigenvalues"][-1] == pytest.approx(last.value, rel=1e-4)
    assert logged["curvature/eigenvalues"][0] == logged["curvature/eigenvalues"][1]


def test_derivatives_that_are_not_finite_of_a_loss_that_is_are_said():
    """The hyperbolic tangent of infinity is 1."""
    x = X.copy()
    x[19, 1] = math.inf
    with pytest.raises(ValueError) as caught:
        measures.hessian_eigenvalues(rt.LossSurface(small_net(), x, LABELS))
    assert str(caught.value) == (
        "Expected finite derivatives. Received: a product that is not, of a finite loss"
    )


@pytest.mark.slow
def test_where_a_loss_is_not_finite_the_fit_goes_on():
    x = X.copy()
    x[19, 1] = math.nan
    callback = rt.callbacks.Measure(IN_A_FIT, x, LABELS, batch_size=8)
    with pytest.warns(UserWarning) as caught:
        history = small_net().fit(X, LABELS, epochs=2, verbose=0, callbacks=[callback]).history
    said = [str(w.message) for w in caught if w.category is UserWarning]
    assert said == [
        "The measure 'curvature/eigenvalues' gave no finite number in epoch 1; it is logged as NaN "
        "and training goes on. Received: ValueError('Expected a finite loss. Received: a loss of "
        "nan in batch 3 (samples 16 to 23)')"
    ]
    assert all(np.all(np.isnan(history[name])) for name in IN_A_FIT)
    assert np.all(np.isfinite(history["loss"]))


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() == "torch", reason="PyTorch traces nothing")
def test_a_second_measurement_traces_nothing():
    traces = []

    class Counting(layers.Layer):
        def call(self, inputs):
            traces.append(1)
            return inputs * 1.0

    model = keras.Sequential(
        [keras.Input((3,)), layers.Dense(4, "tanh"), Counting(), layers.Dense(3, "softmax")]
    )
    model.compile("sgd", "sparse_categorical_crossentropy")
    surface = rt.LossSurface(model, X, LABELS, batch_size=16)
    both = [
        lambda s, name=name, matrix=matrix: MEASURES[name](s, matrix=matrix)
        for name in MEASURES
        for matrix in ("hessian", "gauss_newton")
    ]
    for measure in both:
        measure(surface)
    assert traces
    model.fit(X, LABELS, epochs=1, verbose=0)
    traces.clear()
    for measure in both:
        measure(surface)
    assert not traces
