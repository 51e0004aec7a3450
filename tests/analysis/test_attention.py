"""Rank collapse measured: against NumPy, against 1000-digit arithmetic below the rounding floor, beside the bound."""

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

from numdl import activations
from numdl.analysis import attention as measured
from numdl.networks import attention, core, initializers
from numdl.theory import attention as predicted
from tests.oracles import softmax_rows
from tests.selection import in_turn

UNIT = initializers.variance_scaling(1.0)


def build(depth, *, skip=False, mlp=False, heads=1, head_width=64, **more):
    extra = {"mlp_width": 64, "mlp_weights": initializers.he_normal, "activation": activations.relu} if mlp else {}
    return attention.network(
        depth=depth, heads=heads, head_width=head_width, outputs=1, skip=skip,
        query_key_weights=UNIT, value_weights=UNIT, **extra, **more,
    )  # fmt: skip


def tokens(shape=(2, 32, 64), dtype=None):
    return jax.random.normal(jax.random.key(3), shape, jnp.result_type(float) if dtype is None else dtype)


@pytest.mark.float32
def test_residual_and_diameter_are_those_of_numpy(key):
    net, x = build(3, skip=True, mlp=True), tokens((2, 6, 5))
    params = net.init(key, x)
    collapse = measured.rank_collapse(net, params, x)
    states = [np.asarray(x, np.float64), *np.asarray(net.states(params, x)[0], np.float64)]
    for level, state in enumerate(states):
        for example, rows in enumerate(state):
            relative = np.linalg.norm(rows - rows.mean(axis=0)) / np.linalg.norm(rows)
            farthest = max(np.linalg.norm(a - b) for a in rows for b in rows)
            np.testing.assert_allclose(collapse.log_residual[level, example], np.log(relative), atol=1e-5)
            np.testing.assert_allclose(collapse.log_diameter[level, example], np.log(farthest), atol=1e-5)
    assert collapse.resolved.all()


@pytest.mark.float32
@pytest.mark.slow
def test_rounding_is_not_reported(key):
    net, x = build(6), tokens()
    params = net.init(key, x)
    collapse = measured.rank_collapse(net, params, x)
    floor = float(np.exp(collapse.log_floor[0, 0]))
    assert 10 < floor / float(jnp.finfo(x.dtype).eps) < 100
    assert not collapse.resolved[-1].any()
    assert np.isnan(np.asarray(collapse.log_residual[-1])).all()
    assert np.isnan(np.asarray(collapse.log_diameter[-1])).all()
    # What was reported is right, in the plain states as in the split ones.
    split = measured.rank_collapse_of(attention.split_states(params, x, skip=False))
    kept = np.asarray(collapse.resolved)
    assert kept[:3].all()
    np.testing.assert_allclose(collapse.log_residual[kept], split.log_residual[kept], atol=0.1)
    # With a floor as given, more is let through.
    assert measured.rank_collapse(net, params, x, rounding=1e-30).resolved.sum() > kept.sum()


def exact_residuals(params, x):
    """One example, one head, at 1000 digits: ln of the relative residual, layer by layer."""
    layers = {name: np.asarray(leaf, np.float64) for name, leaf in params["layers"].items()}
    with mp.workdps(1000):
        y, out = mp.matrix(np.asarray(x, np.float64).tolist()), []
        for level in range(layers["query"].shape[0] + 1):
            mean = [mp.fsum(y[t, j] for t in range(y.rows)) / y.rows for j in range(y.cols)]
            spread = mp.fsum((y[t, j] - mean[j]) ** 2 for t in range(y.rows) for j in range(y.cols))
            out.append(float(mp.log(spread / mp.fsum(entry**2 for entry in y)) / 2))
            if level < layers["query"].shape[0]:
                q, k, v, o = (mp.matrix(layers[n][level, 0].tolist()) for n in ("query", "key", "value", "output"))
                scores = (y * q) * (y * k).T / mp.sqrt(q.cols)
                p = scores.apply(mp.exp)
                for t in range(p.rows):
                    total = mp.fsum(p[t, s] for s in range(p.cols))
                    for s in range(p.cols):
                        p[t, s] /= total
                y = p * y * v * o
    return out


