"""PREDICTED: derivatives of wide networks' kernels by their inputs, exact where inputs coincide.

With u = z(x), v = z(x') of one layer, Gaussian with covariance K, and du, dv their derivatives along inputs, which are
Gaussian beside them, g = f for the NNGP and g = f' for the factor of the tangent kernel:

    d/dx E g(u) g(v) = E g'(u) du g(v),     d2/dx dx' E g(u) g(v) = E g'(u) g'(v) du dv

du and dv are regressed on (u, v): nothing is divided by 1 - c^2 that is not a covariance of what is left, and at c = 1
on u alone. So no derivative by the correlation, infinite there, is taken.
"""

import functools
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import ArrayLike

from numdl import _closed_forms, _jumps, checks, quadrature
from numdl.activations import Activation
from numdl.precision import float64
from numdl.theory import _kernel_doors
from numdl.theory._factors import correlation

NEAR = 4e-11  # of 1 - c^2: there its rounding and what v still tells beside u are alike, 1e-5


class KernelDerivatives(NamedTuple):
    """Both kernels and their derivatives by the inputs; nan where there is none, and why."""

    nngp: np.ndarray  # [N1, N2]
    ntk: np.ndarray  # [N1, N2]
    nngp_slope: np.ndarray  # [N1, N2, d]: d K / dx, x of x1
    ntk_slope: np.ndarray  # [N1, N2, d]
    nngp_mixed: np.ndarray  # [N1, N2, d, d]: d2 K / dx_i dx'_j, x' of x2: the covariance of the outputs' slopes
    ntk_mixed: np.ndarray  # [N1, N2, d, d]
    notes: tuple  # why entries are nan


def derivatives(
    x1: ArrayLike,
    x2: ArrayLike,
    *,
    depth: int,
    activation: Activation,
    weight_variance: ArrayLike,
    bias_variance: ArrayLike,
) -> KernelDerivatives:
    """PREDICTED derivatives by the inputs of the kernels of a wide dense network, `nngp` and `ntk`; right at x = x'.

        d K(x, x') / dx,    d2 K(x, x') / dx dx' = E df/dx df/dx',    and of Theta alike

    Where f' jumps (relu), K has both everywhere but at an input 0 without bias; Theta has a kink where two inputs
    coincide or are opposite: nan there, with a note; f other than relu and leaky_relu have nan for Theta everywhere.
    At a small relative distance r of the inputs relu's of Theta have a relative error of about 1e-15 / r^2.

    Parameters
    ----------
    x1, x2 : array [N1, d], [N2, d]     inputs
    depth : int                 hidden layers D >= 0
    activation : Activation     f, continuous
    weight_variance, bias_variance : scalar     fan_in * Var(W_ij), Var(b_i)
    Returns
    -------
    KernelDerivatives           nngp, ntk, nngp_slope, ntk_slope, nngp_mixed, ntk_mixed, notes; float64
    Raises
    ------
    ValueError, TypeError       as for `nngp`; an activation that jumps, of which no network has slopes
    Source: the chain rule; Price 1958. Closed forms of relu: Cho & Saul 2009.
    """
    _kernel_doors.check(x1, x2, depth, activation, weight_variance=weight_variance, bias_variance=bias_variance)
    if activation.jumps:
        places = ", ".join(f"{jump.place:g}" for jump in activation.jumps)
        raise checks.BadValue(f"activation must be continuous, or slopes have no covariance; got a jump at {places}")
    bent = _bends(activation)
    law = _rectified(activation) if bent or activation.name == "identity" else None
    has_tangent = not bent or law is not None
    found = _run(x1, x2, weight_variance, bias_variance, depth, activation, law, bool(bent), 0.0 in bent)
    notes = []
    if depth and not has_tangent:
        notes.append(f"the tangent kernel's derivatives are not known for {activation.name}, whose slope jumps")
        found = found._replace(
            **{name: np.full_like(getattr(found, name), np.nan) for name in ("ntk_slope", "ntk_mixed")}
        )
    elif np.isnan(found.ntk_slope).any() or np.isnan(found.ntk_mixed).any():
        notes.append("the tangent kernel has a kink where two inputs coincide, are opposite, or one is 0 without bias")
    if np.isnan(found.nngp_mixed).any():
        notes.append("the NNGP kernel has no second derivative at an input 0 without bias")
    return found._replace(notes=tuple(notes))


def _bends(activation):
    """Where the slope jumps."""
    jumps = _jumps.find(activation.slope, _slope_of(activation.slope), activation.kinks)
    return tuple(jump.place for jump in jumps)


def _slope_of(f):
    return lambda x: jax.jvp(f, (x,), (jnp.ones_like(x),))[1]


