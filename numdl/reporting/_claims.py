"""A claim: what theory expects, what was measured, how far apart they may be and why, and whether it holds."""

import dataclasses
import math

import numpy as np

from numdl import checks

NUMBERS = ("expected", "measured", "uncertainty", "tolerance")
RELATIONS = {"==": "=", "<=": "≤", ">=": "≥"}
ORIGINS = ("exact", "published", "own")
UNKNOWN = "unknown"  # of a result that was kept before claims said it


@dataclasses.dataclass(frozen=True)
class Claim:
    """One sentence that the measurement can contradict.

        ==   holds when |measured - expected| <= tolerance
        <=   holds when measured <= expected + tolerance
        >=   holds when measured >= expected - tolerance

    A number that is not finite (a nan measured, an infinite tolerance) never holds. The origin of `expected` is "exact"
    (a theorem, a formula, an independent computation), "published" (a number, or which of two is larger, as a paper
    reports it) or "own" (a limit that the experiment chose).

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
    origin : str            "exact", "published" or "own": where `expected` comes from; by name only
    note : str              what is known of why it does not hold; shown where it fails; by name only
    Raises
    ------
    TypeError, ValueError   no number, a text left empty, a negative uncertainty or tolerance, an unknown relation or
                            origin
    """

    claim: str
    source: str
    expected: float
    measured: float
    uncertainty: float
    tolerance: float
    tolerance_from: str
    relation: str = "=="
    origin: str = dataclasses.field(kw_only=True)
    note: str = dataclasses.field(default="", kw_only=True)

    def __post_init__(self):
        for name in ("claim", "source", "tolerance_from"):
            _text(name, getattr(self, name))
        checks.one_of("relation", self.relation, RELATIONS)
        checks.one_of("origin", self.origin, ORIGINS)
        checks.instance("note", self.note, str)
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
        """The claim that `as_dict` described; numbers may be strings, as strict JSON writes those not finite.

        What was kept before claims said their origin has the origin "unknown", which no new claim may have.
        """
        checks.instance("values", values, dict, hint="from Claim.as_dict()")
        values = {"origin": UNKNOWN, "note": ""} | values
        names = [field.name for field in dataclasses.fields(cls)]
        if missing := [name for name in names if name not in values]:
            raise checks.BadValue(f"values must have {', '.join(missing)}; got {checks.shown(values)}")
        fields = {name: values[name] for name in names} | {name: float(values[name]) for name in NUMBERS}
        if fields["origin"] != UNKNOWN:
            return cls(**fields)
        made = cls(**fields | {"origin": ORIGINS[-1]})
        object.__setattr__(made, "origin", UNKNOWN)
        return made

    def expected_text(self):
        """The expectation with its relation where it is one-sided: '≤ 1.5'."""
        return ("" if self.relation == "==" else RELATIONS[self.relation] + " ") + f"{self.expected:.6g}"

    def failure_text(self):
        """How it fails, in one sentence, and the claim's note; "" where it holds."""
        if self.holds:
            return ""
        if not all(math.isfinite(getattr(self, name)) for name in NUMBERS):
            unknown = ", ".join(name for name in NUMBERS if not math.isfinite(getattr(self, name)))
            said = f"Nothing can be compared: {unknown} not finite."
        else:
            beyond = self._beyond - self.tolerance
            errors = f", {-self.margin:.3g} standard errors" if self.uncertainty else ""
            allowed = f" with {self.tolerance:.3g} allowed" if self.tolerance else ""
            said = f"{self.measured_text()} misses {self.expected_text()}{allowed} by {beyond:.3g}{errors}."
        return f"{said} {_sentence(self.note)}".strip()

    def measured_text(self):
        """The measurement with as many digits as its uncertainty leaves: '0.998 ± 0.003'."""
        return with_uncertainty(self.measured, self.uncertainty)


def _sentence(text):
    """A note as it stands between sentences: a capital, unless it begins with a symbol, and a full stop."""
    first = text.partition(" ")[0]
    word = first == "a" or (len(first) > 1 and first.isalpha())
    begun = text[:1].upper() + text[1:] if word else text
    return begun if not text or text.endswith((".", "!", "?")) else begun + "."


def with_uncertainty(value, uncertainty):
    """A number and its standard error as text, to two digits of the error."""
    if not (math.isfinite(value) and math.isfinite(uncertainty)) or uncertainty == 0:
        return f"{value:.6g}" + ("" if uncertainty == 0 else f" ± {uncertainty:.2g}")
    decimals = 1 - math.floor(math.log10(uncertainty))
    if abs(value) >= 1e6 or decimals > 7:
        digits = max(0, math.floor(math.log10(abs(value) or uncertainty)) + decimals)
        return f"{value:.{min(digits, 15)}e} ± {uncertainty:.1e}"
    return f"{value:.{max(decimals, 0)}f} ± {uncertainty:.{max(decimals, 0)}f}"


def checked_claims(claims):
    """A list of claims."""
    if not isinstance(claims, list | tuple):
        raise checks.BadType(f"claims must be a list of Claim; got {claims!r:.60}")
    for claim in claims:
        checks.instance("claims", claim, Claim, hint="each of them")
    return list(claims)


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
