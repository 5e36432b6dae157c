"""`ActivationMonitor` from fit to TensorBoard, and `instrument` with layers that are named."""

import copy

import keras
import numpy as np
import pytest
from keras import layers, ops
from problems import rows

import keras_regtools as rt
from keras_regtools.backend._tensorflow_summaries import EventFile
from keras_regtools.callbacks import ActivationMonitor
from keras_regtools.layers import ActivationStatistics, InstrumentedBatchNormalization

pytestmark = pytest.mark.backends
BACKEND = keras.backend.backend()
X = np.random.default_rng(0).normal(size=(20, 3)).astype("float32")
Y = X[:, :1] ** 2


def _model(**options):
    """Recorders alone: what they receive is the data."""
    own = {"record_every": 1, **options}
    return keras.Sequential(
        [keras.Input((3,)), ActivationStatistics(name="here", **own), layers.Dense(1, name="end")]
    )


def _fit(model, monitor, epochs=2, x=X, **compile_options):
    more = {"jit_compile": False, **compile_options}
    model.compile(keras.optimizers.SGD(0.01), "mse", **more)
    return model.fit(
        x, Y, batch_size=4, epochs=epochs, shuffle=False, verbose=0, callbacks=[monitor]
    )


# The monitor.


def test_each_epoch_is_read_and_has_the_same_keys():
    monitor = ActivationMonitor(per_channel=True)
    history = _fit(_model(), monitor, epochs=3).history
    found = {name: values for name, values in history.items() if name.startswith("activations/")}
    assert set(found) == {"activations/constant_share", "activations/dead_share"}
    assert all(len(values) == 3 for values in found.values())
    assert all(type(v) is float for values in found.values() for v in values)
    epochs, values = monitor.records.series("channels/here/percentile_50")
    assert epochs == [0, 1, 2]
    np.testing.assert_array_equal(values, [values[0]] * 3)
    np.testing.assert_allclose(values[0], np.median(X, axis=0), atol=0.1)
    assert monitor.records.last("activations/here/maximum") == pytest.approx(X.max())
    drifts = monitor.records.series("activations/here/percentile_drift")
    assert drifts == ([1, 2], [0.0, 0.0])


def test_a_quantity_that_is_not_recorded_is_in_no_log():
    history = _fit(_model(record=["mean", "percentiles"]), ActivationMonitor()).history
    assert [name for name in history if "/" in name] == []


