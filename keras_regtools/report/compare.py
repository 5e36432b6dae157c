"""One page for several runs: their curves over each other, and what differs."""

from __future__ import annotations

import functools
import math
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from keras_regtools import plots, validation
from keras_regtools.plots.picture import file_name, png
from keras_regtools.plots.runs import series_by_name
from keras_regtools.records import read_many
from keras_regtools.records.files import write_whole
from keras_regtools.records.reading import named_runs
from keras_regtools.records.settings import flat_settings
from keras_regtools.report.page import Page, put_pictures, template
from keras_regtools.report.run import RunFiles

if TYPE_CHECKING:
    pass

_MOST = 12  # pictures
_FIRST = ("loss", "data_loss", "accuracy", "recalibrated", "penalty", "learning_rate")
_LESS = {"loss", "error", "mae", "mse", "rmse", "mape", "hinge", "crossentropy", "recalibrated"}
_MORE = {"accuracy", "acc", "auc", "precision", "recall", "f1_score", "r2", "r2_score", "io_u"}


@validation.checked(path=validation.path)
def compare(
    runs: Mapping[str, Any] | Sequence[Any],
    path: str | os.PathLike[str],
    *,
    title: str = "Comparison",
) -> Page:
    """Write one page about several runs: curves over each other, the settings that differ, and the
    final numbers with the better ones marked.

    Args:
        runs: A list of directories of `callbacks.Report` or of files of records, whose settings are
            not known, or a dict from names of runs to them.
        path: The HTML file to write, as `"runs/compare.html"`; the pictures go beside it. A file of
            yours of that name stays: then the page gets a number.
        title: Of the page.

    Returns:
        A `Page`, which a notebook shows; `.path` is the HTML file.

    Raises:
        TypeError: one run that is not in a list.
        ValueError: less than two runs, or a directory without records.

    Example:

    >>> import pathlib, tempfile
    >>> from keras_regtools import records, report
    >>> directory = pathlib.Path(tempfile.mkdtemp())
    >>> for run, loss in (("small", 0.5), ("large", 0.25)):
    ...     rows = records.Records([(0, 10, "loss", 1.0), (1, 20, "loss", loss)])
    ...     rows.write_to(directory / run / "records.jsonl")
    >>> page = report.compare([directory / "small", directory / "large"], directory / "both.html")
    >>> page.path.name
    'both.html'
    """
    paths = named_runs(runs)
    if len(paths) < 2:
        raise ValueError(f"Expected two or more runs to compare. Received: {runs!r}")
    frame, place = _on_the_data(read_many(paths)), pathlib.Path(path)
    infos = {n: RunFiles(one).read_info() if one.is_dir() else {} for n, one in paths.items()}
    # Of each run its series by name; some runs may have no records.
    apart = {name: series_by_name(frame[frame["run"] == name]) for name in paths}
    place.parent.mkdir(parents=True, exist_ok=True)
    stem = place.stem if place.suffix == ".html" else place.name
    page, shown, names = put_pictures(place.parent, stem, list(_pictures(frame, stem)))
    text = template("compare").render(
        title=title,
        findings=_findings(apart, infos),
        pictures=shown,
        files=" ".join(names),
        runs=list(paths),
        settings=_differing(infos),
        finals=_finals(_quantities(frame), apart),
    )
    write_whole(page, text)
    return Page(page)


def _on_the_data(frame):
    """The records, where some runs have penalties with the losses on the data of the others, too:
    of those they are the whole losses."""
    import pandas as pd

    if "penalty" not in set(frame["name"]):
        return frame
    penalized = set(frame.loc[frame["name"] == "penalty", "run"])
    plain = frame[~frame["run"].isin(penalized) & frame["name"].isin(["loss", "val_loss"])]
    names = {"loss": "data_loss", "val_loss": "val_data_loss"}
    return pd.concat([frame, plain.assign(name=plain["name"].map(names))], ignore_index=True)


def _quantities(frame):
    """What is a number in two runs or more, and not the same in all of them, without `val_`; first
    what everybody looks at."""
    numbers = frame.loc[[not isinstance(value, list) for value in frame["value"]]]
    kinds = numbers["name"].str.removeprefix("val_")
    found = [
        name
        for name, own in numbers.groupby(kinds, sort=False)
        if not name.startswith("time/") and own["run"].nunique() > 1 and own["value"].nunique() > 1
    ]
    found.sort(key=lambda name: ("/" in name, name.startswith("kernels/")))  # the user's own first
    return [n for n in _FIRST if n in found] + [n for n in found if n not in _FIRST]


def _pictures(frame, stem):
    quantities = _quantities(frame)
    if "data_loss" in quantities:  # that with penalties compares nothing
        quantities.remove("loss")
    either = {n: frame["name"].isin([n, f"val_{n}"]) for n in quantities}
    drawn = [n for n in quantities if frame.loc[either[n], "epoch"].nunique() > 1]
    for name in drawn[:_MOST]:
        drawing = png(functools.partial(plots.runs, frame, name))
        yield f"{stem}_{file_name(name)}", drawing, _reading(frame, name)


