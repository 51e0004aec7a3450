"""Spectra of residual networks against matrices that are known, scipy, and what Euler's step then does."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numdl.analysis import stability as measured
from numdl.audit import verdicts
from numdl.networks import residual, reversible
from numdl.ode import stability, tableaus

pytestmark = pytest.mark.float32
WIDEST = jnp.zeros(()).dtype
EPS = float(jnp.finfo(WIDEST).eps)


def linear(y, theta):
    return y @ theta


def euler(z):
    return 1 + z


def known(eigenvalues, seed=0):
    """A matrix with these eigenvalues that is not normal, [1, n, n]; and a state [1, 1, n]."""
    n = len(eigenvalues)
    change = np.eye(n) + 0.3 * np.random.default_rng(seed).normal(size=(n, n)) / np.sqrt(n)
    matrix = (change @ np.diag(eigenvalues) @ np.linalg.inv(change)).T
    return jnp.asarray(matrix[None], WIDEST), jnp.ones((1, 1, n), WIDEST)


def largest(tableau):
    return lambda eigenvalues: stability.largest_step(tableau=tableau, eigenvalues=eigenvalues)


def test_jacobians_are_the_derivatives_at_each_layer_and_example():
    theta = jnp.asarray([[0.5, -1.0, 2.0], [1.0, 3.0, -0.5]], WIDEST)
    states = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 3)), WIDEST)
    found = measured.jacobians(lambda y, rate: jnp.sin(rate[None] * y), theta, states)
    slopes = np.asarray(theta)[:, None] * np.cos(np.asarray(theta)[:, None] * np.asarray(states))
    np.testing.assert_allclose(found, slopes[..., None] * np.eye(3), atol=100 * EPS)


def test_eigenvalues_and_what_follows_from_them():
    theta, states = known([-1.0, -4.0, -10.0, 0.5])
    found = measured.spectrum(linear, theta, states, 0.25, amplification=euler, largest_step=largest(tableaus.euler))
    np.testing.assert_allclose(np.sort(found.eigenvalues[0, 0].real), [-2.5, -1.0, -0.25, 0.125], atol=1e4 * EPS)
    np.testing.assert_allclose(found.amplification, [[1.5]], rtol=1e4 * EPS)
    np.testing.assert_allclose(found.stiffness, [[10.0]], rtol=1e4 * EPS)
    np.testing.assert_allclose(found.growing, [[0.5]], rtol=1e4 * EPS)
    np.testing.assert_allclose(found.largest_step, 0.2, rtol=1e4 * EPS)
    matrix = np.asarray(theta[0], np.float64)
    np.testing.assert_allclose(found.log_norm, [[np.linalg.eigvalsh((matrix + matrix.T) / 2)[-1]]], rtol=1e4 * EPS)
    assert found.unstable.all() and not found.residual.any()
    assert "In 1 of 1 layers" in verdicts.steps(found) and "Take h <= 0.2: 2 times" in verdicts.steps(found)
    fine = measured.spectrum(linear, theta, states, 0.19, amplification=euler)
    assert not fine.unstable.any() and np.isnan(fine.largest_step)
    assert "stable in all 1 layers" in verdicts.steps(fine)


def test_growth_of_the_equation_is_not_the_steps_fault():
    theta, states = known([3.0, 2.0, -0.1])
    found = measured.spectrum(linear, theta, states, 0.5, amplification=euler, largest_step=largest(tableaus.euler))
    assert not found.unstable.any()
    assert "The equation itself lets modes grow, by up to exp(1.5)" in verdicts.steps(found)


def test_krylov_finds_the_ends_of_a_large_spectrum():
    values = np.concatenate([np.linspace(-1, 0, 195), [-9.0, -7.0, 4.0, 3.0, -5.0]])
    theta, states = known(values)
    found = measured.spectrum(linear, theta, states, 0.1, amplification=euler, krylov=30, key=jax.random.key(0))
    assert found.eigenvalues.shape == (1, 1, 30)
    for end in (-0.9, 0.4):
        index = np.argmin(np.abs(found.eigenvalues[0, 0] - end))
        assert abs(found.eigenvalues[0, 0, index] - end) < 1e5 * EPS
        assert found.residual[0, 0, index] < 1e5 * EPS
    matrix = np.asarray(theta[0], np.float64)
    exact = np.linalg.eigvalsh((matrix + matrix.T) / 2)[-1]
    np.testing.assert_allclose(found.log_norm, [[exact]], rtol=1e-3)
    assert found.residual.max() > 1e-6, "inner Ritz values are not converged, and are said not to be"


def test_krylov_stops_at_an_invariant_subspace():
    theta = jnp.asarray(np.diag([-1.0, -1.0, -2.0, -2.0, -3.0])[None], WIDEST)
    found = measured.spectrum(
        linear, theta, jnp.ones((1, 1, 5), WIDEST), 1.0, amplification=euler, krylov=5, key=jax.random.key(0)
    )
    assert np.isfinite(found.eigenvalues).all()
    np.testing.assert_allclose(found.eigenvalues.real.min(), -3, atol=1e4 * EPS)


def build(**more):
    settings = {"widths": (6, 6, 2), "depth": 5, "activation": jnp.tanh, "weight_variance": 1.0, "bias_variance": 0.1}
    return residual.network(**settings | more)


@pytest.mark.parametrize("step, stable", [(0.05, True), (4.0, False)])
def test_a_parabolic_network_and_its_step(key, step, stable):
    x = jax.random.normal(key, (3, 6), WIDEST)
    net = build(block="symmetric", step=step, weight_variance=4.0)
    flow = residual.unroll(net, net.init(key, x), x)
    amplify = functools.partial(stability.amplification, tableaus.euler)
    found = measured.spectrum(*flow, amplification=amplify, largest_step=largest(tableaus.euler))
    assert found.eigenvalues.shape == (5, 3, 6)
    assert (found.growing < 1e3 * EPS).all()
    assert bool(found.unstable.any()) != stable
    assert (step <= found.largest_step) == stable
    # The step's own Jacobian I + h J, by finite differences of the network's map.
    theta = jax.tree.map(lambda leaf: leaf[2], flow.theta)
    y, e = np.asarray(flow.states[2, 1], np.float64), float(EPS) ** (1 / 3)
    columns = [
        (
            flow.field(jnp.asarray((y + e * d)[None], WIDEST), theta)
            - flow.field(jnp.asarray((y - e * d)[None], WIDEST), theta)
        )
        / (2 * e)
        for d in np.eye(6)
    ]
    matrix = np.concatenate([np.asarray(c, np.float64) for c in columns]).T
    np.testing.assert_allclose(
        np.sort(found.eigenvalues[2, 1].real),
        step * np.sort(np.linalg.eigvals(matrix).real),
        atol=50 * step * e**2 * 30,
    )


def test_no_step_is_stable_on_the_imaginary_axis(key):
    x = jax.random.normal(key, (2, 6), WIDEST)
    net = reversible.antisymmetric(
        damping=0.0, widths=(6, 6, 1), depth=3, activation=lambda y: y, weight_variance=1.0, bias_variance=0.0, step=0.1
    )
    flow = residual.unroll(net, net.init(key, x), x)
    found = measured.spectrum(*flow, amplification=euler, largest_step=largest(tableaus.euler))
    assert found.largest_step == 0 and found.unstable.all()
    assert "No step is stable" in verdicts.steps(found)
    rk4 = functools.partial(stability.amplification, tableaus.rk4)
    assert not measured.spectrum(*flow, amplification=rk4, largest_step=largest(tableaus.rk4)).unstable.any()


def test_bad_arguments_are_named():
    theta, states = known([-1.0, -2.0])
    with pytest.raises(ValueError, match="states must have at least 3 axes"):
        measured.spectrum(linear, theta, states[0], 0.1, amplification=euler)
    with pytest.raises(ValueError, match="step .*got 0"):
        measured.spectrum(linear, theta, states, 0.0, amplification=euler)
    with pytest.raises(TypeError, match="amplification must be a function; got 'euler'"):
        measured.spectrum(linear, theta, states, 0.1, amplification="euler")
    with pytest.raises(ValueError, match="krylov .*got 1"):
        measured.spectrum(linear, theta, states, 0.1, amplification=euler, krylov=1, key=jax.random.key(0))
