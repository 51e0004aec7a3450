"""Heads that widen: what is drawn and trained smaller under muP, found in the call, against networks over the width."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from numdl.networks import initializers, transformer
from numdl.optimize import scaling
from tests import widening

NARROW, WIDE = 16, 64
M = WIDE / NARROW
HEADS, BASE = 2, NARROW // 2
X = np.random.default_rng(3).standard_normal((3, 5, 8)).astype(np.float32)


def draw(rng, *shape):
    return (rng.standard_normal(shape) / shape[0] ** 0.5).astype(np.float32)


def parts(h, p):
    return [h @ p[name] for name in ("query", "key", "value")]


def split(y):
    return [each.reshape(*each.shape[:2], HEADS, -1) for each in y]


def rms(x, gain=None):
    x = x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6)
    return x if gain is None else x * gain[None, None, None]


def turned(x):
    """Rotary positions."""
    angles = jnp.outer(jnp.arange(x.shape[1]), 100.0 ** -jnp.arange(x.shape[-1] // 2))[None, :, None]
    one, other = jnp.split(x, 2, axis=-1)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return jnp.concatenate([one * cos - other * sin, one * sin + other * cos], axis=-1)


# How a fused layer's output [N, T, 3 H k] is cut into queries, keys and values [N, T, H, k], and how to fuse [d, H, k].
LAYOUTS = {
    "qkv": (
        lambda y, k: split(jnp.split(y, 3, axis=-1)),
        lambda q, k, v: np.concatenate([each.reshape(len(q), -1) for each in (q, k, v)], 1),
    ),
    "kvq": (
        lambda y, k: split((y[..., 2 * HEADS * k :], y[..., : HEADS * k], y[..., HEADS * k : 2 * HEADS * k])),
        lambda q, k, v: np.concatenate([each.reshape(len(q), -1) for each in (k, v, q)], 1),
    ),
    "by head": (
        lambda y, k: [y.reshape(*y.shape[:2], HEADS, 3, k)[..., i, :] for i in range(3)],
        lambda q, k, v: np.stack([q, k, v], 2).reshape(len(q), -1),
    ),
    "by component": (
        lambda y, k: [*jnp.moveaxis(y.reshape(*y.shape[:2], HEADS, k, 3), -1, 0)],
        lambda q, k, v: np.stack([q, k, v], 3).reshape(len(q), -1),
    ),
    "taken": (
        lambda y, k: [jnp.take(y.reshape(*y.shape[:2], 3, HEADS, k), i, axis=2) for i in (1, 0, 2)],
        lambda q, k, v: np.stack([k, q, v], 1).reshape(len(q), -1),
    ),
}


def heads(power, layout=None, form="after", norm=None, rotary=False, bias=False):
    """Two heads that widen, scores over that power of their width, relative to NARROW's; fused or not."""

    def build(width, seed=0):
        rng, k = np.random.default_rng(seed + width), width // HEADS
        weights = {name: draw(rng, width, HEADS, k) for name in ("query", "key", "value")}
        more = {name: draw(rng, HEADS, k) for name in weights} if bias else {}
        params = {"into": draw(rng, 8, width), "out": draw(rng, width, 4)}
        if layout is None:
            params |= {name: each.reshape(width, -1) for name, each in weights.items()}
        else:
            fuse = LAYOUTS[layout][1]
            params |= {"fused": fuse(*weights.values())}
            params |= {"bias": fuse(*(each[None] for each in more.values()))[0]} if bias else {}
        params |= {"gain": np.ones(k, np.float32), "other": np.ones(k, np.float32)} if norm == "gain" else {}
        over = BASE**0.5 * (k / BASE) ** power

        def apply(p, x):
            h = jnp.tanh(x @ p["into"])
            if layout is None:
                q, key, v = split(parts(h, p))
            else:
                y = h @ p["fused"]
                q, key, v = LAYOUTS[layout][0](y + p["bias"][None, None] if bias else y, k)
            if norm:
                q, key = rms(q, p.get("gain")), rms(key, p.get("other"))
            if rotary:
                q, key = turned(q), turned(key)
            return jnp.mean(attended(q, key, v, over, form).reshape(h.shape), axis=1) @ p["out"]

        return apply, params

    return build


