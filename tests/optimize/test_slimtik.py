"""slimTik against dense Tikhonov solutions and a plain recursion in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from numdl.optimize import least_squares, slimtik

pytestmark = pytest.mark.float32
WIDEST = jnp.zeros(()).dtype
EPS = float(jnp.finfo(WIDEST).eps)
BATCH, WIDTH, OUTPUTS, STEPS = 4, 6, 2, 7


def data(seed=0, noise=0.3):
    random = np.random.default_rng(seed)
    features = random.standard_normal((STEPS, BATCH, WIDTH))
    truth = random.standard_normal((WIDTH, OUTPUTS))
    return features, features @ truth + noise * random.standard_normal((STEPS, BATCH, OUTPUTS))


@functools.partial(jax.jit, static_argnames=("memory", "automatic"))
def run(features, targets, dampings, memory, automatic=False, least=1e-3, most=1.0):
    """All states after the batches, stacked."""

    def step(state, batch):
        a, y, damping = batch
        state = slimtik.update(state, a, y, damping=None if automatic else damping, least=least, most=most)
        return state, state

    begin = slimtik.start(width=WIDTH, outputs=OUTPUTS, batch=BATCH, memory=memory, dtype=features.dtype)
    return jax.lax.scan(step, begin, (features, targets, dampings))[1]


def cast(*arrays):
    return tuple(jnp.asarray(a, WIDEST) for a in arrays)


def test_with_everything_in_memory_it_is_tikhonov_on_all_data_seen():
    features, targets = data()
    dampings = np.array([0.5, 0.2, -0.3, 0.1, 0.0, 0.0, 0.4])
    states = run(*cast(features, targets, dampings), memory=STEPS - 1)
    for k in range(STEPS):
        a, y = features[: k + 1].reshape(-1, WIDTH) / 2, targets[: k + 1].reshape(-1, OUTPUTS) / 2
        tau = dampings[: k + 1].sum()
        expected = np.linalg.solve(a.T @ a + tau * np.eye(WIDTH), a.T @ y)
        np.testing.assert_allclose(states.weights[k], expected, atol=1e3 * EPS)
        np.testing.assert_allclose(states.total[k], tau, atol=10 * EPS)


def recursion(features, targets, memory, choose):
    """The update written out: a list of weights and of tau."""
    weights, tau, history = np.zeros((WIDTH, OUTPUTS)), 0.0, []
    for k in range(STEPS):
        a, y = features[k] / 2, targets[k] / 2
        rows = features[max(0, k - memory) : k + 1].reshape(-1, WIDTH) / 2
        tau_new = choose(k, a, y, rows, weights, tau)
        slope = a.T @ (a @ weights - y) + (tau_new - tau) * weights
        weights = weights - np.linalg.solve(rows.T @ rows + tau_new * np.eye(WIDTH), slope)
        tau = tau_new
        history.append((weights, tau))
    return history


def test_a_short_memory_forgets():
    features, targets = data()
    dampings = np.full(STEPS, 0.1)
    states = run(*cast(features, targets, dampings), memory=2)
    expected = recursion(features, targets, 2, lambda k, *_: 0.1 * (k + 1))
    for k in range(STEPS):
        np.testing.assert_allclose(states.weights[k], expected[k][0], atol=1e3 * EPS)
    other = run(*cast(features, targets, dampings), memory=STEPS - 1)
    assert np.abs(np.asarray(other.weights[-1]) - expected[-1][0]).max() > 1e-3


def cross_validated(k, a, y, rows, weights, tau, *, least=1e-3, most=1.0):
    low = max(least, tau / 2)
    grid = low * ((tau + most) / low) ** np.linspace(0, 1, 100)

    def criterion(new):
        inverse = np.linalg.inv(rows.T @ rows + new * np.eye(WIDTH))
        moved = weights - inverse @ (a.T @ (a @ weights - y) + (new - tau) * weights)
        return np.sum((a @ moved - y) ** 2) / (BATCH - np.trace(a @ inverse @ a.T)) ** 2

    return min(grid, key=criterion)


def test_the_damping_minimizes_sampled_cross_validation():
    features, targets = data(seed=3, noise=2.0)
    states = run(*cast(features, targets, np.zeros(STEPS)), memory=2, automatic=True)
    expected = recursion(features, targets, 2, cross_validated)
    np.testing.assert_allclose(states.total, [tau for _, tau in expected], rtol=1e-3)
    np.testing.assert_allclose(states.weights[-1], expected[-1][0], atol=1e-3)
    assert np.any(np.diff(np.asarray(states.total)) < 0) or np.any(np.asarray(states.total) > 2e-3)


def test_its_bounds_hold():
    features, targets = data(noise=0.0)
    states = run(*cast(features, targets, np.zeros(STEPS)), memory=2, automatic=True, least=0.05, most=0.01)
    totals = np.asarray(states.total)
    assert (totals >= 0.05 * (1 - 10 * EPS)).all()
    assert (np.diff(totals) <= 0.01 * (1 + 1e-3)).all()


def features_of(theta, x):
    return least_squares.with_bias(jnp.tanh(x @ theta))


def test_training_fits_a_curve_and_tells_its_history():
    random = np.random.default_rng(0)
    x = random.uniform(-2, 2, (60, 16, 1))
    batches = cast(x, np.sin(2 * x))
    theta = jnp.asarray(random.standard_normal((1, 12)) * 2, WIDEST)
    options = {"optimizer": optax.adam(1e-2)}
    (found, weights), history = jax.jit(functools.partial(slimtik.train, features_of, **options))(theta, batches)
    np.testing.assert_allclose(history.loss[0], np.sum(np.sin(2 * x[0]) ** 2) / 32, rtol=1e-5)
    assert (np.asarray(history.fitted[:5]) < np.asarray(history.loss[:5])).all()
    assert np.mean(np.asarray(history.loss[-5:])) < 0.05 * float(history.loss[0])
    assert weights.shape == (13, 1) and np.abs(np.asarray(found - theta)).max() > 1e-3 and (history.total > 0).all()


def test_the_start_has_the_memory_of_the_paper_and_the_default_precision():
    state = slimtik.start(width=3, outputs=2, batch=4)
    assert state.memory.shape == (6, 4, 3) and state.memory.dtype == jnp.zeros(()).dtype


def test_targets_say_how_many_outputs_there_are():
    batches = jnp.ones((3, 4, 2)), jnp.ones((3, 4, 1))
    with pytest.raises(ValueError, match=r"batches\[1\] must have shape \(3, 4, 2\); got \(3, 4, 1\)"):
        slimtik.train(lambda theta, x: x * theta, jnp.ones(2), batches, optimizer=optax.sgd(0.1), outputs=2)


def test_arguments_are_checked():
    state = slimtik.start(width=3, outputs=2, batch=4, memory=1, dtype=WIDEST)
    a, y = jnp.ones((4, 3), WIDEST), jnp.ones((4, 2), WIDEST)
    with pytest.raises(ValueError, match=r"features must have shape \(4, 3\); got \(5, 3\)"):
        slimtik.update(state, jnp.ones((5, 3), WIDEST), y)
    with pytest.raises(ValueError, match=r"targets must have shape \(4, 2\); got \(4, 1\)"):
        slimtik.update(state, a, y[:, :1])
    with pytest.raises(ValueError, match=r"least must be .*> 0; got 0"):
        slimtik.update(state, a, y, least=0.0)
    with pytest.raises(ValueError, match="memory must be an integer >= 0; got -1"):
        slimtik.start(width=3, outputs=2, batch=4, memory=-1, dtype=WIDEST)
