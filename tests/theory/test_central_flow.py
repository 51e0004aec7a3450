"""theory.central_flow against exponentials, a valley whose oscillation is known, and gradient descent itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numdl.theory.central_flow import _complement, central_flow

H, DRIVE = 0.5, 0.05


def valley(w):
    """(1/2) x^2 (1 + y) - c y: y grows at rate c until 1 + y = 2 / h, where x oscillates with E x^2 = 2 c."""
    return 0.5 * w["x"] ** 2 * (1 + w["y"]) - DRIVE * w["y"]


START = {"x": jnp.zeros(()), "y": jnp.zeros(())}


@pytest.mark.parametrize("directions", [0, 1, 2])
def test_below_the_edge_it_is_gradient_flow(directions):
    matrix, start = np.array([[1.0, 0.3], [0.3, 0.5]]), np.array([1.0, -2.0])
    found = central_flow(
        lambda w: 0.5 * w @ matrix @ w, start, learning_rate=0.01, steps=200, substeps=4, directions=directions
    )
    values, vectors = np.linalg.eigh(matrix)
    exact = vectors @ (np.exp(-0.01 * 200 * values) * (vectors.T @ start))
    np.testing.assert_allclose(found.path[-1], exact, atol=3e-3)
    np.testing.assert_allclose(found.sharpness, values[-1], rtol=1e-10)
    assert (found.variance == 0).all()
    np.testing.assert_allclose(found.loss[-1], 0.5 * found.path[-1] @ matrix @ found.path[-1], rtol=1e-10)


def test_at_the_edge_the_oscillation_carries_the_drive():
    found = central_flow(valley, START, learning_rate=H, steps=200)
    until = np.minimum(H * DRIVE * np.arange(201), 2 / H - 1)
    np.testing.assert_allclose(found.path[:, 1], until, atol=1e-6)
    np.testing.assert_allclose(found.variance, np.where(until < 2 / H - 1.02, 0, found.variance))
    np.testing.assert_allclose(found.variance[-50:], 2 * DRIVE, rtol=1e-6)
    np.testing.assert_allclose(found.mean_loss[-50:], found.loss[-50:] + 2 * DRIVE / H, rtol=1e-6)


def test_without_directions_the_sharpness_passes_the_limit():
    found = central_flow(valley, START, learning_rate=H, steps=200, directions=0)
    assert found.sharpness[-1] == pytest.approx(1 + 200 * H * DRIVE)


def test_gradient_descent_in_the_valley_has_an_orbit_with_these_averages():
    """Two steps by NumPy from x^2 = 2 c, y = 2 / h - 1 return: x <- (1 - h (1 + y)) x, y <- y + h (c - x^2 / 2)."""
    x, y, rows = np.sqrt(2 * DRIVE), 2 / H - 1, []
    for _ in range(2):
        rows.append((x, y, x * x, 0.5 * x**2 * (1 + y) - DRIVE * y))
        x, y = (1 - H * (1 + y)) * x, y + H * (DRIVE - x * x / 2)
    np.testing.assert_allclose((x, y), rows[0][:2], rtol=1e-12)
    average = np.mean(rows, axis=0)
    found = central_flow(valley, START, learning_rate=H, steps=200)
    np.testing.assert_allclose(found.path[-1], average[:2], atol=1e-6)
    assert found.variance[-1] == pytest.approx(average[2], rel=1e-6)
    assert found.mean_loss[-1] == pytest.approx(average[3], rel=1e-6)


def test_the_complement_of_commuting_matrices_is_that_of_numbers():
    """A diagonal problem: x_i = max(0, -a_i / b_i)."""
    linear, gains = np.diag([-1.0, 0.5]), np.array([2.0, 3.0])
    quadratic = np.zeros((2, 2, 2, 2))
    for i in range(2):
        quadratic[i, i, i, i] = gains[i]
    found = _complement(jnp.asarray(linear), jnp.asarray(quadratic))
    np.testing.assert_allclose(found, np.diag([0.5, 0.0]), atol=1e-9)


def test_the_complement_of_a_coupled_problem_is_optimal():
    random = np.random.default_rng(0)
    pushes = random.standard_normal((2, 2, 9))
    pushes = pushes + np.swapaxes(pushes, 0, 1)
    linear = random.standard_normal((2, 2)) - 2 * np.eye(2)
    linear, quadratic = (linear + linear.T) / 2, np.einsum("ijp,klp->ijkl", pushes, pushes)
    x = np.asarray(_complement(jnp.asarray(linear), jnp.asarray(quadratic)))
    slope = linear + np.einsum("ijkl,kl->ij", quadratic, x)
    assert np.linalg.eigvalsh(x).min() > -1e-12 and x.trace() > 0.01
    assert np.linalg.eigvalsh(slope).min() > -1e-6
    assert abs(np.sum(slope * x)) < 1e-6


def test_the_first_call_compiles_few_programs_and_the_second_none():
    def heard(event, seconds, **_):
        events.append(event)

    events = []
    jax.monitoring.register_event_duration_secs_listener(heard)
    try:
        central_flow(valley, START, learning_rate=H, steps=5)
        # 57 where each operation on known numbers, inside of the program too, is a program of its own.
        assert 1 <= len([event for event in events if event.endswith("jaxpr_to_mlir_module_duration")]) <= 6
        events.clear()
        central_flow(valley, START, learning_rate=0.4, steps=5)
        assert not [event for event in events if event.endswith("jaxpr_to_mlir_module_duration")]
    finally:
        jax.monitoring.unregister_event_duration_listener(heard)
