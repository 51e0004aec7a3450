"""The site: guides, concepts, notebooks as they were executed, experiments and the reference; offline throughout."""

import pathlib
import re
import shutil
import sys

from docutils import nodes
from sphinx.util import logging

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import formulas  # noqa: E402
import glossary  # noqa: E402
import pictures  # noqa: E402
import questions  # noqa: E402
import reference  # noqa: E402

import numdl  # noqa: E402

project, author, release = "numdl", "The numdl developers", numdl.__version__
copyright = "The numdl developers, Apache 2.0"
extensions = ["myst_nb", "sphinx.ext.viewcode"]
myst_enable_extensions = ["dollarmath"]
nb_execution_mode = "off"
nb_merge_streams = True
suppress_warnings = ["mystnb.unknown_mime_type"]
html_theme, html_title = "furo", "numdl"
html_static_path, html_css_files = ["_static"], ["site.css"]
exclude_patterns = ["_build"]
html_math_renderer = "mathml"
python_maximum_signature_line_length = 90
python_use_unqualified_type_names = True
toc_object_entries = False
pygments_dark_style = "github-dark"


def made():
    """Write the pages that are made from the source; return what public names leave unsaid."""
    folder = HERE / "generated"
    shutil.rmtree(folder, ignore_errors=True)
    for part in ("api", "experiments", "notebooks", "pictures"):
        (folder / part).mkdir(parents=True)
    for notebook in sorted((HERE.parent / "notebooks").glob("*.ipynb")):
        shutil.copy(notebook, folder / "notebooks")
    pictures.write(folder / "pictures")
    pages = reference.Reference(questions.short_names())
    pages.write(folder / "api")
    questions.write(folder / "experiments", pages)
    (folder / "glossary.md").write_text(glossary.page(pages), encoding="utf-8")
    (folder / "changelog.md").write_text((HERE.parent / "CHANGELOG.md").read_text(encoding="utf-8"), encoding="utf-8")
    return list(pages.gaps())


def _visit_math(self, node):
    self.body.append(formulas.mathml(node.astext(), display=isinstance(node, nodes.math_block)))
    raise nodes.SkipNode


def _breakable(app, page, template, context, doctree):
    """Let dotted names break after a dot: a column of them is then as narrow as their longest part."""
    dotted = re.compile(r'(?<=<span class="pre">)[\w.]+(?=</span>)')
    if "body" in context:
        context["body"] = dotted.sub(lambda name: re.sub(r"\.(?=\w)", ".<wbr>", name[0]), context["body"])


def _warn(app):
    """With -W, which `make docs` sets, an undocumented public name ends the build."""
    for gap in app.config.numdl_gaps:
        logging.getLogger(__name__).warning("undocumented: %s", gap)


def setup(app):
    app.add_html_math_renderer("mathml", (_visit_math, None), (_visit_math, None))
    app.add_config_value("numdl_gaps", made(), "env")
    app.connect("builder-inited", _warn)
    app.connect("html-page-context", _breakable)
