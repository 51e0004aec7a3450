"""Power laws against samples of known laws, SciPy's optimum, and matrices with and without heavy tails."""

import jax
import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from numdl import statistics
from numdl.analysis import spectra

KEY = jax.random.key(3)


def sample(law, count=2000, seed=0):
    draw = np.random.default_rng(seed)
    if law == "power":  # density x^-2.5 above 1
        return draw.random(count) ** (-1 / 1.5)
    return draw.exponential(size=count) if law == "exponential" else draw.lognormal(0.0, 1.0, count)


def test_the_exponent_is_the_most_likely_one_and_near_the_true_one():
    values = sample("power")
    found = statistics.power_law(values)
    tail = values[values >= found.cut]
    likelihood = lambda a: -np.sum(np.log((a - 1) / found.cut) - a * np.log(tail / found.cut))  # noqa: E731
    best = minimize_scalar(likelihood, bounds=(1.1, 9.0), method="bounded", options={"xatol": 1e-10}).x
    assert found.exponent == pytest.approx(best, rel=1e-6)
    assert found.tail == len(tail)
    assert abs(found.exponent - 2.5) < 4 * found.stderr
    assert np.isnan(found.p)
    assert not found.plausible


@pytest.mark.parametrize("law, holds", [("power", True), ("exponential", False), ("lognormal", False)])
def test_only_a_power_law_is_plausible(law, holds):
    found = statistics.power_law(sample(law), key=KEY, draws=30)
    assert found.plausible is holds


def test_the_unit_does_not_matter():
    found, scaled = (statistics.power_law(unit * sample("power", 300), key=KEY, draws=10) for unit in (1.0, 8.0))
    assert scaled.exponent == pytest.approx(found.exponent, rel=1e-9)
    assert (scaled.tail, scaled.p) == (found.tail, found.p)


@pytest.mark.slow
def test_p_is_uniform_for_samples_of_the_law():
    """Of 40 samples about four have p < 0.1: more than eleven has a chance of one in a thousand."""
    low = sum(statistics.power_law(sample("power", 100, seed), key=KEY, draws=20).p < 0.1 for seed in range(40))
    assert low <= 11


@pytest.mark.parametrize("values", [np.ones(100), np.arange(1.0, 20.0), np.zeros(50)])
def test_too_few_or_equal_values_are_nan(values):
    found = statistics.power_law(values, key=KEY)
    assert np.isnan(found.exponent)
    assert not found.plausible


def test_gaussian_weights_have_no_power_law_and_heavy_ones_their_index():
    """Symmetric entries of tail index 1: eigenvalues of W' W have density ~ x^-(1 + 1/2)."""
    draw = np.random.default_rng(5)
    heavy = draw.random((300, 300)) ** -1.0 * draw.choice([-1.0, 1.0], (300, 300))
    params = {"gaussian": draw.normal(size=(300, 200)), "heavy": heavy, "few": np.ones((4, 3))}
    found = spectra.power_laws(params, key=KEY, draws=30)
    named = {name: i for i, name in enumerate(found.names)}
    assert not found.plausible[named["gaussian"]]
    assert np.isnan(found.exponent[named["few"]])
    assert found.exponent[named["heavy"]] == pytest.approx(1.5, abs=4 * found.stderr[named["heavy"]])


def test_eigenvalues_are_those_of_the_contracted_matrix():
    """Filters of a convolution, stored as PyTorch does: [out, in, height, width]."""
    kernel = np.random.default_rng(2).normal(size=(5, 2, 3, 3))
    (found,) = spectra.eigenvalues({"w": kernel}, outputs=0).values()
    wanted = np.linalg.eigvalsh(kernel.reshape(5, 18) @ kernel.reshape(5, 18).T)[::-1]
    np.testing.assert_allclose(found, wanted, rtol=1e-10)
