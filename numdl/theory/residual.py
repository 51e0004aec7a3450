"""PREDICTED: how lengths and correlations travel through a random, infinitely wide residual network.

    y_{l+1} = y_l + h f(y_l K + b) V,     p[l] = mean of y_l^2,     s[l] = mean of y_l y'_l,     c = s / p
    p <- p + h^2 v E[f(u)^2],             s <- s + h^2 v E[f(u) f(u')],     (u, u') ~ N(0, w (p, s) + b)

Nothing shrinks the stream, so that a bounded f adds as much in every layer: p grows in proportion to depth, and what
is exponential in a plain network (distances, squared gradients) becomes a power or the exponential of a root of depth.
Source: Yang & Schoenholz 2017, arXiv:1712.08969. Twin: analysis.propagation; gradients are in theory.gradients.

    >>> from numdl import activations
    >>> physics = {"activation": activations.tanh, "weight_variance": 1.0, "second_weight_variance": 1.0}
    >>> found = correlations(0.5, x_variance=1.0, depth=3, step=1.0, bias_variance=0.0, **physics)
    >>> found.square.round(3).tolist(), found.c.round(3).tolist()
    ([1.394, 1.849, 2.355], [0.492, 0.483, 0.474])
"""

import functools
import math
from collections.abc import Sequence

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
class Correlations:
    """Two inputs of one length on their way through the blocks."""

    square: np.ndarray  # [L]  mean of y_l^2 over units
    c: np.ndarray  # [..., L]  correlation of y_l and y'_l


@record
class TanhLaws:
    """What tanh blocks tend to in the depth l, at a fixed step."""

    length: np.ndarray  # []  E y^2 ~ length * l
    decay: np.ndarray  # []  c ~ l^-decay
    gradient: np.ndarray  # []  ln of the growth of squared gradients ~ gradient * sqrt(l)


def correlations(
    c: ArrayLike | Sequence[float],
    *,
    x_variance: ArrayLike,
    depth: int,
    step: ArrayLike,
    activation: Activation,
    weight_variance: ArrayLike,
    second_weight_variance: ArrayLike,
    bias_variance: ArrayLike,
) -> Correlations:
    """PREDICTED correlation of two inputs after each of the two-layer blocks y + h f(y K + b) V, and their length.

        p <- p + h^2 v E[f(u)^2],    s <- s + h^2 v E[f(u) f(u')],    c = s / p

    Parameters
    ----------
    c : scalar or array         correlation of the inputs, in [-1, 1]; equal ones stay equal
    x_variance : scalar         mean of x**2 over coordinates, > 0, of both; y_0 = x
    depth : int                 blocks L >= 1
    step : scalar               h
    activation : Activation     f
    weight_variance, bias_variance : scalar     w = fan_in * Var(K_ij), Var(b_i)
    second_weight_variance : scalar     v = fan_in * Var(V_ij)
    Returns
    -------
    Correlations                square [L], c shaped c.shape + (L,), float64; nan where the stream has left its range
    Raises
    ------
    ValueError, TypeError       c outside [-1, 1], x_variance not above 0, depth < 1, a bad variance, no Activation
    Source: Yang & Schoenholz 2017, arXiv:1712.08969.
    Twin: analysis.propagation.correlations.    Experiment: b12.
    """
    checks.instance("activation", activation, Activation, hint="for example numdl.activations.tanh")
    c = np.asarray(checks.finite("c", checks.concrete("c", c), least=-1.0, most=1.0), float)
    x_variance = checks.number("x_variance", x_variance, above=0.0)
    depth = checks.whole("depth", depth)
    step = checks.number("step", step)
    w, b, v = _variances(
        weight_variance=weight_variance, bias_variance=bias_variance, second_weight_variance=second_weight_variance
    )
    square, products, _ = _recursion(
        c.ravel() * x_variance, x_variance, _kernel_doors.gain(step, v), w, b, depth, activation
    )
    with np.errstate(invalid="ignore"):
        found = np.where(c.ravel() == 1, 1.0, np.clip(products / square[:, None], -1, 1))
    return Correlations(square, found.T.reshape(*c.shape, depth))


