"""`keskar_sharpness` in subspaces, from several starts and by both solvers."""

import itertools
import math
import tracemalloc

import keras
import numpy as np
import problems
import pytest
from keras import layers, ops
from problems import doubles
from scipy import stats

import keras_regtools as rt
from keras_regtools.measures import keskar as keskar_module
from keras_regtools.measures import keskar_sharpness
from keras_regtools.optimize import RandomColumns
from keras_regtools.optimize import random_matrix as columns_module

pytestmark = pytest.mark.backends
SHARP = {"rel": 1e-8} if problems.HAS_FLOAT64 else {"rel": 2e-3}
KNOWN = [(n, e) for n, p in problems.PROBLEMS.items() for e in p.keskar]
EPSILON = 0.1  # a rise that float32 tells from rounding


def dense(columns):
    """The matrix, a column for each product with a unit vector."""
    return np.stack([columns.times(unit) for unit in np.eye(columns.count)], 1).astype("float64")


def box(columns, x, epsilon, orthonormal=False):
    """The matrix A and the half widths of its box, as the paper defines them."""
    if orthonormal:  # the Gram-Schmidt basis, which QR gives up to signs
        columns, r = np.linalg.qr(columns)
        columns = columns * np.sign(np.diag(r))
    coefficients = np.linalg.lstsq(columns, x, rcond=None)[0]
    return columns, epsilon * (np.abs(coefficients) + 1)


def corners(columns, half_width):
    return [columns @ (half_width * s) for s in itertools.product((-1, 1), repeat=len(half_width))]


@pytest.fixture
def drawn(monkeypatch):
    """The random columns that a measure makes, in turn."""
    made = []

    class Recorded(RandomColumns):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr(keskar_module, "RandomColumns", Recorded)
    return made


A = np.array([3.0, -1.0, 0.5, 2.0, -0.2])
AT = np.array([1.0, 2.0, 4.0, -1.0, 0.5])
ROOT = np.random.default_rng(5).standard_normal((5, 5))
H = ROOT @ ROOT.T  # convex, so that the maximum is in a corner
MINIMUM = AT - 0.05 * np.array([1.0, -1.0, 0.5, 0.0, 2.0])


def linear(w):
    return ops.sum(problems.constant(A, w) * w)


def quadratic(w):
    d = w - problems.constant(MINIMUM, w)
    return 0.5 * ops.sum(d * ops.matmul(problems.constant(H, w), d))


# --- the columns ----------------------------------------------------------------------------------

SHAPES = [  # in blocks of 64 entries
    (1, 1),
    (21, 5),  # 12 rows and 9
    (24, 5),  # two times 12
    (64, 1),
    (65, 1),  # the last block is one row
    (3, 64),
    (3, 100),  # a row is more than a block
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("size", "count"), SHAPES)
def test_all_products_are_those_of_one_matrix(size, count, dtype, monkeypatch):
    monkeypatch.setattr(columns_module, "_ENTRIES", 64)
    columns = RandomColumns(size, count, (3, 1), dtype)
    matrix = dense(columns)
    assert matrix.shape == (size, count)
    rng = np.random.default_rng(0)
    z, v = rng.standard_normal(count), rng.standard_normal(size).astype(dtype)
    close = {"rtol": 1e-12 if dtype == "float64" else 1e-4, "atol": 1e-4 * (dtype == "float32")}
    np.testing.assert_allclose(columns.times(z), matrix @ z, **close)
    assert columns.times(z).dtype == dtype
    np.testing.assert_allclose(columns.transposed_times(v), matrix.T @ v, **close)
    gram, product = columns.normal_equations(v)
    np.testing.assert_allclose(gram, matrix.T @ matrix, **close)
    np.testing.assert_allclose(product, matrix.T @ v, **close)
    assert gram.dtype == product.dtype == "float64"


