"""Highway networks against a plain NumPy loop, their limits, and derivatives by finite differences."""

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


def test_depth_1000_is_the_program_of_depth_10(key):
    x, sizes = inputs(), []
    for depth in (10, 1000):
        net = build(depth=depth)
        params = jax.eval_shape(net.init, key, x)
        program = jax.make_jaxpr(jax.grad(lambda p, net=net: net.apply(p, x).sum()))(params)
        sizes.append((count(program.jaxpr), count(jax.make_jaxpr(net.init)(key, x).jaxpr)))
    assert sizes[0] == sizes[1]


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


def test_bad_inputs_are_named(key):
    net, x = build(), inputs()
    params = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), jax.eval_shape(net.init, key, x))
    with pytest.raises(ValueError, match=r"x must have shape \(any, 5\); got \(3, 4\)"):
        net.apply(params, inputs(d=4))
    with pytest.raises(ValueError, match=r"x must have 2 axes; got shape \(5,\)"):
        net.init(key, x[0])
    with pytest.raises(TypeError, match="key .*got 0"):
        net.init(0, x)
    with pytest.raises(ValueError, match="probes .*2 stretches; got 1"):
        net.states(params, x, (x,))
    with pytest.raises(TypeError, match="network must be a Network"):
        highway.gates(jnp.tanh, params, x)
