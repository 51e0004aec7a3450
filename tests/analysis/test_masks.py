"""Which keys of a softmax are closed is followed from the call: every way to write a mask, against NumPy."""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numdl.analysis import attention as measured
from numdl.networks import attention
from tests.oracles import softmax_rows

N, T, D = 2, 5, 3
LOW = float(jnp.finfo(jnp.float32).min)
CAUSAL = np.tril(np.ones((T, T), bool))
# Of the first example two keys are padding; its first query, which sees the first key alone, sees none.
KEEP = np.array([[False, True, True, False, True], [True, True, True, True, True]])
MASK = CAUSAL & KEEP[:, None, :]
X = {"tokens": np.asarray(jax.random.normal(jax.random.key(1), (N, T, D))), "keep": KEEP}
Q = np.asarray(jax.random.normal(jax.random.key(0), (D, D)))
BIAS = np.asarray(jax.random.normal(jax.random.key(2), (T, T)))
SCORES = 3 * np.einsum("nqd,nkd->nqk", X["tokens"].astype(float) @ Q, X["tokens"])
PARAMS = {"q": Q, "bias": BIAS}


@pytest.fixture(autouse=True, scope="module")
def broadcasting():
    """Masks are written with fewer axes than scores, as everybody does."""
    with jax.numpy_rank_promotion("allow"):
        yield


def mask_of(x):
    return jnp.tri(T, dtype=bool) & x["keep"][:, None, :]


def scores_of(params, x, shift=0.0):
    return 3 * jnp.einsum("nqd,nkd->nqk", x["tokens"] @ params["q"], x["tokens"]) + shift


def over_all(weigh):
    """One function with an attention for each way of weighing, and its numbers."""

    def apply(params, x):
        params = params | {"x": x["tokens"]}
        return sum(jnp.sum(each(scores_of(params, x), mask_of(x), params) @ x["tokens"]) for each in weigh)

    return jax.jit(lambda params, x: measured.logits(apply, params, x))(PARAMS, X)


def agree(found, place, scores, mask):
    got = [found.entropy[place], found.logit_max[place], found.shut[place]]
    np.testing.assert_allclose(got, softmax_rows(scores, mask), rtol=2e-5, err_msg=found.masks[place])


def soft(scores):
    return jax.nn.softmax(scores, axis=-1)


def inverse(mask):
    return 1.0 - mask.astype(jnp.float32)


def by_hand(scores, mask, params):
    weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.where(mask, weights, 0)
    return weights / (jnp.sum(weights, axis=-1, keepdims=True) + 1e-9)


def without_a_shift(scores, mask, params):
    return jnp.exp(scores) * mask / jnp.sum(jnp.exp(scores) * mask, axis=-1, keepdims=True)


def in_twos(scores, mask, params):
    scores = jnp.where(mask, scores, LOW / 2)
    weights = jnp.exp2((scores - scores.max(axis=-1, keepdims=True)) * float(np.log2(np.e)))
    return weights / weights.sum(axis=-1, keepdims=True)


