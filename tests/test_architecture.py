"""The house of CONTRIBUTING.md: each room imports only the rooms below it, and stays small."""

import ast
import importlib
import inspect
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "keras_regtools"
FILES = sorted(PACKAGE.rglob("*.py"))
EVERYWHERE = {"keras", "numpy", "validation", "keras_internals", "version"}
INSIDES = re.compile(  # what only keras_internals.py may name
    r"\.train_function\b|\._trainable_variables\b|_var_key|SerializableDict|object\.__delattr__|keras_history"
)
FRAMEWORKS = {"tensorflow", "jax", "torch"}


def table():
    """The rooms of the table in CONTRIBUTING.md: name -> (floor, what it may import)."""
    rooms = {}
    rows = re.findall(
        r"^\| (\d) \| (.+?) \| [^|]+ \|([^|\n]*)\|$",
        (ROOT / "CONTRIBUTING.md").read_text("utf-8"),
        re.MULTILINE,
    )
    for floor, names, imports in rows:
        for name in re.findall(r"`(\w+?)(?:/|\.py)`", names):
            rooms[name] = (int(floor), set(re.findall(r"`(\w+)`", imports)))
    return rooms


ROOMS = table()


def room_of(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def imports(path):
    """`(top-level module or room of ours, whether it waits: in a function or for types only)`."""
    tree = ast.parse(path.read_text("utf-8"))
    inside = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, (ast.FunctionDef, ast.AsyncFunctionDef))
        or (isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING")
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module]
            if node.module == "keras_regtools":
                names = [f"keras_regtools.{alias.name}" for alias in node.names]
        for name in names:
            first, *rest = name.split(".")
            yield (rest[0] if first == "keras_regtools" and rest else first), id(node) in inside


def inner_files():
    return [
        path
        for path in FILES
        if room_of(path) not in ("__init__", "version", "validation", "keras_internals")
    ]


def test_the_table_and_the_rooms_are_the_same():
    rooms = {room_of(path) for path in inner_files()}
    assert rooms == set(ROOMS)


@pytest.mark.parametrize("path", inner_files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_room_imports_only_what_the_table_allows(path):
    room = room_of(path)
    allowed = {*EVERYWHERE, room, *ROOMS[room][1]}
    if room == "backend":
        allowed |= {path.stem.removeprefix("_").split("_")[0]} & FRAMEWORKS
    standard = sys.stdlib_module_names
    received = {name for name, _ in imports(path) if name not in standard}
    assert received <= allowed


@pytest.mark.parametrize("room", ROOMS)
def test_what_a_room_may_import_is_not_above_it(room):
    floor, allowed = ROOMS[room]
    assert all(ROOMS[name][0] <= floor for name in allowed if name in ROOMS)


def test_rooms_do_not_go_in_circles():
    edges = {
        room: {name for name in allowed if name in ROOMS} for room, (_, allowed) in ROOMS.items()
    }
    while edges:
        leaves = [room for room, needed in edges.items() if not needed & set(edges)]
        assert leaves, f"a circle among {sorted(edges)}"
        for room in leaves:
            del edges[room]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_heavy_packages_are_imported_inside_functions(path):
    heavy = {"scipy", "pandas", "matplotlib", "jinja2", "plotly"}
    assert not [name for name, inside in imports(path) if name in heavy and not inside]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_the_backend_names_a_framework_and_nobody_names_keras_insides(path):
    source = path.read_text("utf-8")
    assert "keras.src" not in source
    if path.name != "keras_internals.py":
        assert not INSIDES.findall(source)
    if room_of(path) != "backend":
        assert not FRAMEWORKS & {name for name, _ in imports(path)}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_stay_small_and_say_what_they_are(path):
    source = path.read_text("utf-8")
    assert len(source.splitlines()) <= 300
    assert ast.get_docstring(ast.parse(source))


def public_objects():
    import keras_regtools as rt

    modules = [rt, *(getattr(rt, n) for n in rt.__all__ if inspect.ismodule(getattr(rt, n)))]
    for module in modules:
        for name in getattr(module, "__all__", []):
            value = getattr(module, name)
            if inspect.isfunction(value) or inspect.isclass(value):
                yield pytest.param(value, id=f"{module.__name__}.{name}")


def untyped(function):
    signature = inspect.signature(function)
    given = [p.annotation for n, p in signature.parameters.items() if n not in ("self", "cls")]
    return inspect.Signature.empty in (*given, signature.return_annotation)


@pytest.mark.parametrize("value", list(public_objects()))
def test_every_public_signature_is_typed(value):
    functions = [value]
    if inspect.isclass(value):
        own = {n: v for n, v in vars(value).items() if n == "__init__" or not n.startswith("_")}
        functions = [getattr(v, "fget", getattr(v, "__func__", v)) for v in own.values()]
    assert not [f for f in functions if inspect.isfunction(f) and untyped(f)]


@pytest.mark.parametrize("value", list(public_objects()))
def test_every_public_name_is_documented(value):
    assert value.__doc__
    assert value.__doc__.strip().split("\n\n")[0].endswith(".")


@pytest.mark.parametrize("room", [*ROOMS, "validation", "keras_internals"])
def test_what_is_internal_says_so_and_completion_shows_what_is_public(room):
    module = importlib.import_module(f"keras_regtools.{room}")
    public = room in importlib.import_module("keras_regtools").__all__
    assert module.__doc__.startswith("Internal: ") != public
    if public:
        assert sorted(dir(module)) == sorted(module.__all__)


def test_importing_adds_nothing_heavy_to_what_keras_brings():
    code = (
        "import sys, keras; before = set(sys.modules); import keras_regtools; "
        "print(sorted({m.split('.')[0] for m in set(sys.modules) - before}))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    added = set(ast.literal_eval(result.stdout.strip().splitlines()[-1]))
    assert not added & {"keras_tuner", "tensorboard", "sklearn", "matplotlib", "scipy", "jinja2"}
