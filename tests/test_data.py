"""Batches: whatever `fit` takes, again and again, in the same order."""

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from keras import ops

from keras_regtools.data import Batches, is_arrays

X = np.arange(10.0).reshape(5, 2)
Y = np.arange(5)
WEIGHT = np.linspace(1, 2, 5)


class InTwos(keras.utils.PyDataset):
    """Five samples in batches of two."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        part = slice(2 * index, 2 * index + 2)
        return X[part], Y[part], WEIGHT[part]


class Again:
    """Anything that can be iterated over more than once."""

    def __iter__(self):
        dataset = InTwos()
        return (list(dataset[i]) for i in range(len(dataset)))


def _tf_dataset():
    return tf.data.Dataset.from_tensor_slices((X, Y, WEIGHT)).batch(2)


def _loader():
    import torch  # on the other backends it need not be there

    return torch.utils.data.DataLoader(list(zip(X, Y, WEIGHT, strict=True)), batch_size=2)


DATASETS = [_tf_dataset, InTwos, Again]
DATASETS += [_loader] if keras.backend.backend() == "torch" else []


def _refusal(error, call, *args, **kwargs):
    with pytest.raises(error) as caught:
        call(*args, **kwargs)
    return str(caught.value)


def _assert_in_twos(batches):
    batches = list(batches)
    assert [count for *_, count in batches] == [2, 2, 1]
    for i, expected in enumerate((X, Y, WEIGHT)):
        parts = [batch[i] for batch in batches]
        assert {type(part) for part in parts} == {np.ndarray}
        np.testing.assert_allclose(np.concatenate(parts), expected, rtol=1e-6)


# Reading.


@pytest.mark.backends
def test_arrays_come_in_order_with_a_smaller_last_batch():
    batches = Batches(X, Y, WEIGHT, batch_size=2)
    _assert_in_twos(batches)
    assert batches.samples == 5


@pytest.mark.backends
@pytest.mark.parametrize("dataset", DATASETS)
def test_datasets_come_in_their_own_batches(dataset):
    _assert_in_twos(Batches(dataset(), batch_size=4))


@pytest.mark.backends
@pytest.mark.parametrize("dataset", [lambda: (X, Y, WEIGHT), *DATASETS])
def test_batches_can_be_read_again(dataset):
    data = dataset()
    batches = Batches(*data, batch_size=2) if isinstance(data, tuple) else Batches(data)
    for _ in range(3):
        _assert_in_twos(batches)


@pytest.mark.parametrize(
    ("batch_size", "counts"), [(1, [1] * 5), (4, [4, 1]), (5, [5]), (256, [5]), (2.0, [2, 2, 1])]
)
def test_the_batch_size_divides_the_arrays(batch_size, counts):
    assert [count for *_, count in Batches(X, batch_size=batch_size)] == counts


def test_targets_and_weights_may_be_missing():
    x, y, weight, count = next(iter(Batches(X)))
    np.testing.assert_array_equal(x, X)
    assert (y, weight, count) == (None, None, 5)


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        (X, (X, None, None, 5)),
        ((X,), (X, None, None, 5)),
        ((X, Y), (X, Y, None, 5)),
        ([X, Y, WEIGHT], (X, Y, WEIGHT, 5)),
        (({"a": X, "b": Y}, Y), ({"a": X, "b": Y}, Y, None, 5)),
    ],
    ids=["x", "(x,)", "(x, y)", "[x, y, weight]", "({...}, y)"],
)
def test_the_batches_of_a_dataset_may_be_shorter_than_three(batch, expected):
    dataset = type("Once", (), {"__iter__": lambda self: iter([batch])})()
    received = next(iter(Batches(dataset)))
    keras.tree.assert_same_structure(received, expected)
    present = [
        [leaf for leaf in keras.tree.flatten(parts) if leaf is not None]
        for parts in (received, expected)
    ]
    for a, b in zip(*present, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize("x", [[X, Y], (X, Y), {"a": X, "b": Y}], ids=["list", "tuple", "dict"])
def test_several_inputs_and_outputs_keep_their_structure(x):
    y = {"one": Y, "two": (X, WEIGHT)}
    batches = list(Batches(x, y, batch_size=3))
    keras.tree.assert_same_structure(batches[0][0], x)
    keras.tree.assert_same_structure(batches[0][1], y)
    for i, whole in enumerate((x, y)):
        found = keras.tree.map_structure(
            lambda *parts: np.concatenate(parts), *(batch[i] for batch in batches)
        )
        for a, b in zip(keras.tree.flatten(found), keras.tree.flatten(whole), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.backends
@pytest.mark.parametrize(
    "convert",
    [np.asarray, ops.convert_to_tensor, tf.constant, pd.DataFrame],
    ids=["numpy", "keras", "tensorflow", "pandas"],
)
def test_tensors_and_frames_become_numpy_arrays(convert):
    x, _, _, count = next(iter(Batches(convert(X), batch_size=3)))
    assert (type(x), count) == (np.ndarray, 3)
    np.testing.assert_array_equal(x, X[:3])


@pytest.mark.backends
@pytest.mark.parametrize(
    ("given", "floatx", "received"),
    [
        ("float64", "float32", "float32"),
        ("float16", "float32", "float32"),
        ("float32", "float64", "float64"),
        ("int64", "float32", "int64"),
        ("uint8", "float32", "uint8"),
        ("bool", "float32", "bool"),
    ],
)
def test_floats_become_keras_float_type_and_the_rest_stays(given, floatx, received):
    keras.config.set_floatx(floatx)
    for data in (X.astype(given), tf.data.Dataset.from_tensors(X.astype(given))):
        assert next(iter(Batches(data)))[0].dtype == received


@pytest.mark.parametrize(
    ("x", "arrays"),
    [
        (X, True),
        ([X], True),
        ({"a": X}, True),
        (pd.DataFrame(X), True),
        (pd.Series(Y), True),
        (ops.ones(3), True),
        (InTwos(), False),
        (_tf_dataset(), False),
        (Again(), False),
        (None, False),
        (3, False),
    ],
    ids=lambda x: type(x).__name__,
)
def test_arrays_are_told_from_datasets(x, arrays):
    assert is_arrays(x) is arrays


# A part of the data.


def test_a_subsample_of_arrays_is_a_choice_without_repetition_in_order():
    x = np.arange(100)
    batches = Batches(x, 2 * x, 3 * x, batch_size=8).subsample(20, seed=1)
    assert batches.samples == 20
    found = list(batches)
    assert [count for *_, count in found] == [8, 8, 4]
    x, y, weight = (np.concatenate([batch[i] for batch in found]) for i in range(3))
    assert np.all(np.diff(x) > 0)
    np.testing.assert_array_equal(y, 2 * x)
    np.testing.assert_array_equal(weight, 3 * x)


def test_the_seed_makes_the_subsample():
    batches = Batches(np.arange(100))
    chosen = [next(iter(batches.subsample(20, seed=seed)))[0].tolist() for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert next(iter(batches.subsample(20)))[0].tolist() == chosen[0]


@pytest.mark.backends
@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("samples", [1, 2, 3, 4])
def test_a_subsample_of_a_dataset_is_its_beginning(dataset, samples):
    batches = Batches(dataset()).subsample(samples)
    *parts, counts = zip(*batches, strict=True)
    assert batches.samples == samples
    assert list(counts) == [2] * (samples // 2) + [1] * (samples % 2)  # in its own batches
    for received, whole in zip(parts, (X, Y, WEIGHT), strict=True):
        np.testing.assert_allclose(np.concatenate(received), whole[:samples], rtol=1e-6)


@pytest.mark.backends
@pytest.mark.parametrize("dataset", [lambda: (X, Y, WEIGHT), *DATASETS])
@pytest.mark.parametrize("samples", [None, 5, 6])
def test_a_subsample_of_everything_keeps_the_batches(dataset, samples):
    data = dataset()
    batches = Batches(*data, batch_size=2) if isinstance(data, tuple) else Batches(data)
    _assert_in_twos(batches.subsample(samples))


def test_a_subsample_of_structures_keeps_them():
    dataset = tf.data.Dataset.from_tensor_slices(({"a": X, "b": Y}, Y)).batch(2)
    (_, (x, y, weight, count)) = Batches(dataset).subsample(3)
    np.testing.assert_array_equal(x["a"], X[2:3])
    np.testing.assert_array_equal(x["b"], Y[2:3])
    np.testing.assert_array_equal(y, Y[2:3])
    assert (weight, count) == (None, 1)


# Refusals.


@pytest.mark.parametrize(
    "one_shot", [iter([X]), (x for x in [X]), map(len, [X])], ids=["list", "generator", "map"]
)
def test_what_can_be_read_once_only_is_refused(one_shot):
    assert _refusal(TypeError, Batches, one_shot) == (
        "Expected data that can be read more than once. Received: the one-shot iterator "
        f"{one_shot!r}. Pass arrays, a `tf.data.Dataset` or a `keras.utils.PyDataset` instead."
    )


@pytest.mark.parametrize(
    ("x", "received"),
    [(None, "None (of type <class 'NoneType'>)"), (3, "3 (of type <class 'int'>)")],
)
def test_what_fit_does_not_take_is_refused(x, received):
    assert _refusal(TypeError, Batches, x) == (
        "Expected `x` to be an array, a list or dict of arrays, a `tf.data.Dataset` or a "
        f"`keras.utils.PyDataset`. Received: x={received}"
    )


@pytest.mark.parametrize("name", ["y", "sample_weight"])
def test_targets_or_weights_beside_a_dataset_are_refused(name):
    dataset = _tf_dataset()
    assert _refusal(ValueError, Batches, dataset, **{name: Y}) == (
        "Expected `y` and `sample_weight` to be `None` beside a dataset, which gives them with "
        f"each batch. Received: x={dataset!r} and {name}=not None"
    )


@pytest.mark.parametrize(
    ("data", "received"),
    [
        ((X, Y[:4]), "x with 5 samples, y with 4 samples"),
        ((X, Y, Y[:3]), "x with 5 samples, sample_weight with 3 samples"),
        ((X[:4], Y, Y[:3]), "x with 4 samples, y with 5 samples, sample_weight with 3 samples"),
        (([X, Y[:4]],), "x with 5 samples, x with 4 samples"),
        ((X, {"a": Y[:4]}), "x with 5 samples, y with 4 samples"),
        (([], None), "no arrays"),
    ],
)
def test_different_lengths_are_refused(data, received):
    assert _refusal(ValueError, Batches, *data) == (
        "Expected `x`, `y` and `sample_weight` to have the same number of samples. "
        f"Received: {received}"
    )


def test_different_lengths_within_a_batch_are_refused():
    dataset = type("Odd", (), {"__iter__": lambda self: iter([(X, Y[:4])])})()
    assert _refusal(ValueError, list, Batches(dataset)) == (
        "Expected `x`, `y` and `sample_weight` to have the same number of samples. "
        "Received: x with 5 samples, y with 4 samples"
    )


@pytest.mark.parametrize("x", [X[:0], [X[:0]], {"a": X[:0]}], ids=["array", "list", "dict"])
def test_empty_arrays_are_refused(x):
    assert _refusal(ValueError, Batches, x) == (
        "Expected at least one sample. Received: x with 0 samples"
    )


@pytest.mark.parametrize("dataset", [_tf_dataset().take(0), _tf_dataset().skip(3)])
def test_empty_datasets_are_refused(dataset):
    assert _refusal(ValueError, list, Batches(dataset)) == (
        "Expected at least one batch of data. Received: a dataset that gave none. "
        "If it was read before, pass one that can be read again."
    )


@pytest.mark.parametrize(
    ("data", "name", "scalar"),
    [
        ((np.float32(3),), "x", "3.0"),
        ((X, 1), "y", "1"),
        ((X, Y, 0.5), "sample_weight", "0.5"),
        (([1.0, 2.0],), "x", "1.0"),
        ((X, [0, 1, 2, 3, 4]), "y", "0"),
    ],
)
def test_scalars_in_place_of_arrays_are_refused(data, name, scalar):
    assert _refusal(ValueError, Batches, *data) == (
        f"Expected `{name}` to hold arrays with a sample axis. "
        f"Received: a scalar in {name}, {scalar}"
    )


@pytest.mark.parametrize(
    ("value", "received"),
    [
        (0, "0 (of type <class 'int'>)"),
        (-3, "-3 (of type <class 'int'>)"),
        (1.5, "1.5 (of type <class 'float'>)"),
        (None, "None (of type <class 'NoneType'>)"),
    ],
)
def test_a_batch_size_that_is_no_positive_integer_is_refused(value, received):
    assert _refusal(ValueError, Batches, X, batch_size=value) == (
        f"Argument `batch_size` must be a positive integer. Received: batch_size={received}"
    )


@pytest.mark.parametrize("samples", [0, -1, 2.5])
def test_a_subsample_of_no_positive_integer_is_refused(samples):
    assert _refusal(ValueError, Batches(X).subsample, samples) == (
        "Argument `samples` must be a positive integer. "
        f"Received: samples={samples} (of type {type(samples)})"
    )
