"""PREDICTED: where V(q) = q and where chi_1 = 1: the root finding behind theory.propagation.

Everything depends on three moments of the activation, functions of the length q alone:

    M(q) = E f(x)^2,   S(q) = E f'(x)^2,   T(q) = E[x f(x) f'(x)],   x = sqrt(q) z
    V(q) = w M(q) + b,   chi_1 = w S(q),   V'(q) = w T(q) / q by Stein's identity

One table of them over q serves every pair of variances (w, b): roots are bracketed in it, then solved for with exact
moments; over a whole grid of variances they are solved for with interpolated ones.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

from numdl import _effort, quadrature
from numdl._compiled import holding, jit
from numdl.precision import float64

PER_DECADE = 40
LENGTHS = 10.0 ** (np.arange(-15 * PER_DECADE, 16 * PER_DECADE + 1) / PER_DECADE)  # fixed points are looked for here
ONE = 15 * PER_DECADE  # LENGTHS[ONE] == 1
NOISE = 1e-10  # relative: the moments' error at large q; smaller differences count as none
STENCIL = np.arange(10)  # points of the local interpolation: 10 at 40 a decade leave 1e-11
CRITICAL = 1e-9  # |chi_1 - 1| up to which the phase is called critical


# ---- moments -------------------------------------------------------------------------------------------------------


@float64
def moments(q, activation):
    """M, S and T shaped like q. At q = 0, S is the limit from above: both sides of a kink count."""
    return _moments_jit(as_float(q), activation=activation)


@functools.partial(jit, static_argnames="activation")
def _moments_jit(q, *, activation):
    mixed = lambda x: x * activation.f(x) * activation.slope(x)  # noqa: E731
    closed = activation.moments.square, activation.moments.slope_square
    if closed == (None, None) and not activation.kinks and not activation.jumps:
        squares = lambda x: activation.f(x) ** 2, lambda x: activation.slope(x) ** 2
        return tuple(quadrature.expect_each((*squares, mixed), q))
    growth = quadrature.expect(mixed, q, kinks=activation.kinks)
    for place, left, right in activation.jumps:  # E x (f^2)' / 2 at a jump of f^2
        root = jnp.sqrt(jnp.where(q > 0, q, 1.0))
        density = jnp.exp(-((place / root) ** 2) / 2) / (root * math.sqrt(2 * math.pi))
        growth = growth + jnp.where(q > 0, place * (right**2 - left**2) / 2 * density, 0.0)
    return activation.mean_square(q), activation.slope_mean_square(jnp.maximum(q, 1e-30)), growth


def scaled(weight_variance, slope_square):
    """chi = weight_variance * slope_square, 0 without weights: the slope's square may be infinite."""
    with np.errstate(invalid="ignore"):
        return np.where(np.asarray(weight_variance) == 0, 0.0, weight_variance * slope_square)[()]


@functools.lru_cache(maxsize=64)
def _tables(activation, _held):
    """(M, S and T over LENGTHS, M and S at 0), by one program."""
    found = np.stack(moments(np.append(LENGTHS, 0.0), activation))
    return found[:, :-1], found[:2, -1]


def table(activation):
    """[3, lengths]: M, S and T over LENGTHS."""
    return _tables(activation, holding(activation))[0]


def at_zero(activation):
    """M(0), S(0) and the limit of T(q) / q."""
    return *_tables(activation, holding(activation))[1], slope_at_zero(activation, 1.0)


def _excess(weight_variance, bias_variance, mean_square):
    """V(q) - q over LENGTHS with what is only rounding set to 0."""
    excess = weight_variance * mean_square + bias_variance - LENGTHS
    return np.where(np.abs(excess) <= NOISE * LENGTHS, 0.0, excess)


# ---- fixed points --------------------------------------------------------------------------------------------------


def reached(activation, weight_variance, bias_variance):
    """The root of V(q) = q nearest to 1 on the side to which V(1) - 1 points; inf if there is none above."""
    excess = _excess(weight_variance, bias_variance, table(activation)[0])
    if excess[ONE] == 0:
        return 1.0
    positive, negative = np.flatnonzero(excess > 0), np.flatnonzero(excess < 0)
    if excess[ONE] > 0:
        if not (negative > ONE).any():
            return math.inf
        high = negative[negative > ONE][0]
        low = positive[positive < high][-1]
    else:
        low = positive[positive < ONE][-1] if (positive < ONE).any() else None
        high = negative[negative > (-1 if low is None else low)][0]
    bracket = (0.0 if low is None else LENGTHS[low], LENGTHS[high])
    return _solve(*bracket, activation, weight_variance, bias_variance)


