"""Rules: a table, `rules.toml`. A row is a condition on the evidence, a sentence, theory, a source, a remedy.

Rules import neither theory nor analysis: a planted fault is a hand-made record. Severity says how we know: `certain` is
algebra, `likely` is where theory or form and the trial agree, `hint` is one of them and never turns a verdict.
"""

import dataclasses
import functools
import pathlib
import tomllib
from collections.abc import Callable
from typing import Any

from numdl.audit._conditions import attention, data, form, layers, training
from numdl.audit._reading import Reading
from numdl.audit.evidence import Evidence, Finding


@dataclasses.dataclass(frozen=True)
class Rule:
    """One row of the table."""

    name: str
    condition: Callable[[Reading], Any]  # -> Seen or None
    sentence: str  # with the fields of Seen in braces
    theory: str
    source: str
    remedy: str
    explains: tuple = ()  # findings that are consequences of this one


@functools.cache
def table() -> tuple[Rule, ...]:
    """All rules, in the order in which they are read."""
    read = tomllib.loads((pathlib.Path(__file__).parent / "rules.toml").read_text())
    groups = {f"@{name}": tuple(names) for name, names in read["groups"].items()}
    rules = []
    for row in read["rule"]:
        explained = [name for entry in row["explains"] for name in groups.get(entry, (entry,))]
        rules.append(Rule(**{**row, "condition": _condition(row["condition"]), "explains": tuple(explained)}))
    return tuple(rules)


def _condition(name):
    module, _, function = name.partition(".")
    modules = {"attention": attention, "data": data, "form": form, "layers": layers, "training": training}
    return getattr(modules[module], function)


def judge(evidence: Evidence) -> tuple[Finding, ...]:
    """Findings of the whole table, causes before what follows from them, the heaviest first.

    Parameters
    ----------
    evidence : Evidence         measured, or made by hand
    Returns
    -------
    tuple of Finding            a finding that another one explains stands among that one's consequences alone
    """
    reading, found = Reading(evidence), []
    for rule in table():
        seen = rule.condition(reading)
        if seen is not None:
            found.append((rule, _finding(rule, seen)))
    return _ordered(found)


def _finding(rule, seen):
    text = {name: seen.text(name) for name in ("measured", "threshold", "predicted", "law", "where", "more")}
    return Finding(
        name=rule.name,
        severity=seen.severity,
        where=seen.where,
        measured=float(seen.measured),
        uncertainty=float(seen.uncertainty),
        predicted=float(seen.predicted),
        threshold=float(seen.threshold),
        sentence=rule.sentence.format(**text),
        theory=rule.theory.format(**text),
        source=rule.source,
        remedy=rule.remedy.format(**text),
        weight=float(seen.weight) + _RANK[seen.severity],
    )


_RANK = {"certain": 2.0, "likely": 1.0, "hint": 0.0}


def _ordered(found):
    """Causes take their consequences; what is left is sorted by weight."""
    taken, kept = {}, []
    strong = [(rule, finding) for rule, finding in found if finding.severity != "hint"]
    for rule, finding in sorted(strong, key=lambda pair: -pair[1].weight):
        if finding.name in taken:
            continue
        weaker = [o for _, o in found if o.name in rule.explains and o.weight <= finding.weight]
        taken |= {o.name: finding.name for o in weaker if o.name not in taken and o.name != finding.name}
    for _, finding in found:
        if finding.name not in taken:
            follows = tuple(dict.fromkeys(name for name, cause in _roots(taken).items() if cause == finding.name))
            kept.append(dataclasses.replace(finding, consequences=follows))
    return tuple(sorted(kept, key=lambda finding: -finding.weight))


def _roots(taken):
    """Each consequence with the cause at the end of its chain."""
    roots = {}
    for name in taken:
        cause, passed = taken[name], {name}
        while cause in taken and cause not in passed:
            passed.add(cause)
            cause = taken[cause]
        roots[name] = cause
    return roots
