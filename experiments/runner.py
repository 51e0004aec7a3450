"""Finding, running and scoring experiments: the command line and the demo are both thin layers over this.

`headings` and `names` read files without importing them, so that `list` answers at once.
"""

import ast
import dataclasses
import difflib
import importlib
import pathlib
import pkgutil
import re
import time

import experiments
from experiments import fields, pages, usage
from experiments.fields import UsageError

HEADINGS = ("Question", "Prediction", "Measurement", "Verdict")
_EXPERIMENT = re.compile(r"[a-z][0-9]+_[a-z0-9_]+")


def names():
    """All experiments, in the order of their numbers."""
    found = {module.name for module in pkgutil.iter_modules(experiments.__path__) if _EXPERIMENT.fullmatch(module.name)}
    return sorted(found, key=lambda name: (name[0], int(name[1:].split("_")[0]), name))


def resolve(name):
    """The experiment's full name; `a1` stands for the one that begins with `a1_`."""
    known = names()
    short = [full for full in known if full.split("_")[0] == name]
    if name in known or len(short) == 1:
        return name if name in known else short[0]
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known
    hint = f"did you mean {' or '.join(close)}?" if close else "there is none in this folder"
    raise UsageError(f"unknown experiment {name!r}: {hint}")


def source(name):
    """The experiment's file."""
    files = (pathlib.Path(folder) / f"{name}.py" for folder in experiments.__path__)
    return next(file for file in files if file.is_file())


def headings(name):
    """The four parts of the experiment's docstring, and its first line as "title", without importing it."""
    text = ast.get_docstring(ast.parse(source(name).read_text(encoding="utf-8"))) or ""
    return parse_headings(text)


def parse_headings(text):
    """{"title": first line, "Question": ..., ...}: a heading is a line of its own underlined by dashes."""
    pieces = re.split(rf"^({'|'.join(HEADINGS)})[ \t]*\n-{{3,}}[ \t]*\n", text, flags=re.MULTILINE)
    parts = {heading: body.strip("\n") for heading, body in zip(pieces[1::2], pieces[2::2], strict=True)}
    return {"title": text.strip().split("\n")[0], **{heading: parts.get(heading, "") for heading in HEADINGS}}


def load(name):
    """The experiment's module."""
    return importlib.import_module(f"experiments.{name}")


def configure(name, arguments=(), *, tiny=False):
    """The experiment's Config from `--field value` arguments; what is wrong is said in one line."""
    return fields.configure(name, load(name).Config, arguments, tiny=tiny)


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


def finished(name, config, *, results="results"):
    """The kept run of the same program, config and versions, or None: what need not be done again.

    The program is the experiment's source without comments and without its docstring, so that a verdict may be written
    down after the measurement.
    """
    from numdl import reporting

    try:
        run = reporting.load(pathlib.Path(results) / name / reporting.digest(config))
        kept = run.folder.joinpath("source.py").read_text(encoding="utf-8")
        same = all(run.environment[what] == value for what, value in reporting.versions().items())
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


def _too_large(error):
    """Whether memory, or the range of an index, ended the run."""
    exhausted = "RESOURCE_EXHAUSTED" in str(error) or "Out of memory" in str(error)
    beyond = "Maximum allowed dimension" in str(error) or "array is too big" in str(error)
    return isinstance(error, (MemoryError, OverflowError)) or exhausted or beyond


def _first_line(error):
    return str(error).strip().split("\n")[0][:200] or type(error).__name__
