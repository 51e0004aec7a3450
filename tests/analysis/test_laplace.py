"""Laplace's approximation against the exact posterior of linear models, dense matrices and the definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from numdl import activations
from numdl.analysis import curvature, laplace
from numdl.networks import dense
from numdl.optimize import losses
from numdl.statistics import z_limit

RANDOM = np.random.default_rng(0)
X, Y = RANDOM.standard_normal((12, 3)), RANDOM.standard_normal((12, 2))
NOISE, PRIOR = 0.3, 2.0
LABELS = RANDOM.integers(0, 3, 12)


def half_square(outputs, batch):
    """Mean of half the squared error, one term for each example."""
    return losses.squared(outputs, batch[1])


def linear(params, batch):
    """A linear map, its weights in two leaves."""
    return batch[0] @ jnp.concatenate([params["a"], params["b"][None]], axis=0)


def exact():
    """(mean [3, 2], covariance [3, 3] of each column) of the weights, by the normal equations."""
    covariance = np.linalg.inv(X.T @ X / NOISE + PRIOR * np.eye(3))
    return covariance @ X.T @ Y / NOISE, covariance


def fitted():
    """The Gauss-Newton matrix at the exact posterior's mean."""
    mean, _ = exact()
    params = {"a": mean[:2], "b": mean[2]}
    return curvature.gauss_newton(linear, half_square, params, (X, Y))


def network():
    """A small tanh network, its parameters and the Gauss-Newton matrix of its cross-entropy."""
    net = dense.network(widths=(3, 4, 3), activation=activations.tanh, weight_variance=1.0, bias_variance=0.1)
    params = net.init(jax.random.key(0), X)
    outputs = lambda params, batch: net.apply(params, batch[0])  # noqa: E731
    loss = lambda z, batch: losses.softmax_cross_entropy(z, batch[1])  # noqa: E731
    return net, params, curvature.gauss_newton(outputs, loss, params, (X, LABELS)), (outputs, loss)


def test_linear_regression_has_its_posterior_and_its_evidence():
    operator = fitted()
    found = laplace.posterior(operator, scale=12 / NOISE, prior_precision=PRIOR)
    new = RANDOM.standard_normal((4, 3))
    prediction = laplace.predict(found, lambda p, x: linear(p, (x, None)), new)
    mean, covariance = exact()
    np.testing.assert_allclose(prediction.mean, new @ mean, rtol=1e-9)
    variance = np.einsum("ni,ij,nj->n", new, covariance, new)
    np.testing.assert_allclose(prediction.covariance, variance[:, None, None] * np.eye(2)[None], rtol=1e-8, atol=1e-12)
    np.testing.assert_array_equal(prediction.covariance, prediction.least)
    misfit = float(np.sum((X @ mean - Y) ** 2) / 2 / NOISE + 12 * np.log(2 * np.pi * NOISE))
    marginal = stats.multivariate_normal(np.zeros(12), X @ X.T / PRIOR + NOISE * np.eye(12))
    evidence = laplace.evidence(found, misfit)
    np.testing.assert_allclose([evidence.least, evidence.most], marginal.logpdf(Y.T).sum(), rtol=1e-9)


def test_draws_have_the_posterior_covariance():
    operator = fitted()
    found = laplace.posterior(operator, scale=12 / NOISE, prior_precision=PRIOR)
    drawn = laplace.draw(jax.random.key(1), found, draws=4000)
    weights = np.concatenate([drawn["a"], drawn["b"][:, None]], axis=1)
    mean, covariance = exact()
    white = np.einsum("ij,njc->nic", np.linalg.inv(np.linalg.cholesky(covariance)), weights - mean[None])
    assert white.shape == (4000, 3, 2)
    flat = white.reshape(4000, 6)
    assert np.abs(flat.mean(axis=0)).max() < z_limit(30) / 4000**0.5
    assert np.abs(flat.T @ flat / 4000 - np.eye(6)).max() < z_limit(30) * 2**0.5 / 4000**0.5


