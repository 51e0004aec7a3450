"""Gradient growth under batch normalization against its published values and against brute-force sampling."""

import numpy as np
import pytest

from numdl import activations
from numdl.theory import normalization


def sampled_growth(f, slope, b, draws=40000):
    """The trace by sampling uniform directions in NumPy: mean gain, its error; then E 1/r^2 from the fixed point."""
    rng = np.random.default_rng(0)
    z = rng.standard_normal((draws, b))
    z -= z.mean(axis=1, keepdims=True)
    u = z / np.linalg.norm(z, axis=1, keepdims=True)
    g = np.eye(b) - 1 / b
    values = f(np.sqrt(b) * u)
    centred = values - values.mean(axis=1, keepdims=True)
    variance = (centred**2).sum(axis=1) / (b - 1)
    d = slope(u)[:, :, None] * np.eye(b)
    inner = d @ g @ d
    projected = np.trace(inner @ g, axis1=1, axis2=2) - np.einsum("na,nab,nb->n", u, inner, u)
    gain = b * projected / (b - 1) / (b - 3)
    ratio = gain.mean() / variance.mean()
    spread = gain / gain.mean() - variance / variance.mean()
    return ratio, ratio * spread.std() / np.sqrt(draws)


CASES = [
    (activations.relu, lambda x: np.maximum(x, 0), lambda x: (x > 0).astype(float)),
    (activations.leaky_relu(0.3), lambda x: np.where(x > 0, x, 0.3 * x), lambda x: np.where(x > 0, 1.0, 0.3)),
    (activations.identity, lambda x: x, np.ones_like),
]


@pytest.mark.parametrize("b", [4, 7, 16])
@pytest.mark.parametrize("activation, f, slope", CASES)
def test_growth_at_finite_batches_is_the_sampled_one(activation, f, slope, b):
    value, error = sampled_growth(f, slope, b)
    assert abs(normalization.gradient_growth(activation=activation, batch_size=b) - value) < 6 * error + 1e-12 * value


def test_known_values():
    assert normalization.gradient_growth(activation=activations.relu) == pytest.approx(np.pi / (np.pi - 1), rel=1e-12)
    assert normalization.gradient_growth(activation=activations.identity) == pytest.approx(1.0, rel=1e-12)
    for b in (4, 5, 100):
        value = normalization.gradient_growth(activation=activations.identity, batch_size=b)
        assert value == pytest.approx((b - 2) / (b - 3), rel=1e-12)
    assert normalization.correlation(activation=activations.relu) == pytest.approx(1 / np.pi, rel=1e-12)
    assert normalization.correlation(activation=activations.identity, batch_size=5) == pytest.approx(-0.25, rel=1e-12)


def test_large_batches_reach_the_limit_at_first_order():
    limit = normalization.gradient_growth(activation=activations.relu)
    gaps = [normalization.gradient_growth(activation=activations.relu, batch_size=b) - limit for b in (10**3, 10**4)]
    assert gaps[0] / gaps[1] == pytest.approx(10, rel=0.01)


def test_only_linear_activations_do_not_explode():
    for activation in (activations.tanh, activations.gelu, activations.silu, activations.erf):
        assert 1.001 < normalization.gradient_growth(activation=activation) < 3


@pytest.mark.parametrize(
    "more, error, message",
    [
        ({"activation": "relu"}, TypeError, "activation .*got 'relu'"),
        ({"activation": activations.relu, "batch_size": 3}, ValueError, "batch_size .*got 3"),
        ({"activation": activations.tanh, "batch_size": 8}, ValueError, "batch_size .*got 8 with .*tanh"),
    ],
)
def test_bad_input_is_named(more, error, message):
    for function in (normalization.gradient_growth, normalization.correlation):
        with pytest.raises(error, match=message):
            function(**more)


def test_a_constant_activation_is_named():
    constant = activations.custom(lambda x: 0 * x + 2.0, name="two")
    with pytest.raises(ValueError, match=r"activation must not be constant; got Activation\(two\)"):
        normalization.gradient_growth(activation=constant)
