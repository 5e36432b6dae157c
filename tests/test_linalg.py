"""Matrix-free linear algebra against whole matrices and numpy's own solvers."""

import math

import numpy as np
import pytest

from keras_regtools import linalg

TOLERANCE = {"float32": 1e-4, "float64": 1e-8}
ROUNDING = {"float32": 1e-5, "float64": 1e-13}


class Matrix:
    """The products of a whole matrix, counted."""

    def __init__(self, whole, dtype="float64"):
        self.whole, self.products, self.first = np.asarray(whole, dtype), 0, None

    def __call__(self, rows):
        assert rows.dtype == self.whole.dtype
        self.first = rows.copy() if self.first is None else self.first
        self.products += len(rows)
        return rows @ self.whole


def random_symmetric(n, rng):
    a = rng.standard_normal((n, n))
    return (a + a.T) / math.sqrt(2 * n)


def with_spectrum(values, rng):
    """A matrix with these eigenvalues that is not diagonal."""
    q = np.linalg.qr(rng.standard_normal((len(values), len(values))))[0]
    a = q @ np.diag(values) @ q.T
    return (a + a.T) / 2


def eigenpairs(matrix, k, which="largest", tolerance=1e-8, most=1000, watch=None, seed=1):
    rng = np.random.default_rng(seed)
    start = rng.standard_normal(len(matrix.whole)).astype(matrix.whole.dtype)
    return linalg.eigenpairs(matrix, start, k, which, tolerance, most, rng, watch)


def true_residuals(matrix, found):
    whole, vectors = matrix.whole.astype("float64"), found.vectors.astype("float64")
    return np.linalg.norm(vectors @ whole - found.values[:, None] * vectors, axis=1)


EXPECTED = {
    "largest": lambda values, k: np.sort(values)[-k:],
    "smallest": lambda values, k: np.sort(values)[:k],
    "magnitude": lambda values, k: sorted(values, key=abs)[-k:],
    "both": lambda values, k: values if 2 * k > len(values) else [*values[:k], *values[-k:]],
}


def expected(matrix, which, k):
    values = np.linalg.eigvalsh(matrix.whole.astype("float64"))
    return np.sort(EXPECTED[which](values, k))[::-1]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", [1, 2, 30, 200])
