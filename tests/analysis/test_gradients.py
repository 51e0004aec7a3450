"""Measured gradients: jax.grad on a hand-written loop, NumPy in float64, products whose logarithms are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numdl.analysis import gradients
from numdl.networks import core, dense

pytestmark = pytest.mark.float32

EPS = float(jnp.finfo(jnp.float32).eps)


def build(widths=(6, 9, 9, 9, 4), activation=jnp.tanh, weight_variance=1.5, bias_variance=0.2):
    return dense.network(
        widths=widths, activation=activation, weight_variance=weight_variance, bias_variance=bias_variance
    )


def linear(z):
    return z


def scaled_copies(factors):
    """Layer l multiplies the state by factors[l]: the gradient of y_l is the product of the later factors."""

    def states(params, x, probes=None):
        def layer(y, given):
            factor, probe = given
            y = factor * y + probe
            return y, y

        probes = jnp.zeros((len(factors), *x.shape), x.dtype) if probes is None else probes[0]
        return (jax.lax.scan(layer, x, (jnp.asarray(factors, x.dtype), probes))[1],)

    return core.Network(lambda key, x: (), states, lambda params, y: y)


@pytest.fixture
def x(key):
    return jax.random.normal(key, (4, 6), jnp.float32)


def backwards(params, x, cotangent):
    """Mean squares of dloss/dy_l of a tanh network, by NumPy in float64."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    layers = [(k, b) for s in params["hidden"] for k, b in zip(s["kernel"], s["bias"], strict=True)]
    y, states = np.asarray(x, np.float64), []
    for number, (kernel, bias) in enumerate(layers):
        y = (np.tanh(y) if number else y) @ kernel + bias
        states.append(y)
    g, squares = cotangent, []
    for kernel, y in zip([*(k for k, _ in layers[1:]), params["readout"]["kernel"]][::-1], states[::-1], strict=True):
        g = (g @ kernel.T) * (1 - np.tanh(y) ** 2)
        squares.append(np.mean(g**2))
    return np.log(squares[::-1])


def test_gradients_at_given_parameters_by_numpy(key, x):
    net = build()
    params = net.init(key, x)
    cotangent = np.random.default_rng(0).normal(size=(4, 4))
    found = gradients.growth_at(net, params, x, jnp.asarray(cotangent, jnp.float32))
    np.testing.assert_allclose(found.log_square, backwards(params, x, cotangent), atol=300 * EPS)
    np.testing.assert_allclose(found.log_cotangent, np.log(np.mean(cotangent**2)), atol=100 * EPS)
    np.testing.assert_allclose(found.log_ratio, found.log_square - found.log_cotangent, atol=10 * EPS)


def test_a_loss_is_taken_per_example(key, x):
    """N dloss/dy_l for a mean over N examples: doubling the batch leaves the mean square as it is."""
    net, targets = build(), jnp.ones((1, 4), jnp.float32)

    def loss(outputs):
        return jnp.mean(jnp.sum((outputs - targets) ** 2, axis=1))

    found = gradients.growth(key, net, x, loss, seeds=2)
    params = net.init(jax.random.split(key, 2)[1], x)
    cotangent = 2 * (np.asarray(net.apply(params, x), np.float64) - 1)
    np.testing.assert_allclose(found.log_square[1], backwards(params, x, cotangent), atol=1000 * EPS)
    np.testing.assert_allclose(found.log_cotangent[1], np.log(np.mean(cotangent**2)), atol=300 * EPS)
    twice = gradients.growth(key, net, jnp.concatenate([x, x]), loss, seeds=2)
    np.testing.assert_allclose(twice.log_square, found.log_square, atol=300 * EPS)


@pytest.mark.parametrize("at_a_time", [2, 9])
def test_batches_of_seeds_give_the_same_samples(key, x, at_a_time):
    one_by_one = gradients.growth(key, build(), x, seeds=3, at_a_time=1)
    together = gradients.growth(key, build(), x, seeds=3, at_a_time=at_a_time)
    np.testing.assert_allclose(together.log_square, one_by_one.log_square, atol=1e-4)
    assert one_by_one.log_square.shape == (3, 3)
    assert not np.allclose(one_by_one.log_square[0], one_by_one.log_square[1], atol=1e-2)


def test_random_cotangents_are_independent_of_the_weights(key):
    """A linear network: E g[l] / g[L+1] = 1 exactly; a cotangent that repeats the readout's draw would exceed it."""
    net = build((3, 4, 4, 4), linear, 1.0, 0.0)
    samples = gradients.growth(key, net, jnp.ones((1, 3), jnp.float32), seeds=6000)
    ratios = np.exp(np.asarray(samples.log_ratio, np.float64))
    z = (ratios.mean(axis=0) - 1) / (ratios.std(axis=0, ddof=1) / np.sqrt(6000))
    assert np.all(np.abs(z) < 6)


@pytest.mark.parametrize("factor", [1e-3, 0.5, 1.0, 3.0, 1e3])
def test_no_depth_leaves_the_range_of_float32(key, factor):
    """400 layers that multiply by 1e-3: squared gradients reach 1e-2400."""
    factors = np.full(400, factor)
    x = jnp.ones((2, 3), jnp.float32) * (1e-30 if factor > 1 else 1)
    net = scaled_copies(factors)
    found = gradients.growth_at(net, (), jnp.zeros_like(x), jnp.full((2, 3), 0.25, jnp.float32))
    later = 2 * np.log(np.float64(np.float32(factor))) * np.arange(399, -1, -1)
    np.testing.assert_allclose(found.log_ratio, later, rtol=1e-5, atol=1e-5)
    assert np.isfinite(found.log_square).all()


