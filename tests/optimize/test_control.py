"""The maximum principle against backpropagation, dense linear algebra and a problem with a closed solution."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from numdl.optimize import control

pytestmark = pytest.mark.float32
WIDEST = jnp.zeros(()).dtype
EPS = float(jnp.finfo(WIDEST).eps)


def field(x, theta):
    return jnp.tanh(x @ theta["kernel"] + theta["bias"][None, :])


def misfit(targets, x):
    return jnp.mean(jnp.sum((x - targets) ** 2, axis=-1))


def decay(x, theta):
    return 0.05 * (jnp.sum(theta["kernel"] ** 2) + jnp.sum(theta["bias"] ** 2)) + 0.1 * jnp.mean(x**2)


def network_problem(steps=12, n=4, examples=9):
    keys = jax.random.split(jax.random.key(0), 4)
    x = jax.random.normal(keys[0], (examples, n), WIDEST)
    targets = jnp.roll(x, 1, axis=1) * 0.5 + 0.3
    theta = {
        "kernel": 0.5 * jax.random.normal(keys[1], (steps, n, n), WIDEST),
        "bias": jax.random.normal(keys[2], (steps, n), WIDEST),
    }
    return control.Problem(field, Partial(misfit, targets), decay, 1.0 / steps), x, theta


def test_gradient_is_that_of_backpropagation():
    problem, x, theta = network_problem()
    value, slope = jax.jit(functools.partial(control.gradient, problem))(x, theta)
    expected = jax.jit(jax.value_and_grad(functools.partial(control.objective, problem, x)))(theta)
    np.testing.assert_allclose(value, expected[0], rtol=10 * EPS)
    for ours, direct in zip(jax.tree.leaves(slope), jax.tree.leaves(expected[1]), strict=True):
        np.testing.assert_allclose(ours, direct, atol=30 * EPS * np.abs(direct).max())


def test_objective_is_a_plain_loop():
    problem, x, theta = network_problem()
    y, running = np.asarray(x, np.float64), 0.0
    for kernel, bias in zip(*(np.asarray(theta[name], np.float64) for name in ("kernel", "bias")), strict=True):
        running += 0.05 * ((kernel**2).sum() + (bias**2).sum()) + 0.1 * (y**2).mean()
        y = y + np.tanh(y @ kernel + bias) / 12
    targets = np.asarray(problem.terminal.args[0], np.float64)
    expected = ((y - targets) ** 2).sum(axis=1).mean() + running / 12
    np.testing.assert_allclose(control.objective(problem, x, theta), expected, rtol=100 * EPS)
    np.testing.assert_allclose(control.states(problem, x, theta)[-1], y, atol=100 * EPS)


def test_costates_are_what_a_change_of_the_state_costs():
    problem, x, theta = network_problem()
    path = control.states(problem, x, theta)
    p = control.costates(problem, path, theta)
    assert p.shape == path.shape
    for n in (0, 5, 12):
        rest = jax.tree.map(lambda leaf, n=n: leaf[n:], theta)
        direct = jax.grad(lambda y, rest=rest: control.objective(problem, y, rest))(path[n])
        np.testing.assert_allclose(p[n], -direct, atol=30 * EPS * np.abs(direct).max())


# Linear-quadratic: x' = a x + b u, J = q/2 x_N^2 + h sum r/2 u^2.
A, B, Q, R = 0.4, 1.5, 2.0, 0.5


def linear(x, u):
    return A * x + B * u


def lq_terminal(x):
    return Q / 2 * jnp.mean(x**2)


def lq_running(x, u):
    return R / 2 * u**2


def lq_exact(x0, steps, h):
    """u by dense least squares: x_N = g^N x_0 + h b sum g^(N-1-n) u_n is linear in u."""
    g = 1 + h * A
    row = h * B * g ** np.arange(steps - 1, -1, -1)
    return np.linalg.solve(Q * np.outer(row, row) + h * R * np.eye(steps), -Q * row * g**steps * x0)


def lq(time, steps=40):
    h = time / steps
    problem = control.Problem(linear, lq_terminal, lq_running, h)
    return problem, jnp.ones((1,), WIDEST), jnp.zeros(steps, WIDEST), lq_exact(1.0, steps, h)


def exact_maximum(function, u, x, p):
    return B * p[0] / R


@pytest.mark.slow
def test_basic_iterations_solve_a_short_linear_quadratic_problem():
    problem, x, u, expected = lq(0.02)
    for maximize in (None, exact_maximum):
        found, history = control.successive_approximations(problem, x, u, iterations=30, ascents=10, maximize=maximize)
        # By values of a function its maximum is known to the square root of rounding only.
        np.testing.assert_allclose(found, expected, atol=1000 * EPS if maximize else 10 * EPS**0.5)
        assert history.loss.shape == (31,) and history.gain.shape == (30,)
        assert history.gradient_norm[-1] < 1e-4 * history.gradient_norm[0]
        np.testing.assert_allclose(history.loss[-1], control.objective(problem, x, found), rtol=10 * EPS)


@pytest.mark.slow
def test_augmentation_saves_a_long_one():
    problem, x, u, expected = lq(1.0)
    _, basic = control.successive_approximations(problem, x, u, iterations=12, maximize=exact_maximum)
    assert basic.loss[-1] > 100 * basic.loss[0]
    found, augmented = control.successive_approximations(problem, x, u, iterations=400, penalty=5.0)
    assert (np.diff(augmented.loss) <= 10 * EPS * augmented.loss[0]).all()
    assert (augmented.gain >= -10 * EPS).all()
    np.testing.assert_allclose(found, expected, atol=100 * EPS**0.5)


@pytest.mark.slow
def test_the_hamiltonian_is_constant_along_an_optimal_path():
    """Up to O(h): autonomous problems conserve H."""
    spreads = []
    for steps in (20, 40):
        problem, x, _, u = lq(1.0, steps)
        u = jnp.asarray(u, WIDEST)
        path = control.states(problem, x, u)
        p = control.costates(problem, path, u)
        along = jax.vmap(functools.partial(control.hamiltonian, problem))(path[:-1], p[1:], u)
        spreads.append(float(np.ptp(np.asarray(along)) / np.abs(along).mean()))
    assert spreads[1] < 0.05
    assert 1.8 < spreads[0] / spreads[1] < 2.2


@pytest.mark.slow
def test_a_network_is_trained_without_gradient_descent():
    problem, x, theta = network_problem()
    _, history = control.successive_approximations(problem, x, theta, iterations=60, penalty=1.0, ascents=5)
    assert history.loss[-1] < 0.3 * history.loss[0]
    assert (history.gain >= -100 * EPS).all() and history.gain[0] > 0.1


def test_examples_count_alike_however_many():
    """The same example twice is the same problem, penalty included."""
    problem, x, theta = network_problem(examples=3)
    twice = problem._replace(terminal=Partial(misfit, jnp.tile(problem.terminal.args[0], (2, 1))))
    runs = [
        control.successive_approximations(p, y, theta, iterations=2, penalty=0.7, ascents=3)[1].loss
        for p, y in ((problem, x), (twice, jnp.tile(x, (2, 1))))
    ]
    np.testing.assert_allclose(runs[0], runs[1], rtol=1000 * EPS)


def test_bad_arguments_are_named():
    problem, x, theta = network_problem()
    with pytest.raises(TypeError, match="problem must be a Problem"):
        control.gradient((field,), x, theta)
    with pytest.raises(TypeError, match=r"problem\.running must be a function; got None"):
        control.gradient(problem._replace(running=None), x, theta)
    with pytest.raises(ValueError, match=r"problem\.step .*got 0"):
        control.gradient(problem._replace(step=0.0), x, theta)
    with pytest.raises(ValueError, match="theta must have leaves of one length"):
        control.gradient(problem, x, theta | {"bias": theta["bias"][:3]})
    with pytest.raises(ValueError, match="penalty .*-1"):
        control.successive_approximations(problem, x, theta, iterations=1, penalty=-1.0)
    with pytest.raises(ValueError, match="iterations .*got 0"):
        control.successive_approximations(problem, x, theta, iterations=0)
