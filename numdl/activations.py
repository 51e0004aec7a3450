"""Activations: the vocabulary that networks and theory share. `activation(x)` is f(x), elementwise.

An `Activation` knows its slope, its kinks and, where they exist, the closed forms of its Gaussian moments; the others
come from `quadrature`. Each is frozen and hashable: a static argument of `jit`, a key of a dictionary. `f` is what
`jax.nn` calls by the same name, except that `gelu` is the exact one (`gelu_tanh` is jax's default form) and `erf` is
erf(x). At a kink the slope is what jax differentiates: relu'(0) = 0, leaky_relu'(0) = 1, hard_tanh'(+-1) = 1.
"""

import contextlib
import dataclasses
import functools
import math
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp

from numdl import checks, jumps, quadrature


@dataclasses.dataclass(frozen=True)
class Moments:
    """Closed forms of Gaussian moments; None where there is none that keeps all digits.

    u, v are centred Gaussians of variances q1, q2 and covariance c sqrt(q1 q2).
    """

    mean: Callable | None = None  # q -> E f(u)
    square: Callable | None = None  # q -> E f(u)^2
    slope_square: Callable | None = None  # q -> E f'(u)^2
    product: Callable | None = None  # q1, q2, c -> E f(u) f(v)
    slope_product: Callable | None = None  # q1, q2, c -> E f'(u) f'(v)


@dataclasses.dataclass(frozen=True, repr=False)
class Activation:
    """An elementwise function with its slope, its kinks and its Gaussian moments."""

    name: str
    f: Callable  # elementwise, traceable
    slope: Callable  # f', elementwise
    kinks: tuple = ()  # where f or one of its derivatives jumps
    moments: Moments = Moments()

    def __call__(self, x):
        return self.f(x)

    def __repr__(self):
        return f"Activation({self.name})"

    @functools.partial(jax.jit, static_argnums=0)
    def mean(self, q):
        """E f(sqrt(q) z), z ~ N(0, 1), shaped like q."""
        return self._line(self.moments.mean, self.f, q)

    @functools.partial(jax.jit, static_argnums=0)
    def mean_square(self, q):
        """E f(sqrt(q) z)^2, z ~ N(0, 1), shaped like q."""
        return self._line(self.moments.square, lambda x: self.f(x) ** 2, q)

    @functools.partial(jax.jit, static_argnums=0)
    def slope_mean_square(self, q):
        """E f'(sqrt(q) z)^2, z ~ N(0, 1), shaped like q; infinite if f jumps: f' holds a delta function there."""
        regular = self._line(self.moments.slope_square, lambda x: self.slope(x) ** 2, q)
        if not self.jumps:
            return regular
        at_zero = any(jump.place == 0 for jump in self.jumps)
        return jnp.where((jnp.asarray(q) > 0) | at_zero, jnp.inf, regular)

    @functools.partial(jax.jit, static_argnums=0)
    def mean_product(self, q1, q2, c):
        """E f(u) f(v) for Gaussians of variances q1, q2 and correlation c, on their common shape."""
        return self._plane(self.moments.product, self.f, q1, q2, c)

    @functools.partial(jax.jit, static_argnums=0)
    def slope_mean_product(self, q1, q2, c):
        """E f'(u) f'(v) for Gaussians of variances q1, q2 and correlation c, on their common shape.

        Where f jumps it is the derivative of E f(u) f(v) with respect to E u v (Price), infinite at equal u and v.
        """
        if not self.jumps:
            return self._plane(self.moments.slope_product, self.slope, q1, q2, c)
        dtype = jnp.result_type(0.0, q1, q2, c)
        q1, q2, c = jnp.broadcast_arrays(*(jnp.asarray(a, dtype) for a in (q1, q2, c)))
        within = jnp.abs(c) < 1
        inner = jnp.where(within, c, 0.0)
        change = jax.jvp(lambda c: self.mean_product(q1, q2, c), (inner,), (jnp.ones_like(c),))[1]
        root = _root(q1 * q2)
        regular = jnp.where(root > 0, change / jnp.where(root > 0, root, 1.0), jnp.nan)
        centred = all(jump.place == 0 for jump in self.jumps)
        equal = jnp.where(root > 0, centred | ((c == 1) & (q1 == q2)), False)
        return jnp.where(within, regular, jnp.where(equal, jnp.inf, jnp.nan))

    @functools.cached_property
    def jumps(self):
        """Where f itself jumps: a tuple of jumps.Jump. Empty where the moments of the slope have closed forms."""
        if self.moments.slope_square is not None and self.moments.slope_product is not None:
            return ()
        return jumps.find(self.f, self.slope, self.kinks)

    @functools.cached_property
    def _cuts(self):
        return tuple(sorted({*self.kinks, *(jump.place for jump in self.jumps)}))

    def _line(self, closed, f, q):
        q = jnp.asarray(q, jnp.result_type(0.0, q))
        return quadrature.expect(f, q, kinks=self._cuts) if closed is None else closed(q)

    def _plane(self, closed, f, q1, q2, c):
        dtype = jnp.result_type(0.0, q1, q2, c)
        q1, q2, c = jnp.broadcast_arrays(*(jnp.asarray(a, dtype) for a in (q1, q2, c)))
        if closed is None:
            return quadrature.expect_product(f, f, q1, q2, c, kinks_f=self._cuts, kinks_g=self._cuts)
        return closed(q1, q2, c)


