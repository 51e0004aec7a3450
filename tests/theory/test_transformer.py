"""Softmax moments against quadrature over tokens and Stein's lemma; streams and gradients against conservation."""

import numpy as np
import pytest

from numdl.theory import transformer

STACK = {"blocks": 4, "tokens": 8, "score_gain": 1.5, "value_gain": 0.7, "mlp_gain": 0.9, "c": 0.2}


def two_tokens(deviation, rho=None):
    """(E ln Z, participation, entropy, overlap) at T = 2, where P is a sigmoid of one Gaussian: dense quadrature."""
    g = np.linspace(-9, 9, 3001)
    w = np.exp(-(g**2) / 2)
    w /= w.sum()
    x = np.sqrt(2) * deviation * g
    p = 1 / (1 + np.exp(-x))
    plog = np.logaddexp(0, x) - x / 2
    entropy = p * np.logaddexp(0, -x) + (1 - p) * np.logaddexp(0, x)
    if rho is None:
        return plog @ w, (p**2 + (1 - p) ** 2) @ w, entropy @ w, None
    grid = g[::10]
    v = np.exp(-(grid**2) / 2)
    v /= v.sum()
    y = np.sqrt(2) * deviation * (rho * grid[:, None] + np.sqrt(1 - rho**2) * grid)
    other = 1 / (1 + np.exp(-y))
    one = 1 / (1 + np.exp(-np.sqrt(2) * deviation * grid[:, None]))
    return None, None, None, v @ (one * other + (1 - one) * (1 - other)) @ v


@pytest.mark.parametrize("deviation", [1e-6, 0.3, 1.0, 1.01, 3.0, 30.0])
def test_two_tokens(deviation):
    made = transformer.softmax_moments(deviation=deviation, tokens=2)
    log_z, r, entropy, _ = two_tokens(deviation)
    np.testing.assert_allclose([made.participation, made.entropy], [r, entropy], rtol=1e-12)
    np.testing.assert_allclose(made.log_partition, log_z, rtol=1e-12)


