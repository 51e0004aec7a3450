"""Theory at the ends of float64's range, and of numbers with few bits: against closed forms, mpmath and other units."""

import mpmath
import numpy as np
import pytest

from numdl import activations
from numdl.theory import (
    descent,
    estimators,
    games,
    gradients,
    jacobian,
    kernels,
    layer_parallel,
    propagation,
    recurrent,
    residual,
    shattering,
    transformer,
)

pytestmark = pytest.mark.float32

HE = {"activation": activations.relu, "weight_variance": 2.0, "bias_variance": 0.0}
PAIR = np.array([[1.0, 0.0], [0.6, 0.8]])


@pytest.mark.parametrize("weight_variance", [0.5, 8.0])
def test_correlations_of_relu_do_not_depend_on_the_weights_however_short_or_long_the_signals(weight_variance):
    """K scales with (w / 2)^depth: 1e-181 and 1e181 at depth 300, whose products are below and above float64."""
    found = kernels.dense(PAIR, PAIR, depth=300, **{**HE, "weight_variance": weight_variance})
    expected = kernels.dense(PAIR, PAIR, depth=300, **HE)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one[0, 1] / one[0, 0], other[0, 1] / other[0, 0], rtol=1e-12)


def test_lengths_of_gelu_grow_beyond_the_root_of_the_largest_number():
    found = propagation.lengths(1e160, depth=20, **{**HE, "activation": activations.gelu})
    np.testing.assert_allclose(np.diff(np.log(found)), 0.0, atol=1e-12)


@pytest.mark.parametrize("name", ["silu", "elu", "softplus", "gelu_tanh"])
@pytest.mark.parametrize("q", [1e24, 1e60, 1e200])
def test_what_is_a_rectifier_from_afar_has_its_length_map(name, q):
    found = propagation.length_map(q, **{**HE, "activation": activations.named(name)})
    assert found == pytest.approx(q, rel=1e-10)


@pytest.mark.parametrize("bias_variance", [1e9, 1e14])
def test_fixed_points_far_out_are_found(bias_variance):
    """V(q) = E tanh^2 + b for weight variance 1: between b and b + 1."""
    physics = {"activation": activations.tanh, "weight_variance": 1.0}
    point = propagation.fixed_point(bias_variance=bias_variance, **physics)
    assert bias_variance <= point.q <= bias_variance + 1
    diagram = propagation.phase_diagram(
        activation=activations.tanh, weight_variances=[1.0], bias_variances=[bias_variance]
    )
    assert diagram.q[0, 0] == pytest.approx(point.q, rel=1e-12)


def test_slopes_at_a_kink_count_both_sides_at_length_zero():
    at_zero, anywhere = (
        jacobian.squared_singular_values(
            depth=3, q=q, activation=activations.relu, weight_variance=2.0, orthogonal=False
        )
        for q in (0.0, 1.0)
    )
    assert at_zero.relative_variance == anywhere.relative_variance == pytest.approx(6.0, rel=1e-12)


def test_the_edge_of_the_spectrum_at_a_depth_where_the_weights_alone_leave_the_range():
    """Half the units active: (1 + z)/z ((z + 1/2)/(1 + z))^L 2^L at z = 1 / (L - 2)."""
    for depth in (1000, 3000):
        z = mpmath.mpf(1) / (depth - 2)
        expected = mpmath.mpf(2) ** depth * (1 + z) / z * ((z + mpmath.mpf(1) / 2) / (1 + z)) ** depth
        found = jacobian.largest_squared(depth=depth, weight_variance=2.0, orthogonal=True, active=0.5)
        assert found == pytest.approx(float(expected), rel=1e-11)


def test_product_norm_of_a_short_and_of_a_wide_input():
    law = jacobian.product_norm(width=2, depth=3, entry_variance=0.5, excess_kurtosis=0.0, y=np.array([1e-170, 0.0]))
    unit = jacobian.product_norm(width=2, depth=3, entry_variance=0.5, excess_kurtosis=0.0, y=np.array([1.0, 0.0]))
    assert law.log_mean == pytest.approx(unit.log_mean - 340 * np.log(10), rel=1e-14)
    assert law.log_expectation == pytest.approx(unit.log_expectation - 340 * np.log(10), rel=1e-14)
    wide = jacobian.product_norm(width=10**8, depth=2, entry_variance=1e-8, excess_kurtosis=0.0, y=None)
    assert wide.relative_variance == pytest.approx(float((1 + mpmath.mpf("2e-8")) ** 3 - 1), rel=1e-13)


