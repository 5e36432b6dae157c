"""What the recorders hold of a channel: numpy over all entries at once, and closed forms."""

import math
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import ops

from keras_regtools.layers import (
    ActivationStatistics,
    InstrumentedBatchNormalization,
    addition,
)
from keras_regtools.layers.statistics import of_layer

pytestmark = pytest.mark.backends
BACKEND = keras.backend.backend()
# Both hold one and the same recorder: on the other backends one of them does.
LAYERS = [InstrumentedBatchNormalization, ActivationStatistics]
LAYERS = LAYERS if BACKEND == "tensorflow" else LAYERS[:1]
MOMENTS = ["mean", "variance", "skewness", "kurtosis", "minimum", "maximum"]
RNG = np.random.default_rng


def _numpy(x):
    """Of a matrix, entries by channels, in double precision."""
    x = np.asarray(x, "float64").reshape(-1, np.shape(x)[-1])
    mean, std = x.mean(0), x.std(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        z = (x - mean) / std
    return {
        "mean": mean,
        "variance": std**2,
        "skewness": (z**3).mean(0),
        "kurtosis": (z**4).mean(0) - 3,
        "minimum": x.min(0),
        "maximum": x.max(0),
    }


def _recorded(batches, layer=None, **call):
    layer = layer or ActivationStatistics(record_every=1)
    for batch in batches:
        layer(ops.convert_to_tensor(batch), training=True, **call)
    return layer.statistics()


def _flat(batches):
    return np.concatenate([np.reshape(b, (-1, np.shape(b)[-1])) for b in batches])


def _assert_moments(statistics, entries, rtol=1e-4, atol=1e-5):
    for name, expected in _numpy(entries).items():
        np.testing.assert_allclose(statistics[name], expected, rtol=rtol, atol=atol, err_msg=name)


def _assert_percentiles(statistics, batches, shares=(15, 50, 85), sampled=0.0):
    """Within the error that `statistics` promises; `sampled` is an error of the rank besides."""
    entries, first = _flat(batches).astype("float64"), _flat(batches[:1]).astype("float64")
    mean, variance = first.mean(0), first.var(0)
    for p in shares:
        found = statistics[f"percentile_{p:g}"].astype("float64")
        for c in range(entries.shape[1]):
            ranks = (p / 100 - sampled, p / 100 + sampled)
            low, high = np.quantile(entries[:, c], np.clip(ranks, 0, 1), method="inverted_cdf")
            # The rank between two entries may be given to either.
            ordered = np.sort(entries[:, c])
            low = ordered[max(np.searchsorted(ordered, low, "left") - 1, 0)]
            high = ordered[min(np.searchsorted(ordered, high, "right"), len(ordered) - 1)]
            width = max(math.sqrt(variance[c] + (x - mean[c]) ** 2) / 15 for x in (low, high))
            assert low - width <= found[c] <= high + width, (p, c, low, found[c], high, width)


# Moments.


@pytest.mark.parametrize("layer_class", LAYERS)
def test_moments_of_ragged_batches_are_those_of_all_entries(layer_class):
    batches = [RNG(n).exponential([1, 30], (n, 3, 2)).astype("float32") for n in (7, 5, 1)]
    statistics = _recorded(batches, layer_class(record_every=1))
    _assert_moments(statistics, _flat(batches))
    assert statistics["steps"] == 3


@pytest.mark.parametrize("layer_class", LAYERS)
def test_moments_of_masked_ragged_batches_are_those_of_what_counts(layer_class):
    batches = [RNG(n).exponential(1, (n, 3, 2)).astype("float32") for n in (7, 5, 2)]
    masks = [RNG(n).random((n, 3)) < 0.6 for n in (7, 5, 2)]
    layer = layer_class(record_every=1)
    for batch, mask in zip(batches, masks, strict=True):
        layer(batch, training=True, mask=mask)
    counted = np.concatenate([b[m] for b, m in zip(batches, masks, strict=True)])
    _assert_moments(layer.statistics(), counted)


@pytest.mark.parametrize(
    ("centre", "spread", "dtype", "rtol"),
    [
        (1e4, 1, "float32", 5e-3),  # a mean is known to 1e-3 here
        (0, 1e-12, "float32", 1e-4),
        (0, 1e10, "float32", 1e-4),
        (0, 1e18, "float32", 1e-4),
        (0, 2e4, "float16", 1e-4),
    ],
)
def test_moments_are_right_where_numbers_are_hard(centre, spread, dtype, rtol):
    batches = [np.clip(RNG(n).normal(size=(n, 2)), -3, 3) * spread + centre for n in (7, 5, 1, 64)]
    batches = [batch.astype(dtype) for batch in batches]
    assert np.isfinite(_flat(batches)).all()
    statistics = _recorded(batches, ActivationStatistics(record_every=1, dtype=dtype))
    expected = _numpy(_flat(batches))
    units = {"mean": spread, "variance": spread**2, "minimum": spread, "maximum": spread}
    for name in MOMENTS:
        unit = units.get(name, 1.0)
        received = statistics[name].astype("float64") / unit
        np.testing.assert_allclose(received, expected[name] / unit, rtol, rtol, err_msg=name)
    _assert_percentiles(statistics, batches)


def test_half_precision_up_to_its_end_is_recorded_by_batch_normalization():
    batches = [RNG(n).uniform(-6e4, 6e4, (n, 2)).astype("float16") for n in (7, 5, 1)]
    layer = InstrumentedBatchNormalization(record_every=1, dtype="mixed_float16")
    _assert_moments(_recorded(batches, layer), _flat(batches))


@pytest.mark.parametrize("value", [0.0, 0.1, -5.1, 1e4])
def test_a_channel_that_stands_still_has_no_shape_and_its_value_as_percentiles(value):
    batches = [np.full((n, 1), value, "float32") for n in (64, 7, 1)]
    layer = ActivationStatistics(record_every=1)
    _recorded(batches, layer)
    layer.reset_statistics()
    statistics = _recorded(batches[1:], layer)
    assert np.isnan([statistics["skewness"], statistics["kurtosis"]]).all()
    for name in ("mean", "minimum", "maximum", "percentile_15", "percentile_85"):
        assert statistics[name].item() == pytest.approx(value, rel=1e-6)
    # Rounding is no drift.
    assert statistics["mean_drift"].item() == statistics["percentile_drift"].item() == 0


# Percentiles.


def _image_of_stripes(r):
    """64 by 64, twice: each row, and each column, has one value, over and over with period 4."""
    rows = np.tile(np.arange(64.0)[:, None] % 4, (1, 64))
    return np.stack([rows, rows.T, (rows + 2 * rows.T)], -1)[None].repeat(2, 0)


_DISTRIBUTIONS = {
    "normal": lambda r: r.normal(5, 2, (400, 2)),
    "exponential": lambda r: r.exponential([1, 100], (400, 2)),
    "bimodal": lambda r: r.normal(10 * r.integers(0, 2, (400, 2)), 0.1),
    "uniform": lambda r: r.uniform(0, [1, 1e-3], (400, 2)),
    "rectified": lambda r: np.maximum(r.normal([-1, 1], 1, (400, 2)), 0),
    "Cauchy": lambda r: r.standard_cauchy((400, 2)),
    "few": lambda r: r.normal(0, 1, (3, 2)),
}


@pytest.mark.parametrize("name", list(_DISTRIBUTIONS))
def test_percentiles_are_within_the_error_that_is_promised(name):
    shares = (1, 15, 50, 85, 99.5)
    r = RNG(1)
    batches = [_DISTRIBUTIONS[name](r).astype("float32") for _ in range(3)]
    layer = ActivationStatistics(record_every=1, percentiles=shares)
    _assert_percentiles(_recorded(batches, layer), batches, shares)


@pytest.mark.parametrize("change", ["moves", "shrinks", "grows"])
def test_percentiles_of_a_distribution_that_changes_are_within_the_error(change):
    centre = {"moves": [0, 5, 10]}.get(change, [0, 0, 0])
    spread = {"shrinks": [1, 0.1, 0.01], "grows": [1, 5, 20]}.get(change, [1, 1, 1])
    r = RNG(2)
    batches = [
        r.normal(c, s, (400, 2)).astype("float32") for c, s in zip(centre, spread, strict=True)
    ]
    _assert_percentiles(_recorded(batches), batches)


@pytest.mark.parametrize("value", [0.0, 0.1])
@pytest.mark.parametrize("first", ["constant", "one sample", "masked"])
def test_percentiles_do_not_hang_on_a_first_step_without_spread(first, value):
    """Its width tells no scale: that of the first step that has one is taken."""
    moving = [RNG(n).normal(value + 0.1, 1e-2, (400, 1, 2)).astype("float32") for n in range(2)]
    still = np.full((1 if first == "one sample" else 200, 1, 2), value, "float32")
    layer = ActivationStatistics(record_every=1)
    if first == "masked":
        layer(still + 1000, training=True, mask=np.zeros((200, 1), "bool"))
        counted = moving
    else:
        layer(still, training=True)
        layer(still, training=True)
        counted = [*moving, still, still]
    statistics = _recorded(moving, layer)
    assert len(layer.distributions()) == 2
    assert layer.distributions()[0].total == len(_flat(counted))
    _assert_percentiles(statistics, counted)


@pytest.mark.parametrize("shape", [(5000, 2), (3, 40, 41, 2)])
def test_percentiles_of_more_entries_than_are_sampled(shape):
    batches = [RNG(n).normal(3, 1, shape).astype("float32") for n in range(2)]
    layer = ActivationStatistics(record_every=1)
    statistics = _recorded(batches, layer)
    assert layer.distributions()[0].total == pytest.approx(len(_flat(batches)))
    _assert_percentiles(statistics, batches, sampled=3 * 0.011 / 2**0.5)


@pytest.mark.parametrize("axis", [-1, 1])
def test_stripes_of_an_image_are_sampled_evenly(axis):
    image = _image_of_stripes(None).astype("float32")
    layer = ActivationStatistics(axis=axis, record_every=1)
    layer(np.moveaxis(image, -1, axis), training=True)
    for c, distribution in enumerate(layer.distributions()):
        for value in np.unique(image[..., c]):
            share = np.mean(image[..., c] < value - 0.5)
            found = distribution.below(np.array([value - 0.5])).item() / distribution.total
            assert found == pytest.approx(share, abs=0.02)


def test_masked_entries_are_in_no_percentile():
    batch = RNG(0).normal(size=(64, 4, 2)).astype("float32")
    mask = RNG(1).random((64, 4)) < 0.5
    counted = batch[mask]
    batch[~mask] = np.nan
    layer = ActivationStatistics(record_every=1)
    layer(batch, training=True, mask=mask)
    _assert_percentiles(layer.statistics(), [counted])
    assert layer.distributions()[0].total == len(counted)


# Zeros, dead channels, saturation.


_ACTIVATIONS = ["tanh", "sigmoid", "hard_sigmoid", "hard_tanh", "softsign"]


@pytest.mark.parametrize("name", _ACTIVATIONS)
def test_units_beyond_95_percent_of_the_range_are_saturated_at_input_and_output(name):
    activation = keras.activations.get(name)
    x = np.linspace(-30, 30, 6001).astype("float32")[:, None]
    y = ops.convert_to_numpy(activation(x))
    low, high = (0, 1) if "sigmoid" in name else (-1, 1)
    margin = (high - low) * 0.025
    expected = np.mean((y < low + margin) | (y > high - margin))
    before, after = (ActivationStatistics(**{side: name}) for side in ("before", "after"))
    shares = [
        _recorded([t], layer)["saturated_share"].item() for t, layer in ((x, before), (y, after))
    ]
    assert shares == pytest.approx([expected, expected], abs=2.1 / 6001)
    assert 0.01 < expected < 0.99
    assert "dead" not in before.statistics()


def test_batch_normalization_before_an_activation_judges_what_it_gives():
    x = RNG(0).normal(50, 1, (64, 3)).astype("float32")
    layer = InstrumentedBatchNormalization(
        before="relu",
        beta_initializer=lambda shape, dtype: ops.convert_to_tensor([0.0, -9.0, 9.0], dtype),
    )
    y = ops.convert_to_numpy(layer(x, training=True))
    statistics = layer.statistics()
    np.testing.assert_allclose(statistics["zero_share"], (y <= 0).mean(0), rtol=1e-6)
    np.testing.assert_array_equal(statistics["dead"], [0, 1, 0])
    np.testing.assert_array_equal(statistics["minimum"], x.min(0))
    np.testing.assert_allclose(statistics["mean_distance"], 50 / np.sqrt(1.001), rtol=0.02)
    bounded = InstrumentedBatchNormalization(before="tanh")
    y = np.tanh(ops.convert_to_numpy(bounded(x, training=True)))
    np.testing.assert_allclose(
        bounded.statistics()["saturated_share"], (np.abs(y) > 0.95).mean(0), rtol=1e-5
    )


@pytest.mark.parametrize(
    ("options", "zeros", "dead", "absolute"),
    [
        ({}, [0, 0.5, 1, 0], [1, 0, 1, 0], [1.5, 2.5, 0, 2]),
        ({"before": "relu"}, [1, 0.5, 1, 0.5], [1, 0, 1, 0], [0, 2.5, 0, 1]),
        ({"after": "relu"}, [0, 0.5, 1, 0], [1, 0, 1, 0], [1.5, 2.5, 0, 2]),
        ({"before": "gelu"}, [0, 0.5, 1, 0], None, [1.5, 2.5, 0, 2]),
    ],
)
def test_zeros_and_dead_channels_are_those_of_the_activation(options, zeros, dead, absolute):
    x = np.array([[-1.0, 0.0, 0.0, -2.0], [-2.0, 5.0, 0.0, 2.0]])
    statistics = _recorded([x], ActivationStatistics(**options))
    np.testing.assert_array_equal(statistics["zero_share"], zeros)
    np.testing.assert_array_equal(statistics["absolute_mean"], absolute)
    layer = of_layer(statistics)
    assert layer["active_units"] == 4 - sum(zeros)
    assert layer["absolute_sum"] == sum(absolute)
    if dead is None:
        assert "dead" not in statistics
    else:
        np.testing.assert_array_equal(statistics["dead"], dead)


# What is recorded, how often, of which channels.


@pytest.mark.parametrize("layer_class", LAYERS)
def test_every_seventeenth_step_is_recorded(layer_class):
    batches = [np.full((2, 1), step, "float32") for step in range(36)]
    layer = layer_class(record_every=17, record=["maximum", "mean"])
    statistics = _recorded(batches, layer)
    assert statistics["maximum"].item() == 34
    moments = range(36) if layer_class is InstrumentedBatchNormalization else (0, 17, 34)
    assert statistics["mean"].item() == pytest.approx(np.mean(moments))
    assert list(statistics) == [
        "steps", "mean", "maximum", "nan_steps", "nan_count", "first_nan_step"
    ]  # fmt: skip


@pytest.mark.parametrize("layer_class", LAYERS)
@pytest.mark.parametrize("axis", [-1, 1])
def test_only_the_channels_that_are_named_are_recorded(layer_class, axis):
    batch = RNG(0).normal(size=(4, 3, 3)).astype("float32")
    every = layer_class(axis=axis)
    some = layer_class(axis=axis, record_channels=[2, 0])
    mask = RNG(1).random((4, 3)) < 0.8 if axis == -1 else None
    every, some = (_recorded([batch], layer, mask=mask) for layer in (every, some))
    assert list(some) == list(every)
    for name in set(every) - {"steps"}:
        np.testing.assert_allclose(some[name], every[name][[2, 0]], rtol=1e-6, err_msg=name)


def test_nothing_is_recorded_but_the_steps_where_nothing_is_wanted():
    statistics = _recorded([np.ones((2, 3))], ActivationStatistics(record=[], percentiles=()))
    assert list(statistics) == ["steps", "nan_steps", "nan_count", "first_nan_step"]


def test_drift_is_in_standard_deviations_of_the_last_reading():
    one, other = RNG(0).normal([0, 7], [1, 2], (512, 2)), RNG(1).normal([3, 7], [5, 2], (512, 2))
    layer = ActivationStatistics(record_every=1)
    first = _recorded([one], layer)
    assert "mean_drift" not in first
    layer.reset_statistics()
    layer.reset_statistics()  # a reset without a step between forgets nothing
    second = _recorded([other], layer)
    std = one.std(0)
    np.testing.assert_allclose(
        second["mean_drift"], np.abs(other.mean(0) - one.mean(0)) / std, rtol=1e-4
    )
    names = [f"percentile_{p}" for p in (15, 50, 85)]
    gaps = [np.abs(second[name] - first[name]) / std for name in names]
    np.testing.assert_allclose(second["percentile_drift"], np.mean(gaps, axis=0), rtol=1e-4)


def test_gamma_and_beta_are_those_of_now():
    layer = InstrumentedBatchNormalization(record_channels=[1])
    layer(np.ones((2, 2)), training=True)
    layer.gamma.assign([1.0, -3.0])
    layer.beta.assign([1.0, -2.0])
    statistics = layer.statistics()
    assert (statistics["abs_gamma"].tolist(), statistics["beta"].tolist()) == ([3], [-2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"percentiles": (0, 50)},
            "Argument `percentiles` must be increasing numbers between 0 and 100, both excluded. "
            "Received: percentiles=(0, 50)",
        ),
        (
            {"percentiles": (50, 100)},
            "Argument `percentiles` must be increasing numbers between 0 and 100, both excluded. "
            "Received: percentiles=(50, 100)",
        ),
        (
            {"percentiles": (50, 15)},
            "Argument `percentiles` must be increasing numbers between 0 and 100, both excluded. "
            "Received: percentiles=(50, 15)",
        ),
        (
            {"percentiles": "15"},
            "Argument `percentiles` must be increasing numbers between 0 and 100, both excluded. "
            "Received: percentiles='15'",
        ),
        (
            {"percentiles": 50},
            "Argument `percentiles` must be increasing numbers between 0 and 100, both excluded. "
            "Received: percentiles=50",
        ),
        (
            {"record": "mean"},
            "Argument `record` must be a list of names or `None`. Received: record='mean'",
        ),
        (
            {"record_channels": [0, 0]},
            "Argument `record_channels` must be `None` or different indices of channels, 0 or "
            "above. Received: record_channels=[0, 0]",
        ),
        (
            {"record_channels": [-1]},
            "Argument `record_channels` must be `None` or different indices of channels, 0 or "
            "above. Received: record_channels=[-1]",
        ),
        (
            {"record_channels": 1},
            "Argument `record_channels` must be `None` or different indices of channels, 0 or "
            "above. Received: record_channels=1",
        ),
        (
            {"before": 3},
            "Argument `before` must be the name of an activation, such as 'relu', or `None`. "
            "Received: before=3",
        ),
        (
            {"before": "relu", "after": "tanh"},
            "Expected one of `before` and `after`. Received: before='relu', after='tanh'",
        ),
    ],
    ids=str,
)
def test_arguments_that_are_no_good_are_refused(arguments, message):
    with pytest.raises(ValueError) as error:
        ActivationStatistics(**arguments)
    assert str(error.value) == message


