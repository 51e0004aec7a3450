"""MEASURED: the singular values of a network's Jacobian dy_stop / dy_start.

Exact for small networks (`singular_values`, `spectra`); matrix-free by forward and backward products for large ones
(`extremes`, `trace_moments`). All are at one example. Layers count from 1; start = 0 is the input, stop = L + 1 the
outputs. Products of random matrices are in `products`, and its functions can be had from here, too, as in the twin.

    >>> from numdl import activations
    >>> from numdl.networks import dense
    >>> physics = dict(activation=activations.relu, weight_variance=2.0, bias_variance=0.0)
    >>> network = dense.network(widths=(4, 20, 20, 20), **physics)
    >>> s = spectra(jax.random.key(0), network, jnp.ones((1, 4)), seeds=3, start=1, stop=2)
    >>> s.shape, isometry(s).score.shape  # [seeds, directions], [seeds]
    ((3, 20), (3,))
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Key, PyTree, Shaped

from numdl import _effort, _random, checks
from numdl._compiled import jit
from numdl.analysis.products import (
    LyapunovSamples,
    ProductNormSamples,
    lyapunov_exponents,
    lyapunov_exponents_along,
    product_norm,
)
from numdl.krylov import bidiagonal
from numdl.networks import _segments, core
from numdl.precision import widen
from numdl.records import record

__all__ = [
    "Extremes",
    "Isometry",
    "LyapunovSamples",
    "ProductNormSamples",
    "TraceMoments",
    "extremes",
    "isometry",
    "lyapunov_exponents",
    "lyapunov_exponents_along",
    "product_norm",
    "singular_values",
    "spectra",
    "trace_moments",
]


@record
class Extremes:
    """Largest and smallest singular value of a Jacobian, each with the residual that bounds its error."""

    largest: jax.Array  # []  never above the true one, but for rounding
    largest_residual: jax.Array  # []  a singular value lies within this distance of `largest`
    smallest: jax.Array  # []  nan unless the steps exhaust the smaller side
    smallest_residual: jax.Array  # []


@record
class TraceMoments:
    """Moments of the squared singular values, estimated with random vectors."""

    moments: jax.Array  # [order]  mean of s^(2k), k = 1..order, over the n singular directions of y_start
    stderr: jax.Array  # [order]  over the random vectors; one network's moments, not an ensemble's
    samples: jax.Array  # [draws, order]


@record
class Isometry:
    """How near a Jacobian is to a multiple of an isometry."""

    score: jax.Array  # [...]  (mean s^2)^2 / mean s^4 in (0, 1]: 1 where all singular values are equal
    gain: jax.Array  # [...]  mean s^2
    log_spread: jax.Array  # [...]  standard deviation of ln s over those that are not zero
    condition: jax.Array  # [...]  largest / smallest of those
    zeros: jax.Array  # [...]  share of singular values that count as zero


def singular_values(
    network: core.Network, params: PyTree, x: Shaped[ArrayLike, "1 ..."], *, start: int, stop: int
) -> Float[Array, "directions"]:
    """MEASURED singular values of dy_stop / dy_start at one example, descending; exact.

    The matrix is built: n_start or n_stop passes, whichever is less. Squares far below eps * s_max^2 are rounding.

    Parameters
    ----------
    network : Network           any
    params : pytree             of the network
    x : array [1, ...]          one example
    start, stop : int           layers, 0 <= start < stop <= L + 1
    Returns
    -------
    array [min of the two sizes]
    Raises
    ------
    ValueError, TypeError       several examples, start and stop out of range, not a Network
    Twin: theory.jacobian.squared_singular_values (mean and variance of their squares).    Experiment: b5.
    """
    return jnp.linalg.svd(widen(core.jacobian(network, params, x, start=start, stop=stop)), compute_uv=False)


def spectra(
    key: Key[Array, ""], network: core.Network, x: Shaped[ArrayLike, "1 ..."], *, seeds: int, start: int, stop: int
) -> Float[Array, "seeds directions"]:
    """MEASURED Jacobian spectrum: singular values of dy_stop / dy_start for independent networks, each descending.

    Parameters
    ----------
    key : key                   of the networks' parameters
    network : Network           any; its init is called once for each seed
    x : array [1, ...]          one example for all networks
    seeds : int                 number of networks, >= 1
    start, stop : int           layers, 0 <= start < stop <= L + 1
    Returns
    -------
    array [seeds, min of the two sizes]
    Raises
    ------
    ValueError, TypeError       seeds < 1, several examples, start and stop out of range, not a Network
    Twins: theory.jacobian.squared_singular_values, theory.jacobian.product_density.    Experiment: b5.
    """
    checks.key("key", key)
    network, seeds, x = core.traceable(network), checks.whole("seeds", seeds), core.one_example(x, start)
    shapes = jax.eval_shape(lambda key, x: network.states(network.init(key, x), x), key, x)
    return _spectra(network, x, key, seeds, *core.segment(shapes, start, stop))


def isometry(singular_values: Float[ArrayLike, "*batch n"], *, zero_below: ArrayLike | None = None) -> Isometry:
    """MEASURED dynamical isometry: how near a Jacobian is to a multiple of an isometry, from its singular values.

        score = (mean s^2)^2 / mean s^4 = 1 / (1 + relative variance of s^2)

    the share of directions that carry the signal: 1 for orthogonal maps, 1/2 for their product with one relu, 1/(1 + L)
    after L Gaussian layers. The condition number is among what is returned.

    Parameters
    ----------
    singular_values : array [..., n]    of any scale; the score of an all-zero matrix is nan
    zero_below : scalar         relative to the largest, >= 0; None: n * eps of the dtype
    Returns
    -------
    Isometry                    score, gain, log_spread, condition, zeros, each [...]
    Raises
    ------
    ValueError, TypeError       no array of floating-point numbers, a negative zero_below
    Source: Pennington et al. 2017, arXiv:1711.04735.
    Twin: theory.jacobian.squared_singular_values (its field isometry).    Experiment: b5.
    """
    s = checks.floating("singular_values", singular_values, least_ndim=1)
    limit = s.shape[-1] * float(jnp.finfo(s.dtype).eps) if zero_below is None else zero_below
    limit = checks.variance("zero_below", limit, shape=())
    return _isometry(jnp.asarray(s), jnp.asarray(limit, s.dtype))


def extremes(
    key: Key[Array, ""],
    network: core.Network,
    params: PyTree,
    x: Shaped[ArrayLike, "1 ..."],
    *,
    start: int,
    stop: int,
    num_matvecs: int,
) -> Extremes:
    """MEASURED largest singular value of dy_stop / dy_start at one example, without the matrix.

        J V = U B,   J' U = V B' + beta v e_k':    Golub-Kahan bidiagonalization, all vectors kept orthogonal
        residual = beta |last entry of B's left singular vector|

    k = num_matvecs products with J and with J' each; memory k vectors of both sizes. If k reaches the smaller size, the
    smallest singular value comes too: no fewer steps find it, as a random start says little about it.

    Parameters
    ----------
    key : key                   of the vector that the method starts from
    network, params : Network, pytree     any, and its parameters
    x : array [1, ...]          one example
    start, stop : int           layers, 0 <= start < stop <= L + 1
    num_matvecs : int           >= 1; more than the smaller size are not made
    Returns
    -------
    Extremes                    largest, smallest and their residuals, each []
    Raises
    ------
    ValueError, TypeError       several examples, start and stop out of range, num_matvecs < 1, not a Network
    Source: Golub & Kahan 1965, SIAM J. Numer. Anal. 2.    Twin: theory.jacobian.largest_squared.
    """
    checks.key("key", key)
    num_matvecs = checks.whole("num_matvecs", num_matvecs)
    network, params, x = core.fitting(network, params, core.one_example(x, start))
    start, stop = core.segment(jax.eval_shape(network.states, params, x), start, stop)
    sizes = _segments.sizes(network, params, x, start, stop)
    return _extremes(key, network, params, x, start, stop, min(num_matvecs, *sizes), num_matvecs >= min(sizes))


def trace_moments(
    key: Key[Array, ""],
    network: core.Network,
    params: PyTree,
    x: Shaped[ArrayLike, "1 ..."],
    *,
    start: int,
    stop: int,
    order: int,
    draws: int,
) -> TraceMoments:
    """MEASURED mean of s^2, s^4, ... s^(2 order) over the singular values of dy_stop / dy_start, without the matrix.

        moment[k] = E v' (J' J)^k v / n,    v of n random signs (Hutchinson),    n = size of y_start

    Directions that J maps to 0 count. Relative variance of s^2: moments[1] / moments[0]**2 - 1.

    Parameters
    ----------
    key : key                   of the random signs
    network, params : Network, pytree     any, and its parameters
    x : array [1, ...]          one example
    start, stop : int           layers, 0 <= start < stop <= L + 1
    order : int                 number of moments, >= 1
    draws : int                 random vectors, >= 2
    Returns
    -------
    TraceMoments                moments, stderr [order], samples [draws, order]
    Raises
    ------
    ValueError, TypeError       several examples, start and stop out of range, order < 1, draws < 2, not a Network
    Source: Hutchinson 1990, Commun. Stat. Simul. 19.    Twin: theory.jacobian.squared_singular_values.
    """
    checks.key("key", key)
    order, draws = checks.whole("order", order), checks.whole("draws", draws, least=2)
    network, params, x = core.fitting(network, params, core.one_example(x, start))
    start, stop = core.segment(jax.eval_shape(network.states, params, x), start, stop)
    samples = _trace_samples(key, network, params, x, start, stop, order, draws)
    stderr = jnp.std(samples, axis=0, ddof=1) / float(np.sqrt(draws))
    return TraceMoments(jnp.mean(samples, axis=0), stderr, samples)


# ---- the Jacobian as a linear map ----------------------------------------------------------------------------------


def _products(network, params, x, start, stop):
    """v -> J v, u -> J' u and the point where both were linearized, once; vectors in float32 at least."""
    reach, point = _segments.between(network, params, x, start, stop)
    image, forward = jax.linearize(reach, point)
    backward = jax.linear_transpose(forward, point)
    return (
        lambda v: widen(forward(v.astype(point.dtype))),
        lambda u: widen(backward(u.astype(image.dtype))[0]),
        widen(point),
    )


