"""Variable projection against dense least squares, central differences, Taylor slopes; full Gauss–Newton on peaks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numdl.data import synthetic
from numdl.optimize import gauss_newton, least_squares, losses, varpro

float32 = pytest.mark.float32
WIDEST = jnp.zeros(()).dtype
EPS = float(jnp.finfo(WIDEST).eps)
ALPHA = 1e-2
CROSS = losses.softmax_cross_entropy
LOSSES = pytest.mark.parametrize("loss", [None, CROSS], ids=["squares", "cross_entropy"])


def features(theta, x):
    return least_squares.with_bias(jnp.tanh(x @ theta["w"] + theta["b"][None, :]))


def problem(examples=20, width=3, classes=3, seed=0):
    random = np.random.default_rng(seed)
    theta = {"w": random.standard_normal((2, width)), "b": random.standard_normal(width)}
    x, labels = random.standard_normal((examples, 2)), random.integers(0, classes, examples)
    cast = functools.partial(jnp.asarray, dtype=WIDEST)
    return jax.tree.map(cast, theta), cast(x), cast(np.eye(classes)[labels])


THETA, X, Y = problem()
FLAT, UNRAVEL = jax.flatten_util.ravel_pytree(THETA)


def numpy_features(flat):
    """The same features in float64 NumPy; flat in the order of the leaves, b before w."""
    flat = np.asarray(flat, np.float64)
    return np.concatenate([np.tanh(np.asarray(X, np.float64) @ flat[3:].reshape(2, 3) + flat[:3]), np.ones((20, 1))], 1)


def augmented(flat):
    rows = np.concatenate([numpy_features(flat) / np.sqrt(20), np.sqrt(ALPHA) * np.eye(4)])
    return rows, np.concatenate([np.asarray(Y, np.float64) / np.sqrt(20), np.zeros((4, 3))])


def numpy_readout(flat):
    return np.linalg.lstsq(*augmented(flat))[0]


def numpy_residual(flat):
    """The reduced residual, its readout by numpy.linalg.lstsq."""
    rows, rhs = augmented(flat)
    return rows @ numpy_readout(flat) - rhs


def numpy_cross_entropy(flat):
    """The reduced cross-entropy, its readout by plain Newton steps with a dense Hessian from the formula."""
    a, y, w = numpy_features(flat), np.asarray(Y, np.float64), np.zeros((4, 3))
    for _ in range(30):
        p = np.exp(a @ w) / np.exp(a @ w).sum(axis=1, keepdims=True)
        slope = a.T @ (p - y) / 20 + ALPHA * w
        hessian = sum(np.kron(np.outer(r, r), np.diag(q) - np.outer(q, q)) for r, q in zip(a, p)) / 20
        w = w - np.linalg.solve(hessian + ALPHA * np.eye(12), slope.ravel()).reshape(4, 3)
    value = -np.mean(np.sum(y * np.log(p), axis=1)) + ALPHA / 2 * np.sum(w**2)
    return value, w, a @ w


def numpy_value(loss, flat):
    return np.sum(numpy_residual(flat) ** 2) / 2 if loss is None else numpy_cross_entropy(flat)[0]


def differences(function, flat, step=1e-5):
    """Central differences along every coordinate, the last axis of the result."""
    flat = np.asarray(flat, np.float64)
    return np.stack([(function(flat + step * e) - function(flat - step * e)) / (2 * step) for e in np.eye(9)], axis=-1)


@functools.cache
def objective(loss, jacobian="golub_pereyra"):
    return varpro.reduced(features, X, Y, THETA, alpha=ALPHA, loss=loss, jacobian=jacobian)


@functools.cache
def local(loss, jacobian="golub_pereyra"):
    """Value, gradient and Gauss–Newton matrix, from one compiled program."""

    @jax.jit
    def everything(theta):
        value, gradient, product = objective(loss, jacobian).local(theta)
        columns = jax.vmap(lambda e: jax.flatten_util.ravel_pytree(product(UNRAVEL(e)))[0])(jnp.eye(9, dtype=WIDEST))
        return value, jax.flatten_util.ravel_pytree(gradient)[0], columns

    return everything(THETA)


@float32
@LOSSES
def test_the_readout_is_the_best_one(loss):
    found = jax.jit(lambda t: varpro.readout(features, t, X, Y, alpha=ALPHA, loss=loss))(THETA)
    if loss is None:
        expected = numpy_readout(FLAT)
    else:
        expected = numpy_cross_entropy(FLAT)[1]
        assert 2 <= found.iterations <= 15
    np.testing.assert_allclose(found.weights, expected, atol=1e3 * EPS)
    np.testing.assert_allclose(found.value, numpy_value(loss, FLAT), rtol=100 * EPS)
    assert found.gradient_norm < 100 * EPS


@float32
@LOSSES
def test_the_reduced_gradient_is_that_of_central_differences(loss):
    value, gradient, _ = local(loss)
    expected = differences(functools.partial(numpy_value, loss), FLAT)
    np.testing.assert_allclose(value, numpy_value(loss, FLAT), rtol=100 * EPS)
    np.testing.assert_allclose(gradient, expected, atol=max(1e-10, 100 * EPS))


@LOSSES
def test_taylor_remainders_have_slopes_one_and_two(loss):
    value, gradient, _ = local(loss)
    direction = np.cos(np.arange(9.0))
    along = jax.jit(lambda t: objective(loss).value(UNRAVEL(FLAT + t * direction)))
    steps = 0.1 / 2.0 ** np.arange(4, 10)
    moved = np.array([along(t) for t in steps])
    first, second = np.abs(moved - value), np.abs(moved - value - steps * (gradient @ direction))
    np.testing.assert_allclose(np.diff(np.log2(first)), -1, atol=0.1)
    np.testing.assert_allclose(np.diff(np.log2(second)), -2, atol=0.1)


@float32
def test_the_jacobian_of_golub_and_pereyra_is_exact():
    jacobian = differences(numpy_residual, FLAT).reshape(-1, 9)
    np.testing.assert_allclose(local(None)[2], jacobian.T @ jacobian, atol=max(1e-9, 100 * EPS))


@float32
def test_kaufman_projects_the_derivative_of_the_features():
    rows, _ = augmented(FLAT)
    weights = numpy_readout(FLAT)
    outside = np.eye(24) - rows @ np.linalg.pinv(rows)
    slopes = differences(numpy_features, FLAT) / np.sqrt(20)  # [20, 4, 9]
    slopes = np.concatenate([slopes, np.zeros((4, 4, 9))])
    jacobian = np.einsum("mn,nwt,wk->mkt", outside, slopes, weights).reshape(-1, 9)
    _, gradient, matrix = local(None, "kaufman")
    np.testing.assert_allclose(matrix, jacobian.T @ jacobian, atol=max(1e-9, 100 * EPS))
    np.testing.assert_allclose(gradient, local(None)[1], atol=100 * EPS)  # exact all the same
    assert np.abs(matrix - local(None)[2]).max() > 1e-4


@float32
def test_the_gauss_newton_matrix_of_cross_entropy_holds_the_implicit_derivative():
    outputs = np.asarray(numpy_cross_entropy(FLAT)[2])
    p = np.exp(outputs) / np.exp(outputs).sum(axis=1, keepdims=True)
    jz = differences(lambda t: numpy_cross_entropy(t)[2], FLAT)  # [20, 3, 9]
    jw = differences(lambda t: numpy_cross_entropy(t)[1], FLAT).reshape(-1, 9)
    blocks = np.stack([np.diag(q) - np.outer(q, q) for q in p]) / 20
    expected = np.einsum("nat,nab,nbs->ts", jz, blocks, jz) + ALPHA * jw.T @ jw
    np.testing.assert_allclose(local(CROSS)[2], expected, atol=max(1e-9, 1e3 * EPS))


@LOSSES
def test_the_full_problem_has_the_same_value_at_the_best_readout(loss):
    full = varpro.full(features, X, Y, THETA, alpha=ALPHA, loss=loss)
    weights = numpy_cross_entropy(FLAT)[1] if loss else numpy_readout(FLAT)
    value, (gradient, slope) = jax.jit(jax.value_and_grad(full.value))((THETA, jnp.asarray(weights, WIDEST)))
    np.testing.assert_allclose(value, local(loss)[0], rtol=100 * EPS)
    np.testing.assert_allclose(jax.flatten_util.ravel_pytree(gradient)[0], local(loss)[1], atol=100 * EPS)
    np.testing.assert_allclose(slope, 0, atol=100 * EPS)


def deep_features(theta, x):
    return least_squares.with_bias(jnp.tanh(jnp.tanh(x @ theta["a"] + theta["b"][None, :]) @ theta["c"]))


@LOSSES
def test_it_needs_fewer_iterations_than_full_gauss_newton_on_peaks(loss):
    points = synthetic.peaks(0, 150)
    x, y = jnp.asarray(points.features, WIDEST), jnp.asarray(np.eye(5)[points.labels], WIDEST)
    random = np.random.default_rng(1)
    shapes = {"a": (2, 8), "b": (8,), "c": (8, 8)}
    theta = {n: jnp.asarray(random.standard_normal(s) / np.sqrt(s[0]), WIDEST) for n, s in shapes.items()}
    options = {"steps": 15, "inner_iterations": 20}
    (found, weights), reduced = varpro.minimize(deep_features, theta, x, y, alpha=1e-3, loss=loss, **options)
    start = varpro.readout(deep_features, theta, x, y, alpha=1e-3, loss=loss)
    full = varpro.full(deep_features, x, y, theta, alpha=1e-3, loss=loss)
    _, history = gauss_newton.minimize(full, (theta, start.weights), **options)
    np.testing.assert_allclose(reduced.value[0], history.value[0], rtol=1e-9)
    goal = history.value[-1]
    iterations = int(np.argmax(np.asarray(reduced.value) <= goal))
    assert 0 < iterations <= 10, (reduced.value, history.value)
    np.testing.assert_allclose(full.value((found, weights)), reduced.value[-1], rtol=1e-9)


def test_arguments_are_checked():
    with pytest.raises(ValueError, match=r"alpha must be .*> 0; got 0"):
        varpro.reduced(features, X, Y, THETA, alpha=0.0)
    with pytest.raises(ValueError, match="jacobian must be one of golub_pereyra, kaufman; got 'exact'"):
        varpro.reduced(features, X, Y, THETA, alpha=1.0, jacobian="exact")
    with pytest.raises(ValueError, match="jacobian must be golub_pereyra for a loss; got 'kaufman'"):
        varpro.reduced(features, X, Y, THETA, alpha=1.0, loss=CROSS, jacobian="kaufman")
    with pytest.raises(ValueError, match=r"targets and x must have as many examples; got shapes \(19, 3\)"):
        varpro.readout(features, THETA, X, Y[:19], alpha=1.0)
    with pytest.raises(ValueError, match=r"targets must have shape \(20, any\); got \(20,\)"):
        varpro.full(features, X, Y[:, 0], THETA, alpha=1.0, loss=CROSS)
