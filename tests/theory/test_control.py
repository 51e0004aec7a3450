"""The regulator against scipy's Riccati solver, finite differences, plain recursions and quadrature over all chance."""

import itertools

import numpy as np
import pytest
from scipy.linalg import solve_discrete_are

from numdl.theory import control

A, B = np.array([[1.0, 0.3], [-0.1, 0.9]]), np.array([[0.2], [0.5]])
Q, R, F = np.array([[1.0, 0.2], [0.2, 0.5]]), np.array([[0.7]]), np.eye(2)
S, W = np.array([[1.0, 0.3], [0.3, 0.5]]), np.array([[0.05, 0.02], [0.02, 0.1]])
GAIN = np.array([[0.3, 0.4]])


def problem(steps, **changes):
    return control.Regulator(A, B, Q, R, F, S, W, steps)._replace(**changes)


def scalar(steps):
    return control.Regulator([[0.8]], [[0.5]], [[1.0]], [[0.3]], [[2.0]], [[0.9]], [[0.2]], steps)


def test_a_long_horizon_has_scipys_stationary_optimum():
    p = solve_discrete_are(A, B, Q, R)
    found = control.riccati(problem(200))
    np.testing.assert_allclose(found.values[0], p, rtol=1e-10)
    np.testing.assert_allclose(found.gains[0], np.linalg.solve(R + B.T @ p @ B, B.T @ p @ A), rtol=1e-10)


def test_the_optimum_is_the_best_of_all_controls_in_the_stacked_problem():
    """Without chance: a least-squares problem in all controls at once."""
    steps, x = 5, np.array([1.0, -0.7])
    free = np.concatenate([np.linalg.matrix_power(A, t) for t in range(steps + 1)])
    pushed = np.zeros((2 * (steps + 1), steps))
    for t, s in itertools.combinations(range(steps + 1), 2):
        pushed[2 * s : 2 * s + 2, t] = (np.linalg.matrix_power(A, s - t - 1) @ B)[:, 0]
    weight = np.kron(np.eye(steps + 1), Q)
    weight[-2:, -2:] = F
    hessian, slope = pushed.T @ weight @ pushed + R[0, 0] * np.eye(steps), pushed.T @ weight @ free @ x
    least = x @ free.T @ weight @ free @ x - slope @ np.linalg.solve(hessian, slope)
    found = control.riccati(problem(steps))
    np.testing.assert_allclose(x @ found.values[0] @ x, least, rtol=1e-10)
    np.testing.assert_allclose(-found.gains[0] @ x, -np.linalg.solve(hessian, slope)[:1], rtol=1e-10)


def test_the_best_gain_costs_the_optimum_and_chance_a_constant():
    p = solve_discrete_are(A, B, Q, R)
    made = problem(6, final_cost=p)
    best = control.riccati(made)
    np.testing.assert_allclose(control.value(made, best.gains[0], variance=0.0).cost, best.cost, rtol=1e-9)
    chance = 6 * 0.5 * np.trace(R + B.T @ p @ B)
    np.testing.assert_allclose(control.value(made, best.gains[0], variance=0.5).cost, best.cost + chance, rtol=1e-9)
    gradient = control.policy_gradient(made, best.gains[0], variance=0.5)
    np.testing.assert_allclose(gradient.mean, 0, atol=1e-10)


@pytest.mark.parametrize("controls", [1, 2])
def test_the_gradient_is_the_finite_difference_of_the_cost(controls):
    push, price = np.eye(2)[:, -controls:] + 0.1, np.diag([0.7, 1.2])[:controls, :controls]
    made = problem(7, control=push, control_cost=price)
    gain = np.array([[0.3, 0.4], [0.1, -0.2]])[:controls]
    cost = lambda k: control.value(made, k, variance=0.4).cost  # noqa: E731
    exact = control.policy_gradient(made, gain, variance=0.4, baseline="value").mean
    for i, j in np.ndindex(gain.shape):
        push = np.zeros_like(gain)
        push[i, j] = 1e-5
        np.testing.assert_allclose(exact[i, j], (cost(gain + push) - cost(gain - push)) / 2e-5, rtol=1e-7)


