"""Finding, running and scoring experiments: the command line and the demo are both thin layers over this.

`headings` and `names` read files without importing them, so that `list` answers at once.
"""

import ast
import contextlib
import dataclasses
import difflib
import dis
import importlib
import io
import pathlib
import pkgutil
import re
import time

import experiments

HEADINGS = ("Question", "Prediction", "Measurement", "Verdict")
_EXPERIMENT = re.compile(r"[a-z][0-9]+_[a-z0-9_]+")


class UsageError(Exception):
    """What the person at the command line can mend: one line, exit code 2."""


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
    kind, arguments = load(name).Config, list(arguments)
    default = kind.tiny() if tiny else kind()
    for field, group in _groups(name, kind, arguments):
        expected = next(f.type for f in dataclasses.fields(kind) if f.name == field)
        shown = expected.__name__ if isinstance(expected, type) else expected
        got = " ".join(group).partition("=" if "=" in group[0] else " ")[2]
        _parse(name, kind, group, default, f"--{field} must be {shown}; got {got or 'nothing'}")
    return _parse(name, kind, arguments, default, f"these options do not go together: {' '.join(arguments)}")


def execute(name, config, *, results="results"):
    """Run one experiment, keep its folder under `results`, and return it as a `reporting.Run`."""
    from numdl import reporting

    try:
        reporting.writable(pathlib.Path(results) / name)
    except OSError as error:
        raise UsageError(str(error)) from error
    module, start = load(name), time.perf_counter()
    try:
        record = module.run(config)
        claims = module.claims(config, record)
    except (ValueError, TypeError) as error:
        if _said_at_the_door(error):
            raise UsageError(f"{name}: {error}") from error
        raise
    if not claims:
        raise ValueError(f"{name}.claims must return at least one claim; got {claims!r}")
    seconds = time.perf_counter() - start
    return reporting.save(
        results, name=name, config=config, record=record, claims=claims, seconds=seconds,
        figure=module.figure(config, record), source=source(name),
    )  # fmt: skip


def help_text(name):
    """The experiment's fields and their defaults."""
    import tyro

    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        tyro.cli(load(name).Config, args=["--help"], prog=f"python -m experiments run {name}")
    return said.getvalue()


def _parse(name, kind, arguments, default, wrong):
    import tyro

    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            return tyro.cli(kind, args=arguments, default=default)
    except SystemExit:
        raise UsageError(f"{name}: {wrong}") from None
    except (ValueError, TypeError) as error:  # the config's own check
        raise UsageError(f"{name}: {error}") from error


def _groups(name, kind, arguments):
    """The arguments as (field, [--field, values...]), every field known."""
    known, groups = [field.name for field in dataclasses.fields(kind)], []
    for argument in arguments:
        if re.match(r"--[A-Za-z]", argument):
            groups.append((_field(name, known, argument), [argument]))
        elif groups:
            groups[-1][1].append(argument)
        else:
            raise UsageError(f"{name}: expected --field value; got {argument!r}")
    return groups


def _field(name, known, argument):
    asked = re.split(r"[=.]", argument[2:])[0].replace("-", "_")
    if asked in known:
        return asked
    if asked.removeprefix("no_") in known:
        return asked.removeprefix("no_")
    close = difflib.get_close_matches(asked, known, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join('--' + c for c in close)}?" if close else f"it has --{', --'.join(known)}"
    raise UsageError(f"{name}: unknown field --{asked}: {hint}")


def _said_at_the_door(error):
    """Whether the error is an explicit `raise` of numdl or of an experiment, and not one from deep inside a library."""
    frame = error.__traceback__
    while frame.tb_next is not None:
        frame = frame.tb_next
    ours = frame.tb_frame.f_globals.get("__name__", "").split(".")[0] in ("numdl", "experiments")
    code = frame.tb_frame.f_code.co_code
    return ours and code[frame.tb_lasti] == dis.opmap["RAISE_VARARGS"]
