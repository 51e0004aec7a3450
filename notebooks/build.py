"""Write and execute every notebook: `python notebooks/build.py [NAME ...]` turns NAME.py into NAME.ipynb with outputs.

The .py file (percent format) is the source; figures are kept small, so that the .ipynb stays readable on a code host.
"""

import pathlib
import sys

import jupytext
from nbclient import NotebookClient

FOLDER = pathlib.Path(__file__).resolve().parent


def build(source):
    """Execute one notebook and write it beside its source."""
    notebook = jupytext.read(source)
    for cell in notebook.cells:
        cell.metadata = {}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}}).execute()
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
        cell.metadata.pop("execution", None)
    notebook.metadata.pop("jupytext", None)
    jupytext.write(notebook, source.with_suffix(".ipynb"))
    print(f"{source.stem}: {source.with_suffix('.ipynb').stat().st_size / 1024:.0f} kB")


if __name__ == "__main__":
    wanted = sys.argv[1:]
    for path in sorted(FOLDER.glob("[0-9]*.py")):
        if not wanted or path.stem in wanted:
            build(path)