def test_parareal_with_more_slices_than_binomials_in_range():
    """|F - G|^k binomial sums, by exact arithmetic."""
    slices, k = 1500, 400
    found = layer_parallel.parareal(0.5, 0.5, slices=slices, iterations=k)
    sums = sum(mpmath.binomial(s - 1, k - 1) * mpmath.mpf(0.5) ** (s - k) for s in range(k, slices))
    assert found.sharp[-1] == pytest.approx(float(mpmath.mpf(0.5) ** k * sums), rel=1e-10)
    bound = mpmath.mpf(0.5) ** k * mpmath.binomial(slices - 1, k)
    assert found.superlinear[-1] == pytest.approx(float(bound), rel=1e-10)


@pytest.mark.parametrize("coarse", [0.0, 0.5, 1.0 - 1e-12, 1.0, 1.0 + 1e-12, -0.5j])
def test_multigrid_sums_its_powers_in_closed_form(coarse):
    fine = 0.25 + 0.1j
    found = layer_parallel.multigrid(fine, coarse, slices=40, relaxations=2)
    expected = abs(fine - coarse) * abs(fine) ** 2 * sum(abs(coarse) ** j for j in range(37))
    assert found == pytest.approx(expected, rel=1e-12)
    assert layer_parallel.multigrid(fine, 0.5, slices=2**31 - 1) == pytest.approx(abs(fine - 0.5) * abs(fine) * 2)


def test_shares_of_tiny_branches_keep_their_digits():
    physics = {**HE, "weight_variance": 1.0, "second_weight_variance": 2.0}
    found = residual.branch_shares(x_variance=1.0, depth=3, step=1e-9, **physics)
    np.testing.assert_allclose(found, 1e-18, rtol=1e-12)


def test_growth_factors_next_to_one_and_out_of_range():
    z = np.array([1e-3, 1e-6, 1e-9])
    found = games.growth(z, method="alternating", learning_rate=1.0)
    expected = [float(1 + (a**2 + a * mpmath.sqrt(a**2 + 4)) / 2) for a in map(mpmath.mpf, z)]
    np.testing.assert_allclose(found, expected, rtol=4e-16)
    far = descent.growth(np.array([1e200, -1e200]), method="polyak", learning_rate=1.0, momentum=0.9)
    np.testing.assert_allclose(far, 1e200, rtol=1e-15)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_modes_next_to_their_start(depth):
    """u(t) - u_0 = t u'(0) to first order, and its inverse; a start far below the rounding of s."""
    s, start = 1.0, 1e-17
    assert descent.mode_strength(0.0, singular_value=s, start=start, depth=depth) == pytest.approx(start, rel=1e-13)
    start, end = 0.25, np.nextafter(0.25, 1.0)
    rate = depth * start ** (2 - 2 / depth) * (s - start)
    found = descent.learning_time(singular_value=s, start=start, end=end, depth=depth)
    assert found == pytest.approx((end - start) / rate, rel=1e-12)


@pytest.mark.parametrize(("bias", "variance"), [(50.0, 1e4), (-300.0, 1e6), (1000.0, 1e6), (2.0, 0.0)])
def test_the_gate_of_a_carousel_bends_far_from_zero(bias, variance):
    deviation = mpmath.sqrt(variance)
    bend = 0 if variance == 0 else -bias / deviation
    places = sorted({-12, 12, bend, *(bend + k / (deviation or 1) for k in (-40, -5, 5, 40))})

    def integrand(z):
        x = bias + deviation * z
        return (min(x, 0) - mpmath.log1p(mpmath.exp(-abs(x)))) * mpmath.npdf(z)

    expected = -mpmath.log1p(mpmath.exp(-bias)) if variance == 0 else mpmath.quad(integrand, places)
    found = recurrent.carousel(steps=1, forget_bias=bias, gate_variance=variance)[0]
    assert found == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize("shift", [1e3, 1e12, -1e3, -1e12])