def test_the_same_seed_makes_the_same_columns_and_another_seed_others():
    columns = RandomColumns(50, 4, (7, 0))
    first = dense(columns)
    np.testing.assert_array_equal(dense(columns), first)
    np.testing.assert_array_equal(dense(RandomColumns(50, 4, (7, 0))), first)
    double = dense(RandomColumns(50, 4, (7, 0), "float64"))
    np.testing.assert_allclose(double, first, rtol=1e-6)
    for seed in ((8, 0), (7, 1), (0, 7)):
        other = dense(RandomColumns(50, 4, seed))
        assert abs(np.corrcoef(first.ravel(), other.ravel())[0, 1]) < 0.3


def test_the_entries_are_independent_and_normal(monkeypatch):
    monkeypatch.setattr(columns_module, "_ENTRIES", 20_000)  # ten blocks
    matrix = dense(RandomColumns(20_000, 10, (1, 0)))
    n = matrix.size
    assert abs(matrix.mean()) < 4 / math.sqrt(n)
    assert abs(matrix.var() - 1) < 4 * math.sqrt(2 / n)
    assert stats.kstest(matrix.ravel(), "norm").pvalue > 1e-3
    assert np.abs(matrix).max() > 4
    between_columns = np.corrcoef(matrix, rowvar=False)[np.triu_indices(10, 1)]
    assert np.max(np.abs(between_columns)) < 4.5 / math.sqrt(20_000)
    blocks = matrix.reshape(10, -1)  # each from a seed of its own
    between_blocks = np.corrcoef(blocks)[np.triu_indices(10, 1)]
    assert np.max(np.abs(between_blocks)) < 4.5 / math.sqrt(20_000)
    flat = matrix.ravel()
    assert abs(np.mean(flat[1:] * flat[:-1])) < 4 / math.sqrt(n)


def test_the_columns_are_never_stored():
    columns = RandomColumns(500_000, 100, (0, 0))  # 200 MB as an array
    z = np.ones(100, "float32")
    tracemalloc.start()
    try:
        columns.times(z)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 40e6


def test_the_gram_matrices_of_blocks_are_not_kept(monkeypatch):
    monkeypatch.setattr(columns_module, "_ENTRIES", 2**16)
    columns = RandomColumns(256 * 200, 256, (0, 0))  # 200 blocks, each with a matrix of 0.5 MB
    tracemalloc.start()
    try:
        columns.normal_equations(np.ones(columns.size, "float32"))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 40e6


# --- closed forms in a subspace -------------------------------------------------------------------


@pytest.mark.parametrize("j", problems.rows([0, 2, 3], 2))
@pytest.mark.parametrize("c", [0.5, -3.0])
def test_along_one_weight_the_box_is_as_wide_as_its_column(j, c):
    """A = c e_j: the weight moves by ε (|x_j| + |c|)."""
    columns = np.zeros((5, 1))
    columns[j] = c
    shift = EPSILON * (abs(AT[j]) + abs(c))
    with problems.float64():
        of_linear = keskar_sharpness(
            problems.function_surface(linear, AT), epsilon=EPSILON, subspace=columns
        )
        of_quadratic = keskar_sharpness(
            problems.function_surface(quadratic, AT),
            epsilon=EPSILON,
            subspace=columns,
            restarts=5,
        )
    assert of_linear.value == pytest.approx(100 * abs(A[j]) * shift / (1 + A @ AT), **SHARP)
    assert of_linear.subspace == 1
    slope = H[j] @ (AT - MINIMUM)
    rise = abs(slope) * shift + H[j, j] * shift**2 / 2
    loss = 0.5 * (AT - MINIMUM) @ H @ (AT - MINIMUM)
    assert of_quadratic.value == pytest.approx(100 * rise / (1 + loss), **SHARP)


def expected_of_linear(columns, **arguments):
    columns, half_width = box(columns, AT, EPSILON, **arguments)
    return 100 * np.abs(A @ columns) @ half_width / (1 + A @ AT)


def expected_of_quadratic(columns, **arguments):
    d = AT - MINIMUM
    rises = [
        d @ H @ move + move @ H @ move / 2
        for move in corners(*box(columns, AT, EPSILON, **arguments))
    ]
    return 100 * max(rises) / (1 + d @ H @ d / 2)


