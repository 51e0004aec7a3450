"""What a watched run has written so far, as text and as a page."""

import json
import math
from typing import Any

import numpy as np

from numdl import plotting, reporting
from numdl.audit._shown import figures, tables
from numdl.audit._shown.cards import card, number, said, spoken, unknown
from numdl.audit._shown.paths import At, as_json
from numdl.audit._shown.words import folded, nothing_found, plain, seen, written

tag = reporting.tag
RANK = {"certain": 2, "likely": 1}


def text(events: Any) -> str:
    """Lines of at most 100 columns: where the run is, what was found and when, what was seen last.

    Parameters
    ----------
    events : Events             of `audit.watching.read`
    Returns
    -------
    str
    """
    blocks = [folded(written(_where(events), events))]
    blocks += [tables.block(finding, f"step {step}: ") for step, finding in events.findings] or [[nothing_found()]]
    blocks.append([line for label, parts in _lines(events) for line in tables.labelled(label, written(parts, events))])
    return "\n\n".join("\n".join(block) for block in blocks if block)


def page(events: Any) -> str:
    """One self-contained HTML page.

    Parameters
    ----------
    events : Events             of `audit.watching.read`
    Returns
    -------
    str
    """
    drawings = [drawn for drawing in DRAWINGS if (drawn := figures.picture(events, drawing))]
    rows = [(label, said(events, parts)) for label, parts in _lines(events)]
    cards = [card(events, _at_step(events, i), f"findings[{i}][1]") for i in range(len(events.findings))]
    sections = [
        reporting.section("What was found", *cards) if cards else "",
        reporting.section("The run", tag("div", *drawings, class_="plots")) if drawings else "",
        reporting.section("Seen last", reporting.table(("what", "seen"), rows, class_="lines")) if rows else "",
    ]
    return reporting.page("How does it train?", [part for part in sections if part], lead=[_verdict(events)])


def save(events, path):
    """Write a page (.html) or the numbers (.json), whole or not at all; the path."""
    whole = page(events) if path.suffix.lower() == ".html" else json.dumps(as_json(events), indent=1, allow_nan=False)
    return reporting.publish(path, whole)


def sick(events: Any) -> bool:
    """Whether something was found that is more than a hint.

    Parameters
    ----------
    events : Events             of `audit.watching.read`
    """
    return any(finding.severity in RANK for _, finding in events.findings)


def _verdict(events):
    worst = max((finding for _, finding in events.findings), key=lambda f: RANK.get(f.severity, 0), default=None)
    tone = "good" if not sick(events) else "poor" if worst.severity == "certain" else "fair"
    word = "nothing found" if worst is None else plain(worst.name)
    words = [tag("p", word, class_="word"), tag("p", said(events, _where(events)), class_="facts")]
    words.append(tag("p", nothing_found() if worst is None else spoken(worst.sentence)))
    return tag("div", tag("div", *words), class_=f"verdict plain {tone}")


def _at_step(events, i):
    return tag("span", "step ", number(events, f"findings[{i}][0]", "count"), ": ")


def _where(events):
    """The last step and what became of the loss."""
    if not np.size(events.loss):
        return ["no loss was written"]
    parts = ["step ", At("loss_steps[-1]", "count"), ": loss ", At("loss[0]"), " to ", At("loss[-1]")]
    return [*parts, ", least ", At("loss.least")]


def _lines(events):
    found = [("sharpness", "sharpness[-1].sharpness", ", stable up to ", "sharpness[-1].limit")]
    found.append(("noise scale", "noise[-1].noise_scale", " examples, the batch has ", "noise[-1].batch"))
    found.append(("largest update", "change[-1].ratio.most", " of a leaf, steps: ", "change[-1].gap"))
    found.append(("units never active", "layers[-1].dead.most", ", at their bounds ", "layers[-1].saturated.most"))
    rows = [(label, _pair(events, f"looks.{one}", between, f"looks.{two}")) for label, one, between, two in found]
    if seen(events, "cost.share"):
        rows.append(("cost", [At("cost.share", "share"), " of the time"]))
    return [(label, parts) for label, parts in rows if parts]


def _pair(events, first, between, second):
    if not seen(events, first):
        return []
    return ["", At(first), *([between, At(second)] if seen(events, second) else [])]


def _has(kind, *fields):
    def known(events):
        looks = events.looks.get(kind, [])
        return any(not unknown(look.get(field)) and np.size(look[field]) for look in looks for field in fields)

    return known


def _drawn(draw, known):
    return lambda events: (lambda ax: draw(events, ax=ax)) if known(events) else None


DRAWINGS = (
    figures.Drawing(
        "The loss, and when something was found.",
        ("loss_steps", "loss", "findings"),
        _drawn(plotting.watched, lambda events: any(map(math.isfinite, events.loss))),
    ),
    figures.Drawing(
        "Sharpness beside the method's limit.",
        ("looks.sharpness[].sharpness", "looks.sharpness[].limit"),
        _drawn(plotting.edge, _has("sharpness", "sharpness")),
    ),
    figures.Drawing(
        "How far one step moves the parameters.",
        ("looks.change[].ratio",),
        _drawn(plotting.movement, _has("change", "ratio")),
    ),
    figures.Drawing(
        "Units that have stopped to work.",
        ("looks.layers[].dead", "looks.layers[].saturated"),
        _drawn(plotting.ageing, _has("layers", "dead", "saturated")),
    ),
)
