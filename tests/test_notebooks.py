"""Every notebook runs from top to bottom with quick settings, and its committed outputs hold no error."""

import pathlib

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "notebooks"
SOURCES = sorted(FOLDER.glob("[0-9]*.py"))
QUICK = {"00_start_here"}  # the others take half a minute of compilation each
RUNS = [pytest.param(s, marks=() if s.stem in QUICK else pytest.mark.slow, id=s.stem) for s in SOURCES]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("source", RUNS)
def test_notebook_runs(source, monkeypatch):
    monkeypatch.setenv("NUMDL_QUICK", "1")
    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parent))
    notebook = jupytext.read(source)
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute(cwd=str(FOLDER))
    pictures = sum("image/png" in o.get("data", {}) for cell in notebook.cells for o in cell.get("outputs", []))
    assert pictures >= 2


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_committed_notebook_is_its_source_with_outputs(source):
    committed = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
    assert [cell.source for cell in committed.cells] == [cell.source for cell in jupytext.read(source).cells]
    outputs = [output for cell in committed.cells for output in cell.get("outputs", [])]
    assert outputs and not [output for output in outputs if output.output_type == "error"]
    assert source.with_suffix(".ipynb").stat().st_size < 700_000
