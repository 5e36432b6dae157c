"""What the site needs beside the pages: the reference, the changelog, and links that hold there.

mkdocs calls the functions that begin with `on_`.
"""

import functools
import importlib
import inspect
import os
import pathlib
import re
import types

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = "keras_regtools"
_LINK = re.compile(r"\[([^\[\]]*)\]\(\.\./([^)\s]+)\)")
_FROM_ELSEWHERE = re.compile(
    r"<(?:script|img)[^>]*src=.?(https?://[^\s\"'>]*)|<link[^>]*rel=.?stylesheet[^>]*href=.?(https?://[^\s\"'>]*)"
)
_NAME = re.compile(r"`([\w.]+)[^`]*`")


@functools.cache
def rooms():
    """Dict from each public module to the public names in it."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    found, waiting = {}, [PACKAGE]
    while waiting:
        path = waiting.pop(0)
        module = importlib.import_module(path)
        found[path] = []
        for name in module.__all__:
            value = getattr(module, name)
            if isinstance(value, types.ModuleType):
                waiting.append(value.__name__)
            elif not name.startswith("__"):
                found[path].append(name)
    return found


def reference(room):
    """The page of a module: what it is for, and each public name from its docstring."""
    module = importlib.import_module(room)
    title = room.removeprefix(f"{PACKAGE}.")
    lines = [f"# {title}", "", inspect.getdoc(module) or "", ""]
    for name in sorted(rooms()[room], key=str.lower):
        lines += [f"::: {place_of(room, name)}", ""]
    return "\n".join(lines)


def place_of(room, name):
    """Where the docstring of a public name is: a function may have the name of its file."""
    value = getattr(importlib.import_module(room), name)
    if inspect.isclass(value) or inspect.isfunction(value):
        return f"{value.__module__}.{value.__qualname__}"
    return f"{room}.{name}"


def place(room):
    """Where the page of a module is."""
    return f"reference/{room.removeprefix(f'{PACKAGE}.')}.md"


def identifier(name):
    """The full name of what a page calls `callbacks.Report` or `Records.add_writer`."""
    short = name.removeprefix("rt.")
    for room, names in rooms().items():
        for own in names:
            full = f"{room}.{own}"
            for known in (full, full.removeprefix(f"{PACKAGE}."), own):
                if short == known or short.startswith(f"{known}."):
                    return place_of(room, own) + short[len(known) :]
    return None


def on_files(files, config):
    """Add the reference and the changelog."""
    from mkdocs.structure.files import File

    for room in rooms():
        files.append(File.generated(config, place(room), content=reference(room)))
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    files.append(File.generated(config, "changelog.md", content=text))
    return files


def on_config(config):
    """Put the pages of the reference into the navigation."""
    pages = [place(room) for room in rooms()]
    config["nav"] = [{"Reference": pages} if "Reference" in one else one for one in config["nav"]]
    return config


def on_page_markdown(markdown, page, config, files):
    """Links to source files become links to the reference; those to other files, plain text."""

    def linked(match):
        text, path = match.groups()
        names = _NAME.findall(text) if path.startswith(f"{PACKAGE}/") else []
        known = [(name, identifier(name)) for name in names]
        if known and all(full for _, full in known):
            return ", ".join(f"[`{name}`][{full}]" for name, full in known)
        return text if "`" in text else f"{text} (`{path}`)"

    return _LINK.sub(linked, markdown)


def on_post_build(config):
    """Every public name must have a place in the reference."""
    for room, names in rooms().items():
        page = pathlib.Path(config.site_dir, place(room)).with_suffix(".html").read_text("utf-8")
        missing = [name for name in names if f'id="{place_of(room, name)}"' not in page]
        if missing:
            raise ValueError(f"The reference of {room} lacks {missing}")
    for page in pathlib.Path(config.site_dir).rglob("*.html"):
        if found := _FROM_ELSEWHERE.findall(page.read_text("utf-8")):
            raise ValueError(f"{page.name} loads {found} from elsewhere")
