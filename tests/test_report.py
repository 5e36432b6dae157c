"""The report: one page that needs nothing else, from the records of any run, also a cut-off one."""

import base64
import html
import html.parser
import json
import time

import keras
import numpy as np
import problems
import pytest
from keras import layers

from keras_regtools import callbacks, instrument, plots, regularizers, report
from keras_regtools.records import Records, read

X = np.random.default_rng(0).normal(size=(24, 3)).astype("float32")
Y = (X.sum(axis=1, keepdims=True) > 0).astype("float32")


def plain_model():
    model = keras.Sequential(
        [keras.Input((3,)), layers.Dense(1, activation="sigmoid", name="output")], name="plain"
    )
    model.compile(keras.optimizers.SGD(0.1), "binary_crossentropy")
    return model


def full_model(loss="binary_crossentropy"):
    model = keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(4, name="dense", kernel_regularizer=regularizers.L2(0.01)),
            layers.BatchNormalization(name="bn"),
            layers.Activation("relu", name="relu"),
            layers.Dense(1, activation="sigmoid", name="output"),
        ],
        name="full",
    )
    model.compile(keras.optimizers.SGD(0.1), loss, metrics=["accuracy"])
    return instrument(model)


def fit(model, *members, **kwargs):
    settings = {"batch_size": 8, "epochs": 2, "verbose": 0, "callbacks": list(members)}
    return model.fit(X, Y, **{**settings, **kwargs})


class Parts(html.parser.HTMLParser):
    """What a page is made of: attributes, findings, captions, table rows and style."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes = [], []
        self.findings, self.captions, self.rows, self.style = [], [], [], ""
        self.text = None
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, *attribute) for attribute in attributes]
        self.text = ""

    def handle_data(self, data):
        self.text = (self.text or "") + data

    def handle_endtag(self, tag):
        lists = {"li": self.findings, "figcaption": self.captions, "th": self.rows, "td": self.rows}
        if tag in lists:
            lists[tag].append(" ".join(self.text.split()))
        elif tag == "style":
            self.style = self.text
        self.text = ""

    @property
    def table(self):
        return dict(zip(self.rows[::2], self.rows[1::2], strict=True))

    @property
    def pictures(self):
        sources = [value for tag, name, value in self.attributes if (tag, name) == ("img", "src")]
        return [
            base64.b64decode(source.removeprefix("data:image/png;base64,")) for source in sources
        ]


def page_of(directory):
    return Parts((directory / "report.html").read_text("utf-8"))


def series(directory, name, by="epoch"):
    return read(directory / "records.jsonl").series(name, by)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with everything switched on, and the callback that reported it."""
    directory = tmp_path_factory.mktemp("run")
    keras.utils.set_random_seed(0)
    reporter = callbacks.Report(directory, settings={"title": "Big <run>", "batch_size": 8})
    scaling = callbacks.LinearScalingLR(8, 4, warmup_epochs=1)
    sharpness = callbacks.Sharpness(X, Y, every=2, iterations=2)
    fit(full_model(), scaling, reporter, sharpness, epochs=3, validation_data=(X, Y))
    return reporter, directory


PICTURES = [
    "loss",
    "accuracy",
    "generalization_gap",
    "learning_rate",
    "activation_ranges",
    "activation_scales",
    "moving_distances",
    "penalties",
    "kernel_norms",
    "sharpness",
]


def test_a_run_leaves_its_records_its_settings_its_pictures_and_one_page(run):
    files = {path.name for path in run[1].iterdir()}
    pictures = {f"{name}.png" for name in PICTURES}
    assert files == {"records.jsonl", "run.json", "kept.json", "report.html", *pictures}


def test_the_page_needs_nothing_from_outside(run):
    page = page_of(run[1])
    assert {"script", "link", "iframe"}.isdisjoint(page.tags)
    links = [value for _, name, value in page.attributes if name in ("src", "href", "srcset")]
    assert links
    assert all(value.startswith("data:image/png;base64,") for value in links)
    assert "url(" not in page.style
    assert "@import" not in page.style


def test_the_page_holds_the_pictures_each_with_a_sentence_on_how_to_read_it(run):
    page = page_of(run[1])
    assert page.pictures == [(run[1] / f"{name}.png").read_bytes() for name in PICTURES]
    assert all(picture.startswith(b"\x89PNG") for picture in page.pictures)
    assert len(set(page.pictures)) == len(set(page.captions)) == len(PICTURES)
    assert all(caption.endswith(".") for caption in page.captions)
    alternatives = [value for _, name, value in page.attributes if name == "alt"]
    assert alternatives == [name.replace("_", " ") for name in PICTURES]


