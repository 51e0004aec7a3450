"""analysis.shattering against gradients by hand and the prediction in standard errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numdl import activations, statistics
from numdl.analysis import shattering as measured
from numdl.networks import dense, residual
from numdl.theory import shattering as predicted

pytestmark = pytest.mark.float32


def cosine(a, b):
    return (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())


def test_gradients_of_a_dense_network_by_hand(key):
    """Three layers of tanh, backwards in float64, two pairs of inputs."""
    net = dense.network(widths=(4, 5, 5, 5, 3), activation=activations.tanh, weight_variance=2.0, bias_variance=0.3)
    x = jax.random.normal(key, (2, 2, 4), jnp.float32)
    params, v = net.init(key, x[:, 0]), np.array([0.5, -1.0, 2.0])
    found = measured.gradient_correlations(net, params, x, jnp.asarray(v, jnp.float32))
    (*states,) = (np.asarray(y, float) for y in jnp.concatenate(net.states(params, x.reshape(4, 4))))
    kernels = [np.asarray(params["readout"]["kernel"], float), *np.asarray(params["hidden"][1]["kernel"], float)[::-1]]
    g, gradients = np.tile(v, (4, 1)), []
    for y, kernel in zip(states[::-1], kernels, strict=True):
        g = (g @ kernel.T) * (1 - np.tanh(y) ** 2)
        gradients.insert(0, g)
    expected = [[cosine(g[2 * pair], g[2 * pair + 1]) for g in gradients] for pair in range(2)]
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_tiny_gradients_and_dead_units(key):
    """Cosines are of size 1 where squares leave float32; a gradient of exactly 0 has none."""
    x = jnp.asarray([[[1.0, 2.0], [2.0, -1.0]]], jnp.float32)
    net = dense.network(widths=(2, 6, 6, 2), activation=activations.identity, weight_variance=1.0, bias_variance=0.0)
    params = jax.tree.map(lambda leaf: 1e-12 * leaf, net.init(key, x[:, 0]))
    np.testing.assert_allclose(measured.gradient_correlations(net, params, x, jnp.ones(2)), 1.0, atol=1e-5)
    dead = jax.tree.map(jnp.zeros_like, params)
    assert np.isnan(measured.gradient_correlations(net, dead, x, jnp.ones(2))).all()


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_residual_networks_are_as_predicted(norm):
    physics = {
        "activation": activations.relu,
        "weight_variance": 1.0,
        "second_weight_variance": 2.0,
        "bias_variance": 0.0,
        "step": 1.0,
    }
    n = 200
    net = residual.network(widths=(n, n, 4), depth=5, block="two_layer", norm=norm, **physics)
    x = jnp.stack([jnp.ones(n), jnp.tile(jnp.array([1.0, -1.0]), n // 2)])[None].astype(jnp.float32)

    def one(key):
        start, batch, cotangent = jax.random.split(key, 3)
        params = net.init(start, x[:, 0])
        params = residual.freeze(net, params, jax.random.normal(batch, (1000, n), jnp.float32))
        return measured.gradient_correlations(net, params, x, jax.random.normal(cotangent, (4,), jnp.float32))[0]

    samples = jax.jit(lambda keys: jax.lax.map(one, keys))(jax.random.split(jax.random.key(3), 100))
    theory = predicted.residual(0.0, x_variance=1.0, depth=5, normalized=norm == "batch", **physics).gradient
    agreement = statistics.agreement(theory[:-1], np.asarray(samples, float)[:, :-1])
    assert np.abs(agreement.z).max() < statistics.z_limit(20)
    assert agreement.stderr.max() < 0.02


def test_doors(key):
    net = dense.network(widths=(4, 5, 3), activation=activations.tanh, weight_variance=2.0, bias_variance=0.3)
    x = jnp.ones((2, 2, 4))
    params = net.init(key, x[:, 0])
    with pytest.raises(ValueError, match="x must hold pairs"):
        measured.gradient_correlations(net, params, jnp.ones((2, 3, 4)), jnp.ones(3))
    with pytest.raises(ValueError, match="cotangent must"):
        measured.gradient_correlations(net, params, x, jnp.ones(4))
