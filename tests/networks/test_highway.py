"""Highway networks against a plain NumPy loop, and their limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numdl.networks import core, highway

pytestmark = pytest.mark.float32
WIDEST = jnp.zeros(()).dtype
states = jax.jit(lambda net, *arguments: net.states(*arguments))
apply = jax.jit(lambda net, *arguments: net.apply(*arguments))
SIZES = {"width": 6, "depth": 4, "outputs": 2}


def build(**more):
    physics = {"activation": jnp.tanh, "weight_variance": 1.5, "bias_variance": 0.2, "gate_bias": -1.0}
    return highway.network(**SIZES | physics | more)


def inputs(n=3, d=5, dtype=WIDEST):
    return jax.random.normal(jax.random.key(7), (n, d), dtype)


def by_hand(params, x):
    """States, gates and outputs, coordinate by coordinate in float64."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    y = np.asarray(x, np.float64) @ params["first"]["kernel"] + params["first"]["bias"]
    states, gates, stack = [y], [], params["layers"]
    for n in range(len(stack["bias"])):
        new, gate = np.empty_like(y), np.empty_like(y)
        for i, j in np.ndindex(*y.shape):
            h = np.tanh(y[i] @ stack["kernel"][n][:, j] + stack["bias"][n][j])
            gate[i, j] = 1 / (1 + np.exp(-(y[i] @ stack["gate_kernel"][n][:, j] + stack["gate_bias"][n][j])))
            new[i, j] = gate[i, j] * h + (1 - gate[i, j]) * y[i, j]
        y = new
        states.append(y)
        gates.append(gate)
    return states, gates, y @ params["readout"]["kernel"] + params["readout"]["bias"]


def close(ours, expected, rounding=100):
    np.testing.assert_allclose(ours, expected, atol=rounding * float(jnp.finfo(ours.dtype).eps))


@pytest.mark.parametrize("depth", [1, 4])
def test_states_gates_and_outputs_are_those_of_a_plain_loop(key, depth):
    net, x = build(depth=depth), inputs()
    params = net.init(key, x)
    expected, gates, outputs = by_hand(params, x)
    first, stretch = states(net, params, x)
    assert first.shape == (1, 3, 6)
    assert stretch.shape == (depth, 3, 6)
    close(jnp.concatenate([first, stretch]), np.stack(expected))
    close(apply(net, params, x), outputs)
    close(highway.gates(net, params, x), np.stack(gates))


@pytest.mark.parametrize("gate_bias, carries", [(-200.0, True), (200.0, False)])
def test_closed_gates_carry_and_open_gates_are_a_plain_network(key, gate_bias, carries):
    net, x = build(gate_bias=gate_bias), inputs()
    params = net.init(key, x)
    first, stretch = states(net, params, x)
    before = jnp.concatenate([first, stretch[:-1]])
    layers = params["layers"]
    plain = np.tanh(np.einsum("lni,lij->lnj", before, layers["kernel"]) + np.asarray(layers["bias"])[:, None])
    close(stretch, before if carries else plain)


def test_probes_are_added_after_each_layer_and_flow_on(key):
    net, x = build(), inputs()
    params = net.init(key, x)
    clean, zero = states(net, params, x), core.zero_probes(net, params, x)
    probed = states(net, params, x, (zero[0].at[0].set(0.25), zero[1].at[1].set(0.5)))
    close(probed[0], clean[0] + 0.25)
    again = states(net, {**params, "first": {**params["first"], "bias": params["first"]["bias"] + 0.25}}, x)
    close(probed[1][0], again[1][0])
    close(probed[1][1], again[1][1] + 0.5)
    rest = jax.tree.map(lambda leaf: leaf[2:], params["layers"])
    identity = {"kernel": jnp.eye(6, dtype=x.dtype), "bias": jnp.zeros(6, x.dtype)}
    close(states(net, {**params, "first": identity, "layers": rest}, probed[1][1])[1], probed[1][2:])


def z_of_variance(samples, variance):
    samples = np.asarray(samples, np.float64).ravel()
    return abs(np.mean(samples**2) - variance) / (variance * np.sqrt(2 / samples.size))


def test_variances_at_initialization(key):
    net, x = build(width=80, depth=5, gate_weight_variance=0.3, gate_bias=-2.5), inputs(d=60)
    params = net.init(key, x)
    layers = params["layers"]
    assert z_of_variance(params["first"]["kernel"], 1.5 / 60) < 6
    assert z_of_variance(layers["kernel"], 1.5 / 80) < 6
    assert z_of_variance(layers["bias"], 0.2) < 6
    assert z_of_variance(layers["gate_kernel"], 0.3 / 80) < 6
    assert z_of_variance(params["readout"]["kernel"], 1.5 / 80) < 6
    np.testing.assert_array_equal(layers["gate_bias"], np.full((5, 80), -2.5))
    assert abs(np.mean(np.asarray(layers["kernel"][0] * layers["kernel"][1], np.float64))) < 6 * 1.5 / 80 / 80
    same = build(width=80, depth=5).init(key, x)["layers"]["gate_kernel"]
    assert z_of_variance(same, 1.5 / 80) < 6


@pytest.mark.parametrize(
    "more, error, message",
    [
        ({"width": 0}, ValueError, "width .*got 0"),
        ({"depth": 0}, ValueError, "depth .*got 0"),
        ({"outputs": 2.0}, TypeError, "outputs .*got 2.0"),
        ({"activation": "tanh"}, TypeError, "activation .*'tanh'"),
        ({"weight_variance": -1.0}, ValueError, "weight_variance .*-1"),
        ({"bias_variance": -1.0}, ValueError, "bias_variance .*-1"),
        ({"gate_bias": np.inf}, ValueError, "gate_bias .*got inf"),
        ({"gate_weight_variance": -2.0}, ValueError, "gate_weight_variance .*-2"),
        ({"dtype": jnp.int32}, TypeError, "dtype .*int32"),
    ],
)
def test_bad_settings_are_named(more, error, message):
    with pytest.raises(error, match=message):
        build(**more)


def test_gates_want_a_network(key):
    with pytest.raises(TypeError, match="network must be a Network"):
        highway.gates(jnp.tanh, build().init(key, inputs()), inputs())
