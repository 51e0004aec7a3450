"""A Hopfield memory: patterns stored in symmetric weights, recalled by letting units follow their neighbours.

    s_i <- sign(sum_j W_ij s_j),    units s_i = -1 or 1;  a field of exactly 0 leaves the unit as it is

All units at once (`synchronous`) or one after the other (`asynchronous`); the second can only lower the energy
-s W s / 2. Weights are a plain array [n, n], states are arrays [..., n]: pure functions, no parameters to train.
Source: Hopfield 1982, Proc. Natl. Acad. Sci. 79, 2554.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int, Key

from numdl import checks
from numdl._compiled import compiled
from numdl.records import record


@record
class Recall:
    """Where the units went."""

    state: jax.Array  # [..., n]: after the last step
    energies: jax.Array  # [steps + 1, ...]: before each step and at the end
    flips: jax.Array  # [steps, ...] int32: units that a step turned over
    settled: jax.Array  # [...] bool: the last step turned none over


def hebbian(patterns: Float[ArrayLike, "P n"]) -> Float[Array, "n n"]:
    """Weights that remember patterns (Hebb's rule).

        W_ij = sum over patterns of p_i p_j / n,    W_ii = 0

    Parameters
    ----------
    patterns : array [P, n]     entries -1 and 1, floating
    Returns
    -------
    array [n, n]                symmetric
    Raises
    ------
    ValueError, TypeError       an entry that is neither -1 nor 1, integers, another number of axes
    Source: Hopfield 1982, over n.
    """
    patterns = checks.floating("patterns", patterns, ndim=2)
    _signs("patterns", patterns)
    patterns = jnp.asarray(patterns)
    n = patterns.shape[1]
    weights = patterns.T @ patterns / n
    return jnp.where(jnp.eye(n, dtype=bool), jnp.zeros_like(weights), weights)


def energy(weights: Float[ArrayLike, "n n"], state: Float[ArrayLike, "*batch n"]) -> Float[Array, "*batch"]:
    """The energy of each state.

        -s W s / 2

    Parameters
    ----------
    weights : array [n, n]
    state : array [..., n]      entries -1 and 1
    Returns
    -------
    array [...]
    Raises
    ------
    ValueError, TypeError       an entry that is neither -1 nor 1, weights not finite, shapes that do not fit
    Source: Hopfield 1982.
    """
    weights, state = _admit(weights, state)
    return _energy(weights, state)


def overlap(pattern: Float[ArrayLike, "*batch n"], state: Float[ArrayLike, "*batch n"]) -> Float[Array, "*batch"]:
    """The mean of pattern_i state_i over units, where 1 is perfect recall, 0 none and -1 the negative.

    Parameters
    ----------
    pattern, state : array [..., n]    of one shape
    Returns
    -------
    array [...]
    Raises
    ------
    ValueError, TypeError       different shapes, arrays that are empty or not of floating-point numbers
    """
    pattern = checks.floating("pattern", pattern, least_ndim=1)
    state = checks.shape("state", checks.floating("state", state, least_ndim=1), pattern.shape)
    return jnp.mean(jnp.asarray(pattern) * jnp.asarray(state), axis=-1)


def synchronous(weights: Float[ArrayLike, "n n"], state: Float[ArrayLike, "*batch n"], *, steps: int) -> Recall:
    """Recall with all units at once in every step; it ends in a fixed point or in a cycle of two states.

        s_i <- sign(sum_j W_ij s_j)

    Parameters
    ----------
    weights : array [n, n]      symmetric
    state : array [..., n]      entries -1 and 1, where to start
    steps : int                 >= 1
    Returns
    -------
    Recall                      leading axis of `energies` and `flips`, the steps
    Raises
    ------
    ValueError, TypeError       an entry that is neither -1 nor 1, weights not finite, shapes that do not fit, steps < 1
    Source: Little 1974; Goles-Chacc, Fogelman-Soulié & Pellegrin 1985 (cycles of at most two).
    """
    weights, state = _admit(weights, state)
    checks.whole("steps", steps)
    return _recall(weights, state, None, steps=steps)


def asynchronous(
    weights: Float[ArrayLike, "n n"], state: Float[ArrayLike, "*batch n"], order: Int[ArrayLike, "steps updates"]
) -> Recall:
    """Recall with one unit at a time, in the order given: the energy never rises if W is symmetric, W_ii >= 0.

    Parameters
    ----------
    weights : array [n, n]      symmetric
    state : array [..., n]      entries -1 and 1; all states go through the same order
    order : int array [steps, updates]      units 0..n-1; a step is `updates` single updates
    Returns
    -------
    Recall                      `energies` and `flips` after each step of this many updates
    Raises
    ------
    ValueError, TypeError       units that do not exist, no integers, shapes that do not fit
    Source: Hopfield 1982.
    """
    weights, state = _admit(weights, state)
    order = _units(order, weights.shape[0])
    return _recall(weights, state, order, steps=order.shape[0])


def sweeps(key: Key[Array, ""], units: int, count: int) -> Int[Array, "count units"]:
    """An order for `asynchronous`: every unit once in each sweep, shuffled anew.

    Parameters
    ----------
    key : key                   of the shuffles
    units : int                 n, >= 1
    count : int                 sweeps, >= 1
    Returns
    -------
    int32 array [count, units]
    Raises
    ------
    ValueError, TypeError       a number below 1, not a typed key
    """
    checks.key("key", key)
    checks.whole("units", units)
    checks.whole("count", count)
    keys = jax.random.split(key, count)
    return _shuffles(keys, units=units)


@functools.partial(compiled, static=("units",))
def _shuffles(keys, units):
    return lax.map(lambda k: jax.random.permutation(k, jnp.arange(units, dtype=jnp.int32)), keys)


@functools.partial(compiled, static=("steps",))
def _recall(weights, state, orders, steps):
    """All units at once, or one after the other in the orders of the steps."""

    def one(s, unit):
        field = jnp.tensordot(s, weights[:, unit], axes=1)
        return s.at[..., unit].set(_follow(field, s[..., unit])), None

    def step(s, units):
        after = _follow(s @ weights, s) if units is None else lax.scan(one, s, units)[0]
        return after, (_energy(weights, after), jnp.sum(after != s, axis=-1, dtype=jnp.int32))

    final, (energies, flips) = lax.scan(step, state, orders, length=steps)
    return Recall(final, jnp.concatenate([_energy(weights, state)[None], energies]), flips, flips[-1] == 0)


def _energy(weights, state):
    return -jnp.sum((state @ weights) * state, axis=-1) / 2


def _follow(field, state):
    return jnp.where(field == 0, state, jnp.sign(field))


def _admit(weights, state):
    weights, state = checks.floating("weights", weights, ndim=2), checks.floating("state", state, least_ndim=1)
    checks.finite("weights", weights)
    checks.shape("weights", weights, (weights.shape[1], weights.shape[1]))
    checks.shape("state", state, (*state.shape[:-1], weights.shape[1]))
    _signs("state", state)
    dtype = jnp.result_type(weights, state)
    return jnp.asarray(weights, dtype), jnp.asarray(state, dtype)


def _signs(name, value):
    """Entries -1 and 1, where they are known."""
    if isinstance(value, jax.core.Tracer):
        return
    values = np.asarray(value)
    wrong = np.abs(values) != 1
    if wrong.any():
        raise ValueError(f"{name} must have entries -1 and 1; got {values[wrong].flat[0]:g}")


def _units(order, n):
    order = checks.array("order", order, kind="integer", ndim=2)
    if not isinstance(order, jax.core.Tracer):
        checks.finite("order", order, least=0, most=n - 1)
    return jnp.asarray(order)
