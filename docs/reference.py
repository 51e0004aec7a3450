"""The pages of the reference, one a module, written anew at every build from the source (see docstrings.py).

A function's part of a page has its signature with types, what it gives, the formula, what it takes, returns
and refuses, where it comes from, and links to its other half and to the experiments that show both.
"""

import ast
import html
import re

import docstrings
import formulas

ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5}|[a-z-]+/\d{7})")
GITHUB = re.compile(r"\b(github\.com/[\w.-]+/[\w.-]*\w)")
DOTTED = re.compile(r"`([a-z_]+(?:\.[A-Za-z_0-9]+)+)(?:\(\))?`")
BLANK = re.compile(r"\n\s*\n")


class Reference:
    """All public names, so that each page can link to the others."""

    def __init__(self, experiments):
        self.modules = docstrings.modules()
        self.experiments = experiments  # {short name: full name}
        self.roles = {}
        for module in self.modules:
            self.roles[module.name] = "mod"
            self.roles |= {f"{module.name}.{entry.name}": "func" for entry in module.functions}
            self.roles |= {f"{module.name}.{entry.name}": "class" for entry in module.records}
            self.roles |= {f"{module.name}.{name}": "data" for name, _ in module.values}

    def gaps(self):
        """What public names do not say, and twins and experiments that do not exist: one line each."""
        for module in self.modules:
            yield from docstrings.gaps(module)
            for entry in module.functions:
                for twin in entry.parts.twins:
                    if f"numdl.{twin}" not in self.roles:
                        yield f"{module.name}.{entry.name}: no twin {twin}"
                for short in set(entry.parts.experiments) - set(self.experiments):
                    yield f"{module.name}.{entry.name}: no experiment {short}"

    def write(self, folder):
        """Write every module's page and one for each package, in a folder that exists."""
        for module in self.modules:
            (folder / f"{module.name}.md").write_text(self.page(module), encoding="utf-8")
        (folder / "index.md").write_text(self.contents(), encoding="utf-8")

    def contents(self):
        """The page that leads to all modules."""
        lines = [
            "# Reference",
            "",
            "Every public module; each function has its page part, its twin and its experiments.",
            "",
        ]
        top = [m for m in self.modules if m.name.count(".") < 2]
        for module in top:
            lines += [f"- {self.link(module.name)}: {self.prose(module.parts.summary)}"]
        lines += ["", "```{toctree}", ":hidden:", "", *(module.name for module in top), "```", ""]
        return "\n".join(lines)

    def page(self, module):
        """One module's page."""
        inner = [m for m in self.modules if m.name.rpartition(".")[0] == module.name and module.name != "numdl"]
        lines = [f"# {module.name}", "", f"```{{py:module}} {module.name}", "```", ""]
        lines += [self.prose(module.parts.summary), "", *self.body(module.parts.body)]
        lines += self.origin(module.parts, twins=False)
        if inner:
            lines += ["", *(f"- {self.link(m.name)}: {self.prose(m.parts.summary)}" for m in inner)]
            lines += ["", "```{toctree}", ":hidden:", "", *(m.name for m in inner), "```"]
        lines += ["", *self.overview(module)]
        for entry in module.functions:
            lines += ["", f"## {entry.name}", "", *self.function(module, entry)]
        if module.records:
            lines += ["", "## Records", ""]
        for entry in module.records:
            lines += ["", *self.record(module, entry)]
        if module.values:
            lines += ["", "## Values", "", "| name | made by |", "|---|---|"]
            lines += [f"| `{name}` | {_cell(_code(_shortened(made)))} |" for name, made in module.values]
        return "\n".join(lines) + "\n"

    def overview(self, module):
        """A table of a module's functions, where there is more than one."""
        if len(module.functions) < 2:
            return []
        rows = [
            f"| {self.link(f'{module.name}.{e.name}', e.name)} | {_cell(self.prose(e.parts.summary))} |"
            for e in module.functions
        ]
        return ["| function | gives |", "|---|---|", *rows]

    def function(self, module, entry):
        """A function's part of its module's page."""
        parts = entry.parts
        lines = [f"`````{{py:function}} {entry.name}{self.signature(module, entry)}", ""]
        lines += [self.prose(parts.summary), "", *self.body(parts.body)]
        if parts.parameters:
            lines += ["", "| takes | kind, shape | what it is |", "|---|---|---|"]
            for names, kind, meaning in parts.parameters:
                cells = (", ".join(f"`{name}`" for name in names), self.prose(kind), self.prose(meaning))
                lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
        if parts.returns:
            lines += ["", "**Returns**", "", formulas_or_text(parts.returns)]
        if parts.raises:
            lines += ["", "| refuses with | when |", "|---|---|"]
            lines += [f"| {_cell(self.prose(names))} | {_cell(self.prose(when))} |" for names, when in parts.raises]
        return [*lines, "", *self.origin(parts), "`````"]

    def origin(self, parts, twins=True):
        """Source, twin and experiments as links, one line."""
        pieces = []
        if parts.source:
            pieces.append(f"**Source** {self.sourced(parts.source)}")
        if parts.twins and twins:
            pieces.append("**Twin** " + ", ".join(self.link(f"numdl.{name}", name) for name in parts.twins))
        if parts.experiments:
            pieces.append("**Experiments** " + ", ".join(map(self.experiment, parts.experiments)))
        return ["", *(f"{piece}  " for piece in pieces), ""] if pieces else []

    def record(self, module, entry):
        """A record with the table of its fields, and its methods."""
        bases = {ast.unparse(base) for base in entry.node.bases}
        kind = "exception" if any(base.endswith(("Error", "Exception", "Warning")) for base in bases) else "class"
        lines = [f"`````{{py:{kind}}} {entry.name}", ""]
        lines += [self.prose(entry.parts.summary), "", *self.body(entry.parts.body)]
        rows = list(docstrings.fields(entry))
        if rows:
            lines += ["", "| field | type | shape, meaning |", "|---|---|---|"]
            lines += [
                f"| `{name}` | {_cell(_code(kind))} | {_cell(self.prose(beside))} |" for name, kind, beside in rows
            ]
        for method in docstrings.methods(entry):
            property_ = any(ast.unparse(one).endswith("property") for one in method.node.decorator_list)
            shown = method.name if property_ else method.name + signature(method.node, bound=True)
            lines += ["", f"- {_code(shown)}: {self.prose(method.parts.summary)}"]
        return [*lines, *self.origin(entry.parts), "`````"]

    def signature(self, module, entry):
        """A function's signature, types by their full names: several records are called Loss or Stream."""
        full = {name: self._home(module, name, path) for name, path in docstrings.imported(entry.file).items()}
        full |= {record.name: f"{module.name}.{record.name}" for record in module.records}
        return re.sub(
            r"(?<![.\w'\"])([A-Z]\w+)(?!\w*=)", lambda found: full.get(found[0]) or found[0], signature(entry.node)
        )

    def _home(self, module, name, path):
        """The public name of what is imported from a path that may be internal."""
        package = path.split("._")[0].rpartition(".")[0] if "._" not in path else path.split("._")[0]
        near = [full for full in self.roles if full.endswith(f".{name}") and full.startswith(package)]
        return path if path in self.roles or len(near) != 1 else near[0]

    def body(self, text):
        """Markdown of a docstring's body: paragraphs, formulas (indented) and examples."""
        lines = []
        for piece in BLANK.split(text):
            if not piece.strip():
                continue
            if ">>>" in piece:
                code = "\n".join(line[4:] if line.startswith("    ") else line for line in piece.splitlines())
                lines += ["```pycon", code.strip("\n"), "```", ""]
            else:
                for indented, block in _runs(piece):
                    if indented and _is_code(block):
                        lines += [f"```{_language(block)}", _dedent(block), "```", ""]
                    elif indented:
                        lines += ["```{raw} html", formulas.block(block), "```", ""]
                    else:
                        lines += [self.prose(" ".join(block.split())), ""]
        return lines

    def prose(self, text):
        """Markdown of plain text: what stands in backquotes is code, or a link where it is a public name."""
        out = []
        for number, piece in enumerate(text.split("`")):
            out.append(self.code(piece) if number % 2 else re.sub(r"([\\*_<>\[\]$|{}#~])", r"\\\1", piece))
        return "".join(out)

    def code(self, name):
        full = f"numdl.{name.removeprefix('numdl.')}"
        return self.link(full, name) if full in self.roles and "." in name else _code(name)

    def sourced(self, text):
        """A source with its links."""
        text = ARXIV.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", self.prose(text))
        return GITHUB.sub(r"[\1](https://\1)", text)

    def link(self, full, shown=None):
        """A cross-reference to a public name."""
        return f"{{py:{self.roles[full]}}}`{shown or full} <{full}>`"

    def experiment(self, short):
        """A link to an experiment's page."""
        full = self.experiments.get(short)
        return f"[{short}](/generated/experiments/{full}.md)" if full else short


