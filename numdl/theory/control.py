"""PREDICTED: the linear-quadratic regulator: its optimum, the cost of any gain, and what a policy gradient does there.

    x_{t+1} = A x_t + B u_t + w_t,    w ~ N(0, W),    x_0 ~ N(0, S),    t = 0 .. T-1
    policy: u_t = -K x_t + sqrt(variance) e_t,    e ~ N(0, I)
    J(K) = E[ sum over t of (x_t' Q x_t + u_t' R u_t) + x_T' F x_T ]

The costs are to be paid, so that descent lowers J. The chance of the policy adds a constant to J: it does not move the
best gains. Twin: analysis.control, which knows nothing of matrices. Everything is float64 NumPy.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import ArrayLike, ScalarLike

from numdl import checks
from numdl.records import record
from numdl.theory import _quadratic_forms

BASELINES = ("none", "mean", "value")
ROUNDING = 1e-12  # share of the largest entry by which a symmetric matrix may fail


class Regulator(NamedTuple):
    """A linear-quadratic problem; symmetric matrices are positive semidefinite, that of the controls' cost definite."""

    transition: ArrayLike  # [n, n]: A
    control: ArrayLike  # [n, m]: B
    state_cost: ArrayLike  # [n, n]: Q
    control_cost: ArrayLike  # [m, m]: R
    final_cost: ArrayLike  # [n, n]: F
    start: ArrayLike  # [n, n]: S, covariance of x_0
    noise: ArrayLike  # [n, n]: W, covariance of w
    steps: int  # T


@record
class Optimum:
    """The best policy of all."""

    gains: np.ndarray  # [steps, m, n]: K_t
    values: np.ndarray  # [steps + 1, n, n]: P_t; x' P_t x is what is still to be paid without chance
    cost: np.ndarray  # scalar: least J without exploration


@record
class PolicyValue:
    """What a policy costs."""

    cost: np.ndarray  # scalar: J
    values: np.ndarray  # [steps + 1, n, n]: P_t
    offsets: np.ndarray  # [steps + 1]: r_t; V_t(x) = x' P_t x + r_t
    covariances: np.ndarray  # [steps + 1, n, n]: E x_t x_t'


@record
class PolicyGradient:
    """Moments of the score-function gradient of one episode."""

    mean: np.ndarray  # [m, n]: dJ/dK
    covariance: np.ndarray  # [m n, m n]: of the estimate from one episode, K in row order


def riccati(regulator: Regulator) -> Optimum:
    """PREDICTED optimum of the regulator, backward in time from P_T = F.

        K_t = (R + B' P_{t+1} B)^-1 B' P_{t+1} A,    P_t = Q + A' P_{t+1} (A - B K_t)
        cost = tr P_0 S + sum over t of tr P_{t+1} W

    Parameters
    ----------
    regulator : Regulator       matrices and steps
    Returns
    -------
    Optimum                     gains [T, m, n], values [T + 1, n, n], cost
    Raises
    ------
    ValueError, TypeError       not a Regulator, matrices that do not fit, a covariance or cost that is not semidefinite
    Source: Bellman 1957; Anderson & Moore 1990, Optimal Control.    Experiment: f11.
    """
    made = _admitted(regulator)
    p, gains, values = made.final_cost, [], [made.final_cost]
    for _ in range(made.steps):
        gain = np.linalg.solve(
            made.control_cost + made.control.T @ p @ made.control, made.control.T @ p @ made.transition
        )
        p = made.state_cost + made.transition.T @ p @ (made.transition - made.control @ gain)
        gains.append(gain)
        values.append(p)
    values = np.array(values[::-1])
    cost = np.trace(values[0] @ made.start) + np.einsum("tij,ji->", values[1:], made.noise)
    return Optimum(np.array(gains[::-1]), values, np.float64(cost))


def value(regulator: Regulator, gain: ArrayLike, *, variance: ScalarLike) -> PolicyValue:
    """PREDICTED value function V_t(x) = x' P_t x + r_t of a linear policy, and its cost J = E V_0(x_0).

        P_t = Q + K' R K + (A - B K)' P_{t+1} (A - B K),    P_T = F
        r_t = r_{t+1} + tr P_{t+1} W + variance tr (R + B' P_{t+1} B),    r_T = 0

    Parameters
    ----------
    regulator : Regulator       matrices and steps
    gain : array [m, n]         K, of every time
    variance : scalar           >= 0, of each control
    Returns
    -------
    PolicyValue                 cost, values [T + 1, n, n], offsets [T + 1], covariances of the states [T + 1, n, n]
    Raises
    ------
    ValueError, TypeError       as `riccati`; a gain of another shape, a negative variance
    Source: Fazel et al. 2018, arXiv:1801.05039, section 3.
    Twin: analysis.control.value.    Experiment: f11.
    """
    made, gain = _with_gain(regulator, gain)
    return _value(made, gain, checks.number("variance", variance, least=0.0))