def attended(q, key, v, over, form):
    if form == "keys first":
        made = jax.nn.softmax(jnp.einsum("nshk,nthk->nhst", key, q) / over, axis=-2)
        return jnp.einsum("nhst,nshk->nthk", made, v)
    scores = jnp.einsum("nthk,nshk->nhts", q / over if form == "before" else q, key)
    scores = scores if form == "before" else scores / over
    if form == "after":
        scores = jnp.where(jnp.tril(jnp.ones(scores.shape[-2:], bool))[None, None], scores, -1e9)
    elif form == "capped":
        scores = 3 * jnp.tanh(scores / 3)
    if form == "by hand":
        made = jnp.exp(scores)
        made = made / made.sum(-1, keepdims=True)
    else:
        made = jax.nn.softmax(scores, axis=-1)
    return jnp.einsum("nhts,nshk->nthk", made, v)


def trained(build, optimizer, base):
    """(output after two steps under muP, roles)."""
    roles = scaling.roles(build, (NARROW, WIDE), X)
    apply, params = build(WIDE)
    params = scaling.rescale(params, roles, "mup")
    step = optax.chain(base, scaling.multipliers(roles, "mup", optimizer))

    @jax.jit
    def run(params):
        state, slope = step.init(params), jax.grad(lambda p: jnp.sum(apply(p, X) ** 2))
        for _ in range(2):
            updates, state = step.update(slope(params), state)
            params = optax.apply_updates(params, updates)
        return apply(params, X)

    return jnp.stack([jax.jit(apply)(params, X), run(params)]), roles


OPTIMIZERS = {"adam": optax.adam(0.01, eps=1e-12), "sgd": optax.sgd(0.1)}
# what is widened over the root of its heads' width, and the same network, q, k, v apart, over the width
CASES = {
    "apart": ({"form": "after"}, {"form": "after"}),
    "by hand": ({"form": "by hand"}, {"form": "by hand"}),
    "before": ({"form": "before"}, {"form": "before"}),
    "capped": ({"form": "capped"}, {"form": "capped"}),
    "keys first": ({"form": "keys first"}, {"form": "keys first"}),
    "rotary": ({"rotary": True}, {"rotary": True}),
    "gain": ({"norm": "gain"}, {"norm": "gain"}),
    "fused, gain, rotary": ({"layout": "by head", "norm": "gain", "rotary": True}, {"norm": "gain", "rotary": True}),
    "fused, keys first": ({"layout": "kvq", "form": "keys first"}, {"form": "keys first"}),
    **{f"fused, {layout}": ({"layout": layout}, {}) for layout in LAYOUTS},
}
QUICK = {("fused, by head", "adam"), ("gain", "sgd")}
PAIRS = [
    pytest.param(case, optimizer, marks=() if (case, optimizer) in QUICK else pytest.mark.slow)
    for case in CASES
    for optimizer in OPTIMIZERS
]


@pytest.mark.parametrize("case, optimizer", PAIRS)
def test_heads_over_the_root_are_and_train_as_apart_over_the_width(case, optimizer):
    """1/sqrt(k) with the queries' factor is the same path as 1/k, by Adam and by gradient descent."""
    root, width = (heads(power, **options) for power, options in zip((0.5, 1.0), CASES[case]))
    (found, roles), (wanted, plain) = (trained(each, optimizer, OPTIMIZERS[optimizer]) for each in (root, width))
    assert roles.notes and not plain.notes
    assert np.allclose(found, wanted, rtol=1e-4, atol=1e-6)
    assert not np.allclose(wanted[0], wanted[1], rtol=1e-2)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("options", [{}, {"rotary": True, "bias": True}, {"form": "keys first"}], ids=str)
