"""Dense networks against a plain NumPy loop, and their laws at initialization."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numdl.networks import dense, initializers

pytestmark = pytest.mark.float32

WIDTHS = (5, 8, 8, 8, 6, 6, 4, 3)
SHORT = (5, 8, 8, 3)


def build(widths=WIDTHS, *, weight_variance=2.0, bias_variance=0.3, activation=jnp.tanh, **more):
    return dense.network(
        widths=widths, activation=activation, weight_variance=weight_variance, bias_variance=bias_variance, **more
    )


def inputs(key, n=7, d=5, dtype=jnp.float32):
    return jax.random.normal(key, (n, d), dtype)


def by_hand(params, x):
    """The states and outputs, one layer after the other in float64."""
    layers = [
        (np.asarray(kernel, np.float64), np.asarray(bias, np.float64))
        for stretch in params["hidden"]
        for kernel, bias in zip(stretch["kernel"], stretch["bias"], strict=True)
    ]
    y, states = np.asarray(x, np.float64), []
    for number, (kernel, bias) in enumerate(layers):
        y = (np.tanh(y) if number else y) @ kernel + bias
        states.append(y)
    last = params["readout"]
    features = np.tanh(y) if layers else y
    return states, features @ np.asarray(last["kernel"], np.float64) + np.asarray(last["bias"], np.float64)


@pytest.mark.parametrize("widths", [WIDTHS, (5, 3), (5, 4, 3), (5, 5, 5, 3), (5, *[6] * 9, 3)])
def test_states_and_outputs_are_those_of_a_plain_loop(key, widths):
    net, x = build(widths), inputs(key)
    params = net.init(key, x)
    states, outputs = by_hand(params, x)
    computed = [layer for stretch in net.states(params, x) for layer in stretch]
    assert len(computed) == len(states) == len(widths) - 2
    for ours, expected in zip(computed, states, strict=True):
        np.testing.assert_allclose(ours, expected, atol=300 * jnp.finfo(x.dtype).eps)
    np.testing.assert_allclose(net.apply(params, x), outputs, atol=300 * jnp.finfo(x.dtype).eps)


def test_equal_widths_share_a_leaf(key):
    params = build().init(key, inputs(key))
    shapes = [stretch["kernel"].shape for stretch in params["hidden"]]
    assert shapes == [(1, 5, 8), (2, 8, 8), (1, 8, 6), (1, 6, 6), (1, 6, 4)]
    assert [stretch["bias"].shape for stretch in params["hidden"]] == [(1, 8), (2, 8), (1, 6), (1, 6), (1, 4)]
    assert params["readout"]["kernel"].shape == (4, 3)


def test_logistic_regression_has_no_stretch(key):
    net, x = build((5, 3)), inputs(key)
    params = net.init(key, x)
    assert params["hidden"] == ()
    assert net.states(params, x) == ()


def test_a_network_reads_its_depth_from_the_parameters(key):
    net, x = build((5, *[6] * 4, 3)), inputs(key)
    params = net.init(key, x)
    twice = jax.tree.map(lambda leaf: jnp.repeat(leaf, 2, axis=0), params["hidden"][1])
    deeper = {**params, "hidden": (params["hidden"][0], twice)}
    np.testing.assert_allclose(net.apply(deeper, x), by_hand(deeper, x)[1], atol=1e-5)


@pytest.mark.parametrize("widths", [WIDTHS, (5, *[6] * 9, 3)])
def test_probes_are_added_and_flow_on(key, widths):
    net, x = build(widths), inputs(key)
    params = net.init(key, x)
    clean = net.states(params, x)
    probes = [jnp.zeros(stretch.shape, stretch.dtype) for stretch in clean]
    probes[1] = probes[1].at[0].set(1.0)
    probed = net.states(params, x, probes)
    np.testing.assert_array_equal(probed[0], clean[0])
    np.testing.assert_allclose(probed[1][0], clean[1][0] + 1, rtol=1e-6)
    # A unit probe is a bias that is greater by one.
    hidden = [dict(stretch) for stretch in params["hidden"]]
    hidden[1]["bias"] = hidden[1]["bias"].at[0].add(1.0)
    shifted = net.states({**params, "hidden": tuple(hidden)}, x)
    for ours, expected in zip(probed, shifted, strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-5)


def z_of_variance(samples, variance, excess=0.0):
    samples = np.asarray(samples, np.float64).ravel()
    return abs(np.mean(samples**2) - variance) / (variance * np.sqrt((2 + excess) / samples.size))


def test_variances_at_initialization(key):
    x = inputs(key, d=300)
    net = build((300, 200, 200, 200, 100), readout_weight_variance=0.5, readout_bias_variance=4.0)
    params = net.init(key, x)
    first, second = params["hidden"]
    assert z_of_variance(first["kernel"], 2.0 / 300) < 6
    assert z_of_variance(second["kernel"], 2.0 / 200) < 6
    assert z_of_variance(second["bias"], 0.3) < 6
    assert z_of_variance(params["readout"]["kernel"], 0.5 / 200) < 6
    assert z_of_variance(params["readout"]["bias"], 4.0) < 6
    same = build((300, 200, 200, 200, 100)).init(key, x)["readout"]
    assert z_of_variance(same["kernel"], 2.0 / 200) < 6
    assert z_of_variance(same["bias"], 0.3) < 6


def test_layers_are_independent(key):
    params = build((5, *[40] * 3, 3)).init(key, inputs(key))
    one, two = np.asarray(params["hidden"][1]["kernel"], np.float64)
    assert abs(np.mean(one * two)) < 6 * (2.0 / 40) / 40
    assert not np.array_equal(one, two)


def test_law_and_initializer_are_used(key):
    signs = build(SHORT, law="rademacher").init(key, inputs(key))["hidden"][1]["kernel"]
    np.testing.assert_allclose(np.abs(signs), np.sqrt(2.0 / 8), rtol=1e-6)
    net = build(SHORT, weight_variance=None, initializer=initializers.orthogonal(1.0))
    square = np.asarray(net.init(key, inputs(key))["hidden"][1]["kernel"][0], np.float64)
    np.testing.assert_allclose(square.T @ square, np.eye(8), atol=1e-5)


def test_variances_are_data_also_traced_ones(key):
    x, traces = inputs(key), []

    def counted(z):
        traces.append(1)
        return jnp.tanh(z)

    @jax.jit
    def outputs(net, x):
        return net.apply(net.init(key, x), x)

    outputs(build(SHORT, activation=counted), x)
    once = len(traces)
    strong = outputs(build(SHORT, activation=counted, weight_variance=3.0, bias_variance=0.1), x)
    assert len(traces) == once > 0
    swept = jax.vmap(lambda v: outputs(build(SHORT, activation=counted, weight_variance=v, bias_variance=0.1), x))(
        jnp.array([1.0, 3.0], jnp.float32)
    )
    np.testing.assert_allclose(swept[1], strong, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "more, error, message",
    [
        ({"widths": (5,)}, ValueError, r"widths .*at least 2.*got \(5,\)"),
        ({"widths": (5, 0, 3)}, ValueError, r"widths\[1\] .*got 0"),
        ({"activation": "tanh"}, TypeError, "activation .*got 'tanh'"),
        ({"weight_variance": -2.0}, ValueError, "weight_variance .*got -2"),
        ({"weight_variance": None}, ValueError, "weight_variance and initializer .*got neither"),
        ({"initializer": initializers.he_normal}, ValueError, "exactly one .*weight_variance=2.0"),
        ({"weight_variance": None, "initializer": jnp.ones}, TypeError, "initializer must be an Initializer"),
        (
            {"weight_variance": None, "initializer": initializers.he_normal, "law": "uniform"},
            ValueError,
            "law .*'uniform'",
        ),
        ({"law": "cauchy"}, ValueError, "law .*got 'cauchy'"),
        ({"bias_variance": np.nan}, ValueError, "bias_variance .*got nan"),
        ({"readout_weight_variance": -1.0}, ValueError, "readout_weight_variance .*got -1"),
        ({"readout_bias_variance": -1.0}, ValueError, "readout_bias_variance .*got -1"),
        ({"dtype": jnp.int32}, TypeError, "dtype .*got int32"),
    ],
)
def test_bad_settings_are_named(more, error, message):
    with pytest.raises(error, match=message):
        build(**more)


def test_bad_inputs_are_named(key):
    net, x = build(), inputs(key)
    params = net.init(key, x)
    for call in (net.apply, net.states):
        with pytest.raises(ValueError, match=r"x must have shape \(N, 5\), by params; got \(2, 4\)"):
            call(params, jnp.zeros((2, 4)))
    with pytest.raises(ValueError, match=r"x must have shape \(N, 5\), by widths; got \(2, 4\)"):
        net.init(key, jnp.zeros((2, 4)))
    with pytest.raises(ValueError, match=r"x .*\(N, 5\).*got \(5,\)"):
        net.apply(params, jnp.zeros(5))
    with pytest.raises(TypeError, match=r"x .*int"):
        net.init(key, jnp.zeros((2, 5), jnp.int32))
    with pytest.raises(TypeError, match=r"key .*got 0"):
        net.init(0, x)
    with pytest.raises(ValueError, match=r"probes .*5 stretches; got 1"):
        net.states(params, x, (jnp.zeros((1, 7, 8)),))