def test_the_page_says_what_the_run_was(run):
    table = page_of(run[1]).table
    assert table["model"] == "full"
    assert table["parameters"] == str(3 * 4 + 4 + 4 * 4 + 4 + 1)
    assert table["optimizer"].startswith("class SGD, learning_rate 0.1, ")
    assert table["loss"] == "binary_crossentropy"
    assert (table["epochs"], table["steps per epoch"]) == ("3", "3")
    assert table["settings"] == "title Big <run>, batch_size 8"
    assert f"keras {keras.__version__}, {keras.backend.backend()} " in table["versions"]


def test_the_page_finds_what_there_is_to_say_about_the_run(run):
    loss, rate = series(run[1], "loss")[1], series(run[1], "learning_rate", "step")[1]
    starts = [
        f"Training loss went from {loss[0]:.3g} to {loss[-1]:.3g} in 3 epochs.",
        "Validation loss was lowest in epoch ",
        "Validation accuracy ended at ",
        "The moving statistics of bn were ",
        f"The learning rate went from {rate[0]:.3g} to {rate[-1]:.3g}.",
        "The standard deviation of what the layers received ran from ",
        "The weight penalties ended at ",
        "Keskar's sharpness was ",
    ]
    findings = page_of(run[1]).findings
    assert [f[: len(s)] for f, s in zip(findings, starts, strict=True)] == starts


def test_the_page_tells_the_share_of_the_time_that_measuring_took(run):
    total, measured = page_of(run[1]).rows[-3], page_of(run[1]).rows[-1]
    assert total.endswith(" s")
    share = float(measured.split(", ")[1].removesuffix(" %").split(" %")[0])
    assert 0 < share < 100
    for name in ("sharpness", "activation_monitor", "penalty_monitor", "linear_scaling_lr"):
        assert f"{name} " in measured


def test_the_title_is_that_of_the_settings_and_is_escaped(run):
    page = (run[1] / "report.html").read_text("utf-8")
    assert "<title>Big &lt;run&gt;: training report</title>" in page
    assert "<run>" not in page


def test_the_report_can_be_made_again_from_the_records_alone(run, tmp_path):
    for name in ("records.jsonl", "run.json"):
        (tmp_path / name).write_bytes((run[1] / name).read_bytes())
    page = report.write(tmp_path)
    assert page.path == tmp_path / "report.html"
    assert repr(page) == f"Page({str(tmp_path / 'report.html')!r})"
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {
        p.name: p.read_bytes() for p in run[1].iterdir() if p.name != "kept.json"
    }


def test_a_notebook_shows_the_whole_page(run):
    page = (run[1] / "report.html").read_text("utf-8")
    for shown in (run[0]._repr_html_(), report.write(run[1])._repr_html_()):
        frame = Parts(shown)
        assert frame.tags == ["iframe"]
        assert dict(attribute[1:] for attribute in frame.attributes)["srcdoc"] == page


@pytest.mark.slow
def test_the_records_are_those_of_the_callbacks_wherever_they_stand(run, tmp_path):
    reporter, first = callbacks.Report(tmp_path), read(run[1] / "records.jsonl")
    scaling = callbacks.LinearScalingLR(8, 4, warmup_epochs=1)
    sharpness = callbacks.Sharpness(X, Y, every=2, iterations=2)
    fit(full_model(), sharpness, reporter, scaling, epochs=3, validation_data=(X, Y))
    found = read(tmp_path / "records.jsonl")
    assert sorted(found.names()) == sorted(first.names())
    for rows in (found.rows, first.rows):  # measured in two of three epochs, recorded by one
        assert [row.epoch for row in rows if row.name == "sharpness/keskar"] == [0, 2]
    assert found.rows == reporter.records.rows == sharpness.records.rows
    assert run[0].records.rows == first.rows


def test_a_run_without_anything_extra_shows_what_there_is(tmp_path):
    fit(plain_model(), callbacks.Report(tmp_path))
    assert {p.stem for p in tmp_path.glob("*.png")} == {"loss", "learning_rate", "kernel_norms"}
    page = page_of(tmp_path)
    assert len(page.pictures) == 3
    assert [finding.split(" went ")[0] for finding in page.findings] == [
        "Training loss",
        "The learning rate",
    ]


