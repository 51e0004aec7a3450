"""Hopfield memories at a load: what they recall, and the overlap and the capacity that are predicted (d4).

    alpha = (erf(y) / y - 2 / sqrt(pi) exp(-y^2))^2 / 2,   overlap erf(y)

Source: Amit, Gutfreund & Sompolinsky 1985, Phys. Rev. Lett. 55, 1530.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from scipy.optimize import brentq
from scipy.special import erf

from numdl.networks import hopfield

CAPACITY = 0.137905566  # largest alpha of the formula
MIDDLE = 1.5112186  # the y of that alpha
KEPT = 0.9  # overlap from which on a pattern counts as recalled; 0.967 at capacity


def recalls(config):
    """Mean overlap with the patterns, share recalled, and share that came to rest: [units, loads, memories] each."""
    keys = jax.random.split(jax.random.key(config.seed), config.memories)
    found = []
    for units in config.units:
        counts = np.array([patterns(load, units) for load in config.loads], np.int32)
        recalled = min(config.recalled, int(counts.min()))
        found.append(_recall(keys, jnp.asarray(counts), int(counts.max()), units, recalled, config.recall_steps))
    return tuple(np.array([np.asarray(f[i]) for f in found], float) for i in range(3))


def patterns(load, units):
    """As many as the load asks for."""
    return round(load * units)


@functools.partial(jax.jit, static_argnames=("most", "units", "recalled", "steps"))
def _recall(keys, counts, most, units, recalled, steps):
    """One program for all loads: patterns beyond the count are rows of zeros, which add nothing to the weights."""

    def one(count, key):
        drawn = jax.random.rademacher(key, (most, units), jnp.float32)
        stored = jnp.where(jnp.arange(most)[:, None] < count, drawn, jnp.zeros_like(drawn))
        start = drawn[:recalled]
        found = hopfield.synchronous(hopfield.hebbian(stored), start, steps=steps)
        overlaps = hopfield.overlap(start, found.state)
        return tuple(jnp.mean(a.astype(jnp.float32)) for a in (overlaps, overlaps >= KEPT, found.settled))

    return lax.map(lambda count: lax.map(lambda key: one(count, key), keys), counts)


def energies(config):
    """Energy after every single update, from a random state. 128 units: fields are exact in binary."""
    key_stored, key_start, key_order = jax.random.split(jax.random.key(config.seed + 1), 3)
    weights = hopfield.hebbian(jax.random.rademacher(key_stored, (12, 128), jnp.float32))
    order = hopfield.sweeps(key_order, 128, 6).reshape(-1, 1)
    found = hopfield.asynchronous(weights, jax.random.rademacher(key_start, (128,), jnp.float32), order)
    return np.asarray(found.energies, float)


def stored_overlap(load):
    """PREDICTED overlap of the retrieval state below capacity, from the larger of the two y."""
    return erf(brentq(lambda y: load_of(y) - load, MIDDLE, 10.0))


def load_of(y):
    """alpha(y) of the formula above."""
    return (erf(y) / y - 2 / np.sqrt(np.pi) * np.exp(-(y**2))) ** 2 / 2


def crossing(loads, kept):
    """The load at which the mean over memories [loads, memories] falls through one half, and its jackknife error."""

    def place(shares):
        last = min(np.flatnonzero(shares > 0.5)[-1], len(loads) - 2)
        return np.interp(-0.5, -shares[last : last + 2], loads[last : last + 2])

    count = kept.shape[1]
    without = [place(np.delete(kept, i, axis=1).mean(axis=1)) for i in range(count)]
    return place(kept.mean(axis=1)), np.sqrt((count - 1) * np.var(without))