@pytest.mark.parametrize("which", linalg.WHICH)
def test_eigenpairs_are_numpys(which, n, dtype):
    matrix = Matrix(random_symmetric(n, np.random.default_rng(n)), dtype)
    k = min(3, n // 2 or 1 if which == "both" else n)
    found = eigenpairs(matrix, k, which, TOLERANCE[dtype])
    assert found.converged
    np.testing.assert_array_less(
        np.abs(found.values - expected(matrix, which, k)), found.residuals + ROUNDING[dtype]
    )
    np.testing.assert_allclose(found.residuals, true_residuals(matrix, found), atol=ROUNDING[dtype])
    np.testing.assert_array_less(
        found.residuals, TOLERANCE[dtype] * np.abs(found.values) + ROUNDING[dtype]
    )
    gram = found.vectors @ found.vectors.T
    np.testing.assert_allclose(gram, np.eye(len(gram)), atol=ROUNDING[dtype])
    assert found.vectors.dtype == dtype


def test_every_pair_of_a_small_matrix():
    matrix = Matrix(random_symmetric(12, np.random.default_rng(0)))
    for which, k in (("largest", 12), ("smallest", 12), ("magnitude", 12), ("both", 6)):
        found = eigenpairs(matrix, k, which)
        np.testing.assert_allclose(found.values, expected(matrix, "largest", 12), atol=1e-12)


def test_where_it_stopped_early_the_residual_still_bounds_the_error():
    for seed in range(20):
        matrix = Matrix(random_symmetric(100, np.random.default_rng(seed)))
        found = eigenpairs(matrix, 3, "both", most=12, seed=seed)
        assert not found.converged
        assert matrix.products == 12
        np.testing.assert_allclose(found.residuals, true_residuals(matrix, found), rtol=1e-9)
        assert np.min(found.residuals) > 1e-4
        values = np.linalg.eigvalsh(matrix.whole)
        nearest = np.min(np.abs(values - found.values[:, None]), axis=1)
        np.testing.assert_array_less(nearest, found.residuals)


SADDLE = [-10.0, -1.0, -0.5, *np.linspace(-0.1, 0.1, 20), 2.0, 3.0, 4.0]
ENDS = {
    "largest": [4, 3],
    "smallest": [-1, -10],
    "magnitude": [4, -10],
    "both": [4, 3, -1, -10],
}


@pytest.mark.parametrize("which", ENDS)
def test_at_a_saddle_each_choice_is_another(which):
    matrix = Matrix(with_spectrum(SADDLE, np.random.default_rng(0)))
    np.testing.assert_allclose(eigenpairs(matrix, 2, which).values, ENDS[which], atol=1e-10)
    top = {"largest": [4], "smallest": [-10], "magnitude": [-10], "both": [4, -10]}[which]
    np.testing.assert_allclose(eigenpairs(matrix, 1, which).values, top, atol=1e-10)


def low_rank(rng):
    return with_spectrum([9.0, 4.0] + 28 * [0.0], rng)


DEGENERATE = {
    "identity": (lambda rng: np.eye(30), [1, 1, 1, 1, 1]),
    "a multiple of it": (lambda rng: -3e4 * np.eye(30), 5 * [-3e4]),
    "zero": (lambda rng: np.zeros((30, 30)), 5 * [0]),
    "low rank": (low_rank, [9, 4, 0, 0, 0]),
    "low rank, negative": (lambda rng: -low_rank(rng), 5 * [0]),
    "tiny": (lambda rng: 1e-12 * low_rank(rng), [9e-12, 4e-12, 0, 0, 0]),
    "huge": (lambda rng: 1e12 * low_rank(rng), [9e12, 4e12, 0, 0, 0]),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", DEGENERATE)
def test_where_the_krylov_space_ends_early_it_goes_on_outside(name, dtype):
    make, values = DEGENERATE[name]
    matrix = Matrix(make(np.random.default_rng(0)), dtype)
    found = eigenpairs(matrix, 5, tolerance=TOLERANCE[dtype])
    assert found.converged
    scale = np.max(np.abs(matrix.whole))
    np.testing.assert_allclose(found.values, values, atol=10 * ROUNDING[dtype] * scale)
    np.testing.assert_allclose(
        found.residuals, true_residuals(matrix, found), atol=10 * ROUNDING[dtype] * scale
    )
    gram = found.vectors @ found.vectors.T
    np.testing.assert_allclose(gram, np.eye(5), atol=10 * ROUNDING[dtype])


def test_all_copies_of_a_repeated_eigenvalue_are_found_when_all_pairs_are():
    values = [5.0, 5.0, 5.0, 1.0, 1.0, -2.0, -2.0, 0.0]
    matrix = Matrix(with_spectrum(values, np.random.default_rng(0)))
    found = eigenpairs(matrix, 8)
    np.testing.assert_allclose(found.values, sorted(values)[::-1], atol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_many_steps_on_an_ill_conditioned_matrix_stay_orthonormal(dtype):
    rng = np.random.default_rng(0)
    matrix = Matrix(with_spectrum(np.logspace(0, 6, 200), rng), dtype)
    process = linalg.Lanczos(rng.standard_normal(200).astype(dtype), rng)
    for _ in range(180):
        process.advance(matrix(process.next[None])[0])
    basis = np.stack(process.basis)
    np.testing.assert_allclose(basis @ basis.T, np.eye(181), atol=ROUNDING[dtype])
    values, columns, residuals = process.ritz()
    assert np.all(np.diff(values) >= 0)
    projected = basis[:180] @ matrix.whole @ basis[:180].T
    tridiagonal = columns @ np.diag(values) @ columns.T
    np.testing.assert_allclose(projected, tridiagonal, atol=10 * ROUNDING[dtype] * 1e6)
    assert not process.complete


def test_an_outlier_takes_few_products():
    rng = np.random.default_rng(0)
    matrix = Matrix(with_spectrum([100.0, *np.linspace(-1, 1, 199)], rng))
    found = eigenpairs(matrix, 1, tolerance=1e-3)
    assert found.converged
    assert found.values[0] == pytest.approx(100, rel=1e-6)
    assert matrix.products <= 6


def test_it_goes_on_until_the_last_of_the_pairs_has_converged():
    rng = np.random.default_rng(0)
    matrix = Matrix(with_spectrum([100.0, *np.linspace(-1, 1, 199)], rng))
    found = eigenpairs(matrix, 3, tolerance=1e-3)
    assert found.converged
    np.testing.assert_allclose(found.values, [100, 1, 1 - 2 / 198], rtol=1e-4)
    assert matrix.products > 20


def test_an_eigenvalue_of_zero_has_the_matrix_as_its_measure():
    """A relative residual of 1e-3 of nothing is never reached: ε^⅔ ‖A‖ takes its place."""
    values = [0.0, *np.linspace(-5, -1, 199)]
    matrix = Matrix(with_spectrum(values, np.random.default_rng(0)))
    found = eigenpairs(matrix, 1, tolerance=1e-3)
    assert found.converged
    assert matrix.products < 100
    assert abs(found.values[0]) < 1e-12


def test_it_tells_how_far_it_is():
    seen = []
    matrix = Matrix(random_symmetric(50, np.random.default_rng(0)))
    found = eigenpairs(matrix, 1, tolerance=1e-3, watch=lambda *numbers: seen.append(numbers))
    assert [products for products, _ in seen] == list(range(1, matrix.products + 1))
    assert seen[-1][1] == pytest.approx(found.residuals[0] / found.values[0] / 1e-3)
    assert seen[-1][1] <= 1 < seen[-2][1]


# --- traces ---------------------------------------------------------------------------------------


def trace(matrix, tolerance=0.01, most=1000, sketch=0, seed=0, **arguments):
    n, dtype, rng = len(matrix.whole), matrix.whole.dtype, np.random.default_rng(seed)
    return linalg.trace(matrix, n, dtype, tolerance, most, sketch, rng, **arguments)


SMALL = [[2.0, 1.0], [1.0, 3.0]]


def test_hutchinson_has_a_mean_of_5_and_a_variance_of_4_on_the_small_matrix():
    found = [trace(Matrix(SMALL), 1e-9, most=10, seed=seed) for seed in range(2000)]
    assert {f.draws for f in found} == {10}
    estimates = np.array([f.estimate for f in found])
    assert np.mean(estimates) == pytest.approx(5, abs=3 * 2 / math.sqrt(20000))
    assert np.var(estimates) * 10 == pytest.approx(4, rel=0.1)
    assert np.mean([f.stderr**2 for f in found]) * 10 == pytest.approx(4, rel=0.03)


def test_the_standard_error_of_many_draws_is_that_of_the_closed_form():
    found = trace(Matrix(SMALL), 1e-9, most=4000)
    assert found.draws == 4000
    assert found.stderr * math.sqrt(4000) == pytest.approx(2, rel=0.01)
    assert abs(found.estimate - 5) < 3 * found.stderr


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_diagonal_matrix_is_exact(dtype):
    diagonal = np.random.default_rng(0).standard_normal(50).astype(dtype)
    found = trace(Matrix(np.diag(diagonal), dtype))
    assert found.converged
    assert found.draws == linalg.FEWEST_DRAWS
    assert found.estimate == pytest.approx(float(np.sum(diagonal.astype("float64"))), rel=1e-12)
    assert found.stderr <= 1e-7


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rank", [1, 6])
def test_a_sketch_as_large_as_the_rank_is_exact(rank, dtype):
    rng = np.random.default_rng(0)
    values = [*range(-2, rank - 2), *np.zeros(40 - rank)]
    matrix = Matrix(with_spectrum(values, rng), dtype)
    found = trace(matrix, sketch=6)
    assert found.estimate == pytest.approx(sum(values), rel=10 * ROUNDING[dtype])
    assert found.stderr < 10 * ROUNDING[dtype]
    assert found.converged
    assert matrix.products == 2 * 6 + 10


def test_a_sketch_larger_than_the_space_is_cut_to_it():
    matrix = Matrix(random_symmetric(4, np.random.default_rng(0)))
    found = trace(matrix, sketch=15)
    assert found.estimate == pytest.approx(np.trace(matrix.whole))
    assert matrix.products == 2 * 4 + 10


def test_the_trace_of_nothing_is_zero_without_an_error():
    found = trace(Matrix(np.zeros((7, 7))), sketch=3)
    assert (found.estimate, found.stderr, found.converged) == (0, 0, True)


@pytest.mark.parametrize("sketch", [0, 2, 8])
def test_the_reported_error_is_the_spread_over_seeds(sketch):
    """On a matrix that is not diagonal, of both signs, with a few large eigenvalues."""
    values = [30.0, -20.0, 10.0, *np.linspace(-1, 2, 57)]
    whole = with_spectrum(values, np.random.default_rng(0))
    found = [trace(Matrix(whole), 1e-9, 40, sketch, seed) for seed in range(100)]
    misses = np.array([f.estimate for f in found]) - sum(values)
    errors = np.array([f.stderr for f in found])
    assert abs(np.mean(misses)) < 3 * np.std(misses) / 10
    assert np.mean(np.abs(misses) < 3 * errors) >= 0.97
    assert 0.8 < np.mean(errors) / np.std(misses) < 1.25
    assert np.std(errors) / np.mean(errors) < 0.35  # steady, though from few draws


def test_a_sketch_pays_where_few_eigenvalues_dominate():
    values = [100.0, 50.0, 25.0, *np.linspace(0, 0.5, 97)]
    whole = with_spectrum(values, np.random.default_rng(0))
    without, with_sketch = (trace(Matrix(whole), 1e-9, 60, sketch) for sketch in (0, 10))
    assert with_sketch.stderr < without.stderr / 5
    assert abs(with_sketch.estimate - sum(values)) < 3 * with_sketch.stderr


def test_it_stops_at_the_tolerance():
    whole = with_spectrum(np.linspace(0, 2, 80), np.random.default_rng(0))
    products = []
    for tolerance in (0.1, 0.02, 0.01):
        matrix = Matrix(whole)
        found = trace(matrix, tolerance, most=10**5)
        assert found.converged
        assert found.stderr <= tolerance * found.estimate
        assert found.draws == matrix.products
        products.append(found.draws)
    assert products[0] == linalg.FEWEST_DRAWS < products[1] < products[2]
    assert products[2] / products[1] == pytest.approx(4, rel=0.5)


@pytest.mark.parametrize("most", [28, 30, 34])
def test_it_stops_at_the_most_products(most):
    whole = with_spectrum(np.linspace(-1, 1, 80), np.random.default_rng(0))
    matrix = Matrix(whole)
    found = trace(matrix, 1e-6, most, sketch=9)
    assert not found.converged
    assert found.draws == 5 * ((most - 18) // 5)
    assert matrix.products == 18 + found.draws <= most


def test_a_trace_tells_how_far_it_is():
    seen = []
    matrix = Matrix(random_symmetric(30, np.random.default_rng(0)))
    found = trace(matrix, 1e-6, 30, sketch=5, watch=lambda *numbers: seen.append(numbers))
    assert [products for products, *_ in seen] == [15, 20, 25, 30]
    assert seen[-1] == (30, found.estimate, found.stderr)


# --- densities ------------------------------------------------------------------------------------


def density(matrix, steps, draws, seed=0, **arguments):
    n, dtype, rng = len(matrix.whole), matrix.whole.dtype, np.random.default_rng(seed)
    return linalg.density(matrix, n, dtype, steps, draws, rng, **arguments)[:2]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_weights_sum_to_one_and_the_moments_are_the_traces(dtype):
    matrix = Matrix(random_symmetric(60, np.random.default_rng(0)), dtype)
    nodes, weights = density(matrix, 12, 40)
    assert nodes.shape == weights.shape == (40, 12)
    assert matrix.products == 40 * 12
    assert np.all(weights >= 0)
    np.testing.assert_allclose(np.sum(weights, axis=1), 1, rtol=1e-12)
    values = np.linalg.eigvalsh(matrix.whole.astype("float64"))
    for f in (lambda t: t, np.square, np.exp):
        found = np.sum(weights * f(nodes), axis=1)
        stderr = np.std(found, ddof=1) / math.sqrt(40)
        assert abs(np.mean(found) - np.mean(f(values))) < 3 * stderr


def test_each_draw_is_exact_for_polynomials_of_twice_the_steps():
    """Gauss quadrature: Σ τ θᵖ = gᵀ Aᵖ g for p < 2 · steps, with g the start."""
    matrix = Matrix(random_symmetric(40, np.random.default_rng(0)))
    nodes, weights = density(matrix, 4, 3)
    starts = matrix.first
    assert starts.shape == (3, 40)
    np.testing.assert_allclose(np.abs(starts), 1 / math.sqrt(40))
    for power in range(8):
        expected = np.sum(starts @ np.linalg.matrix_power(matrix.whole, power) * starts, axis=1)
        found = np.sum(weights * nodes**power, axis=1)
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)
    powers = np.linalg.matrix_power(matrix.whole, 8)
    beyond = np.sum(starts @ powers * starts, axis=1)
    assert np.all(np.abs(np.sum(weights * nodes**8, axis=1) - beyond) > 1e-3)


@pytest.mark.parametrize("steps", [10, 80])
def test_as_many_steps_as_dimensions_give_the_spectrum_itself(steps):
    matrix = Matrix(random_symmetric(10, np.random.default_rng(0)))
    nodes, weights = density(matrix, steps, 6)
    values, vectors = np.linalg.eigh(matrix.whole)
    assert nodes.shape == weights.shape == (6, 10)
    assert matrix.products == 60
    np.testing.assert_allclose(nodes, np.tile(values, (6, 1)), atol=1e-10)
    np.testing.assert_allclose(weights[:5], (matrix.first @ vectors) ** 2, atol=1e-10)


def test_a_space_of_one_dimension():
    nodes, weights = density(Matrix([[3.0]]), 80, 2)
    np.testing.assert_array_equal(nodes, [[3.0], [3.0]])
    np.testing.assert_array_equal(weights, [[1.0], [1.0]])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_where_the_krylov_space_ends_early_what_comes_after_weighs_nothing(dtype):
    matrix = Matrix(with_spectrum([9.0, 4.0] + 28 * [0.0], np.random.default_rng(0)), dtype)
    nodes, weights = density(matrix, 10, 5)
    values, vectors = np.linalg.eigh(matrix.whole.astype("float64"))
    exact = (matrix.first @ vectors) ** 2
    for value in (9, 4, 0):
        found = np.sum(weights * (np.abs(nodes - value) < 1e-3), axis=1)
        there = np.sum(exact * (np.abs(values - value) < 1e-3), axis=1)
        np.testing.assert_allclose(found, there, atol=10 * ROUNDING[dtype])


def test_blocks_do_not_change_what_a_draw_finds():
    whole = random_symmetric(30, np.random.default_rng(0))
    one, five = (density(Matrix(whole), 6, 7, block=block) for block in (1, 5))
    np.testing.assert_allclose(one[0], five[0], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(one[1], five[1], rtol=1e-9, atol=1e-12)


def test_a_density_tells_how_far_it_is():
    seen = []
    density(Matrix(np.eye(30)), 3, 7, watch=seen.append)
    assert seen == [5, 10, 15, 17, 19, 21]
