"""Normalizations against NumPy, their derivatives against differences and at constants; networks that use them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numdl.networks import core, normalization
from tests.selection import in_turn

pytestmark = pytest.mark.float32

KINDS = [(normalization.batch, 0), (normalization.layer, -1), (normalization.rms, -1)]


def inputs(key, shape=(6, 5)):
    return 3 + 2 * jax.random.normal(key, shape, jnp.result_type(float))


def tolerance(x):
    return 100 * float(jnp.finfo(x.dtype).eps)


def by_hand(function, x, gain, bias, axis, eps):
    x = np.asarray(x, np.float64)
    centre = 0 if function is normalization.rms else x.mean(axis=axis, keepdims=True)
    square = ((x - centre) ** 2).mean(axis=axis, keepdims=True)
    return np.asarray(gain, np.float64) * (x - centre) / np.sqrt(square + eps) + np.asarray(bias, np.float64)


@pytest.mark.parametrize("function, axis", KINDS)
@pytest.mark.parametrize("eps", [0.0, 0.5])
def test_values_are_those_of_numpy(key, function, axis, eps):
    x = inputs(key)
    gain, bias = jnp.arange(1, 6, dtype=x.dtype), jnp.arange(5, dtype=x.dtype)
    expected = by_hand(function, x, gain, bias, axis, eps)
    np.testing.assert_allclose(function(x, gain, bias, eps=eps), expected, atol=10 * tolerance(x))


def test_axes_of_images_and_of_several_features(key):
    x = inputs(key, (4, 3, 2, 5))
    gain = jnp.arange(1, 6, dtype=x.dtype)
    expected = by_hand(normalization.batch, x, gain, 0.0, (0, 1, 2), 0.1)
    np.testing.assert_allclose(normalization.batch(x, gain, axis=(0, 1, 2), eps=0.1), expected, atol=tolerance(x) * 10)
    bias = jnp.arange(10, dtype=x.dtype).reshape(2, 5)
    expected = by_hand(normalization.layer, x, 1.0, bias, (2, 3), 0.1)
    ours = normalization.layer(x, None, bias, axis=(2, 3), eps=0.1)
    np.testing.assert_allclose(ours, expected, atol=tolerance(x) * 10)


def test_weight_columns_have_the_lengths_asked_for(key):
    direction = inputs(key).at[:, 2].set(0.0)
    gain = jnp.array([1.0, 2.0, 3.0, 0.0, 5.0], direction.dtype)
    lengths = np.linalg.norm(np.asarray(normalization.weight(direction, gain)), axis=0)
    np.testing.assert_allclose(lengths, [1, 2, 0, 0, 5], atol=tolerance(direction))
    kernel = normalization.weight(inputs(key, (3, 3, 2, 4)), axis=(0, 1, 2))
    np.testing.assert_allclose(np.sum(np.asarray(kernel) ** 2, axis=(0, 1, 2)), np.ones(4), atol=tolerance(direction))


@pytest.mark.parametrize("function, axis", [*KINDS, (normalization.weight, 0)])
@pytest.mark.parametrize("value", [0.0, 2.0])
def test_constant_input_has_finite_values_and_derivatives(function, axis, value):
    x = jnp.full((4, 4), value)
    for eps in (0.0, 1e-5):
        y, gradient = jax.value_and_grad(lambda x, eps=eps: jnp.sum(function(x, eps=eps) ** 3))(x)
        assert np.isfinite(y)
        assert np.isfinite(gradient).all()
    if value == 0 or function in (normalization.batch, normalization.layer):
        np.testing.assert_array_equal(function(x, eps=0.0), jnp.zeros_like(x))


@pytest.mark.parametrize("function, axis", [*KINDS, (normalization.weight, 0)])
def test_derivatives_are_those_of_differences(key, function, axis):
    x = inputs(key)
    direction = jax.random.normal(jax.random.key(1), x.shape, x.dtype)

    def value(t):
        return jnp.sum(jnp.sin(function(x + t * direction, eps=0.1)) * direction)

    step = float(jnp.finfo(x.dtype).eps) ** (1 / 3)
    difference = (value(step) - value(-step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(value)(jnp.zeros((), x.dtype)), difference, atol=300 * step**2)


def test_half_precision_is_normalized_in_float32(key):
    x = (100 + jax.random.normal(key, (512, 3), jnp.float32)).astype(jnp.float16)
    y = normalization.batch(x, eps=0.0)
    assert y.dtype == jnp.float16
    np.testing.assert_allclose(np.asarray(y, np.float64).std(axis=0), 1, rtol=2e-3)


def test_running_statistics_forget_at_the_rate_asked_for(key):
    x = inputs(key)
    old = normalization.Statistics(jnp.zeros(5, x.dtype), jnp.ones(5, x.dtype))
    new = normalization.update(old, x, decay=0.75)
    np.testing.assert_allclose(new.mean, 0.25 * np.asarray(x).mean(axis=0), rtol=tolerance(x))
    np.testing.assert_allclose(new.variance, 0.75 + 0.25 * np.asarray(x).var(axis=0), rtol=tolerance(x))


def test_known_statistics_normalize_each_example_alone(key):
    x = inputs(key)
    known = normalization.statistics(x)
    whole = normalization.normalize(x, known, eps=0.1)
    np.testing.assert_allclose(whole, normalization.batch(x, eps=0.1), atol=tolerance(x))
    np.testing.assert_allclose(whole[2:3], normalization.normalize(x[2:3], known, eps=0.1), atol=tolerance(x))


def build(depth=3, **more):
    settings = {"width": 7, "depth": depth, "outputs": 2, "activation": jnp.tanh, "weight_variance": 2.0, "eps": 0.1}
    return normalization.network(**{**settings, **more})


@pytest.mark.parametrize("depth", in_turn([1, 2, 4], 2))
@pytest.mark.parametrize("kind", normalization.KINDS)
def test_network_is_a_plain_loop(key, depth, kind):
    net, x = build(depth, kind=kind), inputs(key)
    params = net.init(key, x)
    noise = iter(jax.random.split(key, 100))
    params = jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(next(noise), leaf.shape, leaf.dtype), params)
    first, hidden, last = params["first"], params["hidden"], params["readout"]
    layers = [first] + [{name: leaf[i] for name, leaf in hidden.items()} for i in range(depth - 1)]
    function = {"batch": normalization.batch, "layer": normalization.layer, "rms": normalization.rms}[kind]
    axis = 0 if kind == "batch" else -1
    y, states = np.asarray(x, np.float64), []
    for layer in layers:
        states.append(y @ np.asarray(layer["kernel"], np.float64))
        y = np.tanh(by_hand(function, states[-1], layer["gain"], layer["bias"], axis, 0.1))
    computed = [state for stretch in net.states(params, x) for state in stretch]
    assert len(computed) == depth
    for ours, expected in zip(computed, states, strict=True):
        np.testing.assert_allclose(ours, expected, atol=100 * tolerance(x))
    outputs = y @ np.asarray(last["kernel"], np.float64) + np.asarray(last["bias"], np.float64)
    np.testing.assert_allclose(net.apply(params, x), outputs, atol=100 * tolerance(x))


def test_frozen_network_agrees_with_its_batch_and_decouples_examples(key):
    net, x = build(4), inputs(key)
    params = net.init(key, x)
    fixed = normalization.freeze(net, params, x)
    np.testing.assert_allclose(net.apply(fixed, x), net.apply(params, x), atol=100 * tolerance(x))
    np.testing.assert_allclose(net.apply(fixed, x[:2]), net.apply(fixed, x)[:2], atol=100 * tolerance(x))
    assert not np.allclose(net.apply(params, x[:2]), net.apply(params, x)[:2], atol=0.01)
    # Freezing again reads the batch anew.
    again = normalization.freeze(net, normalization.freeze(net, params, x[:3]), x)
    np.testing.assert_allclose(again["hidden"]["mean"], fixed["hidden"]["mean"], atol=100 * tolerance(x))


def test_probes_reach_every_state(key):
    net, x = build(3), inputs(key)
    params = net.init(key, x)
    clean = net.states(params, x)
    probes = [jnp.ones(stretch.shape, stretch.dtype) for stretch in clean]
    np.testing.assert_allclose(net.states(params, x, probes)[0], clean[0] + 1, atol=tolerance(x))
    # A constant probe on the examples is taken out by the normalization.
    np.testing.assert_allclose(net.states(params, x, probes)[1], clean[1] + 1, atol=100 * tolerance(x))
    gradients = core.state_gradients(net, params, x, lambda outputs: jnp.sum(outputs**2))
    for gradient in gradients:
        np.testing.assert_allclose(jnp.sum(gradient, axis=1), 0, atol=1000 * tolerance(x))
        assert float(jnp.abs(gradient).max()) > 1e-3


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda x: normalization.batch(x, axis=2), ValueError, r"axis .*-2..1; got 2"),
        (lambda x: normalization.layer(x, axis=(1, -1)), ValueError, r"axis .*different"),
        (lambda x: normalization.batch(x, jnp.ones(6)), ValueError, r"gain .*\(5\); got \(6,\)"),
        (lambda x: normalization.layer(x, None, jnp.ones(6)), ValueError, r"bias .*\(5\); got \(6,\)"),
        (lambda x: normalization.rms(x, eps=-1.0), ValueError, "eps .*got -1"),
        (lambda x: normalization.update(normalization.statistics(x), x, decay=1.5), ValueError, "decay .*got 1.5"),
        (lambda x: build(kind="group"), ValueError, "kind .*'group'"),
        (lambda x: build(0), ValueError, "depth .*got 0"),
        (lambda x: build().init(0, x), TypeError, "key .*got 0"),
        (lambda x: build().apply(build().init(jax.random.key(0), x), x[:, :3]), ValueError, r"x .*got \(6, 3\)"),
    ],
)
def test_bad_input_is_named(key, call, error, message):
    with pytest.raises(error, match=message):
        call(inputs(key))
