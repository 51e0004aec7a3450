"""Refined parameters are the same function of time; the penalties are integrals, by scipy's quadrature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

from numdl.ode import integrate, refinement, tableaus

pytestmark = pytest.mark.float32
T = 1.5


def some_theta(length):
    rng = np.random.default_rng(3)
    return {"K": jnp.asarray(rng.normal(size=(length, 2, 3))), "b": jnp.asarray(rng.normal(size=(length,)))}


def tolerance():
    return 50 * float(jnp.finfo(jnp.asarray(1.0).dtype).eps)


def as_function(theta, interpolation):
    """theta at time t in plain numpy, flat."""
    flat = np.concatenate([np.asarray(leaf, np.float64).reshape(len(leaf), -1) for leaf in jax.tree.leaves(theta)], 1)
    if interpolation == "linear":
        grid = np.linspace(0, T, len(flat))
        return lambda t: np.array([np.interp(t, grid, column) for column in flat.T])
    return lambda t: flat[min(int(t / T * len(flat)), len(flat) - 1)]


@pytest.mark.parametrize("interpolation, length", [("constant", 4), ("linear", 5)])
@pytest.mark.parametrize("factor", [1, 3])
def test_prolonged_theta_is_the_same_function(interpolation, length, factor):
    theta = some_theta(length)
    fine = refinement.prolong(theta, steps=4 * factor, interpolation=interpolation)
    assert refinement.step_count(fine, interpolation=interpolation) == 4 * factor
    before, after = as_function(theta, interpolation), as_function(fine, interpolation)
    for t in np.linspace(0, T, 47) * 0.999 + 1e-4:
        np.testing.assert_allclose(after(t), before(t), atol=tolerance())
    back = refinement.restrict(fine, steps=4, interpolation=interpolation)
    for name in theta:
        np.testing.assert_allclose(back[name], theta[name], atol=tolerance())


def test_restriction_keeps_the_integral_or_the_nodes():
    theta = some_theta(6)
    coarse = refinement.restrict(theta, steps=3, interpolation="constant")
    np.testing.assert_allclose(coarse["b"].mean(), theta["b"].mean(), atol=tolerance())
    np.testing.assert_allclose(coarse["b"][0], (theta["b"][0] + theta["b"][1]) / 2, atol=tolerance())
    nodes = refinement.restrict(some_theta(7), steps=3, interpolation="linear")
    np.testing.assert_array_equal(nodes["b"], some_theta(7)["b"][::2])


@pytest.mark.parametrize("interpolation, length", [("constant", 4), ("linear", 5)])
def test_tikhonov_is_the_integral(interpolation, length):
    theta = some_theta(length)
    f = as_function(theta, interpolation)
    wanted = sum(quad(lambda t: (f(t) ** 2).sum(), i * T / 4, (i + 1) * T / 4 - 1e-12)[0] for i in range(4)) / 2
    got = refinement.tikhonov(theta, step=T / 4, interpolation=interpolation)
    np.testing.assert_allclose(got, wanted, rtol=max(tolerance(), 1e-9))


def test_smoothness_is_the_integral_of_the_slope():
    theta = some_theta(5)
    f = as_function(theta, "linear")
    slopes = [(f((i + 0.75) * T / 4) - f((i + 0.25) * T / 4)) / (T / 8) for i in range(4)]
    wanted = sum((s**2).sum() for s in slopes) * T / 4 / 2
    np.testing.assert_allclose(refinement.smoothness(theta, step=T / 4, interpolation="linear"), wanted, rtol=1e-5)
    # Five constants, midpoints T/5 apart: the same differences over another step.
    constant = refinement.smoothness(theta, step=T / 5, interpolation="constant")
    np.testing.assert_allclose(constant, wanted * (T / 4) / (T / 5), rtol=1e-5)


def test_smoothness_does_not_depend_on_the_grid():
    coarse = some_theta(5)
    fine = refinement.prolong(coarse, steps=12, interpolation="linear")
    penalties = [refinement.smoothness(t, step=T / n, interpolation="linear") for t, n in ((coarse, 4), (fine, 12))]
    np.testing.assert_allclose(penalties[0], penalties[1], rtol=20 * tolerance())


def test_a_refined_network_converges_to_its_ode():
    theta = {"k": jnp.asarray([[[0.3, -1.0], [1.0, 0.2]], [[-0.5, 0.4], [0.1, 0.9]]])}
    y0 = jnp.asarray([1.0, -0.5])

    def field(t, y, theta):
        return jnp.tanh(theta["k"] @ y)

    ends = []
    for steps in (2, 16, 128):
        fine = refinement.prolong(theta, steps=steps, interpolation="constant")
        ends.append(
            integrate.endpoint(field, y0, fine, tableau=tableaus.euler, t1=T, steps=steps, interpolation="constant")
        )
    fine = refinement.prolong(theta, steps=32, interpolation="constant")
    limit = integrate.endpoint(field, y0, fine, tableau=tableaus.rk4, t1=T, steps=32, interpolation="constant")
    errors = [float(jnp.abs(end - limit).max()) for end in ends]
    assert 6 < errors[1] / errors[2] < 10


def test_coarse_to_fine_visits_every_level():
    seen = []

    def train(theta, steps):
        seen.append((steps, theta["b"].shape[0]))
        return jax.tree.map(lambda leaf: leaf + 1, theta)

    levels = refinement.coarse_to_fine(train, some_theta(2), steps=(2, 4, 12), interpolation="constant")
    assert seen == [(2, 2), (4, 4), (12, 12)]
    np.testing.assert_allclose(levels[-1]["b"][:6] - some_theta(2)["b"][0], 3, atol=tolerance())


def test_numbers_of_another_byte_order_are_trained_as_any_others():
    train = lambda theta, steps: jax.tree.map(lambda leaf: jnp.asarray(leaf) + 1, theta)  # noqa: E731
    turned = jax.tree.map(lambda leaf: np.asarray(leaf).astype(np.asarray(leaf).dtype.newbyteorder()), some_theta(2))
    for theta in (some_theta(2), turned):
        found = refinement.coarse_to_fine(train, theta, steps=(2, 4), interpolation="constant")
        np.testing.assert_allclose(found[0]["b"], some_theta(2)["b"] + 1, atol=tolerance())


def test_errors_name_argument_and_value():
    theta = some_theta(4)
    with pytest.raises(ValueError, match=r"steps must be a multiple of the 4 steps that theta has; got 6"):
        refinement.prolong(theta, steps=6, interpolation="constant")
    with pytest.raises(ValueError, match=r"steps must divide the 3 steps that theta has; got 2"):
        refinement.restrict(theta, steps=2, interpolation="linear")
    with pytest.raises(ValueError, match=r"interpolation must be one of constant, linear; got 'cubic'"):
        refinement.prolong(theta, steps=8, interpolation="cubic")
    with pytest.raises(ValueError, match=r"step must be a finite number > 0; got 0\.0"):
        refinement.tikhonov(theta, step=0.0, interpolation="constant")
    with pytest.raises(ValueError, match=r"theta must have leaves of one length.*got lengths \[2, 4\]"):
        refinement.smoothness({**theta, "c": jnp.ones(2)}, step=0.1, interpolation="constant")


@pytest.mark.parametrize("penalty", [refinement.smoothness, refinement.tikhonov])
def test_a_step_of_few_bits_is_the_number_that_it_is(penalty):
    theta = np.array([1.0, 2.0])
    found = penalty(theta, step=np.array(100, np.int8), interpolation="constant")
    np.testing.assert_array_equal(found, penalty(theta, step=100.0, interpolation="constant"))
