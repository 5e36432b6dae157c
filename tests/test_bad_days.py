"""Fits that are interrupted, resumed, out of disk or beside another run: judged by plain Keras."""

import json
import subprocess
import sys
import warnings

import keras
import numpy as np
import pytest
from keras import layers

import keras_regtools as rt
from keras_regtools import callbacks

pytestmark = pytest.mark.backends
X = np.ones((16, 1), "float32")


class Slope(keras.losses.Loss):
    """The mean of the outputs: of w · 1 the gradient is 1, and a step moves w by the rate."""

    def call(self, y_true, y_pred):
        return y_pred


class Stop(keras.callbacks.Callback):
    """Ctrl-C at a batch of an epoch."""

    def __init__(self, epoch=0, batch=2):
        super().__init__()
        self.at, self.epoch = (epoch, batch), 0

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == self.at:
            raise KeyboardInterrupt


def model_of(rate=0.1, **arguments):
    model = keras.Sequential([keras.Input((1,)), layers.Dense(1, use_bias=False)])
    model.compile(keras.optimizers.SGD(rate, **arguments), Slope())
    return model


def weight(model):
    return float(model.get_weights()[0][0, 0])


def fit(model, *given, epochs=1, **arguments):
    return model.fit(
        X, X, batch_size=4, epochs=epochs, callbacks=list(given), verbose=0, **arguments
    ).history


def interrupted(model, *given, **arguments):
    with pytest.raises(KeyboardInterrupt):
        fit(model, *given, Stop(), epochs=9, **arguments)


# Interrupted fits: the callbacks are still held by variables, as in a notebook.


def test_the_fit_after_an_interrupted_one_is_trained_at_the_users_rate():
    model = model_of()
    scaling = callbacks.LinearScalingLR(4, 1)
    interrupted(model, scaling)
    model.optimizer.learning_rate = 0.001
    before = weight(model)
    fit(model)
    assert weight(model) - before == pytest.approx(-4 * 0.001, rel=1e-3)


def test_a_schedule_is_given_back_to_the_fit_after_an_interrupted_one():
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([1000], [0.1, 0.1])
    model = model_of(schedule)
    scaling = callbacks.LinearScalingLR(4, 1, warmup_steps=0)
    interrupted(model, scaling)
    before = weight(model)
    fit(model)
    assert weight(model) - before == pytest.approx(-0.4, rel=1e-4)


def test_nothing_stays_in_an_optimizer_once_another_fit_has_begun():
    model = model_of()
    kept = [callbacks.LinearScalingLR(4, 1), callbacks.GradientMonitor(every=1)]
    interrupted(model, *kept)
    fit(model)
    assert "apply" not in vars(model.optimizer)
    assert "make_train_function" not in vars(model)


def test_a_monitor_goes_on_in_the_fit_after_an_interrupted_one():
    model, monitor = model_of(), callbacks.GradientMonitor(every=1)
    interrupted(model, monitor)
    assert fit(model, monitor)["gradients/norm"] == pytest.approx([1.0], rel=1e-5)


def test_train_on_batch_after_an_interrupted_fit_is_plain():
    model, scaling = model_of(), callbacks.LinearScalingLR(4, 1)
    interrupted(model, scaling)
    model.optimizer.learning_rate = 0.01
    before = weight(model)
    model.train_on_batch(X, X)
    assert weight(model) - before == pytest.approx(-0.01, rel=1e-3)


# Going on in another process, for which a file stands here.


def saved(tmp_path, epochs, *given):
    model = model_of()
    fit(model, *given, epochs=epochs)
    model.save(tmp_path / "model.keras")
    return keras.saving.load_model(tmp_path / "model.keras", custom_objects={"Slope": Slope})


def scaling():
    return callbacks.LinearScalingLR(4, 1, warmup_epochs=2)


def test_a_model_from_a_file_is_not_scaled_twice(tmp_path):
    whole = fit(model_of(), scaling(), epochs=6)["learning_rate"]
    model = saved(tmp_path, 3, scaling())
    with pytest.warns(UserWarning, match="is taken for one that was scaled before, from 0.1"):
        rest = fit(model, scaling(), epochs=6, initial_epoch=3)["learning_rate"]
    assert rest == pytest.approx(whole[3:], rel=1e-5)


@pytest.mark.filterwarnings("ignore:A warm-up of")
def test_a_warm_up_goes_on_where_the_file_was_saved(tmp_path):
    whole = fit(model_of(), scaling(), epochs=4)["learning_rate"]
    model = saved(tmp_path, 1, scaling())
    with pytest.warns(UserWarning, match="from 0.1"):
        rest = fit(model, scaling(), epochs=4, initial_epoch=1)["learning_rate"]
    assert rest == pytest.approx(whole[1:], rel=1e-5)


