"""Arithmetic on parameter vectors, against numpy."""

import math

import numpy as np
import pytest
from keras import ops

from keras_regtools import vectors

pytestmark = pytest.mark.backends
SHAPES = [(2, 3), (4,), (), (1, 2, 2)]


def _vector(seed, shapes=SHAPES, dtype="float32"):
    rng = np.random.default_rng(seed)
    return [ops.convert_to_tensor(rng.normal(size=shape), dtype) for shape in shapes]


def _numpy(vector):
    return [ops.convert_to_numpy(x) for x in vector]


def test_the_inner_product_is_that_of_the_flat_vectors():
    a, b = _vector(1), _vector(2)
    expected = np.dot(vectors.flatten(a), vectors.flatten(b))
    received = vectors.dot(a, b)
    assert type(received) is float
    assert math.isclose(received, expected, rel_tol=1e-6)


@pytest.mark.parametrize(
    ("entries", "norm"), [([[3.0, 4.0]], 5.0), ([[1.0, 2.0], [2.0]], 3.0), ([[0.0]], 0.0), ([], 0)]
)
def test_the_norm_is_euclidean(entries, norm):
    assert vectors.norm([ops.convert_to_tensor(x) for x in entries]) == norm


def test_small_parts_are_not_lost_beside_large_ones():
    a = [ops.convert_to_tensor([x], "float32") for x in (1e17, 1.0, -1e17)]
    ones = [ops.ones((1,))] * 3
    assert vectors.dot(a, ones) == 1.0


@pytest.mark.parametrize("scale", [2, -0.5, 0.0])
def test_axpy_and_scaled_give_new_vectors(scale):
    a, b = _vector(1), _vector(2)
    before = _numpy(a), _numpy(b)
    for i, (x, y) in enumerate(zip(*before, strict=True)):
        np.testing.assert_allclose(_numpy(vectors.axpy(scale, a, b))[i], scale * x + y, rtol=1e-6)
        np.testing.assert_allclose(_numpy(vectors.scaled(scale, a))[i], scale * x, rtol=1e-6)
        np.testing.assert_array_equal(_numpy(a)[i], x)
        np.testing.assert_array_equal(_numpy(b)[i], y)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_arithmetic_keeps_the_dtype(dtype):
    a = _vector(1, dtype=dtype)
    for result in (vectors.axpy(0.1, a, a), vectors.scaled(0.1, a)):
        assert {x.dtype for x in result} == {x.dtype for x in a}


@pytest.mark.parametrize("call", [vectors.dot, lambda a, b: vectors.axpy(1.0, a, b)])
def test_vectors_of_different_length_are_refused(call):
    with pytest.raises(ValueError, match="argument 2 is shorter than argument 1"):
        call(_vector(1), _vector(1)[:-1])


@pytest.mark.parametrize(
    ("shapes", "size"), [(SHAPES, 15), ([()], 1), ([(0, 3)], 0), ([], 0), ([(2, 3)], 6)]
)
def test_the_size_counts_the_entries(shapes, size):
    assert vectors.size(_vector(0, shapes)) == size
    assert vectors.flatten(_vector(0, shapes)).shape == (size,)


def test_flattening_keeps_the_order_in_float64():
    flat = vectors.flatten([ops.convert_to_tensor([[1.0, 2.0], [3.0, 4.0]]), ops.array(5.0)])
    assert flat.dtype == "float64"
    np.testing.assert_array_equal(flat, [1, 2, 3, 4, 5])


@pytest.mark.parametrize("shapes", [SHAPES, [()], [(0, 3), (2,)], []])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_unflattening_is_the_inverse(shapes, dtype):
    a = _vector(1, shapes, dtype)
    back = vectors.unflatten(vectors.flatten(a), a)
    assert [(x.shape, x.dtype) for x in back] == [(x.shape, x.dtype) for x in a]
    for x, y in zip(_numpy(back), _numpy(a), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("shape", [(14,), (16,), (0,), (15, 1), ()])
def test_a_flat_vector_of_the_wrong_shape_is_refused(shape):
    with pytest.raises(ValueError) as error:
        vectors.unflatten(np.zeros(shape), _vector(1))
    assert str(error.value) == (f"Expected a flat vector of 15 entries. Received: shape={shape}")


def test_random_vectors_are_the_draws_of_the_generator():
    like = _vector(0)
    received = vectors.random_normal(like, np.random.default_rng(7))
    rng = np.random.default_rng(7)
    for x, shape in zip(_numpy(received), SHAPES, strict=True):
        np.testing.assert_array_equal(x, rng.standard_normal(shape).astype("float32"))
    assert [x.dtype for x in received] == [x.dtype for x in like]


def test_random_vectors_have_the_same_draws_on_every_backend():
    (x,) = vectors.random_normal([ops.zeros((3,))], np.random.default_rng(0))
    expected = [0.12573022, -0.13210486, 0.64042264]
    np.testing.assert_allclose(ops.convert_to_numpy(x), expected, rtol=1e-6)


@pytest.mark.parametrize("size", [1e-25, 1e-18, 1.0, 1e18, 1e25])
def test_a_norm_whose_squares_single_precision_cannot_hold(size):
    a = [ops.convert_to_tensor(np.array([3 * size, 0.0], "float32")), ops.zeros((0,))]
    a.append(ops.convert_to_tensor(np.array([[4 * size]], "float32")))
    assert vectors.norm(a) == pytest.approx(5 * size, rel=1e-5)


def test_the_norm_of_nothing_and_of_infinity():
    assert vectors.norm([ops.zeros(3)]) == 0
    assert vectors.norm([ops.convert_to_tensor(np.array([1.0, np.inf], "float32"))]) == np.inf


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_summed_in_single(dtype):
    ones = [ops.ones((5000,), dtype)]
    assert vectors.dot(ones, ones) == 5000
    assert vectors.norm([200 * ones[0]]) == pytest.approx(200 * np.sqrt(5000), rel=1e-5)
