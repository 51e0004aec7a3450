"""Read the package as text, without importing it: its public names and the parts of their docstrings.

A module or a name with a leading underscore is internal, unless the face of its package offers it: what
`numdl/data/__init__.py` takes from `numdl/data/_batching.py` is `data.batches`.
"""

import ast
import dataclasses
import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "numdl"
SECTIONS = ("Parameters", "Returns", "Raises")
LABELS = r"(?:Source|Sources|Twin|Twins|Experiment|Experiments)"


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a docstring says, part by part."""

    summary: str  # the first line
    body: str  # what follows it, before the sections: prose, formulas, examples
    parameters: tuple  # (names, kind, meaning), one a row
    returns: tuple  # lines, as they stand
    raises: tuple  # (errors, when)
    source: str
    twins: tuple  # names below numdl, such as analysis.propagation.lengths
    experiments: tuple  # short names, such as a2


@dataclasses.dataclass(frozen=True)
class Entry:
    """One public name of a module."""

    name: str
    node: ast.AST
    file: pathlib.Path
    parts: Parts


@dataclasses.dataclass(frozen=True)
class Module:
    """One public module: its docstring's parts and its public names, in the order of the source."""

    name: str  # with "numdl." before it
    file: pathlib.Path
    parts: Parts
    functions: tuple
    records: tuple
    values: tuple  # (name, the source that makes it)


def modules():
    """All public modules, by name."""
    return [_module(name, file) for name, file in public_files()]


def public_files():
    """(dotted name with "numdl", file) of every public module."""
    for path in sorted(PACKAGE.rglob("*.py")):
        inside = path.relative_to(ROOT).with_suffix("").parts
        if not any(part.startswith("_") and part != "__init__" for part in inside):
            yield ".".join(part for part in inside if part != "__init__"), path


def parts(text):
    """The `Parts` of a docstring that `ast.get_docstring` has cleaned."""
    summary, _, rest = text.partition("\n")
    if rest and not rest.startswith("\n"):  # a summary of two lines
        more, _, rest = rest.partition("\n\n")
        summary = f"{summary} {' '.join(more.split())}"
    body = re.split(rf"^(?:(?:{'|'.join(SECTIONS)})\n-+$|{LABELS}:)", rest, maxsplit=1, flags=re.MULTILINE)[0]
    body, inline = _without_labels(body)
    return Parts(
        summary=summary.strip(),
        body=body.strip("\n"),
        parameters=tuple(_rows(_section(text, "Parameters"))),
        returns=tuple(_section(text, "Returns").strip("\n").splitlines()),
        raises=tuple(
            (names, meaning or kind) for names, kind, meaning in _rows(_section(text, "Raises"), marked=False)
        ),
        source=_label(text, "Source") or inline,
        twins=tuple(re.findall(r"[a-z_]+(?:\.[a-z_0-9]+)+", _label(text, "Twin"))),
        experiments=tuple(re.findall(r"\b[a-g]\d+\b", _label(text, "Experiment"))),
    )


def fields(entry):
    """(name, type, what stands beside it) of a record's fields."""
    lines = entry.file.read_text(encoding="utf-8").splitlines()
    for node in entry.node.body:
        if isinstance(node, ast.AnnAssign) and not node.target.id.startswith("_"):
            beside = lines[node.end_lineno - 1][node.end_col_offset :]
            comment = beside.partition("#")[2].strip()
            yield node.target.id, ast.unparse(node.annotation), comment


def methods(entry):
    """The public methods and properties of a class, as entries."""
    for node in entry.node.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield Entry(node.name, node, entry.file, parts(ast.get_docstring(node) or ""))


def imported(file):
    """{name: where it comes from, dotted} of what a file imports from numdl."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    rows = [node for node in tree.body if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("numdl")]
    return {alias.asname or alias.name: f"{node.module}.{alias.name}" for node in rows for alias in node.names}


def arguments(node):
    """A function's arguments, all kinds."""
    spec = node.args
    return [*spec.posonlyargs, *spec.args, *spec.kwonlyargs, *filter(None, (spec.vararg, spec.kwarg))]


