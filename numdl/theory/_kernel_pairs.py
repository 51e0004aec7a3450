"""PREDICTED: recursions of `kernels.derivatives` and its kin, for one pair of inputs: values beside derivatives.

`gained(state)` gives E f f, E f f + E f' f' theta and both lengths E f^2 of pre-activations, with their derivatives by
the inputs; all that lies between is affine, and acts on derivatives as it does on values.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from numdl.theory import _convolutional_kernels
from numdl.theory._factors import correlation


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


def dense(gained, x, y, w, b, depth):
    start = _affine(w, b, _products(x, y))
    return _told(lax.scan(lambda s, _: (_affine(w, b, gained(s)), None), start, None, length=depth)[0])


def residual(gained, x, y, w, b, scaled, readout, depth):
    """Covariances and tangent kernels add up, block by block; an affine map after them trains its own weights too."""

    def block(s, _):
        return jax.tree.map(lambda old, new: old + scaled * new, s, gained(_affine(w, b, _summed(s)))), None

    end = lax.scan(block, _affine(w, b, _products(x, y)), None, length=depth)[0]
    return _told(_affine(readout, b, _summed(end)))


def convolutional(gained, a, b, w, bias, shape):
    """Lengths of each picture's own pixels; the other fields of every pair of places that the readout needs."""
    kernels, paired = _convolutional_kernels, shape.pooling == "mean"
    own = functools.partial(kernels._window_mean, groups=((0,), (1,)), shape=shape)
    both = functools.partial(kernels._window_mean, groups=((0, 2), (1, 3)) if paired else ((0,), (1,)), shape=shape)

    def convolved(s):
        return _affine(w, bias, _State(*((own if name[0] == "q" else both)(part) for name, part in _named(s))))

    def moved(s):
        """What every place gains, the lengths of one of the other's places each."""
        places = s.k.ndim
        wide = s._replace(**{name: _beside(part, name, s.k.shape) for name, part in _named(s) if name[0] == "q"})
        flat = jax.tree.map(lambda part: part.reshape(-1, *part.shape[places:]), wide)
        made = jax.tree.map(lambda part: part.reshape(*s.k.shape, *part.shape[1:]), lax.map(gained, flat))
        cut = {"q1": lambda q: q[:, :, 0, 0], "q2": lambda q: q[0, 0]} if paired else {}
        return made._replace(**{name: cut[name[:2]](part) for name, part in _named(made) if name[:2] in cut})

    start = convolved(_pixels(a, b, shape))
    end = moved(lax.scan(lambda s, _: (convolved(moved(s)), None), start, None, length=shape.depth - 1)[0])
    axes = {True: (0, 1), False: tuple(range(end.k.ndim))}
    means = _State(*(jnp.mean(part, axis=axes[name[0] == "q"]) for name, part in _named(end)))
    return _told(_affine(w, bias, means))


def _summed(s):
    """The covariance added to the tangent kernel."""
    return s._replace(
        theta=s.k + s.theta, theta_slopes=s.k_slopes + s.theta_slopes, theta_mixed=s.k_mixed + s.theta_mixed
    )


def _named(s):
    return zip(s._fields, s, strict=True)


def _beside(part, name, places):
    """A picture's own numbers at every pair of places, its own first for the first picture."""
    if len(places) == 2:
        return part
    part = part[:, :, None, None] if name[:2] == "q1" else part[None, None]
    return jnp.broadcast_to(part, (*places, *part.shape[4:]))


def _products(x, y):
    """x x' / d and the like, with their derivatives."""
    k, slopes, mixed = x @ y / x.size, jnp.stack([y, x]) / x.size, np.eye(x.size) / x.size
    return _State(x @ x / x.size, y @ y / x.size, k, k, 2 * x / x.size, 2 * y / x.size, slopes, slopes, mixed, mixed)


def _pixels(a, b, shape):
    """The same of pixels, derivatives by all pixels of a picture."""

    def square(flat):
        return jnp.mean(flat.reshape(a.shape) ** 2, axis=-1)

    def product(x, y):
        return _convolutional_kernels._pixels(x.reshape(a.shape), y.reshape(b.shape), shape)

    x, y = a.ravel(), b.ravel()
    k, slopes = product(x, y), jnp.stack(jax.jacfwd(product, (0, 1))(x, y), axis=-2)
    mixed = jax.jacfwd(jax.jacfwd(product, 0), 1)(x, y)
    own = square(x), square(y), k, k, jax.jacfwd(square)(x), jax.jacfwd(square)(y)
    return _State(*own, slopes, slopes, mixed, mixed)


def _affine(w, b, s):
    """w s + b, of values; w s of derivatives."""
    return _State(*(w * part + b if name in ("q1", "q2", "k", "theta") else w * part for name, part in _named(s)))


def _told(s):
    return s.k, s.theta, s.k_slopes[0], s.theta_slopes[0], s.k_mixed, s.theta_mixed


def gained(moments, bent_at_zero, s):
    """E f^2, E f f and E f f + E f' f' theta, with their derivatives; `moments` of g = f and of g = f'."""
    c = correlation(s.q1, s.q2, s.k)
    (f, slope), own = moments(s.q1, s.q2, c)
    both, both_slopes, both_mixed = _derived(s, c, f, bent_at_zero)
    chain, chain_slopes, chain_mixed = _derived(s, c, slope, bent_at_zero)
    cross = jnp.outer(chain_slopes[0], s.theta_slopes[1]) + jnp.outer(s.theta_slopes[0], chain_slopes[1])
    return _State(
        *(square for square, _ in own),
        both,
        both + chain * s.theta,
        *(_ratio(turned, q) * q_slope
          for (_, turned), q, q_slope in zip(own, (s.q1, s.q2), (s.q1_slope, s.q2_slope))),
        both_slopes,
        both_slopes + chain_slopes * s.theta + chain * s.theta_slopes,
        both_mixed,
        both_mixed + chain_mixed * s.theta + cross + chain * s.theta_mixed,
    )  # fmt: skip


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
