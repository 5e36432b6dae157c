"""`GrowingBatches`: sizes, orders and updates, in fits of every kind."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_regtools as rt

pytestmark = pytest.mark.backends
TORCH = keras.backend.backend() == "torch"
X = np.arange(20, dtype="float32")[:, None]


def model_of(optimizer="sgd", **settings):
    """The loss of a batch is the mean of w + x, whose gradient is 1: SGD counts the updates."""
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    model.compile(optimizer, "mse", **settings)
    return model


class Seen(keras.callbacks.Callback):
    def __init__(self, batches):
        super().__init__()
        self.batches, self.sizes, self.steps = batches, [], []

    def on_epoch_begin(self, epoch, logs=None):
        self.steps.append(0)

    def on_train_batch_end(self, batch, logs=None):
        self.steps[-1] = batch + 1

    def on_epoch_end(self, epoch, logs=None):
        self.sizes.append(self.batches.batch_size)


SCHEDULES = {
    "function": lambda epoch: 4 * 2**epoch,
    "list": [4, 8, 16],
    "dict": {0: 4, 1: 8, 2: 16},
}


@pytest.mark.parametrize("steps", [1] if TORCH else [1, 2])
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_batch_grows_and_the_updates_become_fewer(name, steps):
    batches = rt.GrowingBatches(X, X[:, 0], SCHEDULES[name])
    model, seen = model_of(steps_per_execution=steps), Seen(batches)
    model.fit(batches, epochs=3, verbose=0, callbacks=[seen], shuffle=False)
    assert seen.sizes == [4, 8, 16]
    assert int(ops.convert_to_numpy(model.optimizer.iterations)) == 5 + 3 + 2
    if steps == 1:
        assert seen.steps == [5, 3, 2]


def test_a_batch_may_become_smaller_again():
    batches = rt.GrowingBatches(X, X[:, 0], [10, 2, 5])
    model, seen = model_of(), Seen(batches)
    model.fit(batches, epochs=4, verbose=0, callbacks=[seen], shuffle=False)
    assert seen.steps == [2, 10, 4, 4]


def test_each_epoch_has_every_sample_once_in_an_order_of_its_own():
    batches, orders = rt.GrowingBatches(X, X[:, 0], [3, 7], seed=5), []
    for epoch in range(2):
        batches._begin(epoch)
        parts = [batches[i] for i in range(len(batches))]
        assert [len(x) for x, _ in parts][:-1] == [(3, 7)[epoch]] * (len(parts) - 1)
        for x, y in parts:
            np.testing.assert_array_equal(x[:, 0], y)
        orders.append(np.concatenate([y for _, y in parts]))
        assert sorted(orders[-1]) == list(range(20))
    assert orders[0].tolist() != orders[1].tolist()
    again = rt.GrowingBatches(X, X[:, 0], [3, 7], seed=5)
    again._begin(1)
    assert np.concatenate([again[i][1] for i in range(len(again))]).tolist() == orders[1].tolist()
    fixed = rt.GrowingBatches(X, X[:, 0], [20], shuffle=False)
    assert fixed[0][1].tolist() == list(range(20))


def test_one_size_is_a_plain_fit_in_that_order():
    batches = rt.GrowingBatches(X, X[:, 0], [5], shuffle=False)
    a, b = model_of(keras.optimizers.SGD(1e-3)), model_of(keras.optimizers.SGD(1e-3))
    b.set_weights(a.get_weights())
    a.fit(batches, epochs=2, verbose=0, shuffle=False)
    b.fit(X, X[:, 0], batch_size=5, epochs=2, verbose=0, shuffle=False)
    np.testing.assert_array_equal(a.get_weights()[0], b.get_weights()[0])


def test_structures_weights_and_validation():
    inputs = {"a": keras.Input((1,), name="a"), "b": keras.Input((1,), name="b")}
    sum_of = keras.layers.Add()([keras.layers.Dense(1)(v) for v in inputs.values()])
    model = keras.Model(inputs, sum_of)
    model.compile("sgd", "mse")
    batches = rt.GrowingBatches({"a": X, "b": X}, X[:, 0], [5, 10], np.ones(20))
    seen = Seen(batches)
    history = model.fit(
        batches, epochs=2, verbose=0, callbacks=[seen], shuffle=False,
        validation_data=rt.GrowingBatches({"a": X, "b": X}, X[:, 0], [7]),
    ).history  # fmt: skip
    assert seen.steps == [4, 2]
    assert len(history["val_loss"]) == 2
    assert batches[0][2].shape == (10,)


def test_a_run_that_goes_on_has_the_size_of_its_epoch(tmp_path):
    class Cut(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    def fit(model, *callbacks):
        batches = rt.GrowingBatches(X / 20, X[:, 0], [2, 4, 10])
        seen = Seen(batches)
        backup = keras.callbacks.BackupAndRestore(tmp_path / "b", double_checkpoint=True)
        model.fit(batches, epochs=4, verbose=0, shuffle=False, callbacks=[backup, seen, *callbacks])
        return seen

    keras.utils.set_random_seed(0)
    whole = model_of()
    start = whole.get_weights()
    batches = rt.GrowingBatches(X / 20, X[:, 0], [2, 4, 10])
    whole.fit(batches, epochs=4, verbose=0, shuffle=False)
    first = model_of()
    first.set_weights(start)
    with pytest.raises(KeyboardInterrupt):
        fit(first, Cut())
    again = model_of()
    seen = fit(again)
    assert seen.steps == [2, 2]
    np.testing.assert_array_equal(again.get_weights()[0], whole.get_weights()[0])
    later = model_of()
    batches = rt.GrowingBatches(X / 20, X[:, 0], [2, 4, 10])
    seen = Seen(batches)
    later.fit(batches, initial_epoch=1, epochs=3, verbose=0, callbacks=[seen], shuffle=False)
    assert seen.sizes == [4, 10]
    assert seen.steps == [5, 2]


def test_what_was_done_is_recorded(tmp_path):
    batches = rt.GrowingBatches(X, X[:, 0], [10, 2, 5])
    model, ends = model_of(keras.optimizers.SGD(0.25)), []
    report = rt.callbacks.Report(tmp_path)
    watch = rt.callbacks.BatchSize(batches, logs=["batch/size"])

    class Told(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            ends.append(logs["batch/size"])

    history = model.fit(
        batches, epochs=3, verbose=0, shuffle=False, callbacks=[watch, report, Told()]
    ).history
    assert ends == history["batch/size"] == [10, 2, 5]
    assert history["batch/samples"] == [20, 40, 60]
    assert history["batch/updates"] == [2, 12, 16]
    records = watch.records
    assert records.series("batch/updates")[1] == [2, 12, 16]
    # At the end of each epoch, whatever number of batches the first one had.
    assert records.series("batch/updates", by="step")[0] == [2, 12, 16]
    assert set(records.series("learning_rate")[1]) == {0.25}
    with pytest.raises(ValueError, match="`batches` must be `GrowingBatches`"):
        rt.callbacks.BatchSize(X)


def test_more_than_there_is_becomes_one_batch_with_a_warning():
    batches = rt.GrowingBatches(X, X[:, 0], lambda epoch: 16 * (epoch + 1))
    model, seen = model_of(), Seen(batches)
    with pytest.warns(UserWarning, match="The schedule gives 32 for epoch 1, and there are 20"):
        model.fit(batches, epochs=3, verbose=0, callbacks=[seen], shuffle=False)
    assert seen.sizes == [16, 20, 20]


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (
            (X, X[:, 0], [5, 40]),
            ValueError,
            "Expected batch sizes up to 20, the number of samples. Received: 40",
        ),
        (
            (X, X[:5, 0], [5]),
            ValueError,
            "Expected arrays of one length above zero. Received: the lengths [5, 20]",
        ),
        (
            (X, X[:, 0], {1: 5}),
            ValueError,
            "Expected `schedule` to be a function of the epoch, a list of batch sizes or a dict "
            "from epochs to sizes that has the epoch 0. Received: schedule={1: 5}",
        ),
        (
            (X, X[:, 0], [0]),
            ValueError,
            "Argument `schedule` must be a positive integer. Received: schedule=0 (of type "
            "<class 'int'>)",
        ),
        (
            (X, None, [5], np.ones(20)),
            ValueError,
            "Expected `y` beside `sample_weight`. Received: y=None",
        ),
    ],
)
def test_what_it_cannot_take_is_told(arguments, kind, message):
    with pytest.raises(kind) as error:
        rt.GrowingBatches(*arguments)
    assert str(error.value) == message


def test_data_of_unknown_length_are_refused():
    with pytest.raises(TypeError, match="Expected arrays, as the length of the epochs follows"):
        rt.GrowingBatches((x for x in X), None, [4])
