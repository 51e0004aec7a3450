"""PREDICTED: Gaussian moments of two pre-activations that derivatives of kernels need: of f, and of its slope."""

import dataclasses
import re
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from numdl import _closed_forms, _jumps, quadrature

NEAR = 4e-11  # of 1 - c^2: there its rounding and what v still tells beside u are alike, 1e-5


class Moments(NamedTuple):
    """Of one function g, u and v with the layer's covariance."""

    product: jax.Array  # E g(u) g(v)
    slopes: jax.Array  # E g'(u) g'(v)
    turned: tuple  # E u g'(u) g(v), E g(u) v g'(v)
    squares: tuple  # E u^2 g'(u) g'(v), E u g'(u) v g'(v), E g'(u) v^2 g'(v)
    nearest: float = NEAR  # 1 - c^2 up to which v counts as a multiple of u


def bends(activation):
    """Where the slope jumps."""
    jumps = _jumps.find(activation.slope, _Slope(activation.slope), activation.kinks)
    return tuple(jump.place for jump in jumps)


def rectified(activation):
    """The slope below 0 of a rectifier (1 above it), for which there are closed forms; None for another function."""
    if activation.name in ("relu", "identity"):
        return 0.0 if activation.name == "relu" else 1.0
    found = re.fullmatch(r"leaky_relu\((.+)\)", activation.name)
    return float(found[1]) if found else None


@dataclasses.dataclass(frozen=True)
class _Slope:
    """f', equal for equal f, so that `jit` knows it again."""

    f: Callable

    def __call__(self, x):
        return jax.jvp(self.f, (x,), (jnp.ones_like(x),))[1]


def of_rectifier(a, q1, q2, c):
    """f = a x below 0, x above: u f'(u) = f(u), and f'' is 1 - a at 0. Source: Cho & Saul 2009."""
    share, root = (1 - a) ** 2, jnp.sqrt(q1) * jnp.sqrt(q2)
    angle, sine = _closed_forms.angle(c), _closed_forms.root((1 - c) * (1 + c)) / (2 * jnp.pi)
    product = root * (a * c + share * _closed_forms.arc_cosine(c))
    chain = a + share * angle
    squares = (q1 * (a + share * (angle + c * sine)), product, q2 * (a + share * (angle + c * sine)))
    f = Moments(product, chain, (product, product), squares)
    # E f''(u) f''(v) is the density of (u, v) at 0, infinite where one is a multiple of the other: a kink of E f' f'.
    volume = 2 * jnp.pi * root * _closed_forms.root((1 - c) * (1 + c))
    kink = 0.0 if a == 1 else jnp.where(volume > 0, share / jnp.where(volume > 0, volume, 1.0), jnp.nan)
    zero = jnp.zeros_like(q1)
    slope = Moments(chain, kink + zero, (zero, zero), (zero, zero, zero), 0.0)
    half = (1 + a * a) / 2
    return (f, slope), tuple((half * q, half * q) for q in (q1, q2))


def of_smooth(activation, bent, q1, q2, c):
    """By quadrature; without f'' where f' jumps: then the tangent kernel's are not asked for."""
    f, slope = activation.f, activation.slope
    second = jnp.zeros_like if bent else _Slope(slope)
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
    return (Moments(product, *of(f, slope)), Moments(chain, *of(slope, second))), own