# Keras has no steps_per_execution on PyTorch.
@pytest.mark.parametrize("per_execution", [1] if BACKEND == "torch" else rows([1, 2], 2))
def test_every_few_steps_are_read_with_what_came_since(per_execution):
    monitor = ActivationMonitor(every_steps=3, per_channel=True)
    _fit(_model(), monitor, epochs=2, steps_per_execution=per_execution)
    steps, means = monitor.records.series("channels/here/mean", by="step")
    # Steps 3 and 6 and 9 of ten, and the end of each epoch, or the ends of the executions.
    ends = [3, 5, 6, 9, 10] if per_execution == 1 else [4, 5, 7, 9, 10]
    seen = np.concatenate([X, X])
    begins = [0, *ends[:-1]]
    expected = [seen[4 * a : 4 * b].mean(0) for a, b in zip(begins, ends, strict=True)]
    assert steps == ends
    np.testing.assert_allclose(means, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("value", [0, -1, 2.5])
def test_every_steps_must_be_a_positive_integer(value):
    with pytest.raises(ValueError) as error:
        ActivationMonitor(every_steps=value)
    assert str(error.value) == (
        "Argument `every_steps` must be a positive integer. "
        f"Received: every_steps={value} (of type {type(value)})"
    )


@pytest.mark.parametrize("channels", rows([None, [1, 2]], [1, 2]))
def test_nan_is_warned_of_once_with_layer_channel_and_step(channels):
    x = X.copy()
    x[9, 1] = np.nan  # in step 2
    x[12, 2] = np.nan
    number = 3 if channels is None else 2
    with pytest.warns(UserWarning) as caught:
        _fit(_model(record_channels=channels), ActivationMonitor(), x=x, epochs=2)
    messages = [str(w.message) for w in caught if "NaN" in str(w.message)]
    assert messages == [
        f"NaN or infinity flowed through the layer 'here': 2 of {number} channels, "
        "first in channel 1 at its training step 2; training goes on."
    ]


def _histograms(path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util import tensor_util

    events = EventAccumulator(str(path), size_guidance={"tensors": 0})
    events.Reload()
    (tag,) = events.Tags()["tensors"]
    plugin = events.SummaryMetadata(tag).plugin_data.plugin_name
    found = [(e.step, tensor_util.make_ndarray(e.tensor_proto)) for e in events.Tensors(tag)]
    return tag, plugin, found


@pytest.mark.parametrize("every", rows([None, 3], 3))
def test_tensorboard_gets_a_histogram_of_each_reading(every, tmp_path):
    monitor = ActivationMonitor(tensorboard=tmp_path, every_steps=every)
    _fit(_model(), monitor, epochs=2)
    tag, plugin, found = _histograms(tmp_path)
    assert (tag, plugin) == ("activations/here", "histograms")
    steps, buckets = zip(*found, strict=True)
    assert list(steps) == ([0, 1] if every is None else [3, 5, 6, 9, 10])
    assert {b.shape for b in buckets} == {(30, 3)}
    totals = [b[:, 2].sum() for b in buckets]
    samples = [20, 20] if every is None else [12, 8, 4, 12, 4]
    assert totals == pytest.approx([3 * n for n in samples])
    if every is None:
        left, right, counts = buckets[0].T
        assert (left[0], right[-1]) == pytest.approx((X.min(), X.max()))
        np.testing.assert_allclose(left[1:], right[:-1], rtol=1e-6)
        below = np.array([(edge > X).sum() for edge in right[:-1]])
        np.testing.assert_allclose(np.cumsum(counts)[:-1], below, atol=4)


def test_tensorboard_gets_channels_that_stand_still_and_nothing(tmp_path):
    model = _model()
    x = np.ones_like(X)
    x[:, 1] = np.nan
    with pytest.warns(UserWarning, match="NaN or infinity"):
        _fit(model, ActivationMonitor(tensorboard=tmp_path), x=x, epochs=1)
    _, _, ((step, buckets),) = _histograms(tmp_path)
    assert (step, buckets[:, 2].sum()) == (0, 40)
    writer = EventFile(tmp_path / "other")
    writer.histogram("nothing", np.zeros((0, 3)), 7)
    writer.close()
    assert _histograms(tmp_path / "other")[2][0][1].shape == (0, 3)


def test_a_copy_of_a_monitor_reads_on_its_own(tmp_path):
    monitor = ActivationMonitor(tensorboard=tmp_path, every_steps=2, per_channel=True)
    _fit(_model(), monitor, epochs=1)
    twin = copy.deepcopy(monitor)
    assert (twin.tensorboard, twin.every_steps, twin.per_channel) == (str(tmp_path), 2, True)
    twin.tensorboard = None
    history = _fit(_model(), twin, epochs=1).history
    assert "activations/constant_share" in history
    assert len(_histograms(tmp_path)[2]) == 3


# Layers that are named.


def _plain():
    inputs = keras.Input((3,), name="image")
    x = layers.Dense(4, "tanh", name="first")(inputs)
    x = layers.Dense(4, name="second")(x)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.ReLU(name="relu")(x)
    return keras.Model(inputs, layers.Dense(2, "softmax", name="output")(x), name="net")


def _kinds(model):
    ours = (ActivationStatistics, InstrumentedBatchNormalization)
    return {x.name: x for x in model.layers if isinstance(x, ours)}


def test_a_list_of_names_records_what_these_layers_give():
    plain = _plain()
    model = rt.instrument(plain, ["first", "norm", "relu"], record_every=1)
    found = _kinds(model)
    assert list(found) == ["first_statistics", "norm", "relu_statistics"]
    sides = [(getattr(x, "before", None), getattr(x, "after", None)) for x in found.values()]
    assert sides == [(None, "tanh"), ("relu", None), (None, "relu")]
    np.testing.assert_array_equal(ops.convert_to_numpy(model(X)), ops.convert_to_numpy(plain(X)))
    stripped = rt.strip(model)
    assert [type(x).__name__ for x in stripped.layers] == [type(x).__name__ for x in plain.layers]
    for a, b in zip(stripped.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    model(X, training=True)
    first = np.tanh(X @ plain.get_layer("first").get_weights()[0])
    np.testing.assert_allclose(
        found["first_statistics"].statistics()["mean"], first.mean(0), rtol=1e-3, atol=1e-5
    )


def test_batch_normalization_goes_between_a_layer_and_its_fused_activation():
    plain = _plain()
    model = rt.instrument(
        plain, {"first": "batch_normalization", "second": "statistics"}, record_every=1
    )
    names = [x.name for x in model.layers[1:]]
    assert names[:5] == [
        "first", "first_batch_norm", "first_activation", "second", "second_statistics"
    ]  # fmt: skip
    norm = model.get_layer("first_batch_norm")
    assert (norm.before, norm.get_config()["record_every"]) == ("tanh", 1)
    assert model.get_layer("second_statistics").after is None
    assert type(model.get_layer("norm")) is keras.layers.BatchNormalization
    kernel, bias = plain.get_layer("first").get_weights()
    np.testing.assert_array_equal(model.get_layer("first").get_weights()[0], kernel)
    # A new normalization has seen nothing: but for epsilon the function stays.
    hidden = np.tanh((X @ kernel + bias) / np.sqrt(1.001))
    inner = keras.Model(model.inputs[0], model.get_layer("first_activation").output)
    np.testing.assert_allclose(ops.convert_to_numpy(inner(X)), hidden, rtol=1e-4, atol=1e-5)
    stripped = rt.strip(model)
    assert _kinds(stripped) == {}
    np.testing.assert_allclose(
        ops.convert_to_numpy(stripped(X)), ops.convert_to_numpy(model(X)), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("kind", ["statistics", "batch_normalization"])
@pytest.mark.parametrize("activation", rows(["softmax", None], "softmax"))
def test_an_output_keeps_the_name_that_a_loss_asks_for(kind, activation):
    inputs = keras.Input((3,))
    plain = keras.Model(inputs, layers.Dense(2, activation, name="output")(inputs))
    plain.compile("sgd", {"output": "categorical_crossentropy"})
    model = rt.instrument(plain, {"output": kind})
    assert model.output_names == ["output"]
    model.fit(X, np.eye(2)[np.arange(20) % 2], verbose=0)
    stripped = rt.strip(model)
    assert stripped.output_names == ["output"]
    if kind == "statistics":
        assert [x.name for x in stripped.layers[1:]] == ["output"]


_NAMES = "Argument `layers` must be `None`, a list of layer names or a dict from names to "
_NAMES += "'statistics' or 'batch_normalization'. Received: layers="


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ([], _NAMES + "[]"),
        ({}, _NAMES + "{}"),
        ("first", _NAMES + "'first'"),
        (5, _NAMES + "5"),
        ([["first"]], _NAMES + "[['first']]"),
        (
            ["first", "frist"],
            "Expected `layers` to name layers of the model 'net', which are "
            "['first', 'second', 'norm', 'relu', 'output']. Received: ['frist']",
        ),
    ],
    ids=str,
)
def test_layers_that_are_not_there_are_refused(chosen, message):
    with pytest.raises(ValueError) as error:
        rt.instrument(_plain(), chosen)
    assert str(error.value) == message


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="^Argument `layers` must be one of .*'bn'$"):
        rt.instrument(_plain(), {"first": "bn"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"percentiles": (0,)},
            "Argument `percentiles` must be increasing numbers between 0 and 100, both excluded. "
            "Received: percentiles=(0,)",
        ),
        (
            {"record_every": 0},
            "Argument `record_every` must be a positive integer. "
            "Received: record_every=0 (of type <class 'int'>)",
        ),
    ],
    ids=str,
)
def test_options_that_are_no_good_are_refused(options, message):
    with pytest.raises(ValueError) as error:
        rt.instrument(_plain(), **options)
    assert str(error.value) == message


def test_activations_are_known_on_both_sides_when_everything_is_recorded():
    found = _kinds(rt.instrument(_plain()))
    sides = {name: x.before for name, x in found.items()}
    assert sides == {"first_statistics": "tanh", "norm": "relu", "output_statistics": "softmax"}
