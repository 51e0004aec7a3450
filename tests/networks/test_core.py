"""What follows from init, states and readout alone: against explicit composition, finite differences and products."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numdl.networks import core, dense

pytestmark = pytest.mark.float32

WIDTHS = (5, 4, 4, 4, 3, 2)  # stretches of 1, 2 and 1 layers


@pytest.fixture
def net():
    return dense.network(widths=WIDTHS, activation=jnp.tanh, weight_variance=2.0, bias_variance=0.3)


@pytest.fixture
def x(key):
    return jax.random.normal(key, (6, 5), jnp.float32)


@pytest.fixture
def params(net, x, key):
    return net.init(key, x)


def layers(params):
    """(kernel, bias) of every map, readout last, in float64."""
    pairs = [pair for s in params["hidden"] for pair in zip(s["kernel"], s["bias"], strict=True)]
    pairs.append((params["readout"]["kernel"], params["readout"]["bias"]))
    return [(np.asarray(kernel, np.float64), np.asarray(bias, np.float64)) for kernel, bias in pairs]


def onward(params, y, start, stop):
    """y_stop from y_start in float64 NumPy; start 0 is the input, stop L + 1 the outputs."""
    y = np.asarray(y, np.float64)
    for number, (kernel, bias) in enumerate(layers(params)[start:stop], start):
        y = (np.tanh(y) if number else y) @ kernel + bias
    return y


def tolerance(factor):
    return factor * float(jnp.finfo(jnp.float32).eps)


def test_apply_is_the_readout_of_the_last_state(net, params, x):
    states = net.states(params, x)
    np.testing.assert_array_equal(net.apply(params, x), net.readout(params, states[-1][-1]))
    np.testing.assert_allclose(net.apply(params, x), onward(params, x, 0, 5), atol=tolerance(100))


def test_layer_count_and_per_layer(net, params, x):
    states = net.states(params, x)
    assert core.layer_count(states) == 4
    squares = core.per_layer(lambda y: jnp.sum(y**2), states)
    expected = [np.sum(onward(params, x, 0, l) ** 2) for l in (1, 2, 3, 4)]
    np.testing.assert_allclose(squares, expected, rtol=tolerance(100))
    pairs = core.per_layer(lambda y: {"first": y[0, :2]}, states)
    np.testing.assert_array_equal(pairs["first"][2], states[1][1][0, :2])


def test_a_network_without_layers(key, x):
    net = dense.network(widths=(5, 2), activation=jnp.tanh, weight_variance=1.0, bias_variance=0.1)
    params = net.init(key, x)
    assert core.layer_count(net.states(params, x)) == 0
    assert core.per_layer(jnp.sum, ()).shape == (0,)
    assert core.state_gradients(net, params, x, jnp.sum) == ()
    np.testing.assert_allclose(
        core.jacobian(net, params, x[:1], start=0, stop=1), params["readout"]["kernel"].T, atol=tolerance(10)
    )


def test_zero_probes_are_zeros_like_the_states(net, params, x):
    probes = core.zero_probes(net, params, x)
    assert [p.shape for p in probes] == [(1, 6, 4), (2, 6, 4), (1, 6, 3)]
    assert {p.dtype for p in probes} == {jnp.dtype(jnp.float32)}
    assert not any(np.any(p) for p in probes)


def test_state_gradients_are_those_of_the_rest_of_the_network(net, params, x):
    def loss(outputs):
        return jnp.mean(jnp.sum(outputs**2, axis=1))

    gradients = [layer for stretch in core.state_gradients(net, params, x, loss) for layer in stretch]
    for number, gradient in enumerate(gradients, 1):
        state, step = onward(params, x, 0, number), 1e-6
        expected = np.zeros_like(state)
        for index in np.ndindex(state.shape):
            there, back = state.copy(), state.copy()
            there[index] += step
            back[index] -= step
            rest = [np.mean(np.sum(onward(params, y, number, 5) ** 2, axis=1)) for y in (there, back)]
            expected[index] = (rest[0] - rest[1]) / (2 * step)
        np.testing.assert_allclose(gradient, expected, atol=tolerance(100))


@pytest.mark.parametrize("start, stop", list(itertools.combinations(range(6), 2)))
def test_jacobian_is_the_product_of_the_layers(net, params, x, start, stop):
    """dy_stop/dy_start = the product of D W over the maps between; explicit matrices in float64."""
    y, expected = onward(params, x[:1], 0, start)[0], np.eye(WIDTHS[start])
    for number, (kernel, bias) in enumerate(layers(params)[start:stop], start):
        slope = 1 - np.tanh(y) ** 2 if number else np.ones_like(y)
        expected = kernel.T @ (slope[:, None] * expected)
        y = (np.tanh(y) if number else y) @ kernel + bias
    matrix = core.jacobian(net, params, x[:1], start=start, stop=stop)
    assert matrix.shape == (WIDTHS[stop], WIDTHS[start])
    np.testing.assert_allclose(matrix, expected, atol=tolerance(100))


def images(count):
    """A network of another kind: states [N, 4, 4, 1], built from plain closures."""

    def states(params, x, probes=None):
        (probe,) = core.split_probes(probes, 1)

        def layer(y, given):
            scale, extra = given
            y = jnp.roll(y, 1, axis=2) * scale + y
            y = y if extra is None else y + extra
            return y, y

        return (jax.lax.scan(layer, x, (params, probe))[1],)

    return core.Network(
        init=lambda key, x: jax.random.normal(key, (count,), x.dtype),
        states=states,
        readout=lambda params, y: y.mean(axis=(1, 2)),
    )


def test_states_may_have_any_shape_and_functions_may_be_closures(key):
    net, x = images(3), jax.random.normal(key, (1, 4, 4, 1), jnp.float32)
    params = net.init(key, x)
    roll = np.asarray(jnp.roll(jnp.eye(16).reshape(16, 4, 4), 1, axis=2)).reshape(16, 16).T
    scales = np.asarray(params, np.float64)
    steps = [np.eye(16) + scale * roll for scale in scales]
    np.testing.assert_allclose(core.jacobian(net, params, x, start=1, stop=3), steps[2] @ steps[1], atol=tolerance(50))
    outputs = core.jacobian(net, params, x, start=2, stop=4)
    np.testing.assert_allclose(outputs, np.full((1, 16), 1 / 16) @ steps[2], atol=tolerance(50))
    gradients = core.state_gradients(net, params, x, lambda outputs: outputs.sum())
    np.testing.assert_allclose(np.asarray(gradients[0][1]).ravel(), outputs[0], atol=tolerance(50))


def test_traceable_networks_are_arguments_of_jit(key):
    x = jnp.ones((1, 4, 4, 1))
    net, traces = core.traceable(images(2)), []

    @jax.jit
    def outputs(net, params, x):
        traces.append(1)
        return net.apply(params, x)

    params = net.init(key, x)
    first = outputs(net, params, x)
    outputs(core.traceable(net), params, 2 * x)
    assert len(traces) == 1
    np.testing.assert_allclose(first, net.apply(params, x), rtol=1e-6)


def test_a_second_call_compiles_nothing(x, key):
    traces = []

    def counted(z):
        traces.append(1)
        return jnp.tanh(z)

    def build(variance):
        return dense.network(widths=WIDTHS, activation=counted, weight_variance=variance, bias_variance=0.3)

    def measure(net):
        params = net.init(key, x)
        jax.block_until_ready(core.state_gradients(net, params, x, jnp.sum))
        return core.jacobian(net, params, x[:1], start=1, stop=3)

    core_calls = []
    for variance in (2.0, 1.0):
        before = len(traces)
        measure(build(variance))
        core_calls.append(len(traces) - before)
    # What is left in the second call is the shape inference of the checks, the same in every call: no compilation.
    depth_check = len(traces)
    net = build(1.0)
    jax.eval_shape(net.states, net.init(key, x), x[:1])
    assert core_calls[1] == len(traces) - depth_check < core_calls[0]


def test_split_probes():
    assert core.split_probes(None, 3) == (None, None, None)
    assert core.split_probes([1, 2], 2) == (1, 2)
    with pytest.raises(ValueError, match=r"probes .*3 stretches; got 2"):
        core.split_probes((1, 2), 3)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"start": -1}, ValueError, "start .*0..4; got -1"),
        ({"start": 5, "stop": 6}, ValueError, "start .*0..4; got 5"),
        ({"start": 2, "stop": 2}, ValueError, "stop .*3..5; got 2"),
        ({"stop": 6}, ValueError, "stop .*2..5; got 6"),
        ({"start": 1.0}, TypeError, "start .*got 1.0"),
        ({"x": jnp.ones((2, 5))}, ValueError, r"x .*one example.*\(2, 5\)"),
        ({"network": print}, TypeError, "network must be a Network"),
    ],
)
def test_bad_input_to_jacobian_is_named(net, params, x, change, error, message):
    given = {"network": net, "params": params, "x": x[:1], "start": 1, "stop": 3} | change
    with pytest.raises(error, match=message):
        core.jacobian(**given)


def test_bad_loss_is_named(net, params, x):
    with pytest.raises(TypeError, match=r"loss .*got 1.0"):
        core.state_gradients(net, params, x, 1.0)
