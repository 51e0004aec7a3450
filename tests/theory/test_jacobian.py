"""theory.jacobian against enumeration over all sign matrices, mpmath and arithmetic by hand."""

import itertools
import math

import mpmath
import numpy as np
import pytest

from numdl import activations
from numdl.theory import jacobian

pytestmark = pytest.mark.float32


def test_the_lectures_three_means():
    for variance, expected in ((1.0, 1e6), (1 / 12, 100**3 / 12**3), (1 / 1200, 1 / 12**3)):
        law = jacobian.product_norm(width=100, depth=3, entry_variance=variance, excess_kurtosis=-1.2, y=np.eye(100)[0])
        assert law.mean == pytest.approx(expected, rel=1e-14)
    assert jacobian.product_norm(width=100, depth=3, entry_variance=1.0, excess_kurtosis=0.0).mean == pytest.approx(1e8)


@pytest.mark.parametrize("depth", [1, 2])
def test_moments_are_those_of_all_sign_matrices(depth):
    """Rademacher entries, width 2: every product of K's can be listed, so mean and variance are exact sums."""
    matrices = [np.reshape(signs, (2, 2)) for signs in itertools.product((-1.0, 1.0), repeat=4)]
    y = np.array([0.3, -1.7])
    values = []
    for chain in itertools.product(matrices, repeat=depth):
        z = y
        for matrix in chain:
            z = 0.8 * matrix @ z
        values.append(z @ z)
    law = jacobian.product_norm(width=2, depth=depth, entry_variance=0.64, excess_kurtosis=-2.0, y=y)
    assert law.mean == pytest.approx(np.mean(values), rel=1e-13)
    assert law.variance == pytest.approx(np.var(values), rel=1e-12)
    assert np.isnan(law.log_mean)


def test_gaussian_moments_and_logarithms():
    """|z|^2 is a product of independent chi-squares: E = prod n s^2, E^2-moment = prod n(n+2) s^4, logs add up."""
    n, depth, variance = 7, 5, 0.4
    law = jacobian.product_norm(width=n, depth=depth, entry_variance=variance, excess_kurtosis=0.0)
    mean = variance**depth * n ** (depth + 1)
    square = variance ** (2 * depth) * (n * (n + 2)) ** (depth + 1)
    assert law.mean == pytest.approx(mean, rel=1e-13)
    assert law.variance == pytest.approx(square - mean**2, rel=1e-12)
    log_chi = mpmath.digamma(mpmath.mpf(n) / 2) + mpmath.log(2)
    assert law.log_mean == pytest.approx(float((depth + 1) * log_chi + depth * mpmath.log(variance)), rel=1e-13)
    assert law.log_variance == pytest.approx(float((depth + 1) * mpmath.psi(1, mpmath.mpf(n) / 2)), rel=1e-13)
    assert law.typical == pytest.approx(np.exp(float(law.log_mean)))


def test_mean_growth_is_not_typical_growth():
    """THE fact of the experiment: at n = 100, L = 1000 the mean is kept and the typical square shrinks to 4.4e-5."""
    law = jacobian.product_norm(width=100, depth=1000, entry_variance=0.01, excess_kurtosis=0.0, y=np.full(100, 0.1))
    assert law.mean == pytest.approx(1.0, rel=1e-10)
    assert law.typical == pytest.approx(4.4e-5, rel=0.03)


def test_std_of_the_log_ratio_of_the_lecture():
    law = jacobian.product_norm(width=100, depth=3, entry_variance=1.0, excess_kurtosis=0.0, y=np.ones(100))
    assert np.sqrt(law.log_variance) == pytest.approx(float(mpmath.sqrt(3 * mpmath.psi(1, 50))), rel=1e-13)
    assert np.sqrt(law.log_variance) == pytest.approx(0.2462, abs=5e-5)


