"""Densely connected networks against lists that grow in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numdl import activations
from numdl.networks import concatenated, core

pytestmark = pytest.mark.float32
WIDEST = jnp.zeros(()).dtype
states = jax.jit(lambda net, *arguments: net.states(*arguments))
apply = jax.jit(lambda net, *arguments: net.apply(*arguments))
SIZES = {"width": 4, "growth": 3, "depth": 5, "outputs": 2}


def build(**more):
    # A sigmoid of 0 is not 0: features that are not there yet must not count.
    physics = {"activation": activations.sigmoid, "weight_variance": 1.5, "bias_variance": 0.2}
    return concatenated.network(**SIZES | physics | more)


def inputs(n=3, d=6, dtype=WIDEST):
    return jax.random.normal(jax.random.key(7), (n, d), dtype)


def wide(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def by_hand(params, x):
    """The features of every layer in a growing list, and the outputs, in float64."""
    params = wide(params)
    features = [wide(x) @ params["first"]["kernel"] + params["first"]["bias"]]
    for kernel, bias in zip(params["layers"]["kernel"], params["layers"]["bias"], strict=True):
        seen = 1 / (1 + np.exp(-np.concatenate(features, axis=1)))
        features.append(seen @ kernel[: seen.shape[1]] + bias)
    seen = 1 / (1 + np.exp(-np.concatenate(features, axis=1)))
    return features, seen @ params["readout"]["kernel"] + params["readout"]["bias"]


def close(ours, expected, rounding=100):
    np.testing.assert_allclose(ours, expected, atol=rounding * float(jnp.finfo(ours.dtype).eps))


@pytest.mark.parametrize("depth", [1, 5])
def test_states_and_outputs_are_those_of_a_growing_list(key, depth):
    net, x = build(depth=depth), inputs()
    params = net.init(key, x)
    features, outputs = by_hand(params, x)
    first, stretch, everything = states(net, params, x)
    assert stretch.shape == (depth, 3, 3)
    close(first[0], features[0])
    close(stretch, np.stack(features[1:]))
    assert everything.shape == (1, 3, 4 + 3 * depth)
    close(everything[0], np.concatenate(features, axis=1))
    close(apply(net, params, x), outputs)


def test_kernels_are_zero_where_nothing_is_read_and_get_no_gradient(key):
    net, x = build(), inputs()
    params = net.init(key, x)
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(net.apply(p, x) ** 2)))(params)["layers"]["kernel"]
    read = np.arange(16)[None, :, None] < 4 + 3 * np.arange(5)[:, None, None]
    read = np.broadcast_to(read, gradient.shape)
    for leaf in (params["layers"]["kernel"], gradient):
        assert leaf.shape == (5, 16, 3)
        np.testing.assert_array_equal(np.asarray(leaf != 0), read)
    count = sum(leaf.size for leaf in jax.tree.leaves(params)) - np.count_nonzero(~read)
    assert concatenated.parameter_count(params) == count
    spoilt = {**params["layers"], "kernel": jnp.where(jnp.asarray(read), params["layers"]["kernel"], 7.0)}
    close(apply(net, {**params, "layers": spoilt}, x), apply(net, params, x))


def test_probes_are_added_and_flow_on(key):
    net, x = build(), inputs()
    params = net.init(key, x)
    clean, zero = states(net, params, x), core.zero_probes(net, params, x)
    probes = (zero[0].at[0].set(0.25), zero[1].at[2].set(0.5), zero[2].at[0].set(0.125))
    probed = states(net, params, x, probes)
    close(probed[0], clean[0] + 0.25)
    # A constant probe is a greater bias.
    shifted = {
        **params,
        "first": {**params["first"], "bias": params["first"]["bias"] + 0.25},
        "layers": {**params["layers"], "bias": params["layers"]["bias"].at[2].add(0.5)},
    }
    _, features, everything = states(net, shifted, x)
    close(probed[1], features)
    close(probed[2], everything + 0.125)


def z_of_variance(samples, variance):
    samples = np.asarray(samples, np.float64).ravel()
    return abs(np.mean(samples**2) - variance) / (variance * np.sqrt(2 / samples.size))


def test_every_layer_has_the_variance_of_its_own_fan_in(key):
    net, x = build(width=40, growth=30, depth=4), inputs(d=50)
    params = net.init(key, x)
    assert z_of_variance(params["first"]["kernel"], 1.5 / 50) < 6
    for n, kernel in enumerate(params["layers"]["kernel"]):
        filled = 40 + 30 * n
        assert z_of_variance(kernel[:filled], 1.5 / filled) < 6
    assert z_of_variance(params["layers"]["bias"], 0.2) < 6
    assert z_of_variance(params["readout"]["kernel"], 1.5 / 160) < 6
    one, two = np.asarray(params["layers"]["kernel"][:2, :40], np.float64)
    assert abs(np.mean(one * two)) < 6 * 1.5 / np.sqrt(40 * 70) / np.sqrt(one.size)


@pytest.mark.parametrize(
    "more, error, message",
    [
        ({"width": 0}, ValueError, "width .*got 0"),
        ({"growth": 0}, ValueError, "growth .*got 0"),
        ({"depth": 0}, ValueError, "depth .*got 0"),
        ({"outputs": 2.0}, TypeError, "outputs .*got 2.0"),
        ({"activation": "tanh"}, TypeError, "activation .*'tanh'"),
        ({"weight_variance": -1.0}, ValueError, "weight_variance .*-1"),
        ({"bias_variance": -1.0}, ValueError, "bias_variance .*-1"),
        ({"dtype": jnp.int32}, TypeError, "dtype .*int32"),
    ],
)
def test_bad_settings_are_named(more, error, message):
    with pytest.raises(error, match=message):
        build(**more)
