"""Nodes and weights on |z| <= REACH that follow the function: a trapezoid after a map, Gauss-Legendre between kinks.

    z = b asinh(a/b sinh(t)),    steps of size a near a place, of size b = 2 far from it

A weight is that of dz: who integrates multiplies by `density`. All of it is traceable; what is known before is NumPy's,
as each operation of jax's on known numbers is a program of its own, compiled at the first call.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

REACH = 9.0  # the Gaussian beyond is 3e-18: the domain is |z| <= REACH

_FAR = 2.0  # steps in z far from every place are this much larger than steps in t


def rule(kinks, shift, root, scale, trapezoid, count):
    """Nodes and weights on |z| <= REACH for a function of root * (z - shift) with these kinks."""
    if not kinks:
        return _trapezoid_rule(_module(shift).clip(shift, -REACH, REACH), scale, trapezoid)
    return pieces(places_of({0.0, *kinks}, shift, root), scale, None, count)


def places_of(kinks, shift, root):
    """Where root * (z - shift) meets a kink. The callers add zero, where smooth functions vary fastest."""
    kinks = np.asarray(sorted(kinks))
    safe = jnp.where(jnp.abs(root) > jnp.finfo(root.dtype).tiny ** 0.5, root, jnp.finfo(root.dtype).tiny ** 0.5)
    return jnp.clip(shift + kinks.astype(root.dtype) / safe, -REACH, REACH)


def _trapezoid_rule(center, scale, count):
    low, high = -_steps(REACH + center, scale), _steps(REACH - center, scale)
    share = np.linspace(0.0, 1.0, count).astype(scale.dtype)
    distance, stretch = _distance(low * (1 - share) + high * share, scale)
    return center + distance, stretch * (high - low) / (count - 1)


def pieces(places, scale, zone, count):
    """Half of each gap belongs to the place on its left, half to the one on its right; nodes crowd towards it.

    With a zone, each half is cut once more at that distance, so that a blurred kink is resolved on its own scale.
    """
    places = jnp.sort(places)
    end = np.full((1,), REACH, places.dtype)
    edges = jnp.concatenate([-end, places, end])
    gaps = jnp.diff(edges)
    inside = gaps[1:-1] / 2
    lengths = jnp.stack([jnp.append(gaps[:1], inside), jnp.append(inside, gaps[-1:])])  # [side, place]
    if zone is None:
        ends = jnp.stack([jnp.zeros_like(lengths), lengths])
    else:
        ends = jnp.stack([jnp.zeros_like(lengths), jnp.minimum(lengths, zone), lengths])
    ends = _steps(ends, scale)  # [ends, side, place]
    share, weights = (a.astype(scale.dtype).reshape(1, 1, 1, -1) for a in _gauss_legendre(count))
    low, width = ends[:-1, ..., None], jnp.diff(ends, axis=0)[..., None]
    distance, stretch = _distance(low + width * share, scale)
    side = np.asarray([-1.0, 1.0], scale.dtype).reshape(1, 2, 1, 1)
    z = places.reshape(1, 1, -1, 1) + side * distance
    return z.ravel(), (stretch * width * weights).ravel()


def _distance(t, scale):
    """The map z(t) = b asinh(a/b sinh(t)) and its derivative: steps of size a near zero, of size b far out."""
    grown = jnp.exp(t)
    inner = scale / _FAR * (grown - 1 / grown) / 2  # its error is one of a step: no sinh, which is many operations
    root = jnp.sqrt(1 + inner**2)
    length = _asinh_of_positive(jnp.where(inner < 0, -inner, inner), root)
    return _FAR * jnp.where(inner < 0, -length, length), scale * (grown + 1 / grown) / 2 / root


def _steps(z, scale):
    """The inverse t(z) of the map, z >= 0."""
    inner = _module(z).sinh(z / _FAR) * (_FAR / scale)
    return _asinh_of_positive(inner, jnp.sqrt(1 + inner**2))


def _asinh_of_positive(x, root):
    """asinh(x) for x >= 0, where root = sqrt(1 + x^2).

    jax's own looks for the sign and for what would overflow, in so many operations that a compiler which repeats them
    in every loop takes twice the time over a plane's integral.
    """
    return jnp.log1p(x + x * x / (1 + root))


def _module(value):
    """NumPy for what is known before the trace."""
    return jnp if isinstance(value, jax.Array) else np


@functools.lru_cache
def _gauss_legendre(count):
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return (nodes + 1) / 2, weights / 2


def density(z):
    """Of the standard Gaussian."""
    return jnp.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)


def root_of(x):
    """sqrt(x) whose derivative at zero is zero instead of infinite, so that no nan spreads but that of x itself."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1)), 0 * x)
