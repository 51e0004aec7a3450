"""Transformers, theory beside measurement in standard errors: softmax moments, streams, gradients, the first loss.

Heads and their width grow together, k = H = sqrt(d): scores of narrow heads are not Gaussian and few heads do not
average. The means at three widths are taken as a + b / k + c / k^2, and a is what is predicted.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from numdl import statistics
from numdl.analysis import transformer as measured
from numdl.networks import core, initializers, transformer
from numdl.theory import transformer as predicted
from tests.selection import some_fast

pytestmark = pytest.mark.float32

LIMIT = statistics.z_limit(500)
SIDES = (6, 10, 16)  # heads, and the width of each
SEEDS = 300
TOKENS = 4


def at_infinite_width(samples, sides=SIDES):
    """Samples whose mean is the intercept of the fit a + b / k + c / k^2."""
    inverse = 1 / np.asarray(sides, float)
    weights = np.linalg.pinv(np.stack([np.ones(len(sides)), inverse, inverse**2], axis=1))[0]
    return sum(c * np.asarray(s, np.float64) for c, s in zip(weights, samples, strict=True))


def like(correlation, width, first=0):
    """T vectors [1, T, d] of mean square 1 with this correlation, exactly."""
    root = np.linalg.cholesky((1 - correlation) * np.eye(TOKENS) + correlation)
    vectors = np.zeros((1, TOKENS, width), np.float32)
    vectors[0, :, first : first + TOKENS] = root * math.sqrt(width)
    return jnp.asarray(vectors)


def stack(side, *, blocks, norm, score_gain, value_gain, mlp_gain, skip=1.0):
    law = initializers.variance_scaling
    made = transformer.blocks(
        depth=blocks,
        heads=side,
        head_width=side,
        mlp_width=side * side,
        query_key_weights=law(math.sqrt(score_gain)),
        value_weights=law(math.sqrt(value_gain)),
        mlp_weights=law(math.sqrt(2 * mlp_gain)),
        activation=jax.nn.relu,
        norm=norm,
        normalization="rms",
        skip=(skip, 1.0),
        eps=0.0,
    )
    return transformer.network(made, outputs=1, readout_weights=law(1.0))


@functools.partial(jax.jit, static_argnames="seeds")
def rows(key, net, x, cotangent, seeds):
    """[seeds, 4, S]: q, p, A, B after every sublayer."""
    ends = core.Network(net.init, net.states, Partial(lambda params, y: y))
    loss = Partial(lambda cotangent, outputs: jnp.sum(outputs * cotangent), cotangent)

    def one(key):
        params = net.init(key, x)
        run, back = measured.stream(ends, params, x), measured.gradients(ends, params, x, loss)
        return jnp.stack([run.q[:, 0], (run.q * run.c)[:, 0], back.spread, back.pooled])

    return jax.lax.map(one, jax.random.split(key, seeds), batch_size=10)


SETTINGS = [
    ("pre", 2.0, 1.0, 0.8, 1.0),
    ("post", 2.0, 1.0, 0.8, 1.0),
    ("sandwich", 1.0, 1.0, 1.0, 0.7),
    ("none", 1.0, 0.5, 0.7, 1.0),
]


@pytest.mark.slow
@pytest.mark.parametrize("norm, b, v, m, skip", SETTINGS)
def test_streams_and_gradients(norm, b, v, m, skip):
    gains = {"score_gain": b, "value_gain": v, "mlp_gain": m, "skip": skip, "norm": norm}
    samples = []
    for side in SIDES:
        x, cotangent = like(0.3, side**2), like(0.5, side**2, first=TOKENS) / side
        net = core.traceable(stack(side, blocks=2, **gains))
        samples.append(rows(jax.random.key(side), net, x, cotangent, SEEDS)[:, :, 1:-1])
    run = predicted.stream(blocks=2, tokens=TOKENS, c=0.3, **gains)
    back = predicted.gradients(blocks=2, tokens=TOKENS, c=0.3, pooled=0.5, **gains)
    told = np.stack([*(a[1:-1] for a in (run.q, run.q * run.c)), back.spread[1:], back.pooled[1:]])
    found = at_infinite_width(samples)
    varied = found.std(axis=0) > 1e-5  # lengths behind a norm are exact
    z = statistics.agreement(told[varied], found[:, varied]).z
    assert varied.sum() >= 9
    assert (np.abs(z) < LIMIT).all()


@pytest.mark.parametrize("score_gain", some_fast([0.5, 9.0], fast=(1,)))
def test_softmax_moments(score_gain):
    gains = {"score_gain": score_gain, "value_gain": 1.0, "mlp_gain": 1.0, "norm": "none"}
    samples = []
    for side in SIDES:
        x, net = like(0.3, side**2), stack(side, blocks=1, **gains)

        def one(key, net=net, x=x):
            found = measured.softmax_moments(net.apply, net.init(key, x), x)
            return jnp.stack([found.log_partition, found.participation, found.entropy, found.deviation**2])[:, 0]

        keys = jax.random.split(jax.random.key(side), SEEDS)
        samples.append(jax.jit(lambda keys, one=one: jax.lax.map(one, keys, batch_size=10))(keys))
    deviation = math.sqrt(score_gain * 0.7)
    told = predicted.softmax_moments(deviation=deviation, tokens=TOKENS)
    expected = [told.log_partition, told.participation, told.entropy, deviation**2]
    assert (np.abs(statistics.agreement(expected, at_infinite_width(samples)).z) < LIMIT).all()


@pytest.mark.slow
def test_weight_gradients():
    gains = {"score_gain": 2.0, "value_gain": 1.0, "mlp_gain": 1.0, "norm": "none", "skip": 0.0}
    samples = []
    for side in SIDES:
        x, cotangent = like(0.4, side**2), like(0.0, side**2, first=TOKENS) / side
        net = stack(side, blocks=1, **gains)

        @jax.jit
        def one(key, net=net, x=x, cotangent=cotangent):
            params = net.init(key, x)
            state = lambda params: jnp.sum(net.states(params, x)[0][0] * cotangent)  # noqa: E731
            by = jax.grad(state)(params)["blocks"]["attention"]
            return jnp.stack([jnp.sum(by[name] ** 2) for name in ("query", "key", "value")])

        samples.append(jax.lax.map(one, jax.random.split(jax.random.key(side), SEEDS), batch_size=10))
    # Sums of squares have the predicted ratio; their own scale is that of |dW_V|^2, known in closed form.
    root = math.sqrt(2.0)
    told = predicted.weight_gradients(
        q=1.0, c=0.4, tokens=TOKENS, query_variance=root, key_variance=root, value_variance=1.0
    )
    r = predicted.softmax_moments(deviation=math.sqrt(2.0 * 0.6), tokens=TOKENS).participation
    value = [s[:, 2] / (TOKENS * side**2 * (0.4 + 0.6 * r)) for s, side in zip(samples, SIDES, strict=True)]
    query = [s[:, 0] / (TOKENS * side**2 * (0.4 + 0.6 * r)) for s, side in zip(samples, SIDES, strict=True)]
    found = np.stack([at_infinite_width(query), at_infinite_width(value)], axis=1)
    assert (np.abs(statistics.agreement([told.query, 1.0], found).z) < LIMIT).all()


@pytest.mark.slow
def test_initial_loss():
    vocabulary, width, variance = 50, 64, 0.02
    made = stack(8, blocks=2, norm="pre", score_gain=1.0, value_gain=1.0, mlp_gain=1.0).init.args[0].blocks
    net = transformer.language_model(
        made,
        vocabulary=vocabulary,
        width=width,
        embedding_variance=1.0,
        readout_weights=initializers.normal(variance),
    )
    x = jnp.arange(12).reshape(2, 6) % vocabulary

    def one(key):
        logits = net.apply(net.init(key, x), x)
        return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - logits[..., 7])

    losses = jax.lax.map(one, jax.random.split(jax.random.key(0), 2000), batch_size=50)
    told = predicted.initial_loss(vocabulary=vocabulary, logit_variance=width * variance)
    assert abs(statistics.agreement(told, losses).z) < LIMIT
