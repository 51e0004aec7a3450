"""Densely connected networks against lists that grow in NumPy, and derivatives by finite differences."""

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


def test_state_gradients_are_finite_differences(key):
    net, x = build(), inputs()
    params = net.init(key, x)
    zero = core.zero_probes(net, params, x)
    directions = [jnp.cos(jnp.arange(p.size, dtype=p.dtype)).reshape(p.shape) for p in zero]

    @jax.jit
    def loss(s):
        last = net.states(params, x, [s * d for d in directions])[-1][-1]
        return jnp.sum(net.readout(params, last) ** 2)

    found = core.state_gradients(net, params, x, lambda outputs: jnp.sum(outputs**2))
    slope = sum(jnp.sum(g * d) for g, d in zip(found, directions, strict=True))
    e = float(jnp.finfo(WIDEST).eps) ** (1 / 3)
    assert abs(slope - (loss(e) - loss(-e)) / (2 * e)) < 1000 * e**2 * loss(0.0)


def test_gradient_is_a_finite_difference(key):
    net, x = build(), inputs()
    params = net.init(key, x)
    direction = jax.tree.map(lambda leaf: jnp.cos(jnp.arange(leaf.size, dtype=leaf.dtype)).reshape(leaf.shape), params)

    @jax.jit
    def loss(s):
        return jnp.sum(net.apply(jax.tree.map(lambda p, d: p + s * d, params, direction), x) ** 2)

    slope = jax.jit(jax.grad(loss))(0.0)
    e = float(jnp.finfo(WIDEST).eps) ** (1 / 3)
    assert abs(slope - (loss(e) - loss(-e)) / (2 * e)) < 1000 * e**2 * loss(0.0)


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


def dtypes(net, key, x):
    params = jax.eval_shape(net.init, key, x)
    return {leaf.dtype for leaf in jax.tree.leaves(params)}, jax.eval_shape(net.apply, params, x).dtype


def test_parameters_follow_the_input_unless_told_otherwise(key):
    for dtype in (jnp.bfloat16, jnp.float32):
        assert dtypes(build(), key, inputs().astype(dtype)) == ({jnp.dtype(dtype)}, dtype)
    told = build(dtype=jnp.float32)
    assert dtypes(told, key, inputs().astype(jnp.bfloat16)) == ({jnp.dtype(jnp.float32)}, jnp.float32)


def count(jaxpr):
    inner = [p for e in jaxpr.eqns for p in e.params.values() if hasattr(p, "eqns") or hasattr(p, "jaxpr")]
    return len(jaxpr.eqns) + sum(count(getattr(p, "jaxpr", p)) for p in inner)


def test_depth_100_is_the_program_of_depth_10(key):
    x, sizes = inputs(), []
    for depth in (10, 100):
        net = build(depth=depth)
        params = jax.eval_shape(net.init, key, x)
        program = jax.make_jaxpr(jax.grad(lambda p, net=net: net.apply(p, x).sum()))(params)
        sizes.append((count(program.jaxpr), count(jax.make_jaxpr(net.init)(key, x).jaxpr)))
    assert sizes[0] == sizes[1]


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


def test_bad_inputs_are_named(key):
    net, x = build(), inputs()
    params = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), jax.eval_shape(net.init, key, x))
    with pytest.raises(ValueError, match=r"x must have shape \(any, 6\); got \(3, 4\)"):
        net.apply(params, inputs(d=4))
    with pytest.raises(ValueError, match=r"x must have 2 axes; got shape \(6,\)"):
        net.init(key, x[0])
    with pytest.raises(TypeError, match="key .*got 0"):
        net.init(0, x)
    with pytest.raises(ValueError, match="probes .*3 stretches; got 1"):
        net.states(params, x, (x,))
