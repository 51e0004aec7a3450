"""PREDICTED: lengths, correlations and the factors of squared gradients, layer after layer; two dropout passes.

Nothing is checked here: the doors are in theory.gradients.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from numdl._compiled import jit
from numdl.precision import float64

SNAP = 4e-16  # correlations this near to +-1 are +-1: the rounding of a quotient


def correlation(q1, q2, product):
    """product / sqrt(q1 q2), exactly +-1 where it is so to rounding; 0 where a length is."""
    size = jnp.maximum(q1, q2)  # lengths 1e200 and 1e-200 have no product
    q1, q2, product = (part / jnp.where(size > 0, size, 1.0) for part in (q1, q2, product))
    root = jnp.sqrt(q1 * q2)
    c = jnp.where(root > 0, product / jnp.where(root > 0, root, 1.0), 0.0)
    return jnp.where(jnp.abs(c) > 1 - SNAP, jnp.sign(c), c)


@float64
def dense(q, weight_variance, bias_variance, depth, activation):
    """(lengths, E f'^2 there), each [depth], from the first layer's length q."""
    return _dense_jit(*(jnp.asarray(a, float) for a in (q, weight_variance, bias_variance)), depth, activation)


@functools.partial(jit, static_argnums=(3, 4))
def _dense_jit(q, weight_variance, bias_variance, depth, activation):
    def layer(q, _):
        return weight_variance * activation.mean_square(q) + bias_variance, q

    q = jax.lax.scan(layer, q, None, length=depth)[1]
    return q, activation.slope_mean_square(q)


@float64
def residual(steps, numbers, activation):
    """(lengths inside the blocks, chi of the blocks), one of each for every step h."""
    numbers = tuple(None if number is None else jnp.asarray(number, float) for number in numbers)
    return _residual_jit(jnp.asarray(steps), numbers, activation)


@functools.partial(jit, static_argnums=2)
def _residual_jit(steps, numbers, activation):
    mean, square, weight_variance, bias_variance, second, keep = numbers

    def block(state, h):
        mean, square = state
        q = weight_variance * square + bias_variance
        value = h**2 * activation.mean_square(q) / keep
        if second is None:
            drift = h * activation.mean(q)
            return (mean + drift, square + 2 * mean * drift + value), q
        return (mean, square + second * value), q

    _, q = jax.lax.scan(block, (mean, square), steps)
    factor = steps**2 * (weight_variance if second is None else weight_variance * second) / keep
    return q, 1 + jnp.where(factor == 0, 0.0, factor * activation.slope_mean_square(q))


def dropout_correlation(q, weight_variance, bias_variance, activation):
    """The root of C(c) = c, and C' there: C(-1) > -1 and C(1) < 1, so there is one between."""
    from scipy.optimize import brentq

    def excess(c):
        return (weight_variance * _products(c, q, activation)[0] + bias_variance) / q - c

    c = brentq(excess, -1.0, 1.0, xtol=1e-15, rtol=1e-14)
    return np.float64(c), weight_variance * _products(c, q, activation)[1]


@float64
def _products(c, q, activation):
    arguments = (jnp.asarray(q, float), jnp.asarray(q, float), jnp.asarray(c, float))
    return activation.mean_product(*arguments), activation.slope_mean_product(*arguments)
