"""The verification suite: studies that measure figures, each with the threshold that was set before.

    python -m tests.verification              everything, on this Python: docs/verification/<stack>.json and the page
    python -m tests.verification orders       one study: its figures take the place of the old ones

A study is a function of `full`: quick and representative for the tests of every day, or everything. It yields figures.
"""

import dataclasses
import importlib
import math

STUDIES = {}
MODULES = (
    "orders",
    "derivatives",
    "spectra",
    "geometry",
    "moments",
    "precision",
    "relations",
    "agreement",
    "robustness",
)


@dataclasses.dataclass(frozen=True)
class Figure:
    """One measured number beside its threshold."""

    what: str
    measured: float
    threshold: str
    holds: bool
    tried: str


def study(title):
    """Register a study under its function's name."""

    def register(function):
        STUDIES[function.__name__] = (title, function)
        return function

    return register


def studies():
    """name -> (title, function of `full`), in the order of the page."""
    for name in MODULES:
        importlib.import_module(f"{__name__}.{name}")
    return dict(STUDIES)


def near(what, measured, target, tolerance, tried):
    """A number that must be the target within the tolerance."""
    holds = abs(float(measured) - target) <= tolerance
    return Figure(what, float(measured), f"{target:g} ± {tolerance:g}", holds, tried)


def below(what, measured, limit, tried):
    """A number that must not exceed the limit; nan does not hold."""
    return Figure(what, float(measured), f"≤ {limit:g}", bool(float(measured) <= limit), tried)


def above(what, measured, limit, tried):
    """A number that must exceed the limit: the test sees a fault that was planted."""
    return Figure(what, float(measured), f"≥ {limit:g}", bool(float(measured) >= limit), tried)


def furthest(values, target):
    """The value furthest from the target; nan counts as furthest."""
    return max(map(float, values), key=lambda value: math.inf if math.isnan(value) else abs(value - target))
