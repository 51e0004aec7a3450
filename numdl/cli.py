"""The command line: `numdl audit module:function` judges a network, `numdl watch FOLDER` a training that goes on.

    numdl audit train.py:setting --html report.html     exit code 0: will train, 1: not or badly, 2: wrong call
    numdl watch runs/today                              what `audit.watch` has written into this folder

`setting()` returns the arguments of `numdl.audit.examine`: a dictionary, or a tuple that may end in one.
"""

import argparse
import contextlib
import importlib
import importlib.util
import pathlib
import sys
import traceback
from collections.abc import Sequence

from numdl import checks


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, print what it found, and return the exit code.

    Parameters
    ----------
    arguments : list of str     without the program's name; None: those of this process
    Returns
    -------
    int                         0: will train, 1: will not or badly, 2: a wrong call
    """
    options = _parser().parse_args(arguments)
    try:
        return options.command(options)
    except (ValueError, TypeError, OSError, UsageError) as error:
        print(f"numdl: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


class UsageError(Exception):
    """A call that names nothing that can be run."""


def _parser():
    parser = argparse.ArgumentParser(
        prog="numdl",
        description="Will this network train? What is wrong, what to change.",
        epilog="numdl COMMAND --help says more. Exit codes: 0 will train, 1 will not or badly, 2 a wrong call.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    audit = commands.add_parser(
        "audit",
        help="examine the network that a function hands over",
        description="Examine the network that a function hands over: verdict, findings, what to change.",
        epilog="The function returns the arguments of numdl.audit.examine, as a dictionary, or as a tuple that ends in "
        "one: apply, params, batch; loss, optimizer, key; and what you know of learning_rate, steps, data and others. "
        "Example: numdl audit train.py:setting --html report.html",
    )
    audit.add_argument(
        "target", metavar="MODULE:FUNCTION", help="a module or a .py file, and a function without arguments"
    )
    audit.add_argument("--prove", metavar="STEPS", type=int, help="repair it, and train both side by side this long")
    audit.set_defaults(command=_audit)
    watch = commands.add_parser(
        "watch",
        help="what a watched training has written so far",
        description="What numdl.audit.watch(..., folder=FOLDER) has written so far; the training may still go on.",
    )
    watch.add_argument("folder", metavar="FOLDER", type=pathlib.Path, help="the folder that the training was given")
    watch.set_defaults(command=_watch)
    for command in (audit, watch):
        command.add_argument("--html", metavar="FILE", type=pathlib.Path, help="write a page that opens anywhere")
        command.add_argument("--json", metavar="FILE", type=pathlib.Path, help="write every number")
    return parser


def _audit(options):
    _endings(options)
    positional, named = _arguments(_loaded(options.target))
    from numdl import audit

    report = audit.examine(*positional, **named)
    print(report)
    repair, proof = _proved(report, options.prove) if options.prove else (None, None)
    _written(options, lambda path: report.save(path, proof=proof, repair=repair))
    return 0 if report.verdict == "will train" else 1


def _proved(report, steps):
    repair, proof = report.repair(), report.prove(steps)
    print("\n" + "\n".join(f"change: {line}" for line in repair.changes))
    print("the repair helped" if proof.helped else "the repair did not help")
    return repair, proof


def _written(options, save):
    for path in filter(None, (options.html, options.json)):
        print(f"\nwrote {save(path)}")


def _endings(options):
    """Refuse a wrong file before minutes of work."""
    for name, ending in (("html", ".html"), ("json", ".json")):
        path = getattr(options, name)
        if path is not None and path.suffix.lower() != ending:
            raise checks.BadValue(f"--{name} must be a file that ends in {ending}; got {str(path)!r}")
    if getattr(options, "prove", None) is not None:
        checks.whole("--prove", options.prove)


def _loaded(target):
    """The function that MODULE:FUNCTION names."""
    module, _, name = target.rpartition(":")
    if not module or not name.isidentifier():
        raise UsageError(f"expected MODULE:FUNCTION or FILE.py:FUNCTION; got {target!r}")
    found = getattr(_module(module), name, None)
    if not callable(found):
        raise UsageError(f"{module} has no function {name!r}")
    return found


def _module(name):
    if name.endswith(".py"):
        return _of_file(pathlib.Path(name))
    sys.path.insert(0, "")
    try:
        found = importlib.util.find_spec(name)
    except (ModuleNotFoundError, ValueError):
        found = None
    if found is None:
        raise UsageError(f"no module {name!r} can be imported from here")
    with _owned(name):
        return importlib.import_module(name)


def _of_file(path):
    if not path.is_file():
        raise UsageError(f"there is no file {path}")
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    with _owned(path):
        spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def _owned(name):
    """An error in the user's own code is shown with its lines, and is a wrong call."""
    try:
        yield
    except Exception as error:
        traceback.print_exc()
        raise UsageError(f"{name} failed: {type(error).__name__}: {error}") from error


def _arguments(function):
    """(positional, named) arguments of `examine` that a function returns."""
    with _owned(f"{function.__name__}()"):
        made = function()
    if isinstance(made, dict):
        return (), made
    if not isinstance(made, tuple):
        raise UsageError(
            f"{function.__name__}() must return a dictionary or a tuple of examine's arguments; got {made!r:.60}"
        )
    named = made[-1] if made and isinstance(made[-1], dict) and len(made) > 3 else {}
    return (made[:-1] if named else made), named


def _watch(options):
    _endings(options)
    from numdl.audit import watching
    from numdl.audit._watch import page

    events = watching.read(options.folder)
    print(page.text(events))
    _written(options, lambda path: page.save(events, path))
    return 1 if page.sick(events) else 0


if __name__ == "__main__":
    sys.exit(main())
