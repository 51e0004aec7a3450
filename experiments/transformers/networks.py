"""What the experiments of this group share: tokens of an exact Gram matrix, stacks whose heads grow with the width."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from experiments.claiming import in_errors as in_errors
from experiments.claiming import near as near
from numdl.analysis import transformer as measured
from numdl.networks import core, initializers, transformer


def like(correlation, *, tokens, width, first=0):
    """Vectors [1, T, d] of mean square 1 whose pairs all have this correlation, exactly."""
    root = np.linalg.cholesky((1 - correlation) * np.eye(tokens) + correlation)
    vectors = np.zeros((1, tokens, width), np.float32)
    vectors[0, :, first : first + tokens] = root * math.sqrt(width)
    return jnp.asarray(vectors)


def network(side, *, blocks, norm, score_gain, value_gain, mlp_gain, skip=1.0):
    """`side` heads of that width; weights of variance one over fan_in times the roots of the gains; RMS norms.

    `skip` is the stream's gain, or the name of a rule for it.
    """
    law = initializers.variance_scaling
    has_mlp = mlp_gain is not None
    made = transformer.blocks(
        depth=blocks,
        heads=side,
        head_width=side,
        mlp_width=side * side if has_mlp else None,
        query_key_weights=law(math.sqrt(score_gain)),
        value_weights=law(math.sqrt(value_gain)),
        mlp_weights=law(math.sqrt(2 * mlp_gain)) if has_mlp else None,
        activation=jax.nn.relu if has_mlp else None,
        norm=norm,
        normalization="rms",
        skip=skip if isinstance(skip, str) else (skip, 1.0),
        eps=0.0,
    )
    return transformer.network(made, outputs=1, readout_weights=law(1.0))


@functools.partial(jax.jit, static_argnames="seeds")
def streams(key, net, x, seeds):
    """dict of [seeds, S]: q and 1 - c after every sublayer, the input first."""

    def one(key):
        run = measured.stream(net, net.init(key, x), x)
        return {"q": run.q[:, 0], "gap": run.gap[:, 0]}

    return jax.lax.map(one, jax.random.split(key, seeds), batch_size=4)


@functools.partial(jax.jit, static_argnames="seeds")
def flows(key, net, x, cotangent, seeds):
    """dict of [seeds, S]: q, 1 - c, spread, pooled after every sublayer, the input first."""
    ends = core.Network(net.init, net.states, Partial(lambda params, y: y))
    loss = Partial(lambda cotangent, outputs: jnp.sum(outputs * cotangent), cotangent)

    def one(key):
        params = net.init(key, x)
        run, back = measured.stream(ends, params, x), measured.gradients(ends, params, x, loss)
        q, gap = run.q[:, 0], run.gap[:, 0]
        return {"q": q, "gap": gap, "spread": back.spread, "pooled": back.pooled}

    return jax.lax.map(one, jax.random.split(key, seeds), batch_size=4)


def to_the_output(back, pooled):
    """(A, B) of predicted gradients at every state, the output's 1 and `pooled` last."""
    return np.append(back.spread, 1.0), np.append(back.pooled, pooled)


def at_infinite_width(samples, sides):
    """Samples whose mean is the intercept of the fit a + b / k + c / k^2 to the means at these head widths."""
    inverse = 1 / np.asarray(sides, float)
    columns = [np.ones(len(sides)), inverse, inverse**2][: max(2, len(sides))]
    weights = np.linalg.pinv(np.stack(columns, axis=1))[0]
    return sum(c * np.asarray(s, np.float64) for c, s in zip(weights, samples, strict=True))
