"""Activations: the vocabulary that networks and theory share. `activation(x)` is f(x), elementwise.

An `Activation` knows its slope, its kinks and, where they exist, the closed forms of its Gaussian moments; the others
come from `quadrature`. Each is frozen and hashable: a static argument of `jit`, a key of a dictionary. `f` is what
`jax.nn` calls by the same name, except that `gelu` is the exact one (`gelu_tanh` is jax's default form) and `erf` is
erf(x). At a kink the slope is what jax differentiates: relu'(0) = 0, leaky_relu'(0) = 1, hard_tanh'(+-1) = 1.

    >>> from numdl import activations
    >>> float(activations.relu.mean_square(2.0)), float(activations.relu.slope_mean_square(2.0))  # q/2, 1/2
    (1.0, 0.5)
    >>> activations.named("leaky_relu(0.2)")
    Activation(leaky_relu(0.2))
"""

import contextlib
import dataclasses
import functools
import math
import re
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike

from numdl import _closed_forms, _jumps, checks, quadrature
from numdl._compiled import jit


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
        """f(x), elementwise."""
        return self.f(x)

    def __repr__(self):
        return f"Activation({self.name})"

    @functools.partial(jit, static_argnums=0)
    def mean(self, q):
        """E f(sqrt(q) z), z ~ N(0, 1), shaped like q."""
        return self._line(self.moments.mean, self.f, q)

    @functools.partial(jit, static_argnums=0)
    def mean_square(self, q):
        """E f(sqrt(q) z)^2, z ~ N(0, 1), shaped like q."""
        return self._line(self.moments.square, lambda x: self.f(x) ** 2, q)

    @functools.partial(jit, static_argnums=0)
    def slope_mean_square(self, q):
        """E f'(sqrt(q) z)^2, z ~ N(0, 1), shaped like q; infinite if f jumps: f' holds a delta function there."""
        regular = self._line(self.moments.slope_square, lambda x: self.slope(x) ** 2, q)
        if not self.jumps:
            return regular
        at_zero = any(jump.place == 0 for jump in self.jumps)
        return jnp.where((jnp.asarray(q) > 0) | at_zero, jnp.inf, regular)

    @functools.partial(jit, static_argnums=0)
    def mean_product(self, q1, q2, c):
        """E f(u) f(v) for Gaussians of variances q1, q2 and correlation c, on their common shape."""
        return self._plane(self.moments.product, self.f, q1, q2, c)

    @functools.partial(jit, static_argnums=0)
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
        root = _closed_forms.root(q1 * q2)
        regular = jnp.where(root > 0, change / jnp.where(root > 0, root, 1.0), jnp.nan)
        centred = all(jump.place == 0 for jump in self.jumps)
        equal = jnp.where(root > 0, centred | ((c == 1) & (q1 == q2)), False)
        return jnp.where(within, regular, jnp.where(equal, jnp.inf, jnp.nan))

    @functools.cached_property
    def jumps(self):
        """Where f itself jumps: a tuple of Jump(place, left, right).

        Empty where the moments of the slope have closed forms.
        """
        if self.moments.slope_square is not None and self.moments.slope_product is not None:
            return ()
        return _jumps.find(self.f, self.slope, self.kinks)

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


def named(name: str) -> Activation:
    """The activation of that name; `leaky_relu(0.2)` carries its slope.

    Parameters
    ----------
    name : str                  such as "tanh"
    Raises
    ------
    ValueError, TypeError       no such name: the message lists them
    """
    leaky = re.fullmatch(r"leaky_relu\(([-+.\de]+)\)", name) if isinstance(name, str) else None
    with contextlib.suppress(ValueError):  # digits that are no number: the list of names says what is allowed
        if leaky:
            return leaky_relu(float(leaky[1]))
    return _NAMED[checks.one_of("name", name, [*_NAMED, "leaky_relu(0.2)"])]


def names() -> tuple[str, ...]:
    """The names that `named` knows without a number: a tuple."""
    return tuple(_NAMED)


def custom(f: Callable, *, name: str, kinks: Sequence[float] = (), slope: Callable | None = None) -> Activation:
    """An activation from any elementwise function; without `slope`, jax differentiates f.

    Parameters
    ----------
    f : function                elementwise, traceable
    name : str                  what tables and plots call it
    kinks : tuple of float      where f or one of its derivatives jumps: the moments are inexact if one is missing
    slope : function            f', elementwise, traceable
    Raises
    ------
    TypeError, ValueError       f or slope is not a function, name is not a string, a kink is not a finite number
    """
    checks.accepts("f", f, 1, "f(x)")
    if not checks.instance("name", name, str):
        raise checks.BadValue(f"name must be a string of at least one letter; got {name!r}")
    kinks = tuple(sorted(checks.sequence("kinks", kinks)))
    if slope is None:
        return Activation(name, f, lambda x: jax.jvp(f, (x,), (jnp.ones_like(x),))[1], kinks)
    checks.accepts("slope", slope, 1, "slope(x)")
    return Activation(name, f, slope, kinks)


