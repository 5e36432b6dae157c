"""The site: its reference has every public name, and what it rewrites leads somewhere."""

import importlib
import importlib.util
import pathlib
import types

import pytest

import keras_regtools

DOCS = pathlib.Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def site():
    spec = importlib.util.spec_from_file_location("_site", DOCS / "_site.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def public(module=keras_regtools):
    """`(module, name)` of everything that users may import, modules apart."""
    for name in module.__all__:
        value = getattr(module, name)
        if isinstance(value, types.ModuleType):
            yield from public(value)
        elif name != "__version__":
            yield module.__name__, name


def test_the_reference_has_every_public_name(site):
    pages = {room: site.reference(room) for room in site.rooms()}
    found = list(public())
    assert len(found) > 100
    for room, name in found:
        assert f"::: {site.place_of(room, name)}\n" in pages[room], (room, name)


def test_the_place_of_a_name_is_where_its_docstring_is(site):
    for room, name in public():
        where, _, last = site.place_of(room, name).rpartition(".")
        value = getattr(importlib.import_module(where), last)
        assert value is getattr(importlib.import_module(room), name)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "[`callbacks.Report`](../keras_regtools/callbacks/report.py)",
            "[`callbacks.Report`][keras_regtools.callbacks.report.Report]",
        ),
        (
            "[`Records.add_writer`](../keras_regtools/records/records.py)",
            "[`Records.add_writer`][keras_regtools.records.records.Records.add_writer]",
        ),
        (
            "[`instrument`](../keras_regtools/surgery/instrument.py)",
            "[`instrument`][keras_regtools.surgery.instrument.instrument]",
        ),
        (
            "[`records.read`, `records.read_many`](../keras_regtools/records/reading.py)",
            "[`records.read`][keras_regtools.records.reading.read], "
            "[`records.read_many`][keras_regtools.records.reading.read_many]",
        ),
        ("[`examples/vgg.py`](../examples/vgg.py)", "`examples/vgg.py`"),
        ("[results](../benchmarks/results)", "results (`benchmarks/results`)"),
        ("[here](search.md)", "[here](search.md)"),
    ],
)
def test_links_to_files_beside_the_pages_become_what_the_site_has(text, expected, site):
    assert site.on_page_markdown(text, None, None, None) == expected


def test_every_page_is_in_the_navigation():
    navigation = (DOCS.parent / "mkdocs.yml").read_text("utf-8")
    for page in DOCS.glob("*.md"):
        assert f"{page.name}\n" in navigation, page.name
