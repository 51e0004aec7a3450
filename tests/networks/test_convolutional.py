"""Convolutional networks against explicit loops in NumPy; shapes and counts of the published ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numdl.networks import convolutional, core, initializers
from numdl.networks.convolutional import Stage

pytestmark = pytest.mark.float32
WIDEST = jnp.zeros(()).dtype
# of pictures 8 x 7: a convolution alone, 6 x 5 are left; then two padded ones, one stretch
DEEP = (Stage(3, 3), Stage(3, 3, 1, "same"), Stage(3, 3, 1, "same"))
POOLED = (Stage(3, 3, 2, "same"), Stage(4, 2, 3))
states = jax.jit(lambda net, *arguments: net.states(*arguments))
apply = jax.jit(lambda net, *arguments: net.apply(*arguments))


def build(stages=POOLED, **more):
    physics = {"activation": jnp.tanh, "weight_variance": 1.5, "bias_variance": 0.2, "outputs": 2}
    return convolutional.network(**{"stages": stages} | physics | more)


def inputs(*shape, dtype=WIDEST):
    return jax.random.normal(jax.random.key(7), shape or (2, 8, 8, 2), dtype)


def close(ours, expected, rounding=200):
    np.testing.assert_allclose(ours, expected, atol=rounding * float(jnp.finfo(ours.dtype).eps))


def convolution(y, kernel, bias, padding):
    """One number at a time."""
    height, width, channels, outputs = kernel.shape
    if padding == "same":
        y = np.pad(y, ((0, 0), (height // 2,) * 2, (width // 2,) * 2, (0, 0)))
    z = np.empty((len(y), y.shape[1] - height + 1, y.shape[2] - width + 1, outputs))
    for n, i, j, o in np.ndindex(*z.shape):
        z[n, i, j, o] = bias[o]
        for a, b, c in np.ndindex(height, width, channels):
            z[n, i, j, o] += y[n, i + a, j + b, c] * kernel[a, b, c, o]
    return z


def pooling(y, size, reduce):
    n, height, width, channels = y.shape
    z = np.empty((n, height // size, width // size, channels))
    for i, j in np.ndindex(z.shape[1], z.shape[2]):
        z[:, i, j] = reduce(y[:, i * size : (i + 1) * size, j * size : (j + 1) * size], axis=(1, 2))
    return z


def by_hand(params, x, stages, reduce=np.mean):
    """All states and the outputs in float64."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    layers = [pair for stretch in params["layers"] for pair in zip(stretch["kernel"], stretch["bias"], strict=True)]
    y, found = np.asarray(x, np.float64), []
    for stage, (kernel, bias) in zip(stages, layers, strict=False):
        found.append(convolution(y, kernel, bias, stage.padding))
        y = pooling(np.tanh(found[-1]), stage.pool, reduce)
    y = y.reshape(len(y), -1)
    for kernel, bias in layers[len(stages) :]:
        found.append(y @ kernel + bias)
        y = np.tanh(found[-1])
    return found, y @ params["readout"]["kernel"] + params["readout"]["bias"]


CASES = {
    "average": (POOLED, (8, 8, 2), {"hidden": (5,)}, [(1, 2, 8, 8, 3), (1, 2, 3, 3, 4), (1, 2, 5)]),
    "max": (POOLED, (8, 8, 2), {"pooling": "max"}, [(1, 2, 8, 8, 3), (1, 2, 3, 3, 4)]),
    "stretches": (DEEP, (8, 7, 1), {"hidden": (4, 4, 4)}, [(1, 2, 6, 5, 3), (2, 2, 6, 5, 3), (1, 2, 4), (2, 2, 4)]),
}


@pytest.mark.parametrize("name", CASES)
def test_states_and_outputs_are_those_of_explicit_loops(key, name):
    stages, picture, more, shapes = CASES[name]
    net, x = build(stages, **more), inputs(2, *picture)
    params = net.init(key, x)
    expected, outputs = by_hand(params, x, stages, np.max if name == "max" else np.mean)
    found = states(net, params, x)
    assert [stretch.shape for stretch in found] == shapes
    layers = [layer for stretch in found for layer in stretch]
    for ours, theirs in zip(layers, expected, strict=True):
        close(ours, theirs)
    close(apply(net, params, x), outputs)


@functools.partial(jax.jit, static_argnames="padding")
def both(y, kernel, padding):
    """Our convolution and jax's own."""
    dimensions = ("NHWC", "HWIO", "NHWC")
    native = jax.lax.conv_general_dilated(y, kernel, (1, 1), padding.upper(), dimension_numbers=dimensions)
    return convolutional.convolve(y, kernel, padding=padding), native


