"""PREDICTED: what gradient methods will do: stability limits, rates, learning curves, modified equations.

On a quadratic every mode of curvature a = learning_rate * eigenvalue follows x_{k+1} = t x_k - d x_{k-1}, where

    method              t                           d               stable (a > 0) below a =
    gradient_descent    1 - a                       0               2
    polyak              1 + b - a                   b               2 (1 + b)
    nesterov            (1 + b) (1 - a)             b (1 - a)       2 (1 + b) / (1 + 2 b)
    adam                1 + b - (1 - b) a           b               2 (1 + b) / (1 - b)

with b the momentum and x_{-1} = x_0: the velocity starts at zero. `adam` is the exponential average of gradients
with its preconditioner at rest: its eigenvalues are those of the *preconditioned* Hessian. Everything is float64 NumPy.
Twin: analysis.descent.
"""

from typing import NamedTuple

import jax
import numpy as np

from numdl import checks, trees

METHODS = ("gradient_descent", "polyak", "nesterov", "adam")


class Tuning(NamedTuple):
    """The best settings of a method on quadratics with eigenvalues in [least, largest]."""

    learning_rate: float
    momentum: float
    rate: float  # factor of the error per step, in the limit of many steps


def sharpness_limit(method, *, learning_rate, momentum=0.0):
    """PREDICTED largest eigenvalue of the Hessian at which the method is stable: the edge of stability.

        gradient_descent 2 / eta,                        polyak (2 + 2 b) / eta,
        nesterov (2 + 2 b) / ((1 + 2 b) eta),            adam (2 + 2 b) / ((1 - b) eta), that is 38 / eta at b = 0.9

    Parameters
    ----------
    method : str                one of METHODS
    learning_rate : scalar      eta > 0
    momentum : scalar           b, 0 <= b < 1; beta_1 of adam; 0 for gradient_descent
    Source: Cohen et al. 2021, arXiv:2103.00065, eq. (1) and appendix B; Cohen et al. 2022, arXiv:2207.14484.
    """
    b = _momentum(method, momentum)
    learning_rate = checks.positive("learning_rate", learning_rate)
    limit = {
        "gradient_descent": 2.0,
        "polyak": 2 * (1 + b),
        "nesterov": 2 * (1 + b) / (1 + 2 * b),
        "adam": 2 * (1 + b) / (1 - b),
    }[method]
    return limit / np.asarray(learning_rate, np.float64)


def growth(eigenvalues, *, method, learning_rate, momentum=0.0):
    """PREDICTED factor of a mode's size per step, in the limit of many steps: the largest |r| with r^2 - t r + d = 0.

    Parameters
    ----------
    eigenvalues : array         of the Hessian, any shape and sign
    Returns
    -------
    array of that shape         below 1: converges, above 1: diverges
    """
    trace, determinant = _step(eigenvalues, method, learning_rate, momentum)
    root = np.sqrt(trace.astype(complex) ** 2 - 4 * determinant)
    return np.maximum(np.abs(trace + root), np.abs(trace - root)) / 2


def path(start, *, eigenvalues, steps, method, learning_rate, momentum=0.0):
    """PREDICTED coordinates in the eigenbasis at every step on a quadratic, measured from its minimum.

        x_{k+1} = t x_k - d x_{k-1},    x_{-1} = x_0

    For nesterov these are the x_k; optax holds the points x_k + b (x_k - x_{k-1}) at which it takes the gradient.

    Parameters
    ----------
    start : array [n]           x_0
    eigenvalues : array [n]     of the Hessian
    Returns
    -------
    array [steps + 1, n]
    """
    steps = checks.whole("steps", steps, least=0)
    trace, determinant = _step(eigenvalues, method, learning_rate, momentum)
    checks.finite("start", start, shape=trace.shape)
    states = np.empty((steps + 1, *trace.shape))
    before = states[0] = np.asarray(start, np.float64)
    with np.errstate(over="ignore", invalid="ignore"):  # beyond the edge a mode leaves float64
        for k in range(steps):
            states[k + 1], before = trace * states[k] - determinant * before, states[k]
    return states


def tuning(method, *, least, largest):
    """PREDICTED best learning rate and momentum on quadratics with eigenvalues between `least` and `largest`.

    With k = largest / least, the rates are (k - 1) / (k + 1), 1 - 2 / (sqrt(k) + 1) and 1 - 2 / sqrt(3 k + 1).

    Parameters
    ----------
    method : str                gradient_descent, polyak or nesterov
    least, largest : scalar     0 < least <= largest
    Source: Polyak 1964; Lessard, Recht & Packard 2016, arXiv:1408.3595, proposition 1.
    """
    checks.one_of("method", method, METHODS[:3])
    checks.positive("least", least, shape=())
    checks.finite("largest", largest, least=float(least), shape=())
    k = largest / least
    if method == "gradient_descent":
        return Tuning(2 / (least + largest), 0.0, (k - 1) / (k + 1))
    if method == "polyak":
        rate = 1 - 2 / (np.sqrt(k) + 1)
        return Tuning(4 / (np.sqrt(least) + np.sqrt(largest)) ** 2, rate**2, rate)
    root = np.sqrt(3 * k + 1)
    return Tuning(4 / (3 * largest + least), (root - 2) / (root + 2), 1 - 2 / root)