def _solve(low, high, activation, weight_variance, bias_variance):
    """Newton's method on V(q) - q, kept inside its bracket [low, high] by bisection; 0 where V(0) = 0 is the root."""
    if low == 0 and weight_variance * moments(0.0, activation)[0] + bias_variance == 0:
        return 0.0
    side = np.sign(weight_variance * moments(low, activation)[0] + bias_variance - low)
    q = (low + high) / 2
    for _ in range(100):
        mean_square, _, growth = moments(q, activation)
        excess = weight_variance * mean_square + bias_variance - q
        low, high = (q, high) if np.sign(excess) == side else (low, q)
        newton = q - excess / (weight_variance * growth / q - 1)
        new = newton if low <= newton <= high else (low + high) / 2
        if excess == 0 or abs(new - q) <= 4e-16 * q:
            return float(new)
        q = new
    return float(q)


def all_roots(activation, weight_variance, bias_variance):
    """Every q in 0 and LENGTHS with V(q) = q, in order; 1 stands for all where all are."""
    excess = _excess(weight_variance, bias_variance, table(activation)[0])
    at_zero = weight_variance * moments(0.0, activation)[0] + bias_variance == 0
    roots = [0.0] if at_zero else []
    if not excess.any():
        return [*roots, 1.0]
    known = np.flatnonzero(excess)
    changes = [(i, j) for i, j in itertools.pairwise(known) if excess[i] * excess[j] < 0]
    if excess[known[0]] < 0 and not at_zero:
        roots.append(_solve(0.0, LENGTHS[known[0]], activation, weight_variance, bias_variance))
    brackets = [(LENGTHS[i], LENGTHS[j]) for i, j in changes]
    return roots + [_solve(*bracket, activation, weight_variance, bias_variance) for bracket in brackets]


def slope_at_zero(activation, weight_variance):
    """V'(0) where f(0) = 0: the limit of w T / q."""
    return weight_variance * table(activation)[2, 0] / LENGTHS[0]


@float64
def fixed_correlation(q, chi_1, activation, weight_variance, bias_variance):
    """c and C'(c). C is convex on [0, 1] with C(0) >= 0, so that Newton's method from 0 rises to its smallest root."""
    if chi_1 <= 1 + CRITICAL:
        return jnp.asarray(1.0), jnp.asarray(chi_1)
    return _fixed_correlation_jit(*map(as_float, (q, weight_variance, bias_variance)), activation=activation)


@functools.partial(jit, static_argnames="activation")
def _fixed_correlation_jit(q, weight_variance, bias_variance, *, activation):
    def slope(c):
        return jnp.where(weight_variance == 0, 0.0, weight_variance * activation.slope_mean_product(q, q, c))

    def step(state):
        c, _, count = state
        excess = (weight_variance * activation.mean_product(q, q, c) + bias_variance) / q - c
        new = jnp.clip(c + jnp.maximum(excess, 0.0) / jnp.maximum(1 - slope(c), 1e-15), 0.0, 1.0)
        return new, jnp.abs(new - c), count + 1

    start = (jnp.zeros(()), jnp.asarray(jnp.inf), 0)
    c = jax.lax.while_loop(lambda state: (state[1] > 1e-15) & (state[2] < 200), step, start)[0]
    return c, slope(c)


def critical_candidates(activation, bias_variance):
    """Every w = 1 / S(q) with q - M(q) / S(q) = bias_variance: at q = 1 where all q solve it, at roots, at q = 0."""

    def from_moments(q, mean_square, slope_square, _):
        return q - mean_square / slope_square - bias_variance

    def distance(q):
        return from_moments(q, *moments(q, activation))

    if activation.jumps:  # chi_1 is infinite at every weight variance
        return []
    with np.errstate(divide="ignore", invalid="ignore"):
        values = from_moments(LENGTHS, *table(activation))
    values = np.where(np.abs(values) <= NOISE * LENGTHS, 0.0, values)
    found = [1.0] if values[ONE] == 0 else []
    known = np.flatnonzero(values)
    for i, j in itertools.pairwise(known):
        if values[i] * values[j] < 0:
            found.append(_bisect(distance, LENGTHS[i], LENGTHS[j]))
    if bias_variance == 0 and moments(0.0, activation)[0] == 0:
        found.append(0.0)
    return [float(1 / moments(q, activation)[1]) for q in found]


def _bisect(function, low, high):
    rising = np.sign(function(low))
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if np.sign(function(middle)) == rising else (low, middle)
    return middle


# ---- the phase diagram ---------------------------------------------------------------------------------------------


@float64
def grid(table, at_zero, weight_variances, bias_variances):
    """q, chi_1 and V' over the grid, each [W, B]; `at_zero` holds M(0), S(0) and the limit of T(q) / q."""
    brackets = _brackets(table[0], weight_variances[:, None], bias_variances)
    return _grid_jit(*map(as_float, (table, at_zero, weight_variances, bias_variances)), *brackets)


