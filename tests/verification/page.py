"""The page of figures, docs/verification.md, made from one file of figures for each stack and one of planted faults."""

import inspect
import json
import math
import platform
import time

from numdl import reporting
from tests.verification import mutants

FOLDER = mutants.FIGURES.parent
PAGE = FOLDER.with_suffix(".md")
INTRODUCTION = """# Verification

What was measured, beside the threshold that was set before. A quick part of each study is a test of every day
(processes are killed in the long suite only). `make verification` runs the whole, fails where a figure does not hold,
and writes the page anew with the figures of the Python that runs it; `make verification-stacks` both columns, `make
mutants` finds the planted faults. The figures lie in `docs/verification/`, a file a stack, and a test holds the kept
ones to their thresholds.

A dash stands for what was not run on that stack; a study that is not here was run on none. Where the threshold is "≥"
the figure must reach it: the test sees a planted fault, or where a promise ends.
"""


def stack():
    """The name of this Python's stack."""
    return f"jax-{_version('jax')}"


def _version(package):
    from importlib import metadata

    return metadata.version(package)


def versions():
    """What the figures depend on."""
    packages = ("jax", "jaxlib", "numpy", "scipy", "optax")
    return {"python": platform.python_version(), **{p: _version(p) for p in packages}, "machine": platform.machine()}


def read(path):
    """A file of figures, or an empty one."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def kept():
    """The studies that this stack has figures of."""
    return tuple(read(FOLDER / f"{stack()}.json").get("studies", ()))


def keep(name, title, text, figures, seconds):
    """Put one study's figures into the file of this stack."""
    path = FOLDER / f"{stack()}.json"
    known = read(path) or {"studies": {}}
    rows = [
        {"what": f.what, "measured": f.measured if math.isfinite(f.measured) else str(f.measured)}
        | {"threshold": f.threshold, "holds": f.holds, "tried": f.tried}
        for f in figures
    ]
    study = {"title": title, "text": text, "date": time.strftime("%F"), "seconds": round(seconds), "figures": rows}
    known["studies"][name] = study
    known |= {"versions": versions(), "cpus": reporting.environment()["cpus"]}
    if name == "cpus":
        from tests.verification import agreement

        known["numbers"] = agreement.numbers()
    FOLDER.mkdir(exist_ok=True)
    path.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write():
    """Make the page from all files of figures."""
    stacks = {path.stem: read(path) for path in sorted(FOLDER.glob("jax-*.json"))}
    names = list(dict.fromkeys(name for known in stacks.values() for name in known["studies"]))
    parts = [INTRODUCTION, _summary(stacks, names), *(_study(stacks, name) for name in names)]
    parts += [_across(stacks), _mutants()]
    PAGE.write_text("\n".join(part for part in parts if part), encoding="utf-8")


def _summary(stacks, names):
    rows = []
    for name in names:
        title = next(known["studies"][name]["title"] for known in stacks.values() if name in known["studies"])
        rows.append([title, *(_share(known, name) for known in stacks.values())])
    about = ["## Summary", "", "Figures that hold, of those measured.", ""]
    made = [
        f"- {name}: "
        + ", ".join(f"{key} {value}" for key, value in known["versions"].items())
        + f", {known['cpus']} CPUs"
        for name, known in stacks.items()
    ]
    return "\n".join([*about, *_table(["study", *stacks], rows), "", *made, ""])


def _share(known, name):
    study = known["studies"].get(name)
    if study is None:
        return "-"
    good = sum(row["holds"] for row in study["figures"])
    return f"{good} of {len(study['figures'])} ({study['date']})"


def _study(stacks, name):
    found = {stack: known["studies"].get(name, {"figures": []}) for stack, known in stacks.items()}
    first = next(study for study in found.values() if study["figures"])
    by_name = {stack: {row["what"]: row for row in study["figures"]} for stack, study in found.items()}
    listed = list(dict.fromkeys(what for rows in by_name.values() for what in rows))
    table = []
    for what in listed:
        row = next(rows[what] for rows in by_name.values() if what in rows)
        table.append([what, row["tried"], row["threshold"], *(_cell(rows.get(what)) for rows in by_name.values())])
    lines = [f"## {first['title']}", "", inspect.cleandoc(first["text"]), ""]
    return "\n".join([*lines, *_table(["what", "tried", "threshold", *stacks], table), ""])


def _cell(row):
    if row is None:
        return "-"
    value = row["measured"]
    shown = value if isinstance(value, str) else f"{value:.4g}"
    return shown if row["holds"] else f"**{shown}**"


def _across(stacks):
    """The largest relative difference of numbers that nothing random enters, between the stacks."""
    from tests.verification.agreement import gap

    with_numbers = {name: known["numbers"] for name, known in stacks.items() if "numbers" in known}
    if len(with_numbers) < 2:
        return ""
    first, *others = with_numbers.values()
    rows = [[name, f"{max(gap(other[name], values) for other in others):.2g}"] for name, values in first.items()]
    head = ["## The stacks among themselves", "", f"Relative differences between {' and '.join(with_numbers)}.", ""]
    return "\n".join([*head, *_table(["what", "largest difference"], rows), ""])


def _mutants():
    rows = read(mutants.FIGURES)
    if not rows:
        return ""
    verdicts = [row["verdict"] for row in rows.values()]
    counted = ", ".join(f"{verdicts.count(name)} {name}" for name in dict.fromkeys(verdicts))
    head = ["## Planted faults", "", f"{len(rows)} faults in the mathematics, one at a time: {counted}.", ""]
    table = [
        [name.split(": ")[0], row["kind"], row["verdict"], f"`{row['by'].removeprefix('tests/')}`" if row["by"] else ""]
        for name, row in rows.items()
    ]
    return "\n".join([*head, *_table(["file", "fault", "verdict", "by"], table), ""])


def _table(head, rows):
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in [head, *rows]]
    return [f"| {' | '.join(row)} |" for row in [cells[0], ["---"] * len(head), *cells[1:]]]
