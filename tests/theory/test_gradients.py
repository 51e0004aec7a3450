"""theory.gradients against closed forms of erf, scipy quadrature, enumeration, and NumPy on small random networks."""

import jax
import mpmath
import numpy as np
import pytest
from scipy import integrate, optimize, stats

from numdl import activations
from numdl.theory import gradients

pytestmark = pytest.mark.float32

ERF = {"activation": activations.erf, "weight_variance": 1.7, "bias_variance": 0.1}


def erf_square(q):
    """E erf(u)^2 = 2/pi asin(2q / (1 + 2q))."""
    return 2 / np.pi * np.arcsin(2 * q / (1 + 2 * q))


def erf_slope_square(q):
    return 4 / np.pi / np.sqrt(1 + 4 * q)


def dense_by_hand(q, depth, w, b, keep=1.0):
    lengths = [q]
    for _ in range(depth - 1):
        lengths.append(w / keep * erf_square(lengths[-1]) + b)
    return np.array(lengths), np.array([w / keep * erf_slope_square(q) for q in lengths])


@pytest.mark.parametrize("keep", [1.0, 0.8])
def test_dense_growth_of_erf_in_closed_form(keep):
    q, chi = dense_by_hand(1.7 * 0.6 + 0.1, 7, 1.7, 0.1, keep)
    found = gradients.growth(0.6, depth=7, keep_probability=keep, **ERF)
    np.testing.assert_allclose(found.q, q, rtol=1e-13)
    np.testing.assert_allclose(found.chi, chi, rtol=1e-13)
    np.testing.assert_allclose(found.log_products, [np.log(chi[i:]).sum() for i in range(7)], rtol=1e-12)
    fixed = optimize.brentq(lambda q: 1.7 / keep * erf_square(q) + 0.1 - q, 0.01, 5, xtol=1e-15)
    assert found.chi_1 == pytest.approx(1.7 / keep * erf_slope_square(fixed), rel=1e-11)
    assert found.depth_scale == pytest.approx(-1 / np.log(1.7 / keep * erf_slope_square(fixed)), rel=1e-9)


def test_slopes_of_tanh_by_scipy():
    found = gradients.growth(0.5, depth=1, activation=activations.tanh, weight_variance=2.0, bias_variance=0.3)
    density = lambda z: np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)  # noqa: E731
    slope, _ = integrate.quad(lambda z: np.cosh(np.sqrt(1.3) * z) ** -4 * density(z), -12, 12, epsabs=1e-13)
    assert found.chi[0] == pytest.approx(2 * slope, rel=1e-10)


def test_widths_enter_as_ratios_and_the_readout_by_its_own_variance():
    given = {"activation": activations.relu, "weight_variance": 1.6, "bias_variance": 0.3}
    found = gradients.growth(1.0, widths=(7, 10, 40, 5), readout_weight_variance=3.0, **given)
    np.testing.assert_allclose(found.chi, [0.8 * 40 / 10, 1.5 * 5 / 40], rtol=1e-14)
    np.testing.assert_allclose(found.chi[0], gradients.growth(1.0, widths=(3, 10, 40, 5), **given).chi[0], rtol=1e-14)
    np.testing.assert_allclose(gradients.growth(1.0, depth=3, **given).chi, [0.8] * 3, rtol=1e-14)


@pytest.mark.parametrize("weight_variance, scale", [(2.0, np.inf), (1.0, 1 / np.log(2)), (4.0, -1 / np.log(2))])
def test_depth_scale_is_signed_and_infinite_at_criticality(weight_variance, scale):
    found = gradients.growth(
        1.0, depth=2, activation=activations.relu, weight_variance=weight_variance, bias_variance=0.0
    )
    assert found.depth_scale == pytest.approx(scale, rel=1e-12)


def test_deep_products_stay_finite_logarithms():
    found = gradients.growth(1.0, depth=20_000, activation=activations.relu, weight_variance=0.02, bias_variance=0.1)
    assert found.log_products[0] == pytest.approx(20_000 * np.log(0.01), rel=1e-12)


