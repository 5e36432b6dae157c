"""`keskar_sharpness` against closed forms: there is no code of the paper to compare with."""

import keras
import numpy as np
import problems
import pytest
from keras import ops

import keras_regtools as rt
from keras_regtools.measures import keskar_sharpness

pytestmark = pytest.mark.backends
KNOWN = [(n, e) for n, p in problems.PROBLEMS.items() for e in p.keskar if p.keskar]


@pytest.mark.parametrize(("name", "epsilon"), KNOWN)
def test_the_largest_rise_in_the_box_is_found(name, epsilon):
    problem = problems.PROBLEMS[name]
    with problems.float64():
        surface = problem.surface()
        results = [keskar_sharpness(surface, epsilon=epsilon, seed=seed) for seed in range(5)]
    expected = problem.sharpness(epsilon)
    if problems.HAS_FLOAT64:
        assert [r.value for r in results] == pytest.approx([expected] * 5, rel=1e-9)
    else:  # rounding of the difference of two losses, in per cent
        rounding = 300 * float(np.finfo("float32").eps) * problem.value / (1 + problem.value)
        assert max(r.value for r in results) == pytest.approx(expected, rel=1e-4, abs=2 * rounding)


@pytest.mark.parametrize(
    ("name", "epsilon", "published"),
    [
        ("quadratic at its minimum", 1e-3, 0.00808),
        ("quadratic at its minimum", 5e-4, 0.00202),
        ("logistic", 1e-3, 0.0317750),
        ("logistic", 5e-4, 0.0158770),
    ],
)
def test_the_numbers_worked_out_beforehand(name, epsilon, published):
    assert problems.PROBLEMS[name].sharpness(epsilon) == pytest.approx(published, rel=3e-6)


def test_a_tilted_bowl_has_two_high_corners_and_two_low_ones():
    with problems.float64():
        surface = problems.tilted_bowl()
        found = [keskar_sharpness(surface, epsilon=0.1, seed=seed).value for seed in range(10)]
    assert max(found) == pytest.approx(14, rel=1e-5)
    assert all(v == pytest.approx(14, rel=1e-4) or v == pytest.approx(2, rel=1e-3) for v in found)


def test_the_result_says_how_it_was_made():
    surface = problems.PROBLEMS["logistic"].surface(penalties=False)
    result = keskar_sharpness(surface, epsilon=5e-4, iterations=3, seed=4)
    assert (result.epsilon, result.seed, result.mode) == (5e-4, 4, "inference")
    assert result.penalties is False
    assert result.finite
    assert 1 <= result.iterations <= 3
    assert result.evaluations == surface.gradient_evaluations
    assert result.loss == pytest.approx(problems.PROBLEMS["logistic"].value, rel=1e-6)
    assert result.maximum > result.loss


def test_scalars_are_floats_for_logs_and_tables():
    scalars = keskar_sharpness(problems.PROBLEMS["linear"].surface()).scalars()
    assert set(scalars) >= {"value", "loss", "maximum", "epsilon", "evaluations", "finite"}
    assert all(type(v) is float for v in scalars.values())


def test_the_same_seed_gives_the_same_number():
    surface = problems.PROBLEMS["quadratic off its minimum"].surface()
    assert keskar_sharpness(surface, seed=3) == keskar_sharpness(surface, seed=3)


def test_on_a_flat_function_the_sharpness_is_zero():
    surface = problems.function_surface(lambda w: 0.0 * ops.sum(w) + 0.5, (1.0, 2.0))
    assert keskar_sharpness(surface).value == 0.0


def test_it_is_the_rise_over_the_weights_even_where_the_start_is_higher():
    # A narrow well: everywhere else in the box is higher than at the weights.
    surface = problems.function_surface(lambda w: ops.sum(ops.sqrt(ops.abs(w) + 1e-12)), (0.0,))
    result = keskar_sharpness(surface, epsilon=1e-2)
    assert result.value == pytest.approx(100 * 0.1, rel=1e-3)


def test_a_loss_that_overflows_in_the_box_gives_the_largest_finite_rise():
    surface = problems.function_surface(lambda w: -ops.sum(ops.log(0.01 - w)), (0.0,))
    result = keskar_sharpness(surface, epsilon=0.1, seed=1)
    assert not result.finite
    assert np.isfinite(result.value)
    assert result.value >= 0


def test_a_loss_that_is_not_finite_at_the_weights_gives_nan():
    surface = problems.function_surface(lambda w: ops.sum(ops.log(w)), (-1.0,))
    result = keskar_sharpness(surface)
    assert np.isnan(result.value)
    assert not result.finite


def test_a_loss_of_minus_one_or_less_has_no_relative_rise():
    surface = problems.function_surface(lambda w: ops.sum(w), (-2.0,))
    assert np.isnan(keskar_sharpness(surface).value)


def test_batch_normalization_makes_the_mode_matter():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((64, 4)), rng.integers(0, 2, 64)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(8),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(2, "softmax"),
        ]
    )
    model.compile("sgd", "sparse_categorical_crossentropy")
    values = {
        mode: keskar_sharpness(rt.LossSurface(model, x, y, mode=mode)).value
        for mode in ("inference", "batch_statistics")
    }
    assert values["inference"] != pytest.approx(values["batch_statistics"], rel=0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"epsilon": 0},
            "Argument `epsilon` must be a positive finite number. "
            "Received: epsilon=0 (of type <class 'int'>)",
        ),
        (
            {"epsilon": float("nan")},
            "Argument `epsilon` must be a positive finite number. "
            "Received: epsilon=nan (of type <class 'float'>)",
        ),
        (
            {"iterations": 0},
            "Argument `iterations` must be a positive integer. "
            "Received: iterations=0 (of type <class 'int'>)",
        ),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError) as caught:
        keskar_sharpness(problems.PROBLEMS["linear"].surface(), **arguments)
    assert str(caught.value) == message
