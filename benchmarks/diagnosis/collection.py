"""All cases by name, and the healthy networks that truth compares them with."""

import functools
import importlib

from benchmarks.diagnosis import recipes
from benchmarks.diagnosis.bases import BASES

GROUPS = {"random": "random_configurations", "planted": "planted", "reports": "reports", "autotrainer": "autotrainer",
          "healthy": "healthy"}  # fmt: skip


def _group(name):
    return importlib.import_module(f"benchmarks.diagnosis.{GROUPS[name]}")


@functools.cache
def cases():
    """{name: Case}"""
    found = [case for group in GROUPS for case in _group(group).cases()]
    names = {case.name: case for case in found}
    assert len(names) == len(found), "two cases have one name"
    return names


@functools.cache
def references():
    """{name: recipe}: the bases of planted faults and the standard networks of the data sets."""
    standards = {}
    for group in ("random", "autotrainer", "healthy"):
        standards.update(_group(group).standards())
    return {**{f"base-{name}": recipe for name, recipe in BASES.items()}, **standards}


def reference(name, seed):
    return recipes.build(references()[name], seed)


def interleaved():
    """The names with the groups mixed: any beginning of the list is a balanced sample."""
    groups = {}
    for case in cases().values():
        groups.setdefault((case.group, case.split), []).append(case.name)
    places = {name: (place + 0.5) / len(names) for names in groups.values() for place, name in enumerate(_mixed(names))}
    return sorted(places, key=places.get)


def _mixed(names):
    """Far apart what stands together: every seventh name, then the ones after."""
    return [name for start in range(7) for name in names[start::7]]
