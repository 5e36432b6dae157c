"""Docstrings for the site: their examples become blocks of code."""

import re

import griffe

_EXAMPLE = re.compile(r"(?:^>>> .*\n?)(?:^(?!\s*$).*\n?)*", re.MULTILINE)


class Examples(griffe.Extension):
    """Puts fences around what begins with `>>>`, up to the next empty line."""

    def on_instance(self, *, obj, **kwargs):
        if obj.docstring is not None:
            text = _EXAMPLE.sub(lambda m: f"```pycon\n{m[0].rstrip()}\n```\n", obj.docstring.value)
            obj.docstring.value = re.sub(r"^(Examples?|Reference):$", r"**\1**", text, flags=re.M)