def test_a_logit_far_from_the_others_decides_alone(shift):
    found = transformer.initial_loss(vocabulary=10, logit_variance=1.0, own_logit=shift)
    others = transformer.initial_loss(vocabulary=9, logit_variance=1.0)
    assert found == pytest.approx(shift if shift > 0 else others, rel=1e-13)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_regression_by_a_kernel_of_low_rank_counts_eigenvalues_of_its_own_rounding_as_none(dtype):
    """A linear kernel of three inputs: least squares. In float32 the other eigenvalues are noise, of both signs."""
    rng = np.random.default_rng(0)
    x, at = rng.normal(size=(40, 3)).astype(dtype), rng.normal(size=(4, 3)).astype(dtype)
    targets = rng.normal(size=(40, 1))
    expected = at.astype(float) @ np.linalg.lstsq(x.astype(float), targets, rcond=None)[0]
    found = kernels.regression(x @ x.T, at @ x.T, targets)
    np.testing.assert_allclose(found, expected, atol=1e-5 if dtype == np.float32 else 1e-12)


@pytest.mark.parametrize("name", ["train_start", "cross_start"])
@pytest.mark.parametrize("start", [np.ones(2), np.ones((1, 2)), np.full((2, 2), np.nan), 1j, "text", None])
def test_functions_at_the_beginning_fit_or_are_refused(name, start):
    with pytest.raises((ValueError, TypeError), match=f"{name} must .*got"):
        kernels.gradient_flow(np.eye(2), np.eye(2), np.ones((2, 2)), times=[1.0], **{name: start})


RELU = {"activation": activations.relu}
BLOCKS = {**HE, "weight_variance": 1.0, "second_weight_variance": 1.0}
SMALL = {
    "tuning": (lambda v: descent.tuning("nesterov", least=v, largest=v), 100),
    "lyapunov": (lambda v: jacobian.lyapunov_exponents(width=2, entry_variance=v).exponents, 200),
    "density": (lambda v: jacobian.product_density(depth=2, weight_variance=v, points=2).s_squared, 3),
    "norm log": (lambda v: gradients.log_norm(widths=(2, 2, 2), weight_variance=v, **RELU).log_mean, 3),
    "residual": (lambda v: residual.correlations(0.5, x_variance=v, depth=2, step=v, **BLOCKS).square, 20),
    "shares": (lambda v: residual.branch_shares(x_variance=v, depth=2, step=v, **BLOCKS), 20),
    "laws": (lambda v: residual.tanh_laws(weight_variance=v, second_weight_variance=v, step=v).length, 20),
    "shattering": (lambda v: shattering.residual(0.5, x_variance=v, depth=2, step=v, **BLOCKS).gradient, 20),
    "kernel": (lambda v: kernels.residual(PAIR, PAIR, depth=1, step=v, readout_weight_variance=v, **BLOCKS).ntk, 20),
    "growth": (lambda v: gradients.growth(v, depth=2, weight_variance=v, bias_variance=v, **RELU).log_products, 200),
    "fixed": (lambda v: propagation.fixed_point(**{**HE, "weight_variance": 1.0, "bias_variance": v}).q, 3),
    "moments": (lambda v: estimators.square_norm(dimension=3, square_mean=v, variance=v)["pathwise"].variance, 100),
}


@pytest.mark.parametrize(
    "kind",
    [np.uint8, lambda v: np.array(v, np.uint8), np.float16, np.float32],
    ids=["uint8", "array", "float16", "float32"],
)
@pytest.mark.parametrize("name", SMALL)
def test_numbers_of_few_bits_are_the_numbers_that_they_are(name, kind):
    """uint8 wraps around at 256, its logarithm is a float16, and float32 rounds what is computed of it."""
    function, value = SMALL[name]
    np.testing.assert_array_equal(np.asarray(function(kind(value))), np.asarray(function(float(value))))
