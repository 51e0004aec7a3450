"""Mean-field variational Bayes against linear regression, whose best factorized Gaussian is known."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from numdl.optimize import mean_field, train
from numdl.statistics import z_limit

RANDOM = np.random.default_rng(1)
X, Y = RANDOM.standard_normal((20, 3)), RANDOM.standard_normal(20)
NOISE, PRIOR = 0.5, 1.5


def likelihood(params, batch):
    """ln p(y | x, w), weights in two leaves."""
    x, y = batch
    w = jnp.concatenate([params["w"], params["v"][None]])
    return -jnp.sum((y - x @ w) ** 2) / (2 * NOISE) - len(y) * jnp.log(2 * jnp.pi * NOISE) / 2


def exact(mean, variance):
    """The bound of a factorized Gaussian: the mean of a quadratic, and the divergence term by term."""
    misfit = np.sum((Y - X @ mean) ** 2) + np.sum(X**2 @ variance)
    divergence = sum(np.log(1 / np.sqrt(PRIOR * v)) + PRIOR * (v + m**2) / 2 - 0.5 for m, v in zip(mean, variance))
    return -misfit / (2 * NOISE) - 10 * np.log(2 * np.pi * NOISE) - divergence


def made(mean, variance):
    """q of these numbers, an integer leaf beside them."""
    params = {"w": jnp.asarray(mean[:2]), "v": jnp.asarray(mean[2]), "n": jnp.arange(2)}
    spread = {"w": jnp.log(variance[:2]), "v": jnp.log(variance[2]), "n": None}
    return mean_field.MeanField(params, spread)


def test_the_bound_is_that_of_a_quadratic():
    mean, variance = np.array([0.3, -1.0, 0.5]), np.array([0.2, 0.05, 0.4])
    q = made(mean, variance)
    keys = jax.random.split(jax.random.key(0), 50)
    bound = jax.jit(lambda key: mean_field.evidence(key, likelihood, q, (X, Y), prior_precision=PRIOR, draws=40))
    values = np.array([bound(key) for key in keys])
    assert abs(values.mean() - exact(mean, variance)) < z_limit(10) * values.std(ddof=1) / 50**0.5
    assert values.std() < 5


def test_training_finds_the_best_factorized_gaussian():
    precision = X.T @ X / NOISE + PRIOR * np.eye(3)
    loss = lambda q, key: -mean_field.evidence(key, likelihood, q, (X, Y), prior_precision=PRIOR, draws=20)  # noqa: E731
    q = mean_field.start({"w": np.zeros(2), "v": np.zeros(()), "n": np.arange(2)}, variance=0.01)
    rate = optax.cosine_decay_schedule(0.05, 1500)
    q, _ = train.descend(loss, q, optax.adam(rate), jax.random.split(jax.random.key(3), 1500))
    mean = np.append(q.mean["w"], q.mean["v"])
    variance = np.exp(np.append(q.log_variance["w"], q.log_variance["v"]))
    best = np.linalg.solve(precision, X.T @ Y / NOISE)
    np.testing.assert_allclose(mean, best, atol=0.01)
    np.testing.assert_allclose(variance, 1 / np.diag(precision), rtol=0.1)
    np.testing.assert_array_equal(q.mean["n"], [0, 1])
    # What a factorized Gaussian lacks is the divergence of the best one from the posterior
    marginal = X @ X.T / PRIOR + NOISE * np.eye(20)
    whole = -(Y @ np.linalg.solve(marginal, Y) + np.linalg.slogdet(2 * np.pi * marginal)[1]) / 2
    gap = (np.sum(np.log(np.diag(precision))) - np.linalg.slogdet(precision)[1]) / 2
    np.testing.assert_allclose(exact(best, 1 / np.diag(precision)), whole - gap, rtol=1e-9)


def test_draws_have_the_moments_and_keep_what_does_not_move():
    mean, variance = np.array([0.3, -1.0, 0.5]), np.array([0.2, 0.05, 0.4])
    drawn = mean_field.draw(jax.random.key(2), made(mean, variance), draws=2000)
    rows = np.concatenate([drawn["w"], drawn["v"][:, None]], axis=1)
    z = (rows - mean[None]) / np.sqrt(variance)[None]
    assert np.abs(z.mean(axis=0)).max() < z_limit(10) / 2000**0.5
    assert np.abs((z**2).mean(axis=0) - 1).max() < z_limit(10) * (2 / 2000) ** 0.5
    np.testing.assert_array_equal(drawn["n"], np.tile(np.arange(2), (2000, 1)))


def test_the_prior_has_no_divergence_from_itself():
    q = made(np.zeros(3), np.full(3, 1 / PRIOR))
    np.testing.assert_allclose(mean_field.divergence(q, prior_precision=PRIOR), 0.0, atol=1e-12)


def test_a_spread_of_another_form_is_refused():
    q = mean_field.start({"w": np.zeros(2)}, variance=1.0)
    wrong = mean_field.MeanField(q.mean, {"w": np.zeros(3)})
    with pytest.raises(ValueError, match=r"posterior.log_variance must have .* got \(3,\)"):
        mean_field.draw(jax.random.key(0), wrong, draws=1)