# ---- residual networks ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [1.0, 0.7])
@pytest.mark.parametrize("second", [None, 0.6])
def test_residual_recursion_of_erf_by_hand(second, keep):
    """erf is odd: no drift of the mean."""
    steps = np.array([0.5, 0.3, 0.9])
    square, gain = 0.8, 1.7 * (1.0 if second is None else second)
    q, chi = [], []
    for h in steps:
        q.append(1.7 * square + 0.1)
        chi.append(1 + h**2 * gain * erf_slope_square(q[-1]) / keep)
        square += h**2 * (1.0 if second is None else second) * erf_square(q[-1]) / keep
    found = gradients.residual_growth(
        0.8, depth=3, step=steps, second_weight_variance=second, keep_probability=keep, readout_gain=2.0, **ERF
    )
    np.testing.assert_allclose(found.q, q, rtol=1e-12)
    np.testing.assert_allclose(found.chi, [*chi[1:], 2.0], rtol=1e-12)
    assert found.log_products[0] == pytest.approx(np.log([*chi[1:], 2.0]).sum(), rel=1e-12)
    assert np.isnan(found.depth_scale)


def test_relu_blocks_drift_by_the_activations_mean():
    """y + h relu(y K): E y <- E y + h sqrt(q / 2 pi), in closed form; (1 + h^2 w / 2)^L is too small."""
    h, w, mean, square, q = 0.4, 2.0, 0.1, 1.0, []
    for _ in range(6):
        q.append(w * square)
        drift = h * np.sqrt(q[-1] / (2 * np.pi))
        mean, square = mean + drift, square + 2 * mean * drift + h**2 * q[-1] / 2
    found = gradients.residual_growth(
        1.0, x_mean=0.1, depth=6, step=h, activation=activations.relu, weight_variance=w, bias_variance=0.0
    )
    np.testing.assert_allclose(found.q, q, rtol=1e-12)
    assert found.q[-1] > 1.3 * w * (1 + h**2 * w / 2) ** 5
    np.testing.assert_allclose(found.chi[:-1], 1 + h**2 * w / 2, rtol=1e-13)


def relu_blocks(rng, width, depth, h, w, v, cotangent, x):
    """|dloss/dx|^2 / |cotangent|^2 through y + h relu(y K) V, or without V if v is None, by NumPy."""
    y, blocks = x, []
    for _ in range(depth):
        K = rng.normal(size=(width, width)) * np.sqrt(w / width)
        V = np.eye(width) if v is None else rng.normal(size=(width, width)) * np.sqrt(v / width)
        blocks.append((K, y @ K > 0, V))
        y = y + h * np.maximum(y @ K, 0) @ V
    g = cotangent
    for K, on, V in reversed(blocks):
        g = g + h * K @ (on * (V @ g))
    return g @ g / (cotangent @ cotangent)


def test_two_layer_relu_blocks_are_exact_at_width_3():
    rng = np.random.default_rng(0)
    draws = [relu_blocks(rng, 3, 3, 0.5, 2.0, 1.0, rng.normal(size=3), np.ones(3)) for _ in range(20_000)]
    found = gradients.residual_growth(
        1.0,
        depth=4,
        step=0.5,
        activation=activations.relu,
        weight_variance=2.0,
        bias_variance=0.0,
        second_weight_variance=1.0,
    )
    error = np.std(draws, ddof=1) / np.sqrt(len(draws))
    assert np.mean(draws) == pytest.approx(np.exp(found.log_products[0]), abs=6 * error)
    assert error < 0.01 * np.mean(draws)


