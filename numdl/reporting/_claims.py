"""A claim: what theory expects, what was measured, how far apart they may be and why, and whether it holds."""

import dataclasses
import math
import textwrap
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from numdl import checks

NUMBERS = ("expected", "measured", "uncertainty", "tolerance")
RELATIONS = {"==": "=", "<=": "≤", ">=": "≥"}


@dataclasses.dataclass(frozen=True)
class Claim:
    """One sentence that the measurement can contradict.

        ==   holds when |measured - expected| <= tolerance
        <=   holds when measured <= expected + tolerance
        >=   holds when measured >= expected - tolerance

    A number that is not finite (a nan measured, an infinite tolerance) never holds.

    Parameters
    ----------
    claim : str             the sentence
    source : str            who says so: paper and equation, lecture
    expected : float        theory's number, in the units that the sentence names
    measured : float        the measurement, same units
    uncertainty : float     one standard error of `measured`; 0 if it is exact
    tolerance : float       how far `measured` may be from `expected`, absolute
    tolerance_from : str    where the tolerance comes from: "six standard errors", "O(1/width) bias"
    relation : str          "==", "<=" or ">="
    Raises
    ------
    TypeError, ValueError   no number, a text left empty, a negative uncertainty or tolerance, an unknown relation
    """

    claim: str
    source: str
    expected: float
    measured: float
    uncertainty: float
    tolerance: float
    tolerance_from: str
    relation: str = "=="

    def __post_init__(self):
        for name in ("claim", "source", "tolerance_from"):
            _text(name, getattr(self, name))
        checks.one_of("relation", self.relation, RELATIONS)
        for name in NUMBERS:
            object.__setattr__(self, name, _number(name, getattr(self, name)))
        for name in ("uncertainty", "tolerance"):
            if getattr(self, name) < 0:
                raise checks.BadValue(f"{name} must be a number >= 0; got {getattr(self, name)!r}")

    @property
    def holds(self):
        """Whether the measurement agrees with the expectation within the tolerance."""
        numbers = (self.expected, self.measured, self.uncertainty, self.tolerance)
        if not all(math.isfinite(number) for number in numbers):
            return False
        return self._beyond <= self.tolerance

    @property
    def margin(self):
        """How far inside its limit the measurement lies, in standard errors; negative outside, infinite if exact.

        A claim that holds by less than three would fail on another machine or seed now and then.
        """
        inside = self.tolerance - self._beyond
        if not math.isfinite(inside) or self.uncertainty == 0 or not math.isfinite(self.uncertainty):
            return math.inf if self.holds else -math.inf
        return inside / self.uncertainty

    @property
    def _beyond(self):
        above = self.measured - self.expected
        return {"==": abs(above), "<=": above, ">=": -above}[self.relation]

    def as_dict(self):
        """Every field, `holds` and `margin`, for JSON."""
        return dataclasses.asdict(self) | {"holds": self.holds, "margin": self.margin}

    @classmethod
    def from_dict(cls, values):
        """The claim that `as_dict` described; numbers may be strings, as strict JSON writes those not finite."""
        checks.instance("values", values, dict, hint="from Claim.as_dict()")
        names = [field.name for field in dataclasses.fields(cls)]
        if missing := [name for name in names if name not in values]:
            raise checks.BadValue(f"values must have {', '.join(missing)}; got {checks.shown(values)}")
        fields = {name: values[name] for name in names}
        return cls(**fields | {name: float(fields[name]) for name in NUMBERS})

    def expected_text(self):
        """The expectation with its relation where it is one-sided: '≤ 1.5'."""
        return ("" if self.relation == "==" else RELATIONS[self.relation] + " ") + f"{self.expected:.6g}"

    def measured_text(self):
        """The measurement with as many digits as its uncertainty leaves: '0.998 ± 0.003'."""
        return with_uncertainty(self.measured, self.uncertainty)


def with_uncertainty(value, uncertainty):
    """A number and its standard error as text, to two digits of the error."""
    if not (math.isfinite(value) and math.isfinite(uncertainty)) or uncertainty == 0:
        return f"{value:.6g}" + ("" if uncertainty == 0 else f" ± {uncertainty:.2g}")
    decimals = 1 - math.floor(math.log10(uncertainty))
    if abs(value) >= 1e6 or decimals > 7:
        digits = max(0, math.floor(math.log10(abs(value) or uncertainty)) + decimals)
        return f"{value:.{min(digits, 15)}e} ± {uncertainty:.1e}"
    return f"{value:.{max(decimals, 0)}f} ± {uncertainty:.{max(decimals, 0)}f}"


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


