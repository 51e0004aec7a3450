"""The house stands as designed: imports only go down, theory and analysis never meet, importing costs little."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "numdl"
GROUND = {
    "_captured",
    "_compiled",
    "_effort",
    "_hyperparameters",
    "lazy",
    "records",
    "checks",
    "precision",
    "trees",
    "quadrature",
    "_quadrature_rules",
    "_random",
    "_tanh_sinh",
    "_jumps",
    "_closed_forms",
    "_citations",
    "_power_law",
    "_stored",
    "activations",
    "statistics",
    "tracing",
    "krylov",
    "typing",
}
HEAVY = {"matplotlib", "scipy", "flax", "sklearn", "optax", "orbax", "pandas", "xarray", "pooch", "diffrax", "equinox"}
# What each part may import of numdl, beside itself.
MAY_IMPORT = {
    **dict.fromkeys(GROUND, GROUND),
    "ode": GROUND,
    "networks": GROUND | {"ode"},
    "theory": GROUND,
    "analysis": GROUND | {"networks.core", "networks._segments"},
    "optimize": GROUND,
    "data": {"lazy", "checks", "typing", "_stored"},
    "plotting": GROUND,
    "reporting": GROUND,
    "parallel": GROUND | {"analysis", "reporting"},
    "audit": GROUND | {"theory", "analysis", "networks", "ode", "optimize", "plotting", "reporting"},
    "cli": GROUND | {"audit", "reporting", "plotting"},
    "__main__": {"cli"},
    "__init__": {"lazy"},
}


def imports(path):
    """(module imported, whether at the top level of the file) for every import statement."""
    tree = ast.parse(path.read_text())
    top = set(ast.walk(ast.Module([n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)], [])))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node in top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where a thing comes from"
            yield from ((f"{node.module}.{alias.name}", node in top) for alias in node.names)


def part(path):
    """The part of the house that a file belongs to: 'theory', 'activations', ..."""
    inside = path.relative_to(PACKAGE).with_suffix("").parts
    return inside[0]


def violations(path, modules):
    """Imports of numdl in `path` that its floor does not allow."""
    allowed = MAY_IMPORT[part(path)] | {part(path)}
    for module in modules:
        inner = module.removeprefix("numdl.")
        if module == inner or module in ("numdl", "numdl.__version__"):
            continue
        if not any(inner == a or inner.startswith(a + ".") for a in allowed):
            yield f"{path.relative_to(PACKAGE)} imports {module}"


def resolved(path):
    """numdl modules imported, 'from numdl import x' included."""
    return [module for module, _ in imports(path) if module.split(".")[0] == "numdl"]


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_only_go_down(path):
    assert not list(violations(path, resolved(path)))


def test_the_rule_sees_a_violation():
    assert list(violations(PACKAGE / "theory" / "x.py", ["numdl.analysis.layers"]))
    assert list(violations(PACKAGE / "analysis" / "x.py", ["numdl.theory.propagation"]))
    assert list(violations(PACKAGE / "trees.py", ["numdl.networks.core"]))
    assert list(violations(PACKAGE / "analysis" / "x.py", ["numdl.networks.dense"]))
    assert not list(violations(PACKAGE / "audit" / "x.py", ["numdl.theory.x", "numdl.analysis.y"]))


def circle(graph):
    """The modules that import each other in a circle or stand behind one; empty if imports have an order."""
    left = dict(graph)
    while free := [name for name, wanted in left.items() if not wanted & left.keys()]:
        for name in free:
            del left[name]
    return set(left)


def module_graph():
    """{module: the modules of numdl that it imports, inside functions too}."""
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}

    def owner(name):
        return name if name in names else owner(name.rpartition(".")[0])

    return {name: {owner(module) for module in resolved(path)} - {name} for name, path in names.items()}


def test_no_modules_import_each_other():
    graph = module_graph()
    assert {"numdl.networks._record", "numdl.checks"} <= graph["numdl.networks.lift"]
    assert not circle(graph)
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": set()}) == {"a", "b", "c"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_heavy_libraries_are_imported_inside_functions(path):
    top = {module.split(".")[0] for module, at_top in imports(path) if at_top}
    assert not top & HEAVY


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_public_jax(path):
    assert not [m for m, _ in imports(path) if m.startswith(("jax._src", "jax.core", "jax.interpreters"))]


# ---- inside the wings: one home for each thing, and sizes ------------------------------------------------------------

# Runs of six equal lines, or functions equal up to names, that stay: (file, file) and why.
ALLOWED_COPIES: dict[tuple[str, str], str] = {}


def lines_of(nodes):
    """Numbers of the lines of these nodes."""
    return {number for node in nodes for number in range(node.lineno, node.end_lineno + 1)}


def documented(tree):
    """The docstrings of a file as nodes."""
    owners = (n for n in ast.walk(tree) if isinstance(n, ast.Module | ast.FunctionDef | ast.ClassDef))
    return [owner.body[0] for owner in owners if ast.get_docstring(owner) is not None]


def functions(tree):
    """(function, its statements without the docstring) of a file, inner ones too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            yield node, node.body[ast.get_docstring(node) is not None :]


