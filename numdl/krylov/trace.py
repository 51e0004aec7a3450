"""Traces, diagonals, norms and densities of a symmetric matrix from products with random vectors, with standard errors.

hutchinson      any matrix; error falls as 1 / sqrt(products)
hutch_plus_plus the trace of a sketched range exactly, the rest at random; 1 / products where eigenvalues decay
xtrace          the same with every vector used for both; the smallest error for few products
quadrature      nodes and weights of the spectral density, by Lanczos from random starts

The estimates are traceable; called outside of `jit` they loop in Python over compiled products (`_vectors.products`).
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Key, PyTree

from numdl import _effort, _random, checks
from numdl._compiled import reading_once
from numdl.krylov import _places, _vectors
from numdl.krylov._gauss_rules import Quadrature, rule, weighted_sums
from numdl.precision import widen
from numdl.records import record
from numdl.typing import Matvec

__all__ = [
    "Quadrature",
    "TraceEstimate",
    "diagonal",
    "hutch_plus_plus",
    "hutchinson",
    "quadrature",
    "squared_norm",
    "weighted_sums",
    "xtrace",
]


@record
class TraceEstimate:
    """A mean over random vectors."""

    value: Any  # []: or like the operand, for a diagonal
    stderr: Any  # the same shape: standard deviation of the value
    samples: Any  # [draws]: what the mean is over, None for a diagonal; xtrace's are exchangeable, not independent
    matvecs: int


@reading_once
def hutchinson(
    key: Key[Array, ""], matvec: Matvec, like: PyTree, *, num_matvecs: int, law: str = "rademacher"
) -> TraceEstimate:
    """Trace estimation by Hutchinson's method: the mean of z' A z over random z with entries of variance 1.

        tr A = E z' A z;    variance of one sample = 2 (|A|_F^2 - sum_i A_ii^2) for signs, 2 |A|_F^2 for normal entries

    Parameters
    ----------
    key : key                   of the random vectors
    matvec : function           v -> A v on pytrees like `like`
    like : pytree               arrays, or shapes and dtypes
    num_matvecs : int           samples, >= 2
    law : str                   "rademacher" or "normal"
    Returns
    -------
    TraceEstimate
    Raises
    ------
    ValueError, TypeError       fewer than 2 samples, another law, a matvec that does not return what is like `like`
    Source: Hutchinson 1990, Commun. Stat. Simul. 19.
    """
    matvec, layout, draws = _opened(key, matvec, like, num_matvecs, 2)
    checks.one_of("law", law, _LAWS)
    samples = _each(lambda one: _quadratic(matvec, _LAWS[law](one, layout)), _random.split(key, draws), matvec)
    return _estimate(samples, draws)


@reading_once
def squared_norm(
    key: Key[Array, ""], matvec: Matvec, like: PyTree, *, num_matvecs: int, law: str = "rademacher"
) -> TraceEstimate:
    """Squared Frobenius norm of A, the sum of its squared eigenvalues.

        |A|_F^2 = E |A z|^2

    Parameters
    ----------
    key, matvec, like, num_matvecs, law : as for `hutchinson`
    Returns
    -------
    TraceEstimate
    Raises
    ------
    ValueError, TypeError       as for `hutchinson`
    Source: Hutchinson 1990, Commun. Stat. Simul. 19, for A' A.
    """
    matvec, layout, draws = _opened(key, matvec, like, num_matvecs, 2)
    checks.one_of("law", law, _LAWS)

    def sample(one):
        image = _vectors.apply(matvec, _LAWS[law](one, layout))
        return _dot(image, image)

    return _estimate(_each(sample, _random.split(key, draws), matvec), draws)


@reading_once
def diagonal(key: Key[Array, ""], matvec: Matvec, like: PyTree, *, num_matvecs: int) -> TraceEstimate:
    """Diagonal of A as the mean of z * A z over random signs z, with a standard error for each entry.

        diag A = E z * A z;    variance of one sample of entry i = sum over j != i of A_ij^2

    Parameters
    ----------
    key, matvec, like, num_matvecs : as for `hutchinson`
    Returns
    -------
    TraceEstimate                    value and stderr like `like`
    Raises
    ------
    ValueError, TypeError       as for `hutchinson`
    Source: Bekas, Kokiopoulou & Saad 2007, Appl. Numer. Math. 57.
    """
    matvec, layout, draws = _opened(key, matvec, like, num_matvecs, 2)

    def add(state, one):
        z = _signs(one, layout)
        return _welford(state, z * _vectors.apply(matvec, z))

    zeros = layout.zeros()
    state, keys = (jnp.zeros((), layout.dtype), zeros, zeros), _random.split(key, draws)
    if _vectors.traced((matvec, keys)):
        state, _ = lax.scan(lambda s, one: (add(s, one), None), state, keys)
    else:
        for index in range(draws):  # going through an array takes a program of as many results
            state = add(state, keys[index])
    _, mean, squares = state
    stderr = jnp.sqrt(squares / (draws * (draws - 1)))
    return TraceEstimate(layout.unravel(mean), layout.unravel(stderr), None, draws)


@reading_once
def hutch_plus_plus(key: Key[Array, ""], matvec: Matvec, like: PyTree, *, num_matvecs: int) -> TraceEstimate:
    """Trace of A by Hutch++: exactly on the range of A S, S a third of the vectors, and Hutchinson's mean beside it.

        tr A = tr Q' A Q + tr (I - Q Q') A (I - Q Q'),    Q = orthonormal basis of A S

    Parameters
    ----------
    key, matvec, like : as for `hutchinson`
    num_matvecs : int           >= 6, a third each for the range, for its trace and for what is left
    Returns
    -------
    TraceEstimate
    Raises
    ------
    ValueError, TypeError       fewer than 6 products; else as for `hutchinson`
    Source: Meyer, Musco, Musco & Woodruff 2021, arXiv:2010.09649.
    """
    matvec, layout, num_matvecs = _opened(key, matvec, like, num_matvecs, 6)
    third = min(num_matvecs // 3, layout.size)
    keys = _random.split(key, num_matvecs - third)  # the rest is for the last third: its standard error
    sketch = _vectors.products(matvec, _stacked(_signs, keys[:third], layout))
    basis = _range(sketch, layout.places)[0]
    exact = jnp.sum(basis * _vectors.products(matvec, basis))

    def sample(one):
        return exact + _quadratic(matvec, _vectors.beside(basis, _signs(one, layout))[1])

    return _estimate(_each(sample, keys[third:], matvec), num_matvecs)


@reading_once
def xtrace(key: Key[Array, ""], matvec: Matvec, like: PyTree, *, num_matvecs: int) -> TraceEstimate:
    """Trace of A, each random vector once for the sketched range and once for what is left beside the others' range.

        estimate_i = tr Q_i' A Q_i + scale_i u_i' A u_i,    u_i = (I - Q_i Q_i') z_i,   Q_i = basis of A z_j, j != i
        scale_i = (n - r + 1) / |u_i|^2,    r = num_matvecs / 2 vectors

    Parameters
    ----------
    key, matvec, like : as for `hutchinson`
    num_matvecs : int           even, >= 4, at most 2 n
    Returns
    -------
    TraceEstimate                    stderr is an estimate too: the estimates share most of their range
    Raises
    ------
    ValueError, TypeError       num_matvecs odd, below 4 or above 2 n; else as for `hutchinson`
    Source: Epperly, Tropp & Webber 2024, arXiv:2301.07825.
    """
    matvec, layout, num_matvecs = _opened(key, matvec, like, num_matvecs, 4)
    if num_matvecs % 2 or num_matvecs > 2 * layout.size:
        raise checks.BadValue(f"num_matvecs must be even and at most {2 * layout.size}; got {num_matvecs}")
    z = _stacked(_normal, _random.split(key, num_matvecs // 2), layout)
    basis, upper = _range(_vectors.products(matvec, z), layout.places)
    samples = _leave_one_out(z, basis, upper, _vectors.products(matvec, basis), layout.size)
    return _estimate(samples, num_matvecs)


@reading_once
def quadrature(
    key: Key[Array, ""],
    matvec: Matvec,
    like: PyTree,
    *,
    num_matvecs: int,
    num_probes: int,
    reorthogonalize: bool = False,
) -> Quadrature:
    """MEASURED nodes and weights of the density of states by stochastic Lanczos quadrature (SLQ): density by Lanczos.

        tr f(A) / n = mean over starts of sum_j weights[j] f(nodes[j]),   exact for polynomials of degree 2 m - 1
                      in v' f(A) v

    Without reorthogonalization eigenvalues come in copies that share one weight: sums over them are right all the same
    and cost half as much. For lists of eigenvalues use `lanczos.eigenpairs`. Not for use inside of `jit`.

    Parameters
    ----------
    key, matvec, like : as for `hutchinson`
    num_matvecs : int           steps m of each start, at most n of them
    num_probes : int            random starts, >= 1
    reorthogonalize : bool      each step against all before
    Returns
    -------
    Quadrature
    Raises
    ------
    ValueError, TypeError       counts below 1, called inside of jit; else as for `hutchinson`
    Source: Golub & Welsch 1969; Ubaru, Chen & Saad 2017, SIAM J. Matrix Anal. 38.    Experiment: e1.
    """
    matvec, layout, num_probes = _opened(key, matvec, like, num_probes, 1, "num_probes")
    steps = min(checks.whole("num_matvecs", num_matvecs), layout.size)
    reorthogonalize = checks.flag("reorthogonalize", reorthogonalize)
    if _vectors.traced((key, matvec)):
        raise checks.BadType(
            "key and matvec must be known outside of jit; got tracers: inside, use lanczos.tridiagonalize"
        )
    starts = (_unit(_normal(one, layout)) for one in _random.split(key, num_probes))
    rules = [rule(start, matvec, layout, steps, reorthogonalize) for start in starts]
    nodes, weights = (np.stack(part) for part in zip(*rules, strict=True))
    return Quadrature(nodes, weights, layout.size)


@functools.partial(_effort.jit, static_argnums=4)
def _leave_one_out(z, basis, upper, products, n):
    """The r estimates of xtrace from Q, R of the sketch (rows) and A Q."""
    inner = jnp.matmul(basis, products.T, precision="highest")  # Q' A Q
    along = jnp.matmul(basis, z.T, precision="highest")  # column i: Q' z_i
    lifted = widen(_lifted(upper))
    eye = jnp.eye(len(upper), dtype=lifted.dtype)
    apart = lax.linalg.triangular_solve(lifted, eye, left_side=True, lower=False, transpose_a=True)
    apart = apart / jnp.linalg.norm(apart, axis=0, keepdims=True)  # column i: the direction that only A z_i has
    within = along - apart * jnp.sum(apart * along, axis=0, keepdims=True)
    left = jnp.sum(z**2, axis=1) - jnp.sum(within**2, axis=0)
    quadratic = jnp.sum(along * upper - 2 * within * upper + within * (inner @ within), axis=0)
    r = z.shape[0]
    floor = jnp.finfo(left.dtype).eps * n
    scale = jnp.where(left > floor, (n - r + 1) / jnp.where(left > floor, left, jnp.ones_like(left)), 0.0)
    return jnp.trace(inner) - jnp.sum(apart * (inner @ apart), axis=0) + scale * quadratic


@functools.partial(_effort.jit, static_argnums=1)
def _range(sketch, places):
    """(orthonormal rows, R) of the sketch [r, n]."""
    if places is not None:
        return _places.triangular(sketch, places)
    basis, upper = jnp.linalg.qr(widen(sketch.T))
    return basis.T.astype(sketch.dtype), upper.astype(sketch.dtype)  # products are with vectors of their own dtype


def _lifted(upper):
    """R with a diagonal that is at least rounding: a matrix of low rank leaves zeros there, of no consequence."""
    pivots = jnp.diagonal(upper)
    most = jnp.max(jnp.abs(pivots))
    floor = jnp.where(most > 0, jnp.finfo(upper.dtype).eps * most, jnp.ones_like(most))
    return upper + jnp.diag(jnp.where(jnp.abs(pivots) < floor, floor, jnp.zeros_like(pivots)))


def _opened(key, matvec, like, count, least, name="num_matvecs"):
    checks.key("key", key)
    matvec, layout = _vectors.flat(matvec, like)
    return matvec, layout, checks.whole(name, count, least=least)


def _estimate(samples, matvecs):
    return TraceEstimate(*_mean(samples), samples, matvecs)


@_effort.jit
def _mean(samples):
    """(the mean, its standard error)."""
    return jnp.mean(samples), jnp.std(samples, ddof=1) / float(np.sqrt(samples.shape[0]))


def _each(sample, keys, matvec):
    """sample(key) for each key, stacked; in Python outside of jit."""
    if _vectors.traced((matvec, keys)):
        return lax.map(sample, keys)
    found = [sample(keys[i]) for i in range(len(keys))]
    return jnp.asarray(np.stack(jax.device_get(found)))  # a compiled stack of hundreds of numbers takes seconds


def _stacked(draw, keys, layout):
    return jax.vmap(lambda one: draw(one, layout))(keys)


def _quadratic(matvec, z):
    return _dot(z, _vectors.apply(matvec, z))


@_effort.jit
def _dot(a, b):
    return jnp.vdot(a, b, precision="highest")


@_effort.jit
def _welford(state, sample):
    """Count, mean and sum of squared deviations with one more sample: no cancellation."""
    count, mean, squares = state
    step = sample - mean
    mean = mean + step / (count + 1)
    return count + 1, mean, squares + step * (sample - mean)


@functools.partial(_effort.jit, static_argnums=1)
def _signs(key, layout):
    if layout.places is not None:
        return _places.signs(key, layout, lambda one: _signs(one, dataclasses.replace(layout, places=None)))
    return _random.rademacher(key, (layout.size,), np.int32).astype(layout.dtype)


@functools.partial(_effort.jit, static_argnums=1)
def _normal(key, layout):
    return _places.normal(key, layout)


_LAWS = {"rademacher": _signs, "normal": _normal}


@_effort.jit
def _unit(v):
    return v / jnp.linalg.norm(v)
