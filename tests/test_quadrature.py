"""Gaussian expectations against closed forms that share no code with them, and the honesty of the error estimate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special

from numdl import quadrature
from tests import oracles
from tests.selection import in_turn

CORRELATIONS = np.array(
    [-1, -1 + 1e-12, -1 + 1e-6, -0.5, -1e-5, 0, 0.3, 0.9, 1 - 1e-3, 1 - 1e-6, 1 - 1e-9, 1 - 1e-14, 1]
)
PAIRS = [(0.01, 0.01), (1.0, 1.0), (100.0, 100.0), (0.01, 100.0), (100.0, 1.0)]


def relu(x):
    return jnp.maximum(x, 0)


def step(x):
    return jnp.where(x > 0, jnp.ones_like(x), jnp.zeros_like(x))


def window(x):
    return jnp.where(jnp.abs(x) < 1, jnp.ones_like(x), jnp.zeros_like(x))


def normal_probability(x):
    return jax.lax.erfc(-x / np.sqrt(2)) / 2


def exact_relu(q1, q2, c):
    return np.sqrt(q1 * q2) * (np.sqrt((1 - c) * (1 + c)) / (2 * np.pi) + c * exact_step(q1, q2, c))


def exact_step(q1, q2, c):
    return np.arctan2(np.sqrt((1 - c) * (1 + c)), -c) / (2 * np.pi) + 0 * q1 * q2


def exact_probability(q1, q2, c):
    return 0.25 + np.arcsin(c * np.sqrt(q1 * q2 / ((1 + q1) * (1 + q2)))) / (2 * np.pi)


def exact_sine(q1, q2, c):
    k = c * np.sqrt(q1 * q2)
    return (np.exp(k - (q1 + q2) / 2) - np.exp(-k - (q1 + q2) / 2)) / 2


def exact_half_probability(q1, q2, c):
    """u > 0 and v > noise: the orthant probability at the correlation that the noise leaves."""
    return 0.25 + np.arcsin(c * np.sqrt(q2 / (1 + q2))) / (2 * np.pi) + 0 * q1


TWO_POINT = {
    "kinked, kinked": (relu, relu, (0.0,), (0.0,), exact_relu),
    "jump, jump": (step, step, (0.0,), (0.0,), exact_step),
    "smooth, smooth": (normal_probability, normal_probability, (), (), exact_probability),
    "oscillating": (jnp.sin, jnp.sin, (), (), exact_sine),
    "jump, smooth": (step, normal_probability, (0.0,), (), exact_half_probability),
    "smooth, jump": (normal_probability, step, (), (0.0,), lambda q1, q2, c: exact_half_probability(q2, q1, c)),
}


@pytest.mark.parametrize("case", TWO_POINT)
def test_products_match_closed_forms_at_every_correlation(case):
    f, g, kinks_f, kinks_g, exact = TWO_POINT[case]
    for q1, q2 in PAIRS:
        value = quadrature.expect_product(f, g, q1, q2, CORRELATIONS, kinks_f=kinks_f, kinks_g=kinks_g)
        expected = exact(q1, q2, CORRELATIONS)
        np.testing.assert_allclose(value, expected, rtol=2e-12, atol=2e-12 * abs(expected).max() + 1e-15)


def window_product(k1, k2, c):
    """P(|z1| < k1, |z2| < k2) by Plackett's identity dP/dc = sum of +-density, integrated by scipy."""

    def density(r):
        def at(a, b):
            return np.exp(-(a * a - 2 * r * a * b + b * b) / (2 * (1 - r * r))) / (2 * np.pi * np.sqrt(1 - r * r))

        return 2 * (at(k1, k2) - at(k1, -k2))

    start = scipy.special.erf(k1 / np.sqrt(2)) * scipy.special.erf(k2 / np.sqrt(2))
    return start + scipy.integrate.quad(density, 0, c, epsabs=1e-14, epsrel=1e-13)[0]


