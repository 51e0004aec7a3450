"""Moments of gradient estimators against closed forms, and the draws of analysis.estimators against both."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numdl.analysis import estimators as measured
from numdl.statistics import agreement
from numdl.theory import estimators as predicted

M, S2 = 0.7, 0.5


def test_square_has_its_closed_forms():
    found = predicted.pathwise(jnp.square, mean=M, variance=S2)
    np.testing.assert_allclose([found.mean, found.variance], [2 * M, 4 * S2], rtol=1e-10)
    found = predicted.score_function(jnp.square, mean=M, variance=S2)
    np.testing.assert_allclose([found.mean, found.variance], [2 * M, M**4 / S2 + 14 * M**2 + 15 * S2], rtol=1e-10)


def test_fourth_power_and_sine_have_the_moments_of_gaussians():
    found = predicted.pathwise(lambda z: z**4, mean=0.0, variance=S2)
    np.testing.assert_allclose([found.mean, found.variance], [0.0, 16 * 15 * S2**3], rtol=1e-9, atol=1e-12)
    found = predicted.score_function(lambda z: z**4, mean=0.0, variance=S2)
    np.testing.assert_allclose(found.variance, 945 * S2**3, rtol=1e-9)  # E u^10 = 945
    means = np.array([-1.0, 0.3])
    found = predicted.pathwise(jnp.sin, mean=means, variance=S2)
    np.testing.assert_allclose(found.mean, np.cos(means) * np.exp(-S2 / 2), rtol=1e-10)
    second = (1 + np.cos(2 * means) * np.exp(-2 * S2)) / 2
    np.testing.assert_allclose(found.variance, second - np.cos(means) ** 2 * np.exp(-S2), rtol=1e-9)
    np.testing.assert_allclose(predicted.score_function(jnp.sin, mean=means, variance=S2).mean, found.mean, rtol=1e-9)


def test_the_best_baseline_is_the_best_of_all_numbers():
    best = predicted.score_function(jnp.square, mean=M, variance=S2, baseline="best")
    np.testing.assert_allclose(best.baseline, M**2 + 3 * S2, rtol=1e-10)
    for b in (0.0, float(best.baseline) - 0.1, float(best.baseline) + 0.1):
        other = predicted.score_function(jnp.square, mean=M, variance=S2, baseline=b)
        assert other.variance > best.variance
        np.testing.assert_allclose(other.mean, best.mean, rtol=1e-10)


@pytest.mark.parametrize("baseline", ["none", "mean", "best", 0.4])
def test_one_dimension_of_the_square_norm_is_the_square(baseline):
    line = predicted.score_function(jnp.square, mean=M, variance=S2, baseline=baseline)
    found = predicted.square_norm(dimension=1, square_mean=M**2, variance=S2, baseline=baseline)["score_function"]
    np.testing.assert_allclose(found.variance, line.variance, rtol=1e-9)
    np.testing.assert_allclose([found.mean, found.baseline], [line.mean, line.baseline], rtol=1e-9)


def test_the_best_baseline_of_the_square_norm_has_the_short_formula():
    found = predicted.square_norm(dimension=9, square_mean=[0.0, 2.0], variance=S2, baseline="best")
    np.testing.assert_allclose(found["score_function"].variance, 2 * S2 * 9 * 11 + 4 * np.array([0.0, 2.0]) * 10)
    np.testing.assert_allclose(found["pathwise"].variance, 4 * S2 * 9)


@pytest.mark.parametrize("way", ["pathwise", "none", "best"])
def test_draws_have_the_predicted_moments(way):
    mean = np.array([0.5, -0.5, 1.0])
    exact = predicted.square_norm(dimension=3, square_mean=1.5, variance=S2, baseline="best" if way == "best" else 0.0)
    settings = {"mean": mean, "variance": S2, "draws": 40_000}
    f = lambda z: jnp.sum(z**2)  # noqa: E731
    if way == "pathwise":
        draws, theory = measured.pathwise(jax.random.key(0), f, **settings), exact["pathwise"]
    else:
        theory = exact["score_function"]
        draws = measured.score_function(jax.random.key(1), f, **settings, baseline=float(theory.baseline))
    draws = np.asarray(draws, float)
    assert np.abs(agreement(2 * mean, draws).z).max() < 5.5
    assert abs(agreement(theory.variance, np.sum((draws - 2 * mean) ** 2, axis=1)).z) < 5.5


def test_the_same_key_gives_the_same_draws_and_the_score_needs_no_derivative():
    jump = lambda z: jnp.where(z[0] > 0, 1.0, 0.0)  # noqa: E731
    settings = {"mean": np.zeros(1), "variance": 1.0, "draws": 20_000}
    one, two = (measured.score_function(jax.random.key(3), jump, **settings) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    assert abs(agreement(1 / np.sqrt(2 * np.pi), np.asarray(one)[:, 0]).z) < 5.5  # the density at 0
    assert not np.any(measured.pathwise(jax.random.key(3), jump, **settings)), "it does not see the jump"
