"""The scoreboard of many runs: a record that JSON holds, and the document that is written from one or two of them.

The record is `scoreboard.json` in the results folder: when, which versions, which machine, the claims counted by where
their numbers come from, and every run with its claims, seconds and memory; for a claim that fails, by how much it
misses and what the experiment's verdict says of it.
"""

import datetime
import json
import os
import pathlib
import platform
import re
import textwrap

from experiments import runner, sources

FILE = "scoreboard.json"
SAID = re.compile(r"\b(fail(s|ed|ing)?|do(es)? not hold|did not hold|contradict\w*|missed)\b", re.IGNORECASE)


def record(outcomes, *, size, seconds, stopped=None):
    """What is kept of outcomes: plain values that JSON holds.

    Parameters
    ----------
    outcomes : list of workers.Outcome
    size : str              "full", "quick" or "tiny"
    seconds : float         from the first start to the last end
    stopped : str or None   the signal that ended it before all were done
    """
    from numdl import reporting

    outcomes = list(outcomes)
    claims = [claim for outcome in outcomes if outcome.run is not None for claim in outcome.run.claims]
    return {
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "size": size,
        "stopped": stopped,
        "seconds": round(seconds, 1),
        "versions": reporting.versions(),
        "machine": machine(),
        "holds": stopped is None and all(outcome.good for outcome in outcomes),
        "origins": {
            name: {"held": held, "total": total} for name, (held, total) in reporting.by_origin(claims).items()
        },
        "runs": [_run(outcome) for outcome in outcomes],
    }


def write(board, results):
    """Write the record into the results folder, whole or not at all, and return its path."""
    from numdl import reporting

    return reporting.publish(pathlib.Path(results) / FILE, json.dumps(board, indent=1, allow_nan=False) + "\n")


def read(folder):
    """The record of a results folder; UsageError where there is none that can be read."""
    path = pathlib.Path(folder) / FILE
    try:
        board = json.loads(path.read_text(encoding="utf-8"))
        return board if {"versions", "machine", "origins", "runs", "size", "finished"} <= set(board) else _none(path)
    except (OSError, ValueError, TypeError):
        return _none(path)


def machine():
    """The processor, its cores and memory, and the system; no name of the machine or of anyone."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    about = {"processor": _processor(), "cores": available, "system": f"{platform.system()} {platform.machine()}"}
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return about | {"memory_gib": round(total / 2**30, 1)}
    except (AttributeError, ValueError, OSError):
        return about | {"memory_gib": None}


def why(name, claim):
    """Why a claim fails: by how much it misses and its note, then the sentences of the verdict about what failed."""
    said = verdict_on_failures(name)
    return f"{claim.failure_text()} {f'The verdict: {said}' if said else 'The verdict does not speak of a failure.'}"


def verdict_on_failures(name):
    """The sentences of the experiment's verdict that speak of what failed or does not hold; "" if none does."""
    text = " ".join(runner.headings(name)["Verdict"].split())
    sentences = re.split(r"(?<=[a-z)\]0-9%][.;!?])\s+(?=[A-Z(])", text)
    return " ".join(sentence for sentence in sentences if SAID.search(sentence))


def failing_text(board):
    """The claims that fail, with why, for a terminal; one line where none does."""
    lines = [
        f"{run['name']}: {claim['claim']} [{claim['source']}]\n{claim['why']}"
        for run in board["runs"]
        for claim in run["claims"]
        if not claim["holds"]
    ]
    parts = [part for line in lines for part in line.split("\n")]
    folded = [textwrap.indent("\n".join(textwrap.wrap(part, 110)), "  ") for part in parts]
    return "\n".join(["\nClaims that fail:", *folded]) if folded else "\nNo claim fails."