def test_the_columns_of_queries_are_found_at_every_width(layout, options):
    """Marked by what they are when they are fused, for the widths of the table and for a third."""
    build = heads(0.5, layout, **options)
    roles = scaling.roles(build, (NARROW, WIDE), X)
    assert "the queries' part of fused" in roles.notes[0] and "0.5 times as large" in roles.notes[0]
    for width in (NARROW, WIDE, 2 * WIDE):
        params, k = build(width)[1], width // HEADS
        scaled = scaling.rescale(params, roles, "mup")
        marks = [np.full((width, HEADS, k), mark) for mark in ((width / NARROW) ** -0.5, 1.0, 1.0)]
        factors = LAYOUTS[layout][1](*marks)
        assert np.allclose(scaled["fused"], params["fused"] * factors, rtol=2e-2 if width > WIDE else 1e-5)
        step = scaling.multipliers(roles, "mup", "adam")
        updates, _ = step.update(jax.tree.map(np.ones_like, params), step.init(params))
        assert np.allclose(updates["fused"], factors * NARROW / width)
    assert np.allclose(scaling.rescale(params, roles, "standard")["fused"], params["fused"], rtol=2e-2)


def test_a_fused_leaf_is_rescaled_once():
    build = heads(0.5, "by head")
    roles = scaling.roles(build, (NARROW, WIDE), X)
    scaled = scaling.rescale(build(WIDE)[1], roles, "mup")
    with pytest.raises(ValueError, match="rescale is applied once"):
        scaling.rescale(scaled, roles, "mup")
    assert roles.deviation[roles.path.index("fused")] == -0.5
    with pytest.raises(ValueError, match="at others its axes cannot be told apart|not known"):
        scaling.rescale(dict(build(WIDE)[1], fused=np.ones((WIDE, 3 * WIDE + 1), np.float32)), roles, "mup")


