"""What the project asks for: every package explained, imports that it covers, versions that agree where they stand."""

import importlib.util
import pathlib
import re
import sys
import tomllib

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LAZY = {"numdl/data/_bundled.py", "numdl/data/_fetching.py"}  # imported when their data are asked for
BROUGHT = {"requests", "urllib3"}  # by pooch, whose downloads they are
MODULES = {"orbax-checkpoint": "orbax", "scikit-learn": "sklearn", "dm-haiku": "haiku"}


def _name(requirement):
    return re.match(r"[\w.-]+", requirement).group()


def _asked():
    """{package: {"core" or the extras that ask for it}}."""
    groups = {"core": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}
    asked = {}
    for group, rows in groups.items():
        for row in rows:
            asked.setdefault(_name(row), set()).add(group)
    return asked


def _table():
    """{package: (where, licence, why)} as docs/dependencies.md has it."""
    lines = (ROOT / "docs" / "dependencies.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return {name: (set(where.split(", ")), licence, why) for name, where, licence, why in rows[1:]}


def _is_module(name):
    """Whether it is one: a docstring's line can begin with `from` too."""
    return importlib.util.find_spec(name) is not None


def _oldest():
    spec = importlib.util.spec_from_file_location("oldest", ROOT / ".ci" / "oldest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_package_has_its_line_with_licence_and_reason():
    table = _table()
    assert {name: where for name, (where, _, _) in table.items()} == _asked()
    assert all(licence and why for _, licence, why in table.values())


def _imports(text):
    """(top-level name, whether the statement stands at the left margin) of every import in a file."""
    for found in re.finditer(r"^( *)(?:import|from) ([A-Za-z_]\w*)", text, re.M):
        yield found.group(2), not found.group(1)


def test_the_library_imports_nothing_else_and_extras_only_where_they_are_used():
    core = {MODULES.get(_name(row), _name(row)) for row in PROJECT["dependencies"]}
    extra = {MODULES.get(name, name) for name in _asked()} - core
    known = core | set(sys.stdlib_module_names) | {"numdl"}
    for file in (ROOT / "numdl").rglob("*.py"):
        lazy = file.relative_to(ROOT).as_posix() in LAZY
        for name, at_the_top in _imports(file.read_text()):
            if name not in known and _is_module(name):
                assert name in extra | BROUGHT, f"{file} imports {name}"
                assert lazy or not at_the_top, f"{file} imports {name} with the library"


def test_lower_bounds_are_constraints_for_the_oldest_stack():
    bounds = _oldest().bounds(PROJECT)
    assert bounds["jax"] == bounds["jaxlib"] == "0.10.2"
    assert set(bounds) == {name for name, where in _asked().items() if where & {"core", "data", "test", "interop"}}


@pytest.mark.parametrize("project", [{"dependencies": ["jax<=1"], "optional-dependencies": {}}])
def test_a_requirement_without_a_lower_bound_is_seen(project):
    with pytest.raises(AttributeError):
        _oldest().bounds(project, extras=())


def test_the_tools_before_a_commit_have_the_versions_of_the_constraints():
    constraint = re.search(r"^ruff==(\S+)", (ROOT / "constraints.txt").read_text(), re.M).group(1)
    hooks = re.findall(r"ruff==([\d.]+)", (ROOT / ".pre-commit-config.yaml").read_text())
    assert hooks
    assert set(hooks) == {constraint}


def test_the_version_is_one():
    citation = re.search(r"^version: (\S+)", (ROOT / "CITATION.cff").read_text(), re.M).group(1)
    assert citation == PROJECT["version"]


def test_nothing_records_where_a_package_came_from():
    for name in ("constraints.txt", ".pre-commit-config.yaml", "pyproject.toml"):
        assert not re.search(r"(https?|file)://", (ROOT / name).read_text())