def document(boards):
    """The scoreboard as Markdown, from the record of one stack or of several.

    Parameters
    ----------
    boards : list of dict   as `read` returns them
    """
    parts = [HEAD, _stacks(boards), "## Claims by where their numbers come from\n\n" + _origins(boards)]
    parts += [_failing(boards), _missing(boards), _later(boards), "## Every experiment\n\n" + _experiments(boards)]
    parts += ["## Every claim\n\n" + _claims(boards[0]), "## Sources\n\n" + _sources(boards)]
    return "\n\n".join(part for part in parts if part) + "\n"


KINDS = set(sources.KINDS.values())
HEAD = """# Scoreboard

Every experiment of numdl with its claims: what theory or a paper says, and what was measured. Written by
`python -m experiments scoreboard` from what `python -m experiments reproduce` kept; no number is entered by hand.

*exact*: the expected number follows from a theorem, a formula or an independent computation. *published*: a paper
reports the number, or which of two is larger. *own*: the experiment chose the limit. The margin is the distance to the
limit in standard errors of the measurement; ∞ where nothing is uncertain. Times: of the last call, which does not run
again what an earlier one finished, and of all runs added up."""


def _run(outcome):
    title = runner.headings(outcome.name)["title"]
    summary = {"title": title} | outcome.summary()
    if outcome.run is not None:
        for claim, shown in zip(outcome.run.claims, summary["claims"], strict=True):
            shown["why"] = None if claim.holds else why(outcome.name, claim)
    return summary


def _none(path):
    raise runner.UsageError(f"scoreboard needs a folder that `reproduce` has finished; {path} is none")


def _processor():
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", pathlib.Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def _stack(board):
    versions = board["versions"]
    return f"jax {versions['jax']}, Python {versions['python']}"


def _stacks(boards):
    rows = []
    for board in boards:
        about, versions = board["machine"], board["versions"]
        times = board["seconds"], sum(run["seconds"] for run in board["runs"])
        memory = f", {about['memory_gib']:g} GiB" if about["memory_gib"] else ""
        sources_of = f" (library {versions['library']})" if "library" in versions else ""
        rows.append((
            board["finished"][:10], _stack(board), f"numdl {versions['numdl']}{sources_of}, numpy {versions['numpy']}",
            f"{about['cores']} cores of {about['processor']}{memory}, {about['system']}", board["size"],
            ", ".join(map(_duration, times)), _state(board),
        ))  # fmt: skip
    return _table(("date", "stack", "with", "machine", "size", "time, of all runs", "state"), rows)


def _state(board):
    reused = sum(bool(run.get("reused")) for run in board["runs"])
    state = f"stopped by {board['stopped']}" if board["stopped"] else "complete"
    return f"{state}; {reused} of {len(board['runs'])} from earlier calls" if reused else state


def _origins(boards):
    names = [name for name in ("exact", "published", "own", "unknown") if any(name in b["origins"] for b in boards)]
    count = lambda board, name: board["origins"].get(name, {"held": 0, "total": 0})  # noqa: E731
    rows = []
    for board in boards:
        counts = [count(board, name) for name in names]
        counts.append({key: sum(each[key] for each in counts) for key in ("held", "total")})
        rows.append((_stack(board), *(f"{each['held']} of {each['total']}" for each in counts)))
    return _table(("claims that hold", *names, "all"), rows)


def _failing(boards):
    rows = [
        (_stack(board), _code(run["name"]), claim["claim"], claim["source"], claim["origin"], claim["why"])
        for board in boards
        for run in board["runs"]
        for claim in run["claims"]
        if not claim["holds"]
    ]
    text = _table(("stack", "experiment", "claim", "source", "origin", "why"), rows) if rows else "None."
    return f"## Claims that fail\n\n{text}"


def _missing(boards):
    rows = [
        (_stack(board), _code(run["name"]), re.sub(r"/\S*/", "", run["problem"]))  # names of files, not where they lie
        for board in boards
        for run in board["runs"]
        if run["problem"]
    ]
    return "## Experiments without a result\n\n" + _table(("stack", "experiment", "problem"), rows) if rows else ""


