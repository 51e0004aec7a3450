"""Bounds on gradients through time, powers of matrices and the carousel, against closed forms and mpmath."""

import mpmath as mp
import numpy as np
import pytest

from numdl import activations
from numdl.theory import recurrent


def test_bound_is_a_power():
    bound = recurrent.gradient_through_time(steps=4, largest_singular_value=3.0, largest_slope=0.25)
    np.testing.assert_allclose(np.exp(bound.log_norm), 0.75 ** np.array([4, 3, 2, 1]), rtol=1e-12)
    assert bound.vanishes
    assert not bound.may_explode
    over = recurrent.gradient_through_time(steps=10**4, largest_singular_value=5.0, largest_slope=1.0)
    assert over.may_explode
    assert not over.vanishes
    assert over.log_norm[0] == pytest.approx(10**4 * np.log(5))
    dead = recurrent.gradient_through_time(steps=2, largest_singular_value=0.0, largest_slope=1.0)
    assert np.isneginf(dead.log_norm).all()


@pytest.mark.parametrize(
    "activation, slope",
    [
        (activations.tanh, 1.0),
        (activations.sigmoid, 0.25),
        (activations.relu, 1.0),
        (activations.leaky_relu(3.0), 3.0),
        (activations.selu, 1.0507009873554805 * 1.6732632423543772),
        (activations.erf, 2 / np.sqrt(np.pi)),
        # f'' = 0 at x = sqrt(2): Phi(sqrt 2) + sqrt 2 phi(sqrt 2)
        (activations.gelu, float(mp.ncdf(mp.sqrt(2)) + mp.sqrt(2) * mp.npdf(mp.sqrt(2)))),
    ],
)
def test_largest_slopes(activation, slope):
    assert recurrent.largest_slope(activation) == pytest.approx(slope, rel=1e-8)


@pytest.mark.parametrize("radius, size", [(0.9, 2), (0.8, 4), (1.0, 2)])
def test_powers_of_a_jordan_block_are_binomials(radius, size):
    block = radius * np.eye(size) + np.diag(np.ones(size - 1), 1)
    growth = recurrent.transient_growth(block, steps=40)
    with mp.workdps(30):
        for k in (1, 7, 40):
            power = mp.matrix(size, size)
            for i in range(size):
                for j in range(i, size):
                    power[i, j] = mp.binomial(k, j - i) * mp.mpf(radius) ** (k - j + i) if k >= j - i else 0
            exact = mp.log(max(mp.svd_r(power, compute_uv=False)))
            assert growth.log_norm[k - 1] == pytest.approx(float(exact), rel=1e-10, abs=1e-12)
    assert growth.log_spectral_radius == pytest.approx(np.log(radius), abs=1e-12)


def test_a_jordan_block_of_radius_nine_tenths_grows_fourfold_first():
    growth = recurrent.transient_growth(np.array([[0.9, 1.0], [0.0, 0.9]]), steps=400)
    assert np.exp(growth.log_peak) == pytest.approx(3.9, abs=0.05)
    assert growth.peak_step == 9
    assert growth.log_norm[-1] < -30
    assert 0 < growth.log_kreiss <= growth.log_peak
    # For this block the resolvent's bound is within a factor e of the peak.
    assert growth.log_kreiss > growth.log_peak - 1


def test_normal_matrices_do_not_grow():
    rng = np.random.default_rng(0)
    q = np.linalg.qr(rng.standard_normal((5, 5)))[0]
    growth = recurrent.transient_growth(0.9 * q, steps=2000)
    np.testing.assert_allclose(growth.log_norm, np.arange(1, 2001) * np.log(0.9), rtol=1e-10)
    assert growth.log_peak == 0
    assert growth.peak_step == 0
    assert growth.log_kreiss == pytest.approx(0, abs=1e-6)
    unstable = recurrent.transient_growth(2 * q, steps=3000)
    assert unstable.log_norm[-1] == pytest.approx(3000 * np.log(2))
    assert np.isinf(unstable.log_kreiss)


def test_nilpotent_matrices_end():
    growth = recurrent.transient_growth(np.array([[0.0, 5.0], [0.0, 0.0]]), steps=3)
    np.testing.assert_allclose(growth.log_norm, [np.log(5), -np.inf, -np.inf])


@pytest.mark.parametrize("bias, variance", [(1.0, 0.0), (0.0, 1.0), (2.0, 4.0), (-3.0, 0.01)])
def test_carousel_is_the_mean_logarithm(bias, variance):
    root = mp.sqrt(variance)
    exact = mp.quad(lambda z: -mp.log1p(mp.exp(-(bias + root * z))) * mp.npdf(z), np.linspace(-12, 12, 13).tolist())
    log_gradient = recurrent.carousel(steps=3, forget_bias=bias, gate_variance=variance)
    np.testing.assert_allclose(log_gradient, float(exact) * np.array([1, 2, 3]), rtol=1e-9)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (
            lambda: recurrent.gradient_through_time(steps=0, largest_singular_value=1.0, largest_slope=1.0),
            ValueError,
            "steps .*got 0",
        ),
        (
            lambda: recurrent.gradient_through_time(steps=1, largest_singular_value=-1.0, largest_slope=1.0),
            ValueError,
            "largest_singular_value .*got -1",
        ),
        (lambda: recurrent.largest_slope(np.tanh), TypeError, "activation must be an Activation"),
        (lambda: recurrent.transient_growth(np.ones((2, 3)), steps=1), ValueError, r"matrix .*\(2, 3\)"),
        (lambda: recurrent.transient_growth([[np.inf]], steps=1), ValueError, "matrix .*got inf"),
        (lambda: recurrent.carousel(steps=2, forget_bias=0.0, gate_variance=-1.0), ValueError, "gate_var.* got -1"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