def signature(node, bound=False):
    """A function's arguments with their types and defaults."""
    arguments = ast.unparse(node.args)
    if bound:
        arguments = re.sub(r"^(self|cls)(, )?", "", arguments)
    returns = f" -> {ast.unparse(node.returns)}" if node.returns is not None else ""
    return f"({arguments}){returns}"


def formulas_or_text(lines):
    """What is returned, as it stands: columns matter."""
    return '```{raw} html\n<pre class="returns">' + html.escape("\n".join(lines)) + "</pre>\n```"


def _runs(piece):
    """(whether indented, text) of the runs of lines of one paragraph."""
    runs = []
    for line in piece.splitlines():
        indented = line.startswith("    ")
        if runs and runs[-1][0] == indented:
            runs[-1][1].append(line)
        else:
            runs.append((indented, [line]))
    return [(indented, "\n".join(lines)) for indented, lines in runs]


def _is_code(block):
    """Whether an indented block is a call to write rather than a formula."""
    return bool(re.search(r"\b(?:nd|optax|train|nnx|eqx|audit|python)\.\w|import |\$ |python -m|#", block))


def _language(block):
    try:
        compile(_dedent(block), "block", "exec")
    except SyntaxError:
        return "text"
    return "python"


def _dedent(block):
    lines = block.strip("\n").splitlines()
    least = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
    return "\n".join(line[least:] for line in lines)


def _code(text):
    fence = "``" if "`" in text else "`"
    return f"{fence}{text}{fence}"


def _cell(text):
    """Markdown within a table's cell: a bar would end it, also within code."""
    return re.sub(r"(?<!\\)\|", r"\\|", text) or " "


def _shortened(text, most=90):
    return text if len(text) <= most else f"{text[: most - 4]} ..."