def _later(boards):
    """What is here and in none of the runs: written since, or not asked for."""
    ran = {run["name"] for board in boards for run in board["runs"]}
    rows = [(_code(name), runner.headings(name)["title"]) for name in runner.names() if name not in ran]
    return "## Experiments that these runs do not have\n\n" + _table(("experiment", "question"), rows) if rows else ""


def _experiments(boards):
    found = [{run["name"]: run for run in board["runs"]} for board in boards]
    names = list(dict.fromkeys(name for runs in found for name in runs))
    header = ["experiment", "question"]
    header += [
        f"{what}, {_stack(board)}" for board in boards for what in ("claims", "margin", "time", "memory", "maps")
    ]
    rows = []
    for name in names:
        title = next(runs[name]["title"] for runs in found if name in runs)
        rows.append((_code(name), title, *(cell for runs in found for cell in _cells(runs.get(name)))))
    return _table(header, rows)


def _cells(run):
    """Claims held, least margin, seconds, largest memory and maps of a run that may be missing."""
    if run is None or run["problem"]:
        return ("—",) * 5
    memory, maps = run["peak_memory"], run["peak_maps"]
    held = sum(claim["holds"] for claim in run["claims"])
    return (
        f"{held} of {len(run['claims'])}", _number(run["margin"]), _duration(run["seconds"]),
        "—" if memory is None else f"{memory / 2**20:.0f} MiB", "—" if maps is None else str(maps),
    )  # fmt: skip


def _claims(board):
    from numdl.reporting import Claim

    rows = []
    for run in board["runs"]:
        for values in run["claims"]:
            claim = Claim.from_dict(values)
            allowed = f"{claim.expected_text()} ± {claim.tolerance:.2g}" if claim.tolerance else claim.expected_text()
            rows.append((
                "holds" if claim.holds else Written("**fails**"), run["name"].split("_")[0], claim.claim, claim.source,
                claim.origin, allowed, claim.measured_text(), _number(values["margin"]), f"{run['seconds']:.0f}",
            ))  # fmt: skip
    header = ("", "in", "claim", "source", "origin", "expected", "measured", "margin", "seconds of its run")
    return f"Measured with {_stack(board)}.\n\n" + _table(header, rows)


def _sources(boards):
    """Which of the places in papers that claims name were looked up, what is there, and which were not."""
    named = {claim["source"] for board in boards for run in board["runs"] for claim in run["claims"]}
    total, missing = 0, {}
    for source in sorted(named):
        total += len(sources.places(source))
        if left := sources.unchecked(source):
            missing[source] = ", ".join(map(str, left))
    left = sum(len(text.split(", ")) for text in missing.values())
    said = (
        f"{total - left} of {total} figures, equations, tables, sections and theorems that sources name were looked up "
    )
    said += "in a copy of the paper's text; no copy of the others was at hand, and their numbers were not checked."
    found = [
        (paper["name"], paper["read"], _places(paper), paper["found"])
        for paper in sources.papers()
        if any(paper["key"] in source for source in named)
    ]
    parts = [said, _table(("paper", "read", "places", "what is there"), found)]
    return "\n\n".join([*parts, "Not checked:", _table(("source", "places"), missing.items())])


def _places(paper):
    return ", ".join(f"{kind} {', '.join(paper[kind])}" for kind in paper if kind in KINDS) or "none by number"


def _table(header, rows):
    lines = [header, [Written("---")] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(_escaped, line)) + " |" for line in lines)


def _code(name):
    return Written(f"`{name}`")


class Written(str):
    """A cell that is Markdown already."""


def _escaped(cell):
    return cell if isinstance(cell, Written) else re.sub(r"([\\|*_<`~\[\]])", r"\\\1", str(cell))


def _number(margin):
    from numdl import reporting

    return reporting.margin_text(float(margin))


def _duration(seconds):
    hours, minutes = divmod(round(seconds / 60), 60)
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
