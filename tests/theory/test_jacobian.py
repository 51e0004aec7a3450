"""theory.jacobian against enumeration over all sign matrices, mpmath and arithmetic by hand."""

import itertools

import mpmath
import numpy as np
import pytest

from numdl.theory import jacobian

pytestmark = pytest.mark.float32


def test_the_lectures_three_means():
    for variance, expected in ((1.0, 1e6), (1 / 12, 100**3 / 12**3), (1 / 1200, 1 / 12**3)):
        law = jacobian.product_norm(
            width=100, depth=3, entry_variance=variance, excess_kurtosis=-1.2, y=np.eye(100)[0]
        )
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
    law = jacobian.product_norm(
        width=100, depth=1000, entry_variance=0.01, excess_kurtosis=0.0, y=np.full(100, 0.1)
    )
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
    assert np.isinf(law.mean[2]) and law.log_of_mean[2] == pytest.approx(10_000 * np.log(100))
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
