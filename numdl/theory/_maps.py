"""PREDICTED: the maps of lengths and of correlations, layer after layer in one compiled scan; nothing is checked here.

    V(q) = weight_variance E[f(sqrt(q) z)^2] + bias_variance
    C(c) = (weight_variance E[f(u) f(v)] + bias_variance) / V(q),     u, v ~ N(0, q), correlation c

Under dropout V has weight_variance / keep and C as it stands: u and v have masks of their own.
Source: Poole et al. 2016, arXiv:1606.05340. The doors are in theory.propagation.
"""

import functools

import jax
import jax.numpy as jnp

from numdl import quadrature
from numdl._compiled import jit
from numdl.precision import float64
from numdl.theory import _roots


def next_length(q, activation, weight_variance, bias_variance):
    """V(q)."""
    return weight_variance * activation.mean_square(q) + bias_variance


@float64
def lengths(x_variance, depth, activation, weight_variance, bias_variance):
    """q[0] ... q[depth - 1] of inputs with this mean square."""
    numbers = map(_roots.as_float, (x_variance, weight_variance, bias_variance))
    return _lengths_jit(*numbers, depth=depth, activation=activation)


@functools.partial(jit, static_argnames=("depth", "activation"))
def _lengths_jit(x_variance, weight_variance, bias_variance, *, depth, activation):
    def layer(q, _):
        return next_length(q, activation, weight_variance, bias_variance), q

    return jax.lax.scan(layer, weight_variance * x_variance + bias_variance, None, length=depth)[1]


@float64
def correlations(c, depth, q, activation, weight_variance, bias_variance, keep_probability=1.0):
    """c.shape + (depth,); a scalar q moves, the lengths [depth + 1] stay as they are given."""
    numbers = map(_roots.as_float, (c, q, weight_variance, bias_variance, keep_probability))
    c, q, weight_variance, bias_variance, keep = numbers
    if not q.ndim:
        q = _moving_jit(q, weight_variance / keep, bias_variance, depth=depth, activation=activation)
    flat = _correlations_jit(c.ravel(), q[:depth], weight_variance, bias_variance, keep, activation=activation)
    return flat.T.reshape(*c.shape, depth)


@functools.partial(jit, static_argnames=("depth", "activation"))
def _moving_jit(q, weight_variance, bias_variance, *, depth, activation):
    """q and the lengths after it; a fixed point stays where it is, so that rounding does not leave an unstable one."""

    def layer(q, _):
        new = next_length(q, activation, weight_variance, bias_variance)
        return jnp.where(jnp.abs(new - q) <= _roots.NOISE * q, q, new), q

    return jax.lax.scan(layer, q, None, length=depth)[1]


@functools.partial(jit, static_argnames="activation")
def _correlations_jit(c, q, weight_variance, bias_variance, keep, *, activation):
    def layer(c, q):
        square, opposite = activation.mean_square(q), _opposite(activation, q)
        product = activation.mean_product(jnp.full_like(c, q), jnp.full_like(c, q), c)
        # At the ends by one-point moments, so that neither rounding nor quadrature leaves an end that is kept.
        product = jnp.where(c == 1, square, jnp.where(c == -1, square * opposite, product))
        after = weight_variance / keep * square + bias_variance
        new = jnp.clip((weight_variance * product + bias_variance) / after, -1, 1)
        new = jnp.where((c == 1) & (keep == 1) & (after > 0) & jnp.isfinite(after), 1.0, new)
        return new, new

    return jax.lax.scan(layer, c, q)[1]


def _opposite(activation, q):
    """E f(u) f(-u) / E f(u)^2: exactly -1 for an odd f and 1 for an even one."""
    kinks = tuple(sorted({sign * kink for kink in activation.kinks for sign in (-1, 1)}))
    both = quadrature.expect(lambda x: activation.f(x) * activation.f(-x), q, kinks=kinks)
    own = quadrature.expect(lambda x: activation.f(x) ** 2, q, kinks=kinks)
    return jnp.where(own == 0, 0.0, both / jnp.where(own == 0, 1.0, own))
