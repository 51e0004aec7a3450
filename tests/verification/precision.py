"""float32 against float64 for every public function that returns numbers: the registry's good calls, made twice."""

import contextlib
import os
import tempfile
import warnings

import jax
import numpy as np

from tests import registry
from tests.verification import below, study

LIMIT = 1e-4
QUICK = ("trees.norm", "krylov.lanczos.tridiagonalize")
# What is drawn at random is drawn from other bits at another width (jax documents it), so the two cannot be compared.
RANDOM = "its draws have other bits in float64"
MOST_LEFT_OUT = 0.25  # a comparison that leaves out more says little of the package
# Own limits, and why.
LOOSE = {}


def comparable():
    """name -> function, of all that is registered with a good call that a test can make."""
    functions, registered = registry.functions(), registry.calls()
    return {
        name: functions[name]
        for name in registered[0]
        if not name.startswith((*registry.NOT_RUN, "plotting", "reporting"))
    }, registered


def outputs(name, function, registered, wide):
    """The numbers that a good call returns, as float64 arrays, in the order of the record's leaves."""
    arguments = registry.good_call(name, function, registered)
    with jax.enable_x64(wide), warnings.catch_warnings(), _elsewhere():
        warnings.simplefilter("ignore")
        result = function(**arguments)
    leaves = [leaf for leaf in jax.tree.leaves(result) if isinstance(leaf, jax.Array | np.ndarray | np.generic | float)]
    arrays = [leaf for leaf in leaves if np.asarray(leaf).dtype.kind in "fcV"]
    return [np.asarray(leaf).astype(np.complex128 if np.iscomplexobj(leaf) else np.float64) for leaf in arrays]


@contextlib.contextmanager
def _elsewhere():
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


def distance(single, double):
    """The largest difference of two lists of arrays, each relative to its largest finite entry; inf if forms differ."""
    if len(single) != len(double) or any(a.shape != b.shape for a, b in zip(single, double)):
        return np.inf
    return max((_relative(a, b) for a, b in zip(single, double)), default=0.0)


def _relative(single, double):
    if not double.size or not np.array_equal(np.isfinite(single), np.isfinite(double)):
        return 0.0 if not double.size else np.inf
    kept = np.isfinite(double)
    size = np.abs(double[kept]).max(initial=0.0)
    return float(np.abs(single - double)[kept].max(initial=0.0) / size) if size else 0.0


def is_random(arguments):
    """Whether a key is among the arguments: the draws then differ in the two precisions."""
    leaves = jax.tree.leaves(list(arguments.values()))
    return any(
        isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in leaves
    )


@study("float32 against float64")
def single(full):
    """Every public function that returns real numbers and draws none, relative to each result's largest entry."""
    functions, registered = comparable()
    chosen = functions if full else {name: functions[name] for name in QUICK}
    drawn = [name for name, f in chosen.items() if is_random(registry.good_call(name, f, registered))]
    compared = 0
    for name in sorted(set(chosen) - set(drawn)):
        found = [outputs(name, functions[name], registered, wide) for wide in (False, True)]
        if not any(map(len, found)):
            continue
        compared += 1
        limit, why = LOOSE.get(name, (LIMIT, "the registry's good call"))
        yield below(name, distance(*found), limit, why)
    if full:
        left_out = len(drawn) / len(chosen)
        yield below("share left out: " + RANDOM, left_out, MOST_LEFT_OUT, f"{compared} functions compared")
