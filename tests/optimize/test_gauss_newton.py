"""Gauss–Newton against dense matrices, finite differences, scipy's least squares, and its own rate of convergence."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
from jax.tree_util import Partial

from numdl.optimize import gauss_newton, losses

float32 = pytest.mark.float32
WIDEST = jnp.zeros(()).dtype
EPS = float(jnp.finfo(WIDEST).eps)
TIMES = np.linspace(0, 2, 12)


def curve(params, *, times, values):
    """a exp(-b t) - values: nonlinear least squares."""
    return params["a"] * jnp.exp(-params["b"] * times) - values


def decay(noise=0.0):
    random = np.random.default_rng(0)
    values = 2.0 * np.exp(-1.5 * TIMES) + noise * random.standard_normal(TIMES.size)
    return values, Partial(curve, times=jnp.asarray(TIMES, WIDEST), values=jnp.asarray(values, WIDEST))


START = {"a": jnp.asarray(1.0, WIDEST), "b": jnp.asarray(0.5, WIDEST)}


def network(params, *, x):
    return jnp.tanh(x @ params["w"]) @ params["v"]


def classification(loss, seed=0):
    random = np.random.default_rng(seed)
    x, labels = jnp.asarray(random.standard_normal((7, 3)), WIDEST), jnp.asarray(random.integers(0, 4, 7))
    params = {"w": random.standard_normal((3, 3)), "v": random.standard_normal((3, 4))}
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, WIDEST), params)
    return gauss_newton.composite(Partial(network, x=x), labels, loss), params


def cross_entropy(outputs, labels):
    """A loss that is no Loss: the same numbers by other means."""
    picked = jnp.take_along_axis(outputs, labels[:, None], axis=1)[:, 0]
    return jnp.mean(jax.scipy.special.logsumexp(outputs, axis=1) - picked)


def flat_product(objective, params):
    flat, unravel = jax.flatten_util.ravel_pytree(params)

    def product(v):
        return jax.flatten_util.ravel_pytree(objective.local(params).product(unravel(v)))[0]

    return jax.jit(jax.vmap(product))(jnp.eye(flat.size, dtype=flat.dtype)), flat, unravel


@float32
@pytest.mark.parametrize("loss", [losses.softmax_cross_entropy, cross_entropy], ids=["Loss", "function"])
def test_products_of_a_composite_are_those_of_the_dense_matrix(loss):
    objective, params = classification(loss)
    found, flat, unravel = flat_product(objective, params)
    x = objective.outputs.keywords["x"]
    jacobian = jax.jit(jax.jacobian(lambda p: network(unravel(p), x=x)))(flat)
    jacobian = np.asarray(jacobian, np.float64)  # [7, 4, n]
    logits = np.asarray(network(params, x=x), np.float64)
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    expected = sum(j.T @ (np.diag(q) - np.outer(q, q)) @ j for j, q in zip(jacobian, p)) / 7
    np.testing.assert_allclose(found, expected, atol=30 * EPS)
    np.testing.assert_allclose(found, found.T, atol=10 * EPS)


@float32
def test_value_and_gradient_are_those_of_the_loss():
    objective, params = classification(losses.softmax_cross_entropy)
    local = jax.jit(lambda p: objective.local(p)[:2])(params)
    direct = jax.jit(lambda p: cross_entropy(objective.outputs(p), objective.targets))
    value, gradient = jax.value_and_grad(direct)(params)
    np.testing.assert_allclose(local[0], value, rtol=30 * EPS)
    np.testing.assert_allclose(objective.value(params), value, rtol=30 * EPS)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=30 * EPS), local[1], gradient)


@float32
def test_products_of_least_squares_are_those_of_the_dense_matrix():
    _, residual = decay()
    found, *_ = flat_product(gauss_newton.least_squares(residual), START)
    a, b = float(START["a"]), float(START["b"])
    jacobian = np.stack([np.exp(-b * TIMES), -a * TIMES * np.exp(-b * TIMES)], axis=1)
    np.testing.assert_allclose(found, jacobian.T @ jacobian, rtol=100 * EPS)


def test_taylor_remainders_have_slopes_one_and_two():
    objective, params = classification(losses.softmax_cross_entropy)
    value, gradient = jax.jit(lambda p: objective.local(p)[:2])(params)
    direction = jax.tree.map(lambda leaf: jnp.cos(jnp.arange(leaf.size, dtype=leaf.dtype)).reshape(leaf.shape), params)
    slope = sum(np.vdot(u, v) for u, v in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction)))
    along = jax.jit(lambda t: objective.value(jax.tree.map(lambda p, d: p + t * d, params, direction)))
    steps = 0.1 / 2.0 ** np.arange(3, 10)
    moved = np.array([along(t) for t in steps])
    first, second = np.abs(moved - value), np.abs(moved - value - steps * slope)
    np.testing.assert_allclose(np.diff(np.log2(first)), -1, atol=0.1)
    np.testing.assert_allclose(np.diff(np.log2(second)), -2, atol=0.1)


@pytest.mark.parametrize(
    "method", [pytest.param("trust_region", marks=float32), "levenberg_marquardt", "armijo", "wolfe"]
)
def test_every_method_finds_what_scipy_finds(method):
    values, residual = decay(noise=0.1)
    damping = 1e-2 if method == "levenberg_marquardt" else 0.0
    tolerance = 1e-4 if jnp.float32 == WIDEST else 1e-9
    found, history = gauss_newton.minimize(
        residual, START, steps=30, method=method, damping=damping, tolerance=tolerance
    )
    best = scipy.optimize.least_squares(
        lambda p: p[0] * np.exp(-p[1] * TIMES) - values, [1.0, 0.5], xtol=1e-14, ftol=1e-14, gtol=1e-14
    )
    np.testing.assert_allclose([found["a"], found["b"]], best.x, rtol=30 * tolerance)
    np.testing.assert_allclose(history.value[-1], best.cost, rtol=1e-5)
    assert history.converged and not history.negative_curvature.any()


def test_convergence_is_quadratic_where_the_residual_vanishes():
    _, residual = decay()
    found, history = gauss_newton.minimize(residual, START, steps=30, method="armijo", tolerance=1e-13)
    np.testing.assert_allclose([found["a"], found["b"]], [2.0, 1.5], rtol=1e-12)
    norms = np.asarray(history.gradient_norm)
    tail = norms[(norms < 0.3) & (norms > 1e-13)]
    orders = np.log(tail[1:]) / np.log(tail[:-1])
    assert history.converged and len(tail) >= 3 and orders[-1] > 1.7, norms


def updated(rule):
    return jax.jit(lambda g, s, p, objective: rule.update(g, s, p, objective=objective))


@float32
def test_a_batch_step_is_the_damped_dense_solution():
    _, residual = decay(noise=0.1)
    objective = gauss_newton.least_squares(residual)
    rule = gauss_newton.transformation(damping=0.3, inner_iterations=20, inner_tolerance=10 * EPS)
    gradient = jax.grad(objective.value)(START)
    step, state = updated(rule)(gradient, rule.init(START), START, objective)
    b = np.exp(-0.5 * TIMES)
    jacobian = np.stack([b, -TIMES * b], axis=1)
    slope = np.array([gradient["a"], gradient["b"]], np.float64)
    expected = -np.linalg.solve(jacobian.T @ jacobian + 0.3 * np.eye(2), slope)
    np.testing.assert_allclose([step["a"], step["b"]], expected, rtol=1e4 * EPS)
    moved = {name: START[name] + step[name] for name in "ab"}
    promised = -slope @ expected - expected @ jacobian.T @ jacobian @ expected / 2
    ratio = float(objective.value(START) - objective.value(moved)) / promised
    np.testing.assert_allclose(state.ratio, ratio, rtol=1e-4)
    factor = 1 / 1.5 if ratio > 0.75 else 1.5 if ratio < 0.25 else 1.0
    np.testing.assert_allclose(state.damping, 0.3 * factor, rtol=10 * EPS)


def test_whole_numbers_in_a_residual_count_and_do_not_move():
    f = gauss_newton.least_squares(lambda p: {"w": p["w"] - jnp.arange(3.0), "n": p["n"]})
    found, _ = gauss_newton.minimize(f, {"w": jnp.full(3, 7.0), "n": jnp.array([2, 1])}, steps=5)
    np.testing.assert_allclose(found["w"], [0, 1, 2], atol=1e-10)
    np.testing.assert_array_equal(found["n"], [2, 1])
    assert f.value(found) == pytest.approx(2.5)


@float32
def test_a_step_into_nan_is_not_made_and_raises_the_damping():
    def residual(params):
        return jnp.sqrt(params - 1) * 3 + 0 * params  # nan below 1

    objective = gauss_newton.least_squares(residual)
    params = jnp.asarray([1.01], WIDEST)
    rule = gauss_newton.transformation(damping=1e-6)
    gradient = jnp.asarray([50.0], WIDEST)  # a noisy gradient that points out of the domain
    step, state = updated(rule)(gradient, rule.init(params), params, objective)
    assert step[0] == 0 and state.damping > 1e-6
    fixed = gauss_newton.transformation(damping=1e-6, adaptation=1.0)
    _, state = updated(fixed)(gradient, fixed.init(params), params, objective)
    assert state.damping == jnp.asarray(1e-6, WIDEST)


@float32
def test_mini_batches_reach_the_parameters_behind_the_data():
    random = np.random.default_rng(1)
    times = random.uniform(0, 2, (40, 8))
    batches = tuple(jnp.asarray(a, WIDEST) for a in (times, 2 * np.exp(-1.5 * times)))

    def objective(batch):
        return gauss_newton.least_squares(Partial(curve, times=batch[0], values=batch[1]))

    optimizer = optax.chain(gauss_newton.transformation(damping=0.1), optax.scale(1.0))
    found, values = jax.jit(functools.partial(gauss_newton.descend, objective, optimizer=optimizer))(START, batches)
    np.testing.assert_allclose([found["a"], found["b"]], [2.0, 1.5], rtol=1e-3)
    assert values.shape == (40,) and values[-1] < 1e-4 * values[0]
    np.testing.assert_allclose(
        values[0], np.sum((np.exp(-0.5 * times[0]) - 2 * np.exp(-1.5 * times[0])) ** 2) / 2, rtol=1e-5
    )


def test_arguments_are_checked():
    with pytest.raises(TypeError, match="objective must be a function; got 3"):
        gauss_newton.minimize(3, START, steps=1)
    with pytest.raises(ValueError, match=r"damping must be .*> 0; got 0"):
        gauss_newton.transformation(damping=0.0)
    with pytest.raises(ValueError, match=r"adaptation must be .*>= 1; got 0.5"):
        gauss_newton.transformation(damping=1.0, adaptation=0.5)
    with pytest.raises(TypeError, match="loss must be a function; got 'mse'"):
        gauss_newton.composite(lambda p: p, None, "mse")
