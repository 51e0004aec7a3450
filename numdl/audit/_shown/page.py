"""A report as one page that opens anywhere: what is wrong, what to do, and the figures and numbers it rests on.

Each number is written as `<data value=... data-path=...>`: the path is the field of the report, and of its JSON file.
"""

import math
from typing import Any

import numpy as np

from numdl import reporting
from numdl.activations import Activation
from numdl.audit._shown import figures, summaries
from numdl.audit._shown.cards import card, number, remedy, said, spoken, unknown
from numdl.audit._shown.paths import At
from numdl.audit._shown.words import NOTHING, nothing_found, plain, short

tag = reporting.tag
TONES = {"will train": "good", "trains badly": "fair", "will not train": "poor"}
PARTS = ("facts", "chain", "function", "loss", "data", "optimizer", "kernel", "trial", "predicted")
MOST_ROWS = 400  # layers of a table
MOST_NUMBERS = 200  # of an array


def page(report: Any, proof: Any = None, repair: Any = None) -> str:
    """One self-contained HTML page about a report: no script, no request, readable on a phone and in the dark.

    Parameters
    ----------
    report : Report             of `examine`
    proof : Proof or None       of `report.prove`: both trainings are shown
    repair : Repair or None     of `report.repair`: its changes are listed
    Returns
    -------
    str
    """
    root = _Root(report, proof)
    sections = [
        reporting.section("What is wrong", *_cards_of(root)) if report.findings else "",
        reporting.section("What to change", *_changes(repair)) if repair is not None else "",
        _proof(root) if proof is not None else "",
        *(_section(root, *part) for part in figures.SECTIONS),
        reporting.section("What this rests on", _lines(root), _unseen(report)),
        reporting.section("Every number", *_numbers(root)),
    ]
    head = [_verdict(root)]
    return reporting.page("Will it train?", [part for part in sections if part], lead=head)


class _Root:
    """A report whose paths may also begin with `proof`."""

    def __init__(self, report, proof):
        self.report, self.proof = report, proof

    def __getattr__(self, name):
        return getattr(self.report, name)


def _verdict(root):
    report = root.report
    words = [
        tag("p", plain(report.verdict), class_="word"),
        tag("p", said(root, summaries.facts(report)), class_="facts"),
    ]
    words += _cause(report.findings[0]) if report.findings else [tag("p", nothing_found(report.verdict))]
    return tag("div", _gauge(root), tag("div", *words), class_=f"verdict {TONES.get(report.verdict, 'fair')}")


def _cause(finding):
    return [tag("p", spoken(finding.sentence)), remedy(finding)]


def _gauge(root):
    probability = root.report.probability
    known = isinstance(probability, int | float) and math.isfinite(probability)
    drawing = _arc(min(max(float(probability), 0.0), 1.0) if known else 0.0, short(probability, "share"))
    text = number(root, "probability", "share") if known else "not estimated"
    return tag("div", drawing, tag("p", text, class_="share"), tag("p", "probability that it trains"), class_="gauge")


def _arc(share, said):
    """Half a circle, filled to this share."""
    arc = {"d": "M 10 60 A 50 50 0 0 1 110 60", "fill": "none", "stroke_width": 14, "pathLength": 100}
    filled = tag("path", class_="filled", stroke_dasharray=f"{100 * share:.2f} 200", **arc) if share >= 0.005 else ""
    label = f"probability that it trains: {said}"
    return tag("svg", tag("path", class_="rest", **arc), filled, viewBox="0 0 120 68", role="img", aria_label=label)


def _cards_of(root):
    findings = root.report.findings
    return [
        card(
            root,
            f"{count}. ",
            f"findings[{i}]",
            [f"findings[{k}]" for k in follow],
            summaries.named_only(findings[i], findings),
        )
        for count, (i, follow) in enumerate(summaries.nested(findings), 1)
    ]


def _changes(repair):
    built, left = ([tag("li", spoken(line)) for line in lines] for lines in (repair.changes, repair.by_hand))
    word = "In your own code or data:" if built else "Nothing that could be built here; in your own code or data:"
    return [tag("ol", *built) if built else "", *([tag("p", word), tag("ul", *left)] if left else [])]


