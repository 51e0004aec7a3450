"""Autoencoders against closed forms, NumPy and scikit-learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numdl import activations
from numdl.networks import autoencoder
from numdl.networks.autoencoder import Autoencoder

PHYSICS = {"activation": activations.tanh, "weight_variance": 1.5, "bias_variance": 0.1}
KEY = jax.random.key(0)
X = jnp.asarray(np.random.default_rng(0).standard_normal((20, 6)))


def built(widths=(6, 5, 3), **settings):
    net = autoencoder.network(widths=widths, **PHYSICS, **settings)
    return net, net.init(KEY, X)


def numpy_layers(params):
    """[(kernel, bias), ...] of a dense network, layer by layer."""
    stretches = [(k, b) for s in params["hidden"] for k, b in zip(np.asarray(s["kernel"]), np.asarray(s["bias"]))]
    return [*stretches, (np.asarray(params["readout"]["kernel"]), np.asarray(params["readout"]["bias"]))]


def numpy_dense(params, y):
    *hidden, (kernel, bias) = numpy_layers(params)
    for k, b in hidden:
        y = np.tanh(y @ k + b)
    return y @ kernel + bias


@pytest.mark.parametrize("widths", [(6, 2), (6, 5, 3), (6, 4, 4, 4, 2)])
def test_codes_and_outputs_are_two_dense_networks(widths):
    net, params = built(widths, code_activation=jnp.sin, output_activation=jnp.square)
    codes = np.sin(numpy_dense(params["encoder"], np.asarray(X)))
    np.testing.assert_allclose(net.encode(params, X), codes, rtol=1e-5, atol=1e-6)
    outputs = numpy_dense(params["decoder"], codes) ** 2
    np.testing.assert_allclose(net.apply(params, X), outputs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("widths, count", [((784, 32), 50_992), ((784, 128, 64, 32), 222_384)])
def test_published_parameter_counts(widths, count):
    net = autoencoder.network(widths=widths, **PHYSICS)
    shapes = jax.eval_shape(net.init, KEY, jnp.ones((1, 784)))
    assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == count


def test_principal_components_lose_the_smallest_eigenvalues():
    net, _ = built((6, 2))
    params = autoencoder.principal(X, code=2)
    values = np.linalg.eigvalsh(np.cov(np.asarray(X), rowvar=False, bias=True))
    np.testing.assert_allclose(jnp.mean(jnp.sum((net.apply(params, X) - X) ** 2, axis=1)), values[:4].sum(), rtol=1e-6)
    np.testing.assert_allclose(jnp.var(net.encode(params, X), axis=0), values[:3:-1], rtol=1e-5)
    assert params["encoder"]["readout"]["kernel"].dtype == X.dtype


def test_principal_components_are_beaten_by_no_step_of_the_linear_autoencoder():
    net, _ = built((6, 2))
    params = autoencoder.principal(X, code=2)
    gradient = jax.grad(lambda p: jnp.mean((net.apply(p, X) - X) ** 2))(params)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient)) < 1e-6


@pytest.mark.parametrize("alpha", [0.0, 0.7])
def test_optimal_codes_of_a_linear_decoder_solve_the_normal_equations(alpha):
    net, params = built((6, 3))
    found = autoencoder.optimal_codes(net, params, X, alpha=alpha, steps=400)
    ((kernel, bias),) = numpy_layers(params["decoder"])
    encoded = np.asarray(net.encode(params, X))
    matrix = kernel @ kernel.T + alpha * np.eye(3)
    exact = np.linalg.solve(matrix, (kernel @ (np.asarray(X) - bias).T) + alpha * encoded.T).T
    np.testing.assert_allclose(found.codes, exact, rtol=2e-3, atol=2e-3)
    assert float(found.residual.max()) < 1e-2
    energy = alpha * np.sum((exact - encoded) ** 2, axis=1) + np.sum((exact @ kernel + bias - X) ** 2, axis=1)
    np.testing.assert_allclose(found.energy[-1], energy, rtol=1e-4)
    np.testing.assert_allclose(autoencoder.energy(net, params, exact, X, alpha=alpha), energy, rtol=1e-5)


def test_sparse_codes_are_those_of_the_lasso():
    from sklearn.linear_model import Lasso

    net, params = built((6, 3))
    ((kernel, bias),) = numpy_layers(params["decoder"])
    found = autoencoder.optimal_codes(net, params, X, alpha=0.0, sparsity=2.0, steps=600)
    for code, row in zip(np.asarray(found.codes), np.asarray(X), strict=True):
        lasso = Lasso(alpha=2.0 / (2 * 6), fit_intercept=False, tol=1e-10, max_iter=20000)
        np.testing.assert_allclose(code, lasso.fit(kernel.T, row - bias).coef_, atol=2e-3)
    assert 0.1 < float(jnp.mean(found.codes == 0)) < 0.9


@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_no_energy_rises_on_the_way(sparsity):
    net, params = built((6, 5, 3))
    found = autoencoder.optimal_codes(net, params, X, alpha=0.1, sparsity=sparsity, steps=60)
    energies = np.asarray(found.energy)
    assert (np.diff(energies, axis=0) <= 1e-5 * energies[:-1]).all()
    assert (energies[-1] < energies[0]).all()
    start = autoencoder.energy(net, params, net.encode(params, X), X, alpha=0.1, sparsity=sparsity)
    np.testing.assert_allclose(energies[0], start, rtol=1e-5)


def test_pretraining_trains_each_layer_on_what_the_layers_before_it_give():
    seen = []

    def fit(net, params, inputs):
        seen.append((net, params, inputs))
        return params

    widths = (6, 5, 5, 2)
    params = autoencoder.pretrain(KEY, X, fit, widths=widths, **PHYSICS)
    net, drawn = built(widths)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, drawn)
    assert [inputs.shape[1] for _, _, inputs in seen] == [6, 5, 5]
    for (shallow, weights, inputs), (_, _, after) in zip(seen, seen[1:], strict=False):
        np.testing.assert_allclose(shallow.encode(weights, inputs), after, rtol=1e-6)
    y = np.asarray(net.encode(params, X))
    shallow, weights, inputs = seen[-1]
    np.testing.assert_allclose(shallow.encode(weights, inputs), y, rtol=1e-5, atol=1e-6)
    for shallow, weights, _ in reversed(seen):
        y = shallow.decode(weights, y)
    np.testing.assert_allclose(net.apply(params, X), y, rtol=1e-4, atol=1e-5)


def test_built_twice_compiles_once():
    autoencoder.optimal_codes(*built((6, 4, 2)), X, alpha=0.2, steps=3)
    before = autoencoder._optimal._cache_size()
    autoencoder.optimal_codes(*built((6, 4, 2)), X, alpha=0.3, steps=3)
    assert autoencoder._optimal._cache_size() == before


def test_an_autoencoder_is_a_record_of_pure_functions():
    net, params = built()
    assert isinstance(net, Autoencoder)
    assert net.spread is None
    np.testing.assert_array_equal(net.apply(params, X), net.apply(params, X))