def test_a_base_rate_that_is_given_is_believed(tmp_path):
    model = saved(tmp_path, 3, scaling())
    given = callbacks.LinearScalingLR(4, 1, 0.1, warmup_epochs=2)
    rest = fit(model, given, epochs=6, initial_epoch=3)["learning_rate"]
    assert rest == pytest.approx([0.4] * 3, rel=1e-5)


@pytest.mark.slow
def test_a_report_keeps_what_callbacks_must_know(tmp_path):
    def given():
        return [
            rt.callbacks.Report(tmp_path / "run"),
            scaling(),
            callbacks.WeightTrajectory(),
            callbacks.Measure({"w": lambda surface: float(surface.value())}, X, X, every=2),
        ]

    whole = model_of()
    whole.set_weights([np.ones((1, 1))])
    trajectory = callbacks.WeightTrajectory()
    measure = callbacks.Measure({"w": lambda surface: float(surface.value())}, X, X, every=2)
    fit(whole, scaling(), trajectory, measure, epochs=6)

    model = model_of()
    model.set_weights([np.ones((1, 1))])
    with pytest.raises(KeyboardInterrupt):
        fit(model, *given(), Stop(epoch=3, batch=0), epochs=6)
    # As a backup of the end of the third epoch would restore it.
    model = model_of()
    model.set_weights([np.ones((1, 1))])
    fit(model, scaling(), epochs=3)
    model.save(tmp_path / "model.keras")
    model = keras.saving.load_model(tmp_path / "model.keras", custom_objects={"Slope": Slope})
    resumed = given()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # nothing has to be guessed
        fit(model, *resumed, epochs=6, initial_epoch=3)
    assert weight(model) == pytest.approx(weight(whole), rel=1e-5)
    found = rt.records.read(tmp_path / "run" / "records.jsonl")
    for name in ("weights/distance", "w", "learning_rate"):
        epochs, values = found.series(name)
        expected = trajectory.records.series(name)
        assert epochs == expected[0]
        assert values == pytest.approx(expected[1], rel=1e-4)


def test_a_distance_from_an_unknown_beginning_is_said(tmp_path):
    model = saved(tmp_path, 2)
    with pytest.warns(UserWarning, match="weights with which this run began are not known"):
        fit(model, callbacks.WeightTrajectory(), epochs=3, initial_epoch=2)


# Files.


def test_a_path_that_cannot_be_a_directory_is_refused_at_once(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="Expected a directory that can be written to, or made"):
        callbacks.Report(tmp_path / "file" / "run")


def test_a_directory_that_goes_during_the_fit_is_warned_of_once(tmp_path):
    def remove(epoch, logs):
        if epoch == 0:
            for path in (tmp_path / "run").iterdir():
                path.unlink()
            (tmp_path / "run").rmdir()

    gone = keras.callbacks.LambdaCallback(on_epoch_end=remove)
    report = callbacks.Report(tmp_path / "run")
    with pytest.warns(UserWarning, match="is not whole; training goes on") as caught:
        history = fit(model_of(), report, gone, epochs=4)
    assert len([w for w in caught if "is not whole" in str(w.message)]) == 1
    assert len(history["loss"]) == 4


def test_a_full_disk_is_warned_of_once_and_made_up_for_at_the_end(tmp_path, monkeypatch):
    report, full = callbacks.Report(tmp_path / "run"), [True]
    append = report.files.append

    def failing(rows):
        if full[0]:
            raise OSError(28, "No space left on device")
        append(rows)

    monkeypatch.setattr(report.files, "append", failing)
    with pytest.warns(UserWarning, match="No space left on device"):
        history = fit(model_of(), report, epochs=3)
    read = rt.records.read(tmp_path / "run" / "records.jsonl")
    assert read.series("loss")[1] == history["loss"]


def test_garbage_under_the_name_of_the_records_is_kept_aside(tmp_path):
    (tmp_path / "records.jsonl").write_text("a diary\nof mine\n")
    with pytest.warns(UserWarning, match="It is kept aside"):
        fit(model_of(), callbacks.Report(tmp_path))
    assert (tmp_path / "records.1.jsonl").read_text() == "a diary\nof mine\n"
    assert rt.records.read(tmp_path / "records.jsonl").series("loss")[0] == [0]


def test_the_users_own_files_stay(tmp_path):
    for name in ("loss.png", "report.html", "sharpness.png"):
        (tmp_path / name).write_text("mine")
    report = callbacks.Report(tmp_path)
    fit(model_of(), report)
    assert report.page.path.name == "report_1.html"
    for name in ("loss.png", "report.html", "sharpness.png"):
        assert (tmp_path / name).read_text() == "mine"
    rt.report.write(tmp_path)  # again: what is ours is written over
    assert not (tmp_path / "report_2.html").exists()
    assert not (tmp_path / "loss_2.png").exists()


def test_two_reports_of_one_fit_are_both_whole(tmp_path):
    history = fit(
        model_of(), callbacks.Report(tmp_path / "a"), callbacks.Report(tmp_path / "b"), epochs=2
    )
    for name in ("a", "b"):
        records = rt.records.read(tmp_path / name / "records.jsonl")
        assert records.series("loss")[1] == history["loss"]
        assert (tmp_path / name / "report.html").exists()
    rows = [row for row in records.rows if row.name == "loss"]
    assert len(rows) == 2