def policy_gradient(
    regulator: Regulator, gain: ArrayLike, *, variance: ScalarLike, baseline: str = "none"
) -> PolicyGradient:
    """PREDICTED mean and covariance of the score-function (REINFORCE) policy gradient from one episode.

        estimate = sum over t of (G_t - b_t) d ln p(u_t | x_t) / dK,    G_t what is paid from t on
        mean = dJ/dK = 2 sum over t of ((R + B' P_{t+1} B) K - B' P_{t+1} A) E x_t x_t'
        b_t = 0 ("none"), E G_t ("mean") or V_t(x_t) ("value")

    Score and G_t are quadratic forms of the episode's Gaussian numbers: the covariance is exact.

    Parameters
    ----------
    regulator : Regulator       matrices and steps
    gain : array [m, n]         K, of every time
    variance : scalar           > 0, of each control
    baseline : str              "none", "mean" or "value"
    Returns
    -------
    PolicyGradient              mean [m, n], covariance [m n, m n]; its trace is the variance
    Raises
    ------
    ValueError, TypeError       as `riccati`; a gain of another shape, a variance not above 0, another baseline
    Source: Williams 1992, Machine Learning 8; Fazel et al. 2018, arXiv:1801.05039; Magnus 1978 (the forms' moments).
    Twin: analysis.control.policy_gradient.    Experiment: f11.
    """
    made, gain = _with_gain(regulator, gain)
    variance = checks.number("variance", variance, above=0.0)
    baseline = checks.one_of("baseline", baseline, BASELINES)
    paid = _value(made, gain, variance)
    later = paid.values[1:]
    inner = made.control.T @ later
    slopes = (made.control_cost + inner @ made.control) @ gain - inner @ made.transition
    mean = 2 * np.sum(slopes @ paid.covariances[:-1], axis=0)
    return PolicyGradient(mean, _covariance(made, gain, variance, baseline, paid, mean.ravel()))


def _value(made, gain, variance):
    closed = made.transition - made.control @ gain
    now = made.state_cost + gain.T @ made.control_cost @ gain
    p, r, s = made.final_cost, 0.0, made.start
    values, offsets, covariances = [p], [r], [s]
    added = made.noise + variance * made.control @ made.control.T
    for _ in range(made.steps):
        r = r + np.trace(p @ added) + variance * np.trace(made.control_cost)
        p = now + closed.T @ p @ closed
        s = closed @ s @ closed.T + added
        values.append(p)
        offsets.append(r)
        covariances.append(s)
    cost = np.trace(p @ made.start) + r
    return PolicyValue(np.float64(cost), np.array(values[::-1]), np.array(offsets[::-1]), np.array(covariances))


def _covariance(made, gain, variance, baseline, paid, mean):
    """Of the estimate, by fourth moments over all pairs of times."""
    scores, totals, states = _forms(made, gain, variance)
    less = np.zeros_like(totals)
    shift = {
        "none": np.zeros(made.steps),
        "mean": np.trace(totals, axis1=1, axis2=2),
        "value": paid.offsets[:-1],
    }[baseline]
    if baseline == "value":
        less = np.swapaxes(states, 1, 2) @ paid.values[:-1] @ states
    above, count = totals - less, scores.shape[1]
    second = np.empty((count, count))
    for i in range(count):
        for j in range(i, count):
            forms = scores[:, None, i], above[:, None], scores[None, :, j], above[None, :]
            parts = _quadratic_forms.fourth_moment(forms, (0.0, -shift[:, None], 0.0, -shift[None, :]))
            second[i, j] = second[j, i] = np.sum(parts)
    return second - np.outer(mean, mean)


def _forms(made, gain, variance):
    """Of z, all Gaussian numbers of an episode: scores [T, m n, N, N], costs to come [T, N, N], states [T, n, N]."""
    n, m = made.control.shape
    size = n + made.steps * (m + n)
    base = np.eye(size)
    state, states, scores, costs = _root(made.start) @ base[:n], [], [], []
    for t in range(made.steps):
        at = n + t * (m + n)
        chance, pushed = base[at : at + m], base[at + m : at + m + n]
        action = np.sqrt(variance) * chance - gain @ state
        product = -chance[:, None, :, None] * state[None, :, None, :] / np.sqrt(variance)
        scores.append(product.reshape(m * n, size, size))
        costs.append(state.T @ made.state_cost @ state + action.T @ made.control_cost @ action)
        states.append(state)
        state = made.transition @ state + made.control @ action + _root(made.noise) @ pushed
    scores = np.array(scores)
    costs[-1] = costs[-1] + state.T @ made.final_cost @ state
    totals = np.cumsum(np.array(costs)[::-1], axis=0)[::-1]
    return (scores + np.swapaxes(scores, -1, -2)) / 2, totals, np.array(states)


def _root(covariance):
    values, vectors = np.linalg.eigh(covariance)
    return vectors * np.sqrt(np.maximum(values, 0.0))


def _with_gain(regulator, gain):
    made = _admitted(regulator)
    n, m = made.control.shape
    return made, _matrix("gain", gain, (m, n))


def _admitted(regulator):
    checks.instance("regulator", regulator, Regulator)
    transition = _matrix("regulator.transition", regulator.transition, (None, None))
    n = len(transition)
    checks.shape("regulator.transition", transition, (n, n))
    control = _matrix("regulator.control", regulator.control, (n, None))
    m = control.shape[1]
    sizes = {"state_cost": n, "control_cost": m, "final_cost": n, "start": n, "noise": n}
    parts = {name: _semidefinite(f"regulator.{name}", getattr(regulator, name), k) for name, k in sizes.items()}
    if np.linalg.eigvalsh(parts["control_cost"])[0] <= 0:
        raise checks.BadValue(f"regulator.control_cost must be positive definite; got {parts['control_cost'].tolist()}")
    return Regulator(transition, control, **parts, steps=checks.whole("regulator.steps", regulator.steps))


def _semidefinite(name, value, size):
    matrix = _matrix(name, value, (size, size))
    scale = np.abs(matrix).max()
    if np.abs(matrix - matrix.T).max() > ROUNDING * scale or np.linalg.eigvalsh(matrix)[0] < -ROUNDING * scale:
        raise checks.BadValue(f"{name} must be symmetric and positive semidefinite; got {matrix.tolist()}")
    return (matrix + matrix.T) / 2


def _matrix(name, value, shape):
    found = checks.array(name, checks.finite(name, checks.concrete(name, value)), ndim=2)
    return np.asarray(checks.shape(name, found, shape), np.float64)
