"""MEASURED: products of random matrices, K_L ... K_1: norms of a vector on its way, Lyapunov exponents.

Layer by layer and in logarithms, so that any depth and any scale fit. Twin: theory.jacobian.

    >>> sampler = lambda key, shape, dtype: 0.5 * jnp.eye(*shape, dtype=dtype)
    >>> found = product_norm(jax.random.key(0), width=3, depth=1000, sampler=sampler, draws=2)
    >>> print(f"{found.log_ratio[0, -1] / 1000:.3f}")  # ln 0.5**2; 0.25**1000 itself is 0
    -1.386
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, Key, PyTree

from numdl import _effort, _random, checks, precision
from numdl._compiled import jit
from numdl.analysis import _samples
from numdl.records import record

Sampler = Any  # (key, (width, width), dtype) -> W, or an Initializer, whose field `sample` is such a function


@record
class ProductNormSamples:
    """Natural logarithms of squared norms along products of random matrices."""

    log_input: jax.Array  # [draws]: log |y|^2
    log_norm: jax.Array  # [draws, depth]: log |K_l ... K_1 y|^2, l = 1..depth

    @property
    def log_ratio(self):
        """log |K_l ... K_1 y|^2 / |y|^2, [draws, depth]."""
        return self.log_norm - self.log_input[..., None]


@record
class LyapunovSamples:
    """Lyapunov exponents of one product of matrices."""

    exponents: jax.Array  # [n]  (1/L) ln R_ii summed over layers, of lengths; in the order of the QR, about descending
    stderr: jax.Array  # [n]  spread over layers / sqrt(L): right if layers are independent
    log_growth: jax.Array  # [L, n]  ln |R_ii| of each layer


def product_norm(
    key: Key[Array, ""],
    *,
    width: int,
    depth: int,
    sampler: Sampler,
    draws: int,
    at_a_time: int | None = None,
    y: Float[ArrayLike, "width"] | None = None,
    dtype: DTypeLike | None = None,
) -> ProductNormSamples:
    """MEASURED product law of a random matrix product: log |K_l ... K_1 y|^2, l = 1..depth, over independent draws.

        z_l = K_l z_{l-1} / |z_{l-1}|,   log_norm[l] = log |y|^2 + sum_{k <= l} log |z_k|^2

    The vector is normalized after every layer and the logarithms are summed with compensation, so that no depth or
    scale overflows; a product that is exactly 0 has log -inf. K_l = W_l', where W_l (fan_in, fan_out) is a sample.
    Of a Gaussian or orthogonal Initializer K_l z is drawn, in law, without K_l, which nothing else sees; its field
    `sample` draws the matrices.

    Parameters
    ----------
    key : key                   of the matrices, and of y where it is None
    width, depth, draws : int   n, L and the number of products, each >= 1
    sampler : function          (key, (width, width), dtype) -> W: an Initializer, or any function
    at_a_time : int             draws at a time; None: 1 on a CPU, as many as fit in 1/4 GiB elsewhere
    y : array [width]           fixed input, not 0; a new N(0, I) for each draw if None
    dtype : dtype               of the computation; y's, or jax's default float
    Returns
    -------
    ProductNormSamples          log_input [draws], log_norm [draws, depth]
    Raises
    ------
    ValueError, TypeError       a size below 1, y of another shape, a sampler that is not a function
    Source: elementary.    Twin: theory.jacobian.product_norm (its log moments, for Gaussian entries: about log-normal).
    Experiment: a1.
    """
    checks.key("key", key)
    width, depth, draws = checks.whole("width", width), checks.whole("depth", depth), checks.whole("draws", draws)
    if y is not None:
        y = checks.shape("y", checks.floating("y", y), (width,))
    dtype = _real_dtype(dtype if dtype is not None else y.dtype if y is not None else jnp.result_type(float))
    at_a_time = _strategy(width, draws) if at_a_time is None else checks.whole("at_a_time", at_a_time)
    # An Initializer's sampler carries its variance as data: another variance is not compiled again.
    step = Partial(_multiplied, _sampler(sampler), getattr(sampler, "applied", None))
    y = None if y is None else jnp.asarray(y, dtype)
    rest = step, y, width, depth, min(at_a_time, draws), dtype
    _sample.eval_shape(_keys.eval_shape(key, draws), *rest)  # a sampler is refused before a key is split
    return ProductNormSamples(*_sample(_keys(key, draws), *rest))


def lyapunov_exponents(
    key: Key[Array, ""], *, width: int, depth: int, sampler: Sampler, dtype: DTypeLike | None = None
) -> LyapunovSamples:
    """MEASURED Lyapunov exponents of K_L ... K_1 with independent matrices; any depth, no overflow.

        K_l Q_{l-1} = Q_l R_l,    exponents[i] = (1/L) sum_l ln |R_l[i, i]|

    Parameters
    ----------
    key : key                   of the matrices
    width, depth : int          n and L, each >= 1
    sampler : function          (key, (width, width), dtype) -> W, K = W': an Initializer, or any function
    dtype : dtype               of the computation; jax's default float if None
    Returns
    -------
    LyapunovSamples             exponents, stderr [n], log_growth [L, n]; per layer, natural logarithms
    Raises
    ------
    ValueError, TypeError       a size below 1, a sampler that is not a function or returns another shape
    Source: Benettin et al. 1980, Meccanica 15.    Twin: theory.jacobian.lyapunov_exponents.    Experiment: a1.
    """
    checks.key("key", key)
    width, depth = checks.whole("width", width), checks.whole("depth", depth)
    dtype = _real_dtype(jnp.result_type(float) if dtype is None else dtype)
    sampler = _sampler(sampler)
    return _lyapunov_of_samples(key, sampler, width, depth, dtype)


def lyapunov_exponents_along(
    step: Callable[[PyTree, Array], Array], layers: PyTree, y: Float[ArrayLike, "n"]
) -> LyapunovSamples:
    """MEASURED Lyapunov exponents along y <- step(layer, y): a stack of equal layers, a recurrent net, an ODE's steps.

        J_l Q_{l-1} = Q_l R_l,    exponents[i] = (1/L) sum_l ln |R_l[i, i]|,   J_l the step's Jacobian on the way

    Parameters
    ----------
    step : function             (one layer's parameters, y [n]) -> y [n]
    layers : pytree             parameters stacked along axis 0, or an array of inputs in time: L = its length
    y : array [n]               the start
    Returns
    -------
    LyapunovSamples             exponents, stderr [n], log_growth [L, n]; per layer, natural logarithms
    Raises
    ------
    ValueError, TypeError       y with several axes, leaves of other lengths, a step that does not return what is like y
    Source: Benettin et al. 1980, Meccanica 15.    Twin: theory.jacobian.lyapunov_exponents.    Experiment: a1.
    """
    step = checks.returning("step", step, 2, "step(layer, y)")
    y, layers = checks.floating("y", y, ndim=1), checks.leaves("layers", layers, examples=True)
    # What the step returns may be wider than the start, which then is carried in that dtype.
    found = jax.eval_shape(step, jax.tree.map(lambda leaf: leaf[0], layers), y)
    wider = jnp.result_type(y.dtype, getattr(found, "dtype", y.dtype))
    if not jnp.issubdtype(wider, jnp.floating):
        raise checks.BadType(f"step must return real numbers like y, as step(layer, y); got dtype {wider}")
    return _lyapunov_along(step, layers, y.astype(wider))


def _real_dtype(dtype):
    found = checks.dtype("dtype", dtype)
    if not jnp.issubdtype(found, jnp.floating):
        raise checks.BadType(f"dtype must be a real floating-point dtype; got {found}")
    return found


def _sampler(sampler):
    sampler = getattr(sampler, "sample", sampler)
    return checks.returning("sampler", sampler, 3, "sampler(key, (width, width), dtype)")


def _drawn(sampler, key, width, dtype):
    """One matrix of the sampler; looked at under the trace, so that a sampler is traced once."""
    matrix = sampler(key, (width, width), dtype)
    if np.shape(matrix) != (width, width):
        raise checks.BadValue(f"sampler must return a matrix of shape {(width, width)}; got shape {np.shape(matrix)}")
    return jnp.asarray(matrix, dtype)


def _multiplied(sampler, applied, key, z):
    """z W for a new W."""
    if applied is not None:
        return applied(key, z, z.size)
    return jnp.matmul(z, _drawn(sampler, key, z.size, z.dtype), precision=lax.Precision.HIGHEST)


def _strategy(width, draws):
    return 1 if jax.default_backend() == "cpu" else max(1, min(draws, 2**26 // width**2))


@functools.partial(_effort.jit, static_argnames="draws")
def _keys(key, draws):
    """[draws, 2]: of the input and of the layers. A program for all laws: every generator costs compilation."""
    return jax.vmap(jax.random.split)(jax.random.split(key, draws))


@functools.partial(jit, static_argnames=("width", "depth", "at_a_time", "dtype"))
def _sample(keys, step, y, width, depth, at_a_time, dtype):
    def one(keys):
        input_key, layers_key = keys
        start = _random.normal(input_key, (width,), dtype) if y is None else y
        return _chain(step, start, jax.random.split(layers_key, depth))

    return _samples.each(one, keys, at_a_time)


def _chain(step, y, keys):
    z, log_input = _normalized(y)

    def layer(carry, key):
        z, total, lost = carry
        z, growth = _normalized(step(key, z))
        total, lost = _compensated(total, lost, growth)
        return (z, total, lost), total

    _, log_norm = lax.scan(layer, (z, log_input, jnp.zeros_like(log_input)), keys)
    return log_input, log_norm


def _normalized(y):
    """y / |y| and log |y|^2, in float32 at least; the largest entry is taken out before squaring. 0 stays 0."""
    wide = y.astype(precision.wide(y.dtype))
    largest = jnp.max(jnp.abs(wide))
    scale = jnp.where(largest > 0, largest, jnp.ones_like(largest))
    scaled = wide / scale
    square = jnp.sum(scaled**2)
    length = jnp.sqrt(jnp.where(square > 0, square, jnp.ones_like(square)))
    return (scaled / length).astype(y.dtype), jnp.log(square) + 2 * jnp.log(scale)


def _compensated(total, lost, term):
    """Kahan's sum: what the last addition lost goes into the next."""
    term = term - lost
    new = total + term
    lost = (new - total) - term
    return new, jnp.where(jnp.isfinite(lost), lost, jnp.zeros_like(lost))


@functools.partial(jit, static_argnames=("width", "depth", "dtype"))
def _lyapunov_of_samples(key, sampler, width, depth, dtype):
    def layer(q, key):
        return _reduced(_drawn(sampler, key, width, dtype).T @ q)

    return _exponents(lax.scan(layer, jnp.eye(width, dtype=precision.wide(dtype)), jax.random.split(key, depth))[1])


@jit
def _lyapunov_along(step, layers, y):
    def layer(carry, given):
        y, q = carry
        new, push = jax.linearize(functools.partial(step, given), y)
        if np.shape(new) != y.shape:
            raise checks.BadValue(f"step must return an array like y, of shape {y.shape}; got shape {np.shape(new)}")
        q, logs = _reduced(jax.vmap(lambda v: precision.widen(push(v.astype(y.dtype))), 1, 1)(q))
        return (new, q), logs

    return _exponents(lax.scan(layer, (y, jnp.eye(y.size, dtype=precision.wide(y.dtype))), layers)[1])


def _reduced(matrix):
    """Q and ln |R_ii|; the matrix is divided by its largest entry first."""
    largest = jnp.max(jnp.abs(matrix))
    scale = jnp.where(largest > 0, largest, jnp.ones_like(largest))
    q, r = jnp.linalg.qr(matrix / scale)
    return q, jnp.log(jnp.abs(jnp.diagonal(r))) + jnp.log(scale)


def _exponents(logs):
    """Mean over layers, about the first layer's so that float32 keeps its digits at any depth."""
    depth = logs.shape[0]
    base = jnp.where(jnp.isfinite(logs[:1]), logs[:1], jnp.zeros_like(logs[:1]))
    mean = jnp.mean(logs - base, axis=0) + base[0]
    if depth == 1:
        return LyapunovSamples(mean, jnp.full_like(mean, jnp.nan), logs)
    return LyapunovSamples(mean, jnp.std(logs, axis=0, ddof=1) / float(np.sqrt(depth)), logs)