WAYS = {
    "where -1e9": lambda s, m, p: soft(jnp.where(m, s, -1e9)),
    "where -1e30": lambda s, m, p: soft(jnp.where(m, s, -1e30)),
    "where -1e4": lambda s, m, p: soft(jnp.where(m, s, -1e4)),
    "where -inf": lambda s, m, p: soft(jnp.where(m, s, -jnp.inf)),
    "where finfo.min": lambda s, m, p: soft(jnp.where(m, s, LOW)),
    "select with the cases exchanged": lambda s, m, p: soft(jnp.where(~m, -1e9, s)),
    "added where -1e9": lambda s, m, p: soft(s + jnp.where(m, 0.0, -1e9)),
    "added where -inf": lambda s, m, p: soft(s + jnp.where(m, 0.0, -jnp.inf)),
    "added finfo.min": lambda s, m, p: soft(s + jax.lax.select(m, jnp.zeros_like(s), jnp.full_like(s, LOW))),
    "added product": lambda s, m, p: soft(s + inverse(m) * -1e9),
    "taken away": lambda s, m, p: soft(s - 1e9 * inverse(m)),
    "added logarithm": lambda s, m, p: soft(s + jnp.log(m.astype(jnp.float32))),
    "where= of softmax": lambda s, m, p: jax.nn.softmax(s, axis=-1, where=m),
    "where= of log_softmax": lambda s, m, p: jnp.exp(jax.nn.log_softmax(s, axis=-1, where=m)),
    "weights by hand": by_hand,
    "without a shift": without_a_shift,
    "in twos": in_twos,
    "the smaller": lambda s, m, p: soft(jnp.minimum(s, jnp.where(m, jnp.inf, -1e9))),
    "scaled afterwards": lambda s, m, p: soft(2 * jnp.where(m, s / 2, -1e9)),
    "two masks": lambda s, m, p: soft(
        jnp.where(jnp.tri(T, dtype=bool), s + jnp.where(m.any(1)[:, None], 0, -1e9), -1e9)
    ),
    "through a call of its own": lambda s, m, p: soft(-jax.nn.relu(-jnp.where(m, s - 90, -1e9)) + 90),
}


@pytest.fixture(scope="module")
def every_way():
    return over_all(list(WAYS.values()))


@pytest.mark.parametrize("place, name", list(enumerate(WAYS)), ids=list(WAYS))
def test_a_mask_is_followed_however_it_is_made(every_way, place, name):
    assert every_way.masks[place] != "none seen"
    agree(every_way, place, SCORES, MASK)


BIASES = {
    "a learned bias": (lambda s, m, p: soft(s + p["bias"]), SCORES + BIAS, True),
    "a learned bias and a mask in one term": (
        lambda s, m, p: soft(s + (p["bias"] + jnp.where(m, 0.0, -1e9))),
        SCORES + BIAS,
        MASK,
    ),
    "a slope over positions": (
        lambda s, m, p: soft(jnp.where(m, s - 200 * jnp.abs(jnp.arange(T)[:, None] - jnp.arange(T)), -jnp.inf)),
        SCORES - 200 * np.abs(np.arange(T)[:, None] - np.arange(T)),
        MASK,
    ),
    "an array of slopes with -inf": (
        lambda s, m, p: soft(s + np.where(CAUSAL, BIAS, -np.inf).astype(np.float32)),
        SCORES + BIAS,
        CAUSAL,
    ),
    "an array of 0 and -1e9": (lambda s, m, p: soft(s + np.where(CAUSAL, 0, -1e9)), SCORES, CAUSAL),
    "a small step": (lambda s, m, p: soft(s + jnp.where(m, 0.0, -0.5)), SCORES + np.where(MASK, 0, -0.5), True),
    "zeros instead of logits": (lambda s, m, p: soft(jnp.where(m, s / 9, 0.0)), np.where(MASK, SCORES / 9, 0), True),
    "the largest three": (
        lambda s, m, p: soft(jnp.where(s >= jnp.sort(s, axis=-1)[..., -3:-2], s, -1e9)),
        SCORES,
        np.sort(SCORES, axis=-1)[..., -3:-2] <= SCORES,
    ),
    "a leaky slope": (
        lambda s, m, p: soft(jnp.where(s > 0, s, 0.2 * s)),
        np.where(SCORES > 0, SCORES, 0.2 * SCORES),
        True,
    ),
    "a cut": (lambda s, m, p: soft(jnp.clip(s, -2, 2)), np.clip(SCORES, -2, 2), True),
    "a cut of all": (lambda s, m, p: soft(jnp.minimum(s + 300, 50)), np.full_like(SCORES, 50), True),
    "logits of data and parameters added": (
        lambda s, m, p: soft(s + 500 * jnp.sin(p["x"] @ p["bias"][:D])),
        SCORES + 500 * np.sin(X["tokens"] @ BIAS[:D]),
        True,
    ),
    "entries overwritten": (
        lambda s, m, p: soft(s.at[:, jnp.triu_indices(T, 1)[0], jnp.triu_indices(T, 1)[1]].set(-1e9)),
        SCORES,
        CAUSAL,
    ),
}