@pytest.mark.parametrize("c", [-0.9, 0.3, 0.999])
@pytest.mark.parametrize(("q1", "q2"), [(1.0, 1.0), (100.0, 0.5)])
def test_kinks_away_from_zero(q1, q2, c):
    value = quadrature.expect_product(window, window, q1, q2, c, kinks_f=(-1.0, 1.0), kinks_g=(-1.0, 1.0))
    np.testing.assert_allclose(value, window_product(q1**-0.5, q2**-0.5, c), rtol=1e-11)


def test_a_kink_that_is_not_named_costs_digits():
    exact = float(exact_relu(1.0, 1.0, 0.3))
    lost = abs(float(quadrature.expect_product(relu, relu, 1.0, 1.0, 0.3)) - exact)
    kept = abs(float(quadrature.expect_product(relu, relu, 1.0, 1.0, 0.3, kinks_f=(0.0,), kinks_g=(0.0,))) - exact)
    assert kept < 1e-13 < 1e-8 < lost


@pytest.mark.parametrize("q", [0.01, 1.0, 100.0, 1e4])
def test_one_point_against_mpmath(q):
    def bump(x):  # smooth, but with a kink far from zero
        return jnp.where(x > 3, x - 3, 0) + 1 / jnp.cosh(x)

    expected = oracles.one_point(lambda x: max(x - 3, 0) + oracles.mp.sech(x), q, (3,))
    np.testing.assert_allclose(quadrature.expect(bump, q, kinks=(3.0,)), expected, rtol=1e-12)


@pytest.mark.parametrize("q", [1e-8, 1e-3, 1.0, 1e3, 1e6])
def test_moments_at_extreme_variances(q):
    np.testing.assert_allclose(quadrature.expect(lambda x: x**4, q), 3 * q**2, rtol=1e-13)
    np.testing.assert_allclose(quadrature.expect(relu, q, kinks=(0.0,)), np.sqrt(q / (2 * np.pi)), rtol=1e-11)


def test_variance_zero_is_exact_and_shapes_are_kept():
    assert quadrature.expect(jnp.tanh, 0.0) == 0
    assert quadrature.expect(window, 0.0, kinks=(-1.0, 1.0)) == pytest.approx(1.0, abs=1e-14)
    assert quadrature.expect_product(relu, relu, 0.0, 1.0, 0.5, kinks_f=(0.0,), kinks_g=(0.0,)) == 0
    variances = np.linspace(0, 2, 6).reshape(2, 3)
    np.testing.assert_allclose(quadrature.expect(lambda x: x**2, variances), variances, atol=1e-14)
    product = quadrature.expect_product(lambda x: x, lambda x: x, variances, 1.0, np.array([[0.5], [-0.2]]))
    np.testing.assert_allclose(product, np.array([[0.5], [-0.2]]) * np.sqrt(variances), atol=1e-14)


def test_derivatives_match_price():
    """d/dc E f g = sqrt(q1 q2) E f' g' and d/dq E f = E f'' / 2, for a product with a jump in the slope."""
    q1, q2, c = 2.0, 0.5, 0.7

    def product(c):
        return quadrature.expect_product(relu, relu, q1, q2, c, kinks_f=(0.0,), kinks_g=(0.0,))

    np.testing.assert_allclose(jax.grad(product)(c), np.sqrt(q1 * q2) * exact_step(q1, q2, c), rtol=1e-11)
    slope = jax.grad(lambda q: quadrature.expect(jnp.sin, q) + quadrature.expect(jnp.cos, q))(q1)
    np.testing.assert_allclose(slope, -np.exp(-q1 / 2) / 2, rtol=1e-12)


