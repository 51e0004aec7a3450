"""Roles by tracing against what each model is by construction, rescaling and rates against the table of muP."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from numdl.optimize import scaling
from tests import widening
from tests.selection import in_turn

NARROW, WIDE = 16, 64
M = WIDE / NARROW
# (m_in, m_out) of the leaves, in their order, said by hand
KNOWN = {
    "plain": [(1, M), (M, M), (M, 1)],
    "linen": [(1, M), (M, M), (M, 1)],
    "nnx": [(1, M), (M, M), (M, 1)],
    "equinox": [(1, M), (M, M), (M, 1)],
    "haiku": [(1, M), (M, M), (M, 1)],
    "transformer": [(M, M), (M, M), (1, M), (1, M), (M, M), (M, M), (1, M), (M, 1), (1, M)],
    "conv": [(M, 1), (1, M), (M, M)],
    "scan": [(1, M), (M, 1), (M, M)],
}
HIDDEN, INPUT, OUTPUT = (M, M), (1, M), (M, 1)
DEVIATION = {HIDDEN: -0.5, INPUT: 0, OUTPUT: -1}


def table(build, **options):
    build = widening.broadcasting(build)
    return scaling.roles(build, (NARROW, WIDE), options.pop("x"), **options), build


@pytest.mark.parametrize("build", in_turn(widening.MODELS, 0, 2), ids=lambda build: build.__name__)
def test_roles_are_what_the_model_is_by_construction(build):
    roles, _ = table(build, x=widening.inputs(build))
    assert list(zip(roles.m_in, roles.m_out)) == KNOWN[build.__name__]
    assert roles.deviation.tolist() == [DEVIATION[pair] for pair in KNOWN[build.__name__]]
    assert not roles.notes


@pytest.mark.parametrize("build", in_turn(widening.MODELS, 1, 3), ids=lambda build: build.__name__)
def test_rescaled_and_multiplied_as_the_table_of_mup_says(build):
    roles, build = table(build, x=widening.inputs(build))
    params = build(WIDE)[1]
    scaled = scaling.rescale(params, roles, "mup")
    for one, other, (_, m_out) in zip(*map(jax.tree.leaves, (params, scaled)), KNOWN[build_name(roles, build)]):
        # every one of these is drawn with 1 / inputs, so muP changes the output layers alone
        assert np.allclose(other, one * (M**-0.5 if m_out == 1 else 1.0), rtol=1e-6)
    for optimizer, rate in (("adam", lambda i, o: 1 / i), ("sgd", lambda i, o: o / i)):
        transform = scaling.multipliers(roles, "mup", optimizer)
        updates, _ = transform.update(jax.tree.map(jnp.ones_like, params), transform.init(params))
        found = [float(leaf.ravel()[0]) for leaf in jax.tree.leaves(updates)]
        assert found == [rate(*pair) for pair in KNOWN[build_name(roles, build)]]


def build_name(roles, build):
    """The model whose leaves these are."""
    return next(b.__name__ for b in widening.MODELS if build.__closure__[0].cell_contents is b)


def test_a_second_use_is_refused_and_the_narrow_width_stays():
    roles, build = table(widening.plain, x=widening.inputs(widening.plain))
    scaled = scaling.rescale(build(WIDE)[1], roles, "mup")
    with pytest.raises(ValueError, match="params must be as build draws them; got .*already those of 'mup'"):
        scaling.rescale(scaled, roles, "mup")
    narrow = build(NARROW)[1]
    same = scaling.rescale(scaling.rescale(narrow, roles, "mup"), roles, "mup")
    assert all(a is b or (a == b).all() for a, b in zip(jax.tree.leaves(narrow), jax.tree.leaves(same)))
    other_seed = scaling.rescale(build(WIDE, 5)[1], roles, "mup")
    with pytest.raises(ValueError, match="rescale is applied once"):
        scaling.rescale(other_seed, roles, "mup")


def test_a_third_width_follows_from_the_axes():
    roles, build = table(widening.transformer, x=widening.inputs(widening.transformer))
    params = build(256)[1]
    scaled = scaling.rescale(params, roles, "mup")
    assert np.allclose(scaled["head"], params["head"] / 4)
    assert np.allclose(scaled["blocks"][0]["qkv"], params["blocks"][0]["qkv"])
    transform = scaling.multipliers(roles, "mup", "adam")
    updates, _ = transform.update(jax.tree.map(jnp.ones_like, params), transform.init(params))
    assert float(updates["blocks"][0]["down"][0, 0]) == 1 / 16


def embedded(width, seed=0, law=0.0, tied=False, power=0.5):
    """Tokens through a table of entries of size width^law, a hidden layer with bias, a head; tied or not."""
    k = jax.random.split(jax.random.key(seed), 4)
    params = {
        "table": jax.random.normal(k[0], (50, width)) * width**law,
        "hidden": widening.normal(k[1], width, width),
        "bias": jax.random.uniform(k[2], (width,), minval=-1) / width**power,
    }
    params |= {} if tied else {"head": widening.normal(k[3], width, 50)}

    def apply(params, x):
        h = jnp.tanh(params["table"][x] @ params["hidden"] + params["bias"][None])
        return h @ (params["table"].T if tied else params["head"])

    return apply, params


TOKENS = jnp.arange(12)


@pytest.mark.parametrize("law", [0.0, -0.5])
def test_an_embedding_and_a_bias_keep_their_size_whatever_law_they_are_drawn_with(law):
    build = lambda width, seed=0: embedded(width, seed, law)  # noqa: E731
    roles = scaling.roles(build, (NARROW, WIDE), TOKENS)
    assert dict(zip(roles.path, roles.role)) == {
        "table": "embedding", "hidden": "hidden", "bias": "vector", "head": "output",
    }  # fmt: skip
    scaled = scaling.rescale(build(WIDE)[1], roles, "mup")
    sizes = [float(jnp.std(tree["table"])) for tree in (build(NARROW)[1], scaled)]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.1)
    assert np.allclose(scaled["bias"], build(WIDE)[1]["bias"] * M**0.5)


def glorot(width, seed=0):
    apply, params = widening.plain(width, seed)
    init = jax.nn.initializers.glorot_normal()
    keys = jax.random.split(jax.random.key(seed), 3)
    return apply, [{"weight": init(k, layer["weight"].shape)} for k, layer in zip(keys, params)]


def test_other_laws_are_measured_and_undone():
    roles = scaling.roles(glorot, (64, 256), widening.inputs(widening.plain))
    drawn, scaled = glorot(256)[1], scaling.rescale(glorot(256)[1], roles, "mup")
    factors = [float(b["weight"][0, 0] / a["weight"][0, 0]) for a, b in zip(drawn, scaled)]
    variances = [[2 / (8 + n), 1 / n, 2 / (n + 4)] for n in (64, 256)]
    wanted = [variances[0][0], variances[0][1] / 4, variances[0][2] / 16]
    assert np.allclose(factors, np.sqrt(np.array(wanted) / variances[1]), rtol=1e-6)


def test_the_rules_are_one_function_and_its_rates():
    """ntk's rates are those of the multiplied form: W = w / sqrt(n) trained at rate 1 is W trained at these."""
    roles, build = table(widening.plain, x=widening.inputs(widening.plain))
    params = build(WIDE)[1]
    ones = jax.tree.map(jnp.ones_like, params)
    for optimizer, power in (("adam", 1), ("sgd", 2)):
        transform = scaling.multipliers(roles, "ntk", optimizer)
        updates, _ = transform.update(ones, transform.init(params))
        sigma = [1, M**-0.5, M**-0.5]
        assert [float(u["weight"][0, 0]) for u in updates] == [s**power for s in sigma]
    for rule in ("standard", "ntk", "standard with rate per layer"):
        assert all(
            (a == b).all() for a, b in zip(*map(jax.tree.leaves, (params, scaling.rescale(params, roles, rule))))
        )
    assert scaling.RULES["spectral"] == scaling.RULES["mup"]