def test_growth_and_decay_in_turn_stay_exact(key):
    factors = np.concatenate([np.full(60, 20.0), np.full(120, 0.05), np.full(80, 7.0)])
    found = gradients.growth_at(
        scaled_copies(factors), (), jnp.zeros((1, 2), jnp.float32), jnp.ones((1, 2), jnp.float32)
    )
    logs = 2 * np.log(np.float64(np.float32(factors)))
    np.testing.assert_allclose(found.log_square, np.append(np.cumsum(logs[:0:-1])[::-1], 0), atol=2e-3)


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_cotangents_of_any_size(key, x, size):
    net = build()
    params, cotangent = net.init(key, x), jnp.ones((4, 4), jnp.float32)
    plain = gradients.growth_at(net, params, x, cotangent)
    found = gradients.growth_at(net, params, x, size * cotangent)
    np.testing.assert_allclose(found.log_ratio, plain.log_ratio, atol=1e-4)
    np.testing.assert_allclose(found.log_cotangent, 2 * np.log(size), rtol=1e-6)


def test_dead_gradients_are_minus_infinity_and_do_not_cost_a_pass_each(key):
    factors = np.ones(500)
    factors[250] = 0.0
    net = scaled_copies(factors)
    found = gradients.growth_at(net, (), jnp.zeros((1, 2), jnp.float32), jnp.ones((1, 2), jnp.float32))
    np.testing.assert_array_equal(found.log_square[250:], 0.0)
    np.testing.assert_array_equal(found.log_square[:250], -np.inf)
    sizes = jnp.where(jnp.arange(500) < 250, 0.0, 1.0).astype(jnp.float32)
    assert gradients._next_start(sizes, 499) == 250  # one more pass, which finds nothing below
    assert gradients._next_start(sizes, 250) == -1


def test_stretches_of_different_shapes_and_half_precision(key):
    net = build((6, 5, 8, 8, 3), weight_variance=0.01)
    x = jax.random.normal(key, (2, 6), jnp.float32)
    params, cotangent = net.init(key, x), np.ones((2, 3))
    expected = backwards(params, x, cotangent)
    found = gradients.growth_at(net, params, x, jnp.asarray(cotangent, jnp.float32))
    np.testing.assert_allclose(found.log_square, expected, atol=1e-3)
    low = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (params, x))
    found = gradients.growth_at(net, *low, jnp.ones((2, 3), jnp.bfloat16))
    assert found.log_square.dtype == jnp.float32
    np.testing.assert_allclose(found.log_square, expected, atol=0.2)


def test_a_second_call_and_other_variances_compile_nothing(key, x):
    traces = []

    def counted(z):
        traces.append(1)
        return jnp.tanh(z)

    first = gradients.growth(key, build(activation=counted), x, seeds=2)
    once = len(traces)
    other = gradients.growth(key, build(activation=counted, weight_variance=3.0), x, seeds=2)
    assert len(traces) == once > 0
    assert not np.allclose(first.log_square, other.log_square)


def test_any_function_through_the_probe_is_the_same_network(key, x):
    """Two layers written by hand; states before the activation, as in `dense`."""
    net = build((6, 9, 9, 4), weight_variance=1.5, bias_variance=0.0)

    def apply(params, x):
        y = x @ params["first"]
        y = jnp.tanh(y) @ params["second"]
        return jnp.tanh(y) @ params["last"]

    def init(key):
        params = net.init(key, x)
        kernels = [stretch["kernel"][0] for stretch in params["hidden"]]
        return {"first": kernels[0], "second": kernels[1], "last": params["readout"]["kernel"]}

    def loss(outputs):
        return jnp.mean(jnp.sum(outputs**2, axis=1))

    found = gradients.growth_of_function(key, apply, init, x, loss=loss, seeds=3)
    expected = gradients.growth(key, net, x, loss, seeds=3)
    assert found.log_square.shape == (3, 3)  # the readout's outputs are a state of the probe's
    np.testing.assert_allclose(found.log_square[:, :2], expected.log_square, atol=1e-4)
    np.testing.assert_allclose(found.log_cotangent, expected.log_cotangent, atol=1e-4)
    np.testing.assert_allclose(found.log_square[:, 2], found.log_cotangent, atol=1e-4)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"key": 0}, TypeError, "key .*got 0"),
        ({"network": 3}, TypeError, "network must be a Network.*got 3"),
        ({"seeds": 0}, ValueError, "seeds .*got 0"),
        ({"at_a_time": 0}, ValueError, "at_a_time .*got 0"),
        ({"loss": 1.0}, TypeError, "loss must be a function; got 1.0"),
        ({"x": np.ones((2, 6), int)}, TypeError, "x .*dtype int"),
    ],
)
def test_bad_input_is_named(key, x, change, error, message):
    given = {"key": key, "network": build(), "x": x, "loss": None, "seeds": 2} | change
    positional = [given.pop(name) for name in ("key", "network", "x", "loss")]
    with pytest.raises(error, match=message):
        gradients.growth(*positional, **given)


def test_bad_input_of_the_others_is_named(key, x):
    net = build()
    with pytest.raises(ValueError, match=r"cotangent must have shape \(4, 4\); got \(4, 5\)"):
        gradients.growth_at(net, net.init(key, x), x, jnp.ones((4, 5)))
    with pytest.raises(TypeError, match="init must be a function; got 3"):
        gradients.growth_of_function(key, lambda params, x: x, 3, x, loss=linear, seeds=2)
