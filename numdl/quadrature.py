"""Gaussian expectations E f(u) and E f(u) g(v), right at kinks, at any variance and at any correlation.

Gauss-Hermite nodes know nothing of f: tanh(10 z) has poles close to the real axis and relu a corner on it, and both
cost percents. Here the nodes follow the function. A smooth f varies on the scale 1 / sqrt(variance) around zero; with

    z = 2 asinh(a/2 sinh(t)),   a = 1 / sqrt(max(variance, 1))

it varies on the scale 1 in t, the Gaussian is resolved far out as well, and the trapezoidal rule in t converges
exponentially. Where f has kinks, the line is cut there and each piece gets Gauss-Legendre nodes in the same map,
drawn from its own kink.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike

from numdl import _quadrature_rules as rules
from numdl import _tanh_sinh, checks
from numdl._compiled import jit
from numdl.precision import float64, wide, widen
from numdl.records import record

_ZONE = 8.5  # a kink seen through a Gaussian of deviation sigma is over at _ZONE * sigma
_GOOD = 1e-6  # relative error up to which an estimate counts as converged
_NAMED, _UNNAMED = 1e-10, 1.0  # relative error above which tanh-sinh is tried; it cannot find kinks that are not named
_TAIL = 1e-12  # what may lie beyond the reach, relative
_NODES = (144, 44, 66)  # trapezoid on the line; Gauss-Legendre on a piece: of two variables, of one
# Deviations from which on what f does near zero is not resolved, and counts nothing: more would be lost elsewhere.
_SHARPEST = {"line": 1e16, "plane": 1e9, "plane with kinks": 3e4}


@record
class Estimate:
    """An expectation with an honest bound: `error` is the largest change when the rule is made coarser."""

    value: jax.Array  # [...]: inf or nan where the expectation is infinite or does not exist, nan where f is
    error: jax.Array  # [...], absolute; inf where value is not finite
    converged: jax.Array  # [...]: error <= 1e-6 E|f|


def expectation(f: Callable, variance: ArrayLike | Sequence, *, kinks: Sequence[float] = ()) -> Estimate:
    """Gaussian expectation with an estimate of its absolute error, in float64.

        value = E f(sqrt(variance) z),    z ~ N(0, 1)

    Parameters
    ----------
    f : function                elementwise, traceable
    variance : array            any shape, >= 0
    kinks : tuple of float      where f or one of its derivatives jumps or is infinite; 0 need not be named for poles
    Returns
    -------
    Estimate(value, error, converged)   arrays shaped like variance. A large error says that f varies on a scale that
                                the rule does not see, or has a kink that was not named.
    Raises
    ------
    TypeError, ValueError       f is not a function; a variance is negative or not finite; a kink is not finite
    Source: the rules of this module: a trapezoid after a map; Gauss-Legendre between kinks; Takahasi & Mori 1974.
    """
    checks.accepts("f", f, 1, "f(x)")
    variance = _known_floats(variance=checks.variance("variance", variance))["variance"]
    kinks = checks.sequence("kinks", kinks)
    _check_elementwise("f", f)
    return _expectation(f, variance, kinks)


def product_expectation(
    f: Callable,
    g: Callable,
    variance_f: ArrayLike | Sequence,
    variance_g: ArrayLike | Sequence,
    correlation: ArrayLike | Sequence,
    *,
    kinks_f: Sequence[float] = (),
    kinks_g: Sequence[float] = (),
) -> Estimate:
    """E f(u) g(v) for centred Gaussians u, v, and an estimate of its absolute error, in float64.

        E u^2 = variance_f,   E v^2 = variance_g,   E u v = correlation * sqrt(variance_f * variance_g)

    Parameters
    ----------
    f, g : functions            elementwise, traceable; grow at most like a polynomial
    variance_f, variance_g, correlation : arrays that broadcast to one shape; correlation in [-1, 1]
    kinks_f, kinks_g : tuples   where f, g or one of their derivatives jumps
    Returns
    -------
    Estimate(value, error, converged)   arrays of the common shape
    Raises
    ------
    TypeError, ValueError       as for `expectation`; a correlation outside [-1, 1]
    Source: the rules of this module, one inside the other.
    """
    checks.accepts("f", f, 1, "f(x)")
    checks.accepts("g", g, 1, "g(x)")
    point = _known_floats(
        variance_f=checks.variance("variance_f", variance_f),
        variance_g=checks.variance("variance_g", variance_g),
        correlation=checks.finite("correlation", correlation, least=-1.0, most=1.0),
    )
    kinks_f, kinks_g = checks.sequence("kinks_f", kinks_f), checks.sequence("kinks_g", kinks_g)
    _check_elementwise("f", f)
    _check_elementwise("g", g)
    return _product_expectation(f, g, point, kinks_f, kinks_g)


def expect(f: Callable, variance: ArrayLike, *, kinks: Sequence[float] = ()) -> Array:
    """E f(sqrt(variance) z) shaped like `variance`: traceable, unchecked, in the precision of its input.

    Parameters
    ----------
    f : function                elementwise, traceable
    variance : array            any shape, >= 0
    kinks : tuple of float      where f or one of its derivatives jumps
    """
    return _line_value(f, variance, kinks, _NODES)


def expect_each(functions: Sequence[Callable], variance: ArrayLike, *, kinks: Sequence[float] = ()) -> Array:
    """E f(sqrt(variance) z) of several functions at the same nodes, [functions, *variance's shape]: traceable.

    Unchecked, in the precision of its input.

    Parameters
    ----------
    functions : tuple of functions      elementwise, traceable
    variance : array            any shape, >= 0
    kinks : tuple of float      where one of them or of their derivatives jumps
    """
    (variance,) = _floats(variance)
    return jnp.moveaxis(_line(_known(_Each(tuple(functions))), tuple(kinks), _NODES, variance), -1, 0)


def expect_product(
    f: Callable,
    g: Callable,
    variance_f: ArrayLike,
    variance_g: ArrayLike,
    correlation: ArrayLike,
    *,
    kinks_f: Sequence[float] = (),
    kinks_g: Sequence[float] = (),
) -> Array:
    """E f(u) g(v) on the common shape of the arguments: traceable, unchecked, in the precision of its input.

    Differentiable in the variances (> 0) and in the correlation inside (-1, 1).

    Parameters
    ----------
    f, g : functions            elementwise, traceable
    variance_f, variance_g, correlation : arrays that broadcast to one shape; correlation in [-1, 1]
    kinks_f, kinks_g : tuples   where f, g or one of their derivatives jumps
    """
    return _plane_value(f, g, variance_f, variance_g, correlation, kinks_f, kinks_g, _NODES)


# ---------------------------------------------------------------------------------------------- values and estimates


@float64
def _expectation(f, variance, kinks):
    found = _estimated(_known(f), variance, np.array([0.0, *kinks]), tuple(kinks))
    value, error, size, tail, at_kinks = map(np.array, found)
    doubtful = ~(error <= (_NAMED if kinks else _UNNAMED) * size) | ~(tail <= _TAIL * size)
    doubtful |= ~np.isfinite(at_kinks).all()
    for place in zip(*np.nonzero(np.atleast_1d(doubtful)), strict=True):
        place = place if variance.ndim else ()
        other = _tanh_sinh.expectation(f, float(np.sqrt(variance[place])), kinks)
        if other[1] == np.inf or not error[place] <= other[1]:
            value[place], error[place] = other
    return _judged(value, error, size)


@functools.partial(jit, static_argnums=(0, 3))
def _estimated(f, variance, places, kinks):
    """(value, error, size, what lies beyond the reach, f at these places), in one program."""
    value, error, size = _estimate(functools.partial(_line_value, variance=variance, kinks=kinks), f)
    tail = _tail(lambda z: jnp.abs(f(jnp.sqrt(variance) * z)))
    return value, error + tail, size, tail, f(places)


@float64
def _product_expectation(f, g, point, kinks_f, kinks_g):
    return _judged(*map(np.asarray, _estimated_product(_known(f), _known(g), point, tuple(kinks_f), tuple(kinks_g))))


@functools.partial(jit, static_argnums=(0, 1, 3, 4))
def _estimated_product(f, g, point, kinks_f, kinks_g):
    value, error, size = _estimate(functools.partial(_plane_value, **point, kinks_f=kinks_f, kinks_g=kinks_g), f, g)
    roots = jnp.sqrt(point["variance_f"]), jnp.sqrt(point["variance_g"])
    tails = (_tail(lambda z, s=s: jnp.abs(f(roots[0] * z) * g(roots[1] * s * z))) for s in (-1, 1))
    return value, error + functools.reduce(jnp.maximum, tails), size


def _estimate(value, *functions):
    """Two coarser rules: one alone agrees by accident now and then when both are far off. Rounding is added."""
    coarse, middle, best = (value(*functions, nodes=tuple(int(m * n) for n in _NODES)) for m in (1, 1.23, 1.5))
    size = value(*map(_Absolute, functions), nodes=_NODES)
    change = jnp.maximum(jnp.abs(best - coarse), jnp.abs(best - middle))
    return best, change + 4 * jnp.finfo(best.dtype).eps * size, size


def _tail(size):
    """A bound on what lies beyond the reach, from how the integrand falls just before it."""
    last, before = (jnp.maximum(size(z), size(-z)) * rules.density(z) for z in (rules.REACH, rules.REACH - 0.5))
    decay = jnp.log(before / last)
    return jnp.where(last == 0, 0.0, jnp.where(decay > 0, last / jnp.where(decay > 0, decay, 1.0), jnp.inf))


def _judged(value, error, size):
    """The estimate with its flag: nothing that is not finite has an error that is."""
    error = np.where(np.isfinite(value) & ~np.isnan(error), error, np.inf)
    size = np.where(np.isfinite(size), size, np.abs(value))  # a pole on a node
    return Estimate(value, error, np.isfinite(error) & (error <= _GOOD * np.maximum(size, np.abs(value))))


@dataclasses.dataclass(frozen=True)
class _Absolute:
    """|f|, equal for equal f, so that `jit` knows it again."""

    f: Callable

    def __call__(self, x):
        return jnp.abs(self.f(x))


@dataclasses.dataclass(frozen=True)
class _Each:
    """The values of several functions, one row each."""

    functions: tuple

    def __call__(self, x):
        return jnp.stack([f(x) for f in self.functions])


def _line_value(f, variance, kinks, nodes):
    (variance,) = _floats(variance)
    return _line(_known(f), tuple(kinks), nodes, variance)


def _plane_value(f, g, variance_f, variance_g, correlation, kinks_f, kinks_g, nodes):
    if kinks_g and not kinks_f:  # the kinked factor goes outside: the inner integral of the smooth one is smooth
        f, g, variance_f, variance_g, kinks_f, kinks_g = g, f, variance_g, variance_f, kinks_g, kinks_f
    arguments = jnp.broadcast_arrays(*_floats(variance_f, variance_g, correlation))
    return _plane(_known(f), _known(g), tuple(kinks_f), tuple(kinks_g), nodes, *arguments)


def _known(f):
    """f as a static argument: by identity or by its own hash."""
    try:
        hash(f)
    except TypeError:
        return lambda x: f(x)
    return f


@functools.partial(jit, static_argnums=(0, 1, 2))
def _line(f, kinks, nodes, variance):
    at = functools.partial(_line_point, f, kinks, nodes)
    found = jax.vmap(at)(widen(variance).ravel())
    return _in_dtype(found.reshape(*variance.shape, *found.shape[1:]), variance.dtype)


@functools.partial(jit, static_argnums=(0, 1, 2, 3, 4))
def _plane(f, g, kinks_f, kinks_g, nodes, *arguments):
    at = functools.partial(_plane_point, f, g, kinks_f, kinks_g, nodes)
    shape, dtype = arguments[0].shape, arguments[0].dtype
    arguments = [widen(a).ravel() for a in arguments]
    if arguments[0].size == 1:
        return _in_dtype(at(*(a.reshape(()) for a in arguments)).reshape(shape), dtype)
    return _in_dtype(jax.lax.map(lambda point: at(*point), tuple(arguments)).reshape(shape), dtype)


def _in_dtype(found, dtype):
    """Nodes of half precision would be too few and too far out; what it asked for comes back in it."""
    return found if wide(dtype) == dtype else found.astype(dtype)


def _line_point(f, kinks, nodes, variance):
    root = rules.root_of(variance)
    scale = 1 / jnp.clip(root, 1, _SHARPEST["line"])
    # Twice the nodes: they cost little on one line, and a thousandfold deviation asks for a fifth more.
    z, weights = rules.rule(kinks, np.zeros((), root.dtype), root, scale, 2 * nodes[0], 2 * nodes[2])
    values = f(root * z)  # of several functions: one row each
    weights, density = (jnp.broadcast_to(each, values.shape) for each in (weights, rules.density(z)))
    return jnp.sum(values * weights * density, axis=-1)


def _plane_point(f, g, kinks_f, kinks_g, nodes, variance_f, variance_g, correlation):
    """Outer z with u = root_f z, inner y with v = root_g (c z + s y)."""
    root_f, root_g = rules.root_of(variance_f), rules.root_of(variance_g)
    s = rules.root_of((1 - correlation) * (1 + correlation))
    sharpest = _SHARPEST["plane with kinks" if kinks_f or kinks_g else "plane"]
    z, outer = _outer_rule(kinks_f, kinks_g, nodes, root_f, root_g, correlation, s, sharpest)

    def inner(z):
        shift = -correlation * z / jnp.maximum(s, jnp.finfo(s.dtype).tiny ** 0.5)
        y, weights = rules.rule(kinks_g, shift, root_g * s, 1 / jnp.clip(root_g * s, 1, sharpest), *nodes[:2])
        return jnp.sum(g(root_g * (correlation * z + s * y)) * weights * rules.density(y))

    return jnp.sum(f(root_f * z) * jax.vmap(inner)(z) * outer * rules.density(z))


def _outer_rule(kinks_f, kinks_g, nodes, root_f, root_g, correlation, s, sharpest):
    """Nodes for f(root_f z) E[g | z]: cut at f's kinks and, where g has some, at their blurred images."""
    scale = 1 / jnp.clip(jnp.maximum(root_f, root_g), 1, sharpest)
    zero = np.zeros((), root_f.dtype)
    if not kinks_g:
        return rules.rule(kinks_f, zero, root_f, scale, nodes[0], nodes[2])
    size = jnp.maximum(jnp.abs(correlation), 1e-6)  # below, the images lie outside the domain or are blurred away
    slope = jnp.where(correlation < 0, -size, size)
    own = tuple(kink for kink in kinks_f if kink)  # zero comes with g's
    places = jnp.concatenate(
        [rules.places_of(own, zero, root_f), rules.places_of({0.0, *kinks_g}, zero, root_g * slope)]
    )
    return rules.pieces(places, scale, _ZONE * s / size, nodes[1])


def _floats(*values):
    dtype = jnp.result_type(0.0, *values)
    return tuple(jnp.asarray(value, dtype) for value in values)


def _known_floats(**values):
    return {name: np.asarray(checks.concrete(name, value), np.float64) for name, value in values.items()}


def _check_elementwise(name, f):
    shape = jax.eval_shape(f, jax.ShapeDtypeStruct((3,), jnp.result_type(float)))
    if getattr(shape, "shape", None) != (3,) or not jnp.issubdtype(shape.dtype, jnp.floating):
        raise checks.BadValue(f"{name} must be elementwise, real numbers to as many; got {shape} for 3 numbers")
