"""PREDICTED: how gradients through time vanish or explode, and what a gated memory keeps.

Everything is a natural logarithm, so that no number of steps leaves the range. Twin: analysis.recurrent.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Float64

from numdl import _quadrature_rules, activations, checks
from numdl._compiled import jit
from numdl.activations import Activation
from numdl.precision import float64
from numdl.records import record


@record
class ThroughTimeBound:
    """The bound on the gradient through time of a plain recurrent cell, and what follows from it."""

    log_norm: np.ndarray  # [T]: upper bound on ln |dh_T/dh_t|_2 for t = 0..T-1
    log_rate: float  # ln(largest_slope * largest_singular_value), per step
    vanishes: bool  # log_rate < 0: guaranteed
    may_explode: bool  # log_rate > 0: necessary for an explosion, not sufficient


@record
class TransientGrowth:
    """Powers of a matrix: what the spectral radius decides in the end, and what happens before."""

    log_norm: np.ndarray  # [steps]: ln |W^k|_2, k = 1..steps
    log_spectral_radius: float  # its slope in the end
    log_largest_singular_value: float  # its value at k = 1, the bound on every step
    log_peak: float  # max over k = 0..steps
    peak_step: int  # the k of the peak, 0 where nothing grows
    log_kreiss: float  # ln of a lower bound on sup_k |W^k|_2, from the resolvent


def gradient_through_time(
    *, steps: int, largest_singular_value: ArrayLike, largest_slope: ArrayLike
) -> ThroughTimeBound:
    """PREDICTED bound of backpropagation through time: ln |dh_T/dh_t|_2 of h_t = f(h_{t-1} W + x_t U + b), t = 0..T-1.

        |dh_T/dh_t| <= (largest_slope * largest_singular_value)**(T - t)

    Below 1 the recurrent gradient vanishes whatever the inputs; above 1 it may explode or may not (non-normal W, slopes
    below their largest): necessary, not sufficient.

    Parameters
    ----------
    steps : int                 T
    largest_singular_value : scalar    of W
    largest_slope : scalar      sup |f'|: 1 for tanh, 1/4 for sigmoid; see `largest_slope`
    Raises
    ------
    ValueError, TypeError       steps < 1, a negative number
    Source: Pascanu, Mikolov & Bengio 2013, arXiv:1211.5063.
    Twin: analysis.recurrent.gradient_through_time.    Experiment: b8.
    """
    steps = checks.whole("steps", steps)
    singular = checks.number("largest_singular_value", largest_singular_value, least=0.0)
    slope = checks.number("largest_slope", largest_slope, least=0.0)
    with np.errstate(divide="ignore"):
        log_rate = float(np.log(singular) + np.log(slope))
    return ThroughTimeBound(np.arange(steps, 0, -1) * log_rate, log_rate, log_rate < 0, log_rate > 0)


@float64
def largest_slope(activation: Activation) -> np.float64:
    """PREDICTED sup |f'(x)| of an Activation: 1 for tanh and relu, 1/4 for sigmoid, 1.129 for gelu, inf where f jumps.

    A search over |x| <= 20, refined around the largest value found; it includes both sides of every kink.

    Parameters
    ----------
    activation : Activation     f
    Raises
    ------
    TypeError                   no Activation
    """
    checks.instance("activation", activation, Activation, hint="such as activations.tanh")
    kinks = np.array([kink + side for kink in activation.kinks for side in (-1e-9, 0.0, 1e-9)])
    if activation.jumps:
        return np.float64(np.inf)
    grid, spacing = np.linspace(-20.0, 20.0, 8001), 5e-3
    best = 0.0
    for _ in range(4):
        points = np.concatenate([grid, kinks])
        slopes = np.abs(np.asarray(activation.slope(points)))
        best, spacing = max(best, slopes.max()), spacing / 100
        grid = points[slopes.argmax()] + spacing * np.arange(-200, 201)
    return np.float64(best)


def transient_growth(matrix: ArrayLike, *, steps: int) -> TransientGrowth:
    """PREDICTED ln |W^k|_2 for k = 1..steps: a linear recurrent network's gradient through time, exactly.

        |W^k| ~ radius**k in the end;  |W^k| <= sigma_max**k;  sup_k |W^k| >= sup_{|z| > 1} (|z| - 1) |(z - W)^-1|

    A non-normal W grows first even if its radius is below 1: a Jordan block of radius 0.9 grows 3.9-fold.

    Parameters
    ----------
    matrix : array [n, n]       W
    steps : int                 powers, >= 1
    Returns
    -------
    TransientGrowth
    Raises
    ------
    ValueError, TypeError       not square, not finite, steps < 1
    Source: Trefethen & Embree 2005, Spectra and Pseudospectra (Kreiss matrix theorem).
    Twin: analysis.recurrent.gradient_through_time, on a cell with the identity as activation.
    Experiment: b8.
    """
    steps = checks.whole("steps", steps)
    w = checks.array("matrix", checks.concrete("matrix", matrix), ndim=2)
    w = np.array(checks.finite("matrix", w), dtype=np.float64)
    if w.shape[0] != w.shape[1]:
        raise checks.BadValue(f"matrix must be square; got shape {w.shape}")
    log_norm = _log_powers(w, steps)
    peak = int(np.argmax(np.concatenate([[0.0], log_norm])))
    radius = np.abs(np.linalg.eigvals(w)).max()
    with np.errstate(divide="ignore"):
        log_radius = float(np.log(radius))
    log_peak = float(max(0.0, log_norm.max()))
    return TransientGrowth(log_norm, log_radius, float(log_norm[0]), log_peak, peak, _log_kreiss(w, radius))


def carousel(*, steps: int, forget_bias: ArrayLike, gate_variance: ArrayLike) -> Float64[np.ndarray, "steps"]:
    """PREDICTED mean of ln of the gradient along an LSTM's cell state, over 1..steps steps: the error carousel.

        c_t = f_t * c_{t-1} + ...,   ln d c_k / d c_0 = sum_{t <= k} ln f_t,   f_t = sigmoid(forget_bias + a_t)
        E ln f_t = -E softplus(-(forget_bias + sqrt(gate_variance) z)),   z ~ N(0, 1)

    with the gates held fixed, which is what the original LSTM's truncated gradient does.

    Parameters
    ----------
    steps : int                 >= 1
    forget_bias : scalar        mean of the forget gate's pre-activation
    gate_variance : scalar      variance of the forget gate's pre-activation around forget_bias
    Returns
    -------
    log_gradient : array [steps], float64
    Raises
    ------
    ValueError, TypeError       steps < 1, a negative variance
    Source: Hochreiter & Schmidhuber 1997; Gers et al. 2000.
    Twin: analysis.recurrent.carousel.    Experiment: b8.
    """
    steps = checks.whole("steps", steps)
    bias = checks.number("forget_bias", forget_bias)
    variance = checks.number("gate_variance", gate_variance, least=0.0)
    return np.arange(1, steps + 1) * np.float64(_log_gate(bias, variance))


@float64
@jit
def _log_gate(bias, variance):
    """-E softplus(-(x + bias)): it bends at x = -bias, where the nodes must lie densest."""
    root = jnp.sqrt(jnp.maximum(variance, 1e-300))
    nodes, weights = _quadrature_rules.rule((), -bias / root, root, 1 / jnp.maximum(root, 1.0), 144, 0)
    return -jnp.sum(activations.softplus(-(root * nodes + bias)) * weights * _quadrature_rules.density(nodes))


def _log_powers(w, steps):
    """ln |W^k|_2, the power rescaled at every step."""
    power, scale, out = np.eye(len(w)), 0.0, np.empty(steps)
    for k in range(steps):
        power = power @ w
        largest = np.abs(power).max()
        if largest == 0:
            out[k:] = -np.inf
            break
        power, scale = power / largest, scale + np.log(largest)
        out[k] = scale + np.log(np.linalg.norm(power, 2))
    return out


def _log_kreiss(w, radius):
    """The supremum over a grid of circles, hence a lower bound; infinite where the powers grow for ever."""
    if radius > 1:
        return np.inf
    angles = np.exp(2j * np.pi * np.arange(48) / 48)
    outside = 1 + np.logspace(-4, 2, 40)
    z = (outside[:, None] * angles).ravel()
    smallest = np.linalg.svd(z[:, None, None] * np.eye(len(w)) - w, compute_uv=False)[:, -1]
    # |z| -> infinity gives 1, k = 0.
    return float(np.log(max(1.0, ((np.abs(z) - 1) / smallest).max())))