@_effort.jit
def _grid_jit(table, at_zero, weight_variances, bias_variances, *brackets):
    def row(given):
        weight_variance, *bracket = given
        q = _roots_in_table(table, at_zero[0], weight_variance, bias_variances, *bracket)
        inside = jnp.clip(q, LENGTHS[0], LENGTHS[-1])
        _, slope_square, growth = jax.vmap(_interpolate, (None, 0), 1)(table, inside)
        slopes = jnp.where(q[None] == 0, at_zero[1:, None], jnp.stack([slope_square, growth / inside]))
        return q, *jnp.where(weight_variance == 0, 0.0, weight_variance * slopes)

    return jax.lax.map(row, (weight_variances, *brackets))


def _roots_in_table(table, square_at_zero, weight_variance, bias_variances, low, high, excess):
    """As `reached` does, with interpolated moments, for one weight variance and all bias variances [B]."""

    def newton(_, q):
        mean_square, _, growth = jax.vmap(_interpolate, (None, 0), 1)(table, q)
        step = (weight_variance * mean_square + bias_variances - q) / (weight_variance * growth / q - 1)
        return jnp.clip(q - step, *ends)

    grid = jnp.asarray(LENGTHS)
    ends = grid[jnp.maximum(low, 0)], grid[jnp.minimum(high, grid.size - 1)]
    q = jax.lax.fori_loop(0, 8, newton, sum(ends) / 2)
    q = jnp.where((excess > 0) & (high == grid.size), jnp.inf, q)
    zero = weight_variance * square_at_zero + bias_variances == 0
    q = jnp.where(~(excess > 0) & (low < 0) & zero, 0.0, q)
    return jnp.where(excess == 0, 1.0, q)


def _brackets(mean_square, weight_variance, bias_variances):
    """(low, high, V(1) - 1), each [W, B]: places in LENGTHS around the root; low -1, high the length where is none.

    V(q) - q rises with the bias variance b: it is positive at LENGTHS[i] where b > over[i] and negative where
    b < under[i]; in between it is rounding. Running extremes of the two turn every search of a first place into a
    binary one, for all b at once. In NumPy: as a program it takes longer to compile than all else together.
    """
    with np.errstate(invalid="ignore"):
        needed = LENGTHS - weight_variance * mean_square  # [W, lengths]
        excess = weight_variance * mean_square[ONE] + bias_variances - 1
    over = np.where(np.isnan(needed), np.inf, needed + NOISE * LENGTHS)
    under = np.where(np.isnan(needed), -np.inf, needed - NOISE * LENGTHS)
    excess = np.where(np.abs(excess) <= NOISE, 0.0, excess)
    above = ONE + 1 + _first(under[:, ONE + 1 :], bias_variances)
    below = ONE - 1 - _first(-over[:, :ONE][:, ::-1], -bias_variances)
    # Next to a root there may be rounding: step over it, up to the place 1, whose sign is known.
    rising, rows = above - 1, np.arange(len(over))[:, None]
    while (rounding := (rising > ONE) & (over[rows, rising] >= bias_variances)).any():
        rising = rising - rounding
    falling = np.where(below < 0, _first(under[:, : ONE + 1], bias_variances), below + 1)
    while (rounding := (falling < ONE) & (under[rows, falling] <= bias_variances)).any():
        falling = falling + rounding
    return np.where(excess > 0, rising, below), np.where(excess > 0, above, falling), excess


def _first(rows, values):
    """[W, B]: the first place where each row is above each value; its length where it is nowhere."""
    pairs = zip(np.maximum.accumulate(rows, axis=1), np.broadcast_to(values, (len(rows), np.size(values))))
    return np.stack([np.searchsorted(row, each, side="right") for row, each in pairs])


def _interpolate(table, q):
    """M, S, T at q by Lagrange's polynomial through the nearest points, in ln q."""
    place = jnp.log(q / LENGTHS[0]) / (math.log(10) / PER_DECADE)
    first = jnp.clip(jnp.floor(place).astype(int) - STENCIL.size // 2 + 1, 0, LENGTHS.size - STENCIL.size)
    distance = (place - first)[None, None] - STENCIL[None, :]
    ratio = distance / np.where(np.eye(STENCIL.size), 1, STENCIL[:, None] - STENCIL[None, :])
    own = np.eye(STENCIL.size, dtype=bool)
    weights = jnp.prod(jnp.where(own, own.astype(float), ratio), axis=1)
    values = jax.lax.dynamic_slice_in_dim(table, first, STENCIL.size, axis=1)
    # Weights have both signs: infinite moments, those of a jump, would come out as nan.
    infinite = jnp.isinf(values).any(axis=1)
    return jnp.where(infinite, jnp.inf, jnp.where(infinite[:, None], 0.0, values) @ weights)


def as_float(value):
    """A float array in the precision of the moment, which is float64 throughout theory."""
    return jnp.asarray(value, dtype=float)
