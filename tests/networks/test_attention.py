"""Attention against NumPy loops, jax.nn and Flax; hard selection and its derivative; the stack and its split states."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numdl.networks import attention, core, initializers
from tests.selection import in_turn

pytestmark = pytest.mark.float32

UNIT = initializers.variance_scaling(1.0)
MLP = {"mlp_width": 6, "mlp_weights": UNIT, "activation": jnp.tanh}


def inputs(key, shape=(2, 5, 4)):
    return jax.random.normal(key, shape, jnp.result_type(float))


def tolerance(x):
    return 200 * float(jnp.finfo(x.dtype).eps)


def build(depth=3, **more):
    settings = {
        "depth": depth, "heads": 2, "head_width": 3, "outputs": 2, "skip": False,
        "query_key_weights": UNIT, "value_weights": UNIT,
    }  # fmt: skip
    return attention.network(**{**settings, **more})


def softmax(scores):
    e = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def one_hot(scores):
    return np.eye(scores.shape[-1])[scores.argmax(axis=-1)]


def numpy_attention(layer, x, causal, weights):
    """One example [tokens, d], one head and one query after the other."""
    out = np.zeros_like(x)
    for q, k, v, o in zip(*(layer[n] for n in ("query", "key", "value", "output")), strict=True):
        for t in range(len(x)):
            last = t + 1 if causal else len(x)
            scores = np.array([x[t] @ q @ (x[s] @ k) for s in range(last)]) / np.sqrt(q.shape[1])
            out[t] += weights(scores) @ x[:last] @ v @ o
    return out


def numpy_states(params, x, *, skip, mlp, causal, weights):
    layers = {name: np.asarray(leaf, np.float64) for name, leaf in params["layers"].items()}
    states, y = [], np.asarray(x, np.float64)
    for number in range(layers["query"].shape[0]):
        layer = {name: leaf[number] for name, leaf in layers.items()}
        z = np.stack([numpy_attention(layer, one, causal, weights) for one in y]) + skip * y
        y = np.tanh(z @ layer["mlp_in"]) @ layer["mlp_out"] + skip * z if mlp else z
        states.append(y)
    return np.stack(states)


@pytest.mark.parametrize("skip, mlp, causal", in_turn(itertools.product([False, True], repeat=3), 0))
def test_stack_is_a_plain_loop(key, skip, mlp, causal):
    net, x = build(skip=skip, causal=causal, **(MLP if mlp else {})), inputs(key)
    params = net.init(key, x)
    expected = numpy_states(params, x, skip=skip, mlp=mlp, causal=causal, weights=softmax)
    np.testing.assert_allclose(net.states(params, x)[0], expected, atol=tolerance(x))
    outputs = expected[-1].mean(axis=1) @ np.asarray(params["readout"]["kernel"], np.float64)
    np.testing.assert_allclose(net.apply(params, x), outputs, atol=tolerance(x))


@pytest.mark.parametrize("causal", [False, True])
def test_top_1_takes_the_value_of_the_best_key(key, causal):
    net, x = build(selection="top_1", causal=causal, depth=1), inputs(key)
    params = net.init(key, x)
    expected = numpy_states(params, x, skip=False, mlp=False, causal=causal, weights=one_hot)
    np.testing.assert_allclose(net.states(params, x)[0], expected, atol=tolerance(x))


@pytest.mark.parametrize("causal", [False, True])
def test_attend_is_that_of_jax(key, causal):
    q, k, v = (inputs(one, (2, 6, 3, 4)) for one in jax.random.split(key, 3))
    theirs = jax.nn.dot_product_attention(q, k, v, is_causal=causal)
    ours = attention.attend(*(jnp.swapaxes(a, 1, 2) for a in (q, k, v)), causal=causal)
    # Theirs takes the softmax in float32.
    np.testing.assert_allclose(jnp.swapaxes(ours, 1, 2), theirs, atol=100 * float(jnp.finfo(jnp.float32).eps))


def test_self_attention_is_flax_s(key):
    linen = pytest.importorskip("flax.linen")
    x = inputs(key)
    layer = jax.tree.map(lambda leaf: leaf[0], build(head_width=2).init(key, x)["layers"])
    theirs = linen.MultiHeadDotProductAttention(num_heads=2, use_bias=False, param_dtype=x.dtype)
    tree = {name: {"kernel": jnp.swapaxes(layer[name], 0, 1)} for name in ("query", "key", "value")}
    tree["out"] = {"kernel": layer["output"]}
    expected = theirs.apply({"params": tree}, x)
    np.testing.assert_allclose(attention.self_attention(layer, x), expected, atol=tolerance(x))


def test_causal_tokens_do_not_see_later_ones(key):
    x = inputs(key)
    for selection in attention.SELECTIONS:
        net = build(causal=True, skip=True, selection=selection, key=key)
        params = net.init(key, x)
        changed = x.at[:, 3:].add(1.0)
        one, other = net.states(params, x)[0], net.states(params, changed)[0]
        np.testing.assert_array_equal(one[:, :, :3], other[:, :, :3])
        assert not np.allclose(one[:, :, 3:], other[:, :, 3:])


def test_gumbel_draws_with_the_probabilities_of_softmax(key):
    scores = jnp.array([0.0, 1.0, 2.0, -1.0])
    count = 20000
    drawn = jax.vmap(lambda k: attention.gumbel(k, scores, temperature=0.5))(jax.random.split(key, count))
    np.testing.assert_allclose(np.unique(drawn), [0.0, 1.0], atol=1e-6)
    p = softmax(np.asarray(scores, np.float64))
    z = (np.asarray(drawn, np.float64).mean(axis=0) - p) / np.sqrt(p * (1 - p) / count)
    assert np.abs(z).max() < 6


def test_hard_selection_passes_the_gradient_of_softmax(key):
    scores = inputs(key)
    weight = jnp.arange(scores.size, dtype=scores.dtype).reshape(scores.shape)
    hard, soft = (jax.grad(lambda s, f=f: jnp.sum(weight * f(s)))(scores) for f in (attention.top_1, attention.soft))
    np.testing.assert_allclose(hard, soft, atol=tolerance(scores))
    noise = jax.random.gumbel(key, scores.shape, scores.dtype)
    ours = jax.grad(lambda s: jnp.sum(weight * attention.gumbel(key, s, temperature=0.3)))(scores)
    expected = jax.grad(lambda s: jnp.sum(weight * jax.nn.softmax((s + noise) / 0.3)))(scores)
    np.testing.assert_allclose(ours, expected, atol=20 * tolerance(scores))


def test_gumbel_stacks_repeat_with_their_key_and_differ_between_layers(key):
    x = inputs(key)
    one, other = (build(selection="gumbel", key=jax.random.key(seed)) for seed in (0, 1))
    params = one.init(key, x)
    np.testing.assert_array_equal(one.apply(params, x), one.apply(params, x))
    assert not np.allclose(one.apply(params, x), other.apply(params, x))
    # Zero queries leave the noise alone to decide; equal layers would then choose alike.
    still = {**params["layers"], "query": jnp.zeros_like(params["layers"]["query"])}
    chosen = [attention._selection(one.states.args[0], n)(jnp.zeros((2, 2, 5, 5))) for n in (0, 1)]
    assert not np.array_equal(*chosen)
    assert np.isfinite(one.apply({**params, "layers": still}, x)).all()


@pytest.mark.parametrize("selection, causal", in_turn(itertools.product(attention.SELECTIONS, [False, True]), 1))
def test_gradients_are_finite_also_at_equal_and_large_tokens(key, selection, causal):
    net = build(selection=selection, causal=causal, key=key, temperature=0.01)
    for x in (jnp.ones((1, 5, 4)), jnp.zeros((1, 5, 4)), 1e3 * inputs(key, (1, 5, 4))):
        params = net.init(key, x)
        gradients = jax.grad(lambda p, x=x: jnp.sum(net.apply(p, x) ** 2))(params)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_state_gradients_are_differences(key):
    net, x = build(skip=True, **MLP), inputs(key)
    params = net.init(key, x)
    (gradients,) = core.state_gradients(net, params, x, lambda outputs: jnp.sum(outputs**2))
    (clean,) = core.zero_probes(net, params, x)
    step = float(jnp.finfo(x.dtype).eps) ** (1 / 3)

    def loss(size):
        probes = (clean.at[1, 0, 2, 3].set(size),)
        return jnp.sum(net.readout(params, core.last_state(net.states(params, x, probes), x)) ** 2)

    difference = (loss(step) - loss(-step)) / (2 * step)
    np.testing.assert_allclose(gradients[1, 0, 2, 3], difference, atol=300 * step**2, rtol=300 * step**2)


@pytest.mark.parametrize("skip", [False, True])
def test_split_states_add_up_to_the_states(key, skip):
    net, x = build(skip=skip), inputs(key)
    params = net.init(key, x)
    split = attention.split_states(params, x, skip=skip)
    scale = jnp.exp(split.log_scale)[..., None, None]
    whole = jnp.expand_dims(split.mean, 2) + scale * split.deviation
    np.testing.assert_allclose(whole[0], x, atol=tolerance(x))
    np.testing.assert_allclose(whole[1:], net.states(params, x)[0], atol=tolerance(x))
    np.testing.assert_allclose(jnp.abs(split.deviation).max(axis=(2, 3)), 1, atol=tolerance(x))
    np.testing.assert_allclose(split.deviation.mean(axis=2), 0, atol=tolerance(x))


def test_laws_of_the_weights(key):
    x = inputs(key, (1, 2, 60))
    net = build(depth=2, heads=3, head_width=40, query_key_weights=initializers.variance_scaling(4.0))
    layers = net.init(key, x)["layers"]
    for name, variance in (("query", 4 / 60), ("key", 4 / 60), ("value", 1 / 60), ("output", 1 / 120)):
        entries = np.asarray(layers[name], np.float64).ravel()
        assert abs(np.mean(entries**2) - variance) < 6 * variance * np.sqrt(2 / entries.size), name
    assert not np.array_equal(layers["query"][0], layers["query"][1])
    assert not np.array_equal(layers["query"][0, 0], layers["query"][0, 1])
    assert not np.array_equal(layers["query"], layers["key"])


@pytest.mark.parametrize(
    "more, error, message",
    [
        ({"depth": 0}, ValueError, "depth .*got 0"),
        ({"selection": "sparse"}, ValueError, "selection .*'sparse'"),
        ({"selection": "gumbel"}, TypeError, "key .*got None"),
        ({"query_key_weights": 1.0}, TypeError, "query_key_weights must be an Initializer.*got 1.0"),
        ({"mlp_width": 5}, TypeError, "activation .*got None"),
        ({"mlp_width": 5, "activation": jnp.tanh}, TypeError, "mlp_weights .*got None"),
        ({"temperature": 0.0}, ValueError, "temperature .*got 0"),
    ],
)
def test_bad_settings_are_named(more, error, message):
    with pytest.raises(error, match=message):
        build(**more)


def test_bad_inputs_are_named(key):
    net, x = build(**MLP), inputs(key)
    params = net.init(key, x)
    with pytest.raises(ValueError, match=r"x must have 3 axes; got shape \(5, 4\)"):
        net.init(key, x[0])
    with pytest.raises(ValueError, match=r"x must have shape \(any, any, 4\); got \(2, 5, 3\)"):
        net.apply(params, x[..., :3])
    with pytest.raises(ValueError, match=r"params must have no MLP"):
        attention.split_states(params, x, skip=False)


def test_split_states_take_one_precision_and_parameters_that_fit(key):
    net, x = build(), inputs(key)
    params = net.init(key, x)
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.float16), params)
    assert attention.split_states(narrow, x, skip=False).deviation.dtype == x.dtype
    layers = params["layers"]
    for changed in ({"key": layers["key"][:1]}, {"output": layers["output"][..., :2]}):
        with pytest.raises(ValueError, match=r"params\['layers'\]\['(key|output)'\] must .*got"):
            attention.split_states({"layers": layers | changed}, x, skip=False)
    with pytest.raises(ValueError, match=r"params\['layers'\] must hold"):
        attention.split_states({"layers": {"query": layers["query"]}}, x, skip=False)