def branch_shares(
    *,
    x_variance: ArrayLike,
    depth: int,
    step: ArrayLike,
    activation: Activation,
    weight_variance: ArrayLike,
    second_weight_variance: ArrayLike,
    bias_variance: ArrayLike,
    normalized: bool = False,
) -> np.ndarray:
    """PREDICTED share of the residual branch in the mean square of the stream after each block y + h f(y K + b) V.

        share[l] = h^2 v E f(u)^2 / p[l],    p[l] = p[l-1] + h^2 v E f(u)^2,    p[0] = x_variance
        u = y K + b ~ N(0, w p[l-1] + b); normalized over the batch: N(0, 1), so that share[l] = a / (p[0] + a l)

    For relu, h = 1 and v = 2: 1 / (p[0] + l) with batch normalization, and w / (1 + w) in every block without: the
    stream grows by the same factor each time. SkipInit's gates, 0 at first, make all shares 0.

    Parameters
    ----------
    x_variance : scalar         mean of x**2 over coordinates, > 0; y_0 = x
    depth : int                 blocks L >= 1
    step : scalar               h
    activation : Activation     f
    weight_variance, bias_variance : scalar     w = fan_in * Var(K_ij), Var(b_i); normalized: of no effect
    second_weight_variance : scalar     v = fan_in * Var(V_ij)
    normalized : bool           batch normalization before f; a large batch, of inputs with mean 0
    Returns
    -------
    array [L]                   float64; nan where the stream has left its range
    Raises
    ------
    ValueError, TypeError       x_variance not above 0, depth < 1, a bad variance, no Activation
    Source: De & Smith 2020, arXiv:2002.10444.    Twin: analysis.propagation.branch_shares.    Experiment: b14.
    """
    checks.instance("activation", activation, Activation, hint="for example numdl.activations.tanh")
    x_variance = checks.number("x_variance", x_variance, above=0.0)
    depth, step = checks.whole("depth", depth), checks.number("step", step)
    normalized = checks.flag("normalized", normalized)
    w, b, v = _variances(
        weight_variance=weight_variance, bias_variance=bias_variance, second_weight_variance=second_weight_variance
    )
    with np.errstate(over="ignore", invalid="ignore"):
        if normalized:
            added = _kernel_doors.gain(step, v) * _unit_square(activation)
            return added / (x_variance + added * np.arange(1, depth + 1))
        square, _, added = _recursion(np.zeros(0), x_variance, _kernel_doors.gain(step, v), w, b, depth, activation)
        return np.where(np.isfinite(square), added / square, np.nan)


def tanh_laws(*, weight_variance: ArrayLike, second_weight_variance: ArrayLike, step: ArrayLike = 1.0) -> TanhLaws:
    """PREDICTED power laws of a deep residual network of two-layer tanh blocks without a bias on the stream.

        E y^2 ~ h^2 v l,      c ~ l^-(1 - 2/pi),      ln g_0 / g_l ~ (4/3) sqrt(2/pi) h sqrt(w v l)

    In the end u is so long that tanh is a sign: E[f f'] = (2/pi) arcsin c and E f'^2 = (4/3) / sqrt(2 pi w E y^2).
    Two inputs part in the end, but polynomially; gradients explode, but subexponentially. All are 0 where h, w or v is:
    nothing is added to the stream.

    Parameters
    ----------
    weight_variance, second_weight_variance : scalar    w = fan_in * Var(K_ij) and v = fan_in * Var(V_ij)
    step : scalar               h
    Returns
    -------
    TanhLaws
    Raises
    ------
    ValueError, TypeError       a variance that is negative or not finite, a step that is not finite
    Source: Yang & Schoenholz 2017, arXiv:1712.08969.    Twins: analysis.propagation.correlations,
    analysis.gradients.growth.    Experiment: b12.
    """
    w, v = _variances(weight_variance=weight_variance, second_weight_variance=second_weight_variance)
    h = checks.number("step", step)
    added = h != 0 and w > 0 and v > 0
    decay = 1 - 2 / math.pi if added else 0.0
    gradient = 4 / 3 * math.sqrt(2 / math.pi) * abs(h) * (np.sqrt(w) * np.sqrt(v))
    return TanhLaws(np.float64(_kernel_doors.gain(h, v) if added else 0.0), np.float64(decay), np.float64(gradient))


@float64
def _unit_square(activation):
    return activation.mean_square(1.0)


def _variances(**variances):
    return [checks.number(name, value, least=0.0) for name, value in variances.items()]


@float64
def _recursion(product, square, gain, weight_variance, bias_variance, depth, activation):
    numbers = (jnp.asarray(a, float) for a in (product, square, gain, weight_variance, bias_variance))
    return _recursion_jit(*numbers, depth=depth, activation=activation)


@functools.partial(jit, static_argnames=("depth", "activation"))
def _recursion_jit(product, square, gain, weight_variance, bias_variance, *, depth, activation):
    def block(state, _):
        product, square = state
        q, inner = weight_variance * square + bias_variance, weight_variance * product + bias_variance
        q_each = jnp.full_like(product, q)
        added = activation.mean_product(q_each, q_each, _factors.correlation(q, q, inner))
        own = gain * activation.mean_square(q)
        after = product + gain * added, square + own
        return after, (after[1], after[0], own)

    return jax.lax.scan(block, (product, square), None, length=depth)[1]
