"""`distribution_shift` against numpy, and on data whose shift is known."""

import math

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_regtools as rt
from keras_regtools.measures import distribution_shift

RNG = np.random.default_rng(0)
OLD = RNG.standard_normal((40, 3)).astype("float32")


def chain():
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(4, "relu", name="first"),
            layers.BatchNormalization(name="norm"),
            layers.Dense(2, name="second"),
        ]
    )


@pytest.fixture(scope="module")
def model():
    return chain()


def inputs_of(model, x):
    """What comes into each layer with weights."""
    first, norm, second = model.layers
    hidden = ops.convert_to_numpy(first(x))
    return {"first": x, "norm": hidden, "second": ops.convert_to_numpy(norm(hidden))}


@pytest.mark.backends
def test_drift_and_spread_are_those_of_the_inputs_of_each_layer(model):
    new = (1.5 * OLD[:30] + 0.4).astype("float32")
    found = distribution_shift(model, OLD, new)
    before, after = inputs_of(model, OLD), inputs_of(model, new)
    assert found.layers == ("first", "norm", "second")
    for i, name in enumerate(found.layers):
        a, b = before[name].astype("float64"), after[name].astype("float64")
        moved = np.sum((b.mean(0) - a.mean(0)) ** 2)
        assert found.drifts[i] == pytest.approx(np.sqrt(moved / a.var(0).sum()), rel=1e-4)
        spread = np.sqrt(b.var(0).sum() / a.var(0).sum())
        assert found.spreads[i] == pytest.approx(spread, rel=1e-4)
    assert found.value == max(found.drifts)
    assert (found.samples, found.new_samples) == (40, 30)
    assert found.scalars()["norm/drift"] == found.drifts[1]


def test_batches_and_datasets_give_the_same(model):
    class Batched(keras.utils.PyDataset):
        def __len__(self):
            return 3

        def __getitem__(self, i):
            part = OLD[16 * i : 16 * i + 16] + 1
            return part, np.zeros(len(part))

    whole = distribution_shift(model, OLD, OLD + 1)
    for found in (
        distribution_shift(model, OLD, OLD + 1, batch_size=7),
        distribution_shift(model, OLD, Batched()),
    ):
        np.testing.assert_allclose(found.drifts, whole.drifts, rtol=1e-4)
        np.testing.assert_allclose(found.spreads, whole.spreads, rtol=1e-4)
        assert found.new_samples == 40


@pytest.mark.parametrize(
    ("new", "verdict", "begins_at"),
    [
        (OLD, "stable", None),
        (OLD + 0.1, "stable", None),
        (OLD + 1, "shifted", "first"),
        (3 * (OLD - OLD.mean(0)) + OLD.mean(0), "shifted", "first"),  # the spread alone
    ],
)
def test_the_verdict(model, new, verdict, begins_at):
    found = distribution_shift(model, OLD, new)
    assert (found.verdict, found.begins_at) == (verdict, begins_at)


def test_a_shift_that_the_first_layer_does_not_see_begins_later():
    # The second channel moves by little, and the first layer looks at nothing else.
    model = keras.Sequential(
        [
            keras.Input((2,)),
            layers.Dense(1, use_bias=False, name="first"),
            layers.Dense(1, name="second"),
        ]
    )
    model.layers[0].set_weights([np.array([[0.0], [1.0]])])
    x = np.array([[-10, -0.1], [10, 0.1]], "float32")
    found = distribution_shift(model, x, x + np.array([0, 0.3], "float32"))
    assert found.begins_at == "second"
    np.testing.assert_allclose(found.drifts, [0.03, 3.0], rtol=1e-3)


@pytest.mark.backends
def test_recalibrating_on_the_new_data_takes_the_shift_out_behind_the_normalization():
    model = rt.recalibrate(chain(), OLD)
    new = (2 * OLD + 1).astype("float32")
    before = distribution_shift(model, OLD, new)
    assert before.drifts[2] > 0.5
    there = rt.recalibrate(chain(), new)
    a, b = (inputs_of(m, x)["second"] for m, x in ((model, OLD), (there, new)))
    assert np.linalg.norm(a.mean(0) - b.mean(0)) < 1e-3 * np.sqrt(a.var(0).sum())


@pytest.mark.backends
def test_images_are_compared_by_channel_also_where_they_come_first():
    x = RNG.standard_normal((12, 4, 4, 2)).astype("float32")
    new = x + np.array([0.0, 2.0], "float32")
    model = keras.Sequential([keras.Input((4, 4, 2)), layers.Conv2D(2, 3, name="conv")])
    expected = 2 / np.sqrt(x.var(axis=(0, 1, 2)).sum())
    assert distribution_shift(model, x, new).drifts[0] == pytest.approx(expected, rel=1e-4)
    if keras.backend.backend() != "tensorflow":  # whose convolutions on a CPU want channels last
        first = keras.Sequential(
            [keras.Input((2, 4, 4)), layers.Conv2D(2, 3, data_format="channels_first")]
        )
        a, b = (np.moveaxis(part, -1, 1) for part in (x, new))
        assert distribution_shift(first, a, b).drifts[0] == pytest.approx(expected, rel=1e-4)


def test_data_that_never_vary_and_move_are_infinitely_far(model):
    one = np.ones((8, 3), "float32")
    assert distribution_shift(model, one, 2 * one).drifts[0] == math.inf
    same = distribution_shift(model, one, one)
    assert same.verdict == "stable"
    np.testing.assert_array_equal(same.drifts, 0)
    np.testing.assert_array_equal(same.spreads, 1)


def test_nan_is_no_stable_data(model):
    found = distribution_shift(model, OLD, np.full((4, 3), np.nan))
    assert (found.verdict, found.begins_at) == ("shifted", "first")


def test_an_instrumented_model_gives_the_same_and_records_nothing():
    model = rt.instrument(chain())
    found = distribution_shift(model, OLD, OLD + 1)
    plain = distribution_shift(chain(), OLD, OLD + 1)
    np.testing.assert_allclose(found.value, plain.value, rtol=1e-5)
    with pytest.raises(ValueError):
        model.get_layer("norm").statistics()


def test_bad_input(model):
    with pytest.raises(ValueError) as caught:
        distribution_shift(model, OLD, OLD, threshold=0)
    assert str(caught.value) == (
        "Argument `threshold` must be a positive finite number. "
        "Received: threshold=0 (of type <class 'int'>)"
    )
    empty = keras.Sequential([keras.Input((3,)), layers.ReLU()], name="empty")
    with pytest.raises(ValueError) as caught:
        distribution_shift(empty, OLD, OLD)
    assert str(caught.value) == (
        "Expected a model with layers that hold weights. "
        "Received: the model 'empty', which has none"
    )
    with pytest.raises(TypeError, match=r"^Expected data that can be read more than once"):
        distribution_shift(model, OLD, iter([OLD]))