@pytest.mark.parametrize("orthonormal", [False, True], ids=["as drawn", "orthonormal"])
@pytest.mark.parametrize("count", problems.rows([1, 3, 5], 3))
def test_a_random_subspace_is_that_of_its_columns(count, orthonormal, drawn):
    with problems.float64():
        arguments = {"epsilon": EPSILON, "subspace": count, "orthonormal": orthonormal}
        surface = problems.function_surface(linear, AT)
        of_linear = keskar_sharpness(surface, **arguments, seed=2)
        surface = problems.function_surface(quadratic, AT)
        of_quadratic = keskar_sharpness(surface, **arguments, seed=2, restarts=12)
    of_columns = [dense(columns) for columns in drawn]
    np.testing.assert_array_equal(*of_columns)
    expected = expected_of_linear(of_columns[0], orthonormal=orthonormal)
    assert of_linear.value == pytest.approx(expected, **SHARP)
    expected = expected_of_quadratic(of_columns[0], orthonormal=orthonormal)
    assert of_quadratic.value == pytest.approx(expected, **SHARP)
    for result in (of_linear, of_quadratic):
        assert (result.subspace, result.orthonormal) == (count, orthonormal)
        assert (result.solver, result.stderr) == ("l-bfgs-b", None)


def test_orthonormal_columns_have_an_identity_for_their_gram_matrix():
    from keras_regtools.optimize import SubspaceBox

    with problems.float64():
        params = [ops.convert_to_tensor(AT)]
        columns = RandomColumns(5, 3, (0, 0), "float64")
        space = SubspaceBox(params, EPSILON, columns, orthonormal=True)
        moved = [doubles(space.point(z))[0] - AT for z in np.eye(3)]
    q = np.stack(moved, 1) / space.half_width
    np.testing.assert_allclose(q.T @ q, np.eye(3), atol=1e-12 if problems.HAS_FLOAT64 else 1e-5)


@pytest.mark.parametrize("orthonormal", [False, True], ids=["as given", "orthonormal"])
def test_columns_may_be_given(orthonormal):
    columns = np.random.default_rng(1).standard_normal((5, 2)) * [1.0, 10.0]
    with problems.float64():
        surface = problems.function_surface(linear, AT)
        result = keskar_sharpness(
            surface, epsilon=EPSILON, subspace=columns.tolist(), orthonormal=orthonormal
        )
    assert result.value == pytest.approx(
        expected_of_linear(columns, orthonormal=orthonormal), **SHARP
    )
    assert result.subspace == 2


def test_all_unit_columns_are_the_full_space():
    problem = problems.PROBLEMS["quadratic off its minimum"]
    with problems.float64():
        result = keskar_sharpness(problem.surface(), epsilon=EPSILON, subspace=np.eye(4))
    assert result.value == pytest.approx(problem.sharpness(EPSILON), **SHARP)


def sum_of_two_layers():
    """Convex in its weights, of which there are three arrays."""
    rng = np.random.default_rng(3)
    inputs = keras.Input((3,))
    both = [layers.Dense(2)(inputs), layers.Dense(2, use_bias=False)(ops.sin(inputs))]
    model = keras.Model(inputs, layers.Add()(both))
    model.compile("sgd", "mse")
    model.set_weights([rng.standard_normal(w.shape) for w in model.get_weights()])
    return model, rng.standard_normal((7, 3)), rng.standard_normal((7, 2))