def test_a_directory_that_another_process_writes_to_is_refused(tmp_path):
    code = (
        "import fcntl, os, time\n"
        f"place = os.open({str(tmp_path)!r}, os.O_RDONLY)\n"
        "fcntl.flock(place, fcntl.LOCK_EX)\n"
        "print('locked', flush=True)\n"
        "time.sleep(60)\n"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline() == b"locked\n"
        model = model_of()
        with pytest.raises(RuntimeError, match="which a run of another process is writing to"):
            fit(model, callbacks.Report(tmp_path))
    finally:
        other.kill()
        other.communicate()
    fit(model, callbacks.Report(tmp_path))  # the lock died with its process


def test_an_interrupted_run_does_not_lock_its_directory(tmp_path):
    kept = callbacks.Report(tmp_path)
    interrupted(model_of(), kept)
    fit(model_of(), callbacks.Report(tmp_path))


@pytest.mark.parametrize(
    ("content", "epochs"),
    [
        ('{"epoch": 0, "step": 4, "name": "loss", "value": 1.0}\n{"epoch": 1, "st', [0]),
        ('{"epoch": 0, "step": 4, "name": "loss", "value": 1.0}\n\x00\x00\x00', [0]),
        ('{"epo', []),
    ],
)
def test_a_torn_line_is_survived(tmp_path, content, epochs):
    (tmp_path / "records.jsonl").write_text(content)
    assert rt.records.read(tmp_path / "records.jsonl").series("loss")[0] == epochs


@pytest.mark.parametrize("content", ["a diary", '{"epoch": 0}\n{"epoch": 1', "[1, 2]\n", "\x80"])
def test_records_of_something_else_are_one_sentence(tmp_path, content):
    (tmp_path / "records.jsonl").write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match="Expected one record a line in"):
        rt.records.read(tmp_path / "records.jsonl")


@pytest.mark.parametrize("content", ["{", "[]", "3"])
def test_settings_of_something_else_are_one_sentence(tmp_path, content):
    row = {"epoch": 0, "step": 1, "name": "loss", "value": 1.0}
    (tmp_path / "records.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(ValueError, match="Expected the settings of a run in"):
        rt.report.write(tmp_path)


# Keys that come late, or are no numbers.


def test_validation_every_second_epoch_is_recorded_as_the_history_has_it(tmp_path):
    model = keras.Sequential(
        [keras.Input((1,)), layers.Dense(1, kernel_regularizer=rt.regularizers.L2(0.1))]
    )
    model.compile(keras.optimizers.SGD(0.1), "mse")
    arguments = {"validation_data": (2 * X, X), "validation_freq": 2}
    history = fit(model, callbacks.Report(tmp_path), epochs=4, **arguments)
    records = rt.records.read(tmp_path / "records.jsonl")
    assert records.series("val_loss") == ([1, 3], history["val_loss"])
    assert records.series("loss")[1] == history["loss"]
    penalty = records.series("penalty")[1]
    assert records.series("val_data_loss")[0] == [1, 3]
    expected = [v - penalty[e] for v, e in zip(history["val_loss"], (1, 3), strict=True)]
    assert records.series("val_data_loss")[1] == pytest.approx(expected, abs=1e-6)
    assert records.series("data_loss")[0] == [0, 1, 2, 3]


def test_strings_and_nothing_in_the_logs_are_left_out(tmp_path):
    class Odd(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs |= {"text": "a", "nothing": None, "late": 1.0} if epoch else {"text": "b"}

    fit(model_of(), Odd(), callbacks.Report(tmp_path), epochs=2)
    records = rt.records.read(tmp_path / "records.jsonl")
    assert records.series("late") == ([1], [1.0])
    assert not {"text", "nothing"} & set(records.names())


def test_a_schedule_without_a_configuration_does_not_end_the_fit(tmp_path):
    class Schedule(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step):
            return 0.1

    fit(model_of(Schedule()), callbacks.Report(tmp_path))
    assert rt.records.read(tmp_path / "records.jsonl").series("loss")[0] == [0]


def test_statistics_after_a_fit_with_a_monitor_are_those_of_the_last_reading(tmp_path):
    relu = layers.Activation("relu", name="relu")
    model = keras.Sequential([keras.Input((2,)), relu, layers.Dense(2)])
    model = rt.instrument(model, record_every=1)
    model.compile("sgd", "mse")
    x = np.arange(16, dtype="float32").reshape(8, 2)
    model.fit(x, x, batch_size=4, verbose=0, callbacks=[callbacks.Report(tmp_path)])
    statistics = model.get_layer("relu_statistics").statistics()
    assert statistics["steps"] == 2
    np.testing.assert_allclose(statistics["mean"], x.mean(0), rtol=1e-6)
