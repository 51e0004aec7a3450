"""python -m experiments list | show NAME | run NAME | replay FOLDER | reproduce | margins | scoreboard FOLDER

list                                     every group and experiment with its question, and the lecture that shows it
show NAME                                what an experiment asks, predicts, measures and found; runs nothing
run NAME [--field value ...]             one experiment; NAME may be short (a1); run NAME --help shows its fields
replay FOLDER                            a kept run again: what differs in versions, claims and numbers; writes nothing
reproduce [--only NAME ...]              all of them, each in a process of its own: a table, scoreboard.json, index.html
margins [--least 3]                      every claim of the kept runs, those nearest to their limits first
scoreboard FOLDER [FOLDER]               what `reproduce` kept, one results folder for each stack, as Markdown

--tiny             run, reproduce: the small version of each, seconds instead of minutes
--quick            reproduce: all of them in minutes: the quick version where an experiment has one, else the small one
--output FILE      scoreboard: where the Markdown goes (default: the terminal)
--pictures DIR     scoreboard: also the first folder's figures, smaller, one PNG file for each experiment
--json             run, replay, reproduce, margins: the last line of the output is one JSON object
--results DIR      run, reproduce, margins: where the runs' folders are (default: results)
--jobs N           reproduce: this many at once, each with its share of the cores (default: 1)
--executor WHERE   reproduce: on other machines that see DIR, dask:ADDRESS, slurm, slurm:PARTITION, or local (submitit)
--timeout SECONDS  reproduce: how long one may take (default: as long as it needs)
--again            reproduce: also what was finished before for the same program, config and versions

run and reproduce end with exit code 1 if a claim fails or an experiment has no result; margins if one is below --least;
replay if a number or a claim is not, bit for bit, as it was. A wrong call is exit code 2.
"""

import argparse
import collections
import contextlib
import json
import math
import pathlib
import re
import sys
import time

from experiments import farm, gallery, pages, runner, scoreboard, workers


