"""python -m experiments list | run NAME [--field value ...] | reproduce

list                                     every experiment and its question
run NAME [--field value ...]             one experiment; NAME may be short (a1); --help shows its fields
reproduce [--only NAME ...]              all of them and the scoreboard; exit code 1 if a claim fails

--tiny             the small version of each, seconds instead of a minute
--json             the last line of the output is one JSON object
--results DIR      where the runs' folders go (default: results)
"""

import argparse
import json
import sys

from experiments import runner


def main(arguments=None):
    """Do what the command line says and return the exit code: 0, 1 for a claim that fails, 2 for a wrong call."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        return _dispatch(arguments)
    except runner.UsageError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def _dispatch(arguments):
    command = arguments[0] if arguments else "--help"
    if command in ("-h", "--help", "help"):
        print(__doc__.strip())
        return 0
    commands = {"list": _list, "run": _run, "reproduce": _reproduce}
    if command not in commands:
        raise runner.UsageError(f"unknown command {command!r}: it is one of {', '.join(commands)}")
    return commands[command](arguments[1:])


def _list(arguments):
    _options("list", arguments)
    known = runner.names()
    wide = max(map(len, known), default=0)
    for name in known:
        print(f"{name:<{wide}}  {runner.headings(name)['title']}")
    return 0


def _run(arguments):
    if not arguments or arguments[0].startswith("-"):
        raise runner.UsageError(f"run needs an experiment: one of {', '.join(runner.names())}")
    name = runner.resolve(arguments[0])
    if {"-h", "--help"} & set(arguments):
        print(runner.help_text(name) + "\nbesides: --tiny, --json, --results DIR (python -m experiments --help)")
        return 0
    options, fields = _options("run", arguments[1:], fields=True)
    config = runner.configure(name, fields, tiny=options.tiny)
    run = runner.execute(name, config, results=options.results)
    if options.json:
        print(json.dumps(run.summary(), allow_nan=False))
    else:
        _show(run)
    return 0 if run.held == len(run.claims) else 1


def _reproduce(arguments):
    from numdl import reporting

    options = _options("reproduce", arguments, only=True)
    chosen = [runner.resolve(name) for name in options.only or runner.names()]
    runs = []
    for name in chosen:
        print(f"{name} ...", file=sys.stderr, flush=True)
        runs.append(runner.execute(name, runner.configure(name, tiny=options.tiny), results=options.results))
        if not options.json:
            _show(runs[-1])
            print()
    good = all(run.held == len(run.claims) for run in runs)
    if options.json:
        print(json.dumps({"holds": good, "runs": [run.summary() for run in runs]}, allow_nan=False))
    else:
        print(reporting.scoreboard_text((run.name, run.claims, run.seconds) for run in runs))
    return 0 if good else 1


def _show(run):
    from numdl import reporting

    print(f"{run.name}: {runner.headings(run.name)['title']}\n")
    print(reporting.claims_text(run.claims))
    print(f"\n{run.held} of {len(run.claims)} claims hold, {run.seconds:.1f} s, kept in {run.folder}")


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise runner.UsageError(f"{self.prog}: {message}")


def _options(command, arguments, *, fields=False, only=False):
    """The shared options; with `fields`, what is left over belongs to the experiment."""
    parser = _Parser(prog=command, add_help=False, allow_abbrev=False)
    if command != "list":
        parser.add_argument("--tiny", action="store_true")
        parser.add_argument("--json", action="store_true")
        parser.add_argument("--results", default="results")
    if only:
        parser.add_argument("--only", nargs="+", default=[])
    return parser.parse_known_args(arguments) if fields else parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
