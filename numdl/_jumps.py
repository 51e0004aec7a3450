"""Where a function jumps: an activation's derivative is then no function, and E f'^2 is infinite."""

import functools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from numdl._compiled import jit
from numdl.precision import float64

REACH, CELLS = 20.0, 8000
LEAST = 1e-6  # smaller jumps, relative to the function there, are not told from steep slopes


class Jump(NamedTuple):
    """A place where a function has two limits."""

    place: float
    left: float
    right: float


@float64
def _values(f, x):
    try:
        hash(f)
    except TypeError:
        return jnp.asarray(f(jnp.asarray(x)), float)
    return _evaluated(f, x)


@functools.partial(jit, static_argnums=0)
def _evaluated(f, x):
    """One program, where each operation of f would be one."""
    return jnp.asarray(f(x), float)


def find(f, slope, kinks):
    """The jumps of f at its kinks and, named or not, within |x| <= 20: a tuple of Jump, in order.

    A cell is looked into if f changes in it by more than its slope says, and halved until its ends are one.
    """
    # An odd offset: no cell ends at a round number, where a jump would be cut into two.
    edges = np.linspace(-REACH, REACH, CELLS + 1) + 1e-4 * np.pi
    values, slopes = (np.asarray(_values(g, edges)) for g in (f, slope))
    with np.errstate(invalid="ignore"):
        allowed = 1.05 * np.diff(edges) * np.maximum(abs(slopes[1:]), abs(slopes[:-1])) + LEAST
        steep = np.abs(np.diff(values)) > allowed
    near = [kink + np.array([-1e-3, 1e-3]) * np.array([1.0, 0.9]) for kink in kinks]
    pairs = np.concatenate([np.stack([edges[:-1], edges[1:]], axis=1)[steep], np.reshape(near, (-1, 2))])
    found = {jump.place: jump for jump in _halved(f, pairs, kinks)}
    return tuple(found[place] for place in sorted(found))


def _halved(f, pairs, kinks):
    if not len(pairs):
        return
    low, high = pairs.T
    left, right = (np.asarray(_values(f, x)) for x in (low, high))
    for _ in range(45):
        middle = (low + high) / 2
        value = np.asarray(_values(f, middle))
        with np.errstate(invalid="ignore"):
            lower = np.abs(value - left) >= np.abs(right - value)
        low, high = np.where(lower, low, middle), np.where(lower, middle, high)
        left, right = np.where(lower, left, value), np.where(lower, value, right)
    for ends in zip(low, high, left, right, strict=True):
        if np.isfinite(ends).all() and abs(ends[3] - ends[2]) > LEAST * max(1.0, abs(ends[2]), abs(ends[3])):
            yield Jump(_round((ends[0] + ends[1]) / 2, kinks), float(ends[2]), float(ends[3]))


def _round(place, kinks):
    """The kink that was meant, or a number of few digits, if one is that near."""
    candidates = [*kinks, round(place, 9) + 0.0]
    return (
        float(min(candidates, key=lambda other: abs(other - place), default=place))
        if any(abs(other - place) < 1e-11 * max(1.0, abs(place)) for other in candidates)
        else float(place)
    )