@pytest.mark.parametrize("block", [None, "readout", "hidden"])
def test_networks_have_the_covariance_of_the_dense_matrix(block):
    net, params, operator, _ = network()
    operator = operator if block is None else curvature.restrict(operator, block)
    found = laplace.posterior(operator, scale=12.0, prior_precision=PRIOR)
    prediction = laplace.predict(found, net.apply, X[:3])
    flat, back = jax.flatten_util.ravel_pytree(params)
    names = [str(jax.tree_util.keystr(path)) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    kept = np.concatenate(
        [
            np.full(leaf.size, block is None or block in name)
            for name, leaf in zip(names, jax.tree.leaves(params), strict=True)
        ]
    )
    slopes = np.asarray(jax.jacobian(lambda v: net.apply(back(v), X))(flat))[..., kept]
    p = np.asarray(jax.nn.softmax(net.apply(params, X)))
    middle = np.einsum("nc,cd->ncd", p, np.eye(3)) - p[:, :, None] * p[:, None, :]
    precision = np.einsum("nci,ncd,ndj->ij", slopes, middle, slopes) + PRIOR * np.eye(kept.sum())
    expected = np.einsum("nci,ij,ndj->ncd", slopes[:3], np.linalg.inv(precision), slopes[:3])
    np.testing.assert_allclose(prediction.covariance, expected, rtol=1e-7, atol=1e-10)
    drawn = laplace.draw(jax.random.key(0), found, draws=2)
    moved = [not np.array_equal(a[0], b) for a, b in zip(jax.tree.leaves(drawn), jax.tree.leaves(params), strict=True)]
    assert moved == [block is None or block in name for name in names]


@pytest.mark.parametrize("k", [1, 6])
def test_a_few_eigenpairs_give_bounds_on_both_sides(k):
    net, _, operator, _ = network()
    whole = laplace.posterior(operator, scale=12.0, prior_precision=PRIOR)
    part = laplace.posterior(operator, scale=12.0, prior_precision=PRIOR, k=k, key=jax.random.key(2))
    exact, found = (laplace.predict(p, net.apply, X) for p in (whole, part))
    for low, high in ((found.least, exact.covariance), (exact.covariance, found.covariance)):
        assert np.linalg.eigvalsh(high - low).min() > -1e-7
    assert np.linalg.eigvalsh(found.covariance - found.least).max() > 1e-4
    bounds, value = laplace.evidence(part, 3.0), laplace.evidence(whole, 3.0)
    assert bounds.least < value.least < bounds.most


def test_a_saddle_has_no_posterior():
    saddle = lambda params, batch: jnp.sum(params**2 * jnp.array([1.0, -1.0])) + 0 * jnp.sum(batch)  # noqa: E731
    found = laplace.posterior(curvature.hessian(saddle, np.ones(2), np.ones(1)), scale=3.0, prior_precision=1.0)
    assert not found.proper
    prediction = laplace.predict(found, lambda w, x: x @ w[:, None], np.ones((2, 2)))
    assert np.isnan(prediction.covariance).all()
    assert np.isnan(laplace.evidence(found, 0.0).most)
    assert np.isnan(laplace.draw(jax.random.key(0), found, draws=1)).all()


def test_what_cannot_be_bounded_is_refused():
    _, _, operator, (outputs, loss) = network()
    hessian = curvature.hessian(lambda p, b: loss(outputs(p, b), b), operator.params, operator.batch)
    with pytest.raises(ValueError, match="k must be None for a Hessian"):
        laplace.posterior(hessian, scale=1.0, prior_precision=1.0, k=2, key=jax.random.key(0))
    with pytest.raises(TypeError, match="key must be a typed key"):
        laplace.posterior(operator, scale=1.0, prior_precision=1.0, k=2)
    found = laplace.posterior(operator, scale=1.0, prior_precision=1.0, k=1, key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"apply must return outputs of shape \[12, c\]"):
        laplace.predict(found, lambda params, x: x[0], X)


@pytest.mark.parametrize("chunk", [None, 4])
def test_chunks_make_the_same_posterior(chunk):
    net, params, operator, (outputs, loss) = network()
    chunked = curvature.gauss_newton(outputs, loss, params, (X, LABELS), chunk=chunk)
    pair = [
        laplace.predict(laplace.posterior(o, scale=12.0, prior_precision=PRIOR), net.apply, X[:2]).covariance
        for o in (operator, chunked)
    ]
    np.testing.assert_allclose(*pair, rtol=1e-9)