def test_multipliers_compose_with_optax_and_masks():
    roles, build = table(widening.plain, x=widening.inputs(widening.plain))
    params = build(WIDE)[1]
    mask = [{"weight": True}, {"weight": False}, {"weight": True}]
    optimizer = optax.masked(optax.chain(optax.adam(0.5), scaling.multipliers(roles, "mup", "adam")), mask)
    gradients = jax.tree.map(jnp.ones_like, params)
    updates, _ = jax.jit(optimizer.update)(gradients, optimizer.init(params), params)
    assert np.allclose([u["weight"][0, 0] for u in updates], [-0.5, 1.0, -0.5 / M])
    with pytest.raises(ValueError, match="params must hold the leaves of the build, .*; got 'other'"):
        scaling.multipliers(roles, "mup", "adam").init({"other": jnp.ones(3)})


# ---- refused with what helps ----------------------------------------------------------------------------------------


def refused(build, x=None, widths=(NARROW, WIDE)):
    x = widening.inputs(widening.plain) if x is None else x
    with pytest.raises(ValueError, match="must .*; got ") as caught:
        scaling.roles(build, widths, x)
    return str(caught.value)


def test_tied_embeddings_are_refused_and_can_be_said_to_be_scaled():
    build = lambda width, seed=0: embedded(width, seed, tied=True)  # noqa: E731
    text = refused(build, TOKENS)
    assert "Untie them, or multiply the logits by narrow / width in apply and give embeddings=('table',)" in text
    roles = scaling.roles(build, (NARROW, WIDE), TOKENS, embeddings=["table"])
    row = roles.path.index("table")
    assert (roles.role[row], roles.m_in[row], roles.m_out[row]) == ("embedding", 1, M)
    with pytest.raises(ValueError, match="embeddings must be paths of leaves, of bias, hidden, table; got 'tabel'"):
        scaling.roles(build, (NARROW, WIDE), TOKENS, embeddings=["tabel"])


