"""What a fault does to a recipe or to a setting; `planted` puts it into healthy networks.

A strength is for fitting or for reporting, never for both; so is a base, the healthy network it goes into.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

from benchmarks.diagnosis.setting import FITTING, REPORTING


class Fault(NamedTuple):
    """One way to bring a finding about, at one strength, in some healthy networks."""

    name: str  # of the finding
    strength: str
    split: str
    bases: tuple  # names in `bases`
    recipe: Callable = lambda recipe: recipe  # recipe -> recipe
    setting: Callable = lambda setting: setting  # setting -> setting


def fit(name, strength, bases, **how):
    return Fault(name, strength, FITTING, tuple(bases.split()), **how)


def report(name, strength, bases, **how):
    return Fault(name, strength, REPORTING, tuple(bases.split()), **how)


def but(**fields):
    """The recipe with other fields."""
    return {"recipe": lambda recipe: recipe.but(**fields)}


def times(**factors):
    """The recipe with fields multiplied."""
    return {"recipe": lambda recipe: recipe.but(**{k: getattr(recipe, k) * f for k, f in factors.items()})}


def after(change, *arguments, **options):
    """The setting changed by a function of (setting, ...)."""
    return {"setting": functools.partial(_later, change, arguments, options)}


def _later(change, arguments, options, setting):
    return change(setting, *arguments, **options)
