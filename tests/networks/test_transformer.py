"""Transformers against a NumPy loop over tokens and heads, and what each switch of the table changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numdl import statistics
from numdl.networks import core, initializers, transformer
from numdl.networks.transformer import _blocks
from numdl.theory import transformer as predicted
from tests.selection import some_fast

pytestmark = pytest.mark.float32

UNIT = initializers.variance_scaling(1.0)
LAWS = {"query_key_weights": initializers.variance_scaling(4.0), "value_weights": UNIT, "mlp_weights": UNIT}
N, T, D = 2, 5, 6


def stack(**more):
    sizes = {"depth": 2, "heads": 4, "head_width": 2, "mlp_width": 7, "activation": jnp.tanh, "norm": "pre"}
    return transformer.blocks(**(sizes | LAWS | more))


def tokens(seed=1):
    return np.asarray(jax.random.normal(jax.random.key(seed), (N, T, D)), np.float64)


def numpy_norm(kind, params, x):
    mean = x.mean() if kind == "layer" else 0.0
    return params["gain"] * (x - mean) / np.sqrt(((x - mean) ** 2).mean() + 1e-5) + params.get("bias", 0.0)


def numpy_turn(x, t):
    k = x.size // 2
    turn = np.exp(1j * t * 10000.0 ** (-np.arange(k) / k))
    z = (x[:k] + 1j * x[k:]) * turn
    return np.concatenate([z.real, z.imag])


def numpy_attention(s, p, x, memory, seen):
    out = np.zeros_like(x)
    for h in range(s.heads):
        g = h // (s.heads // s.key_value_heads)
        q, k = x @ p["query"][h], memory @ p["key"][g]
        if s.scale == "qk_norm":
            q, k = (a / np.sqrt((a**2).mean(axis=1, keepdims=True) + 1e-5) for a in (q, k))
        if s.rotary:
            q, k = (np.stack([numpy_turn(row, t) for t, row in enumerate(a)]) for a in (q, k))
        scores = q @ k.T / (s.head_width if s.scale == "width" else np.sqrt(s.head_width))
        e = np.where(seen, np.exp(scores), 0)
        out += e / e.sum(axis=1, keepdims=True) @ memory @ p["value"][g] @ p["output"][h]
    return out


def numpy_states(s, layers, x, seen, gains=(1.0, 1.0), memory=None, added=None):
    """States of one example after every sublayer; the mean squares of what they add are appended to a list."""
    states, added = [], [] if added is None else added
    for l in range(s.depth):
        for name in ("attention", *(("cross",) if memory is not None else ()), *(("mlp",) if s.mlp_width else ())):
            p = jax.tree.map(lambda leaf, l=l: np.asarray(leaf[l], np.float64), layers[name])
            norm = lambda a, which, p=p: np.stack([numpy_norm(s.normalization, p[which], row) for row in a])  # noqa: E731
            inner = norm(x, "norm") if s.norm in ("pre", "sandwich") else x
            if name == "mlp":
                hidden = np.tanh(inner @ p["in"]) * (inner @ p["side"] if s.gated else 1.0)
                made = hidden @ p["out"]
            else:
                cross = name == "cross"
                mask = np.ones((len(x), len(memory)), bool) if cross else seen
                made = numpy_attention(s, p, inner, memory if cross else inner, mask)
            made = norm(made, "norm_out") if s.norm == "sandwich" else made
            added.append((made**2).mean())
            x = p.get("skip", gains[0]) * x + p.get("gate", gains[1]) * made
            x = norm(x, "norm") if s.norm == "post" else x
            states.append(x)
    return np.stack(states)


CAUSAL = np.tril(np.ones((T, T), bool))
GIVEN = CAUSAL | (np.arange(T)[:, None] == 0)
CASES = {
    "pre": ({}, {}),
    "post rms causal": ({"norm": "post", "normalization": "rms", "mask": "causal"}, {"seen": CAUSAL}),
    "sandwich gated": ({"norm": "sandwich", "gated": True}, {}),
    "none grouped": ({"norm": "none", "key_value_heads": 2, "scale": "width"}, {}),
    "qk norm rotary": ({"scale": "qk_norm", "rotary": True}, {}),
    "given mask": ({"mask": GIVEN, "mlp_width": None, "activation": None, "mlp_weights": None}, {"seen": GIVEN}),
    "by depth": ({"skip": "depth", "norm": "none"}, {"gains": (1.0, 0.5)}),
    "deepnorm": ({"skip": "deepnorm", "norm": "post"}, {"gains": (4**0.25, 1.0)}),
    "gate": ({"skip": "gate"}, {}),
    "admin": ({"skip": "admin", "norm": "post"}, {}),
    "fixup": ({"skip": "fixup", "norm": "none"}, {}),
    "pair": ({"skip": (0.5, 2.0)}, {"gains": (0.5, 2.0)}),
}


@pytest.mark.parametrize("name", some_fast(list(CASES), fast=(1, 4)))
def test_states_are_those_of_a_loop(name):
    more, oracle = CASES[name]
    settings, x = stack(**more), tokens()
    net = transformer.network(settings, outputs=3, readout_weights=UNIT)
    params = net.init(jax.random.key(0), jnp.asarray(x, jnp.float32))
    shift = lambda leaf: leaf + 0.1 * jnp.cos(1.0 + jnp.arange(leaf.size)).reshape(leaf.shape)  # noqa: E731
    params = jax.tree.map(shift, params)  # gains, biases and gates that are not trivial
    (states,) = net.states(params, jnp.asarray(x, jnp.float32))
    for example in range(N):
        seen = oracle.get("seen", np.ones((T, T), bool))
        expected = numpy_states(settings, params["blocks"], x[example], seen, oracle.get("gains", (1.0, 1.0)))
        np.testing.assert_allclose(states[:, example], expected, rtol=2e-4, atol=2e-4)
        last = expected[-1]
        if settings.norm in ("pre", "sandwich"):
            final = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["final"])
            last = np.stack([numpy_norm(settings.normalization, final, row) for row in last])
        outputs = last.mean(axis=0) @ np.asarray(params["readout"]["kernel"])
        np.testing.assert_allclose(net.apply(params, jnp.asarray(x, jnp.float32))[example], outputs, atol=3e-4)


@pytest.mark.slow
def test_gate_starts_as_the_identity_and_deepnorm_small():
    x = jnp.asarray(tokens(), jnp.float32)
    net = transformer.network(stack(skip="gate"), outputs=2, readout_weights=UNIT)
    (states,) = net.states(net.init(jax.random.key(0), x), x)
    np.testing.assert_array_equal(states, jnp.broadcast_to(x, states.shape))
    plain, scaled = (
        transformer.network(stack(skip=skip, norm="post"), outputs=2, readout_weights=UNIT).init(jax.random.key(0), x)
        for skip in ("unit", "deepnorm")
    )
    for part in ("value", "output"):
        ratio = scaled["blocks"]["attention"][part] / plain["blocks"]["attention"][part]
        np.testing.assert_allclose(ratio, 16**-0.25, rtol=1e-6)
    np.testing.assert_array_equal(scaled["blocks"]["attention"]["query"], plain["blocks"]["attention"]["query"])


def test_admin_sets_what_the_sublayers_before_have_added():
    """Against a loop over the plain post-norm stack; the gains that were there do not matter."""
    settings, x = stack(skip="admin", norm="post"), jnp.asarray(tokens(), jnp.float32)
    net = transformer.network(settings, outputs=2, readout_weights=UNIT)
    params = net.init(jax.random.key(0), x)
    found = transformer.admin(net, params, x)
    squares = np.zeros(2 * settings.depth)
    for example in tokens():
        added = []
        numpy_states(settings, params["blocks"], example, np.ones((T, T), bool), added=added)
        squares += np.array(added) / N
    expected = np.sqrt(1 + np.cumsum(squares) - squares).reshape(settings.depth, 2)
    for place, name in enumerate(("attention", "mlp")):
        np.testing.assert_allclose(found["blocks"][name]["skip"], expected[:, place, None] * np.ones(D), rtol=2e-4)
    again = transformer.admin(net, found, x)
    np.testing.assert_allclose(again["blocks"]["mlp"]["skip"], found["blocks"]["mlp"]["skip"], rtol=1e-6)
    plain = transformer.network(stack(norm="post"), outputs=2, readout_weights=UNIT)
    with pytest.raises(TypeError, match='network must be a transformer of blocks with skip="admin"'):
        transformer.admin(plain, params, x)
    with pytest.raises(ValueError, match="skip must not be admin unless norm is post; got 'pre'"):
        stack(skip="admin")


@pytest.mark.slow
def test_admin_of_wide_networks_is_as_predicted():
    n, tokens_of = 128, 6
    unit = initializers.variance_scaling(1.0)
    settings = transformer.blocks(
        depth=4, heads=16, head_width=16, mlp_width=256, activation=jax.nn.relu, norm="post", normalization="rms",
        skip="admin", query_key_weights=unit, value_weights=unit, mlp_weights=unit,
    )  # fmt: skip
    net = transformer.network(settings, outputs=2, readout_weights=unit)
    x = np.sqrt(n) * jnp.eye(tokens_of, n, dtype=jnp.float32)[None]

    @jax.jit
    @jax.vmap
    def gains(key):
        layers = transformer.admin(net, net.init(key, x), x)["blocks"]
        return jnp.stack([layers[name]["skip"][:, 0] for name in ("attention", "mlp")], axis=1).ravel()

    samples = np.asarray(gains(jax.random.split(jax.random.key(0), 60)), np.float64)
    theory = predicted.admin(blocks=4, tokens=tokens_of, score_gain=1.0, value_gain=1.0, mlp_gain=0.5)
    np.testing.assert_allclose(samples[:, 0], 1.0)
    found = statistics.agreement(theory[1:], samples[:, 1:])
    assert np.abs(found.z).max() < statistics.z_limit(10)
    assert (found.stderr < 0.01 * theory[1:]).all()


RULES = {
    "fixup": (4**-0.5, 0.0),  # two blocks of two branches, two weights in each
    "t_fixup": (0.67 * 2**-0.25,) * 2,
    "t_fixup_decoder": (18**-0.25,) * 2,
}


@pytest.mark.parametrize("skip", some_fast(list(RULES), fast=(0,)))
def test_deviations_are_those_of_the_published_rule(skip):
    """Against the same draws without the rule; queries and keys stay."""
    draw = lambda skip: _blocks.drawn(stack(skip=skip, norm="none"), jax.random.key(0), D, jnp.float32)  # noqa: E731
    plain, scaled = draw("unit"), draw(skip)
    factors = {"query": 1.0, "key": 1.0, "value": RULES[skip][0], "output": RULES[skip][1]}
    for name, factor in factors.items():
        np.testing.assert_allclose(scaled["attention"][name], factor * plain["attention"][name], rtol=1e-6)
    for name, factor in zip(("in", "out"), RULES[skip]):
        np.testing.assert_allclose(scaled["mlp"][name], factor * plain["mlp"][name], rtol=1e-6)


def test_one_stacks_constants_are_refused_for_two():
    more = {"vocabulary": 9, "width": D, "embedding_variance": 1.0, "readout_weights": UNIT}
    with pytest.raises(ValueError, match="decoder must have a pair of gains .* 'fixup'"):
        transformer.encoder_decoder(stack(), stack(skip="fixup"), **more)
    sides = stack(skip="t_fixup", norm="none"), stack(skip="t_fixup_decoder", norm="none", mask="causal")
    assert transformer.encoder_decoder(*sides, **more)


def model(**more):
    settings = {"vocabulary": 9, "width": D, "embedding_variance": 1.0, "readout_weights": UNIT}
    return transformer.language_model(stack(mask="causal"), **(settings | more))


def test_a_causal_language_model_does_not_see_the_future():
    net, x = model(positions="learned", positions_variance=0.1), jnp.arange(N * T).reshape(N, T) % 9
    params = net.init(jax.random.key(0), x)
    changed = x.at[:, 3].set((x[:, 3] + 1) % 9)
    before, after = net.apply(params, x), net.apply(params, changed)
    assert before.shape == (N, T, 9)
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    assert not np.allclose(before[:, 3:], after[:, 3:])
    with pytest.raises(ValueError, match="x must have at most the 5 tokens"):
        net.apply(params, jnp.zeros((N, T + 1), int))
    with pytest.raises(TypeError, match="^x must"):
        net.apply(params, jnp.zeros((N, T)))


def test_a_tied_head_is_the_embedding():
    net, x = model(tied=True, readout_weights=None), jnp.zeros((N, T), int)
    params = net.init(jax.random.key(0), x)
    assert "readout" not in params
    y = core.last_state(net.states(params, x), x)
    plain = (y - y.mean(axis=-1, keepdims=True)) / jnp.sqrt(y.var(axis=-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(net.apply(params, x), plain @ params["embedding"].T, atol=1e-5)
    with pytest.raises(ValueError, match="readout_weights must be given unless the head is tied"):
        model(tied=True)


@pytest.mark.slow
def test_sinusoidal_positions_and_patches():
    net = transformer.vision(
        stack(), patch=2, width=D, outputs=3, embedding_weights=UNIT, readout_weights=UNIT, positions="sinusoidal"
    )
    x = jax.random.normal(jax.random.key(0), (N, 4, 6, 2))
    params = net.init(jax.random.key(1), x)
    embedded = net.states(params, x)[0][0]
    patch = np.asarray(x[1, 2:4, 4:6]).reshape(-1)  # the last of 2 x 3 patches
    angles = 5 * 10000.0 ** (-2 * np.arange(3) / 6)
    expected = patch @ np.asarray(params["embedding"]) + np.concatenate([np.sin(angles), np.cos(angles)])
    np.testing.assert_allclose(embedded[1, 5], expected, atol=1e-5)
    assert net.apply(params, x).shape == (N, 3)
    with pytest.raises(ValueError, match="x must have sides that are multiples of patch = 2"):
        net.init(jax.random.key(1), x[:, :3])


@pytest.mark.slow
def test_decoder_looks_at_the_encoder():
    encoder, decoder = stack(), stack(mask="causal")
    net = transformer.encoder_decoder(
        encoder, decoder, vocabulary=9, width=D, embedding_variance=1.0, tied=True, positions="none"
    )
    x = (jnp.arange(8).reshape(2, 4) % 9, jnp.arange(6).reshape(2, 3) % 9)
    params = net.init(jax.random.key(0), x)
    states = net.states(params, x)
    assert [s.shape for s in states] == [(1, 2, 4, D), (4, 2, 4, D), (1, 2, 3, D), (6, 2, 3, D)]
    final = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["encoder"]["final"])
    for example in range(2):
        memory = np.stack([numpy_norm("layer", final, row) for row in np.asarray(states[1][-1][example], np.float64)])
        start = np.asarray(states[2][0][example], np.float64)
        seen = np.tril(np.ones((3, 3), bool))
        expected = numpy_states(decoder, params["decoder"]["blocks"], start, seen, memory=memory)
        np.testing.assert_allclose(states[3][:, example], expected, rtol=2e-4, atol=2e-4)
    assert net.apply(params, x).shape == (2, 3, 9)
    with pytest.raises(ValueError, match="encoder must have a pair of gains for skip, not 'deepnorm'"):
        transformer.encoder_decoder(
            stack(skip="deepnorm"), decoder, vocabulary=9, width=D, embedding_variance=1.0, tied=True
        )


@pytest.mark.parametrize(
    "more, error, message",
    [
        ({"key_value_heads": 3}, ValueError, "key_value_heads must divide the 4 heads; got 3"),
        ({"rotary": True, "head_width": 3}, ValueError, "head_width must be even"),
        ({"skip": "halfway"}, ValueError, "skip .*'halfway'"),
        ({"skip": 1.0}, TypeError, "skip must be one of .*got 1.0"),
        ({"mask": np.ones((2, 3), bool)}, TypeError, r"mask must be .*got bool of shape \(2, 3\)"),
        ({"norm": "batch"}, ValueError, "norm .*'batch'"),
        ({"mlp_weights": None}, TypeError, "mlp_weights"),
    ],
)
def test_wrong_settings_are_named(more, error, message):
    with pytest.raises(error, match=message):
        stack(**more)