@pytest.mark.float32
def test_split_states_are_exact_far_below_the_floor(key):
    net, x = build(6, head_width=4), tokens((1, 5, 4))
    params = net.init(key, x)
    collapse = measured.rank_collapse_of(attention.split_states(params, x, skip=False))
    exact = exact_residuals(params, x[0])
    assert exact[-1] < np.log(1e-40)
    np.testing.assert_allclose(collapse.log_residual[:, 0], exact, rtol=100 * jnp.finfo(x.dtype).eps, atol=1e-4)
    assert np.isneginf(np.asarray(collapse.log_floor)).all()


def test_rank_collapses_cubically_without_skips_and_not_with_them(key):
    x = tokens()
    pure, skipped, with_mlp = (build(5, **more) for more in ({}, {"skip": True}, {"mlp": True, "skip": True}))
    residual = measured.rank_collapse_of(attention.split_states(pure.init(key, x), x, skip=False)).log_residual
    slopes = np.asarray(residual[3:] / residual[2:-1])
    assert (slopes[1:] > 2.8).all()
    assert (slopes[1:] < 3.8).all()
    assert (np.asarray(residual[-1]) < -120).all()
    for net in (skipped, with_mlp):
        kept = measured.rank_collapse(net, net.init(key, x), x).log_residual
        assert float(kept[-1].min()) > np.log(0.1)


@pytest.mark.parametrize("scale", in_turn([0.1, 0.5, 3.0], 1))
@pytest.mark.parametrize("heads", [1, 3])
def test_the_bound_holds_layer_by_layer(key, scale, heads):
    net, x = build(5, heads=heads, head_width=8), scale * tokens((2, 10, 16))
    params = net.init(key, x)
    collapse = measured.rank_collapse_of(attention.split_states(params, x, skip=False))
    layers = {name: np.asarray(leaf) for name, leaf in params["layers"].items()}
    inner = np.einsum("lhdk,lhek->lhde", layers["query"], layers["key"])
    outer = np.einsum("lhdv,lhve->lhde", layers["value"], layers["output"])
    norms = {
        "query_key_norm": np.linalg.norm(inner, 2, axis=(2, 3)),
        "value_norm": np.linalg.norm(outer, 2, axis=(2, 3)),
    }
    for example in (0, 1):
        start = float(np.exp(collapse.log_diameter[0, example]))
        bound = predicted.rank_collapse(diameter=start, depth=5, head_width=8, **norms)
        assert (np.asarray(collapse.log_diameter[:, example]) <= bound.log_diameter + 1e-9).all()
    if scale == 0.1:
        # Small tokens are below the threshold, where the bound itself collapses.
        assert np.log(start) < bound.log_threshold
        assert bound.log_diameter[-1] < -50


def test_equal_tokens_are_collapsed(key):
    net, x = build(2, head_width=4), jnp.ones((1, 3, 4))
    params = net.init(key, x)
    assert not measured.rank_collapse(net, params, x).resolved.any()
    split = measured.rank_collapse_of(attention.split_states(params, x, skip=False))
    assert not split.resolved.any()
    assert np.isneginf(np.asarray(split.log_residual)).all()


def test_bad_input_is_named(key):
    net, x = build(2), tokens((1, 3, 4))
    params = net.init(key, x)
    with pytest.raises(TypeError, match=r"network .*got 3"):
        measured.rank_collapse(3, params, x)
    with pytest.raises(ValueError, match=r"x must have 3 axes; got shape \(3, 4\)"):
        measured.rank_collapse(net, params, x[0])
    with pytest.raises(ValueError, match=r"rounding .*got 0"):
        measured.rank_collapse(net, params, x, rounding=0.0)
    flat = core.Network(net.init, lambda params, x, probes=None: (jnp.mean(x, axis=1)[None],), net.readout)
    with pytest.raises(ValueError, match=r"network must have states of x's shape \(1, 3, 4\); got \[\(1, 4\)\]"):
        measured.rank_collapse(flat, params, x)