def _section(root, title, drawings, table):
    pictures = [picture for draw in drawings if (picture := figures.picture(root, draw))]
    folded = table(root.report) if table else None
    rows = _folded_rows(root, *folded) if folded else ""
    return reporting.section(title, tag("div", *pictures, class_="plots"), rows) if pictures else ""


def _proof(root):
    proof, drawn = root.proof, figures.picture(root, figures.PROOF)
    word = "The repair helped." if proof.helped else "The repair did not help."
    same = (
        "" if proof.same_loss else " The repaired network has other targets: compare the curves' courses, not heights."
    )
    parts = [tag("strong", word), f"{same} Loss at the end: as it was ", number(root, "proof.sick.last.mean")]
    parts += [", repaired ", number(root, "proof.repaired.last.mean")]
    if np.isfinite(proof.unseen_repaired).any():
        parts += ["; on examples not trained on ", number(root, "proof.unseen_sick.mean")]
        parts += [" and ", number(root, "proof.unseen_repaired.mean")]
    return reporting.section("The proof", tag("p", *parts, "."), tag("div", drawn, class_="plots one"))


def _lines(root):
    rows = [(label, said(root, parts)) for label, parts in summaries.lines(root.report)]
    return reporting.table(("what", "seen"), rows, class_="lines") if rows else tag("p", "Nothing could be measured.")


def _unseen(report):
    rows = [(plain(view), ", ".join(map(plain, names))) for view, names in report.unseen]
    notes = [tag("li", plain(note)) for note in report.evidence.notes]
    said = [tag("h3", "Not seen"), reporting.table(("not given", "would have excluded"), rows)] if rows else []
    return tag("div", *said, tag("ul", *notes) if notes else "")


def _folded_rows(root, summary, header, rows):
    """A folded table; cells that are `At` are numbers."""
    shown = rows[:MOST_ROWS]
    cells = [[number(root, c.path, c.form) if isinstance(c, At) else plain(c, 120) for c in row] for row in shown]
    rest = [tag("p", f"{len(rows) - MOST_ROWS} more rows are in the JSON file.")] if len(rows) > MOST_ROWS else []
    return reporting.details(summary, reporting.table(header, [tuple(row) for row in cells]), *rest)


def _numbers(root):
    intro = "A path names a field of the report and of its JSON file; `.mean` is over what it holds."
    whole = {name: getattr(root.report.evidence, name) for name in PARTS}
    found = [_fields(root, name, f"evidence.{name}", record) for name, record in whole.items() if record is not None]
    found.append(_fields(root, "features of the probability", "features", root.report.features))
    found.append(_fields(root, "seconds", "evidence.seconds", root.report.evidence.seconds))
    found.append(_fields(root, "proof", "proof", root.proof) if root.proof is not None else "")
    return [reporting.prose(intro), *found]


def _fields(root, summary, base, record):
    names = record if isinstance(record, dict) else vars(record)
    rows = [(f"{base}.{name}", _value(root, base, name, value)) for name, value in _items(record, names)]
    return reporting.details(summary, reporting.table(("path", "value"), rows)) if rows else ""


def _items(record, names):
    return [(name, record[name] if isinstance(record, dict) else getattr(record, name)) for name in names]


def _value(root, base, name, value):
    if isinstance(value, np.ndarray) and value.ndim:
        return _array(value)
    if isinstance(value, tuple | str):
        return plain(", ".join(map(str, value)) if isinstance(value, tuple) else value, 400)
    if isinstance(value, Activation):
        return value.name
    return number(root, f"{base}.{name}") if str(name).isidentifier() else short(value)


def _array(value):
    numbers = " ".join("nan" if unknown(float(entry)) else short(entry) for entry in value.ravel()[:MOST_NUMBERS])
    more = f" ... {value.size - MOST_NUMBERS} more in the JSON file" if value.size > MOST_NUMBERS else ""
    return tag(
        "span", tag("small", f"[{', '.join(map(str, value.shape))}]"), f" {numbers}{more}" if numbers else NOTHING
    )
