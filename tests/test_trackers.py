"""What records hold goes to TensorBoard, to MLflow and to a writer of one's own."""

import copy
import io
import math

import keras
import numpy as np
import pytest

import keras_regtools as rt
from keras_regtools import records, trackers

X = np.random.default_rng(0).normal(size=(24, 4)).astype("float32")
Y = np.arange(24) % 3


class Noting:
    """A writer that keeps what it gets."""

    def __init__(self):
        self.got = []

    def begin(self, run):
        self.got.append(("begin", run))

    def write(self, rows):
        self.got.append(("write", rows))

    def picture(self, name, png, step):
        self.got.append(("picture", name, png, step))

    def end(self):
        self.got.append(("end",))

    def rows(self):
        return [row for kind, *rest in self.got if kind == "write" for row in rest[0]]


def compiled():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "softmax")], name="small")
    model = rt.instrument(model)
    model.compile(keras.optimizers.SGD(0.25), "sparse_categorical_crossentropy")
    return model


def fit(directory, *writers, model=None, **options):
    report = rt.callbacks.Report(directory, settings={"batch size": 8}, writers=list(writers))
    options = {"epochs": 2, "validation_data": (X, Y), **options}
    (model or compiled()).fit(X, Y, batch_size=8, callbacks=[report], verbose=0, **options)
    return report


def test_a_writer_gets_the_settings_all_records_and_the_pictures(tmp_path):
    writer = Noting()
    report = fit(tmp_path, writer)
    assert [kind for kind, *_ in (writer.got[0], writer.got[-1])] == ["begin", "end"]
    assert writer.got[0][1]["settings"] == {"batch size": 8}
    assert writer.rows() == report.records.rows
    names = {row.name for row in writer.rows()}
    assert names >= {"loss", "val_loss", "learning_rate"}
    assert any(name.startswith("activations/") for name in names)
    pictures = {part[1]: part[2:] for part in writer.got if part[0] == "picture"}
    assert set(pictures) >= {"loss", "learning_rate", "activation_ranges"}
    assert all(png[:4] == b"\x89PNG" and step == 6 for png, step in pictures.values())


def test_a_writer_needs_no_more_than_write(tmp_path):
    class Least:
        def write(self, rows):
            found.extend(rows)

    found = []
    report = fit(tmp_path, Least())
    assert found == report.records.rows


def test_a_run_that_goes_on_writes_what_is_new(tmp_path):
    writer, model = Noting(), compiled()
    fit(tmp_path, writer, model=model)
    first = len(writer.rows())
    fit(tmp_path, writer, model=model, initial_epoch=2, epochs=3)
    assert {row.epoch for row in writer.rows()[:first]} == {0, 1}
    assert {row.epoch for row in writer.rows()[first:]} == {2}


@pytest.mark.parametrize("method", ["begin", "write", "picture", "end"])
def test_a_writer_that_fails_ends_no_training_and_no_other_writer(method, tmp_path):
    def fail(*args):
        raise OSError("the disk is full")

    broken, other = Noting(), Noting()
    setattr(broken, method, fail)
    with pytest.warns(UserWarning, match=r"gets no more of this fit.*the disk is full") as warned:
        report = fit(tmp_path, broken, other)
    assert len([w for w in warned if "gets no more" in str(w.message)]) == 1
    assert other.rows() == report.records.rows
    assert other.got[-1] == ("end",)
    assert report.page is not None
    assert report.records.series("loss")[0] == [0, 1]


def test_a_copy_of_the_report_writes_to_the_same_writers(tmp_path):
    writer = Noting()
    report = rt.callbacks.Report(tmp_path, writers=[writer])
    twin = copy.deepcopy(report)
    compiled().fit(X, Y, epochs=1, callbacks=[twin], verbose=0)
    assert writer.rows() == twin.records.rows