def like(shapes, seed=0):
    """Leaves of these shapes, scales of norms 1; nothing is compiled."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: draw(rng, *s.shape) if len(s.shape) > 1 else np.ones(s.shape, np.float32), shapes)


def of_linen(normalize):
    def build(width, seed=0):
        nn = pytest.importorskip("flax.linen")

        class Model(nn.Module):
            @nn.compact
            def __call__(self, x):
                h = nn.Dense(width)(x)
                mix = nn.MultiHeadDotProductAttention(num_heads=HEADS, normalize_qk=normalize)
                return nn.Dense(4)((h + mix(h, h)).mean(1))

        return Model().apply, like(jax.eval_shape(Model().init, jax.random.key(0), X), seed)

    return build


def of_nnx(normalize):
    def build(width, seed=0):
        nnx = pytest.importorskip("flax.nnx")

        class Model(nnx.Module):
            def __init__(self, rngs):
                self.into, self.out = nnx.Linear(8, width, rngs=rngs), nnx.Linear(width, 4, rngs=rngs)
                self.mix = nnx.MultiHeadAttention(
                    HEADS, width, decode=False, normalize_qk=normalize, keep_rngs=False, rngs=rngs
                )

            def __call__(self, x):
                h = self.into(x)
                return self.out((h + self.mix(h)).mean(1))

        graph, state = nnx.split(nnx.eval_shape(lambda: Model(nnx.Rngs(0))))
        return lambda params, x: nnx.merge(graph, params)(x), like(state, seed)

    return build


def of_equinox(width, seed=0):
    eqx = pytest.importorskip("equinox")
    k = jax.random.split(jax.random.key(seed), 3)

    def made():
        ends = eqx.nn.Linear(8, width, key=k[0]), eqx.nn.Linear(width, 4, key=k[2])
        return (*ends, eqx.nn.MultiheadAttention(HEADS, width, key=k[1]))

    shapes, rest = eqx.partition(eqx.filter_eval_shape(made), lambda s: isinstance(s, jax.ShapeDtypeStruct))

    def one(params, x):
        into, out, mix = eqx.combine(params, rest)
        h = jax.vmap(into)(x)
        return out((h + mix(h, h, h)).mean(0))

    return lambda params, x: jax.vmap(lambda x: one(params, x))(x), like(shapes, seed)


def of_numdl(**options):
    """Under a scan over the depth."""

    def build(width, seed=0):
        laws = dict.fromkeys(("query_key_weights", "value_weights"), initializers.variance_scaling(1.0))
        stack = transformer.blocks(
            depth=2, heads=HEADS, head_width=width // HEADS, mlp_width=None, norm="none", **laws, **options
        )
        net = transformer.network(stack, outputs=4, readout_weights=laws["value_weights"])
        shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.ones((1, 5, width)))
        params = {"net": shapes, "into": jax.ShapeDtypeStruct((8, width), np.float32)}
        return lambda p, x: net.apply(p["net"], x @ p["into"]), like(params, seed)

    return build


KNOWN = {
    "linen": (of_linen(False), ["query/bias", "query/kernel"]),
    "linen, normalized": (of_linen(True), ["query_ln/scale"]),
    "nnx": (of_nnx(False), ["query/bias", "query/kernel"]),
    "nnx, normalized": (of_nnx(True), ["query_ln/scale"]),
    "equinox": (of_equinox, ["query_proj/weight"]),
    "numdl": (of_numdl(), ["attention/query"]),
    "numdl, rotary, grouped": (of_numdl(rotary=True, key_value_heads=1), ["attention/query"]),
}


@pytest.mark.parametrize("name", KNOWN)
def test_the_weights_of_queries_are_found(name):
    build, leaves = KNOWN[name]
    roles = scaling.roles(widening.broadcasting(build), (NARROW, WIDE), X)
    found = [leaf for leaf in roles.leaves if leaf.head]
    paths = [leaf.path.replace("/value", "") if "nnx" in name else leaf.path for leaf in found]
    assert [path[-len(end) :] for path, end in zip(paths, leaves, strict=True)] == leaves, roles
    assert all(leaf.undone(leaf.shapes[1]) == 0.5 and leaf.part is None for leaf in found)


@pytest.mark.parametrize("build", [heads(0.5, "qkv", norm="plain"), of_numdl(scale="qk_norm")])
def test_queries_that_are_normalized_without_a_gain_are_said(build):
    roles = scaling.roles(build, (NARROW, WIDE), X)
    assert len(roles.notes) == 1 and "queries and keys are normalized without a gain" in roles.notes[0]
    assert "a leaf of one entry for each of their components" in roles.notes[0]
    assert all(leaf.head is None for leaf in roles.leaves)


def of_cosines(p, q, k):
    """Queries and keys of norm 1: their scores do not grow."""
    q, k = (each / jnp.linalg.norm(each, axis=-1, keepdims=True) for each in (q, k))
    return 10 * q @ jnp.swapaxes(k, 1, 2)


def own_way(scores, more=lambda p, q: 0.0):
    """One head, fused, scores as that function of the parameters and of queries and keys says."""

    def build(width, seed=0):
        rng = np.random.default_rng(seed + width)
        params = {"into": draw(rng, 8, width), "fused": draw(rng, width, 3 * width), "out": draw(rng, width, 4)}

        def apply(p, x):
            q, k, v = jnp.split(x @ p["into"] @ p["fused"], 3, axis=-1)
            return jnp.mean(jax.nn.softmax(scores(p, q, k)) @ v + more(p, q), axis=1) @ p["out"]

        return apply, params

    return build


def over_root(q, k):
    return q @ jnp.swapaxes(k, 1, 2) / q.shape[-1] ** 0.5


UNDONE_BY_NO_LEAF = {
    "the same are queries and keys": own_way(lambda p, q, k: over_root(q, q)),
    "queries mixed with keys": own_way(lambda p, q, k: over_root(q + k, k - q)),
    "both go elsewhere": own_way(lambda p, q, k: over_root(q, k) + jnp.sum(k**2) / 1e3, lambda p, q: q),
    "no power": own_way(lambda p, q, k: over_root(jnp.tanh(q), jnp.tanh(k))),
}


@pytest.mark.parametrize("kind", UNDONE_BY_NO_LEAF)
def test_what_no_leaf_can_undo_alone_is_said(kind):
    roles = scaling.roles(UNDONE_BY_NO_LEAF[kind], (NARROW, WIDE), X)
    assert len(roles.notes) == 1 and "the head width grows by 4" in roles.notes[0]
    assert all(leaf.head is None for leaf in roles.leaves)


def test_queries_that_go_elsewhere_leave_it_to_the_keys():
    roles = scaling.roles(own_way(lambda p, q, k: over_root(q, k), lambda p, q: q), (NARROW, WIDE), X)
    part = next(leaf.part for leaf in roles.leaves if leaf.path == "fused")
    assert part.at((NARROW, 3 * NARROW)).ravel().tolist() == [False] * NARROW + [True] * NARROW + [False] * NARROW


def test_scores_of_cosines_do_not_grow():
    assert not scaling.roles(own_way(of_cosines), (NARROW, WIDE), X).notes