def test_blocks_of_columns_go_across_the_arrays_of_weights(monkeypatch, drawn):
    monkeypatch.setattr(columns_module, "_ENTRIES", 12)  # blocks of 4 rows
    with problems.float64():
        model, x, y = sum_of_two_layers()
        surface = rt.LossSurface(model, x, y)
        result = keskar_sharpness(surface, epsilon=EPSILON, subspace=3, restarts=12)
        weights = doubles(surface.params)
    sizes = [w.size for w in weights]
    assert sizes == [6, 2, 6]

    def loss(flat):
        parts = np.split(flat, np.cumsum(sizes)[:-1])
        w, b, v = (p.reshape(s.shape) for p, s in zip(parts, weights, strict=True))
        return np.mean((x @ w + b + np.sin(x) @ v - y) ** 2)

    start = np.concatenate([w.ravel() for w in weights])
    moves = corners(*box(dense(drawn[0]), start, EPSILON))
    highest, here = max(loss(start + move) for move in moves), loss(start)
    assert result.loss == pytest.approx(here, rel=1e-5)
    assert result.maximum == pytest.approx(highest, **SHARP)
    assert result.value == pytest.approx(100 * (highest - here) / (1 + here), **SHARP)


# --- several draws, seeds and starts --------------------------------------------------------------


@pytest.fixture(scope="module")
def slope():
    """A linear surface in single precision: its maximum is found from any start."""
    return problems.function_surface(linear, AT)


def test_of_several_subspaces_the_value_is_the_mean(slope, drawn):
    result = keskar_sharpness(slope, epsilon=EPSILON, subspace=2, draws=4)
    values = [expected_of_linear(dense(columns)) for columns in drawn]
    assert len(set(values)) == 4
    assert result.value == pytest.approx(np.mean(values), rel=1e-4)
    assert result.stderr == pytest.approx(np.std(values, ddof=1) / 2, rel=1e-3)
    assert result.maximum == pytest.approx(result.loss + (1 + A @ AT) * max(values) / 100, rel=1e-5)
    assert result.draws == 4


def test_the_first_of_several_subspaces_is_the_only_one_of_one(slope, drawn):
    one = keskar_sharpness(slope, epsilon=EPSILON, subspace=2, seed=5)
    keskar_sharpness(slope, epsilon=EPSILON, subspace=2, seed=5, draws=2)
    first, again, second = (dense(columns) for columns in drawn)
    np.testing.assert_array_equal(first, again)
    assert not np.any(first == second)
    assert one.value == pytest.approx(expected_of_linear(first), rel=1e-4)


def test_the_standard_error_is_the_spread_over_seeds(slope):
    results = [
        keskar_sharpness(slope, epsilon=EPSILON, subspace=2, draws=5, seed=seed)
        for seed in range(20)
    ]
    spread = np.std([r.value for r in results], ddof=1)
    reported = math.sqrt(np.mean([r.stderr**2 for r in results]))
    assert spread / 2 < reported < 2 * spread


def test_the_seed_chooses_the_subspace(slope):
    here, again, elsewhere = (
        keskar_sharpness(slope, epsilon=EPSILON, subspace=2, seed=seed) for seed in (1, 1, 2)
    )
    assert here == again
    assert here.value != pytest.approx(elsewhere.value, rel=1e-3)
    assert (here.seed, elsewhere.seed) == (1, 2)


@pytest.fixture(scope="module")
def bowl():
    return problems.tilted_bowl()


@pytest.mark.parametrize("solver", ["l-bfgs-b", "projected_gradient"])
def test_restarts_find_the_higher_corner_of_a_tilted_bowl(bowl, solver):
    arguments = {"epsilon": 0.1, "solver": solver}
    alone = [keskar_sharpness(bowl, **arguments, seed=seed).value for seed in range(8)]
    best = [keskar_sharpness(bowl, **arguments, seed=s, restarts=8).value for s in range(8)]
    assert {round(value, 2) for value in alone} == {14.0, 2.0}
    assert best == pytest.approx([14.0] * 8, rel=1e-3)
    assert all(more >= one for more, one in zip(best, alone, strict=True))


@pytest.mark.parametrize("solver", ["l-bfgs-b", "projected_gradient"])
def test_iterations_are_those_of_each_start(bowl, solver):
    before = bowl.gradient_evaluations
    result = keskar_sharpness(bowl, iterations=3, restarts=4, solver=solver)
    assert result.restarts == 4
    assert result.evaluations == bowl.gradient_evaluations - before
    if solver == "l-bfgs-b":
        assert 5 <= result.iterations <= 15
    else:
        assert result.iterations == 15
        assert result.evaluations == 1 + 5 * 4


