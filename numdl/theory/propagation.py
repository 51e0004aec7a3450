"""PREDICTED: how lengths and correlations of pre-activations travel through a random, infinitely wide, dense network.

    length map        V(q) = weight_variance E[f(sqrt(q) z)^2] + bias_variance
    correlation map   C(c) = (weight_variance E[f(u) f(v)] + bias_variance) / q,   u, v ~ N(0, q), correlation c
    chi_1             weight_variance E[f'(sqrt(q) z)^2], the slope C'(1) and the growth of squared gradients a layer

A deep network remembers its input over about depth_scale_c layers. Source: Poole et al. 2016, arXiv:1606.05340;
Schoenholz et al. 2017, arXiv:1611.01232. Twin: analysis.propagation. Everything is float64 NumPy.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

from numdl import checks, quadrature
from numdl.activations import Activation
from numdl.precision import float64
from numdl.records import record, static

CRITICAL = 1e-9  # |chi_1 - 1| up to which the phase is called critical
PER_DECADE = 40
LENGTHS = 10.0 ** (np.arange(-15 * PER_DECADE, 10 * PER_DECADE + 1) / PER_DECADE)  # fixed points are looked for here
ONE = 15 * PER_DECADE  # LENGTHS[ONE] == 1
NOISE = 1e-11  # relative: the moments' error at large q; smaller differences count as none


@record
class FixedPoint:
    """Where lengths and correlations settle, how fast, and in which phase the network is."""

    q: np.ndarray  # []  length, V(q) = q; 0 where signals die, inf where lengths grow without bound
    c: np.ndarray  # []  correlation, C(c) = c; nan where q is 0 or inf
    chi_1: np.ndarray  # []  C'(1)
    chi_c: np.ndarray  # []  C'(c); nan where c is
    slope_q: np.ndarray  # []  V'(q); below 0 lengths oscillate
    depth_scale_q: np.ndarray  # []  layers, -1 / ln |V'(q)|; inf where |V'| >= 1
    depth_scale_c: np.ndarray  # []  layers, -1 / ln chi_c; inf where chi_c >= 1
    phase: str = static()  # ordered (chi_1 < 1), critical, chaotic (chi_1 > 1)

    @property
    def stable(self):
        """Whether lengths near q return to it."""
        return bool(abs(self.slope_q) < 1)


@record
class PhaseDiagram:
    """Fixed points over a grid of weight and bias variances."""

    weight_variances: np.ndarray  # [W]
    bias_variances: np.ndarray  # [B]
    q: np.ndarray  # [W, B]  the length reached from q = 1
    chi_1: np.ndarray  # [W, B]
    slope_q: np.ndarray  # [W, B]
    depth_scale_q: np.ndarray  # [W, B]  layers
    depth_scale_gradient: np.ndarray  # [W, B]  layers, 1 / |ln chi_1|: squared gradients change e-fold
    phase: np.ndarray  # [W, B]  -1 ordered, 0 critical, 1 chaotic


@float64
def length_map(q, *, activation, weight_variance, bias_variance):
    """V(q): the length of the next layer; q scalar or array >= 0. Source: Poole et al. 2016, eq. (3)."""
    _check(activation, weight_variance, bias_variance)
    checks.variance("q", checks.concrete("q", q))
    return _next_length(_float(q), activation, weight_variance, bias_variance)


def lengths(x_variance, *, depth, activation, weight_variance, bias_variance):
    """PREDICTED mean square of the pre-activations, layer by layer, at infinite width.

        q[0] = weight_variance * x_variance + bias_variance
        q[l] = weight_variance * E[activation(sqrt(q[l-1]) z)**2] + bias_variance,   z ~ N(0, 1)

    Parameters
    ----------
    x_variance : scalar         mean of x**2 over the input's coordinates
    depth : int                 number of layers L >= 1
    activation : Activation     see numdl.activations
    weight_variance : scalar    fan_in * Var(W_ij), dimensionless
    bias_variance : scalar      Var(b_i)

    Returns
    -------
    q : array, shape (L,), float64

    Raises
    ------
    ValueError                  depth < 1, or a variance is negative or not finite
    Source: Poole et al. 2016, arXiv:1606.05340, eq. (3).    Twin: analysis.propagation.lengths
    """
    _check(activation, weight_variance, bias_variance)
    checks.variance("x_variance", checks.concrete("x_variance", x_variance), shape=())
    return _lengths(x_variance, checks.whole("depth", depth), activation, weight_variance, bias_variance)


def correlations(c, *, depth, q, activation, weight_variance, bias_variance):
    """PREDICTED correlation of the pre-activations of two inputs, layer by layer, at infinite width.

        c[l] = (weight_variance * E[f(u) f(v)] + bias_variance) / q[l],  u, v ~ N(0, q[l-1]), correlation c[l-1]

    Parameters
    ----------
    c : scalar or array         correlation in the layer before the first of the `depth` layers, in [-1, 1]
    depth : int                 number of layers L >= 1
    q : scalar or (L + 1,)      the length, the same everywhere (a fixed point) or layer by layer, q[0] beside c

    Returns
    -------
    c : array, shape c.shape + (L,), float64

    Raises
    ------
    ValueError                  a correlation outside [-1, 1], q not above 0, depth < 1, a bad variance
    Source: Poole et al. 2016, eq. (5); Schoenholz et al. 2017, eq. (4).    Twin: analysis.propagation.correlations
    """
    _check(activation, weight_variance, bias_variance)
    checks.finite("c", checks.concrete("c", c), least=-1.0, most=1.0)
    depth = checks.whole("depth", depth)
    checks.positive("q", checks.concrete("q", q))
    if np.ndim(q):
        checks.shape("q", q, (depth + 1,))
    return _correlations(c, depth, q, activation, weight_variance, bias_variance)


def fixed_point(*, activation, weight_variance, bias_variance):
    """The fixed point that lengths reach from q = 1, its correlation, slopes, depth scales and phase.

    The root of V(q) = q is bracketed on a grid and solved for, so that it is exact near criticality too, where an
    iteration would stop early. The correlation is the one that two different inputs reach.

    Raises
    ------
    ValueError                  a variance is negative or not finite
    Source: Schoenholz et al. 2017, eqs. (3) to (9).
    """
    _check(activation, weight_variance, bias_variance)
    q = _reached(activation, weight_variance, bias_variance)
    return _fixed_point(q, activation, weight_variance, bias_variance)


def fixed_points(*, activation, weight_variance, bias_variance):
    """All fixed points of the length map from q = 0 to q = 1e10, in order, stable or not: a tuple of FixedPoint.

    Where every length is a fixed point (relu at 2 and 0) the one at q = 1 stands for all.
    """
    _check(activation, weight_variance, bias_variance)
    roots = _all_roots(activation, weight_variance, bias_variance)
    return tuple(_fixed_point(q, activation, weight_variance, bias_variance) for q in roots)


def critical_weight_variance(*, activation, bias_variance):
    """The weight variance at which chi_1 = 1 at the fixed point reached from q = 1; nan where there is none.

        chi_1 = w S(q) = 1 and V(q) = q  give  q - M(q) / S(q) = bias_variance and w = 1 / S(q),
        M(q) = E f(sqrt(q) z)^2,  S(q) = E f'(sqrt(q) z)^2

    relu with bias_variance > 0 has none: chi_1 = 1 asks for weight variance 2, where lengths grow without bound.
    Source: Poole et al. 2016, section 2.3.
    """
    checks.instance("activation", activation, Activation, hint="for example numdl.activations.tanh")
    checks.variance("bias_variance", checks.concrete("bias_variance", bias_variance), shape=())
    for weight_variance in _critical_candidates(activation, float(bias_variance)):
        q = _reached(activation, weight_variance, bias_variance)
        if np.isfinite(q) and abs(weight_variance * _moments(q, activation)[1] - 1) < 1e-7:
            return np.float64(weight_variance)
    return np.float64(np.nan)


def phase_diagram(*, activation, weight_variances, bias_variances):
    """Fixed points, chi_1 and phase over the grid weight_variances [W] x bias_variances [B], in one compiled call.

    Every moment depends on q alone and is analytic in ln q (|arg q| < pi/2), so one table of it, interpolated to 1e-10,
    serves the whole grid.

    Source: Poole et al. 2016, figure 1; Schoenholz et al. 2017, figure 2.
    """
    weight_variances = np.atleast_1d(np.asarray(weight_variances))
    bias_variances = np.atleast_1d(np.asarray(bias_variances))
    _check(activation, weight_variances, bias_variances, ndim=1)
    at_zero = (*_moments(0.0, activation)[:2], _slope_at_zero(activation, 1.0))
    q, chi_1, slope = _phase_diagram(_table(activation), at_zero, weight_variances, bias_variances)
    with np.errstate(divide="ignore"):
        scale_gradient = 1 / np.abs(np.log(chi_1))
    return PhaseDiagram(
        weight_variances=weight_variances.astype(float),
        bias_variances=bias_variances.astype(float),
        q=q,
        chi_1=chi_1,
        slope_q=slope,
        depth_scale_q=_depth_scale(np.abs(slope)),
        depth_scale_gradient=scale_gradient,
        phase=np.where(np.abs(chi_1 - 1) <= CRITICAL, 0, np.sign(chi_1 - 1)).astype(np.int8),
    )


# ---- the maps ------------------------------------------------------------------------------------------------------


def _next_length(q, activation, weight_variance, bias_variance):
    return weight_variance * activation.mean_square(q) + bias_variance


@float64
def _lengths(x_variance, depth, activation, weight_variance, bias_variance):
    return _lengths_jit(*map(_float, (x_variance, weight_variance, bias_variance)), depth=depth, activation=activation)


@functools.partial(jax.jit, static_argnames=("depth", "activation"))
def _lengths_jit(x_variance, weight_variance, bias_variance, *, depth, activation):
    def layer(q, _):
        return _next_length(q, activation, weight_variance, bias_variance), q

    return jax.lax.scan(layer, weight_variance * x_variance + bias_variance, None, length=depth)[1]


@float64
def _correlations(c, depth, q, activation, weight_variance, bias_variance):
    q = jnp.broadcast_to(_float(q), (depth + 1,))
    c = _float(c)
    flat = _correlations_jit(c.ravel(), q, _float(weight_variance), _float(bias_variance), activation=activation)
    return flat.T.reshape(*c.shape, depth)


@functools.partial(jax.jit, static_argnames="activation")
def _correlations_jit(c, q, weight_variance, bias_variance, *, activation):
    def layer(c, lengths):
        before, after = lengths
        product = activation.mean_product(jnp.full_like(c, before), jnp.full_like(c, before), c)
        c = jnp.clip((weight_variance * product + bias_variance) / after, -1.0, 1.0)
        return c, c

    return jax.lax.scan(layer, c, (q[:-1], q[1:]))[1]


# ---- the three moments that decide everything, as functions of q alone ----------------------------------------------


@float64
def _moments(q, activation):
    """M = E f^2, S = E f'^2 and T = E[x f f'] at x = sqrt(q) z; V = w M + b, chi_1 = w S, V' = w T / q by Stein.

    At q = 0, S is the limit from above: both sides of a kink count.
    """
    return _moments_jit(_float(q), activation=activation)


@functools.partial(jax.jit, static_argnames="activation")
def _moments_jit(q, *, activation):
    growth = quadrature.expect(lambda x: x * activation.f(x) * activation.slope(x), q, kinks=activation.kinks)
    return activation.mean_square(q), activation.slope_mean_square(jnp.maximum(q, 1e-30)), growth


@functools.lru_cache(maxsize=64)
def _table(activation):
    """[3, lengths]: M, S and T over LENGTHS."""
    return np.stack(_moments(LENGTHS, activation))


def _excess(weight_variance, bias_variance, mean_square):
    """V(q) - q over LENGTHS with what is only rounding set to 0."""
    excess = weight_variance * mean_square + bias_variance - LENGTHS
    return np.where(np.abs(excess) <= NOISE * LENGTHS, 0.0, excess)


# ---- fixed points --------------------------------------------------------------------------------------------------


def _reached(activation, weight_variance, bias_variance):
    """The root of V(q) = q nearest to 1 on the side to which V(1) - 1 points; inf if there is none above."""
    excess = _excess(weight_variance, bias_variance, _table(activation)[0])
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
    if low == 0 and weight_variance * _moments(0.0, activation)[0] + bias_variance == 0:
        return 0.0
    rising, q = None, (low + high) / 2
    for _ in range(100):
        mean_square, _, growth = _moments(q, activation)
        excess = weight_variance * mean_square + bias_variance - q
        rising = _sign_at(low, activation, weight_variance, bias_variance) if rising is None else rising
        low, high = (q, high) if np.sign(excess) == rising else (low, q)
        newton = q - excess / (weight_variance * growth / q - 1)
        new = newton if low <= newton <= high else (low + high) / 2
        if excess == 0 or abs(new - q) <= 4e-16 * q:
            return float(new)
        q = new
    return float(q)


def _sign_at(q, activation, weight_variance, bias_variance):
    return np.sign(weight_variance * _moments(q, activation)[0] + bias_variance - q)


def _all_roots(activation, weight_variance, bias_variance):
    excess = _excess(weight_variance, bias_variance, _table(activation)[0])
    at_zero = weight_variance * _moments(0.0, activation)[0] + bias_variance == 0
    roots = [0.0] if at_zero else []
    if not excess.any():
        return [*roots, 1.0]
    known = np.flatnonzero(excess)
    changes = [(i, j) for i, j in itertools.pairwise(known) if excess[i] * excess[j] < 0]
    if excess[known[0]] < 0 and not at_zero:
        roots.append(_solve(0.0, LENGTHS[known[0]], activation, weight_variance, bias_variance))
    brackets = [(LENGTHS[i], LENGTHS[j]) for i, j in changes]
    return roots + [_solve(*bracket, activation, weight_variance, bias_variance) for bracket in brackets]


def _fixed_point(q, activation, weight_variance, bias_variance):
    # At q = inf the slopes are limits, taken where the search ends.
    within = np.float64(min(q, LENGTHS[-1]))
    _, slope_square, growth = _moments(within, activation)
    chi_1 = weight_variance * slope_square
    slope = weight_variance * growth / within if q > 0 else _slope_at_zero(activation, weight_variance)
    c, chi_c = np.float64(np.nan), np.float64(np.nan)
    if 0 < q < math.inf:
        c, chi_c = _fixed_correlation(q, chi_1, activation, weight_variance, bias_variance)
    phase = "critical" if abs(chi_1 - 1) <= CRITICAL else "ordered" if chi_1 < 1 else "chaotic"
    scale_q, scale_c = _depth_scale(np.abs(slope))[()], _depth_scale(chi_c)[()]
    return FixedPoint(np.float64(q), c, chi_1, chi_c, slope, scale_q, scale_c, phase)


def _slope_at_zero(activation, weight_variance):
    """V'(0) where f(0) = 0: the limit of w T / q."""
    return weight_variance * _table(activation)[2, 0] / LENGTHS[0]


