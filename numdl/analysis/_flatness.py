"""MEASURED: the largest Gaussian noise on the parameters that a loss bears, by halving an interval of variances."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from numdl import trees
from numdl._compiled import jit
from numdl.analysis import _parts
from numdl.records import record


@record
class Flatness:
    """The variance of Gaussian noise at which the mean loss has risen by the amount asked for."""

    variance: jax.Array  # []
    stderr: jax.Array  # []: over the directions drawn
    rise: jax.Array  # []: mean rise of the loss at this variance
    rise_stderr: jax.Array  # []
    found: jax.Array  # [] bool: the rise is reached between the smallest and largest variance tried


@functools.partial(jit, static_argnames=("draws", "relative"))
def tolerated(key, loss, moving, rest, batch, rise, low, high, draws, relative):
    """The record of noise on what moves; `low`, `high` the ends of ln variance; all of it checked before."""
    loss = _parts.loss_of(loss, rest)
    start = loss(moving, batch)
    low, high, rise = (jnp.asarray(number, start.dtype) for number in (low, high, rise))

    def rises(log_variance):
        deviation = jnp.exp(log_variance / 2)

        def one(key):
            noise = trees.random_like(key, moving)
            if relative:
                noise = jax.tree.map(jnp.multiply, noise, moving)
            there, back = (loss(trees.axpy(sign * deviation, noise, moving), batch) for sign in (1, -1))
            return (there + back) / 2 - start

        return lax.map(one, jax.random.split(key, draws))

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        below = jnp.mean(rises(middle)) <= rise  # false for nan: the loss has left the range of its dtype
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    steps = 26 if start.dtype == jnp.float32 else 50
    inner = lax.fori_loop(0, steps, halve, (low, high))
    place = (inner[0] + inner[1]) / 2
    values, slopes = jax.jvp(rises, (place,), (jnp.ones_like(place),))
    error = jnp.std(values, ddof=1) / draws**0.5
    found = (inner[0] > low) & (inner[1] < high)
    variance = jnp.exp(place)
    # The delta method: an error of the rise moves the root by error / slope.
    return Flatness(variance, variance * error / jnp.abs(jnp.mean(slopes)), jnp.mean(values), error, found)
