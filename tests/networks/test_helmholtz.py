"""Helmholtz machines against sums over all causes and all dreams in NumPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numdl.networks import helmholtz
from numdl.statistics import agreement


def machine(v=3, h=2):
    random = np.random.default_rng(0)
    shapes = {"prior": (h,), "visible": (v,), "weights": (h, v)}
    draw = lambda shape: jnp.asarray(random.standard_normal(shape))  # noqa: E731
    return {
        "generative": {name: draw(shape) for name, shape in shapes.items()},
        "recognition": {"hidden": draw((h,)), "weights": draw((v, h))},
    }


def rows(n):
    return np.array(list(itertools.product((0.0, 1.0), repeat=n)))


def law(logits, units):
    p = 1 / (1 + np.exp(-logits))
    return np.prod(np.where(units == 1, p, 1 - p), axis=-1)


def tables(params):
    """p(h, x) and q(h | x), both [h, x]."""
    made, guess = (jax.tree.map(np.asarray, params[name]) for name in ("generative", "recognition"))
    hs, xs = rows(len(made["prior"])), rows(len(made["visible"]))
    p = law(made["prior"], hs)[:, None] * law((made["visible"] + hs @ made["weights"])[:, None], xs[None])
    return p, law((guess["hidden"] + xs @ guess["weights"])[None], hs[:, None])


def test_likelihood_and_bound_are_sums_over_causes():
    params = machine()
    p, q = tables(params)
    found = helmholtz.evidence(params, jnp.asarray(rows(3)))
    np.testing.assert_allclose(found.likelihood, np.log(p.sum(axis=0)), rtol=1e-5)
    np.testing.assert_allclose(found.bound, (q * np.log(p / q)).sum(axis=0), rtol=1e-5)
    assert (found.bound <= found.likelihood).all()


@pytest.mark.slow
def test_the_phases_have_their_means():
    params, x = machine(), jnp.asarray(rows(3)[[1, 6]])
    draws = jax.vmap(lambda key: helmholtz.wake_sleep(key, params, x))(jax.random.split(jax.random.key(0), 4000))
    bound = jax.grad(lambda params: -jnp.mean(helmholtz.evidence(params, x).bound))(params)["generative"]
    for name, exact in bound.items():
        assert np.abs(agreement(exact, np.asarray(draws["generative"][name])).z).max() < 5.5, name
    p, _ = tables(params)
    bias, weights = (np.asarray(params["recognition"][name]) for name in ("hidden", "weights"))
    guess = 1 / (1 + np.exp(-bias - rows(3) @ weights))
    error = p[..., None] * (guess[None] - rows(2)[:, None])  # -d ln q / d logits, weighted by the law of dreams
    assert np.abs(agreement(error.sum(axis=(0, 1)), np.asarray(draws["recognition"]["hidden"])).z).max() < 5.5
    weights = np.einsum("hxu,xv->vu", error, rows(3))
    assert np.abs(agreement(weights, np.asarray(draws["recognition"]["weights"])).z).max() < 5.5


def test_dreams_have_the_law_of_the_generative_net():
    params, count = machine(), 20_000
    found = np.asarray(helmholtz.dream(jax.random.key(1), params, count=count))
    exact = tables(params)[0].sum(axis=0)
    counts = np.bincount((found @ [4, 2, 1]).astype(int), minlength=8) / count
    assert np.abs((counts - exact) / np.sqrt(exact * (1 - exact) / count)).max() < 5


def test_too_many_causes_are_refused():
    params = helmholtz.init(jax.random.key(0), visible=2, hidden=17, entry_variance=0.1)
    with pytest.raises(ValueError, match="at most 16"):
        helmholtz.evidence(params, np.zeros((1, 2)))
