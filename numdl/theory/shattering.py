"""PREDICTED: how much the gradients at two inputs have in common, block by block: the shattering of gradients.

    g_l(x) = d (v . f(x)) / d y_l,    one v for all inputs,    gradient[l] = <g_l, g'_l> / (|g_l| |g'_l|)

Infinite width; a layer multiplies the correlation by E f'(u) f'(u') / E f'(u)^2. Where u and u' are uncorrelated a
relu layer halves it, and a residual block of relu takes a quarter: 1 / 2^L and (3 / 4)^L. That needs a normalization:
without one u and u' become alike, and both architectures lose correlation as L^-3 only. A batch-normalized stream
grows, its blocks count less and less, and what is left is a power of L.
Source: Balduzzi et al. 2017, arXiv:1702.08591. Twin: analysis.shattering.

    >>> from numdl import activations
    >>> physics = {"activation": activations.relu, "weight_variance": 2.0, "bias_variance": 0.0}
    >>> dense(0.0, x_variance=1.0, depth=3, normalized=True, **physics).gradient.tolist()  # of y_1, y_2, y_3
    [0.125, 0.25, 0.5]
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike

from numdl import checks
from numdl._compiled import jit
from numdl.activations import Activation
from numdl.precision import float64
from numdl.records import record
from numdl.theory import _factors, _kernel_doors


@record
class Shattering:
    """Two inputs of one length, on their way forth and their gradients on their way back."""

    c: np.ndarray  # [..., L]  correlation of y_l and y'_l; centred over the batch where it is normalized
    gradient: np.ndarray  # [..., L]  correlation of the gradients of y_l and y'_l


def dense(
    c: ArrayLike,
    *,
    x_variance: ArrayLike,
    depth: int,
    activation: Activation,
    weight_variance: ArrayLike,
    bias_variance: ArrayLike,
    normalized: bool = False,
) -> Shattering:
    """PREDICTED correlation of the gradients at two inputs, in a dense network with a linear readout.

        gradient[l] = product of E f'(u) f'(u') / E f'(u)^2 over layers l..L,    (u, u') the states of a layer
        q <- w E f(u)^2 + b,   c q <- w E f(u) f(u') + b           normalized: u has length 1, c <- corr(f(u), f(u'))

    Parameters
    ----------
    c : scalar or array         correlation of the inputs, in [-1, 1]
    x_variance : scalar         mean of x**2 over coordinates, > 0, of both
    depth : int                 layers L >= 1
    activation : Activation     f
    weight_variance, bias_variance : scalar     w = fan_in * Var(W_ij), b = Var(b_i); normalized: of no effect
    normalized : bool           batch normalization before f, with the statistics of a large batch of inputs that have
                                mean 0 and are uncorrelated with these, held fixed
    Returns
    -------
    Shattering                  c, gradient, shaped c.shape + (L,), float64
    Raises
    ------
    ValueError, TypeError       c outside [-1, 1], x_variance not above 0, depth < 1, a bad variance, no Activation
    Source: Balduzzi et al. 2017, arXiv:1702.08591, whose 1 / 2^L this is for relu where c stays 0.
    Twin: analysis.shattering.gradient_correlations.    Experiment: b13.
    """
    c, x_variance, depth = _admitted(c, x_variance, depth, activation)
    w = checks.number("weight_variance", weight_variance, least=0.0)
    b = checks.number("bias_variance", bias_variance, least=0.0)
    if checks.flag("normalized", normalized):
        w, b, x_variance = 1.0, 0.0, 1.0
    found, factors = _dense(c.ravel(), x_variance, w, b, depth, activation, normalized)
    return _shattering(c, found, factors)


def residual(
    c: ArrayLike,
    *,
    x_variance: ArrayLike,
    depth: int,
    step: ArrayLike,
    activation: Activation,
    weight_variance: ArrayLike,
    second_weight_variance: ArrayLike,
    bias_variance: ArrayLike,
    normalized: bool = False,
) -> Shattering:
    """PREDICTED correlation of the gradients at two inputs, in two-layer blocks y + h f(u) V, u = y K + b.

        gradient[l] = product over blocks l+1..L of (1 + r E f'(u) f'(u')) / (1 + r E f'(u)^2),      r = h^2 w v
        normalized: u / sd(u) stands for u, r = h^2 v / p, and p <- p + h^2 v Var f, the stream's variance in the batch

    For relu, v = 2, and inputs uncorrelated with the batch, p = p_0 + a l, a = h^2 (1 - 1 / pi): the correlation decays
    as L^-k, k = pi / (2 (pi - 1)) = 0.733. Counting E f^2 for Var f one gets k = 1/2.

    Parameters
    ----------
    c : scalar or array         correlation of the inputs, in [-1, 1]
    x_variance : scalar         mean of x**2 over coordinates, > 0, of both; y_0 = x
    depth : int                 blocks L >= 1
    step : scalar               h
    activation : Activation     f
    weight_variance, bias_variance : scalar     w = fan_in * Var(K_ij), Var(b_i); normalized: of no effect
    second_weight_variance : scalar     v = fan_in * Var(V_ij)
    normalized : bool           batch normalization before f, as for `dense`
    Returns
    -------
    Shattering                  c, gradient, shaped c.shape + (L,); that of y_L is 1
    Raises
    ------
    ValueError, TypeError       c outside [-1, 1], x_variance not above 0, depth < 1, a bad variance, no Activation
    Source: Balduzzi et al. 2017, arXiv:1702.08591: (3/4)^L for relu where c stays 0, 1 / sqrt(L) normalized.
    Twin: analysis.shattering.gradient_correlations.    Experiment: b13.
    """
    c, x_variance, depth = _admitted(c, x_variance, depth, activation)
    step = checks.number("step", step)
    w = checks.number("weight_variance", weight_variance, least=0.0)
    b = checks.number("bias_variance", bias_variance, least=0.0)
    v = checks.number("second_weight_variance", second_weight_variance, least=0.0)
    normalized = checks.flag("normalized", normalized)
    found, factors = _residual(c.ravel(), x_variance, _kernel_doors.gain(step, v), w, b, depth, activation, normalized)
    return _shattering(c, found, np.append(factors[1:], np.ones_like(factors[:1]), axis=0))


def _admitted(c, x_variance, depth, activation):
    checks.instance("activation", activation, Activation, hint="for example numdl.activations.relu")
    c = np.asarray(checks.finite("c", checks.concrete("c", c), least=-1.0, most=1.0), float)
    x_variance = checks.number("x_variance", x_variance, above=0.0)
    return c, x_variance, checks.whole("depth", depth)


def _shattering(c, found, factors):
    """From the correlations and the factors of every layer, [L, pairs]."""
    gradient = np.cumprod(np.asarray(factors)[::-1], axis=0)[::-1]
    shape = (*c.shape, len(gradient))
    return Shattering(np.asarray(found).T.reshape(shape), gradient.T.reshape(shape))


def _numbers(*values):
    return tuple(jnp.asarray(value, float) for value in values)


@float64
def _dense(c, x_variance, w, b, depth, activation, normalized):
    return _dense_jit(*_numbers(c, x_variance, w, b), depth, activation, normalized)


@functools.partial(jit, static_argnums=(4, 5, 6))
def _dense_jit(c, x_variance, w, b, depth, activation, normalized):
    def layer(state, _):
        q, c = state
        q_each = jnp.full_like(c, q)
        factor = activation.slope_mean_product(q_each, q_each, c) / activation.slope_mean_square(q)
        square, product = _moments(activation, q, c, normalized)
        after = jnp.ones_like(q) if normalized else w * square + b
        inner = product / square if normalized else w * product + b
        return (after, _factors.correlation(after, after, inner)), (c, factor)

    q = w * x_variance + b
    return jax.lax.scan(layer, (q, _factors.correlation(q, q, w * c * x_variance + b)), None, length=depth)[1]


@float64
def _residual(c, x_variance, gain, w, b, depth, activation, normalized):
    return _residual_jit(*_numbers(c, x_variance, gain, w, b), depth, activation, normalized)


@functools.partial(jit, static_argnums=(5, 6, 7))
def _residual_jit(c, x_variance, gain, w, b, depth, activation, normalized):
    def block(state, _):
        square, product = state
        q, inner = (jnp.ones_like(square), product / square) if normalized else (w * square + b, w * product + b)
        c, rate = _factors.correlation(q, q, inner), gain / square if normalized else gain * w
        q_each = jnp.full_like(c, q)
        both = activation.slope_mean_product(q_each, q_each, c)
        factor = (1 + rate * both) / (1 + rate * activation.slope_mean_square(q))
        added, common = _moments(activation, q, c, normalized)
        square, product = square + gain * added, product + gain * common
        return (square, product), (_factors.correlation(square, square, product), factor)

    return jax.lax.scan(block, (x_variance, c * x_variance), None, length=depth)[1]


def _moments(activation, q, c, normalized):
    """E f(u)^2 and E f(u) f(u'), their means taken off where the batch is centred."""
    q_each = jnp.full_like(c, q)
    mean = activation.mean(q) ** 2 if normalized else jnp.zeros_like(q)
    return activation.mean_square(q) - mean, activation.mean_product(q_each, q_each, c) - mean
