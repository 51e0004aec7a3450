"""Observed orders of made-up errors with known orders, and of Richardson's extrapolation."""

import jax.numpy as jnp
import numpy as np
import pytest

from numdl.ode import convergence

STEPS = 2 ** np.arange(2, 12)


def test_order_of_a_pure_power():
    order = convergence.observed_order(3.0 * (1.0 / STEPS) ** 2, STEPS, high=np.inf)
    np.testing.assert_allclose([order.value, order.low, order.high, order.constant], [2, 2, 2, 3], rtol=1e-9)
    np.testing.assert_allclose(order.pairwise, 2, rtol=1e-12)


def test_only_the_asymptotic_part_is_used():
    errors = (1.0 / STEPS) ** 3 * (1 + 40 / STEPS**2) + 1e-14
    order = convergence.observed_order(errors, STEPS, low=1e-11)
    assert (order.used == ((errors > 1e-11) & (errors < 1e-2))).all()
    assert abs(order.value - 3) < abs(convergence.observed_order(errors, STEPS, low=0, high=9).value - 3)


def test_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        errors = 1e-3 * (1.0 / STEPS) ** 2 * np.exp(0.05 * rng.normal(size=STEPS.size))
        order = convergence.observed_order(errors, STEPS, confidence=0.8)
        covered += order.low <= 2 <= order.high
    assert abs(covered - 320) < 6 * np.sqrt(400 * 0.8 * 0.2)


def test_too_few_errors_give_nan():
    order = convergence.observed_order([0.5, 0.25, 0.125], [1, 2, 4])
    assert np.isnan(order.value)
    assert not order.used.any()
    np.testing.assert_allclose(order.pairwise, 1)


def trapezoidal(n):
    x = np.linspace(0, 1, n + 1)
    y = np.exp(x)
    return {"integral": jnp.asarray(((y[:-1] + y[1:]) / 2).sum() / n)}


def test_study_with_and_without_a_reference():
    steps = [8, 16, 32, 64, 128]
    with_reference = convergence.study(trapezoidal, steps=steps, reference={"integral": np.e - 1})
    alone = convergence.study(trapezoidal, steps=steps)
    assert abs(with_reference.value - 2) < 0.01
    assert abs(alone.value - 2) < 0.01
    assert abs(with_reference.constant - 1 / 12) < 1e-3  # h^2/12 (f'(1) - f'(0)) relative to e - 1
    assert alone.errors.size == 4


def test_richardson_gains_two_orders():
    errors = []
    for n in (8, 16):
        better = convergence.richardson(trapezoidal(n), trapezoidal(2 * n), order=2)
        errors.append(abs(float(better.value["integral"]) - (np.e - 1)))
        actual = abs(float(trapezoidal(2 * n)["integral"]) - (np.e - 1))
        assert abs(float(better.error) / actual - 1) < 1e-2
    assert abs(np.log2(errors[0] / errors[1]) - 4) < 0.05


def test_richardson_with_another_factor():
    better = convergence.richardson(jnp.asarray(1 + 0.9), jnp.asarray(1 + 0.1), order=2, factor=3)
    assert abs(float(better.value) - 1) < 1e-15


def test_errors_name_argument_and_value():
    with pytest.raises(ValueError, match=r"steps must be positive and increasing; got \[4\. 2\.\]"):
        convergence.observed_order([1.0, 2.0], [4, 2])
    with pytest.raises(ValueError, match=r"errors must not be negative; got \[-1"):
        convergence.observed_order([-1.0, 2.0], [2, 4])
    with pytest.raises(ValueError, match=r"steps must grow by one factor.*got \(2, 4, 6\)"):
        convergence.study(trapezoidal, steps=[2, 4, 6])
    with pytest.raises(ValueError, match=r"factor must be a finite number > 1; got 1\.0"):
        convergence.richardson(1.0, 2.0, order=1, factor=1.0)


def test_small_integers_do_not_wrap_around_and_windows_have_two_ends():
    coarse, fine = np.array([1.0]), np.array([1.1])
    one, other = (
        convergence.richardson(coarse, fine, order=8, factor=factor) for factor in (np.array(2, np.int8), 2.0)
    )
    np.testing.assert_array_equal(one.value, other.value)
    with pytest.raises(ValueError, match="high must be above low = 0.01; got 1e-12"):
        convergence.observed_order([0.1, 0.01, 0.001], [1, 2, 4], low=1e-2, high=1e-12)
