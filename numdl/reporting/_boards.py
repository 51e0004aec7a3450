"""Tables of claims for a terminal: one run's, all by their margins, and the scoreboard of many experiments."""

import math
import textwrap
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from numdl.reporting._claims import ORIGINS, UNKNOWN, Claim, checked_claims


class Score(NamedTuple):
    """One line of a scoreboard: an experiment's claims and what its run took, or why there is none."""

    name: str
    claims: list
    seconds: float
    maps: int | None = None  # largest number of memory maps of its process
    memory: int | None = None  # largest resident memory, bytes
    problem: str = ""  # why there is no result: "crashed (signal 11)", and where the log is

    @property
    def good(self):
        """Whether there is a result and every claim of it holds."""
        return not self.problem and all(claim.holds for claim in self.claims)

    @property
    def margin(self):
        """The smallest margin of the claims, in standard errors; infinite where there are none."""
        return min((claim.margin for claim in self.claims), default=math.inf)


def claims_text(claims: Sequence[Claim], *, brief: bool = False) -> str:
    """The claims as a table for a terminal, one line for the numbers and one for the sentence.

    Parameters
    ----------
    claims : list of Claim
    brief : bool            one line for each, the sentence shortened; why it fails, where it does
    Returns
    -------
    str                     lines: verdict, origin, expected, measured, tolerance, margin
    Raises
    ------
    TypeError               not a list of Claim
    """
    claims = checked_claims(claims)
    rows = [("", "origin", "expected", "measured", "tolerance", "margin", "claim" if brief else "")]
    rows += [
        (
            _verdict(c), c.origin, c.expected_text(), c.measured_text(), f"{c.tolerance:.3g}", margin_text(c.margin),
            textwrap.shorten(c.claim, 70, placeholder=" ...") if brief else "",
        )
        for c in claims
    ]  # fmt: skip
    lines = _columns(rows)
    for i, c in enumerate(claims, start=1):
        texts = () if brief else (f"{c.claim}  [{c.source}]", f"tolerance: {c.tolerance_from}")
        for text in filter(None, (*texts, c.failure_text())):
            folded = textwrap.wrap(printable(text), 100, break_on_hyphens=False)
            lines[i] += "".join(f"\n    {'  ' if more else ''}{line}" for more, line in enumerate(folded))
    return "\n".join(lines)


def margins_text(rows: Iterable[tuple]) -> str:
    """Every claim of all experiments with its margin, the smallest first.

    Parameters
    ----------
    rows : list of tuples   (name, claims, ...) of each experiment, a `Score` for one
    Returns
    -------
    str                     lines: margin in standard errors, verdict, origin, experiment, measured, limit, claim
    """
    found = sorted(((c.margin, row[0], c) for row in rows for c in row[1]), key=lambda entry: entry[:2])
    lines = [("margin", "", "origin", "experiment", "measured", "limit", "claim")]
    for margin, name, c in found:
        limit = f"{c.expected_text()} (± {c.tolerance:.3g})"
        sentence = textwrap.shorten(c.claim, 70, placeholder=" ...")
        lines.append((margin_text(margin), _verdict(c), c.origin, name, c.measured_text(), limit, sentence))
    return "\n".join(_columns(lines))


def scoreboard_text(rows: Iterable[tuple]) -> str:
    """Claims held, smallest margin, seconds, maps and memory, for each experiment and in all.

    Parameters
    ----------
    rows : list of tuples   (name, claims, seconds, maps, memory, problem), the fields of `Score`; the last three may
                            be left out
    Returns
    -------
    str                     one line for each experiment and a total, "FAIL" where a claim does not hold; then the
                            claims by origin
    """
    rows = [Score(*row) for row in rows]
    total = Score(
        "total", [claim for row in rows for claim in row.claims], sum(row.seconds for row in rows),
        _largest(row.maps for row in rows), _largest(row.memory for row in rows),
    )  # fmt: skip
    good = all(row.good for row in rows)
    wide = max(len(row.name) for row in [*rows, total])
    lines = [printable(_score_line(row, wide, row.good)) for row in rows] + [_score_line(total, wide, good)]
    lines += [f"      {origin:<{wide}}  {_held_text(*of)}" for origin, of in by_origin(total.claims).items()]
    return "\n".join(lines)


def by_origin(claims: Iterable[Claim]) -> dict:
    """How many claims hold, counted apart by where their numbers come from.

    Parameters
    ----------
    claims : list of Claim
    Returns
    -------
    dict                    origin -> (held, total): "exact", "published", "own" always; "unknown" if there is one
    """
    claims = list(claims)
    counted = {}
    for origin in (*ORIGINS, UNKNOWN):
        of = [claim.holds for claim in claims if claim.origin == origin]
        if of or origin != UNKNOWN:
            counted[origin] = (sum(of), len(of))
    return counted


def margin_text(margin: float) -> str:
    """A margin in standard errors as text.

    Parameters
    ----------
    margin : float          `Claim.margin` or `Score.margin`
    Returns
    -------
    str                     "∞" or "-∞" where nothing is uncertain
    """
    if math.isinf(margin):
        return "∞" if margin > 0 else "-∞"
    return f"{margin:.1f}" if abs(margin) < 1000 else f"{margin:.0e}"


def _score_line(row, wide, good):
    parts = [f"{'ok  ' if good else 'FAIL'}  {row.name:<{wide}}"]
    parts += [
        row.problem or _held_text(sum(claim.holds for claim in row.claims), len(row.claims)),
        f"{row.seconds:8.1f} s",
    ]
    if not row.problem and row.claims:
        parts.append(f"margin {margin_text(row.margin):>6}")
    if row.maps is not None:
        parts.append(f"{row.maps:>6} maps")
    if row.memory is not None:
        parts.append(f"{row.memory / 2**20:6.0f} MB")
    return "  ".join(parts)


def _held_text(held, total):
    return f"{held:>3} of {total:<3} claims hold"


def printable(text: str) -> str:
    """Text that a terminal only shows: what would move its cursor, turn its direction or break the line is spelled.

    Parameters
    ----------
    text : str              of anyone
    Returns
    -------
    str                     one line
    """
    return "".join(letter if letter.isprintable() else _spelled(letter) for letter in " ".join(text.split("\n")))


def _spelled(letter):
    return " " if letter.isspace() and letter not in "\r\v\f\x1c\x1d\x1e\x1f\x85\u2028\u2029" else ascii(letter)[1:-1]


def _columns(rows):
    rows = [[printable(cell) for cell in row] for row in rows]
    wide = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, wide, strict=True)).rstrip() for row in rows]


def _largest(values):
    known = [value for value in values if value is not None]
    return max(known) if known else None


def _verdict(claim):
    return "holds" if claim.holds else "FAILS"