@pytest.mark.float32
def test_follows_the_dtype():
    for dtype in (jnp.float32, jnp.zeros(0).dtype):
        q = jnp.asarray([0.1, 3.0], dtype)
        tolerance = 40 * jnp.finfo(dtype).eps
        value = jax.jit(lambda q: quadrature.expect(jnp.sin, q) + quadrature.expect(jnp.cos, q))(q)
        assert value.dtype == dtype
        np.testing.assert_allclose(value, np.exp(-np.asarray(q) / 2), rtol=tolerance)
        c = jnp.asarray([1.0, -0.5], dtype)
        value = quadrature.expect_product(relu, relu, q, q, c, kinks_f=(0.0,), kinks_g=(0.0,))
        assert value.dtype == dtype
        np.testing.assert_allclose(value, exact_relu(q, q, np.asarray(c)), rtol=tolerance)


# ------------------------------------------------------------------------------------------------- the error estimate

# name -> (f, kinks, exact at variance q, solved): honesty and success are separate claims
PROBLEMS = {
    "fourth power": (lambda x: x**4, (), lambda q: 3 * q**2, True),
    "cosine": (jnp.cos, (), lambda q: np.exp(-q / 2), True),
    "relu": (relu, (0.0,), lambda q: np.sqrt(q / (2 * np.pi)), True),
    "window": (window, (-1.0, 1.0), lambda q: scipy.special.erf(1 / np.sqrt(2 * q)), True),
    "window, kinks not named": (window, (), lambda q: scipy.special.erf(1 / np.sqrt(2 * q)), False),
    "shifted corner, not named": (
        lambda x: jnp.abs(x - 0.3),
        (),
        lambda q: 0.3 * scipy.special.erf(0.3 / np.sqrt(2 * q)) + np.sqrt(2 * q / np.pi) * np.exp(-0.045 / q),
        False,
    ),
    "fast oscillation": (lambda x: jnp.sin(40 * x) ** 2, (), lambda q: -np.expm1(-3200 * q) / 2, False),
    "bump off the centre": (
        lambda x: jnp.exp(-((x - 1) ** 2) / 0.002),
        (),
        lambda q: np.exp(-0.5 / (q + 0.001)) * np.sqrt(0.001 / (q + 0.001)),
        False,
    ),
}
VARIANCES = np.array([0.05, 1.0, 9.0, 100.0])


@pytest.mark.parametrize("name", in_turn(PROBLEMS, turn=1, every=2))
def test_the_error_estimate_is_honest(name):
    f, kinks, exact, _ = PROBLEMS[name]
    estimate = quadrature.expectation(f, VARIANCES, kinks=kinks)
    true_error = abs(estimate.value - exact(VARIANCES))
    assert ((estimate.error >= 0.1 * true_error) | (true_error < 1e-13)).all()


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_error_is_small_where_the_rule_fits(name):
    f, kinks, exact, solved = PROBLEMS[name]
    estimate = quadrature.expectation(f, VARIANCES, kinks=kinks)
    size = np.maximum(exact(VARIANCES), 1e-3)
    assert (abs(estimate.value / size - exact(VARIANCES) / size).max() < 1e-12) == solved
    assert ((estimate.error / size).max() < 1e-10) == solved


@pytest.mark.parametrize("kinks", [(0.0,), ()])
def test_the_product_estimate_is_honest(kinks):
    c = np.array([-0.9, 0.0, 0.5, 0.999, 1.0])
    estimate = quadrature.product_expectation(relu, relu, 1.0, 4.0, c, kinks_f=kinks, kinks_g=kinks)
    true_error = abs(estimate.value - exact_relu(1.0, 4.0, c))
    assert ((estimate.error >= 0.1 * true_error) | (true_error < 1e-13)).all()
    assert (estimate.error.max() < 1e-10) == bool(kinks)