@pytest.fixture(scope="module")
def every_bias():
    return over_all([way for way, _, _ in BIASES.values()])


@pytest.mark.parametrize("place, name", list(enumerate(BIASES)), ids=list(BIASES))
def test_what_is_no_mask_closes_no_key(every_bias, place, name):
    _, scores, mask = BIASES[name]
    agree(every_bias, place, scores, mask)


@pytest.mark.parametrize("shift", [-1e4, -6e3, -3e4])
def test_low_logits_are_logits(shift):
    def apply(params, x):
        low = scores_of(params, x, shift)
        masked = soft(jnp.where(mask_of(x), scores_of(params, x, shift), -1e9))
        return jnp.sum(soft(low) @ x["tokens"]) + jnp.sum(masked @ x["tokens"])

    found = jax.jit(lambda params, x: measured.logits(apply, params, x))(PARAMS, X)
    low = np.asarray(jax.jit(scores_of)(PARAMS, X, shift), float)
    assert found.masks == ("none seen", "select")
    agree(found, 0, low, True)
    agree(found, 1, low, MASK)


def test_a_masked_key_that_keeps_its_weight_is_open():
    found = over_all([lambda s, m, p: soft(jnp.where(m, s / 9 - 1e4, -1e4))])
    agree(found, 0, np.where(MASK, SCORES / 9 - 1e4, -1e4), True)


def test_an_array_that_may_be_a_bias_or_a_mask_is_said_to_be_unknown():
    found = over_all([lambda s, m, p: soft(s + np.where(CAUSAL, BIAS, -1e4).astype(np.float32))])
    assert found.masks == ("added term",)
    assert np.isnan([found.entropy[0], found.logit_max[0]]).all()


def test_marks_that_are_lost_on_the_way_are_said():
    found = over_all([lambda s, m, p: soft(jnp.sort(jnp.where(m, s, -1e9), axis=-1))])
    assert found.masks == ("select and lost in sort",)
    assert np.isnan([found.entropy[0], found.logit_max[0]]).all()


def test_a_shift_that_knows_more_than_the_row_is_no_softmax():
    def sink(scores, mask, params):
        top = jnp.maximum(scores.max(axis=-1, keepdims=True), params["bias"][0, 0])
        return jnp.exp(scores - top)

    assert over_all([sink]).names == ()


# ---- in scans, checkpoints and branches: the mask is made outside ----------------------------------------------------


def states_of(bias):
    """The scores of two layers in NumPy, with the mask and this bias."""
    state, found = X["tokens"].astype(float), []
    for _ in range(2):
        scores = 3 * np.einsum("nqd,nkd->nqk", state @ Q, state) + bias
        found.append(scores)
        weights = np.exp(np.where(MASK, scores, -1e30) - np.where(MASK, scores, -1e30).max(-1, keepdims=True))
        state = weights / weights.sum(-1, keepdims=True) @ state
    return found


def layer(state, params, added):
    scores = 3 * jnp.einsum("nqd,nkd->nqk", state @ params["q"], state)
    return jnp.einsum("nqk,nkd->nqd", soft(scores + added), state)


def scanned(params, x):
    added = params["bias"] + jnp.where(mask_of(x), 0.0, -1e30)
    return jax.lax.scan(lambda state, _: (layer(state, params, added), None), x["tokens"], None, length=2)[0]


def scanned_carry(params, x):
    def step(carry, _):
        state, added = carry
        return (layer(state, params, added), added), None

    added = params["bias"] + jnp.where(mask_of(x), 0.0, -1e30)
    return jax.lax.scan(step, (x["tokens"], added), None, length=2)[0][0]


def scanned_masks(params, x):
    added = jnp.stack([params["bias"] + jnp.where(mask_of(x), 0.0, -1e30)] * 2)
    return jax.lax.scan(lambda state, each: (layer(state, params, each), None), x["tokens"], added)[0]


def checkpointed(params, x):
    added = params["bias"] + jnp.where(mask_of(x), 0.0, -1e30)
    one = jax.checkpoint(layer)
    return one(one(x["tokens"], params, added), params, added)


