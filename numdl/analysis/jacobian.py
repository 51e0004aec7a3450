"""MEASURED: products of random matrices, and the singular values of a network's Jacobian dy_stop / dy_start.

Exact for small networks (`singular_values`, `spectra`); matrix-free by forward and backward products for large ones
(`extremes`, `trace_moments`); along deep products by QR, layer by layer and in logarithms (`lyapunov_exponents`). All
singular values are at one example. Layers count from 1; start = 0 is the input, stop = L + 1 the outputs.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from numdl import checks
from numdl.networks import _segments, core
from numdl.records import record

_NOISE = 32  # multiples of eps below which what is left after orthogonalization is rounding


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
class LyapunovSamples:
    """Lyapunov exponents of one product of matrices."""

    exponents: jax.Array  # [n]  (1/L) ln R_ii summed over layers, of lengths; in the order of the QR, about descending
    stderr: jax.Array  # [n]  spread over layers / sqrt(L): right if layers are independent
    log_growth: jax.Array  # [L, n]  ln |R_ii| of each layer


@record
class Isometry:
    """How near a Jacobian is to a multiple of an isometry."""

    score: jax.Array  # [...]  (mean s^2)^2 / mean s^4 in (0, 1]: 1 where all singular values are equal
    gain: jax.Array  # [...]  mean s^2
    log_spread: jax.Array  # [...]  standard deviation of ln s over those that are not zero
    condition: jax.Array  # [...]  largest / smallest of those
    zeros: jax.Array  # [...]  share of singular values that count as zero


def singular_values(network, params, x, *, start, stop) -> Float[Array, "directions"]:
    """MEASURED singular values of dy_stop / dy_start at one example, descending, [min of the two sizes]; exact.

    The matrix is built: n_start or n_stop passes, whichever is less. Squares far below eps * s_max^2 are rounding.

    Parameters
    ----------
    x : array [1, ...]          one example
    start, stop : int           0 <= start < stop <= L + 1
    Twin: theory.jacobian.singular_values (mean and variance of the squares)
    """
    return jnp.linalg.svd(core.jacobian(network, params, x, start=start, stop=stop), compute_uv=False)


def spectra(key, network, x, *, seeds, start, stop) -> Float[Array, "seeds directions"]:
    """MEASURED singular values of dy_stop / dy_start for independent networks, [seeds, min of the two sizes]."""
    checks.key("key", key)
    network, seeds, x = core.traceable(network), checks.whole("seeds", seeds), core.one_example(x, start)
    shapes = jax.eval_shape(lambda key, x: network.states(network.init(key, x), x), key, x)
    return _spectra(network, x, key, seeds, *core.segment(shapes, start, stop))


def isometry(singular_values, *, zero_below=None):
    """How near a Jacobian is to a multiple of an isometry, from its singular values.

        score = (mean s^2)^2 / mean s^4 = 1 / (1 + relative variance of s^2)

    the share of directions that carry the signal: 1 for orthogonal maps, 1/2 for their product with one relu, 1/(1 + L)
    after L Gaussian layers.

    Parameters
    ----------
    singular_values : array [..., n]    of any scale; the score of an all-zero matrix is nan
    zero_below : scalar         relative to the largest; None: n * eps of the dtype
    Twin: theory.jacobian.SquaredSingularValues.isometry
    """
    s = checks.floating("singular_values", singular_values, least_ndim=1)
    limit = s.shape[-1] * float(jnp.finfo(s.dtype).eps) if zero_below is None else zero_below
    limit = checks.variance("zero_below", limit, shape=())
    return _isometry(jnp.asarray(s), jnp.asarray(limit, s.dtype))


def extremes(key, network, params, x, *, start, stop, num_matvecs):
    """MEASURED largest singular value of dy_stop / dy_start at one example, without the matrix.

        J V = U B,   J' U = V B' + beta v e_k':    Golub-Kahan bidiagonalization, all vectors kept orthogonal
        residual = beta |last entry of B's left singular vector|

    k = num_matvecs products with J and with J' each; memory k vectors of both sizes. If k reaches the smaller size, the
    smallest singular value comes too: no fewer steps find it, as a random start says little about it.

    Parameters
    ----------
    x : array [1, ...]          one example
    num_matvecs : int           >= 1; more than the smaller size are not made
    Raises
    ------
    ValueError                  several examples, start and stop out of range, num_matvecs < 1
    Source: Golub & Kahan 1965, SIAM J. Numer. Anal. 2.    Twin: theory.jacobian.largest_squared
    """
    checks.key("key", key)
    num_matvecs = checks.whole("num_matvecs", num_matvecs)
    network, params, x = core.fitting(network, params, core.one_example(x, start))
    start, stop = core.segment(jax.eval_shape(network.states, params, x), start, stop)
    sizes = _segments.sizes(network, params, x, start, stop)
    return _extremes(key, network, params, x, start, stop, min(num_matvecs, *sizes), num_matvecs >= min(sizes))


def trace_moments(key, network, params, x, *, start, stop, order, draws):
    """MEASURED mean of s^2, s^4, ... s^(2 order) over the singular values of dy_stop / dy_start, without the matrix.

        moment[k] = E v' (J' J)^k v / n,    v of n random signs (Hutchinson),    n = size of y_start

    Directions that J maps to 0 count. Relative variance of s^2: moments[1] / moments[0]**2 - 1.

    Parameters
    ----------
    x : array [1, ...]          one example
    order : int                 number of moments
    draws : int                 random vectors, >= 2
    Source: Hutchinson 1990, Commun. Stat. Simul. 19.    Twin: theory.jacobian.singular_values
    """
    checks.key("key", key)
    order, draws = checks.whole("order", order), checks.whole("draws", draws, least=2)
    network, params, x = core.fitting(network, params, core.one_example(x, start))
    start, stop = core.segment(jax.eval_shape(network.states, params, x), start, stop)
    samples = _trace_samples(key, network, params, x, start, stop, order, draws)
    stderr = jnp.std(samples, axis=0, ddof=1) / float(np.sqrt(draws))
    return TraceMoments(jnp.mean(samples, axis=0), stderr, samples)


def lyapunov_exponents(key, *, width, depth, sampler, dtype=None):
    """MEASURED Lyapunov exponents of K_L ... K_1 with independent matrices, [width]; any depth, no overflow.

        K_l Q_{l-1} = Q_l R_l,    exponents[i] = (1/L) sum_l ln |R_l[i, i]|

    Parameters
    ----------
    width, depth : int          n and L
    sampler : function          (key, (width, width), dtype) -> W, K = W': an Initializer, or any function
    dtype : dtype               of the computation; jax's default float if None
    Source: Benettin et al. 1980, Meccanica 15.    Twin: theory.jacobian.lyapunov_exponents
    """
    checks.key("key", key)
    width, depth = checks.whole("width", width), checks.whole("depth", depth)
    dtype = _real_dtype(jnp.result_type(float) if dtype is None else dtype)
    sampler = _sampler(sampler)
    return _lyapunov_of_samples(key, sampler, width, depth, dtype)


def lyapunov_exponents_along(step, layers, y):
    """MEASURED Lyapunov exponents along y <- step(layer, y): a stack of equal layers, a recurrent net, an ODE's steps.

    Parameters
    ----------
    step : function             (one layer's parameters, y [n]) -> y [n]
    layers : pytree             parameters stacked along axis 0, or an array of inputs in time: L = its length
    y : array [n]               the start
    Returns
    -------
    LyapunovSamples(exponents [n], stderr [n], log_growth [L, n])
    """
    step = checks.returning("step", step, 2, "step(layer, y)")
    y, layers = checks.floating("y", y, ndim=1), checks.leaves("layers", layers, examples=True)
    return _lyapunov_along(step, layers, y)


def product_norm(key, *, width, depth, sampler, draws, batch_size=None, y=None, dtype=None):
    """MEASURED log |K_l ... K_1 y|^2 for l = 1..depth, over independent draws of the matrices.

        z_l = K_l z_{l-1} / |z_{l-1}|,   log_norm[l] = log |y|^2 + sum_{k <= l} log |z_k|^2

    The vector is normalized after every layer and the logarithms are summed with compensation, so that no depth or
    scale overflows; a product that is exactly 0 has log -inf. K_l = W_l', where W_l (fan_in, fan_out) is a sample.

    Parameters
    ----------
    width, depth, draws : int
    sampler : function          (key, (width, width), dtype) -> W: an Initializer, or any function
    batch_size : int            draws at a time; None: 1 on a CPU, as many as fit in 1/4 GiB elsewhere
    y : array [width]           fixed input, not 0; a new N(0, I) for each draw if None
    dtype : dtype               of the computation; y's, or jax's default float
    Raises
    ------
    ValueError, TypeError       a size below 1, y of another shape, a sampler that is no function
    Twin: theory.jacobian.product_norm (its log moments, for Gaussian entries)
    """
    checks.key("key", key)
    width, depth, draws = checks.whole("width", width), checks.whole("depth", depth), checks.whole("draws", draws)
    if y is not None:
        y = checks.shape("y", checks.floating("y", y), (width,))
    dtype = _real_dtype(dtype if dtype is not None else y.dtype if y is not None else jnp.result_type(float))
    batch_size = _strategy(width, draws) if batch_size is None else checks.whole("batch_size", batch_size)
    # An Initializer's sampler carries its variance as data: another variance is not compiled again.
    sampler = _sampler(sampler)
    y = None if y is None else jnp.asarray(y, dtype)
    return ProductNormSamples(*_sample(key, sampler, y, width, depth, draws, min(batch_size, draws), dtype))


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


def _strategy(width, draws):
    return 1 if jax.default_backend() == "cpu" else max(1, min(draws, 2**26 // width**2))


@functools.partial(jax.jit, static_argnames=("width", "depth", "draws", "batch_size", "dtype"))
def _sample(key, sampler, y, width, depth, draws, batch_size, dtype):
    def one(key):
        input_key, layers_key = jax.random.split(key)
        start = jax.random.normal(input_key, (width,), dtype) if y is None else y
        return _chain(sampler, start, jax.random.split(layers_key, depth))

    return lax.map(one, jax.random.split(key, draws), batch_size=batch_size if batch_size > 1 else None)


def _chain(sampler, y, keys):
    z, log_input = _normalized(y)

    def layer(carry, key):
        z, total, lost = carry
        weights = _drawn(sampler, key, z.size, z.dtype)
        z, growth = _normalized(jnp.matmul(z, weights, precision=lax.Precision.HIGHEST))
        total, lost = _compensated(total, lost, growth)
        return (z, total, lost), total

    _, log_norm = lax.scan(layer, (z, log_input, jnp.zeros_like(log_input)), keys)
    return log_input, log_norm


def _normalized(y):
    """y / |y| and log |y|^2, in float32 at least; the largest entry is taken out before squaring. 0 stays 0."""
    wide = y.astype(jnp.promote_types(y.dtype, jnp.float32))
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


# ---- the Jacobian as a linear map ----------------------------------------------------------------------------------


def _products(network, params, x, start, stop):
    """v -> J v, u -> J' u and the point where both were linearized, once."""
    reach, point = _segments.between(network, params, x, start, stop)
    _, forward = jax.linearize(reach, point)
    backward = jax.linear_transpose(forward, point)
    return forward, lambda u: backward(u)[0], point


@jax.jit
def _isometry(s, limit):
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


@functools.partial(jax.jit, static_argnames=("seeds", "start", "stop"))
def _spectra(network, x, key, seeds, start, stop):
    def one(key):
        return singular_values(network, network.init(key, x), x, start=start, stop=stop)

    return lax.map(one, jax.random.split(key, seeds))


@functools.partial(jax.jit, static_argnames=("start", "stop", "order", "draws"))
def _trace_samples(key, network, params, x, start, stop, order, draws):
    forward, backward, point = _products(network, params, x, start, stop)

    def one(key):
        v = jax.random.rademacher(key, point.shape, point.dtype)

        def power(v, number):  # |J w|^2 and |J' J w|^2 give two moments from two products
            u = forward(v)
            new = backward(u)
            return new, jnp.stack([jnp.sum(u**2), jnp.sum(new**2)])

        _, moments = lax.scan(power, v, None, length=-(-order // 2))
        return moments.ravel()[:order] / point.size

    return lax.map(one, jax.random.split(key, draws))


# ---- Golub-Kahan ---------------------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames=("start", "stop", "steps", "whole"))
def _extremes(key, network, params, x, start, stop, steps, whole):
    forward, backward, point = _products(network, params, x, start, stop)
    image = jax.eval_shape(forward, point)
    if image.size < point.size:  # J' has the same singular values; the smaller side is exhausted first
        forward, backward, point, image = backward, forward, image, point
    matrix, beta = _bidiagonalize(forward, backward, (point.size, image.size), key, steps, point.dtype)
    left, values, _ = jnp.linalg.svd(matrix)
    residuals = jnp.abs(beta * left[-1])
    nan = jnp.full((), jnp.nan, values.dtype)
    ends = (values[-1], residuals[-1]) if whole else (nan, nan)
    return Extremes(values[0], residuals[0], *ends)


def _bidiagonalize(forward, backward, sizes, key, steps, dtype):
    """Upper bidiagonal B [steps, steps] and the last coupling beta; both bases kept orthogonal to rounding."""
    start_key, *keys = jax.random.split(key, 3)
    # Where a space is exhausted (repeated singular values), the next direction is random and its coupling 0.
    spare_right, spare_left = (jax.random.normal(k, (steps, size), dtype) for k, size in zip(keys, sizes, strict=True))
    v = jax.random.normal(start_key, sizes[:1], dtype)
    right = jnp.zeros((steps + 1, sizes[0]), dtype).at[0].set(v / jnp.linalg.norm(v))
    left = jnp.zeros((steps, sizes[1]), dtype)

    def step(carry, given):
        (right, left), (k, new_right, new_left) = carry, given
        u, alpha = _orthonormal(forward(right[k]), left, new_left)
        left = left.at[k].set(u)
        w, beta = _orthonormal(backward(u), right, new_right)
        return (right.at[k + 1].set(w), left), (alpha, beta)

    _, (alphas, betas) = lax.scan(step, (right, left), (jnp.arange(steps), spare_right, spare_left))
    return jnp.diag(alphas) + jnp.diag(betas[:-1], 1), betas[-1]


def _orthonormal(vector, basis, spare):
    """What is left of the vector outside of the basis' rows, normalized, and its length; else the spare's and 0."""
    rest, length = _outside(vector, basis)
    other, other_length = _outside(spare, basis)
    exhausted = length <= _NOISE * float(jnp.finfo(length.dtype).eps) * jnp.linalg.norm(vector)
    unit = jnp.where(exhausted, other / other_length, rest / jnp.where(exhausted, jnp.ones_like(length), length))
    return unit, jnp.where(exhausted, jnp.zeros_like(length), length)


def _outside(vector, basis):
    """The part orthogonal to the basis' rows, by Gram-Schmidt twice, and its length."""
    rest = vector
    for _ in range(2):
        inside = jnp.matmul(basis, rest, precision=lax.Precision.HIGHEST)
        rest = rest - jnp.matmul(inside, basis, precision=lax.Precision.HIGHEST)
    return rest, jnp.linalg.norm(rest)


# ---- Lyapunov exponents --------------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames=("width", "depth", "dtype"))
def _lyapunov_of_samples(key, sampler, width, depth, dtype):
    def layer(q, key):
        return _reduced(_drawn(sampler, key, width, dtype).T @ q)

    return _exponents(lax.scan(layer, jnp.eye(width, dtype=dtype), jax.random.split(key, depth))[1])


@jax.jit
def _lyapunov_along(step, layers, y):
    def layer(carry, given):
        y, q = carry
        new, push = jax.linearize(functools.partial(step, given), y)
        if np.shape(new) != y.shape:
            raise checks.BadValue(f"step must return an array like y, of shape {y.shape}; got shape {np.shape(new)}")
        q, logs = _reduced(jax.vmap(push, 1, 1)(q))
        return (new, q), logs

    return _exponents(lax.scan(layer, (y, jnp.eye(y.size, dtype=y.dtype)), layers)[1])


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