def _rectified(activation):
    """The slope below 0 of a rectifier (1 above it), for which there are closed forms; None for another function."""
    if activation.name in ("relu", "identity"):
        return 0.0 if activation.name == "relu" else 1.0
    found = re.fullmatch(r"leaky_relu\((.+)\)", activation.name)
    return float(found[1]) if found else None


@float64
def _run(x1, x2, weight_variance, bias_variance, depth, activation, law, bent, bent_at_zero):
    pair = [jnp.asarray(checks.native(name, x), jnp.float64) for name, x in (("x1", x1), ("x2", x2))]
    numbers = [jnp.asarray(n, jnp.float64) for n in (weight_variance, bias_variance)]
    return KernelDerivatives(*_run_jit(*pair, *numbers, depth, activation, law, bent, bent_at_zero), ())


@functools.partial(jax.jit, static_argnums=(4, 5, 6, 7, 8))
def _run_jit(x1, x2, w, b, depth, activation, law, bent, bent_at_zero):
    moments = (
        functools.partial(_of_rectifier, law) if law is not None else functools.partial(_of_smooth, activation, bent)
    )

    def one(x, y):
        return _pair(x, y, w, b, depth, moments, bent_at_zero)

    return lax.map(lambda x: lax.map(lambda y: one(x, y), x2), x1)


# ---- one pair of inputs ---------------------------------------------------------------------------------------------


class _State(NamedTuple):
    """Variances and covariance of a layer at x and x', and the tangent kernel, each with its derivatives."""

    q1: jax.Array
    q2: jax.Array
    k: jax.Array
    theta: jax.Array
    q1_slope: jax.Array  # [d]: d q1 / dx
    q2_slope: jax.Array  # [d]: d q2 / dx'
    k_slopes: jax.Array  # [2, d]: d k / dx, d k / dx'
    theta_slopes: jax.Array  # [2, d]
    k_mixed: jax.Array  # [d, d]
    theta_mixed: jax.Array  # [d, d]


def _pair(x, y, w, b, depth, moments, bent_at_zero):
    scale = w / x.size
    k, slopes, mixed = scale * (x @ y) + b, scale * jnp.stack([y, x]), scale * jnp.eye(x.size)
    start = _State(
        scale * (x @ x) + b, scale * (y @ y) + b, k, k, 2 * scale * x, 2 * scale * y, slopes, slopes, mixed, mixed
    )
    layer = functools.partial(_layer, w, b, moments, bent_at_zero)
    end = lax.scan(lambda state, _: (layer(state), None), start, None, length=depth)[0]
    return end.k, end.theta, end.k_slopes[0], end.theta_slopes[0], end.k_mixed, end.theta_mixed


def _layer(w, b, moments, bent_at_zero, s):
    """The next layer; `moments` of g = f and of g = f'."""
    c = correlation(s.q1, s.q2, s.k)
    (f, slope), own = moments(s.q1, s.q2, c)
    both, both_slopes, both_mixed = _derived(s, c, f, bent_at_zero)
    chain, chain_slopes, chain_mixed = _derived(s, c, slope, bent_at_zero)
    mixed = w * both_mixed
    cross = jnp.outer(chain_slopes[0], s.theta_slopes[1]) + jnp.outer(s.theta_slopes[0], chain_slopes[1])
    theta_mixed = mixed + w * (chain_mixed * s.theta + cross + chain * s.theta_mixed)
    return _State(
        *(w * square + b for square, _ in own),
        w * both + b,
        w * both + b + w * chain * s.theta,
        *(w * _ratio(turned, q) * q_slope
          for (_, turned), q, q_slope in zip(own, (s.q1, s.q2), (s.q1_slope, s.q2_slope))),
        w * both_slopes,
        w * both_slopes + w * (chain_slopes * s.theta + chain * s.theta_slopes),
        mixed,
        theta_mixed,
    )  # fmt: skip


class _Moments(NamedTuple):
    """Of one function g, u and v with the layer's covariance."""

    product: jax.Array  # E g(u) g(v)
    slopes: jax.Array  # E g'(u) g'(v)
    turned: tuple  # E u g'(u) g(v), E g(u) v g'(v)
    squares: tuple  # E u^2 g'(u) g'(v), E u g'(u) v g'(v), E g'(u) v^2 g'(v)
    nearest: float = NEAR  # 1 - c^2 up to which v counts as a multiple of u


