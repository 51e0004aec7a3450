"""The evidence of a variational autoencoder against the linear Gaussian model, which is known exactly."""

import jax
import jax.numpy as jnp
import numpy as np

from numdl import activations
from numdl.networks import autoencoder, variational

X = jnp.asarray(np.random.default_rng(0).standard_normal((20, 6)))


def gaussian():
    net = autoencoder.network(
        widths=(6, 2), activation=activations.tanh, weight_variance=1.5, bias_variance=0.1, gaussian=True
    )
    params = net.init(jax.random.key(0), X)
    kernel, bias = (params["decoder"]["readout"][name] for name in ("kernel", "bias"))
    mean, spread = np.asarray(net.encode(params, X), float), np.asarray(net.spread(params, X), float)
    return net, params, np.asarray(kernel, float), np.asarray(bias, float), mean, spread


def test_evidence_has_the_mean_of_the_linear_gaussian_model():
    net, params, kernel, bias, mean, spread = gaussian()
    draws = jax.vmap(lambda k: variational.evidence(k, net, params, X, noise_variance=0.5, draws=4))(
        jax.random.split(jax.random.key(1), 500)
    )
    misfit = np.sum((np.asarray(X) - mean @ kernel - bias) ** 2, axis=1) + np.exp(spread) @ np.sum(kernel**2, axis=1)
    divergence = np.sum(mean**2 + np.exp(spread) - 1 - spread, axis=1) / 2
    exact = -(misfit / 0.5 + 6 * np.log(2 * np.pi * 0.5)) / 2 - divergence
    z = (np.mean(draws, axis=0) - exact) / (np.std(draws, axis=0) / np.sqrt(500))
    assert np.abs(z).max() < 5.5
    covariance = kernel.T @ kernel + 0.5 * np.eye(6)
    rows = np.asarray(X) - bias
    likelihood = np.sum(rows @ np.linalg.inv(covariance) * rows, axis=1)
    likelihood = -(likelihood + np.linalg.slogdet(2 * np.pi * covariance)[1]) / 2
    assert (exact < likelihood).all(), "a lower bound"


def test_the_pathwise_gradient_is_that_of_the_expectation():
    net, params, *_ = gaussian()

    def mean(params):
        return jnp.mean(variational.evidence(jax.random.key(2), net, params, X, noise_variance=0.5, draws=500))

    found = jax.grad(mean)(params)["encoder"]["readout"]["bias"]
    shifted = jax.jit(lambda i, by: mean({**params, "encoder": moved(params["encoder"], i, by)}))
    slopes = [(shifted(i, 0.01) - shifted(i, -0.01)) / 0.02 for i in range(4)]
    np.testing.assert_allclose(found, slopes, rtol=0.02, atol=0.02)


def moved(encoder, i, by):
    """The encoder with another bias of output i."""
    readout = encoder["readout"]
    return {**encoder, "readout": {**readout, "bias": readout["bias"].at[i].add(by)}}
