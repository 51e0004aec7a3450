"""Statistics against scipy, closed forms and coverage counts."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from numdl import statistics

pytestmark = pytest.mark.float32


def test_mean_and_error_are_scipys():
    samples = np.random.default_rng(0).normal(size=(7, 3))
    result = statistics.mean_and_error(samples)
    np.testing.assert_allclose(result.mean, samples.sum(axis=0) / 7, rtol=1e-14)
    np.testing.assert_allclose(result.stderr, scipy.stats.sem(samples), rtol=1e-14)
    assert result.count == 7
    other = statistics.mean_and_error(samples, axis=1)
    np.testing.assert_allclose(other.stderr, scipy.stats.sem(samples, axis=1), rtol=1e-14)
    assert other.count == 3


def test_means_are_float64_whatever_came():
    samples = jnp.array([1.0, 1.0 + 2**-7, 3.0], jnp.bfloat16)
    result = statistics.mean_and_error(samples)
    assert result.mean.dtype == np.float64
    np.testing.assert_allclose(result.mean, (5 + 2**-7) / 3, rtol=1e-15)


def test_equal_samples_have_no_error_and_their_own_mean():
    result = statistics.mean_and_error(np.full(10, 0.1))  # 10 times 0.1 summed is not 1
    assert result.mean == 0.1
    assert result.stderr == 0


def test_agreement_fields():
    samples = np.array([[1.0, 10.0], [3.0, 14.0]])
    result = statistics.agreement([1.0, -24.0], samples)
    np.testing.assert_allclose(result.stderr, [1.0, 2.0])
    np.testing.assert_allclose(result.z, [1.0, 18.0])
    np.testing.assert_allclose(result.relative, [1.0, 1.5])
    np.testing.assert_allclose(result.predicted, [1.0, -24.0])
    along = statistics.agreement(2.0, samples, axis=1)
    np.testing.assert_allclose(along.mean, [5.5, 8.5])
    assert "stderr" in repr(result)
    assert repr(result).startswith("Agreement\n")


def test_agreement_of_equal_samples_is_all_or_nothing():
    third = np.full(5, np.float32(1 / 3))
    assert statistics.agreement(1 / 3, third).z == 0  # within float32 rounding
    assert statistics.agreement(1 / 3, third.astype(np.float64)).z == np.inf  # but not within float64's
    assert statistics.agreement(0.5, third).z == -np.inf
    assert statistics.agreement(0.0, np.zeros(3)).z == 0


def test_agreement_with_a_prediction_of_zero():
    result = statistics.agreement(0.0, [1.0, 3.0])
    assert result.relative == np.inf
    assert result.z == 2
    assert statistics.agreement(0.0, [-1.0, 1.0]).relative == 0


def test_lost_numbers_stay_lost():
    result = statistics.agreement([1.0, 1.0], [[1.0, np.inf], [np.nan, 1.0]])
    assert np.isnan(result.z).all()


def test_z_is_standard_normal_for_exact_predictions():
    samples = np.random.default_rng(1).normal(2.0, 3.0, size=(400, 2000))
    z = statistics.agreement(2.0, samples).z
    assert scipy.stats.kstest(z, scipy.stats.t(399).cdf).pvalue > 1e-6


def test_slope_is_scipys():
    rng = np.random.default_rng(2)
    x = np.linspace(0, 3, 9)
    y = 2 - 0.7 * x + 0.1 * rng.normal(size=9)
    result, reference = statistics.slope(x, y, confidence=0.9), scipy.stats.linregress(x, y)
    np.testing.assert_allclose([result.value, result.intercept, result.stderr],
                               [reference.slope, reference.intercept, reference.stderr], rtol=1e-12)  # fmt: skip
    half = scipy.stats.t.ppf(0.95, 7) * reference.stderr
    np.testing.assert_allclose([result.low, result.high], [reference.slope - half, reference.slope + half], rtol=1e-12)


def test_slope_interval_covers_as_often_as_it_says():
    rng, x, trials = np.random.default_rng(3), np.arange(5.0), 2000
    fits = [statistics.slope(x, x + rng.normal(size=5), confidence=0.8) for _ in range(trials)]
    hits = sum(fit.low <= 1 <= fit.high for fit in fits)
    assert abs(hits - 0.8 * trials) < 6 * np.sqrt(trials * 0.8 * 0.2)


@pytest.mark.parametrize("tests, limit", [(50, 5.61), (500, 6.00), (5000, 6.36)])
def test_z_limit(tests, limit):
    assert round(statistics.z_limit(tests), 2) == limit
    np.testing.assert_allclose(tests * 2 * scipy.stats.norm.sf(statistics.z_limit(tests, 1e-3)), 1e-3, rtol=1e-10)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: statistics.mean_and_error([1.0]), r"samples .*at least 2.*shape \(1,\)"),
        (lambda: statistics.mean_and_error(np.ones((5, 1)), axis=1), r"samples .*axis 1.*\(5, 1\)"),
        (lambda: statistics.mean_and_error([1.0, 2.0], axis=1), r"axis .*got 1"),
        (lambda: statistics.agreement([1.0, 2.0], np.ones((4, 3))), r"predicted .*\(3,\).*got \(2,\)"),
        (lambda: statistics.slope([1.0, 2.0], [1.0, 2.0]), r"x .*at least 3.*shape \(2,\)"),
        (lambda: statistics.slope([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]), r"x .*not all equal"),
        (lambda: statistics.slope([1.0, 2.0, 3.0], [1.0, 2.0]), r"y .*\(3,\).*\(2,\)"),
        (lambda: statistics.slope([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], confidence=1.0), r"confidence .*got 1.0"),
        (lambda: statistics.z_limit(0), r"tests .*got 0"),
        (lambda: statistics.z_limit(5, budget=1.5), r"budget .*got 1.5"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_complex_samples_are_refused():
    with pytest.raises(TypeError, match="samples must be an array of real numbers; got dtype complex128"):
        statistics.mean_and_error([1j, 2.0])


def test_extrapolate_recovers_a_line_and_carries_errors():
    """Two points: the line through them; the error of the intercept by hand. Many: scipy's weighted fit."""
    x, y, errors = np.array([0.1, 0.3]), np.array([2.0, 5.0]), np.array([0.2, 0.1])
    limit = statistics.extrapolate(x, y, errors)
    assert limit.mean == pytest.approx(0.5)
    assert limit.stderr == pytest.approx(np.hypot(1.5 * 0.2, 0.5 * 0.1))
    from scipy.optimize import curve_fit

    x = np.linspace(0.1, 1, 7)
    y, errors = 3 - 2 * x + 0.1 * np.sin(9 * x), np.linspace(0.1, 0.5, 7)
    best, covariance = curve_fit(lambda x, a, b: a + b * x, x, y, sigma=errors, absolute_sigma=True)
    limit = statistics.extrapolate(x, y, errors)
    assert limit.mean == pytest.approx(best[0], rel=1e-6)
    assert limit.stderr == pytest.approx(covariance[0, 0] ** 0.5, rel=1e-5)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"x": [1.0, 1.0]}, "x must be at least 2 numbers"),
        ({"means": [1.0]}, r"means must have the shape of x, \(2,\)"),
        ({"stderrs": [1.0, 0.0]}, "stderrs must be .*> 0; got 0"),
    ],
)
def test_extrapolate_names_bad_input(change, message):
    with pytest.raises(ValueError, match=message):
        statistics.extrapolate(**{"x": [1.0, 2.0], "means": [1.0, 2.0], "stderrs": [1.0, 1.0]} | change)


