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

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import ArrayLike, Float64

from numdl import checks, trees
from numdl.theory._adam import adam_step_rms

__all__ = [
    "Tuning",
    "adam_step_rms",
    "growth",
    "learning_time",
    "mode_strength",
    "modified_loss",
    "path",
    "sharpness_limit",
    "tuning",
]

METHODS = ("gradient_descent", "polyak", "nesterov", "adam")


class Tuning(NamedTuple):
    """The best settings of a method on quadratics with eigenvalues in [least, largest]."""

    learning_rate: float
    momentum: float
    rate: float  # factor of the error per step, in the limit of many steps


def sharpness_limit(
    method: str, *, learning_rate: ArrayLike, momentum: ArrayLike = 0.0
) -> Float64[np.ndarray, "..."] | np.float64:
    """PREDICTED largest eigenvalue of the Hessian (sharpness) at which the method is stable: the edge of stability.

        gradient_descent 2/eta,                          polyak (2 + 2 b) / eta,
        nesterov (2 + 2 b) / ((1 + 2 b) eta),            adam (2 + 2 b) / ((1 - b) eta), that is 38 / eta at b = 0.9

    Parameters
    ----------
    method : str                one of METHODS
    learning_rate : scalar or array     eta > 0
    momentum : scalar           b, 0 <= b < 1; beta_1 of adam; 0 for gradient_descent
    Returns
    -------
    shaped like learning_rate
    Raises
    ------
    ValueError, TypeError       no such method, a momentum outside [0, 1), a learning rate that is not positive
    Source: Cohen et al. 2021, arXiv:2103.00065; Cohen et al. 2022, arXiv:2207.14484.
    Twin: analysis.descent.sharpness.    Experiment: d7.
    """
    b = _momentum(method, momentum)
    learning_rate = checks.positive("learning_rate", checks.concrete("learning_rate", learning_rate))
    limit = {
        "gradient_descent": 2.0,
        "polyak": 2 * (1 + b),
        "nesterov": 2 * (1 + b) / (1 + 2 * b),
        "adam": 2 * (1 + b) / (1 - b),
    }[method]
    return limit / np.asarray(learning_rate, np.float64)


def growth(
    eigenvalues: ArrayLike, *, method: str, learning_rate: ArrayLike, momentum: ArrayLike = 0.0
) -> Float64[np.ndarray, "..."] | np.float64:
    """PREDICTED convergence rate of a mode: the factor of its size per step, in the limit of many steps.

        growth = max |r|,    r^2 - t r + d = 0

    with t and d from the table of the module.

    Parameters
    ----------
    eigenvalues : array         of the Hessian, any shape and sign
    method : str                one of METHODS
    learning_rate : scalar      > 0
    momentum : scalar           b, 0 <= b < 1; 0 for gradient_descent
    Returns
    -------
    array of that shape         below 1: converges, above 1: diverges
    Raises
    ------
    ValueError, TypeError       no such method, a number out of its range, eigenvalues that are not finite
    Source: elementary, the roots of the recurrence.
    Twin: analysis.descent.path.    Experiment: d6.
    """
    trace, determinant = _step(eigenvalues, method, learning_rate, momentum)
    size = np.maximum(np.abs(trace), 1.0)  # whose square may leave the range
    root = size * np.sqrt((trace / size).astype(complex) ** 2 - 4 * determinant / size / size)
    return np.maximum(np.abs(trace + root), np.abs(trace - root)) / 2


def path(
    start: ArrayLike,
    *,
    eigenvalues: ArrayLike,
    steps: int,
    method: str,
    learning_rate: ArrayLike,
    momentum: ArrayLike = 0.0,
) -> Float64[np.ndarray, "points n"]:
    """PREDICTED path of gradient descent, heavy ball (polyak) or Nesterov on a quadratic, in its eigenbasis.

        x_{k+1} = t x_k - d x_{k-1},    x_{-1} = x_0

    measured from the minimum, t and d from the table of the module. For nesterov these are the x_k; optax holds the
    points x_k + b (x_k - x_{k-1}) at which it takes the gradient.

    Parameters
    ----------
    start : array [n]           x_0
    eigenvalues : array [n]     of the Hessian
    steps : int                 >= 0
    method : str                one of METHODS
    learning_rate : scalar      > 0
    momentum : scalar           b, 0 <= b < 1; 0 for gradient_descent
    Returns
    -------
    array [steps + 1, n]
    Raises
    ------
    ValueError, TypeError       no such method, a number out of its range, start of another shape than eigenvalues
    Source: Polyak 1964; Nesterov 1983; the recurrences themselves.
    Twin: analysis.descent.path.    Experiment: d6.
    """
    steps = checks.whole("steps", steps, least=0)
    trace, determinant = _step(eigenvalues, method, learning_rate, momentum)
    start = checks.finite("start", checks.concrete("start", start), shape=trace.shape)
    states = np.empty((steps + 1, *trace.shape))
    before = states[0] = np.asarray(start, np.float64)
    with np.errstate(over="ignore", invalid="ignore"):  # beyond the edge a mode leaves float64
        for k in range(steps):
            states[k + 1], before = trace * states[k] - determinant * before, states[k]
    return states