@float64
def _fixed_correlation(q, chi_1, activation, weight_variance, bias_variance):
    """c and C'(c). C is convex on [0, 1] with C(0) >= 0, so that Newton's method from 0 rises to its smallest root."""
    if chi_1 <= 1 + CRITICAL:
        return jnp.asarray(1.0), jnp.asarray(chi_1)
    return _fixed_correlation_jit(*map(_float, (q, weight_variance, bias_variance)), activation=activation)


@functools.partial(jax.jit, static_argnames="activation")
def _fixed_correlation_jit(q, weight_variance, bias_variance, *, activation):
    def slope(c):
        return weight_variance * activation.slope_mean_product(q, q, c)

    def step(state):
        c, _, count = state
        excess = (weight_variance * activation.mean_product(q, q, c) + bias_variance) / q - c
        new = jnp.clip(c + jnp.maximum(excess, 0.0) / jnp.maximum(1 - slope(c), 1e-15), 0.0, 1.0)
        return new, jnp.abs(new - c), count + 1

    start = (jnp.zeros(()), jnp.asarray(jnp.inf), 0)
    c = jax.lax.while_loop(lambda state: (state[1] > 1e-15) & (state[2] < 200), step, start)[0]
    return c, slope(c)


def _critical_candidates(activation, bias_variance):
    """Every w = 1 / S(q) with q - M(q) / S(q) = bias_variance: at q = 1 where all q solve it, at roots, at q = 0."""

    def distance(q):
        mean_square, slope_square, _ = _moments(q, activation)
        return q - mean_square / slope_square - bias_variance

    with np.errstate(divide="ignore", invalid="ignore"):
        values = distance(LENGTHS)
    values = np.where(np.abs(values) <= NOISE * LENGTHS, 0.0, values)
    found = [1.0] if values[ONE] == 0 else []
    known = np.flatnonzero(values)
    for i, j in itertools.pairwise(known):
        if values[i] * values[j] < 0:
            found.append(_bisect(distance, LENGTHS[i], LENGTHS[j]))
    if bias_variance == 0 and _moments(0.0, activation)[0] == 0:
        found.append(0.0)
    return [float(1 / _moments(q, activation)[1]) for q in found]