def main(arguments=None):
    """Do what the command line says and return the exit code: 0, 1 for a claim that fails, 2 for a wrong call."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        return _dispatch(arguments)
    except runner.UsageError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:  # the disk is full, a folder has gone
        print(f"error: {' '.join(str(error).split())}: what was finished before is kept", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped by SIGINT; what is finished is kept", file=sys.stderr)
        return 130


def _dispatch(arguments):
    command = arguments[0] if arguments else "--help"
    if command in ("-h", "--help", "help") or (_asks_for_help(arguments) and not _names_one(arguments)):
        print(__doc__.strip())
        return 0
    commands = {
        "list": _list, "show": _about, "run": _run, "replay": _replay, "reproduce": _reproduce, "margins": _margins,
        "scoreboard": _scoreboard,
    }  # fmt: skip
    if command not in commands:
        raise runner.UsageError(f"unknown command {command!r}: it is one of {', '.join(commands)}")
    return commands[command](arguments[1:])


def _list(arguments):
    _options("list", arguments)
    known = runner.names()
    wide = max(map(len, known), default=0)
    for page, members in runner.groups(known):
        if page:
            print(f"\n{page.splitlines()[0]}")
        for name in members:
            parts = runner.headings(name)
            print(f"{name:<{wide}}  {parts['title']}")
            if parts["Lecture"]:
                print(f"{'':<{wide}}  Lecture: {parts['Lecture']}")
    return 0


def _asks_for_help(arguments):
    return bool({"-h", "--help"} & set(arguments))


def _names_one(arguments):
    """Whether it is a run of an experiment, whose fields have a help of their own."""
    return arguments[0] == "run" and not arguments[1].startswith("-")


def _about(arguments):
    name = runner.resolve(_first(arguments, "show"))
    _options("show", arguments[1:])
    parts = runner.headings(name)
    print(f"{name}: {parts['title']}")
    for heading in ("Lecture", *runner.HEADINGS):
        if parts[heading]:
            print(f"\n{heading}\n{parts[heading]}")
    return 0


def _first(arguments, command):
    if not arguments or arguments[0].startswith("-"):
        raise runner.UsageError(f"{command} needs an experiment: one of {runner.shortly(runner.names())}")
    return arguments[0]


def _run(arguments):
    name = runner.resolve(_first(arguments, "run"))
    if _asks_for_help(arguments):
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


def _replay(arguments):
    from experiments import replay

    options = _options("replay", arguments)
    found = replay.replay(options.folder)
    print(json.dumps(found.summary(), allow_nan=False) if options.json else found.text())
    return 0 if found.same else 1


def _reproduce(arguments):
    from numdl import reporting

    options = _options("reproduce", arguments)
    chosen = [runner.resolve(name) for name in options.only or runner.names()]
    twice = [name for name, count in collections.Counter(chosen).items() if count > 1]
    if twice:
        raise runner.UsageError(f"--only must name an experiment once; got {twice[0]} again")
    if options.quick and options.tiny:
        raise runner.UsageError("--quick and --tiny are two sizes; give one of them")
    if options.executor is not None and options.jobs != 1:
        raise runner.UsageError(
            "--jobs is for this machine; with --executor, what gives the work says how many at once"
        )
    results, start = _writable(options.results), time.monotonic()
    outcomes, stopped = _all(chosen, options)
    entries = [(outcome.score, outcome.run, outcome.log) for outcome in outcomes]
    size = "quick" if options.quick else "tiny" if options.tiny else "full"
    ended = None if stopped is None else str(stopped)
    board = scoreboard.record(outcomes, size=size, seconds=time.monotonic() - start, stopped=ended)
    kept = scoreboard.write(board, results)
    page = pages.publish(results / "index.html", gallery.index(entries, board, results)) if entries else None
    if options.json:
        print(json.dumps(board | {"page": str(page)}, allow_nan=False))
    else:
        print(reporting.scoreboard_text(score for score, _, _ in entries))
        print(scoreboard.failing_text(board) + f"\nKept in {kept}\nOpen {page}")
    if stopped is not None:
        print(f"stopped by {stopped}; what is finished is kept: the same command goes on", file=sys.stderr)
        return 128 + stopped.number
    return 0 if board["holds"] else 1


def _all(chosen, options):
    """The outcomes in the order asked for, and the signal that ended it before, or None."""
    outcomes, stopped = [], None

    def heard(outcome):
        outcomes.append(outcome)
        _tell(outcome, options)

    settings = {name: getattr(options, name) for name in ("results", "tiny", "quick", "timeout", "again")}
    try:
        if options.executor is not None:
            place = farm.executor(options.executor, options.results)
            farm.reproduce(chosen, executor=place, heard=heard, **settings)
        else:
            _here(chosen, options.jobs, settings, heard)
    except workers.Stopped as error:
        stopped = error
    return sorted(outcomes, key=lambda outcome: chosen.index(outcome.name)), stopped


def _here(chosen, jobs, settings, heard):
    """On this machine."""
    told = lambda name: print(f"{name} ...", file=sys.stderr, flush=True)  # noqa: E731
    with contextlib.closing(workers.reproduce(chosen, jobs=jobs, told=told, **settings)) as working:
        for outcome in working:
            heard(outcome)


def _tell(outcome, options):
    if outcome.problem:
        print(f"{outcome.name}: {outcome.score.problem}", file=sys.stderr, flush=True)
    elif not options.json:
        _show(outcome.run, note=" (from an earlier call)" if outcome.reused else "", brief=True)
        print(flush=True)


def _margins(arguments):
    from numdl import reporting

    options = _options("margins", arguments)
    only = {runner.resolve(name) for name in options.only}
    runs = [run for run in _kept(pathlib.Path(options.results)) if not only or run.name in only]
    if not runs:
        raise runner.UsageError(f"--results must be a folder with runs; got {options.results!r}")
    near = sum(claim.margin < options.least for run in runs for claim in run.claims)
    if options.json:
        print(json.dumps({"near": near, "runs": [run.summary() for run in runs]}, allow_nan=False))
    else:
        total = sum(len(run.claims) for run in runs)
        print(reporting.margins_text((run.name, run.claims) for run in runs))
        print(f"\n{near} of {total} claims within {options.least:g} standard errors of the limit, or beyond it")
        print(_near_by_origin([claim for run in runs for claim in run.claims], options.least))
    return 1 if near else 0


def _near_by_origin(claims, least):
    counts = collections.Counter(claim.origin for claim in claims if claim.margin < least)
    return ", ".join(f"{origin}: {counts[origin]} of {sum(c.origin == origin for c in claims)}"
                     for origin in dict.fromkeys(sorted(claim.origin for claim in claims)))  # fmt: skip


def _scoreboard(arguments):
    from numdl import reporting

    options = _options("scoreboard", arguments)
    boards = [scoreboard.read(folder) for folder in options.folders]
    text = scoreboard.document(boards)
    try:
        if options.pictures is not None:
            shown = gallery.pictures(boards[0], options.folders[0], options.pictures)
            print(f"{len(shown)} pictures written to {options.pictures}", file=sys.stderr)
        if options.output is None:
            print(text, end="")
            return 0
        reporting.publish(options.output, text)
    except OSError as error:
        raise runner.UsageError(str(error)) from error
    print(f"Written to {options.output}")
    return 0


def _kept(results):
    from numdl import reporting

    for name in runner.names():
        for folder in sorted(results.joinpath(name).glob("[0-9a-f]" * 12)):
            try:
                yield reporting.load(folder)
            except (OSError, ValueError) as error:
                print(f"left out: {error}", file=sys.stderr)


def _writable(folder):
    from numdl import reporting

    try:
        return reporting.writable(folder)
    except OSError as error:
        raise runner.UsageError(str(error)) from error


def _show(run, note="", *, brief=False):
    from numdl import reporting

    print(f"{run.name}: {runner.headings(run.name)['title']}\n")
    print(reporting.claims_text(run.claims, brief=brief))
    print(f"\n{run.held} of {len(run.claims)} claims hold, {run.seconds:.1f} s, kept in {run.folder}{note}")


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise runner.UsageError(f"{self.prog}: {message}")


class _Once(argparse.Action):
    """Keeps the value of an option and refuses it the second time."""

    def __call__(self, parser, namespace, values, option_string=None):
        given = namespace.__dict__.setdefault("given", set())
        if self.dest in given:
            parser.error(f"{option_string} must be given once")
        given.add(self.dest)
        setattr(namespace, self.dest, True if self.nargs == 0 else values)


def _options(command, arguments, *, fields=False):
    """The command's options; with `fields`, what is left over belongs to the experiment."""
    parser = _Parser(prog=command, add_help=False, allow_abbrev=False)
    add = lambda name, **settings: parser.add_argument(name, action=_Once, **settings)  # noqa: E731
    if command == "scoreboard":
        parser.add_argument("folders", nargs="+", type=_folder)
        add("--output", default=None, type=_folder)
        add("--pictures", default=None, type=_folder)
    elif command == "replay":
        parser.add_argument("folder", type=_folder)
        add("--json", nargs=0, default=False)
    elif command not in ("list", "show"):
        add("--json", nargs=0, default=False)
        add("--results", default="results", type=_folder)
    if command in ("run", "reproduce"):
        add("--tiny", nargs=0, default=False)
    if command in ("reproduce", "margins"):
        add("--only", nargs="+", default=[])
    if command == "reproduce":
        add("--jobs", default=1, type=_count)
        add("--executor", default=None)
        add("--timeout", default=None, type=_above_zero)
        add("--again", nargs=0, default=False)
        add("--quick", nargs=0, default=False)
    if command == "margins":
        add("--least", default=3.0, type=_number)
    options, left = parser.parse_known_args(arguments)
    if left and not fields:
        parser.error(f"unrecognized arguments: {' '.join(left)}")
    return (options, left) if fields else options


def _folder(text):
    if not text.strip() or "\0" in text:
        raise argparse.ArgumentTypeError(f"must be a folder; got {text!r}")
    return text


def _count(text):
    if not re.fullmatch(r"[0-9]{1,4}", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer in 1..9999; got {text!r}")
    return int(text)


def _number(text):
    if not re.fullmatch(r"-?[0-9]*\.?[0-9]+(e[+-]?[0-9]+)?", text) or not math.isfinite(float(text)):
        raise argparse.ArgumentTypeError(f"must be a finite number; got {text!r}")
    return float(text)


def _above_zero(text):
    if _number(text) <= 0:
        raise argparse.ArgumentTypeError(f"must be a number above zero; got {text!r}")
    return float(text)


if __name__ == "__main__":
    sys.exit(main())