def _reading(frame, name):
    wanted = {-1: "Lower is better.", 1: "Higher is better."}.get(_direction(name), "")
    both = (frame["name"] == f"val_{name}").any()
    return " ".join(
        part
        for part in (
            f"{name} over the epochs, a colour for each run.",
            "Solid is validation, dashed training." if both else "",
            wanted,
        )
        if part
    )


def _direction(name):
    """1 where more is better, -1 where less is, 0 where nobody can say."""
    whole = name.removeprefix("val_")
    kinds = {whole, whole.rpartition("_")[2]}
    if kinds & _MORE:
        return 1
    return -1 if kinds & _LESS else 0


def _finals(quantities, apart):
    """A row for each quantity: its name, and for each run the last number and whether it is the
    best of all."""
    rows = []
    names = [n for q in quantities for n in (q, f"val_{q}")]
    penalized = "data_loss" in quantities
    ends = [max((s.index[-1] for s in own.values()), default=0) for own in apart.values()]
    for name in names:
        series = [own.get(name) for own in apart.values()]
        last = [math.nan if s is None else s.iloc[-1] for s in series]
        if sum(map(math.isfinite, last)) == 0:
            continue
        sign = 0 if penalized and name in ("loss", "val_loss") else _direction(name)
        best = max((sign * v for v in last if math.isfinite(v)), default=None)
        alike = len({v for v in last if math.isfinite(v)}) < 2
        cells = [
            {
                "text": _told(one, value, end),
                "best": bool(sign and not alike and sign * value == best),
            }
            for one, value, end in zip(series, last, ends, strict=True)
        ]
        rows.append((name, cells))
    return rows


def _told(series, value, end):
    """A number, with its epoch where it is not that of the run's end."""
    if series is None:
        return ""
    epoch = series.index[-1]
    return f"{value:.4g}" if epoch == end else f"{value:.4g} (epoch {epoch + 1})"


def _differing(infos):
    """The settings that differ: a row for each, with a text for each run."""
    flat = [_texts(info) for info in infos.values()]
    names = dict.fromkeys(name for one in flat for name in one)
    rows = []
    for name in names:
        values = [one.get(name, "") for one in flat]
        if len(set(values)) > 1:
            rows.append((name, values))
    return rows


def _texts(info):
    """The settings of a run as texts, by name."""
    found = {}
    for key, value in flat_settings(info).items():
        text = f"{value:.6g}" if isinstance(value, float) else str(value)
        # Keras counts the models of a process: `sequential_3`.
        text = re.sub(r"_\d+$", "", text) if key == "model" else text
        found[key.replace("_", " ").replace("/", ": ")] = text
    return found


def _findings(apart, infos):
    found = []
    names = {name for own in apart.values() for name in own}
    penalized = "data_loss" in names
    for wanted in ("data_loss" if penalized else "loss", "accuracy"):
        name = f"val_{wanted}" if f"val_{wanted}" in names else wanted
        if name in names:
            found.append(_ranking(apart, name))
    if penalized:
        found.append(
            "Some of the losses hold penalties: compare data_loss and val_data_loss, which do not."
        )
    epochs = {run: len({e for s in own.values() for e in s.index}) for run, own in apart.items()}
    if len(set(epochs.values())) > 1:
        told = ", ".join(f"{run} {count}" for run, count in epochs.items())
        found.append(f"The runs do not have the same number of epochs: {told}.")
    losses = {run: info.get("loss") for run, info in infos.items() if info.get("loss")}
    if len(set(losses.values())) > 1:
        told = ", ".join(f"{run} {loss}" for run, loss in losses.items())
        found.append(f"The losses are not the same ({told}): their numbers cannot be compared.")
    cut = [run for run, info in infos.items() if info and not info.get("finished")]
    if cut:
        found.append(f"Cut off, or still going on: {', '.join(cut)}.")
    found.append(
        "Each run is one draw: how large a difference can come from the seed alone, only several "
        "seeds of the same settings tell."
    )
    return [sentence for sentence in found if sentence]


def _ranking(apart, name):
    """Which run ends best in a quantity, and by how much."""
    sign, last, best = _direction(name), {}, {}
    for run, own in apart.items():
        series = own.get(name)
        if series is not None:
            last[run] = series.iloc[-1]
            at = (sign * series).idxmax(skipna=True) if series.notna().any() else series.index[0]
            best[run] = series[at], at + 1
    known = [run for run in last if math.isfinite(last[run])]
    lost = [run for run in last if run not in known]
    told = f" Not finite in the end: {', '.join(lost)}." if lost else ""
    without = [run for run, own in apart.items() if run not in last and len(own)]
    told += f" Without {name}: {', '.join(without)}." if without else ""
    if len(known) < 2:
        return f"{name}:{told}" if told else None
    order = sorted(known, key=lambda run: -sign * last[run])
    first = [run for run in order if last[run] == last[order[0]]]
    word = "highest" if sign > 0 else "lowest"
    others = ", ".join(f"{run} {last[run]:.4g}" for run in order[len(first) :])
    if not others:
        return f"{name} ends at {last[order[0]]:.4g} in all of them.{told}"
    sentence = f"{name} ends {word} in {' and '.join(first)}, at {last[order[0]]:.4g} ({others})"
    if len(first) == 1:
        value, epoch = best[order[0]]
        sentence += f"; its best was {value:.4g} in epoch {epoch}"
    return f"{sentence}.{told}"
