"""MEASURED: pairs of inputs, and the cosine between the two arrays that come of each."""

import jax.numpy as jnp

from numdl import checks, precision


def pairs(x):
    """x [P, 2, ...], floating-point numbers, checked."""
    x = checks.floating("x", x, least_ndim=2)
    if x.shape[1] != 2:
        raise checks.BadValue(f"x must hold pairs of inputs, of shape (P, 2, ...); got {tuple(x.shape)}")
    return x


def rows(y):
    """y [N, ...] flattened example by example, in at least float32."""
    return y.astype(precision.wide(y.dtype)).reshape(y.shape[0], -1)


def cosines(y):
    """Of examples (0, 1), (2, 3), ...; each is scaled by its largest entry: no square leaves the dtype's range."""
    flat = rows(y)
    scaled = flat / jnp.max(jnp.abs(flat), axis=1, keepdims=True)
    units = scaled / jnp.sqrt(jnp.sum(scaled**2, axis=1, keepdims=True))
    return jnp.sum(units[0::2] * units[1::2], axis=1)