@pytest.mark.float32
def test_estimates_are_float64_whatever_the_flag():
    estimate = quadrature.expectation(jnp.tanh, np.float32(0.5))
    product = quadrature.product_expectation(jnp.sin, jnp.sin, 1.0, 1.0, 0.5)
    for found in (estimate, product):
        assert np.asarray(found.value).dtype == np.asarray(found.error).dtype == np.float64
        assert np.asarray(found.converged).dtype == bool
    np.testing.assert_allclose(product.value, exact_sine(1.0, 1.0, 0.5), rtol=1e-13)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"f": 3}, TypeError, ("f ", "function", "3")),
        ({"variance_f": -1.0}, ValueError, ("variance_f", "-1.0", ">= 0")),
        ({"variance_g": np.nan}, ValueError, ("variance_g", "nan")),
        ({"correlation": 1.5}, ValueError, ("correlation", "1.5", "<= 1")),
        ({"kinks_g": (np.inf,)}, ValueError, ("kinks_g", "inf")),
    ],
)
def test_bad_input_is_named(change, error, words):
    good = {"f": jnp.tanh, "g": jnp.tanh, "variance_f": 1.0, "variance_g": 1.0, "correlation": 0.5}
    with pytest.raises(error) as caught:
        quadrature.product_expectation(**(good | change))
    assert all(word in str(caught.value) for word in words)
    with pytest.raises(ValueError, match=r"variance.*-2"):
        quadrature.expectation(jnp.tanh, -2.0)


def test_several_functions_at_the_same_nodes_are_each_alone_and_compile_once():
    from tests import doors

    functions, q = (jnp.sin, relu, jnp.tanh), jnp.asarray([[0.0, 0.3, 2.0], [7.0, 1e3, 1e8]])
    found = quadrature.expect_each(functions, q, kinks=(0.0,))
    assert found.shape == (3, 2, 3)
    for f, row in zip(functions, found):
        np.testing.assert_allclose(row, quadrature.expect(f, q, kinks=(0.0,)), rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(found[1], np.sqrt(q / (2 * np.pi)), rtol=1e-12, atol=1e-15)
    doubled = 2 * q
    with doors.compilations() as compiled:
        quadrature.expect_each(functions, doubled, kinks=(0.0,))
    assert not compiled


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_is_computed_in_more_and_comes_back_as_it_was(dtype):
    q = np.asarray([0.0, 0.01, 1.0, 30.0, 60.0])  # of the variance 1000 a sine has more waves than there are nodes
    given, eps = jnp.asarray(q, dtype), float(jnp.finfo(dtype).eps)
    q = np.asarray(given, np.float64)
    line = quadrature.expect(lambda x: jnp.sin(x) ** 2, given)
    assert line.dtype == dtype
    np.testing.assert_allclose(np.asarray(line, float), -np.expm1(-2 * q) / 2, rtol=eps)
    plane = quadrature.expect_product(jnp.sin, jnp.sin, given, given, jnp.full(q.shape, 0.5, dtype))
    assert plane.dtype == dtype
    np.testing.assert_allclose(np.asarray(plane, float), exact_sine(q, q, 0.5), rtol=2 * eps, atol=1e-6)
    kinked = quadrature.expect_product(
        relu, relu, given, given, jnp.full(q.shape, 0.5, dtype), kinks_f=(0.0,), kinks_g=(0.0,)
    )
    np.testing.assert_allclose(np.asarray(kinked, float), exact_relu(q, q, 0.5), rtol=2 * eps)
    slopes = jax.vmap(jax.grad(lambda q: quadrature.expect(lambda x: jnp.sin(x) ** 2, q)))(given[1:4])
    np.testing.assert_allclose(np.asarray(slopes, float), np.exp(-2 * q[1:4]), rtol=2 * eps, atol=1e-6)


def test_a_variance_that_is_no_number_has_no_expectation():
    assert np.isnan(quadrature.expect(jnp.tanh, jnp.nan))
    assert np.isnan(quadrature.expect_product(jnp.tanh, jnp.tanh, jnp.nan, 1.0, 0.5))
    assert np.isnan(quadrature.expect_product(jnp.tanh, jnp.tanh, 1.0, 1.0, jnp.nan))
