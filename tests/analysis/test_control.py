"""Episodes, gradients and fitted values against loops and least squares in NumPy, and against the exact regulator."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numdl.analysis import control as measured
from numdl.statistics import agreement
from numdl.theory import control as predicted

VARIANCE, STEPS = 0.3, 3
A, B = np.array([[1.0, 0.3], [-0.1, 0.9]], np.float32), np.array([[0.2], [0.5]], np.float32)
GAIN = np.array([[0.3, 0.4]], np.float32)
EXACT = predicted.Regulator(A, B, np.eye(2), np.eye(1), 2 * np.eye(2), np.eye(2), 0.01 * np.eye(2), STEPS)


def policy(params, x):
    return -params @ x


def dynamics(key, x, u):
    return A @ x + B @ u + 0.1 * jax.random.normal(key, x.shape, x.dtype)


def cost(x, u):
    return x @ x + u @ u


def final(x):
    return 2 * x @ x


def features(x):
    return jnp.array([1.0, x[0] ** 2, 2 * x[0] * x[1], x[1] ** 2])


TASK = measured.Task(policy, dynamics, cost, final, STEPS)


@pytest.fixture(scope="module")
def seen():
    x = jax.random.normal(jax.random.key(0), (20_000, 2))
    return measured.episodes(jax.random.key(1), GAIN, x, TASK, variance=VARIANCE)


def below(seen):
    """The exact value of the states."""
    found, x = predicted.value(EXACT, GAIN, variance=VARIANCE), np.asarray(seen.states, float)
    return (np.einsum("eti,tij,etj->et", x, found.values, x) + found.offsets)[:, :-1]


def test_episodes_follow_dynamics_and_costs(seen):
    x, u = np.asarray(seen.states, float), np.asarray(seen.controls, float)
    moved = x[:, 1:] - x[:, :-1] @ A.T - u @ B.T
    chance = u + x[:, :-1] @ GAIN.T
    assert np.abs(agreement(np.zeros((STEPS, 2)), moved).z).max() < 5.5
    assert np.abs(agreement(np.full((STEPS, 2), 0.01), moved**2).z).max() < 5.5
    assert np.abs(agreement(np.full((STEPS, 1), VARIANCE), chance**2).z).max() < 5.5
    costs = np.concatenate([(x[:, :-1] ** 2).sum(2) + (u**2).sum(2), 2 * (x[:, -1:] ** 2).sum(2)], axis=1)
    np.testing.assert_allclose(seen.costs, costs, rtol=1e-5)
    for t in range(STEPS + 1):
        np.testing.assert_allclose(seen.to_go[:, t], costs[:, t:].sum(axis=1), rtol=1e-5)


@pytest.mark.parametrize("name", predicted.BASELINES)
def test_gradients_are_sums_over_time_and_have_the_predicted_moments(seen, name):
    at = {"none": 0.0, "mean": np.asarray(seen.to_go[:, :-1]).mean(0), "value": below(seen)}[name]
    found = measured.policy_gradient(GAIN, seen, policy, variance=VARIANCE, baseline=np.asarray(at, np.float32))
    x, u, to_go = (np.asarray(part, float) for part in (seen.states, seen.controls, seen.to_go))
    scores = -(u + x[:, :-1] @ GAIN.T)[..., None] * x[:, :-1, None] / VARIANCE
    by_hand = np.sum((to_go[:, :-1] - at)[..., None, None] * scores, axis=1)
    np.testing.assert_allclose(found, by_hand, rtol=1e-3, atol=1e-3)
    exact = predicted.policy_gradient(EXACT, GAIN, variance=VARIANCE, baseline=name)
    assert np.abs(agreement(exact.mean, by_hand).z).max() < 5.5
    parts = (by_hand - exact.mean)[:, 0]
    products = parts[:, :, None] * parts[:, None]
    assert np.abs(agreement(exact.covariance, products).z).max() < 5.5


@pytest.mark.parametrize("bootstrap", [False, True])
def test_values_are_least_squares_at_every_time(seen, bootstrap):
    found = measured.value(seen, features, bootstrap=bootstrap)
    x, costs, to_go = (np.asarray(part, float) for part in (seen.states, seen.costs, seen.to_go))
    later = np.zeros(len(x))
    for t in reversed(range(STEPS + 1)):
        a, b = x[:, t].T
        rows = np.stack([np.ones_like(a), a**2, 2 * a * b, b**2], axis=1)
        target = costs[:, t] + later if bootstrap else to_go[:, t]
        weights = np.linalg.solve(rows.T @ rows, rows.T @ target)
        later = rows @ weights
        np.testing.assert_allclose(found.weights[t], weights, rtol=2e-3, atol=2e-3)
        np.testing.assert_allclose(found.residual[t], np.sqrt(np.mean((target - later) ** 2)), rtol=1e-2, atol=1e-3)
    exact = predicted.value(EXACT, GAIN, variance=VARIANCE)
    p = exact.values[0]
    np.testing.assert_allclose(found.weights[0], [exact.offsets[0], p[0, 0], p[0, 1], p[1, 1]], rtol=0.1, atol=0.1)
    assert np.all(np.asarray(found.rank) == 4)


def test_features_that_say_the_same_twice_are_told_by_their_rank(seen):
    found = measured.value(seen, lambda x: jnp.array([1.0, x[0], x[0]]))
    np.testing.assert_array_equal(found.rank, 2)
    np.testing.assert_allclose(found.weights[:, 1], found.weights[:, 2], rtol=1e-2, atol=1e-3)


def test_any_policy_and_pytree_will_do():
    """A tanh policy with a dictionary of parameters: the gradient of each episode by finite differences of ln p."""
    params = {"w": np.array([[0.5, -0.2]], np.float32), "b": np.array([0.1], np.float32)}
    act = lambda p, x: jnp.tanh(p["w"] @ x + p["b"])  # noqa: E731
    some = measured.episodes(
        jax.random.key(2), params, np.ones((4, 2), np.float32), TASK._replace(policy=act), variance=VARIANCE
    )
    found = measured.policy_gradient(params, some, act, variance=VARIANCE)
    x, u, to_go = (np.asarray(part, float) for part in (some.states[:, :-1], some.controls, some.to_go[:, :-1]))

    def weighted(b):
        means = np.tanh(x @ params["w"].T.astype(float) + b)
        return np.sum(to_go * -((u - means) ** 2)[..., 0] / (2 * VARIANCE), axis=1)

    slope = (weighted(0.1 + 1e-5) - weighted(0.1 - 1e-5)) / 2e-5
    np.testing.assert_allclose(found["b"][:, 0], slope, rtol=1e-3, atol=1e-3)


def test_what_does_not_fit_is_refused_by_name(seen):
    with pytest.raises(ValueError, match=r"baseline must"):
        measured.policy_gradient(GAIN, seen, policy, variance=VARIANCE, baseline=np.ones((7, STEPS)))
    x = np.ones((4, 2), np.float32)
    bad = TASK._replace(dynamics=lambda key, x, u: x[:1])
    with pytest.raises(ValueError, match=r"dynamics\(key, x, u\) must"):
        measured.episodes(jax.random.key(0), GAIN, x, bad, variance=VARIANCE)
    with pytest.raises((ValueError, TypeError), match=r"task.cost must"):
        measured.episodes(jax.random.key(0), GAIN, x, TASK._replace(cost=lambda x, u: x), variance=VARIANCE)