def test_orthogonal_matrices_keep_the_length():
    law = jacobian.product_norm(width=50, depth=10, entry_variance=1 / 50, orthogonal=True, y=np.arange(50.0))
    norm = float((np.arange(50.0) ** 2).sum())
    assert (law.mean, law.variance, law.log_variance) == (pytest.approx(norm), 0.0, 0.0)
    assert law.log_mean == pytest.approx(np.log(norm))
    spread = jacobian.product_norm(width=50, depth=10, entry_variance=1 / 50, orthogonal=True)
    assert spread.variance == pytest.approx(2 * 50) and spread.log_variance == pytest.approx(float(mpmath.psi(1, 25)))


def test_depth_may_be_an_array_and_may_be_large():
    law = jacobian.product_norm(
        width=100, depth=np.array([1, 3, 10_000]), entry_variance=1.0, excess_kurtosis=0.0, y=np.eye(100)[0]
    )
    assert law.mean.shape == (3,) and law.mean[1] == pytest.approx(1e6)
    assert np.isinf(law.mean[2]) and law.log_expectation[2] == pytest.approx(10_000 * np.log(100))
    assert np.isfinite(law.log_mean).all()
    assert law.relative_variance[1] == pytest.approx(1.02**3 - 1)


def test_kurtosis_matters():
    same = {"width": 5, "depth": 2, "entry_variance": 1.0, "y": np.eye(5)[0]}
    assert (
        jacobian.product_norm(excess_kurtosis=-2.0, **same).variance
        < jacobian.product_norm(excess_kurtosis=0.0, **same).variance
    )


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"width": 0}, ValueError, "width must be an integer >= 1; got 0"),
        ({"width": 2.5}, TypeError, "width must be an integer >= 1; got 2.5"),
        ({"depth": 0}, ValueError, "depth must be an integer >= 1; got 0"),
        ({"depth": 1.5}, TypeError, "depth must be an integer >= 1"),
        ({"entry_variance": -1.0}, ValueError, "entry_variance must be .*>= 0; got -1"),
        ({"entry_variance": float("nan")}, ValueError, "entry_variance must be .*got nan"),
        ({"excess_kurtosis": -2.5}, ValueError, "excess_kurtosis must be .*>= -2; got -2.5"),
        ({"excess_kurtosis": None}, ValueError, "excess_kurtosis must be given"),
        ({"orthogonal": True}, ValueError, "excess_kurtosis must be given for independent entries and only then"),
        ({"y": np.ones(3)}, ValueError, r"y must have shape \(4\); got \(3,\)"),
        ({"y": np.array([1.0, np.inf, 0, 0])}, ValueError, "y must be finite numbers; got inf"),
    ],
)
def test_bad_input_is_named(change, error, message):
    arguments = {"width": 4, "depth": 2, "entry_variance": 1.0, "excess_kurtosis": 0.0} | change
    with pytest.raises(error, match=message):
        jacobian.product_norm(**arguments)


# ---- singular values -----------------------------------------------------------------------------------------------


def random_jacobian(rng, n, lengths, slope, orthogonal):
    """D_1 W_1 ... D_L W_L by NumPy, weight variance 1."""
    J = np.eye(n)
    for q in lengths:
        W = rng.normal(size=(n, n)) / np.sqrt(n)
        if orthogonal:
            W = np.linalg.qr(W)[0]
        J = J @ (slope(np.sqrt(q) * rng.normal(size=n))[:, None] * W)
    return J


@pytest.mark.parametrize("orthogonal", [False, True])
def test_moments_of_erf_layers_in_closed_form(orthogonal):
    """E erf'^2 = 4/pi / sqrt(1 + 4q), E erf'^4 = 16/pi^2 / sqrt(1 + 8q); s_1 = -1 or 0."""
    q = np.array([0.3, 1.1, 0.7])
    first, second = 4 / np.pi / np.sqrt(1 + 4 * q), 16 / np.pi**2 / np.sqrt(1 + 8 * q)
    mean = np.prod(1.4 * first)
    relative = np.sum(second / first**2 - 1 + (0 if orthogonal else 1))
    law = jacobian.squared_singular_values(
        depth=3, q=q, activation=activations.erf, weight_variance=1.4, orthogonal=orthogonal
    )
    assert law.mean == pytest.approx(mean, rel=1e-12)
    assert law.relative_variance == pytest.approx(relative, rel=1e-12)
    assert law.variance == pytest.approx(relative * mean**2, rel=1e-12)
    assert law.log_expectation == pytest.approx(np.log(mean), rel=1e-12)
    assert law.isometry == pytest.approx(1 / (1 + relative), rel=1e-12)


