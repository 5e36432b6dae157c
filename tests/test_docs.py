"""The pages do what they say: every Python block runs, prints what is said, and links work.

The blocks of a page run from top to bottom in one namespace, in an empty directory. A `text` block
right below a Python block is what that block prints; `...` in it stands for anything.
"""

import contextlib
import doctest
import functools
import inspect
import io
import pathlib
import re
import traceback
from typing import NamedTuple

import matplotlib.pyplot as plt
import pytest
from problems import rows

import keras_regtools as rt

# KerasTuner asks for the name of its thread in the way of Python 2.
pytestmark = pytest.mark.filterwarnings(r"ignore::DeprecationWarning:keras_tuner\.")

ROOT = pathlib.Path(__file__).parents[1]
DOCS = sorted(path.name for path in (ROOT / "docs").glob("*.md"))
PAGES = ["README.md", *(f"docs/{name}" for name in DOCS)]
LONG = [
    f"docs/{name}.md"
    for name in (
        "tutorials", "search", "reports", "curvature", "sharpness", "activations", "learning-rate",
        "penalties", "batch-normalization", "loss-surface", "landscapes", "small-vs-large-batch",
    )
] + ["README.md"]  # fmt: skip
KINDS = {"python", "text", "diff", "bash"}

_LINK = re.compile(r"!?\[([^\]]*)\]\(([^)\s]+)\)")
_FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


class Block(NamedTuple):
    kind: str
    line: int  # of its first line of code
    code: str
    above: int  # line on which the block or paragraph above it ends


def blocks_of(text):
    """The fenced blocks of a page, and the text around them."""
    blocks, prose, above = [], [], 0
    kind, code = None, []
    for number, line in enumerate(text.splitlines(), 1):
        if kind is None and line.startswith("```"):
            kind, code = line[3:].strip(), []
        elif kind is not None and line.rstrip() == "```":
            start = number - len(code)
            blocks.append(Block(kind, start, "".join(f"{c}\n" for c in code), above))
            kind, above = None, number
        elif kind is not None:
            code.append(line)
        else:
            prose.append(line)
            above = number if line.strip() else above
    assert kind is None, f"The block ``` {kind} is not closed"
    return blocks, "\n".join(prose)


@functools.cache
def page(name):
    return blocks_of((ROOT / name).read_text("utf-8"))


def run(name, block, namespace):
    """Run a block, and return what it printed."""
    # Empty lines in front: a traceback tells the line of the page.
    code = compile("\n" * (block.line - 1) + block.code, str(ROOT / name), "exec")
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output):
            exec(code, namespace)
    except Exception as error:
        trace = "".join(traceback.format_exception(error))
        pytest.fail(
            f"The Python block of {name} in line {block.line} failed: {error!r}\n\n"
            f"{block.code}\n{trace}",
            pytrace=False,
        )
    return output.getvalue()


@pytest.mark.parametrize("name", rows(PAGES, *(p for p in PAGES if p not in LONG)))
def test_the_python_blocks_run_and_print_what_is_said(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    printed, end = "", None
    try:
        for block in page(name)[0]:
            if block.kind == "python":
                printed = run(name, block, namespace)
                end = block.line + block.code.count("\n")
            elif block.kind == "text" and block.above == end:
                assert doctest.OutputChecker().check_output(block.code, printed, _FLAGS), (
                    f"{name}, line {block.line}: the page says that this is printed\n\n"
                    f"{block.code}\nand this was printed\n\n{printed}"
                )
    finally:
        plt.close("all")


@pytest.mark.parametrize("name", PAGES)
def test_every_block_says_what_it_is(name):
    assert {block.kind for block in page(name)[0]} <= KINDS


def anchors(name):
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page(name)[1], re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in headings}


def links(name):
    return [link for link in _LINK.findall(page(name)[1]) if "://" not in link[1]]


@pytest.mark.parametrize("name", PAGES)
def test_every_relative_link_leads_somewhere(name):
    for _, target in links(name):
        path, _, anchor = target.partition("#")
        file = (ROOT / name).parent / path if path else ROOT / name
        assert file.exists(), f"{name} links to {target}, which is not there"
        if anchor:
            linked = file.resolve().relative_to(ROOT).as_posix()
            assert anchor in anchors(linked), f"{name} links to {target}: no such heading"


@pytest.mark.parametrize("name", PAGES)
def test_a_name_links_to_the_file_with_its_docstring(name):
    for label, target in links(name):
        if not (re.fullmatch(r"`[\w.]+`", label) and "keras_regtools/" in target):
            continue
        found = rt
        for part in label.strip("`").removeprefix("keras_regtools.").split("."):
            found = getattr(found, part, None)
        assert found is not None, f"{name}: there is no {label} in keras_regtools"
        assert inspect.getdoc(found), f"{name}: {label} has no docstring"
        linked = ((ROOT / name).parent / target).resolve()
        source = pathlib.Path(inspect.getsourcefile(inspect.unwrap(found)))
        assert linked == source, f"{name}: {label} is in {source}"


def test_the_index_names_every_page():
    listed = [target for _, target in links("docs/index.md") if "/" not in target]
    assert sorted([*listed, "index.md"]) == DOCS
