"""Dropout's values, mean and variance by their definition; without dropout it is the network."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numdl import activations
from numdl.networks import dense, dropout
from numdl.statistics import z_limit

PHYSICS = {"activation": activations.tanh, "weight_variance": 1.0, "bias_variance": 0.1}


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.float32])
@pytest.mark.parametrize("q", [0.25, 0.9])
def test_kept_values_are_scaled_and_the_share_is_right(dtype, q):
    x = jnp.linspace(0.5, 2.0, 20000).astype(dtype).reshape(200, 100)
    found = dropout.drop(jax.random.key(0), x, keep_probability=q)
    assert found.dtype == dtype
    kept = np.asarray(found) != 0
    np.testing.assert_allclose(np.asarray(found)[kept], np.asarray(x / jnp.asarray(q, dtype))[kept], rtol=1e-3)
    assert abs(kept.mean() - q) < z_limit(10) * (q * (1 - q) / 20000) ** 0.5


def test_the_mean_over_all_masks_is_the_unit_exactly():
    q, x = 0.3, np.array([1.0, -2.0, 0.5, 3.0])
    kept = dropout.drop(jax.random.key(0), jnp.asarray(np.tile(x, (200, 1))), keep_probability=q)
    values = np.array([np.unique(column[column != 0]).item() for column in np.asarray(kept).T])
    masks = np.array(list(itertools.product([0, 1], repeat=4)))
    chance = (q**masks * (1 - q) ** (1 - masks)).prod(axis=1)
    np.testing.assert_allclose(chance @ (masks * values[None]), x, rtol=1e-12)
    np.testing.assert_allclose(chance @ (masks * values[None] - x[None]) ** 2, (1 - q) / q * x**2, rtol=1e-12)


@pytest.mark.parametrize("widths", [(4, 3), (4, 6, 3), (4, 6, 6, 6, 3), (4, 6, 5, 3)])
def test_with_all_units_kept_it_is_the_network(widths):
    net, x = dense.network(widths=widths, **PHYSICS), np.linspace(-1, 1, 20).reshape(5, 4)
    params = net.init(jax.random.key(1), x)
    found = dropout.outputs(jax.random.key(0), params, x, activation=activations.tanh, keep_probability=1.0)
    np.testing.assert_allclose(found, net.apply(params, x), rtol=1e-12)


def test_layers_of_equal_width_have_masks_of_their_own():
    net, x = dense.network(widths=(4, 50, 50, 50, 50), **PHYSICS), np.ones((2, 4))
    identity = {"kernel": jnp.eye(50)[None].repeat(2, axis=0), "bias": jnp.zeros((2, 50))}
    params = net.init(jax.random.key(1), x)
    params = {"hidden": (params["hidden"][0], identity), "readout": {"kernel": jnp.eye(50), "bias": jnp.zeros(50)}}
    found = dropout.outputs(jax.random.key(0), params, x, activation=lambda y: y, keep_probability=0.5)
    kept = np.asarray(found) != 0  # one in eight
    assert abs(kept.mean() - 0.125) < z_limit(10) * (0.125 * 0.875 / 100) ** 0.5
    assert not np.array_equal(kept[0], kept[1])
    assert kept.mean() < 0.3


def test_linear_networks_have_their_outputs_in_the_mean():
    net, x = dense.network(widths=(4, 30, 3), **PHYSICS), np.linspace(-1, 1, 8).reshape(2, 4)
    params = net.init(jax.random.key(1), x)
    one = lambda key: dropout.outputs(key, params, x, activation=lambda y: y, keep_probability=0.7)  # noqa: E731
    rows = np.asarray(jax.vmap(one)(jax.random.split(jax.random.key(2), 2000)))
    exact = (x @ np.asarray(params["hidden"][0]["kernel"][0]) + np.asarray(params["hidden"][0]["bias"])) @ np.asarray(
        params["readout"]["kernel"]
    ) + np.asarray(params["readout"]["bias"])[None]
    z = (rows.mean(axis=0) - exact) / (rows.std(axis=0) / 2000**0.5)
    assert np.abs(z).max() < z_limit(50)


@pytest.mark.parametrize("widths", [(4, 6, 3), (4, 6, 6, 6, 3), (4, 6, 5, 3)])
def test_states_without_dropout_are_the_networks(widths):
    net, x = dense.network(widths=widths, **PHYSICS), np.linspace(-1, 1, 20).reshape(5, 4)
    params = net.init(jax.random.key(1), x)
    found = dropout.states(jax.random.key(0), params, x, activation=activations.tanh, keep_probability=1.0)
    expected = net.states(params, x)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)


def test_states_are_those_of_the_pass_with_this_key_and_rows_have_masks_of_their_own():
    net, x = dense.network(widths=(4, 7, 7, 5, 3), **PHYSICS), np.ones((2, 4))
    params, settings = net.init(jax.random.key(1), x), {"activation": activations.tanh, "keep_probability": 0.5}
    first, second, third = dropout.states(jax.random.key(3), params, x, **settings)
    assert (first.shape, second.shape, third.shape) == ((1, 2, 7), (1, 2, 7), (1, 2, 5))
    np.testing.assert_array_equal(first[0, 0], first[0, 1])
    assert np.abs(second[0, 0] - second[0, 1]).max() > 0.01
    kernel, bias = (np.asarray(params["readout"][name]) for name in ("kernel", "bias"))
    kept = 2 * np.tanh(np.asarray(third[0]))
    masks = np.array(list(itertools.product([0, 1], repeat=5)))
    outputs = dropout.outputs(jax.random.key(3), params, x, **settings)
    for row, output in zip(kept, np.asarray(outputs), strict=True):
        assert np.abs(masks * row @ kernel + bias - output).max(axis=1).min() < 1e-5