@pytest.mark.parametrize(
    ("writers", "message"),
    [
        (Noting(), "Argument `writers` must be a list"),
        ([3], "Expected a writer"),
        ([Noting], "Expected a writer"),
        ("logs", "Argument `writers` must be a list"),
    ],
)
def test_what_is_no_writer_is_refused(writers, message, tmp_path):
    with pytest.raises(TypeError, match=message):
        rt.callbacks.Report(tmp_path, writers=writers)
    if isinstance(writers, list):
        with pytest.raises(TypeError, match=message):
            records.Records().add_writer(writers[0])


def test_records_of_a_file_are_written_too(tmp_path):
    report = fit(tmp_path)
    writer = Noting()
    kept = records.read(tmp_path / "records.jsonl")
    kept.add_writer(writer)
    assert list(map(repr, writer.rows())) == list(map(repr, report.records.rows))
    kept.add(5, 50, {"loss": 1.0})
    assert writer.rows()[-1] == (5, 50, "loss", 1.0)


# --- TensorBoard ----------------------------------------------------------------------------------


def events(directory):
    """`(tag, step, plugin, value)` of all that an event file holds, as TensorBoard reads it."""
    from tensorboard.backend.event_processing import event_file_loader
    from tensorboard.util import tensor_util

    found = []
    for path in sorted(directory.glob("events.out.tfevents.*")):
        for event in event_file_loader.EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                array = tensor_util.make_ndarray(value.tensor) if value.HasField("tensor") else None
                about = value.metadata.plugin_data
                found.append((value.tag, event.step, about, array))
    return found


def test_tensorboard_has_scalars_at_their_steps(tmp_path):
    report = fit(tmp_path / "run", trackers.TensorBoard(tmp_path / "logs"))
    found = [(tag, step, float(a)) for tag, step, about, a in events(tmp_path / "logs")
             if about.plugin_name == "scalars"]  # fmt: skip
    assert (
        len(
            {about.plugin_name for tag, _, about, _ in events(tmp_path / "logs") if tag == "loss"}
            - {""}
        )
        == 1
    )  # and no picture has its name
    expected = [
        (row.name, row.step, row.value)
        for row in report.records.rows
        if not isinstance(row.value, list)
    ]
    assert [one[:2] for one in found] == [one[:2] for one in expected]
    np.testing.assert_allclose(
        [one[2] for one in found], [one[2] for one in expected], rtol=1e-6, equal_nan=True
    )


def test_tensorboard_has_histograms_of_channels(tmp_path):
    rows = records.Records([(0, 3, "channels", [0.0, 1.0, 4.0, math.nan]), (1, 6, "none", [])])
    with trackers.TensorBoard(tmp_path) as writer:
        rows.add_writer(writer)
    (first, second) = events(tmp_path)
    assert (first[:2], first[2].plugin_name) == (("channels", 3), "histograms")
    left, right, counts = first[3].T
    assert (left[0], right[-1], counts.sum()) == (0.0, 4.0, 3)
    assert second[3].shape == (0, 3)


def test_tensorboard_has_the_pictures_and_the_hyperparameters(tmp_path):
    from matplotlib import pyplot as plt
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2

    fit(tmp_path / "run", trackers.TensorBoard(tmp_path / "logs"))
    found = events(tmp_path / "logs")
    images = {tag: array for tag, _, about, array in found if about.plugin_name == "images"}
    page = plt.imread(tmp_path / "run" / "loss.png")
    width, height, png = images["pictures/loss"][:3]
    assert (int(height), int(width)) == page.shape[:2]
    np.testing.assert_array_equal(plt.imread(io.BytesIO(png))[..., :3], page[..., :3])
    (given,) = [about for _, _, about, _ in found if about.plugin_name == metadata.PLUGIN_NAME]
    said = plugin_data_pb2.HParamsPluginData.FromString(given.content).session_start_info.hparams
    assert said["optimizer/learning_rate"].number_value == pytest.approx(0.25)
    assert said["settings/batch size"].number_value == 8
    assert said["model"].string_value.startswith("small")


def test_a_directory_that_is_none_is_refused():
    with pytest.raises(ValueError, match="Argument `directory` must be a path"):
        trackers.TensorBoard(3)


# --- MLflow, in its store of local files ----------------------------------------------------------


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # which it asks for since 3.14
    return (tmp_path / "mlflow").as_uri()