def tuning(method: str, *, least: ArrayLike, largest: ArrayLike) -> Tuning:
    """PREDICTED best learning rate and momentum on quadratics, and the convergence rate that they give.

        gradient_descent (k - 1) / (k + 1),   polyak 1 - 2 / (sqrt(k) + 1),   nesterov 1 - 2 / sqrt(3 k + 1)

    with k = largest / least the condition number.

    Parameters
    ----------
    method : str                gradient_descent, polyak (heavy ball) or nesterov
    least, largest : scalar     bounds of the eigenvalues, 0 < least <= largest
    Returns
    -------
    Tuning(learning_rate, momentum, rate)
    Raises
    ------
    ValueError, TypeError       no such method, bounds that are not positive or not in order
    Source: Polyak 1964; Lessard, Recht & Packard 2016, arXiv:1408.3595, proposition 1.
    Twin: analysis.descent.path.    Experiment: d6.
    """
    checks.one_of("method", method, METHODS[:3])
    least = checks.number("least", least, above=0.0)
    largest = checks.number("largest", largest, least=least)
    k = largest / least
    if method == "gradient_descent":
        return Tuning(2 / (least + largest), 0.0, (k - 1) / (k + 1))
    if method == "polyak":
        rate = 1 - 2 / (np.sqrt(k) + 1)
        return Tuning(4 / (np.sqrt(least) + np.sqrt(largest)) ** 2, rate**2, rate)
    root = np.sqrt(3 * k + 1)
    return Tuning(4 / (3 * largest + least), (root - 2) / (root + 2), 1 - 2 / root)


def modified_loss(loss: Callable, *, learning_rate: ArrayLike) -> Callable:
    """PREDICTED loss whose gradient flow gradient descent follows, by backward error analysis, one order closer.

        E(theta) + learning_rate / 4 |E'(theta)|^2

    The second term is the implicit gradient regularization. After n steps gradient descent is O(h) from the flow of E
    and O(h^2) from that of the modified loss, at time n h.

    Parameters
    ----------
    loss : function             E, (params, ...) -> scalar, twice differentiable
    learning_rate : scalar      h > 0
    Returns
    -------
    function                    of the same arguments; `jax.grad` it
    Raises
    ------
    ValueError, TypeError       a learning rate that is not a positive scalar, a loss that is not a function
    Source: backward error analysis, Hairer & Lubich & Wanner, ch. IX; Barrett & Dherin 2021, arXiv:2009.11162.
    Twin: analysis.descent.path.    Experiment: d8.
    """
    checks.function("loss", loss)
    learning_rate = checks.positive("learning_rate", learning_rate, shape=())

    def modified(params, *rest):
        value, gradient = jax.value_and_grad(loss)(params, *rest)
        return value + learning_rate / 4 * trees.inner(gradient, gradient)

    return modified


def mode_strength(
    times: ArrayLike, *, singular_value: ArrayLike, start: ArrayLike, depth: int
) -> Float64[np.ndarray, "..."] | np.float64:
    """PREDICTED strength of one mode of a deep linear network under gradient flow from balanced small weights.

        u' = D u^(2 - 2/D) (s - u),  u(0) = u_0;     D = 2:  u = s e^{2 s t} / (e^{2 s t} - 1 + s / u_0)

    for the loss 1/2 E |W_D ... W_1 x - y|^2 with white inputs; t = learning_rate * step. From small u_0 modes are
    learned one after the other: saddle-to-saddle dynamics.

    Parameters
    ----------
    times : array               t >= 0, any shape
    singular_value : scalar     s > 0 of the correlation E y x'
    start : scalar              0 < u_0 < s, product of the layers' equal strengths at t = 0
    depth : int                 layers D >= 1
    Returns
    -------
    u(t), shaped like times
    Raises
    ------
    ValueError, TypeError       a negative time, start outside (0, s), depth < 1
    Source: Saxe, McClelland & Ganguli 2014, arXiv:1312.6120, eqs. (12) and (16).
    Twin: analysis.descent.mode_strength.    Experiments: d9, b11.
    """
    times = checks.finite("times", checks.concrete("times", times), least=0.0)
    s, u0 = _mode(singular_value, start, depth)
    t = np.asarray(times, np.float64)
    if depth == 1:
        return u0 * np.exp(-t) - s * np.expm1(-t)
    edges = np.linspace(_logit(u0, s), 38.0, 4001)  # logit of u / s; at 38 u = s to rounding
    reached = np.concatenate([[0.0], np.cumsum(_durations(edges[:-1], np.diff(edges), s, depth))])
    cell = np.clip(np.searchsorted(reached, t, side="right") - 1, 0, len(edges) - 2)
    logit = edges[cell]
    for _ in range(4):  # Newton on t(logit), whose slope changes by a percent within a cell
        gap = t - reached[cell] - _durations(edges[cell], logit - edges[cell], s, depth)
        logit = np.minimum(logit + gap / _slowness(logit, s, depth), 38.0)
    return s * np.exp(-np.logaddexp(0.0, -logit))