def test_one_layer_relu_blocks_exceed_the_limit_by_order_1_over_width():
    """As documented: the formula is the limit, and at width 6 it is not the mean."""
    rng = np.random.default_rng(1)
    limit = (1 + 0.7**2) ** 4
    excess = []
    for width in (6, 24):
        x = np.ones(width)
        draws = [relu_blocks(rng, width, 4, 0.7, 2.0, None, rng.normal(size=width), x) for _ in range(12_000)]
        error = np.std(draws, ddof=1) / np.sqrt(len(draws))
        excess.append(((np.mean(draws) - limit) * width, error * width))
    assert excess[0][0] > 6 * excess[0][1]
    assert abs(excess[1][0] / excess[0][0] - 1) < 0.5  # falls like 1 / width, not slower


# ---- dropout -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("w, keep", [(0.9, 0.9), (1.7, 0.9), (np.pi / 4, 0.99), (3.0, 0.5)])
def test_dropout_fixed_point_of_erf(w, keep):
    b = 0.05
    q = optimize.brentq(lambda q: w / keep * erf_square(q) + b - q, 1e-6, 20, xtol=1e-15)
    product = lambda c: 2 / np.pi * np.arcsin(2 * c * q / (1 + 2 * q))  # noqa: E731
    c = optimize.brentq(lambda c: (w * product(c) + b) / q - c, -1, 1, xtol=1e-15)
    slope = w * 4 / np.pi / np.sqrt((1 + 2 * q) ** 2 - (2 * c * q) ** 2)
    found = gradients.dropout_fixed_point(
        activation=activations.erf, weight_variance=w, bias_variance=b, keep_probability=keep
    )
    assert (found.q, found.c, found.chi_c) == tuple(pytest.approx(a, rel=1e-9) for a in (q, c, slope))
    assert found.c < 1
    assert found.depth_scale_c == pytest.approx(-1 / np.log(slope), rel=1e-8)
    assert found.chi_1 == pytest.approx(w / keep * erf_slope_square(q), rel=1e-10)


def test_any_dropout_removes_the_critical_point():
    weights = np.linspace(1.0, 3.0, 11)
    given = {"activation": activations.tanh, "bias_variance": 0.05}
    scales = [
        gradients.dropout_fixed_point(weight_variance=w, keep_probability=0.98, **given).depth_scale_c for w in weights
    ]
    assert np.isfinite(scales).all()
    assert max(scales) < 20
    critical = gradients.dropout_fixed_point(weight_variance=1.7609546396067391, keep_probability=1.0, **given)
    assert critical.depth_scale_c > 1e8
    assert np.isinf(critical.depth_scale_gradient)


# ---- finite width --------------------------------------------------------------------------------------------------


def test_log_norm_by_enumeration_of_active_units():
    """Two layers of 2 and 3 units: every number of active units, ln chi^2 by mpmath."""
    found = gradients.log_norm(widths=(9, 2, 3, 4), weight_variance=1.3, activation=activations.relu)
    moments = []
    for n in (2, 3):
        weights = stats.binom.pmf(np.arange(1, n + 1), n, 0.5)
        weights /= weights.sum()
        logs = np.array([float(mpmath.digamma(k / 2) + mpmath.log(2)) for k in range(1, n + 1)])
        spread = np.array([float(mpmath.psi(1, k / 2)) for k in range(1, n + 1)])
        moments.append((weights @ logs, weights @ (spread + logs**2) - (weights @ logs) ** 2))
    drift = np.log([1.3 * 3 / 2**2, 1.3 * 4 / 3**2])
    expected = np.array([m[0] for m in moments]) + drift
    np.testing.assert_allclose(found.log_mean, [expected.sum(), expected[1]], rtol=1e-12)
    np.testing.assert_allclose(found.log_variance, [moments[0][1] + moments[1][1], moments[1][1]], rtol=1e-12)
    np.testing.assert_allclose(found.rule, [5 / 2 + 5 / 3, 5 / 3])
    np.testing.assert_allclose(found.dead, [1 - (3 / 4) * (7 / 8), 1 / 8], rtol=1e-12)
    np.testing.assert_allclose(found.relative_variance, [(1 + 5 / 2) * (1 + 5 / 3) - 1, 5 / 3], rtol=1e-12)
    np.testing.assert_allclose(found.log_expectation, np.log([0.65 * 3 / 2 * 0.65 * 4 / 3, 0.65 * 4 / 3]), rtol=1e-12)