def named(name):
    """The activation of that name; `leaky_relu(0.2)` carries its slope.

    Raises
    ------
    ValueError, TypeError       no such name: the message lists them
    """
    leaky = re.fullmatch(r"leaky_relu\(([-+.\de]+)\)", name) if isinstance(name, str) else None
    with contextlib.suppress(ValueError):  # digits that are no number: the list of names says what is allowed
        if leaky:
            return leaky_relu(float(leaky[1]))
    return _NAMED[checks.one_of("name", name, [*_NAMED, "leaky_relu(0.2)"])]


def names():
    """The names that `named` knows without a number: a tuple."""
    return tuple(_NAMED)


def custom(f, *, name, kinks=(), slope=None):
    """An activation from any elementwise function; without `slope`, jax differentiates f.

    Parameters
    ----------
    f : function                elementwise, traceable
    name : str                  what tables and plots call it
    kinks : tuple of float      where f or one of its derivatives jumps: the moments are inexact if one is missing
    Raises
    ------
    TypeError, ValueError       f or slope is no function, name is no string, a kink is not a finite number
    """
    checks.accepts("f", f, 1, "f(x)")
    if not checks.instance("name", name, str):
        raise checks.BadValue(f"name must be a string of at least one letter; got {name!r}")
    kinks = tuple(sorted(checks.sequence("kinks", kinks)))
    if slope is None:
        return Activation(name, f, lambda x: jax.jvp(f, (x,), (jnp.ones_like(x),))[1], kinks)
    checks.accepts("slope", slope, 1, "slope(x)")
    return Activation(name, f, slope, kinks)


def leaky_relu(negative_slope):
    """x for x >= 0, negative_slope * x below; one object for each slope.

    Raises
    ------
    TypeError, ValueError       negative_slope is not a finite number
    """
    return _leaky_relu(float(checks.finite("negative_slope", negative_slope, shape=())))


@functools.cache
def _leaky_relu(a):
    return Activation(
        f"leaky_relu({a!r})",
        lambda x: jnp.where(x >= 0, x, a * x),
        lambda x: jnp.where(x >= 0, jnp.ones_like(x), jnp.full_like(x, a)),
        kinks=(0.0,),
        moments=_rectifier_moments(a),
    )


# ------------------------------------------------------------------------------------------------------ closed forms


def _covariance(q1, q2, c):
    return c * _root(q1) * _root(q2)


def _root(x):
    """sqrt(x) whose derivative at zero is zero instead of infinite, so that no nan spreads."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1)), 0)


@jax.custom_jvp
def _angle(c):
    """P(u > 0, v > 0) = (pi - arccos c) / (2 pi), exact at c = +-1 and without arccos's loss near them."""
    return jnp.atan2(_root((1 - c) * (1 + c)), -c) / (2 * math.pi)


@_angle.defjvp
def _angle_jvp(primals, tangents):
    (c,), (dc,) = primals, tangents
    s = _root((1 - c) * (1 + c))
    return _angle(c), dc / (2 * math.pi * jnp.maximum(s, jnp.finfo(c.dtype).eps))  # infinite at c = +-1: kept finite