@pytest.mark.parametrize(
    "columns, window, channels, padding",
    [(7, 3, 2, "valid"), (10, 5, 1, "valid"), (6, 3, 33, "valid"), (8, 3, 2, "same"), (7, 5, 2, "same")],
)
def test_convolve_is_the_convolution_whatever_the_strip(columns, window, channels, padding):
    width = columns + (window - 1) * (padding == "valid")
    z, native = both(inputs(2, window + 1, width, channels), inputs(window, window, channels, 3), padding)
    assert z.shape[2] == columns
    close(z, native, 500)


def test_probes_are_added_before_the_activation_and_flow_on(key):
    net, x = build(hidden=(5,)), inputs()
    params = net.init(key, x)
    zero = core.zero_probes(net, params, x)
    clean = states(net, params, x, zero)
    for ours, theirs in zip(clean, states(net, params, x), strict=True):
        close(ours, theirs)
    probed = states(net, params, x, (zero[0].at[0].set(0.25), zero[1].at[0].set(0.5), zero[2]))
    # A constant probe is a greater bias.
    layers = [dict(layer) for layer in params["layers"]]
    layers[0]["bias"] += 0.25
    layers[1]["bias"] += 0.5
    for ours, theirs in zip(probed, states(net, {**params, "layers": tuple(layers)}, x, zero), strict=True):
        close(ours, theirs)
    close(probed[0], clean[0] + 0.25)


@pytest.mark.parametrize("pooling", convolutional.POOLINGS)
def test_gradient_is_a_finite_difference(key, pooling):
    net, x = build(hidden=(5,), pooling=pooling), inputs()
    params = net.init(key, x)
    direction = jax.tree.map(lambda leaf: jnp.cos(jnp.arange(leaf.size, dtype=leaf.dtype)).reshape(leaf.shape), params)

    @jax.jit
    def loss(s):
        return jnp.sum(net.apply(jax.tree.map(lambda p, d: p + s * d, params, direction), x) ** 2)

    slope = jax.jit(jax.grad(loss))(0.0)
    e = float(jnp.finfo(WIDEST).eps) ** (1 / 3) / 10  # small: a maximum must not change its place
    assert abs(slope - (loss(e) - loss(-e)) / (2 * e)) < 1e5 * e**2 * loss(0.0)


def count_of(net, *picture):
    params = jax.eval_shape(net.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *picture), jnp.float32))
    return sum(leaf.size for leaf in jax.tree.leaves(params)), params


PHYSICS = {"activation": jnp.tanh, "weight_variance": 1.0, "bias_variance": 0.0}


@pytest.mark.parametrize(
    "net, picture, parameters, shapes",
    [
        (
            convolutional.lenet5(**PHYSICS),
            (28, 28, 1),
            156 + 2416 + 48120 + 10164 + 850,
            [(28, 28, 6), (10, 10, 16), (120,), (84,)],
        ),
        (
            convolutional.lenet5(padding="valid", **PHYSICS),
            (32, 32, 1),
            61706,
            [(28, 28, 6), (10, 10, 16), (120,), (84,)],
        ),
        (convolutional.lecun1990(**PHYSICS), (28, 28, 1), 104 + 1212 + 1930, [(24, 24, 4), (8, 8, 12)]),
    ],
)
def test_published_networks_have_their_shapes_and_counts(net, picture, parameters, shapes):
    count, params = count_of(net, *picture)
    assert count == parameters
    x = jax.ShapeDtypeStruct((3, *picture), jnp.float32)
    assert [stretch.shape for stretch in jax.eval_shape(net.states, params, x)] == [(1, 3, *s) for s in shapes]
    assert jax.eval_shape(net.apply, params, x).shape == (3, 10)


def z_of_variance(samples, variance):
    samples = np.asarray(samples, np.float64).ravel()
    return abs(np.mean(samples**2) - variance) / (variance * np.sqrt(2 / samples.size))


def test_variances_at_initialization(key):
    stages = (Stage(20, 3, 1, "same"), Stage(20, 3, 1, "same"), Stage(20, 3, 2, "same"))
    params = build(stages, hidden=(30,)).init(key, inputs(1, 4, 4, 2))
    first, second, dense = params["layers"]
    assert second["kernel"].shape == (2, 3, 3, 20, 20)
    assert z_of_variance(first["kernel"], 1.5 / 18) < 6
    assert z_of_variance(second["kernel"], 1.5 / 180) < 6
    assert z_of_variance(dense["kernel"], 1.5 / 80) < 6
    assert z_of_variance(params["readout"]["kernel"], 1.5 / 30) < 6
    biases = [np.ravel(leaf["bias"]) for leaf in (first, second, dense, params["readout"])]
    assert z_of_variance(np.concatenate(biases), 0.2) < 6
    one, two = np.asarray(second["kernel"], np.float64)
    assert abs(np.mean(one * two)) < 6 * (1.5 / 180) / np.sqrt(one.size)