def test_critical_relu_has_variance_L_or_2L():
    given = {"depth": 7, "q": 1.0, "activation": activations.relu, "weight_variance": 2.0}
    assert jacobian.squared_singular_values(orthogonal=True, **given).variance == pytest.approx(7, rel=1e-11)
    assert jacobian.squared_singular_values(orthogonal=False, **given).variance == pytest.approx(14, rel=1e-11)


def test_linear_orthogonal_networks_are_isometries_and_gaussian_ones_are_not():
    given = {"depth": 5, "q": 1.0, "activation": activations.identity, "weight_variance": 1.0}
    assert jacobian.squared_singular_values(orthogonal=True, **given).isometry == 1
    assert jacobian.squared_singular_values(orthogonal=False, **given).isometry == pytest.approx(1 / 6)


@pytest.mark.parametrize("orthogonal", [False, True])
def test_moments_of_large_random_matrices(orthogonal):
    """hard_tanh, n = 200: the spread over draws bounds the 1/n bias too."""
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(12):
        square = np.linalg.svd(random_jacobian(rng, 200, [1.0, 0.6], lambda u: abs(u) < 1, orthogonal))[1] ** 2
        draws.append((np.log(square.mean()), square.var() / square.mean() ** 2))
    law = jacobian.squared_singular_values(
        depth=2, q=[1.0, 0.6], activation=activations.hard_tanh, weight_variance=1.0, orthogonal=orthogonal
    )
    mean, error = np.mean(draws, axis=0), np.std(draws, axis=0, ddof=1) / np.sqrt(12)
    assert np.all(np.abs(mean - [law.log_expectation, law.relative_variance]) < 6 * error + 2 / 200)


def test_deep_means_are_finite_logarithms():
    law = jacobian.squared_singular_values(
        depth=20_000, q=1.0, activation=activations.identity, weight_variance=0.5, orthogonal=False
    )
    assert (law.mean, law.log_expectation) == (0.0, pytest.approx(20_000 * np.log(0.5)))


@pytest.mark.parametrize("depth, edge", [(1, 4.0), (2, 6.75), (10, 28.53), (100, 273.19)])
def test_largest_value_of_gaussian_products(depth, edge):
    assert jacobian.largest_squared(depth=depth, weight_variance=1.0, orthogonal=False) == pytest.approx(edge, rel=2e-4)
    exact = mpmath.mpf(depth + 1) ** (depth + 1) / mpmath.mpf(depth) ** depth * mpmath.mpf("1.3") ** depth
    found = jacobian.largest_squared(depth=depth, weight_variance=1.3, orthogonal=False)
    assert found == pytest.approx(float(exact), rel=1e-12)


@pytest.mark.parametrize("orthogonal", [False, True])
@pytest.mark.parametrize("depth, active", [(1, 0.5), (4, 0.5), (3, 0.8), (30, 0.97)])
def test_edges_with_inactive_units_minimize_the_inverse_function(depth, active, orthogonal):
    z = np.exp(np.linspace(-12, 25, 400_001))
    log_x = np.log1p(z) - np.log(z) + depth * (np.log(z + active) - (np.log1p(z) if orthogonal else 0))
    found = jacobian.largest_squared(depth=depth, weight_variance=1.0, orthogonal=orthogonal, active=active)
    assert np.log(found) == pytest.approx(log_x.min(), abs=1e-8)