class Interrupt(keras.callbacks.Callback):
    """The user stops the run in the middle of an epoch."""

    def __init__(self, epoch):
        super().__init__()
        self.when = (epoch, 1)

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == self.when:
            raise KeyboardInterrupt


CUT_OFF = "The run was cut off or still goes on: this is what it has recorded."


def interrupted(directory, epoch=2):
    """A run of which the user stopped the epoch with that index, its model and its callback."""
    model, reporter = plain_model(), callbacks.Report(directory)
    scaling = callbacks.LinearScalingLR(8, 8, warmup_epochs=0)
    with pytest.raises(KeyboardInterrupt):
        fit(model, scaling, reporter, Interrupt(epoch), epochs=5)
    return model, reporter


def test_an_interrupted_run_leaves_its_finished_epochs_and_its_report_can_be_made(tmp_path):
    interrupted(tmp_path)
    assert not (tmp_path / "report.html").exists()
    epochs, losses = series(tmp_path, "loss")
    report.write(tmp_path)
    page = page_of(tmp_path)
    assert epochs == [0, 1]
    assert page.findings[0] == (
        f"Training loss went from {losses[0]:.3g} to {losses[1]:.3g} in 2 epochs."
    )
    assert page.findings[-1] == CUT_OFF


def test_an_interrupted_run_shows_itself_in_a_notebook(tmp_path):
    _, reporter = interrupted(tmp_path)
    assert CUT_OFF in html.unescape(reporter._repr_html_())


def test_a_run_without_a_finished_epoch_has_a_report_that_says_so(tmp_path):
    interrupted(tmp_path, epoch=0)
    report.write(tmp_path)
    assert page_of(tmp_path).findings[0] == "No epoch was finished."


@pytest.mark.parametrize(
    "new", problems.rows([True, False], True), ids=["new callback", "same callback"]
)
def test_a_resumed_run_goes_on_in_its_records(tmp_path, new):
    model, reporter = interrupted(tmp_path)
    first = {name: series(tmp_path, name) for name in ("loss", "learning_rate")}
    torn = [row for row in read(tmp_path / "records.jsonl").rows if row.epoch == 2]
    reporter = callbacks.Report(tmp_path) if new else reporter
    history = fit(model, reporter, initial_epoch=2, epochs=4)
    epochs, losses = series(tmp_path, "loss")
    assert epochs == series(tmp_path, "learning_rate")[0] == [0, 1, 2, 3]
    assert losses == [*first["loss"][1], *history.history["loss"]]
    assert {path.name for path in tmp_path.glob("*.jsonl")} == {"records.jsonl"}
    steps, _ = series(tmp_path, "learning_rate", by="step")
    assert steps == sorted(steps)
    assert torn
    rows = read(tmp_path / "records.jsonl").rows
    assert not [row for row in torn if row in rows]
    findings = page_of(tmp_path).findings
    assert findings[0].endswith(" in 4 epochs.")
    assert CUT_OFF not in findings


FILES = (("records", "jsonl"), ("run", "json"))


@pytest.mark.parametrize(
    "new", problems.rows([True, False], True), ids=["new callback", "same callback"]
)
def test_every_further_run_keeps_the_earlier_records_under_a_number(tmp_path, new):
    model, reporter = plain_model(), callbacks.Report(tmp_path)
    written = []
    for epochs in (1, 2, 3):
        fit(model, reporter, epochs=epochs)
        written.append([(tmp_path / ".".join(name)).read_text("utf-8") for name in FILES])
        reporter = callbacks.Report(tmp_path) if new else reporter
    kept = [
        [(tmp_path / f"{name}{number}.{kind}").read_text("utf-8") for name, kind in FILES]
        for number in (".1", ".2", "")
    ]
    assert kept == written
    assert series(tmp_path, "loss")[0] == [0, 1, 2]
    assert len(list(tmp_path.glob("records*.jsonl"))) == 3


@pytest.mark.slow
def test_pictures_of_an_earlier_run_do_not_stay_beside_a_page_that_has_none_of_them(tmp_path):
    fit(plain_model(), callbacks.Report(tmp_path), validation_data=(X, Y))
    (tmp_path / "mine.png").write_bytes(b"mine")
    fit(plain_model(), callbacks.Report(tmp_path), callbacks.Sharpness(X, Y, iterations=1))
    fit(plain_model(), callbacks.Report(tmp_path))
    assert {path.stem for path in tmp_path.glob("*.png")} == {
        "loss",
        "learning_rate",
        "kernel_norms",
        "mine",
    }