def branched(params, x):
    added = params["bias"] + jnp.where(mask_of(x), 0.0, -1e30)
    state = x["tokens"]
    for _ in range(2):
        plain = lambda state: layer(state, params, added)  # noqa: E731
        state = jax.lax.cond(jnp.sum(x["keep"]) > 0, plain, lambda state: 2 * state, state)
    return state


@pytest.mark.parametrize("apply", [scanned, scanned_carry, scanned_masks, checkpointed, branched])
def test_a_mask_made_outside_of_a_step_is_followed_into_it(apply):
    found = jax.jit(lambda params, x: measured.logits(apply, params, x))(PARAMS, X)
    assert found.masks == ("added term",) * 2
    for place, scores in enumerate(states_of(BIAS)):
        agree(found, place, scores, MASK)


# ---- frameworks ------------------------------------------------------------------------------------------------------


def heads(x):
    return x["tokens"][:, :, None, :]  # one head


def flax_masked(q, x):
    return nn.dot_product_attention(heads(x) @ q, heads(x), heads(x), mask=mask_of(x)[:, None])


def flax_biased(q, x):
    bias = jax.lax.select(mask_of(x), jnp.zeros((N, T, T)), jnp.full((N, T, T), LOW))[:, None]
    return nn.dot_product_attention(heads(x) @ q, heads(x), heads(x), bias=bias)


def jax_masked(q, x):
    return jax.nn.dot_product_attention(heads(x) @ q, heads(x), heads(x), mask=x["keep"][:, None, None], is_causal=True)


def equinox_masked(q, x):
    one = lambda x, mask: eqx.nn._attention.dot_product_attention(x @ q, x, x, mask)  # noqa: E731
    return jax.vmap(one)(x["tokens"], mask_of(x))


def keras_masked(q, x):
    """As keras.layers.Softmax adds it."""
    scores = jnp.einsum("nqd,nkd->nqk", x["tokens"] @ q, x["tokens"]) / np.sqrt(D)
    adder = (1.0 - mask_of(x).astype(scores.dtype)) * -1e9
    return jax.nn.softmax(scores + adder, axis=-1) @ x["tokens"]


def own(q, x):
    one = lambda x, keep: attention.attend(x @ q, x, x, causal=True, mask=jnp.broadcast_to(keep, (T, T)))  # noqa: E731
    return jax.vmap(one)(x["tokens"], x["keep"])


@pytest.mark.parametrize("apply", [flax_masked, flax_biased, jax_masked, equinox_masked, keras_masked, own])
def test_masks_of_frameworks(apply):
    found = jax.jit(lambda q, x: measured.logits(apply, q, x))(Q, X)
    assert len(found.names) == 1
    agree(found, 0, SCORES / 3 / np.sqrt(D), MASK)


def test_masks_of_haiku():
    def forward(x):
        layer = hk.MultiHeadAttention(1, D, w_init=hk.initializers.RandomNormal(), with_bias=False)
        return layer(x["tokens"], x["tokens"], x["tokens"], mask=mask_of(x)[:, None])

    net = hk.without_apply_rng(hk.transform(forward))
    params = net.init(jax.random.key(0), X)
    found = jax.jit(lambda params, x: measured.logits(net.apply, params, x))(params, X)
    q, k = (np.asarray(params[f"multi_head_attention/{name}"]["w"], float) for name in ("query", "key"))
    agree(found, 0, np.einsum("nqd,nkd->nqk", X["tokens"] @ q, X["tokens"] @ k) / np.sqrt(D), MASK)


def test_padding_as_a_leaf_of_numbers():
    """(1 - mask) low, the mask itself an input of 0 and 1."""

    def apply(params, x):
        added = (1.0 - x["keep"][:, None, :]) * -1e9
        return soft(scores_of(params, x) + added) @ x["tokens"]

    x = X | {"keep": KEEP.astype(np.float32)}
    found = jax.jit(lambda params, x: measured.logits(apply, params, x))(PARAMS, x)
    agree(found, 0, SCORES, np.broadcast_to(KEEP[:, None, :], (N, T, T)))