def test_log_norm_of_linear_layers_is_chi_square():
    found = gradients.log_norm(widths=(5, 8, 8, 8), weight_variance=1.0, activation=activations.identity)
    assert found.log_variance[0] == pytest.approx(2 * float(mpmath.psi(1, 4)), rel=1e-13)
    assert found.log_mean[0] == pytest.approx(2 * float(mpmath.digamma(4) + mpmath.log(2) - mpmath.log(8)), rel=1e-13)
    assert (found.rule[0], found.dead[0]) == (pytest.approx(4 / 8), 0.0)


def test_the_rule_of_five_is_the_limit():
    """Var ln -> 5 L / n: at n = 1000 within 1 %, and the law comes nearer as n grows."""
    ratios = []
    for n in (50, 100, 1000):
        law = gradients.log_norm(widths=(n,) * 12, weight_variance=2.0, activation=activations.relu)
        ratios.append(law.log_variance[0] / law.rule[0])
    assert abs(ratios[2] - 1) < 0.01 < abs(ratios[1] - 1) < abs(ratios[0] - 1)
    assert law.rule[0] == pytest.approx(5 * 10 / 1000)
    assert law.log_expectation[0] - law.log_mean[0] == pytest.approx(law.log_variance[0] / 2, rel=0.02)


def test_theory_is_float64_and_known_outside_of_jit():
    assert gradients.growth(1.0, depth=2, **ERF).log_products.dtype == np.float64
    with pytest.raises(TypeError, match="x_variance must be a number known outside of jit"):
        jax.jit(lambda q: gradients.growth(q, depth=2, **ERF).chi)(1.0)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"depth": 0}, ValueError, "depth must be an integer >= 1; got 0"),
        ({"depth": None}, ValueError, "exactly one of depth and widths .*got depth=None and widths=None"),
        ({"widths": (3, 4, 5)}, ValueError, "exactly one of depth and widths .*got depth=2"),
        ({"depth": None, "widths": (3, 4)}, ValueError, r"widths must be a sequence of at least 3 .*got \(3, 4\)"),
        ({"depth": None, "widths": (3, 0, 4)}, ValueError, r"widths\[1\] must be .*got 0"),
        ({"x_variance": -1.0}, ValueError, "x_variance must be .*got -1"),
        ({"keep_probability": 0.0}, ValueError, "keep_probability must be .*> 0 and <= 1; got 0"),
        ({"keep_probability": 1.5}, ValueError, "keep_probability must be .*got 1.5"),
        ({"weight_variance": float("nan")}, ValueError, "weight_variance must be .*got nan"),
        ({"readout_weight_variance": -2.0}, ValueError, "readout_weight_variance must be .*got -2"),
        ({"activation": "tanh"}, TypeError, "activation must be an Activation.*got 'tanh'"),
    ],
)
def test_bad_input_is_named(change, error, message):
    given = {"x_variance": 1.0, "depth": 2} | ERF | change
    with pytest.raises(error, match=message):
        gradients.growth(given.pop("x_variance"), **given)


def test_bad_input_of_the_others_is_named():
    with pytest.raises(ValueError, match=r"step must have shape \(3\); got \(2,\)"):
        gradients.residual_growth(1.0, depth=3, step=[0.1, 0.2], **ERF)
    with pytest.raises(ValueError, match=r"x_mean must be .*got 2"):
        gradients.residual_growth(1.0, depth=3, step=0.1, x_mean=2.0, **ERF)
    with pytest.raises(ValueError, match=r"activation must be one of Activation.relu.*got Activation.tanh"):
        gradients.log_norm(widths=(1, 2, 3), weight_variance=1.0, activation=activations.tanh)
    with pytest.raises(ValueError, match=r"weight_variance must be .*got 0"):
        gradients.log_norm(widths=(1, 2, 3), weight_variance=0.0, activation=activations.relu)