def test_the_time_of_a_fit_is_not_that_of_the_fits_before(tmp_path):
    reporter = callbacks.Report(tmp_path)
    model = plain_model()
    fit(model, reporter)
    reporter.seconds = 1e6  # what measuring took in the first fit
    fit(model, reporter)
    assert series(tmp_path, "time/report")[1][-1] < series(tmp_path, "time/fit")[1][-1]


def test_the_time_of_what_stands_behind_the_report_is_in_the_time_of_the_fit(tmp_path):
    slow = callbacks.Measure({"slow": lambda surface: time.sleep(0.5) or 0.0}, X, Y, name="slow")
    fit(plain_model(), callbacks.Report(tmp_path), slow, epochs=1)
    measured, total = (series(tmp_path, name)[1][-1] for name in ("time/slow", "time/fit"))
    assert 0.5 <= measured < total


@pytest.mark.filterwarnings("ignore:NaN or infinity flowed:UserWarning")
@pytest.mark.parametrize("every", problems.rows(["first", "later"], "later"))
def test_a_loss_that_is_not_a_number_is_recorded_and_said_and_ends_nothing(tmp_path, every):
    class Poison(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if every == "first" or epoch == 1:
                self.model.set_weights([w * np.nan for w in self.model.get_weights()])

    # PyTorch itself refuses the cross-entropy of NaN.
    fit(full_model("mse"), Poison(), callbacks.Report(tmp_path), epochs=3, validation_data=(X, Y))
    losses = series(tmp_path, "loss")[1]
    assert [bool(np.isnan(loss)) for loss in losses] == [every == "first", True, True]
    findings = page_of(tmp_path).findings
    assert "The training loss became NaN or infinite: the run diverged." in findings
    lowest = [f for f in findings if f.startswith("Validation loss was lowest in epoch ")]
    assert len(lowest) == (every == "later")  # of nothing but NaN, none is the lowest
    assert not any("lowest in epoch 1, at nan" in f for f in findings)


def write(directory, rows, info=None):
    """Write records and settings by hand, and give the parts of their page."""
    Records(rows).write_to(directory / "records.jsonl")
    if info is not None:
        (directory / "run.json").write_text(json.dumps(info), "utf-8")
    report.write(directory)
    return page_of(directory)


def of(*named, step=7):
    """Records: names with their values, one per epoch."""
    return [(i, step * (i + 1), name, v) for name, values in named for i, v in enumerate(values)]


LOSS = ("loss", [1.0, 0.5])
FIRST = "Training loss went from 1 to 0.5 in 2 epochs."


@pytest.mark.parametrize(
    ("rows", "info", "expected"),
    [
        ([], None, ["No epoch was finished."]),
        (of(LOSS), None, [FIRST]),
        (of(("loss", [0.25])), None, ["Training loss went from 0.25 to 0.25 in 1 epoch."]),
        (of(LOSS), {"model": "m", "finished": True}, [FIRST]),
        (of(LOSS), {"model": "m", "finished": False}, [FIRST, CUT_OFF]),
        (
            of(LOSS, ("val_loss", [0.75, 0.875]), ("val_accuracy", [0.5, 0.625])),
            None,
            [
                FIRST,
                "Validation loss was lowest in epoch 1, at 0.75; it ended at 0.875.",
                "Validation accuracy ended at 0.625.",
                "The generalization gap, validation loss less training loss, ended at 0.375, after "
                "-0.25 at the lowest validation loss.",
            ],
        ),
        (
            of(LOSS, ("learning_rate", [0.1, 0.4]), ("sharpness/keskar", [3.0, 2.0])),
            None,
            [
                FIRST,
                "The learning rate went from 0.1 to 0.4.",
                "Keskar's sharpness was 2 after epoch 2 (the rise of the loss in the box, in % of "
                "1 + loss).",
            ],
        ),
        (
            of(LOSS, ("penalty", [0.5, 0.125]), ("data_loss", [1.0, 0.5])),
            None,
            [
                FIRST,
                "The weight penalties ended at 0.125, 0.25 times the training loss on the data "
                "alone, 0.5.",
            ],
        ),
        (
            of(LOSS, ("activations/a/std", [1.0, 0.5]), ("activations/b/std", [1.0, 2.0])),
            None,
            [
                FIRST,
                "The standard deviation of what the layers received ran from 0.5 (a) to 2 (b), a "
                "factor of 4.",
            ],
        ),
        (
            of(LOSS, ("batch_norm/initial_share", [0.75, 0.06])),
            None,
            [
                FIRST,
                "The moving statistics of batch normalization still hold 6 % of their initial "
                "values: validation may be judged with stale statistics. Use "
                "callbacks.PreciseBatchNorm(x), a lower momentum of the layers, or "
                "keras_regtools.recalibrate(model, x).",
            ],
        ),
        (of(LOSS, ("batch_norm/initial_share", [0.75, 0.05])), None, [FIRST]),
    ],
)
def test_the_findings_are_read_from_the_records(tmp_path, rows, info, expected):
    assert write(tmp_path, rows, info).findings == expected


def test_the_time_share_is_that_of_the_records(tmp_path):
    times = [
        ("time/fit", [4.0, 10.0]),
        ("time/sharpness", [0.5, 1.0]),
        ("time/report", [0.25, 0.5]),
    ]
    table = write(tmp_path, of(LOSS, *times)).table
    assert table["time of the fit"] == "10.0 s"
    assert table["of that, measuring"] == (
        "1.5 s, 15.0 % (sharpness 1.00 s, report 0.50 s). Recording inside the training step is "
        "not in it."
    )


def test_a_record_torn_in_its_last_line_is_left_out(tmp_path):
    Records(of(LOSS)).write_to(tmp_path / "records.jsonl")
    with open(tmp_path / "records.jsonl", "a", encoding="utf-8") as file:
        file.write('{"epoch": 2, "ste')
    report.write(tmp_path)
    assert page_of(tmp_path).findings == [FIRST]


def test_text_of_the_user_is_shown_as_text(tmp_path):
    info = {"settings": {"title": "<b>", "note": "</td><script>x</script>"}, "finished": True}
    page = write(tmp_path, of(LOSS), info)
    assert {"script", "b"}.isdisjoint(page.tags)
    assert page.table["settings"] == "title <b>, note </td><script>x</script>"


@pytest.mark.parametrize("exists", [True, False])
def test_a_directory_without_records_is_refused(tmp_path, exists):
    directory = tmp_path if exists else tmp_path / "nowhere"
    with pytest.raises(ValueError) as caught:
        report.write(directory)
    assert str(caught.value) == (
        "Expected a directory with the records of a run, written by "
        f"`callbacks.Report(directory)`. Received: {directory}, without records.jsonl"
    )
    assert directory.exists() == exists


def test_what_is_declared_of_pictures_is_the_page(tmp_path):
    """A user's own picture comes between ours; what nobody draws gets one of its own."""
    from keras_regtools.plots import picture as declarations

    def caption(records):
        return "How wide it is."

    @declarations.picture(15, "own/", caption=caption, finding=lambda r: f"{r.last('own/a'):g}!")
    def widths(records, ax=None):
        ax.plot(*records.series("own/a"))
        return ax

    try:
        rows = [(0, 1, "loss", 1.0), (0, 1, "own/a", 2.0), (0, 1, "my/norm", 3.0)]
        page = write(tmp_path, rows, None)
    finally:
        del declarations._DECLARED["widths"]
    assert page.captions[1:] == ["How wide it is.", "my, as it was measured."]
    assert page.findings[1:] == ["2!"]
    assert {"widths.png", "measured_my.png"} <= {path.name for path in tmp_path.iterdir()}


def test_every_picture_of_a_run_says_what_it_draws_and_how_to_read_it():
    from keras_regtools.plots.picture import declared

    empty = Records()
    names = [picture.name for picture in declared()]
    assert names[:4] == ["loss", "accuracy", "generalization_gap", "learning_rate"]
    assert len(set(names)) == len(names)
    for picture in declared():
        assert picture.draws
        assert picture.caption(empty).rstrip().endswith(".")
        assert picture.found(empty) == []
        assert not picture.is_shown(empty)
        assert getattr(plots, picture.name) is picture.draw


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a/b", "a/c/d"], {"measured_a.png", "measured_a_c.png"}),
        (["my/norm", "my/norm/stderr"], {"measured_my.png"}),
        (["loss/x"], {"measured_loss.png"}),
        (["val_x/y"], {"measured_val_x.png"}),
    ],
)
def test_what_was_measured_has_a_picture_and_one_only(tmp_path, names, expected):
    write(tmp_path, [(0, 1, "loss", 1.0), *((0, 1, name, 2.0) for name in names)])
    assert {p.name for p in tmp_path.glob("measured_*")} == expected


def test_what_was_never_finite_is_said():
    records = Records([(0, 1, "m", float("nan"))])
    (text,) = plots.quantities(records, "m").texts
    assert text.get_text() == "Of m, no finite number was measured."