def claims_text(claims: Sequence[Claim]) -> str:
    """The claims as a table for a terminal, one line for the numbers and one for the sentence.

    Parameters
    ----------
    claims : list of Claim
    Returns
    -------
    str                     lines: verdict, expected, measured, tolerance, margin
    Raises
    ------
    TypeError               not a list of Claim
    """
    claims = checked_claims(claims)
    rows = [("", "expected", "measured", "tolerance", "margin")]
    rows += [
        (_verdict(c), c.expected_text(), c.measured_text(), f"{c.tolerance:.3g}", margin_text(c.margin)) for c in claims
    ]
    lines = _columns(rows)
    for i, c in enumerate(claims, start=1):
        for text in (f"{c.claim}  [{c.source}]", f"tolerance: {c.tolerance_from}"):
            folded = textwrap.wrap(text, 100, break_on_hyphens=False)
            lines[i] += "".join(f"\n    {'  ' if more else ''}{line}" for more, line in enumerate(folded))
    return "\n".join(lines)


def margins_text(rows: Iterable[tuple]) -> str:
    """Every claim of all experiments with its margin, the smallest first.

    Parameters
    ----------
    rows : list of tuples   (name, claims, ...) of each experiment, a `Score` for one
    Returns
    -------
    str                     lines: margin in standard errors, verdict, experiment, measured, limit, claim
    """
    found = sorted(((c.margin, row[0], c) for row in rows for c in row[1]), key=lambda entry: entry[:2])
    lines = [("margin", "", "experiment", "measured", "limit", "claim")]
    for margin, name, c in found:
        limit = f"{c.expected_text()} (± {c.tolerance:.3g})"
        sentence = textwrap.shorten(c.claim, 70, placeholder=" ...")
        lines.append((margin_text(margin), _verdict(c), name, c.measured_text(), limit, sentence))
    return "\n".join(_columns(lines))


def checked_claims(claims):
    """A list of claims."""
    if not isinstance(claims, list | tuple):
        raise checks.BadType(f"claims must be a list of Claim; got {claims!r:.60}")
    for claim in claims:
        checks.instance("claims", claim, Claim, hint="each of them")
    return list(claims)


def scoreboard_text(rows: Iterable[tuple]) -> str:
    """Claims held, smallest margin, seconds, maps and memory, for each experiment and in all.

    Parameters
    ----------
    rows : list of tuples   (name, claims, seconds, maps, memory, problem), the fields of `Score`; the last three may
                            be left out
    Returns
    -------
    str                     one line for each experiment and a total; "FAIL" where a claim does not hold
    """
    rows = [Score(*row) for row in rows]
    total = Score(
        "total", [claim for row in rows for claim in row.claims], sum(row.seconds for row in rows),
        _largest(row.maps for row in rows), _largest(row.memory for row in rows),
    )  # fmt: skip
    good = all(row.good for row in rows)
    wide = max(len(row.name) for row in [*rows, total])
    lines = [_score_line(row, wide, row.good) for row in rows] + [_score_line(total, wide, good)]
    return "\n".join(lines)


def margin_text(margin):
    """A margin in standard errors as text; "exact" where nothing is uncertain."""
    if math.isinf(margin):
        return "exact" if margin > 0 else "none"
    return f"{margin:.1f}" if abs(margin) < 1000 else f"{margin:.0e}"


def _score_line(row, wide, good):
    held = sum(claim.holds for claim in row.claims)
    parts = [f"{'ok  ' if good else 'FAIL'}  {row.name:<{wide}}"]
    parts += [row.problem or f"{held:>3} of {len(row.claims):<3} claims hold", f"{row.seconds:8.1f} s"]
    if not row.problem and row.claims:
        parts.append(f"margin {margin_text(row.margin):>6}")
    if row.maps is not None:
        parts.append(f"{row.maps:>6} maps")
    if row.memory is not None:
        parts.append(f"{row.memory / 2**20:6.0f} MB")
    return "  ".join(parts)


def _columns(rows):
    wide = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, wide, strict=True)).rstrip() for row in rows]


def _largest(values):
    known = [value for value in values if value is not None]
    return max(known) if known else None


def _verdict(claim):
    return "holds" if claim.holds else "FAILS"


def _text(name, value):
    if not isinstance(value, str):
        raise checks.BadType(f"{name} must be a text; got {value!r}")
    if not value.strip():
        raise checks.BadValue(f"{name} must be a text that is not empty; got {value!r}")


def _number(name, value):
    array = np.asarray(value)
    if array.shape != () or array.dtype.kind not in "fiu":
        raise checks.BadType(f"{name} must be one real number; got {value!r}")
    return float(array)