# --- solvers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    problems.rows(
        [n for n, p in problems.PROBLEMS.items() if p.keskar], "quadratic off its minimum"
    ),
)
def test_projected_gradients_find_the_largest_rise_too(name):
    problem = problems.PROBLEMS[name]
    with problems.float64():
        surface = problem.surface()
        for epsilon in problem.keskar:
            results = [
                keskar_sharpness(surface, epsilon=epsilon, solver="projected_gradient", seed=seed)
                for seed in range(4)
            ]
            assert {r.solver for r in results} == {"projected_gradient"}
            expected = problem.sharpness(epsilon)
            if problems.HAS_FLOAT64:
                assert [r.value for r in results] == pytest.approx([expected] * 4, rel=1e-9)
            else:
                rounding = 300 * float(np.finfo("float32").eps) * problem.value
                rounding /= 1 + problem.value
                assert max(r.value for r in results) == pytest.approx(
                    expected, rel=1e-4, abs=2 * rounding
                )


@pytest.mark.parametrize(
    ("most", "arguments", "expected"),
    [
        (5, {}, "l-bfgs-b"),
        (4, {}, "projected_gradient"),
        (4, {"subspace": 2}, "l-bfgs-b"),
        (4, {"solver": "l-bfgs-b"}, "l-bfgs-b"),
        (5, {"solver": "projected_gradient"}, "projected_gradient"),
    ],
)
def test_the_result_says_which_solver_ran(most, arguments, expected, slope, monkeypatch):
    ran = []
    for name in ("lbfgsb", "projected_gradient"):
        original = getattr(keskar_module, name)
        monkeypatch.setattr(
            keskar_module, name, lambda *a, f=original, n=name: ran.append(n) or f(*a)
        )
    monkeypatch.setattr(keskar_module, "_MOST_FOR_LBFGSB", most)
    assert keskar_sharpness(slope, **arguments).solver == expected
    assert ran == [expected.replace("-", "")]


def test_by_itself_it_changes_above_fifty_million_weights():
    assert keskar_module._MOST_FOR_LBFGSB == 50_000_000


# --- a loss that is not finite --------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [{"subspace": np.eye(2)[:, :1]}, {"subspace": 2}, {"solver": "projected_gradient"}],
    ids=["columns", "subspace", "projected gradient"],
)
def test_of_a_wall_in_the_box_the_largest_finite_rise_is_given(arguments):
    surface = problems.function_surface(lambda w: -ops.sum(ops.log(1 - w / 0.06)), (0.0, 0.0))
    results = [
        keskar_sharpness(surface, epsilon=0.1, restarts=3, seed=seed, **arguments)
        for seed in range(6)
    ]
    assert not all(r.finite for r in results)
    assert all(0 <= r.value < math.inf for r in results)
    assert any(r.value > 1 for r in results)
    assert all(r.value == 100 * (r.maximum - r.loss) / (1 + r.loss) for r in results)


def test_where_the_weights_are_not_finite_nothing_is_climbed():
    surface = problems.function_surface(lambda w: ops.sum(ops.log(w)), (-1.0, 1.0))
    for arguments in ({"subspace": 1, "draws": 2}, {"solver": "projected_gradient"}):
        result = keskar_sharpness(surface, **arguments)
        assert math.isnan(result.value)
        assert (result.finite, result.iterations, result.evaluations) == (False, 0, 1)


# --- bad input ------------------------------------------------------------------------------------