@pytest.mark.parametrize("layer_class", LAYERS)
def test_unknown_quantities_and_channels_are_refused(layer_class):
    with pytest.raises(ValueError, match="^Argument `record` must be one of .*'mode'$"):
        layer_class(record=["mode"])
    with pytest.raises(ValueError) as error:
        layer_class(record_channels=[0, 3]).build((None, 3))
    assert str(error.value) == (
        "Expected `record_channels` to be below 3, the number of channels. "
        "Received: record_channels=[0, 3]"
    )


# NaN and infinity.


@pytest.mark.parametrize("layer_class", LAYERS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_counted_and_located(layer_class, bad):
    batches = [RNG(n).normal(size=(8, 3)).astype("float32") for n in range(6)]
    layer = layer_class(record_every=1)
    _recorded(batches[:2], layer)
    layer.reset_statistics()
    batches[3][2:4, 1] = bad
    batches[4][0, 1] = bad
    statistics = _recorded(batches[2:], layer)
    np.testing.assert_array_equal(statistics["nan_steps"], [0, 2, 0])
    np.testing.assert_array_equal(statistics["nan_count"], [0, 3, 0])
    np.testing.assert_array_equal(statistics["first_nan_step"], [-1, 3, -1])
    sound = [batch[:, [0, 2]] for batch in batches[2:]]
    others = {name: value[[0, 2]] for name, value in statistics.items() if name != "steps"}
    _assert_moments(others, _flat(sound))
    _assert_percentiles(others, sound)
    assert np.isnan(statistics["percentile_50"][1])


@pytest.mark.parametrize("masked", [False, True])
def test_activations_that_are_nan_between_two_sampled_steps_are_counted_and_located(masked):
    batches = [RNG(n).normal(size=(8, 3)).astype("float32") for n in range(6)]
    batches[3][2:4, 1] = np.nan
    layer = ActivationStatistics(record_every=5)
    mask = np.arange(8) != 3
    for batch in batches:
        layer(batch, training=True, mask=mask if masked else None)
    statistics = layer.statistics()
    assert statistics["nan_steps"].tolist() == [0, 1, 0]
    assert statistics["nan_count"].tolist() == [0, 2 - masked, 0]
    assert statistics["first_nan_step"].tolist() == [-1, 3, -1]
    kept = [batches[i][mask] if masked else batches[i] for i in (0, 3, 5)]
    others = {name: value[[0, 2]] for name, value in statistics.items() if name != "steps"}
    _assert_moments(others, _flat([batch[:, [0, 2]] for batch in kept]))


def test_nan_in_the_first_step_leaves_the_others_their_percentiles():
    batches = [RNG(n).normal(0, 1e-3, size=(64, 2)).astype("float32") for n in range(3)]
    batches[0][:, 0] = np.nan
    statistics = _recorded(batches)
    others = {name: value[1:] for name, value in statistics.items() if name != "steps"}
    _assert_percentiles(others, [batch[:, 1:] for batch in batches])
    assert statistics["first_nan_step"].tolist() == [0, -1]


def test_a_nan_that_is_masked_does_not_count():
    batch = RNG(0).normal(size=(4, 3, 2)).astype("float32")
    batch[1, 2, 0] = np.nan
    mask = np.ones((4, 3), "bool")
    mask[1, 2] = False
    layer = ActivationStatistics(record_every=1)
    layer(batch, training=True, mask=mask)
    statistics = layer.statistics()
    _assert_moments(statistics, batch[mask])
    assert statistics["nan_steps"].tolist() == statistics["nan_count"].tolist() == [0, 0]


@pytest.mark.parametrize("layer_class", LAYERS)
def test_a_step_in_which_nothing_counts_is_none(layer_class):
    batch = RNG(0).normal(5, 1, (4, 3, 2)).astype("float32")
    nothing = np.zeros((4, 3), "bool")
    layer = layer_class(record_every=1, trainable=False)
    layer(batch, training=True, mask=nothing)
    alone = layer.statistics()
    assert alone["steps"] == 1
    for name in ("mean", "batch_mean", "minimum", "dead", "zero_share", "percentile_50"):
        assert np.isnan(alone[name]).all()
    layer(batch, training=True)
    layer(batch, training=True, mask=nothing)
    statistics, plain = layer.statistics(), _recorded([batch], layer_class(record_every=1))
    for name in set(plain) - {"steps"}:
        np.testing.assert_allclose(statistics[name], plain[name], rtol=1e-5, err_msg=name)


# Replicas; functional calls.


_REPLICAS = """
import sys
import numpy as np
import tensorflow as tf
import keras
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from keras_regtools.layers import (
    ActivationStatistics,
    InstrumentedBatchNormalization,
    addition,
)
x = np.load(sys.argv[1])
found = {}
with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
    model = keras.Sequential([
        keras.Input((3,)),
        ActivationStatistics(record_every=1, name="identity"),
        InstrumentedBatchNormalization(record_every=1, name="norm"),
        InstrumentedBatchNormalization(record_every=3, synchronized=True, name="synchronized"),
        keras.layers.Dense(1),
    ])
    model.compile(keras.optimizers.SGD(0.0), "mse", jit_compile=False)
for samples in (64, 65):  # of the last batch of one sample, a replica gets none
    chosen = x[:samples]
    model.fit(chosen, chosen[:, :1], batch_size=16, verbose=0, shuffle=False)
    for layer in model.layers[:3]:
        for key, value in layer.statistics().items():
            found[f"{layer.name}/{samples}/{key}"] = value
        layer.reset_statistics()
    if samples == 64:
        assert model.layers[0].recorder.read() is None
np.savez(sys.argv[2], **found)
"""


@pytest.mark.slow
@pytest.mark.skipif(BACKEND != "tensorflow", reason="replicas are TensorFlow's here")
def test_replicas_record_each_sample_once(tmp_path):
    x = RNG(0).normal(3, [1, 2, 5], (65, 3)).astype("float32")
    x[:, 1] = np.exp(x[:, 1] / 3)
    np.save(tmp_path / "x.npy", x)
    script = [sys.executable, "-c", _REPLICAS, tmp_path / "x.npy", tmp_path / "found.npz"]
    root = pathlib.Path(__file__).parents[1]
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(script, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = dict(np.load(tmp_path / "found.npz"))
    for samples, layers in ((64, ("identity", "norm")), (65, ("identity",))):
        for layer in layers:
            prefix = f"{layer}/{samples}/"
            own = {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}
            _assert_moments(own, x[:samples])
            assert own["steps"] == math.ceil(samples / 16)
            assert own["nan_steps"].tolist() == [0, 0, 0]
            # A replica takes the scale of its own first entries.
            for p in (15, 50, 85):
                expected = np.percentile(x[:samples], p, axis=0)
                gap = np.abs(own[f"percentile_{p}"] - expected) / x.std(0)
                assert gap.max() < 0.15
    synchronized = {k.split("/")[2]: v for k, v in found.items() if k.startswith("sync")}
    assert synchronized["steps"] == 5
    # Of the whole batches, which the layer before has normalized on its replica.
    assert np.isfinite(synchronized["mean"]).all()


@pytest.mark.parametrize("layer_class", LAYERS)
def test_a_functional_call_in_training_records_in_what_it_returns(layer_class):
    x = RNG(0).normal(size=(8, 3)).astype("float32")
    layer, twin = layer_class(record_every=2), layer_class(record_every=2)
    for each in (layer, twin):
        each.build(x.shape)
    state = [ops.copy(v.value) for v in layer.non_trainable_variables]
    trainable = [v.value for v in layer.trainable_variables]

    def step(state, x):
        return layer.stateless_call(trainable, state, x, training=True)[1]

    if BACKEND == "tensorflow":
        import tensorflow as tf

        step = tf.function(step)
    for _ in range(3):
        state = step(state, x)
        twin(x, training=True)
    with pytest.raises(ValueError, match="at least one training step"):
        layer.statistics()
    for variable, value in zip(layer.non_trainable_variables, state, strict=True):
        variable.assign(value)
    expected, received = twin.statistics(), layer.statistics()
    assert received["steps"] == 3
    for name in expected:
        np.testing.assert_allclose(
            received[name], expected[name], rtol=1e-5, atol=1e-6, err_msg=name
        )


@pytest.mark.parametrize("layer_class", LAYERS)
def test_a_file_saved_inside_a_cycle_goes_on_as_if_nothing_were(layer_class, tmp_path):
    batches = [RNG(n).normal(n, 1, (8, 3)).astype("float32") for n in range(7)]
    model = keras.Sequential([keras.Input((3,)), layer_class(record_every=4, name="here")])
    for batch in batches[:3]:
        model(batch, training=True)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for batch in batches[3:]:
        model(batch, training=True)
        loaded(batch, training=True)
    expected, received = (m.get_layer("here").statistics() for m in (model, loaded))
    assert list(received) == list(expected)
    for name in expected:
        np.testing.assert_array_equal(received[name], expected[name], err_msg=name)


@pytest.mark.parametrize("layer_class", LAYERS)
def test_the_configuration_brings_all_arguments_back(layer_class):
    arguments = {
        "record": ["maximum", "percentiles"],
        "record_every": 3,
        "record_channels": [1, 0],
        "percentiles": [5.0, 99.9],
        "before": "tanh",
    }
    layer = layer_class(**arguments)
    twin = layer_class.from_config(layer.get_config())
    assert twin.get_config() == layer.get_config()
    assert {name: twin.get_config()[name] for name in arguments} == arguments
    statistics = _recorded([np.ones((4, 2))], twin)
    assert [n for n in statistics if "a" not in n] == ["steps", "percentile_5", "percentile_99.9"]


def test_a_sampled_step_weighs_as_many_entries_as_it_had():
    layer = ActivationStatistics(record_every=1, percentiles=(10, 30, 60))
    layer(np.zeros((8000, 1), "float32") + np.linspace(0, 1e-3, 8000)[:, None], training=True)
    layer(np.ones((2000, 1), "float32"), training=True)  # a fifth of all
    statistics = layer.statistics()
    assert statistics["percentile_10"][0] < 0.01
    assert statistics["percentile_60"][0] < 0.01
    assert sum(d.total for d in layer.distributions()) == pytest.approx(10000)


# What the activation behind the layer gets.


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "hard_tanh"])
@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scale": False},
        {"center": False},
        {"renorm": True},
        {"virtual_batch_size": 4},
        "frozen",
    ],
    ids=str,
)
def test_zeros_dead_channels_and_saturation_are_those_of_the_outputs(options, axis, activation):
    frozen = options == "frozen"
    layer = InstrumentedBatchNormalization(
        axis=axis, before=activation, record_every=1, **({} if frozen else options)
    )
    x = RNG(0).normal([0, 5, -2, 1], [1, 2, 3, 0.1], size=(10, 3, 5, 4)).astype("float32")
    x = np.moveaxis(x, -1, axis)
    layer.build(x.shape)
    if layer.gamma is not None:
        layer.gamma.assign([-1.0, 2.0, -3.0, 0.0])
    if layer.beta is not None:
        layer.beta.assign([0.5, -40.0, 0.0, 0.2])
    layer.moving_mean.assign([1.0, -2.0, 3.0, 0.0])
    layer.trainable = not frozen
    outputs = np.moveaxis(np.array(keras.ops.convert_to_numpy(layer(x, training=True))), axis, -1)
    outputs = outputs.reshape(-1, 4)
    found = layer.statistics()
    if activation == "relu":
        np.testing.assert_allclose(found["zero_share"], (outputs <= 0).mean(0), atol=1e-6)
        passed = np.maximum(outputs, 0).mean(0)
        np.testing.assert_allclose(found["absolute_mean"], passed, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(found["dead"], (outputs.max(0) <= 0).astype("float32"))
    else:
        bound = 0.95 if activation == "hard_tanh" else np.log(1.95 / 0.05)
        share = (np.abs(outputs) > bound).mean(0)
        np.testing.assert_allclose(found["saturated_share"], share, atol=1e-6)


def test_a_batch_that_is_masked_wholly_wakes_no_dead_channel():
    layer = InstrumentedBatchNormalization(before="relu", record_every=1)
    layer.build((None, 4, 2))
    layer.beta.assign([-40.0, 0.0])
    x = RNG(0).normal(size=(8, 4, 2)).astype("float32")
    layer(x, training=True)
    layer(x, training=True, mask=np.zeros((8, 4), bool))
    assert layer.statistics()["dead"].tolist() == [1, 0]


@pytest.mark.skipif(BACKEND != "tensorflow", reason="datasets of TensorFlow, read in its graph")
@pytest.mark.filterwarnings("ignore:Your input ran out of data")  # Keras' own, at each such end
@pytest.mark.parametrize("every", [1, 3, 4, 5, 10])
@pytest.mark.parametrize("layer_class", LAYERS)
def test_the_end_of_data_of_unknown_length_is_no_step(layer_class, every):
    """The step that finds no more data is run as far as it does not need them."""
    import tensorflow as tf

    x = RNG(1).normal(size=(40, 3)).astype("float32") + np.arange(40)[:, None].astype("float32")
    batches = [x[i : i + 4] for i in range(0, 40, 4)]
    data = tf.data.Dataset.from_tensor_slices((x, x[:, :1])).batch(4).filter(lambda a, b: True)
    layer = layer_class(record_every=every)
    model = keras.Sequential([keras.Input((3,)), layer, keras.layers.Dense(1)])
    model.compile("sgd", "mse", run_eagerly=False)
    model.fit(data, epochs=2, shuffle=False, verbose=0)
    found, steps = layer.statistics(), batches * 2
    assert found["steps"] == 20
    sampled = np.concatenate(steps[::every])
    np.testing.assert_allclose(found["minimum"], sampled.min(0), rtol=1e-5)
    known = steps if layer_class is InstrumentedBatchNormalization else steps[::every]
    np.testing.assert_allclose(found["mean"], np.concatenate(known).mean(0), rtol=1e-4)
    np.testing.assert_allclose(
        found["batch_mean"], np.mean([b.mean(0) for b in known], axis=0), rtol=1e-4
    )


@pytest.mark.skipif(BACKEND != "tensorflow", reason="the others trace with the step")
@pytest.mark.parametrize("private_name", [True, False])
def test_layers_alike_are_traced_once(private_name, monkeypatch):
    from keras_regtools.backend import _tensorflow_steps

    if not private_name:  # of TensorFlow, which may go
        monkeypatch.setattr(_tensorflow_steps, "GraphOrParentsInXlaContext", None)
    traced = []
    own = addition.Addition.__call__

    def noted(self, kept, given):
        traced.append(self)
        return own(self, kept, given)

    monkeypatch.setattr(addition.Addition, "__call__", noted)
    chain = [keras.Input((8, 8, 1))]
    for width in (2, 3, 4):
        chain.append(keras.layers.Conv2D(width, 2))
        chain.append(InstrumentedBatchNormalization(percentiles=(11, 51), epsilon=0.0123))
    chain += [keras.layers.Flatten(), keras.layers.Dense(5)]
    chain.append(InstrumentedBatchNormalization(percentiles=(11, 51), epsilon=0.0123))
    model = keras.Sequential(chain)
    model.compile("sgd", "mse", jit_compile=False)
    x = RNG(2).normal(size=(4, 8, 8, 1)).astype("float32")
    model.fit(x, np.zeros((4, 5), "float32"), batch_size=2, verbose=0)
    assert len(traced) == 1
    assert all(layer.statistics()["steps"] == 2 for layer in model.layers[1::2][:3])