@pytest.mark.parametrize("rho", [-0.9, -0.3, 0.0, 0.05, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("deviation", [0.4, 2.0])
def test_overlap_of_two_tokens(deviation, rho):
    made = transformer.joint_softmax_moments(deviation=deviation, correlation=rho, tokens=2)
    assert made.overlap == pytest.approx(two_tokens(deviation, rho)[3], rel=1e-12)


@pytest.mark.parametrize("deviation", [0.2, 0.7])
def test_three_tokens_by_gauss_hermite(deviation):
    nodes, weights = np.polynomial.hermite_e.hermegauss(50)
    weights = weights / weights.sum()
    s = deviation * np.stack(np.meshgrid(nodes, nodes, nodes, indexing="ij"))
    w = np.einsum("i,j,k->ijk", weights, weights, weights)
    log_z = np.logaddexp.reduce(s, axis=0)
    p = np.exp(s - log_z)
    square, cube = (p**2).sum(axis=0), (p**3).sum(axis=0)
    rows = [log_z, square, -(p * (s - log_z)).sum(axis=0), square - 2 * cube + square**2]
    made = transformer.softmax_moments(deviation=deviation, tokens=3)
    found = [made.log_partition, made.participation, made.entropy, made.response]
    np.testing.assert_allclose(found, [(row * w).sum() for row in rows], rtol=1e-12)


@pytest.mark.parametrize("tokens", [2, 50, 10**6])
@pytest.mark.parametrize("deviation", [1e-3, 0.5, 1.2, 8.0, 1000.0])
def test_steins_lemma(deviation, tokens):
    h = 1e-4 * deviation
    high, low = (transformer.softmax_moments(deviation=deviation + d, tokens=tokens).log_partition for d in (h, -h))
    made = transformer.softmax_moments(deviation=deviation, tokens=tokens)
    scale = deviation * (1 - made.participation)
    rounding = 4 * np.finfo(float).eps * made.log_partition / h
    assert abs((high - low) / (2 * h) - scale) < 3e-7 * scale + rounding
    stein = made.log_partition - deviation**2 * (1 - made.participation)
    assert abs(made.entropy - stein) < 1e-14 * (1 + deviation**2)


def test_three_moments_of_weights_in_samples():
    rng = np.random.default_rng(0)
    for rho, tokens in ((0.6, 6), (-0.2, 4)):
        common, one, other = 1.4 * rng.standard_normal((3, 60000, tokens))
        rows = []
        for own, sign in ((one, 1), (other, np.sign(rho))):
            e = np.exp(sign * np.sqrt(abs(rho)) * common + np.sqrt(1 - abs(rho)) * own)
            rows.append(e / e.sum(axis=1, keepdims=True))
        matrices = [np.einsum("ni,ij->nij", p, np.eye(tokens)) - p[:, :, None] * p[:, None] for p in rows]
        overlap, cross = (rows[0] * rows[1]).sum(axis=1), (matrices[0] * matrices[1]).sum(axis=(1, 2))
        own = (matrices[0] ** 2).sum(axis=(1, 2))
        joint = transformer.joint_softmax_moments(deviation=1.4, correlation=rho, tokens=tokens)
        single = transformer.softmax_moments(deviation=1.4, tokens=tokens)
        for samples, predicted in ((overlap, joint.overlap), (cross, joint.response), (own, single.response)):
            assert abs(samples.mean() - predicted) < 5 * samples.std() / np.sqrt(samples.size)


@pytest.mark.parametrize("tokens", [2, 33, 10**5])
@pytest.mark.parametrize("deviation", [0.2, 3.0, 100.0])
def test_equal_rows_overlap_as_one_and_independent_ones_by_chance(deviation, tokens):
    single = transformer.softmax_moments(deviation=deviation, tokens=tokens)
    joint = transformer.joint_softmax_moments(deviation=deviation, correlation=[1.0, 0.0], tokens=tokens)
    assert joint.overlap[0] == pytest.approx(single.participation, rel=1e-11)
    assert joint.response[0] == pytest.approx(single.response, rel=1e-9)
    assert joint.overlap[1] == pytest.approx(1 / tokens, rel=1e-11)


@pytest.mark.parametrize("deviation", [0.3, 40.0, 1e5])
def test_opposed_rows_of_two_tokens_change_places(deviation):
    there, back = transformer.joint_softmax_moments(deviation=deviation, correlation=[-1.0, 1.0], tokens=2).overlap
    assert there + back == pytest.approx(1, rel=1e-12)
    assert back == pytest.approx(transformer.softmax_moments(deviation=deviation, tokens=2).participation, rel=1e-11)


def test_what_is_not_computed_is_nan():
    made = transformer.joint_softmax_moments(deviation=[20.0, 100.0], correlation=-0.9, tokens=3)
    assert np.isfinite(made.overlap[0])
    assert np.isnan(made.overlap[1])


def test_limits():
    tiny = transformer.softmax_moments(deviation=1e-3, tokens=9)
    limit = transformer.softmax_limits(deviation=1e-3, tokens=9)
    assert tiny.participation == pytest.approx(limit.small_participation, rel=1e-9)
    assert tiny.entropy == pytest.approx(limit.small_entropy, rel=1e-9)
    many = transformer.softmax_moments(deviation=1.0, tokens=10**6)
    limit = transformer.softmax_limits(deviation=1.0, tokens=10**6)
    assert many.participation == pytest.approx(limit.large_participation, rel=1e-4)
    assert many.entropy == pytest.approx(limit.large_entropy, rel=1e-5)
    frozen = transformer.softmax_moments(deviation=1e4, tokens=10**6).participation
    assert 1 - frozen == pytest.approx(1 - transformer.softmax_limits(deviation=1e4, tokens=10**6).frozen_participation,
                                       rel=0.1)  # fmt: skip


def test_arguments_broadcast():
    made = transformer.softmax_moments(deviation=[[0.1], [2.0]], tokens=[4, 8, 16])
    assert made.participation.shape == (2, 3)
    assert made.participation[1, 2] == transformer.softmax_moments(deviation=2.0, tokens=16).participation
    run = transformer.stream(norm="pre", **(STACK | {"score_gain": [1.0, 2.0]}))
    alone = transformer.stream(norm="pre", **(STACK | {"score_gain": 2.0}))
    np.testing.assert_allclose(run.c[:, 1], alone.c, rtol=1e-14)
    back = transformer.gradients(norm="post", pooled=[0.0, 0.5], **STACK)
    assert back.spread.shape == (8, 2)


def test_least_entropy_is_attained_by_one_large_score():
    for tokens, norm in ((2, 1.0), (7, 3.0), (50, 10.0)):
        scores = np.full(tokens, -1 / np.sqrt(tokens * (tokens - 1)))
        scores[0] = np.sqrt((tokens - 1) / tokens)
        p = np.exp(norm * scores) / np.exp(norm * scores).sum()
        bound = transformer.least_entropy(norm=norm, tokens=tokens)
        assert bound == pytest.approx(-(p * np.log(p)).sum(), rel=1e-12)
        others = np.random.default_rng(0).standard_normal((200, tokens))
        others -= others.mean(axis=1, keepdims=True)
        e = np.exp(norm * others / np.linalg.norm(others, axis=1, keepdims=True))
        e /= e.sum(axis=1, keepdims=True)
        assert (-(e * np.log(e)).sum(axis=1) >= bound - 1e-12).all()


def test_uniform_attention_makes_all_tokens_equal():
    made = transformer.attention_map(q=2.0, c=0.3, tokens=5, score_gain=0.0, value_gain=0.5)
    assert (made.q, made.c) == pytest.approx((0.5 * 2 * (0.3 + 0.7 / 5), 1.0))
    assert made.entropy == pytest.approx(np.log(5))


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_signal_times_gradient_is_conserved_under_uniform_attention(norm):
    settings = STACK | {"score_gain": 0.0, "mlp_gain": 0.0}
    run, back = transformer.stream(norm=norm, **settings), transformer.gradients(norm=norm, pooled=0.3, **settings)
    a, b = np.append(back.spread, 1.0), np.append(back.pooled, 0.3)
    spread = run.q * run.gap * (a - b)
    means = (run.q * (1 + 7 * run.c)) * (a + 7 * b)
    np.testing.assert_allclose(spread, spread[0], rtol=1e-12)
    np.testing.assert_allclose(means, means[0], rtol=1e-12)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_mlps_alone_telescope(norm):
    settings = STACK | {"value_gain": 0.0}
    run, back = transformer.stream(norm=norm, **settings), transformer.gradients(norm=norm, pooled=0.0, **settings)
    np.testing.assert_allclose(run.q[:-1] * back.spread, run.q[-1], rtol=1e-12)


def test_pre_norm_tokens_collapse_as_a_power():
    run = transformer.stream(blocks=400, tokens=16, norm="pre", score_gain=0.0, value_gain=1.0, mlp_gain=1.0, c=0.0)
    depth, gap = np.arange(801), run.gap
    slope = np.log(gap[800] / gap[400]) / np.log(depth[800] / depth[400])
    assert -0.62 < slope < -0.5  # v / (v + m) = 1/2, and logarithms
    post = transformer.stream(blocks=40, tokens=16, norm="post", score_gain=0.0, value_gain=1.0, mlp_gain=0.0)
    np.testing.assert_allclose(post.gap[42::2] / post.gap[40:-2:2], 0.5, rtol=1e-5)


def test_no_norm_scaled_by_depth_keeps_tokens_apart():
    blocks = 2000
    run = transformer.stream(blocks=blocks, tokens=10, norm="none", score_gain=0.0, value_gain=1 / blocks, mlp_gain=0.0)
    assert run.c[-1] == pytest.approx((np.e - 1) / (10 + np.e - 1), rel=1e-3)


def test_vanishing_query_gradients_in_the_uniform_limit():
    t, c, q = 12, 0.6, 1.3
    made = transformer.weight_gradients(q=q, c=c, tokens=t, query_variance=0.0, key_variance=2.0, value_variance=0.5)
    expected = 2.0 * 0.5 * q**2 * (1 - c) ** 2 * ((t - 1) / t**2) / (c + (1 - c) / t)
    assert made.query == pytest.approx(expected, rel=1e-11)
    assert made.key == 0


def test_gradients_of_one_attention_are_those_of_a_network():
    # Infinite width within five standard errors; every path, at tokens so few that all of them count.
    rng = np.random.default_rng(3)
    t, c, b, pooled, d, heads = 3, 0.5, 4.0, 0.7, 96, 4
    x = np.linalg.cholesky((1 - c) * np.eye(t) + c) @ np.linalg.qr(rng.standard_normal((d, t)))[0].T * np.sqrt(d)
    root = np.linalg.cholesky((1 - pooled) * np.eye(t) + pooled)
    rows = []
    for _ in range(500):
        g, back = root @ rng.standard_normal((t, d)) / np.sqrt(d), np.zeros((t, d))
        for _ in range(heads):
            wq, wk, wv = rng.standard_normal((3, d, d // heads)) / np.sqrt(d)
            wq, wk = b**0.25 * wq, b**0.25 * wk
            wo = rng.standard_normal((d // heads, d)) / np.sqrt(d)
            s = x @ wq @ (x @ wk).T / np.sqrt(d // heads)
            p = np.exp(s) / np.exp(s).sum(axis=1, keepdims=True)
            go = g @ wo.T
            dp = go @ (x @ wv).T
            ds = p * (dp - (dp * p).sum(axis=1, keepdims=True)) / np.sqrt(d // heads)
            back += p.T @ go @ wv.T + ds @ (x @ wk) @ wq.T + ds.T @ (x @ wq) @ wk.T
        gram = back @ back.T
        rows.append((np.trace(gram) / t, (gram.sum() - np.trace(gram)) / (t * (t - 1))))
    rows = np.array(rows)
    both = transformer.gradients(
        blocks=1, tokens=t, norm="none", score_gain=b, value_gain=1.0, mlp_gain=0.0, skip=1.0, c=c, pooled=pooled
    )
    predicted = np.array([both.spread[0] - 1, both.pooled[0] - pooled])
    assert (np.abs(rows.mean(axis=0) - predicted) < 5 * rows.std(axis=0) / np.sqrt(len(rows))).all()


def test_deepnorm_is_nearly_the_identity():
    for blocks in (12, 100, 1000):
        rule = transformer.deepnorm(blocks=blocks)
        assert rule.branch == pytest.approx(rule.beta**4 / rule.alpha**2, rel=1e-13)
        assert 2 * blocks * 2 * rule.beta**2 / rule.alpha**2 == pytest.approx(1, rel=1e-13)
    rule = transformer.deepnorm(blocks=100)
    gains = {"value_gain": rule.beta**4, "mlp_gain": rule.beta**4, "score_gain": 0.0}
    back = transformer.gradients(blocks=100, tokens=8, norm="post", skip=rule.alpha, pooled=0.0, c=0.1, **gains)
    assert rule.least_gradient <= back.spread[0] <= 1.0


def test_exponents_and_edge():
    made = transformer.exponents(value_gain=1.0, mlp_gain=0.8, slope_gain=1.2)
    assert made.gradient == pytest.approx(np.log(2.2 / 1.8))
    assert made.angle == pytest.approx(np.log(2.2 / 3.6))


def test_initial_loss_of_tied_heads():
    rng = np.random.default_rng(5)
    logits = np.sqrt(0.5) * rng.standard_normal((20000, 40))
    plain = np.logaddexp.reduce(logits, axis=1)
    logits[:, 0] += 3.0
    tied = np.logaddexp.reduce(logits, axis=1)
    for own, samples in ((0.0, plain), (3.0, tied)):
        made = transformer.initial_loss(vocabulary=40, logit_variance=0.5, own_logit=own)
        assert abs(samples.mean() - made) < 5 * samples.std() / np.sqrt(samples.size)
    assert transformer.initial_loss(vocabulary=40, logit_variance=0.0) == pytest.approx(np.log(40), rel=1e-14)


def test_causal_attention_of_orthonormal_tokens():
    made = transformer.gram_stream(
        blocks=1, gram=np.eye(6), mask=np.tri(6, dtype=bool), norm="none", value_gain=1.0, mlp_gain=0.0, skip=0.0
    )
    i = np.arange(1, 7)
    np.testing.assert_allclose(made[1], 1 / np.maximum(i[:, None], i), rtol=1e-14)
    full = transformer.gram_stream(
        blocks=3, gram=0.7 * np.eye(6) + 0.3, mask=np.ones((6, 6), bool), norm="pre", value_gain=0.7, mlp_gain=0.9
    )
    run = transformer.stream(blocks=3, tokens=6, norm="pre", score_gain=0.0, value_gain=0.7, mlp_gain=0.9, c=0.3)
    np.testing.assert_allclose(full[:, 0, 0], run.q, rtol=1e-12)
    np.testing.assert_allclose(full[:, 0, 1] / full[:, 0, 0], run.c, rtol=1e-12)


@pytest.mark.parametrize(
    "more, message",
    [
        ({"c": -0.5}, r"c must be at least -1/\(tokens - 1\) = -0.1429 .*got -0.5"),
        ({"tokens": 1}, "tokens .*got 1"),
        ({"norm": "batch"}, "norm .*got 'batch'"),
        ({"blocks": 0}, "blocks .*got 0"),
    ],
)
def test_bad_input_is_named(more, message):
    with pytest.raises(ValueError, match=message):
        transformer.stream(**({"norm": "pre"} | STACK | more))
