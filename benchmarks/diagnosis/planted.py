"""Planted faults: each finding of the audit alone, at several strengths, in healthy networks of each family."""

import dataclasses
import functools
import itertools

from benchmarks.diagnosis import faults_data, faults_loss, faults_network, faults_optimizer, recipes
from benchmarks.diagnosis.bases import BASES
from benchmarks.diagnosis.setting import Case, differences

FAULTS = [*faults_network.FAULTS, *faults_loss.FAULTS, *faults_data.FAULTS, *faults_optimizer.FAULTS]


def cases():
    """A case for each fault and each of its bases."""
    return [_case(fault, base) for fault, base in itertools.chain.from_iterable(
        ((fault, base) for base in fault.bases) for fault in FAULTS)]  # fmt: skip


def _case(fault, base):
    recipe = BASES[base]
    name = f"planted-{fault.name}-{fault.strength}-{base}".replace(" ", "_")
    return Case(name, "planted", recipe.family, recipe.maker, fault.split, functools.partial(plant, fault, base),
                cause=fault.name, strength=fault.strength, base=f"base-{base}")  # fmt: skip


def plant(fault, base, seed):
    """The healthy setting with the fault in it, and what would mend it."""
    healthy = recipes.build(BASES[base], seed)
    changed = fault.recipe(BASES[base])
    sick = healthy if changed is BASES[base] else recipes.build(changed, seed)
    sick = fault.setting(sick)
    return dataclasses.replace(sick, fixed=differences(sick, healthy))
