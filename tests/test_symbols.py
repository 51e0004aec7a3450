"""The table of symbols holds: every function exists, names its twin and experiments, and answers to its synonyms."""

import ast
import importlib.util
import pathlib
import re

import pytest

from tests.test_docstrings import taken

ROOT = pathlib.Path(__file__).resolve().parent.parent


def _module(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SYMBOLS = _module(ROOT / "docs" / "symbols.py")
ROWS = SYMBOLS.load()
EXPERIMENTS = {path.stem.split("_")[0] for path in (ROOT / "experiments").rglob("[a-z][0-9]*_*.py")}


def docstring(name):
    """The docstring of 'theory.propagation.lengths', read from the source, or of what a package's face offers."""
    *modules, function = name.split(".")
    folder = ROOT / "numdl" / pathlib.Path(*modules)
    files = [folder.with_suffix(".py")] if folder.with_suffix(".py").is_file() else sorted(folder.glob("*.py"))
    face = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    if face.is_file():
        files = [taken(face).get(function, face), *files]
    for file in files:
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == function:
                return ast.get_docstring(node)
    raise AssertionError(f"numdl.{name} does not exist")


NAMED = {(side, name) for row in ROWS for side in ("predicted", "measured") for name in row[side]}
PAIRS = sorted(NAMED)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["name"])
def test_experiments_exist_and_synonyms_are_found(row):
    assert row["experiments"], "a symbol without an experiment"
    assert set(row["experiments"]) <= EXPERIMENTS
    texts = " ".join(" ".join(docstring(name).split()) for name in (*row["predicted"], *row["measured"])).lower()
    missing = [synonym for synonym in row["synonyms"] if synonym.lower() not in texts]
    assert not missing, f"no docstring says {missing}"


@pytest.mark.parametrize("side, name", PAIRS, ids=lambda value: value)
def test_each_names_its_twin_and_its_experiments(side, name):
    text = docstring(name)
    rows = [row for row in ROWS if name in row[side]]
    shown = {short for row in rows for short in row["experiments"]}
    told = set(re.findall(r"\b([a-z]\d+)\b", " ".join(re.findall(r"Experiments?: ([^.\n]*)", text))))
    assert told, f"{name} names no experiment"
    assert told <= shown, f"{name} names {told - shown}, which the table does not"
    other = "measured" if side == "predicted" else "predicted"
    twins = {twin for row in rows for twin in row[other]}
    named = set(re.findall(r"[\w.]+\.[\w.]+", " ".join(re.findall(r"Twins?: ([^\n]*)", text))))
    if twins:
        assert any(twin.endswith(n.rstrip(".")) for twin in twins for n in named), f"{name} must name one of {twins}"


def test_the_page_is_made_from_the_table():
    text = (ROOT / "docs" / "concepts.md").read_text(encoding="utf-8")
    assert SYMBOLS.page(text, ROWS) == text, "python docs/symbols.py renews it"


def test_functions_of_one_name_in_both_wings_are_in_the_table():
    def names(wing):
        for path in sorted((ROOT / "numdl" / wing).rglob("*.py")):
            module = path.relative_to(ROOT / "numdl" / wing).with_suffix("").parts[0]
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                    yield f"{module}.{node.name}"

    both = set(names("theory")) & set(names("analysis"))
    assert both, "no twins at all"
    listed = {name.removeprefix("theory.") for row in ROWS for name in row["predicted"]}
    assert both <= listed | ALONE, f"not in the table: {sorted(both - listed - ALONE)}"


ALONE = {"normalization.correlation"}  # a property of the same mechanism; its pair is told in the docstrings
