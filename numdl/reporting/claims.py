"""A claim: what theory expects, what was measured, how far apart they may be and why, and whether it holds."""

import dataclasses
import math
import textwrap

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
                raise ValueError(f"{name} must be a number >= 0; got {getattr(self, name)!r}")

    @property
    def holds(self):
        """Whether the measurement agrees with the expectation within the tolerance."""
        numbers = (self.expected, self.measured, self.uncertainty, self.tolerance)
        if not all(math.isfinite(number) for number in numbers):
            return False
        above = self.measured - self.expected
        return {"==": abs(above), "<=": above, ">=": -above}[self.relation] <= self.tolerance

    def as_dict(self):
        """Every field and `holds`, for JSON."""
        return dataclasses.asdict(self) | {"holds": self.holds}

    @classmethod
    def from_dict(cls, values):
        """The claim that `as_dict` described; numbers may be strings, as strict JSON writes those not finite."""
        fields = {field.name: values[field.name] for field in dataclasses.fields(cls)}
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


def claims_text(claims):
    """The claims as a table for a terminal, one line for the numbers and one for the sentence."""
    rows = [("", "expected", "measured", "tolerance")]
    rows += [(_verdict(c), c.expected_text(), c.measured_text(), f"{c.tolerance:.3g}") for c in claims]
    wide = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, wide, strict=True)).rstrip() for row in rows]
    for i, c in enumerate(claims, start=1):
        for text in (f"{c.claim}  [{c.source}]", f"tolerance: {c.tolerance_from}"):
            folded = textwrap.wrap(text, 100, break_on_hyphens=False)
            lines[i] += "".join(f"\n    {'  ' if more else ''}{line}" for more, line in enumerate(folded))
    return "\n".join(lines)


def scoreboard_text(rows):
    """Claims held of all and seconds for each (name, claims, seconds), and their sum."""
    rows = list(rows)
    total = ("total", [claim for _, claims, _ in rows for claim in claims], sum(seconds for _, _, seconds in rows))
    wide = max(len(name) for name, _, _ in [*rows, total])
    lines = []
    for name, claims, seconds in [*rows, total]:
        held = sum(claim.holds for claim in claims)
        mark = "ok  " if held == len(claims) else "FAIL"
        lines.append(f"{mark}  {name:<{wide}}  {held:>3} of {len(claims):<3} claims hold  {seconds:8.1f} s")
    return "\n".join(lines)


def _verdict(claim):
    return "holds" if claim.holds else "FAILS"


def _text(name, value):
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a text; got {value!r}")
    if not value.strip():
        raise ValueError(f"{name} must be a text that is not empty; got {value!r}")


def _number(name, value):
    array = np.asarray(value)
    if array.shape != () or array.dtype.kind not in "fiu":
        raise TypeError(f"{name} must be one real number; got {value!r}")
    return float(array)