def _derived(s, c, g, bent_at_zero):
    """(E g g, its derivatives [2, d], its mixed derivatives [d, d])."""
    # du = (q1_slope / 2 q1) u + rest, and the rest is independent of u: Stein's lemma is then needed for v alone.
    rows = []
    for q, q_slope, k_slope, turned in zip((s.q1, s.q2), (s.q1_slope, s.q2_slope), s.k_slopes, g.turned):
        along = _ratio(q_slope / 2, q)
        rows.append(g.slopes * (k_slope - s.k * along) + along * turned)
    a = jnp.stack([s.q1_slope / 2, s.k_slopes[0]])  # covariances of du with u and v
    b = jnp.stack([s.k_slopes[1], s.q2_slope / 2])  # and of dv
    inverse = _inverse(s.q1, s.q2, c, g.nearest)
    left, right = inverse @ a, inverse @ b
    uu, uv, vv = g.squares
    explained = jnp.einsum("pi,pq,qj->ij", left, jnp.stack([jnp.stack([uu, uv]), jnp.stack([uv, vv])]), right)
    mixed = g.slopes * (s.k_mixed - left.T @ b) + explained
    lost = [jnp.where(bent_at_zero & (q == 0), jnp.nan, 0.0) for q in (s.q1, s.q2)]
    return g.product, jnp.stack(rows) + jnp.stack(lost)[:, None], mixed + lost[0] + lost[1]


def _ratio(a, q):
    """a / q; 0 where q is, where a is as well."""
    return jnp.where(q > 0, a / jnp.where(q > 0, q, 1.0), 0.0)


def _inverse(q1, q2, c, nearest):
    """The inverse of the covariance of (u, v), of u alone where v is nearly a multiple of it, of what is not 0."""
    whole = (q1 > 0) & (q2 > 0) & ((1 - c) * (1 + c) > nearest)
    safe1, safe2 = (jnp.where(q > 0, q, 1.0) for q in (q1, q2))
    rest = jnp.where(whole, (1 - c) * (1 + c), 1.0)
    cross = -c / jnp.sqrt(safe1 * safe2)
    full = jnp.stack([jnp.stack([1 / safe1, cross]), jnp.stack([cross, 1 / safe2])]) / rest
    one = jnp.diag(jnp.stack([jnp.where(q1 > 0, 1 / safe1, 0.0), jnp.where((q1 == 0) & (q2 > 0), 1 / safe2, 0.0)]))
    return jnp.where(whole, full, one)


# ---- moments --------------------------------------------------------------------------------------------------------


def _of_rectifier(a, q1, q2, c):
    """f = a x below 0, x above: u f'(u) = f(u), and f'' is 1 - a at 0. Source: Cho & Saul 2009."""
    share, root = (1 - a) ** 2, jnp.sqrt(q1) * jnp.sqrt(q2)
    angle, sine = _closed_forms.angle(c), _closed_forms.root((1 - c) * (1 + c)) / (2 * jnp.pi)
    product = root * (a * c + share * _closed_forms.arc_cosine(c))
    chain = a + share * angle
    squares = (q1 * (a + share * (angle + c * sine)), product, q2 * (a + share * (angle + c * sine)))
    f = _Moments(product, chain, (product, product), squares)
    # E f''(u) f''(v) is the density of (u, v) at 0, infinite where one is a multiple of the other: a kink of E f' f'.
    volume = 2 * jnp.pi * root * _closed_forms.root((1 - c) * (1 + c))
    kink = 0.0 if a == 1 else jnp.where(volume > 0, share / jnp.where(volume > 0, volume, 1.0), jnp.nan)
    zero = jnp.zeros_like(q1)
    slope = _Moments(chain, kink + zero, (zero, zero), (zero, zero, zero), 0.0)
    half = (1 + a * a) / 2
    return (f, slope), tuple((half * q, half * q) for q in (q1, q2))


def _of_smooth(activation, bent, q1, q2, c):
    """By quadrature; without f'' where f' jumps: then the tangent kernel's are not asked for."""
    f, slope = activation.f, activation.slope
    second = jnp.zeros_like if bent else _slope_of(slope)
    kinks = activation._cuts

    def plane(g, h):
        return quadrature.expect_product(g, h, q1, q2, c, kinks_f=kinks, kinks_g=kinks)

    def of(g, d):
        first, twice = (lambda u: u * d(u)), (lambda u: u**2 * d(u))
        return plane(d, d), (plane(first, g), plane(g, first)), (plane(twice, d), plane(first, first), plane(d, twice))

    own = tuple(
        (activation.mean_square(q), quadrature.expect(lambda u: u * f(u) * slope(u), q, kinks=kinks)) for q in (q1, q2)
    )
    product, chain = activation.mean_product(q1, q2, c), activation.slope_mean_product(q1, q2, c)
    return (_Moments(product, *of(f, slope)), _Moments(chain, *of(slope, second))), own
