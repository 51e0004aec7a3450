"""What all normalizations share: axes, the precision they work in, the root at zero, gain and bias."""

import jax.numpy as jnp
from jax import lax

from numdl import checks, precision


def axes(x, axis, eps, name="x"):
    """(x, the axes as sorted numbers from 0, eps), everything checked."""
    x, eps = checks.floating(name, x), checks.variance("eps", eps, shape=())
    asked = axis if isinstance(axis, tuple | list) else (axis,)
    asked = [checks.whole("axis", a, least=-x.ndim, most=x.ndim - 1) for a in asked]
    if not asked or len({a % x.ndim for a in asked}) < len(asked):
        raise checks.BadValue(f"axis must name different axes of {name}, of shape {tuple(x.shape)}; got {axis}")
    return x, tuple(sorted(a % x.ndim for a in asked)), eps


def others(x, axes):
    """The axes of x that are left."""
    return tuple(a for a in range(x.ndim) if a not in axes)


def outside(x, axes):
    """The shape of the axes that are left."""
    return tuple(x.shape[a] for a in others(x, axes))


def wide(x):
    """x in at least float32."""
    return x.astype(precision.wide(x.dtype))


def inverse_root(square):
    """1 / sqrt(square), and 0 with derivative 0 at 0."""
    zero = square <= 0
    return jnp.where(zero, jnp.zeros_like(square), lax.rsqrt(jnp.where(zero, jnp.ones_like(square), square)))


def scales(gain, bias, shape):
    """Gain and bias, floating-point numbers of this shape where they are given."""
    named = (("gain", gain), ("bias", bias))
    return tuple(v if v is None else checks.shape(n, checks.floating(n, v), shape) for n, v in named)


def scaled_and_shifted(x, scaled, gain, bias, axes):
    """`scaled` in x's dtype after gain and bias, which lie along these axes of x."""
    spread = tuple(n if a in axes else 1 for a, n in enumerate(x.shape))
    if gain is not None:
        scaled = scaled * jnp.reshape(gain, spread)
    if bias is not None:
        scaled = scaled + jnp.reshape(bias, spread)
    return scaled.astype(x.dtype)