def gaps(module):
    """What a module's public names do not say: one line each."""
    if not module.parts.summary:
        yield f"{module.name}: no docstring"
    for entry in (*module.functions, *module.records):
        if not entry.parts.summary:
            yield f"{module.name}.{entry.name}: no docstring"
    for entry in module.functions:
        listed = {name for names, *_ in entry.parts.parameters for name in names}
        missing = {argument.arg for argument in arguments(entry.node)} - listed
        if missing:
            yield f"{module.name}.{entry.name}: no word about {', '.join(sorted(missing))}"


def _module(name, file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    defined = {node.name: (node, file) for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    for offered, source in _taken(name, tree, file).items():
        inner = {n.name: n for n in ast.parse(source.read_text(encoding="utf-8")).body if hasattr(n, "name")}
        if offered in inner:
            defined[offered] = (inner[offered], source)
    public = [
        Entry(key, node, where, parts(ast.get_docstring(node) or ""))
        for key, (node, where) in defined.items()
        if not key.startswith("_")
    ]
    return Module(
        name,
        file,
        parts(ast.get_docstring(tree) or ""),
        tuple(entry for entry in public if isinstance(entry.node, ast.FunctionDef)),
        tuple(entry for entry in public if isinstance(entry.node, ast.ClassDef)),
        tuple(_values(tree)),
    )


def _taken(module, tree, file):
    """{name: the internal file it comes from} of what a face offers from `_modules`."""
    found = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[-1].startswith("_"):
            source = ROOT / pathlib.Path(*node.module.split(".")).with_suffix(".py")
            if source.is_file():
                found |= {alias.asname or alias.name: source for alias in node.names}
    unsaid = [name for name in found if not name.startswith("_")] if file.name == "__init__.py" else []
    lists = [n.value for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "__all__"]
    offered = ast.literal_eval(lists[0]) if lists else unsaid
    return {name: source for name, source in found.items() if name in offered} | _lazy(module, tree)


def _lazy(module, tree):
    """The same of functions that `lazy.submodules` offers; a public module shows its own."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "_submodules" and len(node.args) == 3:
            table = ast.literal_eval(node.args[2])
            folder = ROOT / pathlib.Path(*module.split("."))
            return {name: folder / f"{inner}.py" for name, inner in table.items() if inner.startswith("_")}
    return {}


def _values(tree):
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name, value = node.targets[0].id, node.value
            if not name.startswith("_") and isinstance(value, ast.Call | ast.Constant | ast.Tuple | ast.Dict):
                yield name, " ".join(ast.unparse(value).split())


def _section(text, name):
    found = re.search(rf"^{name}\n-+\n(.*?)(?=^\w[\w ]*\n-+\n|^{LABELS}:|\Z)", text, flags=re.MULTILINE | re.DOTALL)
    return found[1] if found else ""


def _rows(text, marked=True):
    """The rows of a section: 'x, y : array [N]    what they are'; an indented line continues the one above."""
    rows = []
    for line in text.splitlines():
        if line.startswith(" ") and rows:
            rows[-1][2] = f"{rows[-1][2]} {line.strip()}".strip()
        elif line.strip():
            head, _, meaning = _columns(line)
            names, _, kind = head.partition(":") if marked else (head, "", "")
            names = tuple(name.strip().lstrip("*") for name in names.split(",")) if marked else names.strip()
            rows.append([names, kind.strip(), meaning])
    return [tuple(row) for row in rows]


def _columns(line):
    found = re.match(r"(.*?\S)(\s{2,})(.*)", line.rstrip())
    return (found[1], found[2], found[3]) if found else (line.strip(), "", "")


def _label(text, name):
    """What follows 'Twin:' up to the next label or the docstring's end, on one line."""
    found = re.search(rf"^(?:.*\s)?{name}s?: (.*?)(?=\s+{LABELS}:|\n\s*\n|\Z)", text, flags=re.MULTILINE | re.DOTALL)
    return " ".join(found[1].split()).removesuffix(".") if found else ""


def _without_labels(body):
    """A body without sentences such as 'Source: ...' in its midst, which modules have, and the source named there."""
    found = re.search(r"(?:^|\s)Sources?: (.*?)(?=\s+Twins?:|\n\s*\n|\Z)", body, flags=re.DOTALL)
    source = " ".join(found[1].split()) if found else ""
    body = body.replace(found[0], "") if found else body
    return re.sub(r"(?:^|(?<=\s))Twins?: \S+\.?", "", body), source.removesuffix(".")