def by_quadrature(made, gain, variance, baseline):
    """Mean and variance over all chance of a scalar episode: Gauss-Hermite, exact for polynomials of degree eleven."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(6)
    steps, (a, b, q, r, f, s, w) = made.steps, (np.asarray(part).item() for part in made[:7])
    grid = np.stack(np.meshgrid(*[nodes] * (1 + 2 * steps), indexing="ij"), axis=-1).reshape(-1, 1 + 2 * steps)
    chance = np.stack(np.meshgrid(*[weights] * (1 + 2 * steps), indexing="ij"), axis=-1).reshape(grid.shape).prod(1)
    chance, x, states, costs = chance / chance.sum(), np.sqrt(s) * grid[:, 0], [], []
    for t in range(steps):
        u = -gain * x + np.sqrt(variance) * grid[:, 1 + 2 * t]
        states.append(x)
        costs.append(q * x**2 + r * u**2)
        x = a * x + b * u + np.sqrt(w) * grid[:, 2 + 2 * t]
    estimate, later, v, offset = 0.0, f * x**2, f, 0.0
    for t in reversed(range(steps)):
        later = later + costs[t]
        offset += v * (w + variance * b**2) + variance * r
        v = q + r * gain**2 + (a - b * gain) ** 2 * v
        below = {"none": 0.0, "mean": chance @ later, "value": v * states[t] ** 2 + offset}[baseline]
        estimate = estimate - (later - below) * grid[:, 1 + 2 * t] * states[t] / np.sqrt(variance)
    mean = chance @ estimate
    return mean, chance @ (estimate - mean) ** 2


@pytest.mark.parametrize("baseline", control.BASELINES)
@pytest.mark.parametrize("steps", [1, 2])
def test_moments_of_the_estimate_are_integrals_over_all_chance(steps, baseline):
    found = control.policy_gradient(scalar(steps), [[0.4]], variance=0.3, baseline=baseline)
    mean, variance = by_quadrature(scalar(steps), 0.4, 0.3, baseline)
    np.testing.assert_allclose([found.mean.item(), found.covariance.item()], [mean, variance], rtol=1e-9)


def test_the_covariance_turns_with_the_coordinates_of_the_states():
    """x -> T x: gains turn by T^-1, and the covariance with them; off the diagonal too."""
    turn = np.array([[0.8, -0.6], [0.6, 0.8]])
    around = lambda m: turn @ m @ turn.T  # noqa: E731
    made = control.Regulator(around(A), turn @ B, around(Q), R, around(F), around(S), around(W), 4)
    one = control.policy_gradient(problem(4), GAIN, variance=0.5, baseline="mean")
    two = control.policy_gradient(made, GAIN @ turn.T, variance=0.5, baseline="mean")
    np.testing.assert_allclose(two.mean, one.mean @ turn.T, rtol=1e-10)
    np.testing.assert_allclose(two.covariance, around(one.covariance), rtol=1e-10)
    assert abs(one.covariance[0, 1]) > 0.1


def test_what_does_not_fit_is_refused_by_name():
    for changes, said in [
        ({"transition": np.ones((2, 3))}, "regulator.transition"),
        ({"control": np.ones((3, 1))}, "regulator.control"),
        ({"state_cost": np.array([[1.0, 0.3], [0.0, 1.0]])}, "regulator.state_cost"),
        ({"noise": -np.eye(2)}, "regulator.noise"),
        ({"control_cost": [[0.0]]}, "regulator.control_cost"),
        ({"steps": 0}, "regulator.steps"),
    ]:
        with pytest.raises(ValueError, match=f"{said} must"):
            control.riccati(problem(3)._replace(**changes))
