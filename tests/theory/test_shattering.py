"""theory.shattering against the arc cosines of relu, sums over a grid, and its limits in depth."""

import math

import numpy as np
import pytest

from numdl import activations
from numdl.theory import shattering

RELU = {"activation": activations.relu, "bias_variance": 0.0}
BLOCK = {**RELU, "weight_variance": 1.0, "second_weight_variance": 2.0, "step": 1.0}


def both_active(c):
    return 0.5 - math.acos(c) / (2 * math.pi)


def product(c):
    """E relu(u) relu(v) of unit variances."""
    return (math.sqrt(1 - c * c) + (math.pi - math.acos(c)) * c) / (2 * math.pi)


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("start", [0.0, 0.6, -0.3])
def test_dense_relu_by_arc_cosines(start, normalized):
    c, correlations, factors = start, [], []
    for _ in range(6):
        correlations.append(c)
        factors.append(both_active(c) / 0.5)
        mean = 1 / (2 * math.pi) if normalized else 0.0
        c = (product(c) - mean) / (0.5 - mean)
    found = shattering.dense(start, x_variance=1.7, depth=6, weight_variance=1.3, normalized=normalized, **RELU)
    np.testing.assert_allclose(found.c, correlations, atol=1e-14)
    np.testing.assert_allclose(found.gradient, [np.prod(factors[i:]) for i in range(6)], rtol=1e-13)


@pytest.mark.parametrize("normalized", [False, True])
def test_residual_relu_by_arc_cosines(normalized):
    h, w, v, p, s = 0.7, 1.4, 2.2, 0.8, 0.8 * 0.25
    correlations, factors = [], []
    for _ in range(6):
        c, rate, q = s / p, h**2 * v / (p if normalized else 1 / w), 1.0 if normalized else w * p
        factors.append((1 + rate * both_active(c)) / (1 + rate * 0.5))
        mean = q / (2 * math.pi) if normalized else 0.0
        p, s = p + h**2 * v * (q / 2 - mean), s + h**2 * v * (q * product(c) - mean)
        correlations.append(s / p)
    physics = {"step": h, "weight_variance": w, "second_weight_variance": v}
    found = shattering.residual(0.25, x_variance=0.8, depth=6, normalized=normalized, **physics, **RELU)
    np.testing.assert_allclose(found.c, correlations, rtol=1e-12)
    np.testing.assert_allclose(found.gradient, [np.prod(factors[i + 1 :]) for i in range(6)], rtol=1e-12)


def test_a_smooth_activation_in_closed_form():
    """Of erf: E f'(u) f'(v) = 4 / (pi sqrt((1 + 2 q)^2 - 4 s^2)), E f(u) f(v) = 2/pi asin(2 s / (1 + 2 q)), s = c q."""
    w, b, v, h, p, s = 1.6, 0.2, 0.7, 0.9, 1.1, 1.1 * 0.4
    factors = []
    for _ in range(3):
        q, inner = w * p + b, w * s + b
        both, one = (4 / (math.pi * math.sqrt((1 + 2 * q) ** 2 - 4 * a**2)) for a in (inner, q))
        factors.append((1 + h**2 * v * w * both) / (1 + h**2 * v * w * one))
        p, s = (a + h**2 * v * 2 / math.pi * math.asin(2 * u / (1 + 2 * q)) for a, u in ((p, q), (s, inner)))
    physics = {"activation": activations.erf, "weight_variance": w, "bias_variance": b}
    found = shattering.residual(0.4, x_variance=1.1, depth=3, step=h, second_weight_variance=v, **physics)
    np.testing.assert_allclose(found.gradient, [factors[1] * factors[2], factors[2], 1], rtol=1e-10)


def test_equal_inputs_have_equal_gradients():
    for normalized in (False, True):
        assert (shattering.residual(1.0, x_variance=1.0, depth=9, normalized=normalized, **BLOCK).gradient == 1).all()


def test_limits_in_depth():
    halves = shattering.dense(0.0, x_variance=1.0, depth=20, weight_variance=2.0, normalized=True, **RELU).gradient
    np.testing.assert_allclose(halves, 0.5 ** np.arange(20, 0, -1), rtol=1e-12)
    deep = shattering.residual(0.0, x_variance=1.0, depth=4000, normalized=True, **BLOCK).gradient
    assert math.log(deep[1999] / deep[-1]) / math.log(2) == pytest.approx(-math.pi / (2 * (math.pi - 1)), abs=2e-3)
    plain = shattering.dense(0.0, x_variance=1.0, depth=4000, weight_variance=2.0, **RELU).gradient
    assert math.log(plain[1999] / plain[-1]) / math.log(2) == pytest.approx(-3, abs=0.05)


def test_shapes_and_doors():
    found = shattering.dense([[0.1, 0.2, 0.3]], x_variance=1.0, depth=4, weight_variance=2.0, **RELU)
    assert found.c.shape == found.gradient.shape == (1, 3, 4)
    with pytest.raises(ValueError, match="c must"):
        shattering.dense(1.2, x_variance=1.0, depth=4, weight_variance=2.0, **RELU)
    with pytest.raises(TypeError, match="normalized must"):
        shattering.residual(0.2, x_variance=1.0, depth=4, normalized="batch", **BLOCK)