@_effort.jit
def _isometry(s, limit):
    s, limit = widen((s, limit))
    largest = jnp.max(s, axis=-1, keepdims=True)
    unit = s / jnp.where(largest > 0, largest, jnp.full_like(largest, jnp.nan))
    kept = unit > limit
    logs = jnp.where(kept, jnp.log(jnp.where(kept, unit, jnp.ones_like(unit))), jnp.zeros_like(unit))
    count = jnp.sum(kept, axis=-1, dtype=s.dtype)
    center = (jnp.sum(logs, axis=-1) / count)[..., None]
    gaps = jnp.where(kept, (logs - center) ** 2, jnp.zeros_like(logs))
    return Isometry(
        score=jnp.mean(unit**2, axis=-1) ** 2 / jnp.mean(unit**4, axis=-1),
        gain=jnp.mean(s**2, axis=-1),
        log_spread=jnp.sqrt(jnp.sum(gaps, axis=-1) / count),
        condition=jnp.exp(-jnp.min(logs, axis=-1)),
        zeros=1 - count / s.shape[-1],
    )


@functools.partial(jit, static_argnames=("seeds", "start", "stop"))
def _spectra(network, x, key, seeds, start, stop):
    def one(key):
        return singular_values(network, network.init(key, x), x, start=start, stop=stop)

    return lax.map(one, jax.random.split(key, seeds))