@jax.custom_jvp
def _arc_cosine(c):
    """E relu(u) relu(v) at unit variances; its derivative, by Price's theorem, is `_angle`."""
    return _root((1 - c) * (1 + c)) / (2 * math.pi) + c * _angle(c)


@_arc_cosine.defjvp
def _arc_cosine_jvp(primals, tangents):
    (c,), (dc,) = primals, tangents
    return _arc_cosine(c), dc * _angle(c)


def _rectifier_moments(a):
    """f = a x + (1 - a) relu(x), and E u relu(v) = cov(u, v) / 2. Source: Cho & Saul 2009, section 2.1."""
    half = (1 + a * a) / 2
    return Moments(
        mean=lambda q: (1 - a) * _root(q / (2 * math.pi)),
        square=lambda q: half * q,
        slope_square=lambda q: jnp.full_like(q, half),
        product=lambda q1, q2, c: _root(q1) * _root(q2) * (a * c + (1 - a) ** 2 * _arc_cosine(c)),
        slope_product=lambda q1, q2, c: a + (1 - a) ** 2 * _angle(c),
    )


def _erf_product(q1, q2, c):
    """2/pi arcsin(2 K / sqrt((1 + 2 q1)(1 + 2 q2))), as an arctangent of positive terms. Source: Williams 1997."""
    return 2 / math.pi * jnp.atan2(2 * _covariance(q1, q2, c), jnp.sqrt(_volume(2 * q1, 2 * q2, c)))


def _volume(q1, q2, c):
    """det(1 + Sigma), without a difference of large terms."""
    return 1 + q1 + q2 + q1 * q2 * (1 - c) * (1 + c)


def _sin_product(q1, q2, c):
    """exp(-(q1 + q2)/2) sinh K, as one decaying exponential times expm1."""
    gap, size, sign = _gap(q1, q2, c)
    return -0.5 * sign * jnp.exp(-gap) * jnp.expm1(-2 * size)


def _cos_product(q1, q2, c):
    """exp(-(q1 + q2)/2) cosh K."""
    gap, size, _ = _gap(q1, q2, c)
    return 0.5 * jnp.exp(-gap) * (1 + jnp.exp(-2 * size))


def _gap(q1, q2, c):
    """(q1 + q2)/2 - |K| as a sum of squares, |K|, and the sign of K."""
    sign = jnp.where(c < 0, -jnp.ones_like(c), jnp.ones_like(c))
    root1, root2 = _root(q1), _root(q2)
    return (root1 - root2) ** 2 / 2 + root1 * root2 * (1 - sign * c), root1 * root2 * sign * c, sign


def _gelu_product(q1, q2, c):
    """K H + P (q1 q2 - K^2 + K^2/(1 + q1) + K^2/(1 + q2)), by Stein's lemma twice; H = E Phi Phi, P = E phi phi."""
    K, H, P, _ = _gelu_parts(q1, q2, c)
    return K * H + P * (q1 * q2 * (1 - c) * (1 + c) + K**2 * (1 / (1 + q1) + 1 / (1 + q2)))


def _gelu_slope_product(q1, q2, c):
    """H + P K (1/(1 + q1) + 1/(1 + q2) + 1/D), D = det(1 + Sigma)."""
    K, H, P, D = _gelu_parts(q1, q2, c)
    return H + P * K * (1 / (1 + q1) + 1 / (1 + q2) + 1 / D)


def _gelu_parts(q1, q2, c):
    K, D = _covariance(q1, q2, c), _volume(q1, q2, c)
    return K, jnp.atan2(jnp.sqrt(D), -K) / (2 * math.pi), 1 / (2 * math.pi * jnp.sqrt(D)), D


def _at_one(product):
    """The one-point form of a two-point form: both variances q, correlation 1."""
    return lambda q: product(q, q, jnp.ones_like(q))


# ---------------------------------------------------------------------------------------------------- functions, slopes


def _sech_squared(x):
    decay = jnp.exp(-2 * jnp.abs(x))
    return 4 * decay / (1 + decay) ** 2


def _normal_density(x):
    return jnp.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)


def _normal_probability(x):
    return jax.lax.erfc(-x / math.sqrt(2)) / 2


