"""The house stands as designed: imports only go down, theory and analysis never meet, importing costs little."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "numdl"
GROUND = {
    "lazy",
    "records",
    "checks",
    "precision",
    "trees",
    "quadrature",
    "tanh_sinh",
    "jumps",
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
    "data": {"lazy", "checks", "typing"},
    "plotting": GROUND,
    "reporting": GROUND,
    "audit": GROUND | {"theory", "analysis", "networks", "ode", "optimize", "plotting", "reporting"},
    "cli": GROUND | {"audit", "reporting", "plotting"},
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


def test_every_module_says_what_it_is():
    for path in FILES:
        text = ast.get_docstring(ast.parse(path.read_text()))
        assert text, path
        wing = {"theory": "PREDICTED", "analysis": "MEASURED"}.get(part(path))
        assert wing is None or text.startswith(wing), path


def test_every_public_function_is_documented():
    bare = []
    for path in FILES:
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