def _bisect(function, low, high):
    rising = np.sign(function(low))
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if np.sign(function(middle)) == rising else (low, middle)
    return middle


# ---- the phase diagram ---------------------------------------------------------------------------------------------

STENCIL = np.arange(10)  # points of the local interpolation: 10 at 40 a decade leave 1e-11


@float64
def _phase_diagram(table, at_zero, weight_variances, bias_variances):
    return _phase_diagram_jit(*map(_float, (table, at_zero, weight_variances, bias_variances)))


@jax.jit
def _phase_diagram_jit(table, at_zero, weight_variances, bias_variances):
    """`at_zero`: M(0), S(0) and the limit of T(q) / q."""

    def cell(weight_variance, bias_variance):
        q = _root_in_table(table, at_zero[0], weight_variance, bias_variance)
        inside = jnp.clip(q, LENGTHS[0], LENGTHS[-1])
        _, slope_square, growth = _interpolate(table, inside)
        slopes = jnp.where(q == 0, at_zero[1:], jnp.stack([slope_square, growth / inside]))
        return q, *(weight_variance * slopes)

    return jax.lax.map(lambda w: jax.vmap(lambda b: cell(w, b))(bias_variances), weight_variances)


def _root_in_table(table, square_at_zero, weight_variance, bias_variance):
    """As `_reached` does, with interpolated moments."""
    grid = jnp.asarray(LENGTHS)
    excess = weight_variance * table[0] + bias_variance - grid
    excess = jnp.where(jnp.abs(excess) <= NOISE * grid, 0.0, excess)
    index = jnp.arange(grid.size)
    rises = excess[ONE] > 0
    above = jnp.min(jnp.where((index > ONE) & (excess < 0), index, grid.size))
    below = jnp.max(jnp.where((index < jnp.where(rises, above, ONE)) & (excess > 0), index, -1))
    right = jnp.where(rises, above, jnp.min(jnp.where((index > below) & (excess < 0), index, grid.size)))
    low, high = grid[jnp.maximum(below, 0)], grid[jnp.minimum(right, grid.size - 1)]

    def newton(_, q):
        mean_square, _, growth = _interpolate(table, q)
        step = (weight_variance * mean_square + bias_variance - q) / (weight_variance * growth / q - 1)
        return jnp.clip(q - step, low, high)

    q = jax.lax.fori_loop(0, 8, newton, (low + high) / 2)
    q = jnp.where(rises & (above == grid.size), jnp.inf, q)
    q = jnp.where(~rises & (below < 0) & (weight_variance * square_at_zero + bias_variance == 0), 0.0, q)
    return jnp.where(excess[ONE] == 0, 1.0, q)