def leaky_relu(negative_slope: ArrayLike) -> Activation:
    """x for x >= 0, negative_slope * x below; one object for each slope.

    Parameters
    ----------
    negative_slope : scalar     of x < 0
    Raises
    ------
    TypeError, ValueError       negative_slope is not a finite number
    """
    return _leaky_relu(float(checks.finite("negative_slope", negative_slope, shape=())))


@functools.lru_cache(maxsize=256)
def _leaky_relu(a):
    return Activation(
        f"leaky_relu({a!r})",
        lambda x: jnp.where(x >= 0, x, a * x),
        lambda x: jnp.where(x >= 0, jnp.ones_like(x), jnp.full_like(x, a)),
        kinks=(0.0,),
        moments=_rectifier_moments(a),
    )


# ------------------------------------------------------------------------------------------------------ closed forms


def _rectifier_moments(a):
    """f = a x + (1 - a) relu(x), and E u relu(v) = cov(u, v) / 2. Source: Cho & Saul 2009."""
    half = (1 + a * a) / 2
    return Moments(
        mean=lambda q: (1 - a) * _closed_forms.root(q / (2 * math.pi)),
        square=lambda q: half * q,
        slope_square=lambda q: jnp.full_like(q, half),
        product=lambda q1, q2, c: (
            _closed_forms.root(q1) * _closed_forms.root(q2) * (a * c + (1 - a) ** 2 * _closed_forms.arc_cosine(c))
        ),
        slope_product=lambda q1, q2, c: a + (1 - a) ** 2 * _closed_forms.angle(c),
    )


_gelu = functools.partial(jax.nn.gelu, approximate=False)
_gelu_tanh = functools.partial(jax.nn.gelu, approximate=True)


identity = Activation(
    "identity",
    lambda x: x,
    jnp.ones_like,
    moments=Moments(
        mean=jnp.zeros_like,
        square=lambda q: q,
        slope_square=jnp.ones_like,
        product=_closed_forms.covariance,
        slope_product=lambda q1, q2, c: jnp.ones_like(c),
    ),
)
tanh = Activation("tanh", jnp.tanh, _closed_forms.sech_squared, moments=Moments(mean=jnp.zeros_like))
erf = Activation(
    "erf",
    jax.lax.erf,
    lambda x: 2 / math.sqrt(math.pi) * jnp.exp(-(x**2)),
    moments=Moments(
        mean=jnp.zeros_like,
        square=_closed_forms.at_one(_closed_forms.erf_product),
        slope_square=lambda q: 4 / math.pi / jnp.sqrt(1 + 4 * q),
        product=_closed_forms.erf_product,
        slope_product=lambda q1, q2, c: 4 / math.pi / _closed_forms.root_volume(2 * q1, 2 * q2, c),
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
elu = Activation("elu", jax.nn.elu, _closed_forms.elu_slope, kinks=(0.0,))
selu = Activation("selu", jax.nn.selu, _closed_forms.selu_slope, kinks=(0.0,))
gelu = Activation(
    "gelu",
    _gelu,
    lambda x: _closed_forms.normal_probability(x) + x * _closed_forms.normal_density(x),
    moments=Moments(
        mean=lambda q: q / jnp.sqrt(2 * math.pi * (1 + q)),
        square=_closed_forms.at_one(_closed_forms.gelu_product),
        slope_square=_closed_forms.at_one(_closed_forms.gelu_slope_product),
        product=_closed_forms.gelu_product,
        slope_product=_closed_forms.gelu_slope_product,
    ),
)
gelu_tanh = Activation("gelu_tanh", _gelu_tanh, _closed_forms.gelu_tanh_slope)
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
        product=_closed_forms.sin_product,
        slope_product=_closed_forms.cos_product,
    ),
)
_odd = Moments(mean=jnp.zeros_like)
hard_tanh = Activation("hard_tanh", jax.nn.hard_tanh, _closed_forms.hard_tanh_slope, kinks=(-1.0, 1.0), moments=_odd)

_NAMED = {
    a.name: a for a in (identity, tanh, erf, sigmoid, relu, elu, selu, gelu, gelu_tanh, silu, softplus, sin, hard_tanh)
}
