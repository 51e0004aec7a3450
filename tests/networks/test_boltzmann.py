"""Restricted Boltzmann machines against sums over all states of both layers in NumPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numdl.networks import boltzmann
from tests.selection import some_fast


def machine(v, h, seed=0):
    random = np.random.default_rng(seed)
    shapes = {"visible": (v,), "hidden": (h,), "weights": (v, h)}
    return {name: jnp.asarray(random.standard_normal(shape)) for name, shape in shapes.items()}


def joint(params):
    """(visible states, hidden states, p [v, h]) by enumeration."""
    b, c, w = (np.asarray(params[name], float) for name in ("visible", "hidden", "weights"))
    vs, hs = (np.array(list(itertools.product((0.0, 1.0), repeat=len(part)))) for part in (b, c))
    p = np.exp((vs @ b)[:, None] + (hs @ c)[None] + vs @ w @ hs.T)
    return vs, hs, p / p.sum()


@pytest.mark.parametrize("v, h", some_fast([(4, 3), (2, 5), (1, 1)], fast=(0,)))
def test_likelihood_and_its_gradient_are_sums_over_states(v, h):
    params = machine(v, h)
    vs, hs, p = joint(params)
    np.testing.assert_allclose(boltzmann.states(v), vs)
    np.testing.assert_allclose(np.exp(boltzmann.log_likelihood(params, vs)), p.sum(axis=1), rtol=1e-5)
    x = vs[[0, -1, -1]]
    found = jax.grad(lambda params: jnp.mean(boltzmann.log_likelihood(params, x)))(params)
    given = [p[[0, -1, -1][i]] / p[[0, -1, -1][i]].sum() for i in range(3)]
    data = sum(np.outer(row, g @ hs) for row, g in zip(x, given, strict=True)) / 3
    np.testing.assert_allclose(found["weights"], data - vs.T @ p @ hs, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["visible"], x.mean(axis=0) - p.sum(axis=1) @ vs, rtol=1e-4, atol=1e-6)


def test_the_chain_has_the_conditionals_and_leaves_the_law_alone():
    params = machine(3, 4)
    _, _, p = joint(params)
    exact = (p / p.sum(axis=1, keepdims=True)) @ (p / p.sum(axis=0)).T
    found = np.asarray(boltzmann.transition(params))
    np.testing.assert_allclose(found, exact, rtol=1e-5)
    np.testing.assert_allclose(p.sum(axis=1) @ found, p.sum(axis=1), rtol=1e-5)


def test_chains_and_contrastive_divergence_have_the_law_of_the_chain():
    params, draws = machine(3, 2), 40_000
    vs, _, _ = joint(params)
    start = jnp.broadcast_to(jnp.asarray(vs[5]), (draws, 3))
    found = np.asarray(boltzmann.gibbs(jax.random.key(0), params, start, steps=2))
    law = np.linalg.matrix_power(np.asarray(boltzmann.transition(params), float), 2)[5]
    counts = np.bincount((found @ [4, 2, 1]).astype(int), minlength=8) / draws
    assert np.abs((counts - law) / np.sqrt(law * (1 - law) / draws)).max() < 5
    gradient = boltzmann.contrastive_divergence(jax.random.key(1), params, start, steps=2)
    exact = law @ vs - vs[5]
    assert np.abs(np.asarray(gradient["visible"]) - exact).max() < 5 * 0.5 / np.sqrt(draws)
    np.testing.assert_array_equal(boltzmann.gibbs(jax.random.key(0), params, start, steps=0), start)


def test_a_deep_belief_net_is_a_sum_over_its_middle_layer():
    lower, top = machine(4, 3), machine(3, 2, seed=1)
    vs, _, p = joint(lower)
    prior = joint(top)[2].sum(axis=1)
    found = boltzmann.deep_belief(lower, top, jnp.asarray(vs))
    exact = (p / p.sum(axis=0)) * prior
    np.testing.assert_allclose(found.likelihood, np.log(exact.sum(axis=1)), rtol=1e-5)
    q = p / p.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found.bound, (q * np.log(exact / q)).sum(axis=1), rtol=1e-5)
    turned = {"visible": lower["hidden"], "hidden": lower["visible"], "weights": lower["weights"].T}
    same = boltzmann.deep_belief(lower, turned, jnp.asarray(vs))
    np.testing.assert_allclose(same.bound, np.log(p.sum(axis=1)), rtol=1e-5)
    np.testing.assert_allclose(same.likelihood, same.bound, rtol=1e-5)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="v must"):
        boltzmann.free_energy(machine(3, 2), np.zeros((2, 4)))
    with pytest.raises(ValueError, match="at most 20"):
        boltzmann.log_likelihood(machine(21, 22), np.zeros((1, 21)))
    with pytest.raises(ValueError, match="at most 12"):
        boltzmann.transition(machine(13, 2))