@pytest.mark.parametrize(
    "window, padding, message",
    [
        ((2, 3), "same", r"kernel must have an odd height and width.*got \(2, 3\)"),
        ((5, 3), "valid", r"kernel must fit into .*\(4, 6\) of y; got \(5, 3\)"),
        ((3, 7), "valid", r"kernel must fit into .*\(4, 6\) of y; got \(3, 7\)"),
    ],
)
def test_a_window_that_does_not_fit_is_refused(window, padding, message):
    with pytest.raises(ValueError, match=message):
        convolutional.convolve(np.ones((1, 4, 6, 2)), np.ones((*window, 2, 1)), padding=padding)


def test_an_initializer_draws_all_kernels(key):
    signs = initializers.rademacher(0.25)
    params = build(weight_variance=None, initializer=signs, bias_variance=0.0).init(key, inputs())
    assert all(np.all(np.abs(layer["kernel"]) == 0.5) for layer in (*params["layers"], params["readout"]))
    assert all(np.all(layer["bias"] == 0.0) for layer in (*params["layers"], params["readout"]))


@pytest.mark.parametrize(
    "more, error, message",
    [
        ({"stages": ()}, ValueError, r"stages .*at least 1 Stage; got \(\)"),
        ({"stages": (6,)}, TypeError, r"stages\[0\] must be a Stage.*got 6"),
        ({"stages": (Stage(0, 3),)}, ValueError, r"stages\[0\].channels .*got 0"),
        ({"stages": (Stage(2, 3), Stage(2, 0))}, ValueError, r"stages\[1\].window .*got 0"),
        ({"stages": (Stage(2, 3, 0),)}, ValueError, r"stages\[0\].pool .*got 0"),
        ({"stages": (Stage(2, 3, 1, "full"),)}, ValueError, r"stages\[0\].padding .*'full'"),
        ({"stages": (Stage(2, 4, 1, "same"),)}, ValueError, r"stages\[0\].window must be odd.*got 4"),
        ({"hidden": (3, 0)}, ValueError, r"hidden\[1\] .*got 0"),
        ({"outputs": 0}, ValueError, "outputs .*got 0"),
        ({"pooling": "median"}, ValueError, "pooling .*'median'"),
        ({"activation": "tanh"}, TypeError, "activation .*'tanh'"),
        ({"weight_variance": -1.0}, ValueError, "weight_variance .*-1"),
        ({"weight_variance": None}, ValueError, "exactly one of weight_variance and initializer.*neither"),
        ({"initializer": initializers.he_normal}, ValueError, "exactly one of .*weight_variance=1.5"),
        ({"weight_variance": None, "initializer": jnp.ones}, TypeError, "initializer must be an Initializer"),
        ({"bias_variance": -1.0}, ValueError, "bias_variance .*-1"),
        ({"dtype": jnp.int32}, TypeError, "dtype .*int32"),
    ],
)
def test_bad_settings_are_named(more, error, message):
    with pytest.raises(error, match=message):
        build(**more)
    with pytest.raises(ValueError, match="padding .*'full'"):
        convolutional.lenet5(padding="full", **PHYSICS)


def test_bad_inputs_are_named(key):
    net, x = build(), inputs()
    params = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), jax.eval_shape(net.init, key, x))
    init = functools.partial(jax.eval_shape, net.init, key)
    with pytest.raises(ValueError, match=r"x must have 4 axes; got shape \(8, 8, 2\)"):
        init(x[0])
    with pytest.raises(ValueError, match=r"pool must divide .*\(7, 8\).*\(7, 8, 2\); got 2"):
        init(x[:, :7])
    with pytest.raises(ValueError, match=r"window must fit into the \(1, 1\).*got 2"):
        init(x[:, :2, :2])
    with pytest.raises(ValueError, match=r"x must be pictures .*\(3, 3, 2, 3\).*got \(2, 8, 8, 1\)"):
        net.apply(params, x[..., :1])
    with pytest.raises(ValueError, match=r"x must be pictures .*\(4, 2\).*got \(2, 14, 8, 2\)"):
        net.apply(params, inputs(2, 14, 8, 2))
    with pytest.raises(TypeError, match="key .*got 0"):
        net.init(0, x)
    with pytest.raises(ValueError, match="probes .*2 stretches; got 1"):
        net.states(params, x, (x,))
