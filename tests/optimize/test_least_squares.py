"""Least squares against numpy.linalg, explicit inverses, and sums over candidates written as loops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numdl.optimize import least_squares

pytestmark = pytest.mark.float32
WIDEST = jnp.zeros(()).dtype
EPS = float(jnp.finfo(WIDEST).eps)


def problem(rows=15, width=6, outputs=2, decay=1.0, noise=0.1, seed=0):
    """A matrix with singular values falling by `decay`, and noisy targets, in float64."""
    random = np.random.default_rng(seed)
    u, _ = np.linalg.qr(random.standard_normal((rows, width)))
    v, _ = np.linalg.qr(random.standard_normal((width, width)))
    matrix = u @ np.diag(3 * decay ** np.arange(width)) @ v.T
    return matrix, matrix @ random.standard_normal((width, outputs)) + noise * random.standard_normal((rows, outputs))


def cast(*arrays):
    return tuple(jnp.asarray(a, WIDEST) for a in arrays)


qr = jax.jit(lambda a, y, damping: least_squares.qr(a, y, damping=damping))
svd = jax.jit(least_squares.svd, static_argnames="cutoff")
cgls = jax.jit(lambda a, y, damping: least_squares.cgls(a, y, iterations=50, tolerance=100 * EPS, damping=damping))
tikhonov = jax.jit(least_squares.tikhonov, static_argnames=("choice", "damping", "noise_variance", "candidates"))


@pytest.mark.parametrize("damping", [0.0, 0.4])
def test_qr_and_cgls_are_numpy_on_the_augmented_system(damping):
    matrix, targets = problem()
    rows = np.concatenate([matrix, np.sqrt(damping) * np.eye(6)])
    expected = np.linalg.lstsq(rows, np.concatenate([targets, np.zeros((6, 2))]))[0]
    found = qr(*cast(matrix, targets), damping)
    iterated = cgls(*cast(matrix, targets), damping)
    for fit in (found, iterated):
        np.testing.assert_allclose(fit.solution, expected, atol=300 * EPS)
        np.testing.assert_allclose(fit.residual_norm, np.linalg.norm(matrix @ expected - targets), rtol=300 * EPS)
        np.testing.assert_allclose(fit.solution_norm, np.linalg.norm(expected), rtol=300 * EPS)
        assert fit.converged
    assert found.iterations == 0 and 0 < iterated.iterations < 50


def test_a_first_call_of_cgls_needs_no_numbers():
    found = least_squares.cgls(*cast(np.diag([1.0, 2.0, 3.0]), np.ones(3)))
    assert found.converged
    np.testing.assert_allclose(found.solution, [1, 1 / 2, 1 / 3], rtol=1e-4)


def test_qr_keeps_the_digits_that_normal_equations_lose():
    matrix, _ = problem(decay=EPS**0.08)  # condition number eps^-0.4
    exact = np.ones((6, 2))
    a, y = cast(matrix, matrix @ exact)
    found = np.abs(np.asarray(qr(a, y, 0.0).solution) - exact).max()
    normal = np.abs(np.linalg.solve(np.asarray(a.T @ a), np.asarray(a.T @ y)) - exact).max()
    assert found < 100 * EPS**0.6 and normal > 10 * found


def test_dependent_columns_are_not_called_converged():
    matrix, targets = problem()
    matrix[:, 3] = 0
    assert not qr(*cast(matrix, targets), 0.0).converged


def test_cgls_stops_where_it_is_told():
    short = jax.jit(functools.partial(least_squares.cgls, iterations=2, tolerance=100 * EPS))
    found = short(*cast(*problem(decay=0.1)))
    assert not found.converged and found.iterations == 2


def test_svd_of_a_deficient_matrix_is_the_pseudoinverse():
    matrix, targets = problem(decay=0.7)
    matrix[:, 3] = matrix[:, 1] - 2 * matrix[:, 0]
    found = svd(*cast(matrix, targets))
    u, values, _ = np.linalg.svd(matrix, full_matrices=False)
    assert found.rank == 5
    np.testing.assert_allclose(found.solution, np.linalg.pinv(matrix, rcond=1e-5) @ targets, atol=300 * EPS)
    np.testing.assert_allclose(found.values, values, atol=30 * EPS)
    np.testing.assert_allclose(found.coefficients[:5], np.linalg.norm(u.T @ targets, axis=1)[:5], atol=300 * EPS)


def test_cutoff_leaves_small_singular_values_out():
    matrix, targets = problem(decay=0.5)
    found = svd(*cast(matrix, targets), cutoff=0.2)
    assert found.rank == 3
    u, values, vt = np.linalg.svd(matrix, full_matrices=False)
    expected = vt[:3].T @ np.diag(1 / values[:3]) @ u[:, :3].T @ targets
    np.testing.assert_allclose(found.solution, expected, atol=100 * EPS)


def influence(matrix, damping):
    return matrix @ np.linalg.solve(matrix.T @ matrix + damping * np.eye(matrix.shape[1]), matrix.T)


def test_tikhonov_with_a_given_damping():
    matrix, targets = problem(decay=0.5)
    found = tikhonov(*cast(matrix, targets), damping=0.3)
    expected = np.linalg.solve(matrix.T @ matrix + 0.3 * np.eye(6), matrix.T @ targets)
    smoother = influence(matrix, 0.3)
    misfit = np.linalg.norm(matrix @ expected - targets)
    np.testing.assert_allclose(found.solution, expected, atol=100 * EPS)
    np.testing.assert_allclose(found.degrees_of_freedom, np.trace(smoother), rtol=100 * EPS)
    np.testing.assert_allclose(found.criterion, 15 * misfit**2 / (15 - np.trace(smoother)) ** 2, rtol=100 * EPS)
    np.testing.assert_allclose(
        [found.residual_norm, found.solution_norm], [misfit, np.linalg.norm(expected)], rtol=1e-5
    )
    assert found.damping == jnp.asarray(0.3, WIDEST) and found.found


def test_cross_validation_is_least_at_the_choice():
    matrix, targets = problem(decay=0.4, noise=0.5)
    found = tikhonov(*cast(matrix, targets))
    grid = np.exp(np.linspace(np.log(9 * EPS), np.log(90), 200))

    def criterion(damping):
        smoother = influence(matrix, damping)
        return 15 * np.linalg.norm(smoother @ targets - targets) ** 2 / (15 - np.trace(smoother)) ** 2

    values = [criterion(damping) for damping in grid]
    assert found.found and 0.01 < found.damping < 10
    np.testing.assert_allclose(found.damping, grid[int(np.argmin(values))], rtol=1e-3)
    np.testing.assert_allclose(found.criterion, min(values), rtol=1e-4)


def test_discrepancy_leaves_a_residual_of_the_noise():
    matrix, targets = problem(decay=0.4, noise=0.5)
    found = tikhonov(*cast(matrix, targets), choice="discrepancy", noise_variance=0.25)
    np.testing.assert_allclose(found.residual_norm**2, 15 * 2 * 0.25, rtol=1e-4)
    assert found.found
    assert not tikhonov(*cast(matrix, targets), choice="discrepancy", noise_variance=1e4).found
    assert not tikhonov(*cast(matrix, targets), choice="discrepancy", noise_variance=1e-6).found


@pytest.fixture(scope="module")
def machine():
    x = jnp.linspace(-2, 2, 40, dtype=WIDEST)[:, None]
    physics = {"activation": jnp.tanh, "weight_variance": 4.0, "bias_variance": 1.0}
    fit = functools.partial(least_squares.extreme_learning_machine, width=30, **physics)
    return jax.jit(fit)(jax.random.key(0), x, jnp.sin(2 * x)), fit, x


def test_an_extreme_learning_machine_fits_a_curve(machine):
    found, _, x = machine
    hidden = np.tanh(np.asarray(x) @ np.asarray(found.weights) + np.asarray(found.bias))
    hidden = np.concatenate([hidden, np.ones((40, 1))], axis=1)
    np.testing.assert_allclose(found.features(x), hidden, atol=30 * EPS)
    np.testing.assert_allclose(found.apply(x), hidden @ np.asarray(found.readout.solution), atol=1e-3)
    error = np.abs(np.asarray(found.apply(x)) - np.sin(2 * np.asarray(x))).max()
    assert error < (1e-4 if jnp.float64 == WIDEST else 2e-2)


def test_the_law_of_its_weights_is_as_asked():
    x, y = jnp.ones((5, 100), WIDEST), jnp.ones(5, WIDEST)
    physics = {"activation": jnp.tanh, "weight_variance": 4.0, "bias_variance": 9.0}
    build = jax.jit(functools.partial(least_squares.extreme_learning_machine, width=400, damping=0.1, **physics))
    fit, other = build(jax.random.key(1), x, y), build(jax.random.key(2), x, y)
    for sample, variance in ((fit.weights, 4.0 / 100), (fit.bias, 9.0)):
        sample = np.asarray(sample, np.float64).ravel()
        z = (np.mean(sample**2) / variance - 1) / np.sqrt(2 / sample.size)
        assert abs(z) < 6
    assert np.all(np.asarray(other.bias) != np.asarray(fit.bias)) and fit.readout.damping == jnp.asarray(0.1, WIDEST)


def test_arguments_are_checked():
    a, y = cast(*problem())
    with pytest.raises(ValueError, match=r"targets must have shape \(15, 2\); got \(14, 2\)"):
        least_squares.qr(a, y[:14])
    with pytest.raises(ValueError, match=r"features must have at least as many rows as columns.*\(4, 6\)"):
        least_squares.qr(a[:4], y[:4])
    with pytest.raises(ValueError, match="noise_variance must be given for choice='discrepancy'; got None"):
        least_squares.tikhonov(a, y, choice="discrepancy")
    with pytest.raises(ValueError, match="choice must be one of gcv, discrepancy; got 'lcurve'"):
        least_squares.tikhonov(a, y, choice="lcurve")
    with pytest.raises(ValueError, match=r"damping must be .*>= 0; got -1"):
        least_squares.qr(a, y, damping=-1.0)
    with pytest.raises(TypeError, match="features must be an array of floating-point numbers; got dtype int"):
        least_squares.svd(jnp.ones((3, 2), int), y[:3])
