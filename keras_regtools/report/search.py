"""One self-contained page for a search: what it found, in sentences, pictures and code to paste."""

from __future__ import annotations

import math
import pathlib
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_regtools import plots
from keras_regtools.plots.picture import png
from keras_regtools.records.files import write_whole
from keras_regtools.report.page import Page, put_pictures, template
from keras_regtools.search import comparable, findings, importance, is_choice, table
from keras_regtools.validation import checked, path

if TYPE_CHECKING:
    import os

_ROWS, _MARGINALS, _FOR_IMPORTANCE = 15, 6, 12


@checked(directory=path)
def write_search(
    tuner: Any,
    directory: str | os.PathLike[str],
    *,
    confirmation: Any = None,
    hypermodel: Any = None,
    title: str = "Search",
) -> Page:
    """Write `search.html`: what a search found, the best settings as code to paste, pictures, and
    the best trials.

    Args:
        tuner: A `keras_tuner.Tuner` or an `optuna.Study`.
        directory: Where the page and its pictures go; made if it is not there.
        confirmation: What `tuner.confirm` gave, or `None`.
        hypermodel: The `RegularizationHyperModel` of a study, for the code; a tuner knows its own.
        title: Of the page.

    Returns:
        A `Page`, which a notebook shows; `.path` is the HTML file.

    Raises:
        TypeError: neither a tuner nor a study.
        ValueError: no trial was completed.
    """
    trials = table(tuner, failed=True)
    kept = comparable(trials)
    if not len(kept):
        raise ValueError("Expected a tuner with completed trials. Received: none")
    place = pathlib.Path(directory)
    place.mkdir(parents=True, exist_ok=True)
    mattered = _importance(kept)
    drawn = [
        (name, png(draw, 4.2), reading)
        for name, draw, reading in _pictures(kept, mattered, confirmation)
    ]
    page, shown, names = put_pictures(place, "search", drawn)
    columns, rows = _rows(trials)
    code = _code(hypermodel or getattr(tuner, "hypermodel", None), kept)
    text = template("search").render(
        title=title,
        findings=findings(trials, mattered, confirmation),
        code=code,
        pictures=shown,
        files=" ".join(names),
        columns=columns,
        rows=rows,
    )
    write_whole(page, text)
    return Page(page)


def _importance(kept):
    if len(kept) < _FOR_IMPORTANCE:
        return None
    try:
        return importance(kept)
    except ImportError:  # Optuna is an extra
        return None


def _code(hypermodel, kept):
    if not hasattr(hypermodel, "code"):
        return None
    row = kept.iloc[0]
    values = {name: row[name] for name in kept.attrs["space"] if not _is_missing(row[name])}
    return hypermodel.code({k: v.item() if hasattr(v, "item") else v for k, v in values.items()})


def _is_missing(value):
    return value is None or (isinstance(value, float) and math.isnan(value))


def _pictures(kept, mattered, confirmation):
    objective = kept.attrs["objective"]
    yield (
        "best_so_far",
        lambda ax: plots.best_so_far(kept, ax),
        "Every trial in the order in which they were made, and the best so far. Where the line has "
        "been flat for long, more trials of this kind bring little.",
    )
    if confirmation is not None:
        yield (
            "confirmation",
            lambda ax: plots.confirmation(confirmation, ax),
            "Trained again on fresh seeds and scored on data that no trial saw. An interval that "
            "crosses the line may be chance.",
        )
    if mattered is not None:
        yield (
            "importance",
            lambda ax: plots.importance(mattered, ax),
            "How much each hyperparameter has to do with being among the best quarter of the "
            "trials. An interval that reaches zero: it may not matter.",
        )
    searched = [n for n in kept.attrs["space"] if kept[n].nunique() > 1]
    if len(searched) > 1:
        yield (
            "parallel_coordinates",
            lambda ax: plots.parallel_coordinates(kept, ax, searched),
            "A line for each trial through all that was searched; the dark wide ones are the best. "
            "Where they go through one place of an axis, that value is wanted.",
        )
    names = searched if mattered is None else list(mattered["hyperparameter"])
    names = [n for n in names if not n.endswith("/on")]
    names += [n for n in searched if n not in names and not n.endswith("/on")]
    for name in names[:_MARGINALS]:
        yield (
            f"effect_of_{name.replace('/', '_')}",
            lambda ax, name=name: plots.marginal_effect(kept, name, ax=ax),
            f"{objective} over {name}: all trials in grey, means with 95 % intervals in blue. The "
            "other hyperparameters were whatever they were.",
        )
    for ingredient in ("l2", "dropout"):
        both = [f"{kind}/{ingredient}" for kind in ("conv", "dense")]
        known = set(both) <= set(searched) and kept[both].notna().all(axis=1).sum() >= 12
        if known and not any(is_choice(kept, n) for n in both):
            yield (
                f"conv_against_dense_{ingredient}",
                lambda ax, i=ingredient: plots.conv_against_dense(kept, i, ax),
                f"Convolutional against dense layers. If both wanted the same {ingredient}, the "
                "best fields would lie on the diagonal.",
            )
    wanted = "larger" if kept.attrs["direction"] == "max" else "smaller"
    for other in ("sharpness", "parameters", "seconds"):
        if other in kept and kept[other].nunique() > 2 and objective != other:
            yield (
                f"pareto_front_{other}",
                lambda ax, other=other: plots.pareto_front(kept, other, ax=ax),
                f"Each dot is a trial. For those on the orange line no other has both a {wanted} "
                f"{objective} and a smaller {other}.",
            )
            break


def _rows(trials):
    shown = trials.head(_ROWS).dropna(axis=1, how="all")
    rows = [[_cell(value) for value in row] for row in shown.itertuples(index=False)]
    return list(shown.columns), rows


def _cell(value):
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (float, np.floating)):
        return "" if math.isnan(value) else f"{value:.4g}"
    return "" if value is None else str(value)
