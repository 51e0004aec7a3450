"""Activations that jump: f' holds delta functions, E f'^2 is infinite, and everything that follows says so."""

import jax.numpy as jnp
import numpy as np
import pytest
from mpmath import mp

from numdl import _jumps, activations
from numdl.theory import gradients, jacobian, kernels, propagation, recurrent

CORRELATIONS = np.array([-0.9, -0.5, 0.0, 0.3, 0.999])


def heaviside(x):
    return jnp.where(x > 0, 1.0, 0.0) + 0 * x


SIGN = activations.custom(jnp.sign, name="sign", kinks=(0.0,))
UNNAMED = activations.custom(jnp.sign, name="sign")
STEP = activations.custom(heaviside, name="step")
SHIFTED = activations.custom(lambda x: x + 2 * jnp.where(x > 0.3, 1.0, 0.0), name="shifted")
MIXED = activations.custom(lambda x: x + jnp.sign(x), name="mixed")


@pytest.mark.parametrize(("activation", "places"), [(SIGN, [0]), (UNNAMED, [0]), (STEP, [0]), (SHIFTED, [0.3])])
def test_jumps_are_found_named_or_not(activation, places):
    assert [jump.place for jump in activation.jumps] == places


def test_a_staircase_and_a_far_jump():
    stairs = activations.custom(jnp.round, name="round")
    found = [jump.place for jump in stairs.jumps]
    np.testing.assert_array_equal(found, np.arange(-20, 20) + 0.5)
    far = activations.custom(lambda x: jnp.where(x > 50, 1.0, 0.0) + 0 * x, name="far", kinks=(50.0,))
    assert [tuple(jump) for jump in far.jumps] == [(50.0, 0.0, 1.0)]


@pytest.mark.parametrize("name", ["tanh", "hard_tanh", "elu", "selu", "sigmoid", "softplus", "silu", "gelu_tanh"])
def test_what_is_continuous_does_not_jump(name):
    assert _jumps.find(activations.named(name), activations.named(name).slope, activations.named(name).kinks) == ()


def test_a_cusp_and_a_steep_slope_do_not_jump():
    assert activations.custom(lambda x: jnp.sqrt(jnp.abs(x)), name="cusp", kinks=(0.0,)).jumps == ()
    assert activations.custom(lambda x: jnp.tanh(1e5 * x), name="steep").jumps == ()


def test_slope_moments_of_sign_step_and_mixed():
    q1, q2, c = 2.0, 0.5, CORRELATIONS
    wide = 1 / np.sqrt(q1 * q2 * (1 - c**2))
    np.testing.assert_allclose(SIGN.slope_mean_product(q1, q2, c), 2 / np.pi * wide, rtol=1e-11)
    np.testing.assert_allclose(UNNAMED.slope_mean_product(q1, q2, c), 2 / np.pi * wide, rtol=1e-11)
    np.testing.assert_allclose(STEP.slope_mean_product(q1, q2, c), wide / (2 * np.pi), rtol=1e-11)
    cross = np.sqrt(2 / np.pi) * (q1**-0.5 + q2**-0.5)  # E sign'(u) twice: 2 densities at 0
    np.testing.assert_allclose(MIXED.slope_mean_product(q1, q2, c), 1 + cross + 2 / np.pi * wide, rtol=1e-10)
    for activation in (SIGN, STEP, MIXED, SHIFTED):
        assert activation.slope_mean_square(0.7) == activation.slope_mean_product(0.7, 0.7, 1.0) == np.inf


def test_moments_are_exact_at_a_jump_that_was_not_named():
    wanted = 1 + 4 * float(mp.npdf(0.3)) + 4 * float(1 - mp.ncdf(0.3))  # E z^2 + 4 E z 1 + 4 E 1, z > 0.3
    np.testing.assert_allclose(SHIFTED.mean_square(1.0), wanted, rtol=1e-12)


def test_the_fixed_point_of_sign_is_chaotic():
    """q = w + b; C(c) = (w 2/pi asin(c) + b) / q; C'(1) is infinite: c = 1 is never reached."""
    w, b = 1.5, 0.1
    found = propagation.fixed_point(activation=SIGN, weight_variance=w, bias_variance=b)
    c = float(mp.findroot(lambda c: (w * 2 / mp.pi * mp.asin(c) + b) / (w + b) - c, 0.2))
    assert (found.phase, found.chi_1, found.slope_q) == ("chaotic", np.inf, 0)
    chi_c = w / (w + b) * 2 / np.pi / np.sqrt(1 - c**2)
    np.testing.assert_allclose([found.q, found.c, found.chi_c], [w + b, c, chi_c], rtol=1e-12)
    assert np.isnan(propagation.critical_weight_variance(activation=SIGN, bias_variance=b))


def test_the_slope_of_the_length_map_counts_a_jump_of_the_square():
    """step(x - 0.3): M(q) = P(z > 0.3 / sqrt q), V' = w dM/dq."""
    step = activations.custom(lambda x: jnp.where(x > 0.3, 1.0, 0.0) + 0 * x, name="step", kinks=(0.3,))
    found = propagation.fixed_point(activation=step, weight_variance=2.0, bias_variance=0.1)
    q = float(found.q)
    wanted = 2.0 * float(mp.npdf(0.3 / mp.sqrt(q))) * 0.3 / 2 / q**1.5
    np.testing.assert_allclose(found.slope_q, wanted, rtol=1e-9)


def test_a_phase_diagram_with_jumps_and_without_weights():
    found = propagation.phase_diagram(activation=SIGN, weight_variances=[0.0, 1.0], bias_variances=[0.1])
    np.testing.assert_array_equal(found.chi_1[:, 0], [0, np.inf])
    np.testing.assert_array_equal(found.phase[:, 0], [-1, 1])
    np.testing.assert_allclose(found.q[:, 0], [0.1, 1.1], rtol=1e-9)
    at_zero = propagation.fixed_point(activation=SIGN, weight_variance=0.0, bias_variance=0.1)
    assert at_zero.chi_1 == 0 and at_zero.c == 1


def test_what_follows_is_infinite_too():
    physics = {"activation": SIGN, "weight_variance": 1.0, "bias_variance": 0.1}
    assert (gradients.growth(1.0, depth=3, **physics).log_products == np.inf).all()
    assert recurrent.largest_slope(UNNAMED) == np.inf
    values = jacobian.squared_singular_values(depth=2, q=1.0, activation=SIGN, weight_variance=1.0, orthogonal=True)
    assert values.log_expectation == np.inf


def test_the_tangent_kernel_of_sign_is_finite_between_different_inputs():
    x = np.array([[1.0, 0.0], [0.6, 0.8]])
    found = kernels.dense(x, x, depth=1, activation=SIGN, weight_variance=2.0, bias_variance=0.0)
    assert (np.diagonal(found.ntk) == np.inf).all()
    nngp = 2 * 2 / np.pi * np.arcsin(0.6)
    slope = 2 / np.pi / 0.8  # at lengths 1
    np.testing.assert_allclose([found.nngp[0, 1], found.ntk[0, 1]], [nngp, nngp + 2 * slope * 0.6], rtol=1e-11)
