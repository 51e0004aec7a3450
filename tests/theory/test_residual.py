"""theory.residual against closed forms of erf, NumPy networks and the asymptotics of long streams."""

import mpmath
import numpy as np
import pytest

from numdl import activations
from numdl.statistics import agreement, z_limit
from numdl.theory import residual

pytestmark = pytest.mark.float32


def product(c, q):
    """E erf(u) erf(v) = 2/pi asin(2 c q / (1 + 2 q))."""
    return 2 / np.pi * np.arcsin(2 * c * q / (1 + 2 * q))


@pytest.mark.parametrize("b", [0.0, 0.3])
def test_recursion_of_erf_in_closed_form(b):
    w, v, h, p, c = 1.7, 0.6, 0.8, 0.9, np.array([[1.0, 0.4], [0.0, -1.0]])
    lengths, correlations = [], []
    for _ in range(5):
        q, inner = w * p + b, w * c * p + b
        after = p + h**2 * v * product(1.0, q)
        c, p = (c * p + h**2 * v * product(inner / q, q)) / after, after
        lengths.append(p)
        correlations.append(c)
    found = residual.correlations(
        [[1.0, 0.4], [0.0, -1.0]],
        x_variance=0.9,
        depth=5,
        step=0.8,
        activation=activations.erf,
        weight_variance=w,
        bias_variance=b,
        second_weight_variance=v,
    )
    np.testing.assert_allclose(found.square, lengths, rtol=1e-12)
    np.testing.assert_allclose(found.c, np.moveaxis(correlations, 0, -1), rtol=1e-11, atol=1e-15)
    assert (found.c[0, 0] == 1).all()
    assert (found.c[1, 1, -1] > -1) == (b > 0)


def test_wide_networks_by_numpy():
    n, depth, random = 100, 6, np.random.default_rng(0)
    one, other = np.ones(n), np.tile([1.0, -1.0], n // 2)
    samples = []
    for _ in range(60):
        y = np.stack([one, 0.6 * one + 0.8 * other])
        for _ in range(depth):
            K, V = random.normal(size=(2, n, n)) / np.sqrt(n)
            y = y + 0.7 * np.tanh(1.2 * y @ K + 0.5 * random.normal(size=n)) @ V
        samples.append([np.mean(y[0] ** 2), np.mean(y[0] * y[1])])
    found = residual.correlations(
        0.6,
        x_variance=1.0,
        depth=depth,
        step=0.7,
        activation=activations.tanh,
        weight_variance=1.44,
        bias_variance=0.25,
        second_weight_variance=1.0,
    )
    expected = [found.square[-1], found.square[-1] * found.c[-1]]
    assert np.abs(agreement(expected, samples).z).max() < z_limit(2)


def test_laws_of_tanh_are_the_limits_of_its_moments():
    """At the length of layer 1e8: E sech^4 and E sign sign by mpmath, put into the recursion's increments."""
    w, v, h, depth = 1.3, 0.7, 0.9, mpmath.mpf(10) ** 8
    laws = residual.tanh_laws(weight_variance=w, second_weight_variance=v, step=h)
    q = w * h**2 * v * depth
    slope = 2 * mpmath.quad(lambda z: mpmath.sech(mpmath.sqrt(q) * z) ** 4 * mpmath.npdf(z), [0, 30 / mpmath.sqrt(q)])
    assert laws.gradient == pytest.approx(float(h**2 * w * v * slope * 2 * mpmath.sqrt(depth)), rel=1e-6)
    assert laws.decay == pytest.approx(1 - float(mpmath.diff(lambda c: 2 / mpmath.pi * mpmath.asin(c), 0)), rel=1e-9)
    assert laws.length == pytest.approx(h**2 * v, rel=1e-14)


@pytest.mark.parametrize("still", [{"weight_variance": 0.0}, {"second_weight_variance": 0.0}, {"step": 0.0}])
def test_laws_of_blocks_that_add_nothing_are_zero(still):
    known = {"weight_variance": 1.3, "second_weight_variance": 0.7, "step": 0.9} | still
    found = residual.correlations(0.5, x_variance=1.0, depth=3, bias_variance=0.0, activation=activations.tanh, **known)
    assert (found.square == 1).all() and np.allclose(found.c, 0.5, rtol=0, atol=1e-15)
    laws = residual.tanh_laws(**known)
    assert laws.length == laws.decay == laws.gradient == 0


def test_branch_shares_of_relu():
    """1 / (p_0 + l) with batch normalization; w v / 2 of what was there without."""
    physics = {"activation": activations.relu, "weight_variance": 1.5, "second_weight_variance": 2.0, "step": 0.8}
    stream = {"x_variance": 1.7, "depth": 6, "bias_variance": 0.0}
    a = 0.64 * np.array([1.0, 1.5])
    found = residual.branch_shares(normalized=True, **stream, **physics)
    np.testing.assert_allclose(found, a[0] / (1.7 + a[0] * np.arange(1, 7)), rtol=1e-12)
    found = residual.branch_shares(**stream, **physics)
    np.testing.assert_allclose(found, np.full(6, a[1] / (1 + a[1])), rtol=1e-12)
    beyond = residual.branch_shares(**stream | {"depth": 1300}, **physics)
    assert np.isnan(beyond[-1])
    assert beyond[900] == pytest.approx(a[1] / (1 + a[1]))