@pytest.mark.parametrize("unit", [1e-200, 1e200, 5e-300])
def test_statistics_do_not_depend_on_the_unit_however_small_or_large(unit):
    values = np.array([1.0, 2.5, 3.0, 7.0])
    one, other = statistics.mean_and_error(values * unit), statistics.mean_and_error(values)
    np.testing.assert_allclose([one.mean / unit, one.stderr / unit], [other.mean, other.stderr], rtol=1e-14)
    expected = statistics.slope(np.arange(4.0), values)
    of_y, of_x = statistics.slope(np.arange(4.0), values * unit), statistics.slope(np.arange(4.0) * unit, values)
    np.testing.assert_allclose([of_y.value / unit, of_y.high / unit], [expected.value, expected.high], rtol=1e-13)
    np.testing.assert_allclose([of_x.value * unit, of_x.low * unit], [expected.value, expected.low], rtol=1e-13)
    limit = statistics.extrapolate((1 + np.arange(4.0)) * unit, values, np.ones(4))
    assert limit.mean == pytest.approx(statistics.extrapolate(1 + np.arange(4.0), values, np.ones(4)).mean, rel=1e-13)


def test_a_line_through_two_points_is_that_line_however_different_their_errors():
    found = statistics.extrapolate([1.0, 2.0], [5.0, 7.0], [1e-9, 1e9])
    assert found.mean == pytest.approx(3.0, rel=1e-13)
    assert found.stderr == pytest.approx(1e9, rel=1e-13)