_gelu = functools.partial(jax.nn.gelu, approximate=False)
_gelu_tanh = functools.partial(jax.nn.gelu, approximate=True)


def _gelu_tanh_slope(x):
    root, cubic = math.sqrt(2 / math.pi), 0.044715
    y = root * (x + cubic * x**3)
    return jax.nn.sigmoid(2 * y) + 0.5 * x * _sech_squared(y) * root * (1 + 3 * cubic * x**2)


def _elu_slope(x):
    return jnp.where(x > 0, jnp.ones_like(x), jnp.exp(jnp.where(x > 0, 0, x)))


_SELU_SCALE, _SELU_ALPHA = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717


def _selu_slope(x):
    return _SELU_SCALE * jnp.where(x > 0, jnp.ones_like(x), _SELU_ALPHA * jnp.exp(jnp.where(x > 0, 0, x)))


def _hard_tanh_slope(x):
    return jnp.where(jnp.abs(x) <= 1, jnp.ones_like(x), jnp.zeros_like(x))


identity = Activation(
    "identity",
    lambda x: x,
    jnp.ones_like,
    moments=Moments(
        mean=jnp.zeros_like,
        square=lambda q: q,
        slope_square=jnp.ones_like,
        product=_covariance,
        slope_product=lambda q1, q2, c: jnp.ones_like(c),
    ),
)
tanh = Activation("tanh", jnp.tanh, _sech_squared, moments=Moments(mean=jnp.zeros_like))
erf = Activation(
    "erf",
    jax.lax.erf,
    lambda x: 2 / math.sqrt(math.pi) * jnp.exp(-(x**2)),
    moments=Moments(
        mean=jnp.zeros_like,
        square=_at_one(_erf_product),
        slope_square=lambda q: 4 / math.pi / jnp.sqrt(1 + 4 * q),
        product=_erf_product,
        slope_product=lambda q1, q2, c: 4 / math.pi / jnp.sqrt(_volume(2 * q1, 2 * q2, c)),
    ),
)
sigmoid = Activation(
    "sigmoid",
    jax.nn.sigmoid,
    lambda x: jax.nn.sigmoid(x) * jax.nn.sigmoid(-x),
    moments=Moments(mean=lambda q: jnp.full_like(q, 0.5)),
)
relu = Activation(
    "relu",
    jax.nn.relu,
    lambda x: jnp.where(x > 0, jnp.ones_like(x), jnp.zeros_like(x)),
    kinks=(0.0,),
    moments=_rectifier_moments(0.0),
)
elu = Activation("elu", jax.nn.elu, _elu_slope, kinks=(0.0,))
selu = Activation("selu", jax.nn.selu, _selu_slope, kinks=(0.0,))
gelu = Activation(
    "gelu",
    _gelu,
    lambda x: _normal_probability(x) + x * _normal_density(x),
    moments=Moments(
        mean=lambda q: q / jnp.sqrt(2 * math.pi * (1 + q)),
        square=_at_one(_gelu_product),
        slope_square=_at_one(_gelu_slope_product),
        product=_gelu_product,
        slope_product=_gelu_slope_product,
    ),
)
gelu_tanh = Activation("gelu_tanh", _gelu_tanh, _gelu_tanh_slope)
silu = Activation("silu", jax.nn.silu, lambda x: jax.nn.sigmoid(x) * (1 + x * jax.nn.sigmoid(-x)))
softplus = Activation("softplus", jax.nn.softplus, jax.nn.sigmoid)
sin = Activation(
    "sin",
    jnp.sin,
    jnp.cos,
    moments=Moments(
        mean=jnp.zeros_like,
        square=lambda q: -0.5 * jnp.expm1(-2 * q),
        slope_square=lambda q: 0.5 * (1 + jnp.exp(-2 * q)),
        product=_sin_product,
        slope_product=_cos_product,
    ),
)
_odd = Moments(mean=jnp.zeros_like)
hard_tanh = Activation("hard_tanh", jax.nn.hard_tanh, _hard_tanh_slope, kinks=(-1.0, 1.0), moments=_odd)

_NAMED = {
    a.name: a for a in (identity, tanh, erf, sigmoid, relu, elu, selu, gelu, gelu_tanh, silu, softplus, sin, hard_tanh)
}
