"""PREDICTED: how squared gradients travel back through a random, infinitely wide network, and how far one may stray.

    dense       g[l] = chi[l] g[l+1],   chi[l] = weight_variance E[f'(sqrt(q[l]) z)^2] n[l+1] / n[l],   l = L..1
    residual    chi = 1 + h^2 weight_variance E[f'(sqrt(q) z)^2]                   y + h f(K y)

g[l] is the mean of (dloss/dy_l)^2 over units, g[L+1] that of the outputs' cotangent, which must not look at the
weights. Lengths q come from the input's own length, not from the fixed point. Exact at every width for relu and for
linear maps (E g, not E ln g); else as widths grow. Source: Schoenholz et al. 2017, arXiv:1611.01232; Yang &
Schoenholz 2017, arXiv:1712.08969. Twin: analysis.gradients. Everything is float64 NumPy.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import ArrayLike

from numdl import activations, checks
from numdl.activations import Activation
from numdl.records import record
from numdl.theory import _factors, _roots, propagation


@record
class Growth:
    """Squared gradients per unit on their way back, layer by layer."""

    q: np.ndarray  # [L]  variance of the pre-activations: of layer l, or inside block l of a residual network
    chi: np.ndarray  # [L]  g[l] / g[l+1]; the last one is the readout's
    log_products: np.ndarray  # [L]  ln g[l] / g[L+1], natural
    chi_1: np.ndarray  # []  chi at the fixed point reached from q = 1, equal widths; nan in a residual network
    depth_scale: np.ndarray  # []  layers, -1 / ln chi_1: e-fold decay; negative: growth; inf where critical


@record
class DropoutFixedPoint:
    """Where two inputs settle if dropout draws another mask for each."""

    q: np.ndarray  # []  length
    c: np.ndarray  # []  correlation, below 1 also for two passes of one input
    chi_1: np.ndarray  # []  growth of squared gradients a layer
    chi_c: np.ndarray  # []  slope of the correlation map at c
    depth_scale_c: np.ndarray  # []  layers, -1 / ln chi_c
    depth_scale_gradient: np.ndarray  # []  layers, -1 / ln chi_1; negative: growth


@record
class LogNorm:
    """The law of ln g[l] / g[L+1] at finite width. Typical growth, `log_mean`, is below `log_expectation`."""

    log_mean: np.ndarray  # [L]  E ln
    log_variance: np.ndarray  # [L]  Var ln
    rule: np.ndarray  # [L]  its leading term, 5 sum 1/n (relu) or 2 sum 1/n (identity)
    log_expectation: np.ndarray  # [L]  ln E
    relative_variance: np.ndarray  # [L]  Var / E^2 of the squared norm itself: prod(1 + 5/n) - 1
    dead: np.ndarray  # [L]  probability of a layer without an active unit on the way; left out of both log moments


def growth(
    x_variance: ArrayLike,
    *,
    activation: Activation,
    weight_variance: ArrayLike,
    bias_variance: ArrayLike,
    depth: int | None = None,
    widths: Sequence[int] | None = None,
    keep_probability: ArrayLike = 1.0,
    readout_weight_variance: ArrayLike | None = None,
) -> Growth:
    """PREDICTED vanishing gradients and exploding gradients: mean squares per unit of those of y_L ... y_1.

        chi[l] = weight_variance / keep * E[f'(sqrt(q[l]) z)^2] * n[l+1] / n[l],     log_products[l] = sum ln chi[l:]
        q[1] = weight_variance * x_variance + b,     q[l+1] = weight_variance / keep * E[f(sqrt(q[l]) z)^2] + b

    Backward propagation in a dense network, relative to the gradient of the outputs.

    Parameters
    ----------
    x_variance : scalar         mean of x**2 over the input's coordinates
    activation : Activation     f
    weight_variance, bias_variance : scalar     fan_in * Var(W_ij), b = Var(b_i)
    depth, widths : int, ints   L layers of one width and as many outputs; or the widths, as for `dense.network`
    keep_probability : scalar   dropout on f(y_l), kept values divided by it; in (0, 1]
    readout_weight_variance : scalar    of the last map; None: weight_variance
    Raises
    ------
    ValueError, TypeError       depth and widths both or neither, a negative variance, a keep_probability outside (0, 1]
    Source: Schoenholz et al. 2017, arXiv:1611.01232, on gradients and on dropout.
    Twin: analysis.gradients.growth.    Experiments: b1, b4.
    """
    weight_variance, bias_variance, keep = _check(activation, weight_variance, bias_variance, keep_probability)
    x_variance = checks.number("x_variance", x_variance, least=0.0)
    last = weight_variance if readout_weight_variance is None else readout_weight_variance
    last = checks.number("readout_weight_variance", last, least=0.0)
    ratios = _ratios(depth, widths)
    kept = weight_variance / keep
    first = weight_variance * x_variance + bias_variance
    q, slopes = _factors.dense(first, kept, bias_variance, ratios.size, activation)
    weights = np.append(np.full(ratios.size - 1, kept), last / keep)
    chi = _roots.scaled(weights, slopes) * ratios
    limit = propagation.fixed_point(activation=activation, weight_variance=kept, bias_variance=bias_variance)
    return Growth(q, chi, _log_products(chi), limit.chi_1, _scale(limit.chi_1))


def residual_growth(
    x_variance: ArrayLike,
    *,
    depth: int,
    step: ArrayLike,
    activation: Activation,
    weight_variance: ArrayLike,
    bias_variance: ArrayLike,
    second_weight_variance: ArrayLike | None = None,
    x_mean: ArrayLike = 0.0,
    keep_probability: ArrayLike = 1.0,
    readout_gain: ArrayLike = 1.0,
) -> Growth:
    """PREDICTED squared gradients of y_L ... y_1 per unit in a residual network: how to choose the residual scaling.

        one layer    y + h f(u)        chi = 1 + h^2 w E f'^2 / keep            u = y K + b,  q = w E y^2 + b
        two layers   y + h f(u) V      chi = 1 + h^2 w v E f'^2 / keep
        E y^2 <- E y^2 + 2 h E[y] E[f] + h^2 E f^2 / keep,   E y <- E y + h E f     (one layer; means over units)
        E y^2 <- E y^2 + h^2 v E f^2 / keep                                         (two layers)

    h = 1/sqrt(L) keeps the product bounded. Two layers of relu: exact at every width. One layer: K meets itself in f',
    an excess of order 1/width that grows with h and depth.

    Parameters
    ----------
    x_variance, x_mean : scalar     mean of x**2 and of x over the input's coordinates; y_0 = x
    depth : int                 L
    step : scalar or (L,)       h of each block; chi[l] belongs to block l + 1, chi[L] to the readout
    activation : Activation     f
    weight_variance, bias_variance : scalar     w = fan_in * Var(K_ij), b = Var(b_i)
    second_weight_variance : scalar     v = fan_in * Var(V_ij); None: the one-layer block
    keep_probability : scalar   of dropout, in (0, 1]
    readout_gain : scalar       g[L] / g[L+1]: 1 if y_L is the output
    Raises
    ------
    ValueError, TypeError       depth < 1, a step of another shape, a negative variance, x_mean**2 > x_variance
    Source: Yang & Schoenholz 2017, arXiv:1712.08969.    Twin: analysis.gradients.growth.    Experiment: b7.
    """
    weight_variance, bias_variance, keep = _check(activation, weight_variance, bias_variance, keep_probability)
    depth = checks.whole("depth", depth)
    x_variance = checks.number("x_variance", x_variance, least=0.0)
    x_mean = checks.number("x_mean", x_mean, least=-math.sqrt(x_variance), most=math.sqrt(x_variance))
    readout_gain = checks.number("readout_gain", readout_gain, above=0.0)
    step = checks.finite("step", checks.concrete("step", step))
    checks.shape("step", step, (depth,) if np.ndim(step) else ())
    if second_weight_variance is not None:
        second_weight_variance = checks.number("second_weight_variance", second_weight_variance, least=0.0)
    steps = np.broadcast_to(np.asarray(step, float), (depth,))
    numbers = (x_mean, x_variance, weight_variance, bias_variance, second_weight_variance, keep)
    q, block = _factors.residual(steps, numbers, activation)
    chi = np.append(block[1:], readout_gain)
    return Growth(q, chi, _log_products(chi), np.float64(np.nan), np.float64(np.nan))


def dropout_fixed_point(
    *, activation: Activation, weight_variance: ArrayLike, bias_variance: ArrayLike, keep_probability: ArrayLike
) -> DropoutFixedPoint:
    """PREDICTED lengths and correlations in the end under dropout, whose masks differ from pass to pass.

        q = w/keep E[f(sqrt(q) z)^2] + b,     C(c) = (w E[f(u) f(v)] + b) / q,     chi_1 = w/keep E[f'(sqrt(q) z)^2]
        C(1) = 1 - w (1 - keep) / keep E[f^2] / q < 1

    so correlations never reach 1 and depth_scale_c stays finite at every weight variance: no critical point.

    Parameters
    ----------
    activation : Activation     f
    weight_variance, bias_variance : scalar     w = fan_in * Var(W_ij), b = Var(b_i)
    keep_probability : scalar   share of the values that is kept, in (0, 1]
    Returns
    -------
    DropoutFixedPoint
    Raises
    ------
    ValueError, TypeError       a variance that is negative or not finite, keep_probability outside (0, 1]
    Source: Schoenholz et al. 2017, arXiv:1611.01232, on dropout.
    """
    weight_variance, bias_variance, keep = _check(activation, weight_variance, bias_variance, keep_probability)
    kept = weight_variance / keep
    point = propagation.fixed_point(activation=activation, weight_variance=kept, bias_variance=bias_variance)
    if keep == 1:
        scale = point.depth_scale_c
        return DropoutFixedPoint(point.q, point.c, point.chi_1, point.chi_c, scale, _scale(point.chi_1))
    c, chi_c = np.float64(np.nan), np.float64(np.nan)
    if 0 < point.q < math.inf:
        c, chi_c = _factors.dropout_correlation(float(point.q), weight_variance, bias_variance, activation)
    return DropoutFixedPoint(point.q, c, point.chi_1, chi_c, _scale(chi_c), _scale(point.chi_1))


def log_norm(*, widths: Sequence[int], weight_variance: ArrayLike, activation: Activation) -> LogNorm:
    """PREDICTED law of ln g[l] / g[L+1] in a dense network of finite width; exact for one example and Gaussian weights.

        g[l] = w n[l+1] / n[l]^2 * chi^2_B * g[l+1],   independent layers,   B ~ Binomial(n[l], 1/2) active units (relu)
        Var ln g[l] / g[L+1] ~ 5 (1/n[l] + ... + 1/n[L]);     B = n and 2 (...) for identity

    The log-norm variance is the sum of reciprocal widths. The active units may be drawn as if they were independent of
    the weights: signs of columns can be flipped without changing the law of the rest. Biases do not matter if their law
    is symmetric. The mean lies below ln E by half the variance, to leading order. A mean over several examples
    fluctuates less.

    Parameters
    ----------
    widths : sequence of int    as for `dense.network`: input, n[1] ... n[L], outputs
    weight_variance : scalar    w, of every layer but the first, the readout too
    activation : Activation     relu or identity: for others lengths fluctuate too, and no closed form is known
    Returns
    -------
    LogNorm                     fields [L]
    Raises
    ------
    ValueError, TypeError       fewer than 3 widths, another activation, a weight_variance not above 0
    Source: Hanin & Nica 2020, arXiv:1812.05994; Hanin 2018, arXiv:1801.03744.
    Twin: analysis.gradients.growth.    Experiment: b6.
    """
    checks.instance("activation", activation, Activation, hint="activations.relu or activations.identity")
    weight_variance = checks.number("weight_variance", weight_variance, above=0.0)
    hidden = _widths(widths)[1:-1]
    checks.one_of("activation", activation, (activations.relu, activations.identity))
    is_relu = activation is activations.relu
    mean, variance = np.array([_log_chi_square(n, is_relu) for n in hidden.tolist()]).T
    scale = np.log(weight_variance * _ratios(None, widths) / hidden)
    fourth = 5 if is_relu else 2
    return LogNorm(
        log_mean=_from_the_end(mean + scale),
        log_variance=_from_the_end(variance),
        rule=_from_the_end(fourth / hidden),
        log_expectation=_from_the_end(np.log(hidden / 2 if is_relu else hidden) + scale),
        relative_variance=np.expm1(_from_the_end(np.log1p(fourth / hidden))),
        dead=-np.expm1(_from_the_end(np.log1p(-(0.5**hidden)))) if is_relu else np.zeros(hidden.size),
    )


# ---- sums along depth ------------------------------------------------------------------------------------------------


def _log_chi_square(n, is_relu):
    """Mean and variance of ln chi^2_B: B = n, or Binomial(n, 1/2) given B > 0."""
    from scipy.special import gammaln, polygamma

    if not is_relu:
        return polygamma(0, n / 2) + math.log(2), polygamma(1, n / 2)
    active = np.arange(1, n + 1)
    weights = np.exp(gammaln(n + 1) - gammaln(active + 1) - gammaln(n - active + 1) - n * math.log(2))
    weights /= weights.sum()
    logs = polygamma(0, active / 2) + math.log(2)
    mean = weights @ logs
    return mean, weights @ (polygamma(1, active / 2) + (logs - mean) ** 2)


def _from_the_end(terms):
    return np.cumsum(terms[::-1])[::-1]


def _log_products(chi):
    with np.errstate(divide="ignore"):
        return _from_the_end(np.log(chi))


def _scale(chi):
    """-1 / ln chi, signed; inf where chi is 1 within rounding."""
    if abs(chi - 1) <= _roots.CRITICAL:
        return np.float64(math.inf)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.float64(-1 / np.log(chi))


# ---- the door ------------------------------------------------------------------------------------------------------


def _ratios(depth, widths):
    """n[l+1] / n[l], l = 1..L, the outputs being n[L+1]."""
    if (depth is None) == (widths is None):
        raise checks.BadValue(
            f"exactly one of depth and widths must be given; got depth={depth!r} and widths={widths!r}"
        )
    if widths is None:
        return np.ones(checks.whole("depth", depth))
    widths = _widths(widths)
    return widths[2:] / widths[1:-1]


def _widths(widths):
    return np.array(checks.wholes("widths", widths, fewest=3), float)


def _check(activation, weight_variance, bias_variance, keep_probability):
    checks.instance("activation", activation, Activation, hint="for example numdl.activations.tanh")
    weight_variance = checks.number("weight_variance", weight_variance, least=0.0)
    bias_variance = checks.number("bias_variance", bias_variance, least=0.0)
    keep = checks.number("keep_probability", keep_probability, above=0.0, most=1.0)
    return weight_variance, bias_variance, keep