def learning_time(
    *, singular_value: ArrayLike, start: ArrayLike, end: ArrayLike, depth: int
) -> Float64[np.ndarray, "..."] | np.float64:
    """PREDICTED learning time t = learning_rate * steps in which a mode grows from `start` to `end`.

        t = int du / (D u^(2 - 2/D) (s - u));     D = 2:  t = ln(u (s - u_0) / (u_0 (s - u))) / (2 s)

    Parameters
    ----------
    singular_value : scalar     s > 0 of the correlation E y x'
    start : scalar              u_0, 0 < u_0 < s
    end : scalar or array       u, u_0 <= u < s
    depth : int                 layers D >= 1
    Returns
    -------
    t, shaped like end
    Raises
    ------
    ValueError, TypeError       start or end outside of their ranges, depth < 1
    Source: Saxe, McClelland & Ganguli 2014, arXiv:1312.6120; see `mode_strength`.
    Twin: analysis.descent.mode_strength.    Experiments: d9, b11.
    """
    s, u0 = _mode(singular_value, start, depth)
    end = checks.finite("end", checks.concrete("end", end), least=float(start))
    u = np.asarray(end, np.float64)
    if (u >= s).any():
        got = f"{u.max()}, shape {u.shape}" if u.ndim else u
        raise checks.BadValue(f"end must be below singular_value = {s:g}, which is never reached; got {got}")
    if depth == 1:
        return -np.log1p(-(u - u0) / (s - u0))
    width = np.log1p((u - u0) / u0) - np.log1p(-(u - u0) / (s - u0))  # of logits, right where u is next to u_0
    begins = _logit(u0, s) + np.multiply.outer(np.arange(400) / 400, width)
    return _durations(begins, width / 400, s, depth).sum(axis=0)


_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(8)


def _slowness(logit, s, depth):
    """dt / d logit = u^(2/D - 1) / (s D) at u = s / (1 + e^-logit)."""
    return np.exp((2 / depth - 1) * (np.log(s) - np.logaddexp(0.0, -logit))) / (s * depth)


def _logit(u, s):
    """ln u / (s - u), the quotient of which may be below the range."""
    return np.log(u) - np.log(s - u)


def _durations(begin, width, s, depth):
    """Time from one logit to another, elementwise, by Gauss-Legendre."""
    half = np.asarray(width) / 2
    points = (begin + half)[..., None] + half[..., None] * _NODES
    return half * (_slowness(points, s, depth) @ _WEIGHTS)


def _mode(singular_value, start, depth):
    depth = checks.whole("depth", depth)
    singular_value = checks.number("singular_value", singular_value, above=0.0)
    start = checks.number("start", start, above=0.0)
    if start >= singular_value:
        raise checks.BadValue(f"start must be below singular_value = {singular_value:g}; got {start:g}")
    return singular_value, start


def _momentum(method, momentum):
    checks.one_of("method", method, METHODS)
    b = checks.number("momentum", momentum, least=0.0)
    if b >= 1:
        raise checks.BadValue(f"momentum must be below 1; got {momentum!r}")
    if method == "gradient_descent" and b != 0:
        raise checks.BadValue(f"momentum must be 0 for gradient_descent; got {momentum!r}: polyak or nesterov have one")
    return b


def _step(eigenvalues, method, learning_rate, momentum):
    """Trace and determinant of one step, for each eigenvalue."""
    b, learning_rate = _momentum(method, momentum), checks.number("learning_rate", learning_rate, above=0.0)
    eigenvalues = checks.finite("eigenvalues", checks.concrete("eigenvalues", eigenvalues))
    a = learning_rate * np.asarray(eigenvalues, np.float64)
    trace, determinant = {
        "gradient_descent": (1 - a, 0 * a),
        "polyak": (1 + b - a, b + 0 * a),
        "nesterov": ((1 + b) * (1 - a), b * (1 - a)),
        "adam": (1 + b - (1 - b) * a, b + 0 * a),
    }[method]
    return trace, determinant
