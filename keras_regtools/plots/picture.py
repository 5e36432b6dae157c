"""A picture of a run declares what it draws, how to read it, what it found, when it is shown."""

import dataclasses
import io
from collections.abc import Callable
from typing import Any, TypeVar

from keras_regtools.plots.axes import AXES, RECORDS
from keras_regtools.validation import checked

_Function = TypeVar("_Function", bound=Callable[..., Any])


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture of a run.

    Attributes:
        name: The file's, without its ending.
        draw: Function of records and an Axes.
        draws: The names of the records that it draws; one that ends in a slash stands for all that
            begin with it.
        caption: How to read it in this run: a function of the records.
        finding: What it found, a function of the records: a sentence, a list of them, or `None`.
        shown: Whether it is worth showing, a function of the records; by default, whether there is
            anything that it draws.
        rows: How many layers stand below each other in it, a function of the records.
    """

    name: str
    draw: Callable
    draws: tuple
    caption: Callable
    finding: Callable = lambda records: None
    shown: Callable | None = None
    rows: Callable = lambda records: 0

    def is_of(self, name):
        """Whether it draws the records of this name."""
        return any(name == own or (own[-1] == "/" and name.startswith(own)) for own in self.draws)

    def is_shown(self, records):
        if self.shown is not None:
            return bool(self.shown(records))
        return any(self.is_of(name) for name in records.names())

    def found(self, records):
        """Its findings, a list of sentences."""
        found = self.finding(records)
        found = [found] if isinstance(found, str) else found or []
        return [sentence for sentence in found if sentence]

    def png(self, records):
        """The picture as the bytes of a PNG file."""
        height = max(4.0, 1.2 + 0.16 * self.rows(records))
        return png(lambda ax: self.draw(records, ax), height)


def png(draw, height=4.0):
    """The bytes of a PNG file, of what `draw(ax)` draws in the size of a page's pictures."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, height), dpi=110, layout="constrained")
    draw(figure.subplots())
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def file_name(text):
    """A text with the characters that the name of a picture may have."""
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in text)


_DECLARED: dict[str, Any] = {}


def picture(place: float, *draws: str, **how: Any) -> Callable[[_Function], _Function]:
    """Declare a function of records and an Axes as a picture of the page of each run.

    Args:
        place: A number that orders the pictures of a page.
        *draws: As in `Picture`.
        **how: The other attributes of a `Picture`: `caption` at least.
    """

    def declare(draw: _Function) -> _Function:
        call = checked(records=RECORDS, ax=AXES)(draw)
        _DECLARED[call.__name__] = (place, Picture(call.__name__, call, draws, **how))
        return call

    return declare


def declared():
    """All pictures of runs, in the order of the page."""
    return [picture for _, picture in sorted(_DECLARED.values(), key=lambda item: item[0])]
