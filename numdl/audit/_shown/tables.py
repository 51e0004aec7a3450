"""A report as text for a terminal, as a fragment for a notebook, as strict JSON, as a file."""

import json
from typing import Any

from numdl import checks, reporting
from numdl.audit._shown import summaries
from numdl.audit._shown.paths import as_json, value_at
from numdl.audit._shown.words import NOTHING, WIDTH, folded, measured, nothing_found, plain, short, written

__all__ = ["as_json", "notebook", "save", "text"]

_LABEL = 20
_TONES = {"will train": "#1c6b3c", "trains badly": "#8a5a00", "will not train": "#a12b2b"}


def text(report: Any) -> str:
    """A report as lines of at most 100 columns: the verdict, what is wrong and what to do, what that rests on.

    Parameters
    ----------
    report : Report             of `examine`
    Returns
    -------
    str
    """
    blocks = [_head(report), *_findings(report), _evidence(report), _unseen(report)]
    return "\n\n".join("\n".join(block) for block in blocks if block)


def notebook(report: Any) -> str:
    """A report as an HTML fragment, every text escaped.

    Parameters
    ----------
    report : Report             of `examine`
    Returns
    -------
    str
    """
    tag, rows = reporting.tag, [_row(report, i) for i, _ in summaries.nested(report.findings)]
    tone = f"font-size:1.25em;font-weight:600;color:{_TONES.get(report.verdict, 'inherit')}"
    header = ("finding", "severity", "where", "measured", "threshold", "what to do")
    return tag(
        "div",
        tag("div", tag("span", report.verdict, style=tone), f" probability that it trains: {_odds(report)}"),
        tag("div", written(summaries.facts(report), report)),
        reporting.table(header, rows) if rows else tag("p", nothing_found(report.verdict)),
        _rests_on(report),
        class_="numdl-report",
    )


def save(report, path, proof=None, repair=None):
    """Write a report to a path that ends in .html or .json; the path."""
    if path.suffix.lower() not in (".html", ".json"):
        raise checks.BadValue(f"path must end in .html or .json; got {str(path)!r}")
    if path.suffix.lower() == ".json":
        whole = as_json(report) | ({} if proof is None else {"proof": as_json(proof)})
        return reporting.publish(path, json.dumps(whole, indent=1, allow_nan=False) + "\n")
    # Drawing is loaded only where something is drawn.
    from numdl.audit._shown import page

    return reporting.publish(path, page.page(report, proof, repair))


def numbers_of(finding):
    """(measured, theory's expectation, threshold) of a finding as texts."""
    return measured(finding.measured, finding.uncertainty), short(finding.predicted), short(finding.threshold)


def _odds(report):
    shown = short(report.probability, "share")
    return "not estimated" if shown == NOTHING else shown


def _rests_on(report):
    seen = [(label, written(parts, report)) for label, parts in summaries.lines(report)]
    return reporting.details("What this rests on", reporting.table(("", ""), seen)) if seen else ""


def _head(report):
    return [
        f"{plain(report.verdict).upper()}   probability that it trains {_odds(report)}",
        *folded(written(summaries.facts(report), report)),
    ]


def _findings(report):
    order = summaries.nested(report.findings)
    if not order:
        return [[nothing_found(report.verdict)]]
    return [_block(report, number, i, follow) for number, (i, follow) in enumerate(order, 1)]


def _block(report, number, i, follow):
    finding = report.findings[i]
    lines = block(finding, f"{number}. ")
    for other in (report.findings[k] for k in follow):
        lines += [f"   follows: {_titled(other)}", *folded(plain(other.sentence), 6), *_figures(other, 6)]
    named = summaries.named_only(finding, report.findings)
    return lines + (folded(f"follows: {', '.join(map(plain, named))}", 3, 6) if named else [])


def block(finding, heading):
    """The lines of one finding."""
    lines = [f"{heading}{_titled(finding)}", *folded(plain(finding.sentence), 3), *_figures(finding, 3)]
    lines += folded(f"-> {plain(finding.remedy)}", 3, 6) if finding.remedy else []
    known = ". ".join(plain(t).rstrip(".") for t in (finding.theory, finding.source) if t)
    return lines + (folded(f"theory: {known}", 3, 6) if known else [])


def _titled(finding):
    where = f"  at {plain(finding.where, 40)}" if finding.where else ""
    severity = f"  ({plain(finding.severity, 12)})" if finding.severity else ""
    return f"{plain(finding.name, 40)}{severity}{where}"


def _figures(finding, indent):
    names = ("measured", "theory expects", "threshold")
    known = [f"{name} {value}" for name, value in zip(names, numbers_of(finding), strict=True) if value != NOTHING]
    return folded(", ".join(known), indent) if known else []


def _evidence(report):
    return [line for label, parts in summaries.lines(report) for line in labelled(label, written(parts, report))]


def labelled(label, sentence):
    """A sentence beside its label, folded."""
    first, *more = folded(sentence, width=WIDTH - _LABEL) or [""]
    return [f"{label:<{_LABEL}}{first}", *(" " * _LABEL + line for line in more)]


def _unseen(report):
    found = ["Not seen, and what it would have excluded:"] if report.unseen else []
    for view, names in report.unseen:
        found += folded(f"{plain(view, 24)}: {', '.join(plain(name, 40) for name in names)}", 2, 4)
    for note in report.evidence.notes:
        found += folded(f"note: {plain(note)}", 2, 4)
    return found


def _row(report, i):
    finding = value_at(report, f"findings[{i}]")
    now, _, limit = numbers_of(finding)
    said = reporting.tag("div", reporting.tag("strong", finding.name), reporting.tag("div", finding.sentence))
    return said, finding.severity, finding.where, now, limit, finding.remedy