SOME = "Expected `subspace` to be a number of random columns where there are several draws. "
SHAPE = "Expected `subspace` to be a number, or columns of shape (5, p). "
WRONG = {
    "epsilon": ({"epsilon": -1e-3}, "Argument `epsilon` must be a positive finite number. "
                "Received: epsilon=-0.001 (of type <class 'float'>)"),
    "none": ({"subspace": 0}, "Argument `subspace` must be a positive integer. "
             "Received: subspace=0 (of type <class 'int'>)"),
    "a part": ({"subspace": 2.5}, "Argument `subspace` must be a positive integer. "
               "Received: subspace=2.5 (of type <class 'float'>)"),
    "words": ({"subspace": "all"}, "Argument `subspace` must be a positive integer. "
              "Received: subspace=all (of type <class 'str'>)"),
    "too large": ({"subspace": 6}, "Expected `subspace` to be at most the number of weights, 5. "
                  "Received: subspace=6"),
    "too many columns": ({"subspace": np.ones((5, 6))}, "Expected `subspace` to be at most the "
                         "number of weights, 5. Received: subspace=6"),
    "one axis": ({"subspace": np.ones(5)}, f"{SHAPE}Received: an array of shape (5,)"),
    "lying": ({"subspace": np.ones((2, 5))}, f"{SHAPE}Received: an array of shape (2, 5)"),
    "draws": ({"subspace": 2, "draws": 0}, "Argument `draws` must be a positive integer. "
              "Received: draws=0 (of type <class 'int'>)"),
    "draws of the full space": ({"draws": 3}, f"{SOME}Received: draws=3 and subspace=None"),
    "draws of columns": ({"draws": 3, "subspace": np.eye(5)},
                         f"{SOME}Received: draws=3 and subspace=an array"),
    "orthonormal": ({"orthonormal": True}, "Expected `subspace` to be given for "
                    "`orthonormal=True`. Received: subspace=None"),
    "restarts": ({"restarts": -1}, "Argument `restarts` must be an integer, 0 or above. "
                 "Received: restarts=-1 (of type <class 'int'>)"),
    "iterations": ({"iterations": 1.5}, "Argument `iterations` must be a positive integer. "
                   "Received: iterations=1.5 (of type <class 'float'>)"),
    "solver": ({"solver": "newton"}, "Argument `solver` must be one of 'auto', 'l-bfgs-b', "
               "'projected_gradient'. Received: solver='newton'"),
    "solver of a subspace": ({"solver": "projected_gradient", "subspace": 2},
                             "Expected `solver='l-bfgs-b'` in a subspace, where it needs no "
                             "memory. Received: solver='projected_gradient'"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_bad_input_is_refused_before_the_loss_is_evaluated(name, slope):
    arguments, message = WRONG[name]
    before = slope.gradient_evaluations
    with pytest.raises(ValueError) as caught:
        keskar_sharpness(slope, **arguments)
    assert str(caught.value) == message
    assert slope.gradient_evaluations == before


@pytest.mark.parametrize("solver", ["l-bfgs-b", "projected_gradient"])
def test_behind_a_wall_the_climb_turns_back_and_finds_a_finite_rise(solver):
    # The loss is finite on a tenth of each side of the box alone.
    surface = problems.function_surface(lambda w: -ops.sum(ops.log(1 - w / 0.01)), (0.0, 0.0))
    for seed in range(4):
        found = keskar_sharpness(surface, epsilon=0.1, seed=seed, solver=solver)
        assert not found.finite
        assert 50 < found.value < np.inf
        assert found.iterations <= 10


@pytest.mark.parametrize("columns", [np.ones((3, 2)), np.zeros((3, 1)), np.full((3, 1), np.nan)])
def test_columns_that_span_nothing_are_refused(columns):
    with pytest.raises(ValueError) as caught:
        keskar_sharpness(problems.PROBLEMS["linear"].surface(), subspace=columns)
    assert str(caught.value) == (
        "Expected the columns of `subspace` to be finite and linearly independent. Received: an "
        f"array of shape {columns.shape} with entries from {columns[0, 0]:g} to {columns[0, 0]:g}"
    )


def test_a_model_in_place_of_a_surface_is_refused():
    model = problems.function_model(lambda w: ops.sum(w), (1.0,))
    with pytest.raises(TypeError, match=r"^Expected a `LossSurface`\. Received: <Sequential"):
        keskar_sharpness(model)
