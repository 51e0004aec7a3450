"""Finding, running and scoring experiments: the command line and the demo are both thin layers over this.

An experiment's name says nothing of its group's folder: `files` finds it. `headings`, `groups` and `names` read files
without importing them, so that `list` answers at once.
"""

import ast
import dataclasses
import difflib
import importlib
import itertools
import pathlib
import re
import time
from importlib import metadata

import experiments
from experiments import fields, pages, usage
from experiments.fields import UsageError

# How quick runs are compiled, which takes most of their time. Level 0 would compute too slowly; the fusion emitters of
# jaxlib 0.10, which later ones cannot leave out, compile twice as long.
EMITTERS = "--xla_cpu_use_fusion_emitters=false" if metadata.version("jaxlib").startswith("0.10.") else ""
LIGHT = f"--xla_backend_optimization_level=1 {EMITTERS}".strip()
HEADINGS = ("Question", "Prediction", "Measurement", "Verdict")


def files():
    """{name: file} of all experiments, in the order of their numbers, from the folder and the groups in it."""
    own = [pathlib.Path(folder) for folder in experiments.__path__]
    inner = [page.parent for folder in own for page in folder.glob("*/__init__.py")]
    found = {
        path.stem: path
        for folder in own + inner
        for path in folder.glob("*.py")
        if experiments.NAME.fullmatch(path.stem)
    }
    return dict(sorted(found.items(), key=lambda item: (item[0][0], int(item[0][1:].split("_")[0]), item[0])))


def names():
    """All experiments, in the order of their numbers."""
    return list(files())


def groups(chosen):
    """[(what the group asks, its experiments)] for names in order: "" where they are in no group's folder."""
    return [(page, list(members)) for page, members in itertools.groupby(chosen, _group)]


def resolve(name):
    """The experiment's full name; `a1` stands for the one that begins with `a1_`."""
    known = names()
    short = [full for full in known if full.split("_")[0] == name]
    if name in known or len(short) == 1:
        return name if name in known else short[0]
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(close)}?" if close else f"it is one of {shortly(known)}"
    raise UsageError(f"unknown experiment {name!r}: {hint}")


def shortly(known):
    """All names of a few experiments; of many their numbers, as ranges, and where they stand in full."""
    if len(known) <= 9:
        return ", ".join(known) or "none: there is none in this folder"
    letters = itertools.groupby((name.split("_")[0] for name in known), key=lambda short: short[0])
    ranges = [(members[0], members[-1]) for members in (list(group) for _, group in letters)]
    return ", ".join(" to ".join(dict.fromkeys(ends)) for ends in ranges) + " (python -m experiments list)"


def source(name):
    """The experiment's file."""
    return files()[name]


def headings(name):
    """The four parts of the experiment's docstring, "title" and "Lecture", without importing it."""
    return parse_headings(_docstring(source(name)))


def parse_headings(text):
    """{"title": first line, "Lecture": deck and slide, or "", "Question": ..., ...}.

    A heading is a line of its own underlined by dashes; "Lecture: ..." is a paragraph before the first of them.
    """
    first, *pieces = re.split(rf"^({'|'.join(HEADINGS)})[ \t]*\n-{{3,}}[ \t]*\n", text, flags=re.MULTILINE)
    parts = {heading: body.strip("\n") for heading, body in zip(pieces[::2], pieces[1::2], strict=True)}
    lecture = re.search(r"^Lecture: (.+?)(?:\n\s*\n|\s*\Z)", first, flags=re.MULTILINE | re.DOTALL)
    top = {"title": text.strip().split("\n")[0], "Lecture": " ".join(lecture[1].split()) if lecture else ""}
    return top | {heading: parts.get(heading, "") for heading in HEADINGS}


def load(name):
    """The experiment's module."""
    folder = _folder(name)
    return importlib.import_module(f"experiments.{folder.name}.{name}" if folder else f"experiments.{name}")


def configure(name, arguments=(), *, tiny=False, quick=False):
    """The experiment's Config from `--field value` arguments; what is wrong is said in one line."""
    return fields.configure(name, load(name).Config, arguments, tiny=tiny, quick=quick)


def execute(name, config, *, results="results"):
    """Run one experiment, keep its folder and page under `results`, and return it as a `reporting.Run`."""
    from numdl import checks, reporting

    fields.checked(name, config)
    try:
        reporting.writable(pathlib.Path(results) / name)
    except OSError as error:
        raise UsageError(str(error)) from error
    reporting.versions()  # of the library as it is now, while this process imports it
    text, module, start = source(name), load(name), time.perf_counter()
    try:
        with usage.watch() as used:
            record = module.run(config)
            claims = module.claims(config, record)
    except checks.Refused as error:
        raise UsageError(f"{name}: {error}") from error
    except Exception as error:
        if _too_large(error):
            raise UsageError(f"{name}: this config needs more memory than there is: {_first_line(error)}") from error
        raise
    if not claims:
        raise ValueError(f"{name}.claims must return at least one claim; got {claims!r}")
    seconds = time.perf_counter() - start
    run = reporting.save(
        results, name=name, config=config, record=record, claims=claims, seconds=seconds,
        figure=module.figure(config, record), source=text, used=dataclasses.asdict(used),
    )  # fmt: skip
    pages.write(run)
    return run


def finished(name, config, *, results="results", light=False):
    """The kept run of the same program, config and versions, or None: what need not be done again.

    The program is the experiment's source without comments and without its docstring, so that a verdict may be written
    down after the measurement. A run that was compiled lightly stands only where `light` asks for no more.
    """
    from numdl import reporting

    try:
        run = reporting.load(pathlib.Path(results) / name / reporting.digest(config))
        kept = run.folder.joinpath("source.py").read_text(encoding="utf-8")
        same = light or LIGHT not in run.environment["xla_flags"]
        same &= all(run.environment[what] == value for what, value in reporting.versions().items())
        return run if same and program(kept) == program(source(name).read_text(encoding="utf-8")) else None
    except (OSError, ValueError, KeyError, TypeError, SyntaxError):
        return None  # none, or damaged


def program(text):
    """A module's code without comments and without its docstring."""
    tree = ast.parse(text)
    if ast.get_docstring(tree, clean=False) is not None:
        tree.body = tree.body[1:]
    return ast.unparse(tree)


def help_text(name):
    """The experiment's fields and their defaults."""
    return fields.help_text(name, load(name).Config)


def _folder(name):
    """The folder of the experiment's group, or None where it is in the experiments' own."""
    folder = source(name).parent
    return None if folder in map(pathlib.Path, experiments.__path__) else folder


def _group(name):
    folder = _folder(name)
    return "" if folder is None else f"{folder.name}: {_docstring(folder / '__init__.py')}"


def _docstring(file):
    return ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""


def _too_large(error):
    """Whether memory, or the range of an index, ended the run."""
    exhausted = "RESOURCE_EXHAUSTED" in str(error) or "Out of memory" in str(error)
    beyond = "Maximum allowed dimension" in str(error) or "array is too big" in str(error)
    return isinstance(error, (MemoryError, OverflowError)) or exhausted or beyond


def _first_line(error):
    return str(error).strip().split("\n")[0][:200] or type(error).__name__
