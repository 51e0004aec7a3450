"""The site: README, concepts, decisions, notebooks as they were executed, and every public function."""

import pathlib
import pkgutil
import shutil

import numdl

HERE = pathlib.Path(__file__).resolve().parent
project, author, release = "numdl", "The numdl developers", numdl.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
myst_enable_extensions = ["dollarmath"]
nb_execution_mode = "off"
suppress_warnings = ["myst.xref_missing", "mystnb.unknown_mime_type"]
html_theme, html_title = "furo", "numdl"
html_static_path, html_css_files = ["_static"], ["wide.css"]
exclude_patterns = ["_build"]
autodoc_typehints = "none"
autodoc_member_order = "bysource"


def _pages():
    """Copy the notebooks and write one page for each package; both are made anew at every build."""
    made = HERE / "generated"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir()
    for notebook in sorted((HERE.parent / "notebooks").glob("*.ipynb")):
        shutil.copy(notebook, made)
    groups = {}
    for module in pkgutil.walk_packages(numdl.__path__, "numdl."):
        if not any(part.startswith("_") for part in module.name.split(".")):
            groups.setdefault(module.name.split(".")[1], []).append(module.name)
    for group, modules in groups.items():
        lines = [f"# numdl.{group}", ""]
        for name in modules:
            lines += [f"## {name}", "", "```{eval-rst}", f".. automodule:: {name}", "   :members:", "```", ""]
        (made / f"{group}.md").write_text("\n".join(lines))


def _as_written(app, what, name, obj, options, lines):
    """Docstrings are plain text with formulas in columns, not markup: show them as they stand in the source."""
    lines[:] = [".. code-block:: text", "", *("    " + line for line in lines), ""]


def setup(app):
    app.connect("autodoc-process-docstring", _as_written)


_pages()