# ---- logits and entropy, against NumPy -------------------------------------------------------------------------------


def jax_nn(scores, mask):
    return jax.nn.softmax(jnp.where(mask, scores, -jnp.inf))


def additive(scores, mask):
    return jax.nn.softmax(scores + jnp.where(mask, 0.0, -1e9).astype(scores.dtype))


def by_hand(scores, mask):
    scores = jnp.where(mask, scores, -1e4)
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


CAUSAL = np.tril(np.ones((5, 5), bool))[None]
ROWS = np.ones((5, 5), bool) & np.array([True, False, True, True, True])[:, None]
CASES = [
    (jax_nn, np.ones((1, 5, 5), bool)),
    (jax_nn, CAUSAL),
    (additive, CAUSAL),
    (by_hand, CAUSAL),
    (by_hand, ROWS[None]),
]


@pytest.mark.parametrize("softmax, mask", CASES)
def test_logits_and_entropy_are_those_of_numpy(softmax, mask):
    q, x = np.asarray(jax.random.normal(jax.random.key(0), (3, 3))), np.asarray(tokens((2, 5, 3)))

    def apply(params, x):
        q = x @ params["q"]
        scores = 3 * jnp.einsum("nqd,nkd->nqk", q, x)
        return (softmax(scores, mask) @ x).sum(axis=1)

    found = measured.logits(apply, {"q": q}, x)
    expected = softmax_rows(3 * np.einsum("nqd,nkd->nqk", x @ q, x), np.broadcast_to(mask, (2, 5, 5)))
    assert found.names == ("attention/0",)
    np.testing.assert_allclose([found.entropy[0], found.logit_max[0], found.shut[0]], expected, rtol=1e-5)


def test_a_scanned_attention_has_an_entry_per_step_and_jit_knows_it():
    q, x = jax.random.normal(jax.random.key(0), (2, 3, 3)), tokens((2, 5, 3))

    def layer(x, q):
        scores = jnp.einsum("nqd,nkd->nqk", x @ q, x)
        return jnp.einsum("nqk,nkd->nqd", jax.nn.softmax(scores, axis=1), x), scores

    found = jax.jit(lambda q, x: measured.logits(lambda q, x: jax.lax.scan(layer, x, q)[0], q, x))(q, x)
    assert found.names == ("attention/0[0]", "attention/0[1]")
    state = x
    for step in range(2):
        after, scores = layer(state, q[step])
        flat = np.moveaxis(np.asarray(scores), 1, -1)  # this softmax runs over queries
        expected = softmax_rows(flat, np.ones(flat.shape, bool))
        np.testing.assert_allclose([found.entropy[step], found.logit_max[step]], expected[:2], rtol=1e-5)
        state = after


def test_what_has_no_softmax_has_no_logits():
    x = tokens((2, 5, 3))
    linear = measured.logits(lambda q, x: jnp.einsum("nqd,nkd->nqk", x @ q, x), jnp.eye(3), x)
    assert linear.names == ()
    assert linear.entropy.shape == (0,)
    head = measured.logits(lambda w, x: jax.nn.softmax(x @ w), jnp.eye(3), x)
    assert head.names == ()


def test_a_logit_that_is_not_finite_is_said():
    x = tokens((2, 5, 3)).at[0, 0, 0].set(jnp.nan)
    found = measured.logits(lambda q, x: jax.nn.softmax(jnp.einsum("nqd,nkd->nqk", x @ q, x)), jnp.eye(3), x)
    assert np.isnan(found.entropy[0]) and np.isnan(found.logit_max[0])