def _interpolate(table, q):
    """M, S, T at q by Lagrange's polynomial through the nearest points, in ln q."""
    place = jnp.log(q / LENGTHS[0]) / (math.log(10) / PER_DECADE)
    first = jnp.clip(jnp.floor(place).astype(int) - STENCIL.size // 2 + 1, 0, LENGTHS.size - STENCIL.size)
    distance = (place - first)[None, None] - STENCIL[None, :]
    ratio = distance / np.where(np.eye(STENCIL.size), 1, STENCIL[:, None] - STENCIL[None, :])
    weights = jnp.prod(jnp.where(np.eye(STENCIL.size, dtype=bool), 1.0, ratio), axis=1)
    return jax.lax.dynamic_slice_in_dim(table, first, STENCIL.size, axis=1) @ weights


def _depth_scale(slope):
    """-1 / ln slope where slope < 1 (0 at slope 0), inf where it is critical or above; nan stays nan."""
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = -1 / np.log(slope)
    return np.where(slope >= 1 - CRITICAL, math.inf, np.where(slope == 0, 0.0, scale))


def _float(value):
    return jnp.asarray(value, dtype=float)


def _check(activation, weight_variance, bias_variance, ndim=0):
    checks.instance("activation", activation, Activation, hint="for example numdl.activations.tanh")
    for name, value in (("weight_variance", weight_variance), ("bias_variance", bias_variance)):
        name += "s" if ndim else ""
        checks.variance(name, checks.concrete(name, value), shape=None if ndim else ())
        if ndim and np.ndim(value) != 1:
            raise ValueError(f"{name} must be one list of numbers; got an array of shape {np.shape(value)}")