@functools.partial(jit, static_argnames=("start", "stop", "order", "draws"))
def _trace_samples(key, network, params, x, start, stop, order, draws):
    forward, backward, point = _products(network, params, x, start, stop)

    def one(key):
        v = _random.rademacher(key, point.shape, point.dtype)

        def power(v, number):  # |J w|^2 and |J' J w|^2 give two moments from two products
            u = forward(v)
            new = backward(u)
            return new, jnp.stack([jnp.sum(u**2), jnp.sum(new**2)])

        _, moments = lax.scan(power, v, None, length=-(-order // 2))
        return moments.ravel()[:order] / point.size

    return lax.map(one, jax.random.split(key, draws))


@functools.partial(jit, static_argnames=("start", "stop", "steps", "whole"))
def _extremes(key, network, params, x, start, stop, steps, whole):
    forward, backward, point = _products(network, params, x, start, stop)
    image = jax.eval_shape(forward, point)
    if image.size < point.size:  # J' has the same singular values; the smaller side is exhausted first
        forward, backward, point, image = backward, forward, image, point
    start_key, key = jax.random.split(key)
    first = _random.normal(start_key, point.shape, point.dtype)
    found = bidiagonal.decompose(forward, backward, first, num_matvecs=steps, key=key)
    left, values, _ = jnp.linalg.svd(widen(found.square[:, :-1]))
    residuals = jnp.abs(found.off_diagonal[-1] * left[-1])
    nan = jnp.full((), jnp.nan, values.dtype)
    ends = (values[-1], residuals[-1]) if whole else (nan, nan)
    return Extremes(values[0], residuals[0], *ends)
