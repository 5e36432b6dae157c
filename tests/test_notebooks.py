"""The notebooks run from their first cell to their last, and keep what their cells gave."""

import pathlib

import nbclient
import nbformat
import pytest

NOTEBOOKS = pathlib.Path(__file__).parents[1] / "examples" / "notebooks"
NAMES = ["alexnet", "lenet5", "resnet", "vgg"]


def cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts(notebook):
    """What the cells printed."""
    outputs = [output for cell in cells(notebook) for output in cell.outputs]
    assert all(output.output_type != "error" for output in outputs)
    return "".join(output.text for output in outputs if output.output_type == "stream")


def pages(notebook):
    """The reports that show themselves."""
    outputs = [output for cell in cells(notebook) for output in cell.outputs]
    found = [output.data.get("text/html", "") for output in outputs if "data" in output]
    return [page for page in found if "training report" in page]


def test_there_is_one_for_each_network_of_the_course():
    assert sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_file_has_what_its_cells_gave(name):
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    numbers = [cell.execution_count for cell in cells(notebook)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert all(cell.outputs for cell in cells(notebook))
    lines = texts(notebook).splitlines()
    assert any(line.startswith("Epoch 1/") for line in lines)
    assert max(map(len, lines)) <= 160  # a progress line can be read
    assert len(pages(notebook)) == (name != "resnet")
    assert "keras_regtools as rt" in "".join(cell.source for cell in cells(notebook))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_runs(name, tmp_path):
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    before = len(texts(notebook).splitlines()), len(pages(notebook))
    for cell in cells(notebook):
        cell.outputs, cell.execution_count = [], None
    resources = {"metadata": {"path": str(tmp_path)}}
    options = {"timeout": 600, "kernel_name": "python3", "resources": resources}
    nbclient.NotebookClient(notebook, **options).execute()
    printed = [line for line in texts(notebook).splitlines() if "port.cc" not in line]
    assert len(printed) >= before[0]
    assert len(pages(notebook)) == before[1]
