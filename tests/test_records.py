"""Records: one record is an epoch, a step, a name and a value; a file holds one a line."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from keras import ops

from keras_regtools import records
from keras_regtools.records import Record, Records

ROWS = [
    (0, 10, "loss", 0.5),
    (0, 10, "lr", 0.1),
    (1, 20, "loss", 0.25),
    (1, 20, "batch_mean/conv", [0.5, -1.0, 2.0]),
]


def _same(one, other):
    """Equality of values in which NaN equals NaN."""
    return np.array_equal(one, other, equal_nan=True)


# In memory.


def test_records_keep_the_order_in_which_they_were_made():
    log = Records()
    log.add(0, 10, {"loss": 0.5, "lr": 0.1})
    log.add(1, 20, {"loss": 0.25})
    log.add(1, 20, {"batch_mean/conv": np.array([0.5, -1, 2])})
    assert log.rows == [Record(*row) for row in ROWS]
    assert log.names() == ["loss", "lr", "batch_mean/conv"]


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (1, 1.0),
        (np.float32(0.5), 0.5),
        (np.int64(3), 3.0),
        (True, 1.0),
        (np.array(2.5), 2.5),
        (math.inf, math.inf),
        ([1, 2], [1.0, 2.0]),
        ((0.5,), [0.5]),
        (np.array([1, 2], "float32"), [1.0, 2.0]),
        (np.array([[1, 2], [3, 4]]), [1.0, 2.0, 3.0, 4.0]),
        (np.array([]), []),
        (ops.convert_to_tensor(0.5), 0.5),
        (ops.convert_to_tensor([0.5, 1.5]), [0.5, 1.5]),
    ],
    ids=lambda value: f"{type(value).__name__}",
)
def test_values_become_plain_floats_or_lists_of_them(value, plain):
    log = Records()
    log.add(np.int64(1), np.int32(2), {"name": value})
    assert log.rows == [(1, 2, "name", plain)]
    received = log.rows[0].value
    for number in received if isinstance(received, list) else [received]:
        assert type(number) is float
    assert type(log.rows[0].epoch) is int
    assert type(log.rows[0].step) is int


def test_a_series_is_the_last_value_of_each_epoch():
    log = Records([(0, 1, "a", 1.0), (0, 2, "a", 2.0), (1, 3, "b", 9.0), (2, 4, "a", 3.0)])
    assert log.series("a") == ([0, 2], [2.0, 3.0])
    assert log.series("none") == ([], [])


def test_a_series_by_step_has_each_step_in_the_order_of_the_steps():
    log = Records([(1, 30, "a", 3.0), (0, 10, "a", 1.0), (0, 20, "a", 2.0), (0, 10, "a", 1.5)])
    assert log.series("a", by="step") == ([10, 20, 30], [1.5, 2.0, 3.0])
    assert log.series("a") == ([0, 1], [1.5, 3.0])


@pytest.mark.parametrize(
    ("name", "default", "last"), [("loss", (), 0.25), ("lr", (), 0.1), ("none", (7.0,), 7.0)]
)
def test_the_last_value_is_the_newest(name, default, last):
    assert Records(ROWS).last(name, *default) == last


def test_the_last_value_of_an_unknown_quantity_is_nan():
    assert math.isnan(Records().last("none"))


def test_the_callbacks_of_one_fit_share_their_records():
    params, others = {"epochs": 1}, {"epochs": 1}
    assert records.of_run(params) is records.of_run(params)
    assert records.of_run(others) is not records.of_run(params)
    assert records.of_run(params).rows == []


def test_the_frame_has_a_row_for_each_record():
    frame = Records(ROWS).to_frame()
    assert list(frame.columns) == ["epoch", "step", "name", "value"]
    assert [tuple(row) for row in frame.itertuples(index=False)] == ROWS


def test_the_frame_of_single_numbers_is_numeric():
    frame = Records([*ROWS[:3], (2, 30, "loss", math.nan)]).to_frame()
    expected = pd.DataFrame(
        {
            "epoch": [0, 0, 1, 2],
            "step": [10, 10, 20, 30],
            "name": pd.Series(["loss", "lr", "loss", "loss"], dtype=frame["name"].dtype),
            "value": [0.5, 0.1, 0.25, math.nan],
        }
    )
    pd.testing.assert_frame_equal(frame, expected)


def test_the_frame_of_no_records_has_its_columns():
    frame = Records().to_frame()
    assert (len(frame), list(frame.columns)) == (0, ["epoch", "step", "name", "value"])


# In a file.


def test_a_file_brings_back_what_was_written(tmp_path):
    log = Records(ROWS[:2])
    log.write_to(tmp_path / "new" / "folder" / "records.jsonl")
    assert records.read(tmp_path / "new" / "folder" / "records.jsonl").rows == log.rows
    log.add(1, 20, {"loss": 0.25})
    log.add(1, 20, {"batch_mean/conv": [0.5, -1.0, 2.0]})
    assert records.read(tmp_path / "new" / "folder" / "records.jsonl").rows == log.rows
    assert log.rows == [Record(*row) for row in ROWS]


def test_a_file_holds_one_json_object_a_line(tmp_path):
    Records(ROWS).write_to(tmp_path / "records.jsonl")
    lines = (tmp_path / "records.jsonl").read_text().split("\n")
    assert lines.pop() == ""
    names = ("epoch", "step", "name", "value")
    assert [json.loads(line) for line in lines] == [
        dict(zip(names, row, strict=True)) for row in ROWS
    ]


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (math.nan, '"nan"'),
        (math.inf, '"inf"'),
        (-math.inf, '"-inf"'),
        ([1.0, math.nan, -math.inf], '[1.0, "nan", "-inf"]'),
        (0.1, "0.1"),
        (1e-300, "1e-300"),
        ([], "[]"),
    ],
)
def test_numbers_that_json_lacks_are_strings_in_the_file(value, written, tmp_path):
    log = Records([(0, 1, "a", value)])
    log.write_to(tmp_path / "records.jsonl")
    text = (tmp_path / "records.jsonl").read_text()
    assert text == f'{{"epoch": 0, "step": 1, "name": "a", "value": {written}}}\n'
    assert _same(records.read(tmp_path / "records.jsonl").rows[0].value, value)


@pytest.mark.parametrize("name", ["größe/σ", 'a "quoted"\nname', "line\u2028separator", ""])
def test_any_name_survives_the_file(name, tmp_path):
    Records([(0, 1, name, 0.5)]).write_to(tmp_path / "records.jsonl")
    assert records.read(tmp_path / "records.jsonl").rows == [(0, 1, name, 0.5)]


def test_a_run_torn_off_anywhere_in_its_last_line_leaves_the_lines_before(tmp_path):
    path = tmp_path / "records.jsonl"
    Records(ROWS).write_to(path)
    whole = path.read_bytes()
    last = whole.rstrip(b"\n").rindex(b"\n") + 1
    for cut in range(last, len(whole) - 1):
        path.write_bytes(whole[:cut])
        assert records.read(path).rows == [Record(*row) for row in ROWS[:3]]
    path.write_bytes(whole[:-1])  # only the end of the line is missing
    assert records.read(path).rows == [Record(*row) for row in ROWS]


@pytest.mark.parametrize(
    "line", ["{", "[1, 2]", "3", '{"epoch": 0, "step": 1}', '{"epoch": 0, "step": 1, "name": "a"}']
)
def test_a_bad_line_before_the_last_is_an_error(line, tmp_path):
    path = tmp_path / "records.jsonl"
    Records(ROWS).write_to(path)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], line, *lines[1:]]))
    with pytest.raises(ValueError) as error:
        records.read(path)
    assert str(error.value) == (
        f"Expected one record a line in {path}. Received in line 2: {line!r}"
    )


@pytest.mark.parametrize("value", ["null", '"much"', '{"a": 1}', '["much"]'])
def test_a_value_that_is_no_number_is_an_error(value, tmp_path):
    path = tmp_path / "records.jsonl"
    line = f'{{"epoch": 0, "step": 1, "name": "a", "value": {value}}}'
    path.write_text(f"{line}\n{line}\n")
    with pytest.raises(ValueError) as error:
        records.read(path)
    assert str(error.value) == (
        f"Expected one record a line in {path}. Received in line 1: {line!r}"
    )


def test_an_empty_file_holds_no_records(tmp_path):
    Records().write_to(tmp_path / "records.jsonl")
    assert records.read(tmp_path / "records.jsonl").rows == []


def test_a_new_run_replaces_an_old_file(tmp_path):
    path = tmp_path / "records.jsonl"
    Records(ROWS).write_to(path)
    Records(ROWS[:1]).write_to(path)
    assert records.read(path).rows == [Record(*ROWS[0])]


def test_records_read_from_a_file_do_not_write_to_it(tmp_path):
    path = tmp_path / "records.jsonl"
    Records(ROWS).write_to(path)
    log = records.read(path)
    log.add(9, 9, {"loss": 0.0})
    assert len(records.read(path).rows) == len(ROWS)
