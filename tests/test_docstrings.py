"""Every public function says all that a caller needs: parameters, types, errors, sources; each twin names the other.

Read from the source, without importing it. A module or a name with a leading underscore is internal, unless the face of
its package offers it: what `numdl/data/__init__.py` takes from `numdl/data/_batching.py` is `data.batches`.
"""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "numdl"

SECTIONS = ("Parameters", "Returns", "Raises")


def public_files():
    for path in sorted(PACKAGE.rglob("*.py")):
        inside = path.relative_to(PACKAGE).with_suffix("").parts
        if not any(part.startswith("_") and part != "__init__" for part in inside):
            yield ".".join(part for part in inside if part != "__init__"), path


def taken(face):
    """{name: the internal file it comes from} of what a face offers from `_modules`: a module's `__all__` says what."""
    found, tree = {}, ast.parse(face.read_text())
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[-1].startswith("_"):
            file = ROOT / pathlib.Path(*node.module.split(".")).with_suffix(".py")
            found |= {alias.asname or alias.name: file for alias in node.names}
    lists = [n.value for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "__all__"]
    unsaid = [name for name in found if not name.startswith("_")] if face.name == "__init__.py" else []
    offered = ast.literal_eval(lists[0]) if lists else unsaid
    return {name: file for name, file in found.items() if name in offered}


def functions_in(path):
    return {node.name: node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


def public_functions():
    """(module.name, function, the module's functions by name) of every public function."""
    for module, path in public_files():
        for name, file in (dict.fromkeys(functions_in(path), path) | taken(path)).items():
            known = functions_in(file)
            if name in known and not name.startswith("_"):
                yield f"{module}.{name}", known[name], known


FUNCTIONS = list(public_functions())


def arguments(node):
    spec = node.args
    return [*spec.posonlyargs, *spec.args, *spec.kwonlyargs, *filter(None, (spec.vararg, spec.kwarg))]


def section(text, name):
    """The lines of one section of a docstring."""
    found = re.search(rf"^{name}\n-+\n(.*?)(?=^\w[\w ]*\n-+\n|^[A-Z]\w*: |\Z)", text, re.MULTILINE | re.DOTALL)
    return found[1] if found else ""


def listed(text):
    """Names that the Parameters section explains: 'x, y : array [N]    what they are'."""
    heads = re.findall(r"^([*\w][*\w, ]*?) ?:", section(text, "Parameters"), re.MULTILINE)
    return {name.strip().lstrip("*") for head in heads for name in head.split(",")}


def raises(node, known, seen=()):
    """Whether the function refuses something: itself, by a check, or in a helper of its module."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Raise) and inner.exc is not None:
            return True
        if not isinstance(inner, ast.Call):
            continue
        called = inner.func
        if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name) and called.value.id == "checks":
            return True
        name = called.id if isinstance(called, ast.Name) else None
        if name in known and name not in seen and raises(known[name], known, (*seen, name)):
            return True
    return False


def has_formula(text):
    """Whether the docstring shows a formula: an indented line with a relation, before the sections."""
    before = re.split(r"^(?:Parameters|Returns|Raises)\n-+", text, flags=re.MULTILINE)[0]
    return bool(re.search(r"^ {4,}\S.* (?:=|<=|>=|->|~) ", before, re.MULTILINE))


CHECKED = [pytest.param(*function, id=function[0]) for function in FUNCTIONS]


@pytest.mark.parametrize("name, node, known", CHECKED)
def test_every_parameter_is_listed_and_annotated(name, node, known):
    text = ast.get_docstring(node) or ""
    given = {argument.arg for argument in arguments(node)}
    assert given <= listed(text), f"{name} lists {sorted(listed(text))} of {sorted(given)}"
    assert listed(text) <= given, f"{name} lists what it does not take: {sorted(listed(text) - given)}"
    bare = [argument.arg for argument in arguments(node) if argument.annotation is None]
    assert not bare, f"{name} has no types for {bare}"
    assert node.returns is not None, f"{name} has no type for what it returns"


@pytest.mark.parametrize("name, node, known", CHECKED)
def test_errors_and_sources_are_told(name, node, known):
    text = ast.get_docstring(node) or ""
    if raises(node, known):
        assert section(text, "Raises").strip(), f"{name} refuses something and does not say what"
    if has_formula(text):
        assert "Source:" in text, f"{name} shows a formula without its source"


def test_the_reader_sees_what_is_missing():
    code = '''
def f(a, b):
    """One.

        a = b

    Parameters
    ----------
    a, c : array [N]    numbers
        that are few: two
    d : int             whole
    Source: elementary.
    e : int             behind the section
    """
    return _g(a)
def _g(a):
    checks.whole("a", a)
'''
    nodes = {node.name: node for node in ast.parse(code).body}
    text = ast.get_docstring(nodes["f"])
    assert listed(text) == {"a", "c", "d"}
    assert raises(nodes["f"], nodes)
    assert has_formula(text)
    assert not section(text, "Raises")


def test_the_reader_finds_what_a_face_offers():
    names = {name for name, *_ in FUNCTIONS}
    assert {"data.batches", "data.idx.read", "optimize.train.fit", "optimize.train.gradient_noise"} <= names
    assert not [name for name in names if any(part.startswith("_") for part in name.split("."))]