def code(text):
    """(number, line) of what functions do: no signatures, docstrings, comments, nor brackets on their own."""
    tree, inside, outside = ast.parse(text), set(), set()
    for node, body in functions(tree):
        inside |= lines_of(body)
        outside |= set(range(node.lineno - len(node.decorator_list), body[0].lineno if body else node.lineno + 1))
    outside |= lines_of(documented(tree))
    kept = ((n, line.strip()) for n, line in enumerate(text.splitlines(), 1) if n in inside - outside)
    return [(n, line) for n, line in kept if len(line) > 3 and not line.startswith("#")]


class Anonymous(ast.NodeTransformer):
    """Names by the order in which they come."""

    def __init__(self):
        self.known = {}

    def visit_Name(self, node):
        return ast.Name(self.known.setdefault(node.id, len(self.known)), node.ctx)

    def visit_arg(self, node):
        return ast.arg(self.known.setdefault(node.arg, len(self.known)), None)

    def visit_FunctionDef(self, node):
        node.name = self.known.setdefault(node.name, len(self.known))
        return self.generic_visit(node)


def copies(texts, size=6):
    """[(place, place)] of runs of `size` equal lines and of function bodies of that size that differ in names only."""
    runs, shapes = {}, {}
    for name, text in texts.items():
        lines = code(text)
        for i in range(len(lines) - size + 1):
            runs.setdefault(tuple(line for _, line in lines[i : i + size]), []).append((name, lines[i][0]))
        for node, body in functions(ast.parse(text)):
            if body and body[-1].end_lineno - body[0].lineno + 1 >= size:
                place = (name, node.lineno)
                shapes.setdefault(ast.dump(Anonymous().visit(ast.Module(body, []))), []).append(place)
    return [places for found in (runs, shapes) for places in found.values() if len(places) > 1]


def test_nothing_is_written_twice():
    found = copies({str(path.relative_to(PACKAGE)): path.read_text() for path in FILES})
    places = {tuple(sorted(name for name, _ in places)[:2]): places for places in found}
    assert not {names: places[names] for names in places if names not in ALLOWED_COPIES}
    assert set(ALLOWED_COPIES) <= set(places), "a copy that is gone leaves the list"


def test_copies_are_seen():
    lines = "\n".join(f"    a{i} = g(x, {i})" for i in range(6))
    one, other = f"def f(x):\n{lines}\n", f"def h(y, x):\n    y = y + 1\n{lines}\n    return y\n"
    assert len(copies({"one": one, "other": other})) == 1
    renamed = one.replace("x", "width").replace("a", "b")
    assert len(copies({"one": one, "other": renamed})) == 1
    assert not copies({"one": one, "other": renamed.replace("5)", "7)")})
    assert not copies({"one": one.replace("a5", "    # a5"), "other": other})


def test_sizes_stay():
    lengths, bodies = {}, []
    for path in FILES:
        text = path.read_text()
        tree = ast.parse(text)
        lengths[str(path.relative_to(PACKAGE))] = len(text.splitlines())
        lines = enumerate(map(str.strip, text.splitlines()), 1)
        written = {n for n, line in lines if line and not line.startswith("#")}
        bodies += [len(lines_of(body) & written) for _, body in functions(tree)]
    assert not {name: length for name, length in lengths.items() if length > 350}, "lines, docstrings too"
    bodies.sort()
    assert bodies[len(bodies) // 2] <= 4
    assert bodies[len(bodies) * 9 // 10] <= 12
    assert bodies[-1] <= 40


def test_every_module_says_what_it_is():
    for path in FILES:
        text = ast.get_docstring(ast.parse(path.read_text()))
        assert text, path
        wing = {"theory": "PREDICTED", "analysis": "MEASURED"}.get(part(path))
        assert wing is None or text.startswith(wing), path


def test_every_public_function_is_documented():
    bare = []
    # A module with a leading underscore is internal, as test_docstrings has it.
    for path in FILES:
        inside = path.relative_to(PACKAGE).with_suffix("").parts
        if any(name.startswith("_") and name != "__init__" for name in inside):
            continue
        for node in ast.parse(path.read_text()).body:
            public = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
            if public and not ast.get_docstring(node):
                bare.append(f"{path.relative_to(PACKAGE)}: {node.name}")
    assert not bare


def test_import_loads_nothing_heavy_and_nothing_global():
    code = (
        "import jax, sys; before = set(sys.modules); flags = dict(jax.config.values); import numdl; "
        "assert dict(jax.config.values) == flags; "
        "print(*sorted({m.split('.')[0] for m in set(sys.modules) - before}))"
    )
    new = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert set(new) <= {"numdl"}, new


def test_a_wrong_submodule_is_named():
    import numdl

    with pytest.raises(AttributeError, match="has no attribute 'thoery'; it has .*theory"):
        _ = numdl.thoery
    assert "theory" in dir(numdl)


def test_the_long_suite_names_tests_that_exist():
    lines = [line for line in (ROOT / "tests" / "long_suite.txt").read_text().splitlines() if not line.startswith("#")]
    assert lines == sorted(set(lines))
    for line in lines:
        file, name = line.split("[")[0].split("::")
        assert f"def {name}(" in (ROOT / file).read_text(), line