def making(shapes, forward):
    """A build of leaves of these shapes (functions of the width)."""

    def build(width, seed=0):
        keys = jax.random.split(jax.random.key(seed), len(shapes))
        params = {name: widening.normal(key, *shape(width)) for key, (name, shape) in zip(keys, shapes.items())}
        return forward, params

    return build


ENDS = {"first": lambda n: (8, n), "last": lambda n: (n, 4)}


def between(middle):
    return lambda p, x: jnp.tanh(jnp.tanh(x @ p["first"]) @ middle(p)) @ p["last"]


def normed(p):
    return p["g"] * p["v"] / jnp.linalg.norm(p["v"], axis=0, keepdims=True)


SQUARE = {"w": lambda n: (n, n)}
DERIVED = {
    "weight norm": ({"v": lambda n: (n, n), "g": lambda n: (1, n)}, normed),
    "low rank": (SQUARE | {"a": lambda n: (n, 2), "b": lambda n: (2, n)}, lambda p: p["w"] + p["a"] @ p["b"]),
    "half rank": ({"a": lambda n: (n, n // 2), "b": lambda n: (n // 2, n)}, lambda p: p["a"] @ p["b"]),
    "standardized": (SQUARE, lambda p: p["w"] / jnp.std(p["w"])),
    "multiplied": (SQUARE, lambda p: p["w"] * 0.25),
}


@pytest.mark.parametrize("kind", DERIVED)
def test_weights_that_are_computed_are_refused(kind):
    more, middle = DERIVED[kind]
    text = refused(making({**ENDS, **more}, between(middle)))
    assert "contract its leaves as they are" in text and "Remedy: " in text


def test_low_rank_layers_one_after_the_other_are_layers():
    shapes = {**ENDS, "a": lambda n: (n, 3), "b": lambda n: (3, n)}
    build = making(shapes, lambda p, x: x @ p["first"] @ p["a"] @ p["b"] @ p["last"])
    roles = scaling.roles(build, (NARROW, WIDE), widening.inputs(widening.plain))
    assert dict(zip(roles.path, roles.role)) == {"first": "input", "a": "output", "b": "input", "last": "output"}
    assert "a: its outputs stay (16, 3) and are read by a later layer: should they grow?" in roles.notes


def test_a_leaf_with_two_roles_is_refused_and_one_with_two_uses_is_not():
    text = refused(making({"w": lambda n: (8, n)}, lambda p, x: jnp.tanh(x @ p["w"]) @ p["w"].T))
    assert "tied: it is contracted in w, w#1, whose inputs grow differently" in text
    twice = making({**ENDS, "w": lambda n: (n, n)}, lambda p, x: (x @ p["first"] @ p["w"]) @ p["w"].T @ p["last"])
    roles = scaling.roles(twice, (NARROW, WIDE), widening.inputs(widening.plain))
    assert roles.m_in[roles.path.index("w")] == M


def test_leaves_side_by_side_have_roles_of_their_own():
    def apply(p, x):
        h = jnp.tanh(x @ p["x"])
        return jnp.tanh(jnp.concatenate([x, h], 1) @ jnp.concatenate([p["x"], p["h"]])) @ p["last"]

    joined = making({"x": lambda n: (8, n), "h": lambda n: (n, n), "last": lambda n: (n, 4)}, apply)
    roles = scaling.roles(joined, (NARROW, WIDE), widening.inputs(widening.plain))
    assert dict(zip(roles.path, zip(roles.m_in, roles.m_out))) == {"h": (M, M), "x": (1, M), "last": (M, 1)}


def test_what_is_no_widening_is_refused():
    constant = making({"w": lambda n: (8, 4)}, lambda p, x: x @ p["w"])
    assert "build must give a wider network" in refused(constant)
    deeper = making(
        {"w": lambda n: (n // 8, 8, 8)}, lambda p, x: jax.lax.scan(lambda h, w: (h @ w, None), x, p["w"])[0]
    )
    assert "build must change the width alone" in refused(deeper)
    coming = lambda n, seed=0: (lambda p, x: x @ p["w0"], {f"w{i}": jnp.ones((8, n)) for i in range(n // 16)})  # noqa: E731
    assert "got 'w1' only at width 64" in refused(coming)

    def mixture(p, x):
        chosen = p["experts"][jnp.arange(6) * (x[:, 0] > 0)]
        return jnp.einsum("nd,nde->ne", x @ p["first"], chosen) @ p["last"]

    experts = making({"experts": lambda n: (6, n, n), **ENDS}, mixture)
    assert "which of its axes is summed over is not known" in refused(experts)
    assert "widths must be two integers, narrow < wide" in refused(widening.plain, widths=(8, 8))