def modified_loss(loss, *, learning_rate):
    """PREDICTED loss whose gradient flow gradient descent follows, one order closer than that of the loss itself.

        E(theta) + learning_rate / 4 |E'(theta)|^2

    After n steps gradient descent is O(h) from the flow of E and O(h^2) from that of the modified loss, at time n h.

    Parameters
    ----------
    loss : function             (params, ...) -> scalar, twice differentiable
    Returns
    -------
    function                    of the same arguments; `jax.grad` it
    Source: backward error analysis, Hairer & Lubich & Wanner, ch. IX; Barrett & Dherin 2021, arXiv:2009.11162, eq. (3).
    """
    checks.function("loss", loss)
    checks.positive("learning_rate", learning_rate, shape=())

    def modified(params, *rest):
        value, gradient = jax.value_and_grad(loss)(params, *rest)
        return value + learning_rate / 4 * trees.inner(gradient, gradient)

    return modified


def mode_strength(times, *, singular_value, start, depth):
    """PREDICTED strength of one mode of a deep linear network under gradient flow from balanced small weights.

        u' = D u^(2 - 2/D) (s - u),  u(0) = u_0;     D = 2:  u = s e^{2 s t} / (e^{2 s t} - 1 + s / u_0)

    for the loss 1/2 E |W_D ... W_1 x - y|^2 with white inputs; t = learning_rate * step.

    Parameters
    ----------
    times : array               t >= 0, any shape
    singular_value : scalar     s > 0 of the correlation E y x'
    start : scalar              0 < u_0 < s, product of the layers' equal strengths at t = 0
    depth : int                 layers D >= 1
    Source: Saxe, McClelland & Ganguli 2014, arXiv:1312.6120, eqs. (12) and (16).
    """
    times = checks.finite("times", checks.concrete("times", times), least=0.0)
    s, u0 = _mode(singular_value, start, depth)
    t = np.asarray(times, np.float64)
    if depth == 1:
        return s - (s - u0) * np.exp(-t)
    edges = np.linspace(np.log(u0 / (s - u0)), 38.0, 4001)  # logit of u / s; at 38 u = s to rounding
    reached = np.concatenate([[0.0], np.cumsum(_durations(edges[:-1], edges[1:], s, depth))])
    cell = np.clip(np.searchsorted(reached, t, side="right") - 1, 0, len(edges) - 2)
    logit = edges[cell]
    for _ in range(4):  # Newton on t(logit), whose slope changes by a percent within a cell
        gap = t - reached[cell] - _durations(edges[cell], logit, s, depth)
        logit = np.minimum(logit + gap / _slowness(logit, s, depth), 38.0)
    return s / (1 + np.exp(-logit))


def learning_time(*, singular_value, start, end, depth):
    """PREDICTED time t = learning_rate * steps in which a mode grows from `start` to `end`; see `mode_strength`.

    D = 2:  ln(u (s - u_0) / (u_0 (s - u))) / (2 s)
    """
    s, u0 = _mode(singular_value, start, depth)
    end = checks.finite("end", checks.concrete("end", end), least=float(start))
    u = np.asarray(end, np.float64)
    if (u >= s).any():
        raise checks.BadValue(
            f"end must be below singular_value = {s:g}, which is never reached; got {u.max()}"
            + f", shape {u.shape}" * (u.ndim > 0)
        )
    if depth == 1:
        return np.log((s - u0) / (s - u))
    edges = np.linspace(np.log(u0 / (s - u0)), np.log(u / (s - u)), 400)
    return _durations(edges[:-1], edges[1:], s, depth).sum(axis=0)


_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(8)


def _slowness(logit, s, depth):
    """dt / d logit = u^(2/D - 1) / (s D) at u = s / (1 + e^-logit)."""
    return (s / (1 + np.exp(-logit))) ** (2 / depth - 1) / (s * depth)


def _durations(begin, end, s, depth):
    """Time from one logit to another, elementwise, by Gauss-Legendre."""
    half = (end - begin) / 2
    points = (begin + half)[..., None] + half[..., None] * _NODES
    return half * (_slowness(points, s, depth) @ _WEIGHTS)


def _mode(singular_value, start, depth):
    depth = checks.whole("depth", depth)
    checks.positive("singular_value", singular_value, shape=())
    checks.positive("start", start, shape=())
    if start >= singular_value:
        raise checks.BadValue(f"start must be below singular_value = {singular_value:g}; got {start:g}")
    return float(singular_value), float(start)


def _momentum(method, momentum):
    checks.one_of("method", method, METHODS)
    checks.finite("momentum", momentum, least=0.0, shape=())
    if momentum >= 1:
        raise checks.BadValue(f"momentum must be below 1; got {momentum!r}")
    if method == "gradient_descent" and momentum != 0:
        raise checks.BadValue(f"momentum must be 0 for gradient_descent; got {momentum!r}: polyak or nesterov have one")
    return float(momentum)


def _step(eigenvalues, method, learning_rate, momentum):
    """Trace and determinant of one step, for each eigenvalue."""
    b = _momentum(method, momentum)
    checks.positive("learning_rate", learning_rate, shape=())
    eigenvalues = checks.finite("eigenvalues", checks.concrete("eigenvalues", eigenvalues))
    a = learning_rate * np.asarray(eigenvalues, np.float64)
    trace, determinant = {
        "gradient_descent": (1 - a, 0 * a),
        "polyak": (1 + b - a, b + 0 * a),
        "nesterov": ((1 + b) * (1 - a), b * (1 - a)),
        "adam": (1 + b - (1 - b) * a, b + 0 * a),
    }[method]
    return trace, determinant
