"""What a run showed, written into its picture: a picture goes where its sentences do not."""

import textwrap

_LETTERS = 14.5  # that fit into an inch, at this size
_STYLE = {"fontsize": 9, "ha": "left", "linespacing": 1.3}


def below(figure, text):
    """Sentences below all panels; the figure grows by their height."""
    width, height = figure.get_size_inches()
    lines = _lines(text, width)
    figure.set_size_inches(width, height + 0.17 * len(lines) + 0.1)
    figure.supxlabel("\n".join(lines), x=0.01, **_STYLE)


def under(ax, text):
    """Sentences below one panel, in the width of one of three."""
    figure = ax.figure
    lines = _lines(text, 0.9 * figure.get_size_inches()[0] / 3)
    ax.set_xlabel(ax.get_xlabel() + "\n\n" + "\n".join(lines), x=0, **_STYLE)


def _lines(text, inches):
    paragraphs = [line.strip() for line in text.splitlines() if line.strip()]
    width = round(_LETTERS * inches)
    return [line for part in paragraphs for line in textwrap.wrap(part, width)]