@pytest.mark.parametrize("orthogonal", [False, True])
def test_edges_of_large_random_matrices(orthogonal):
    rng = np.random.default_rng(3)
    norms = [np.linalg.norm(random_jacobian(rng, 250, [1.0] * 3, lambda u: u > 0, orthogonal), 2) for _ in range(4)]
    edge = jacobian.largest_squared(depth=3, weight_variance=1.0, orthogonal=orthogonal, active=0.5)
    assert np.mean(np.square(norms)) == pytest.approx(edge, rel=5 * 250 ** (-2 / 3))


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_density_has_fuss_catalan_moments(depth):
    law = jacobian.product_density(depth=depth, weight_variance=1.5, points=40_000)
    assert np.all(np.diff(law.s_squared) > 0)
    for k in (1, 2, 3, 4):
        moment = np.trapezoid(law.s_squared**k * law.density, law.s_squared)
        expected = math.comb((depth + 1) * k, k) / (depth * k + 1) * 1.5 ** (depth * k)
        assert moment == pytest.approx(expected, rel=1e-6)
    assert np.trapezoid(law.density, law.s_squared) == pytest.approx(1, abs=1e-3)


def test_density_of_one_layer_is_marchenko_pastur():
    law = jacobian.product_density(depth=1, weight_variance=2.0, points=50)
    x = law.s_squared / 2
    np.testing.assert_allclose(law.density * 2, np.sqrt((4 - x) / x) / (2 * np.pi), rtol=1e-10)


def test_lyapunov_exponents_to_mpmath():
    law = jacobian.lyapunov_exponents(width=8, entry_variance=1 / 8)
    assert law.exponents[0] == pytest.approx(-0.06508834634404507, rel=1e-13)
    assert law.exponents[1] == pytest.approx(-0.1415688602373237, rel=1e-13)
    expected = [(mpmath.log(mpmath.mpf(2) / 8) + mpmath.digamma(mpmath.mpf(8 - i) / 2)) / 2 for i in range(8)]
    np.testing.assert_allclose(law.exponents, np.array(expected, float), rtol=1e-12)
    np.testing.assert_allclose(
        law.variance, [float(mpmath.psi(1, mpmath.mpf(8 - i) / 2)) / 4 for i in range(8)], rtol=1e-12
    )


def test_the_sum_of_lyapunov_exponents_is_the_mean_log_determinant():
    rng = np.random.default_rng(0)
    logs = np.linalg.slogdet(rng.normal(size=(20_000, 4, 4)) * 0.7)[1]
    law = jacobian.lyapunov_exponents(width=4, entry_variance=0.49)
    assert logs.mean() == pytest.approx(law.exponents.sum(), abs=6 * np.sqrt(law.variance.sum() / 20_000))
    assert logs.var() == pytest.approx(law.variance.sum(), rel=0.1)


SQUARES = jacobian.squared_singular_values
SPECTRUM = {"depth": 2, "q": 1.0, "activation": activations.tanh, "weight_variance": 1.0, "orthogonal": False}


@pytest.mark.parametrize(
    "call, given, change, error, message",
    [
        (SQUARES, SPECTRUM, {"depth": 0}, ValueError, "depth must be .*got 0"),
        (
            jacobian.squared_singular_values,
            SPECTRUM,
            {"q": [1.0]},
            ValueError,
            r"q must have shape \(2\).*got .*\(1,\)",
        ),
        (SQUARES, SPECTRUM, {"q": -1.0}, ValueError, "q must be .*got -1"),
        (SQUARES, SPECTRUM, {"activation": "tanh"}, TypeError, "activation .*got 'tanh'"),
        (
            jacobian.squared_singular_values,
            SPECTRUM,
            {"orthogonal": 1},
            TypeError,
            "orthogonal must be True or False; got 1",
        ),
        (
            jacobian.largest_squared,
            {"depth": 2, "weight_variance": 1.0, "orthogonal": True},
            {"active": 0.0},
            ValueError,
            "active must be .*> 0 and <= 1; got 0",
        ),
        (
            jacobian.product_density,
            {"depth": 2, "weight_variance": 1.0, "points": 5},
            {"points": 0},
            ValueError,
            "points must be .*got 0",
        ),
        (
            jacobian.lyapunov_exponents,
            {"width": 2, "entry_variance": 1.0},
            {"entry_variance": 0.0},
            ValueError,
            "entry_variance must be .*got 0",
        ),
    ],
)
def test_bad_spectra_are_named(call, given, change, error, message):
    with pytest.raises(error, match=message):
        call(**given | change)
