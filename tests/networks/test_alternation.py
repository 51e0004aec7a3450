"""Codes and weights in turn: linear ones against alternating least squares in NumPy, and the energy never rises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numdl import activations
from numdl.networks import alternation, autoencoder

X = np.random.default_rng(0).standard_normal((12, 5)) @ np.diag([3.0, 2.0, 1.0, 0.5, 0.2])
PHYSICS = {"activation": activations.tanh, "weight_variance": 1.0, "bias_variance": 0.0}


def regressed(params, x, codes):
    """Both maps by least squares, no bias."""
    maps = {"encoder": jnp.linalg.lstsq(x, codes)[0], "decoder": jnp.linalg.lstsq(codes, x)[0]}
    return {
        name: {"hidden": (), "readout": {"kernel": kernel, "bias": jnp.zeros(kernel.shape[1])}}
        for name, kernel in maps.items()
    }


@pytest.mark.parametrize("alpha", [0.0, 0.7])
def test_linear_ones_are_alternating_least_squares(alpha):
    net = autoencoder.network(widths=(5, 2), **PHYSICS)
    params = net.init(jax.random.key(0), X)
    found = alternation.minimize(net, params, X, regressed, alpha=alpha, rounds=3, steps=2000)
    g, h = (np.asarray(params[name]["readout"]["kernel"]) for name in ("encoder", "decoder"))
    rows = []
    for _ in range(3):
        z = (alpha * X @ g + X @ h.T) @ np.linalg.inv(alpha * np.eye(2) + h @ h.T)
        g, h = np.linalg.lstsq(X, z, rcond=None)[0], np.linalg.lstsq(z, X, rcond=None)[0]
        rows.append((alpha * np.sum((z - X @ g) ** 2) + np.sum((X - z @ h) ** 2)) / 12)
    np.testing.assert_allclose(found.energy[:, 2], rows, rtol=1e-6)
    np.testing.assert_allclose(found.codes, z, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found.params["decoder"]["readout"]["kernel"], h, rtol=1e-3, atol=1e-4)


def test_no_half_of_a_round_raises_the_energy():
    net = autoencoder.network(widths=(5, 4, 2), **PHYSICS)
    params = net.init(jax.random.key(1), X)
    settings = {"alpha": 0.2, "sparsity": 0.1}

    def fit(params, x, codes):
        loss = lambda p: jnp.mean(autoencoder.energy(net, p, codes, x, **settings))  # noqa: E731
        for _ in range(2):
            params = jax.tree.map(lambda p, g: p - 0.02 * g, params, jax.grad(loss)(params))
        return params

    found = alternation.minimize(net, params, X, fit, rounds=3, steps=20, **settings)
    path = np.asarray(found.energy).ravel()
    assert (np.diff(path) <= 1e-6).all()
    np.testing.assert_allclose(path[3::3], path[2:-1:3], rtol=1e-6)  # a round begins where the last one has ended
    assert path[-1] < 0.9 * path[0]


def test_a_fit_of_another_form_is_refused():
    net = autoencoder.network(widths=(5, 2), **PHYSICS)
    with pytest.raises(ValueError, match=r"fit\(params, x, codes\) must have"):
        alternation.minimize(net, net.init(jax.random.key(0), X), X, lambda p, x, z: p["encoder"], alpha=1.0, rounds=1)


def test_codes_begin_where_they_are_told_to():
    net = autoencoder.network(widths=(5, 2), **PHYSICS)
    params = net.init(jax.random.key(0), X)
    start = np.ones((12, 2))
    found = autoencoder.optimal_codes(net, params, X, alpha=1.0, steps=1, start=start)
    np.testing.assert_allclose(found.energy[0], autoencoder.energy(net, params, start, X, alpha=1.0), rtol=1e-9)
    with pytest.raises(ValueError, match="start must have"):
        autoencoder.optimal_codes(net, params, X, alpha=1.0, start=np.ones((12, 3)))
