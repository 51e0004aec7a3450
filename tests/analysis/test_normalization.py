"""Gradient growth measured in batch-normalized networks, beside the prediction, its finite-width bias fitted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numdl import activations, statistics
from numdl.analysis import normalization as measured
from numdl.networks import core, normalization
from numdl.theory import normalization as predicted


def rates(activation, width, batch, seeds, depth=10):
    net = normalization.network(
        width=width, depth=depth, outputs=width, activation=activation, weight_variance=2.0, eps=0.0
    )
    data_key, key = jax.random.split(jax.random.key(width + 1000 * batch))
    x = jax.random.normal(data_key, (batch, width), jnp.float32)
    growth = measured.gradient_growth(key, network=net, x=x, seeds=seeds)
    return np.asarray(growth.rate(4, depth - 1), np.float64)


def intercept(points):
    """Weighted line through (abscissa, mean, error): its value at 0 and the error of that."""
    x, y, error = np.array(points).T
    design = np.stack([np.ones_like(x), x], axis=1) / error[:, None]
    covariance = np.linalg.inv(design.T @ design)
    return (covariance @ design.T @ (y / error))[0], np.sqrt(covariance[0, 0])


@pytest.mark.slow
def test_relu_growth_is_the_predicted_one_in_the_limit_of_width():
    points = []
    for width in (32, 64, 128):
        mean = statistics.mean_and_error(rates(activations.relu, width, 16, 40))
        points.append((1 / width, mean.mean, mean.stderr))
    value, error = intercept(points)
    expected = np.log(predicted.gradient_growth(activation=activations.relu, batch_size=16))
    assert error < 0.02
    assert abs(value - expected) < 6 * error
    # The same measurement tells the batch of 16 from the limit of large batches.
    assert expected - np.log(np.pi / (np.pi - 1)) > 4 * error


def test_large_batches_come_to_pi_over_pi_minus_one():
    points = []
    for batch in (16, 32, 64):
        mean = statistics.mean_and_error(rates(activations.relu, 160, batch, 12))
        # First order in 1/batch, after the exact second order of the prediction is taken out.
        exact = np.log(predicted.gradient_growth(activation=activations.relu, batch_size=batch))
        far = np.log(predicted.gradient_growth(activation=activations.relu, batch_size=10**7))
        slope = (np.log(predicted.gradient_growth(activation=activations.relu, batch_size=10**6)) - far) * 10**6
        points.append((1 / batch, mean.mean - (exact - far - slope / batch), mean.stderr))
    value, error = intercept(points)
    assert error < 0.02
    assert abs(value - np.log(np.pi / (np.pi - 1))) < 6 * error


@pytest.mark.float32
@pytest.mark.slow
def test_rate_and_ratio_are_differences_of_the_gradients(key):
    net = normalization.network(width=6, depth=5, outputs=3, activation=jnp.tanh, weight_variance=1.0)
    x = jax.random.normal(key, (8, 4), jnp.float32)
    growth = measured.gradient_growth(key, network=net, x=x, seeds=3, at_a_time=2)
    assert growth.log_ratio.shape == (3, 4)
    np.testing.assert_allclose(growth.log_ratio, growth.log_square[:, :-1] - growth.log_square[:, 1:], atol=1e-5)
    np.testing.assert_allclose(growth.rate(2, 5), np.mean(growth.log_ratio[:, 1:4], axis=1), atol=1e-5)
    # One seed by hand.
    init_key, loss_key = jax.random.split(jax.random.split(key, 3)[1])
    params = net.init(init_key, x)
    gradients = core.state_gradients(
        net, params, x, lambda out: jnp.sum(out * jax.random.normal(loss_key, out.shape, out.dtype))
    )
    expected = [np.log(np.sum(np.asarray(g, np.float64) ** 2)) for stretch in gradients for g in stretch]
    np.testing.assert_allclose(growth.log_square[1], expected, atol=1e-4)


def test_layer_normalization_does_not_explode():
    net = normalization.network(
        width=128, depth=8, outputs=128, activation=activations.relu, weight_variance=2.0, kind="layer", eps=0.0
    )
    x = jax.random.normal(jax.random.key(0), (16, 128), jnp.float32)
    growth = measured.gradient_growth(jax.random.key(1), network=net, x=x, seeds=8)
    assert abs(float(jnp.mean(growth.rate(3, 7)))) < 0.5 * np.log(np.pi / (np.pi - 1))


def test_correlation_of_examples_is_the_predicted_one():
    samples = []
    x = jax.random.normal(jax.random.key(5), (8, 256), jnp.float32)
    net = normalization.network(
        width=256, depth=8, outputs=1, activation=activations.relu, weight_variance=2.0, eps=0.0
    )
    for seed in range(12):
        params = net.init(jax.random.key(seed), x)
        samples.append(np.asarray(measured.correlation(net, params, x), np.float64)[4:].mean())
    expected = predicted.correlation(activation=activations.relu, batch_size=8)
    agreement = statistics.agreement(expected, np.array(samples))
    assert abs(agreement.z) < 6
    assert agreement.stderr < 0.01


@pytest.mark.float32
def test_correlation_of_a_known_batch(key):
    net = normalization.network(width=3, depth=1, outputs=1, activation=jnp.tanh, weight_variance=1.0)
    x = jnp.array([[1.0, 2.0], [2.0, 4.0], [-1.0, -2.0]])
    params = net.init(key, x)
    # Multiples 1, 2, -1 of one vector: pairs sum to 2 (2 - 1 - 2) = -2, squares to 6.
    np.testing.assert_allclose(measured.correlation(net, params, x), [-2 / 2 / 6], rtol=1e-5)


@pytest.mark.float32
@pytest.mark.parametrize("dtype, scale", [("float16", 300.0), ("bfloat16", 1e20), ("float32", 1e25)])
def test_correlation_is_summed_in_single_precision_at_any_scale(key, dtype, scale):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(6, 700)) + 0.5, dtype)
    states = jnp.stack([x, jnp.asarray(scale, dtype) * x, jnp.zeros_like(x)])
    net = core.Network(lambda key, x: states, lambda params, x, probes=None: (params,), lambda params, y: y)
    found = measured.correlation(net, states, x)
    assert found.dtype == jnp.float32
    for y, value in zip(states[:2], found[:2], strict=True):
        y = np.asarray(y, np.float64)
        gram = y @ y.T
        np.testing.assert_allclose(value, (gram.sum() - np.trace(gram)) / 5 / np.trace(gram), rtol=1e-5)
    assert np.isnan(found[2])


def test_bad_input_is_named(key):
    net = normalization.network(width=3, depth=1, outputs=1, activation=jnp.tanh, weight_variance=1.0)
    x = jnp.ones((4, 2))
    with pytest.raises(ValueError, match="network must have at least 2 layers; got 1"):
        measured.gradient_growth(key, network=net, x=x, seeds=2)
    with pytest.raises(TypeError, match=r"key .*got 0"):
        measured.gradient_growth(0, network=net, x=x, seeds=2)
    with pytest.raises(ValueError, match=r"x .*2 examples; got shape \(1, 2\)"):
        measured.correlation(net, net.init(key, x), x[:1])
    with pytest.raises(TypeError, match=r"network .*got 3"):
        measured.correlation(3, None, x)