def test_mlflow_has_metrics_parameters_and_pictures(store, tmp_path):
    from mlflow import MlflowClient

    writer = trackers.MLflow("regularized", "first", uri=store)
    report = fit(tmp_path / "run", writer)
    fit(tmp_path / "again", writer)  # another run of the same experiment
    client = MlflowClient(tracking_uri=store)
    experiment = client.get_experiment_by_name("regularized")
    runs = client.search_runs([experiment.experiment_id], order_by=["attribute.start_time"])
    assert [run.info.status for run in runs] == ["FINISHED"] * 2
    assert [run.info.run_name for run in runs] == ["first"] * 2
    run = runs[0]
    for name in ("loss", "val_loss", "learning_rate"):
        history = client.get_metric_history(run.info.run_id, name)
        steps, values = report.records.series(name, by="step")
        assert [(m.step, m.value) for m in history] == list(zip(steps, values, strict=True))
    assert run.data.params["optimizer/learning_rate"] == "0.25"
    assert run.data.params["settings/batch size"] == "8"
    pictures = {file.path for file in client.list_artifacts(run.info.run_id, "pictures")}
    assert {"pictures/loss.png", "pictures/learning_rate.png"} <= pictures


def test_mlflow_takes_any_name_many_numbers_and_nan(store):
    from mlflow import MlflowClient

    rows = [(0, i, "a: b=σ", math.nan if i == 3 else i / 7) for i in range(1200)]
    kept = records.Records([*rows, (0, 0, "channels", [1.0, 2.0])])
    writer = trackers.MLflow(uri=store)
    kept.add_writer(writer)
    number = writer.run_id
    client = MlflowClient(tracking_uri=store)
    history = client.get_metric_history(number, "a_ b_σ")
    np.testing.assert_array_equal([m.value for m in history], [row[3] for row in rows])
    assert client.get_run(number).info.status == "RUNNING"
    writer.end()
    assert client.get_run(number).info.status == "FINISHED"
    assert list(client.get_run(number).data.metrics) == ["a_ b_σ"]


def test_a_penalty_of_a_layer_is_no_folder_and_no_metric_becomes_another(store):
    from mlflow import MlflowClient

    writer = trackers.MLflow(uri=store)
    names = ["penalty", "penalty/hidden/kernel", "a:b", "a*b"]
    records.Records([(0, 1, name, float(i)) for i, name in enumerate(names)]).add_writer(writer)
    writer.end()
    found = MlflowClient(tracking_uri=store).get_run(writer.run_id).data.metrics
    expected = {"penalty": 0.0, "penalty.hidden.kernel": 1.0, "a_b": 2.0, "a_b_2": 3.0}
    assert found == expected


def test_a_writer_that_fails_is_told_that_its_run_is_over(tmp_path):
    def fail(rows):
        raise OSError("no")

    writer = Noting()
    writer.write = fail
    with pytest.warns(UserWarning, match="gets no more of this fit"):
        fit(tmp_path, writer)
    assert [kind for kind, *_ in writer.got] == ["begin", "end"]


def test_numbers_of_numpy_are_numbers_and_nan_is_recorded_once(tmp_path):
    import json

    model = compiled()
    model.compile(keras.optimizers.SGD(float("nan")), "sparse_categorical_crossentropy")
    settings = {"batch": np.int64(8), "rate": np.float32(0.5), "sizes": np.arange(2)}
    report = rt.callbacks.Report(tmp_path, settings=settings)
    with pytest.warns(UserWarning, match="NaN"):
        model.fit(X, Y, epochs=3, batch_size=8, verbose=0, callbacks=[report])
    info = json.loads((tmp_path / "run.json").read_text())
    assert info["settings"] == {"batch": 8, "rate": 0.5, "sizes": [0, 1]}
    assert len([row for row in report.records.rows if row.name == "loss"]) == 3


def test_names_that_are_no_texts_are_refused(store):
    with pytest.raises(TypeError, match="Argument `run` must be a text"):
        trackers.MLflow("x", 3, uri=store)
