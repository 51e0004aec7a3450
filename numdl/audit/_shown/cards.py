"""Pieces of the audit's pages: a number with its path, a sentence with its numbers, a finding's card."""

import math
import re

from numdl import reporting
from numdl.audit._shown.paths import At, as_json, value_at
from numdl.audit._shown.words import measured, plain, short

tag = reporting.tag
SEVERITIES = ("certain", "likely", "hint")


def number(root, path, form="number", shown=None):
    """A number as it is read, with its exact value and its path."""
    value = value_at(root, path)
    exact = None if unknown(value) else as_json(value)
    return tag("data", short(value, form) if shown is None else shown, value=exact, data_path=path, title=path)


def unknown(value):
    """Whether there is nothing to show: None or nan."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def said(root, parts):
    """A sentence of texts and `At`."""
    return tag("span", *(number(root, p.path, p.form) if isinstance(p, At) else p for p in parts))


def spoken(text):
    """Text with `code` between backticks, and nothing else changed: layers' names hold underscores."""
    pieces = re.split(r"`([^`]+)`", plain(text))
    return tag("span", *(tag("code", piece) if i % 2 else piece for i, piece in enumerate(pieces)))


def remedy(finding):
    """What to change, or nothing."""
    return tag("p", tag("strong", "Change: "), spoken(finding.remedy), class_="remedy") if finding.remedy else ""


def card(root, heading, path, followers=(), named=()):
    """The finding at `path`, the findings at the paths that follow from it, and the names of those without one."""
    finding = value_at(root, path)
    return tag(
        "article",
        tag("h3", heading, tag("code", plain(finding.name)), _severity(finding)),
        tag("p", "at ", tag("code", plain(finding.where)), class_="where") if finding.where else "",
        tag("p", spoken(finding.sentence)),
        _figures(root, path),
        remedy(finding),
        _theory(finding),
        _consequences(root, followers, named),
        class_=f"finding {finding.severity}" if finding.severity in SEVERITIES else "finding",
    )


def _severity(finding):
    return tag("span", plain(finding.severity), class_="severity") if finding.severity else ""


def _theory(finding):
    known = [plain(piece).rstrip(".") for piece in (finding.theory, finding.source) if piece]
    return tag("div", reporting.prose(". ".join(known)), class_="theory") if known else ""


def _figures(root, path):
    """Measured, what theory expects, and the threshold, as far as they are known."""
    finding = value_at(root, path)
    names = (("measured", "measured"), ("predicted", "theory expects"), ("threshold", "threshold"))
    cells = []
    for field, word in names:
        if not unknown(getattr(finding, field)):
            shown = measured(finding.measured, finding.uncertainty) if field == "measured" else None
            cells.append(tag("div", tag("span", word), number(root, f"{path}.{field}", shown=shown)))
    return tag("div", *cells, class_="figures") if cells else ""


def _consequences(root, followers, named):
    items = [_follower(root, path) for path in followers] + [tag("li", tag("code", plain(name))) for name in named]
    return tag("div", tag("p", "From this follows:"), tag("ul", *items), class_="follows") if items else ""


def _follower(root, path):
    finding = value_at(root, path)
    return tag("li", tag("code", plain(finding.name)), " ", spoken(finding.sentence), _figures(root, path))
