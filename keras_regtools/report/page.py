"""Draw the pictures of a run and put them on one page."""

from __future__ import annotations

import base64
import html
import math
import pathlib
import re
from typing import TYPE_CHECKING

from keras_regtools.records.files import write_whole
from keras_regtools.report.findings import findings
from keras_regtools.report.pictures import pictures
from keras_regtools.report.run import RunFiles
from keras_regtools.validation import checked, path

if TYPE_CHECKING:
    import os


class Page:
    """A written report; it shows itself as the last line of a notebook cell.

    Attributes:
        path: The HTML file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = pathlib.Path(path)

    def _repr_html_(self):
        source = html.escape(self.path.read_text("utf-8"), quote=True)
        return f'<iframe srcdoc="{source}" style="width:100%;height:900px;border:0"></iframe>'

    def __repr__(self):
        return f"Page({str(self.path)!r})"


@checked(directory=path)
def write(directory: str | os.PathLike[str]) -> Page:
    """Draw the pictures of a run and write `report.html` beside its records.

    Everything comes from the files that `callbacks.Report(directory)` wrote, so the report of a run
    that was cut off can be made, or made again, at any time. Files of yours in the directory stay:
    where one has the name of a picture or of the page, ours gets a number.

    Args:
        directory: The directory with `records.jsonl` and `run.json`.

    Returns:
        A `Page`, which a notebook shows; `.path` is the HTML file. The pictures lie beside it as
        PNG and in it.

    Raises:
        ValueError: a directory without records, or with files of something else under their names.

    Example:

    >>> import pathlib, tempfile
    >>> from keras_regtools import records, report
    >>> directory = pathlib.Path(tempfile.mkdtemp())
    >>> rows = records.Records([(0, 10, "loss", 1.0), (1, 20, "loss", 0.5)])
    >>> rows.write_to(directory / "records.jsonl")
    >>> report.write(directory).path.name
    'report.html'
    """
    files = RunFiles(directory)
    records, info = files.read()
    place = files.directory
    drawn = [(one.name, one.png(records), one.caption(records)) for one in pictures(records)]
    path, shown, names = put_pictures(place, "report", drawn)
    page = template("page").render(
        title=_setting(info, "title") or info.get("model") or "Run",
        findings=findings(records, info),
        pictures=shown,
        files=" ".join(names),
        settings=_settings(info),
        times=_times(records),
    )
    write_whole(path, page)
    return Page(path)


def put_pictures(place, name, drawn):
    """Write the pictures of a page beside it, in place of those of an earlier one.

    Args:
        place: The directory.
        name: Of the page, without its ending.
        drawn: Triples of the name of a picture, the bytes of its PNG file and how to read it.

    Returns:
        The path of the page, what its template shows, and the names of the files.
    """
    old = {path: _pictures_of(path) for path in place.glob(f"{name}*.html") if _is_ours(path)}
    path = _free(place, name, ".html", set(old))
    ours = {place / file for file in old.get(path, ())}
    shown, names = [], []
    for picture, png, reading in drawn:
        file = _free(place, picture, ".png", ours)
        write_whole(file, png)
        names.append(file.name)
        data = base64.b64encode(png).decode("ascii")
        shown.append({"data": data, "alt": picture.replace("_", " "), "reading": reading})
    for file in ours - {place / file for file in names}:  # of an earlier page, not of this one
        file.unlink(missing_ok=True)
    return path, shown, names


_MARK = '<meta name="generator" content="keras_regtools"'


def _is_ours(path):
    try:
        with open(path, encoding="utf-8") as file:
            return _MARK in file.read(1000)
    except (OSError, UnicodeDecodeError):
        return False


def _pictures_of(path):
    """The names of the pictures that a page of ours says were written beside it."""
    found = re.search(r'<meta name="pictures" content="([^"]*)"', path.read_text("utf-8"))
    return found[1].split() if found else []


def _free(place, name, ending, ours):
    """A path for a file of ours that is free or was ours."""
    path, number = place / f"{name}{ending}", 1
    while path.exists() and path not in ours:
        path, number = place / f"{name}_{number}{ending}", number + 1
    return path


def template(name):
    """The template of a page."""
    import jinja2

    loader = jinja2.FileSystemLoader(pathlib.Path(__file__).parent, encoding="utf-8")
    return jinja2.Environment(autoescape=True, loader=loader).get_template(f"{name}.html")


def _setting(info, name):
    settings = info.get("settings")
    return settings.get(name) if isinstance(settings, dict) else None


def _settings(info):
    """What the run was, as rows of a table."""
    rows = []
    for key, value in info.items():
        name = key.replace("_", " ")
        if isinstance(value, dict):
            value = ", ".join(f"{k} {_short(v)}" for k, v in value.items() if v is not None)
        if value not in (None, ""):
            rows.append((name, value))
    return rows


def _short(value):
    return f"{value:.6g}" if isinstance(value, float) else value


def _times(records):
    """Seconds of the fit and of each callback, and the share of measuring."""
    total = records.last("time/fit")
    parts = {
        name.removeprefix("time/"): records.last(name)
        for name in records.names()
        if name.startswith("time/") and name != "time/fit"
    }
    if not math.isfinite(total) or total <= 0:
        return None
    measuring = sum(parts.values())
    return {"total": total, "parts": parts, "measuring": measuring, "share": measuring / total}
