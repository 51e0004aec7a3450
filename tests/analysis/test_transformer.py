"""Softmax moments in any function, streams and gradients of transformers: against NumPy on the states themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numdl.analysis import layers
from numdl.analysis import transformer as measured
from numdl.networks import core, initializers, transformer

UNIT = initializers.variance_scaling(1.0)
N, T, D = 3, 4, 8


def build(**more):
    laws = {"query_key_weights": initializers.variance_scaling(4.0), "value_weights": UNIT, "mlp_weights": UNIT}
    sizes = {"depth": 2, "heads": 2, "head_width": 4, "mlp_width": 8, "activation": jax.nn.relu, "norm": "pre"}
    return transformer.network(transformer.blocks(**(sizes | laws | more)), outputs=2, readout_weights=UNIT)


def made(**more):
    net, x = build(**more), jax.random.normal(jax.random.key(2), (N, T, D))
    return net, net.init(jax.random.key(0), x), x


def plain(params, x):
    """Two heads in a layout of their own, with a causal mask that is added."""
    q, k = (jnp.einsum("ntd,dhk->nthk", x, params[name]) for name in ("q", "k"))
    scores = jnp.einsum("nthk,nshk->nhts", q, k) / 2 + jnp.where(jnp.tri(T) > 0, 0.0, -1e9)[None, None]
    return jnp.einsum("nhts,nsd->ntd", jax.nn.softmax(scores, axis=-1), x)


@pytest.mark.slow
def test_moments_of_a_masked_softmax_are_those_of_numpy():
    keys = jax.random.split(jax.random.key(4), 3)
    params = {name: jax.random.normal(key, (D, 2, 4)) for name, key in zip("qk", keys, strict=False)}
    x = jax.random.normal(keys[2], (N, T, D))
    found = measured.softmax_moments(plain, params, x)
    q, k = (np.einsum("ntd,dhk->nthk", np.asarray(x, float), np.asarray(params[name], float)) for name in "qk")
    scores = np.einsum("nthk,nshk->nhts", q, k) / 2
    rows = [scores[n, h, t, : t + 1] for n in range(N) for h in range(2) for t in range(T)]
    weights = [np.exp(row - row.max()) / np.exp(row - row.max()).sum() for row in rows]
    assert len(found.names) == 1
    expected = {
        "log_partition": np.mean([np.log(np.exp(row - row.mean()).sum()) for row in rows]),
        "participation": np.mean([(p**2).sum() for p in weights]),
        "entropy": np.mean([-(p * np.log(np.maximum(p, 1e-300))).sum() for p in weights]),
        "deviation": np.sqrt(np.mean([row.var(ddof=1) for row in rows if row.size > 1])),
        "logit_max": max(np.abs(row).max() for row in rows),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(found, name)[0], value, rtol=2e-4)


def test_a_scan_has_an_entry_per_step_and_no_attention_none():
    net, params, x = made(mask="causal")
    found = measured.softmax_moments(net.apply, params, x)
    assert len(found.names) == 2
    assert found.entropy.shape == (2,)
    none = measured.softmax_moments(lambda p, x: x @ p, jnp.ones((D, D)), x[:, 0])
    assert none.names == ()
    assert none.entropy.shape == (0,)


def test_stream_is_that_of_numpy_and_of_captured_states():
    net, params, x = made()
    found = measured.stream(net, params, x)
    states = [np.asarray(x, float), *np.asarray(net.states(params, x)[0], float)]
    assert found.q.shape == (5, N)
    for level, state in enumerate(states):
        for example, rows in enumerate(state):
            gram = rows @ rows.T / D
            q, p = np.trace(gram) / T, (gram.sum() - np.trace(gram)) / (T * (T - 1))
            np.testing.assert_allclose(found.q[level, example], q, rtol=1e-4)
            np.testing.assert_allclose(found.c[level, example], p / q, atol=1e-5)
            np.testing.assert_allclose(found.gap[level, example], 1 - p / q, rtol=1e-4)
            rank = np.trace(gram) ** 2 / (gram**2).sum()
            np.testing.assert_allclose(found.effective_rank[level, example], rank, rtol=1e-4)
        pairs = [(state[n] * state[m]).sum() for n in range(N) for m in range(N) if n != m]
        own = [(state[n] ** 2).sum() for n in range(N)]
        np.testing.assert_allclose(found.example_c[level], np.mean(pairs) / np.mean(own), atol=1e-5)

    def tapped(params, x):
        return layers.tap(jnp.tanh(x @ params), "stream")

    _, captured = layers.capture(tapped, "stream")(jnp.eye(D), x)
    alone = measured.stream_of(jnp.stack(list(captured.values())))
    np.testing.assert_allclose(alone.q, measured.stream_of(jnp.tanh(x)[None]).q, rtol=1e-5)


def test_nearly_equal_tokens_keep_their_digits():
    x = 1.0 + 1e-4 * jax.random.normal(jax.random.key(0), (1, 1, 64, 512), jnp.float32)
    assert float(measured.stream_of(x).gap[0, 0]) == pytest.approx(1e-8, rel=0.05)


@pytest.mark.parametrize("norm", [pytest.param("pre", marks=pytest.mark.slow), "post"])
def test_gradients_are_those_of_the_states(norm):
    net, params, x = made(norm=norm)
    weights = jnp.cos(jnp.arange(N * 2)).reshape(N, 2)
    loss = lambda outputs: jnp.sum(outputs * weights)  # noqa: E731
    found = measured.gradients(net, params, x, loss)
    by_states = np.asarray(core.state_gradients(net, params, x, loss)[0], float)
    by_input = np.asarray(jax.grad(lambda x: loss(net.apply(params, x)))(x), float)
    rows = [by_input, *by_states]
    a = np.array([np.mean([(g**2).sum(axis=1).mean() for g in row]) for row in rows])
    b = np.array([np.mean([((g.sum(axis=0) ** 2).sum() - (g**2).sum()) / (T * (T - 1)) for g in row]) for row in rows])
    np.testing.assert_allclose(found.spread, a / a[-1], rtol=2e-4)
    np.testing.assert_allclose(found.pooled, b / a[-1], rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(found.log_scale, np.log(a[-1]), rtol=1e-4)


def test_weight_gradients_by_block_and_at_any_size():
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((3, 2, 4, 5)) for _ in range(3))
    found = measured.weight_gradients(query=q * 1e-15, key=k * 1e-15, value=v * 1e-15, stacked=1)
    axes = (1, 2, 3)
    np.testing.assert_allclose(found.query, (q**2).sum(axis=axes) / (v**2).sum(axis=axes), rtol=1e-4)
    np.testing.assert_allclose(found.key, (k**2).sum(axis=axes) / (v**2).sum(axis=axes), rtol=1e-4)
    with pytest.raises(ValueError, match="query must have the leading axes of value"):
        measured.weight_gradients(query=q[:2], key=k, value=v, stacked=1)


def test_states_of_other_shapes_are_refused():
    net, params, x = made()
    flat = core.Network(net.init, lambda p, x, probes=None: (net.states(p, x, probes)[0][:, :, 0],), net.readout)
    with pytest.raises(ValueError, match="network must have states that are token matrices"):
        measured.stream(flat, params, x)
