"""Which transformers need a warm-up of the rate, those with norms before their branches or those with norms after?

Question
--------
The first transformers, with norms after each branch (post-norm), were trained with rates that rise from zero. Do
small deep ones need this, do pre-norm ones, and what did theory say before the first step?

Prediction
----------
The gradients of the last block: with pre-norm the stream grows, q ~ depth, its last norm divides by sqrt(q), and the
gradient with it; with post-norm depth changes them only by making tokens alike. Hence too large a first step
only for post-norm: fewer rates train it, and the learning-rate sensitivity, the mean over rates of min(loss, initial
loss) less the best, is larger. A warm-up lowers it, the longer the more.
Source: Xiong et al. 2020, arXiv:2002.04745, theorem 1; theory.transformer.stream; Wortsman et al. 2023,
arXiv:2309.14322, section 3.2.1.

Measurement
-----------
The gradient of the last block's second MLP matrix at the start, at depths 2 to 16, beside theory's. Digits as
four patches, 8 blocks of width 16, Adam on one batch at octaves of the rate: pre- and post-norm, without warm-up
and with one over an eighth and over half of the steps.

Verdict
-------
30 networks for each gradient, five for each of six rates, 48 steps, two x86 cores shared with many other programs,
658 s (97 s of one core's time). From depth 2 to 16 the logarithm of the last block's gradient changes by -0.82 +-
0.04 with pre-norm (predicted -0.82) and by +0.28 +- 0.04 with post-norm (+0.22). Without warm-up post-norm's
sensitivity is 0.91, pre-norm's 0.15, a difference of 0.75 +- 0.03 nats: at the rate 2^-6 post-norm ends at 2.0 nats,
pre-norm at 0.004. That a warm-up of half of the steps lowers post-norm's sensitivity was a claim of this run and is
none now: 0.81 instead of 0.91, a difference of 0.094 +- 0.054, is 1.7 standard errors. What it does is plain at
single rates (0.84 instead of 2.0 nats at 2^-6, 0.039 instead of 0.14 at 2^-7); pre-norm gains nothing from it (0.19
instead of 0.15).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.drawing import dress
from experiments.transformers import networks
from numdl import data, plotting
from numdl.analysis import scaling as measured
from numdl.networks import initializers, transformer
from numdl.optimize import losses
from numdl.records import record
from numdl.theory import transformer as predicted

XIONG = "Xiong et al. 2020, arXiv:2002.04745"
NORMS = ("pre", "post")
UNIT = initializers.variance_scaling(1.0)
HEADS, HEAD = 2, 8
WIDTH, PATCH, TOKENS, POSITIONS = HEADS * HEAD, 4, 4, 0.1


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the experiment."""

    depths: tuple[int, ...] = (2, 6, 16)
    draws: int = 30  # networks for each gradient
    looked: int = 4  # images for it
    blocks: int = 8
    images: int = 16
    steps: int = 48
    halvings: tuple[int, ...] = (10, 8, 7, 6, 5, 4)  # rates 2^-h
    warmups: tuple[int, ...] = (0, 6, 24)
    seeds: int = 5
    seed: int = 0

    @classmethod
    def tiny(cls):
        """For the tests: seconds."""
        return cls(depths=(2, 8), draws=20, steps=24, halvings=(8, 6, 4), warmups=(0, 12))


@record
class Result:
    """Norms first: pre, post."""

    gradient: np.ndarray  # [2, depths, draws] of an image by the last block's second MLP matrix, rms over images
    tokens: np.ndarray  # [2] of the embedded patches: mean square, mean product of two in a picture
    loss: np.ndarray  # [2, warmups, rates, seeds] at the end
    first: np.ndarray  # [2, seeds]


def network(blocks, norm):
    """A vision transformer of this depth; every gain one."""
    stack = transformer.blocks(
        depth=blocks,
        heads=HEADS,
        head_width=HEAD,
        mlp_width=2 * WIDTH,
        query_key_weights=UNIT,
        value_weights=UNIT,
        mlp_weights=initializers.variance_scaling(2.0**0.5),
        activation=jax.nn.relu,
        norm=norm,
    )
    ends = {"embedding_weights": UNIT, "readout_weights": UNIT, "positions_variance": POSITIONS}
    return transformer.vision(stack, patch=PATCH, width=WIDTH, outputs=10, **ends)


def run(config):
    """Gradients at the start, and the trainings."""
    digits = data.digits()
    x = jnp.asarray(data.standardize(digits.images)[: config.images], jnp.float32).reshape(-1, 8, 8, 1)
    labels = jnp.asarray(digits.labels[: config.images])
    rates = jnp.asarray(rates_of(config), jnp.float32)
    keys = jax.random.split(jax.random.key(config.seed), config.draws)
    warmups = jnp.asarray(config.warmups, jnp.float32)
    few = x[: config.looked], labels[: config.looked]
    gradient = [[_gradient(network(depth, norm), keys, *few) for depth in config.depths] for norm in NORMS]
    found = [
        _trained(network(config.blocks, norm), keys[: config.seeds], rates, warmups, x, labels, config.steps)
        for norm in NORMS
    ]
    loss, first = (np.stack([np.asarray(one[i], np.float64) for one in found]) for i in range(2))
    return Result(np.asarray(gradient, np.float64), _tokens(few[0]), loss, first)


def rates_of(config):
    """The grid of rates."""
    return 2.0 ** -np.asarray(config.halvings, float)


def _loss(net, params, x, labels):
    return losses.softmax_cross_entropy(net.apply(params, x), labels)


def _tokens(x):
    """Mean square of the embedded patches at infinite width, and mean product of two of a picture."""
    side = x.shape[1] // PATCH
    cut = np.asarray(x, np.float64)[..., 0].reshape(-1, side, PATCH, side, PATCH).swapaxes(2, 3)
    cut = cut.reshape(len(cut), TOKENS, PATCH * PATCH)
    gram = np.einsum("ntk,nuk->tu", cut, cut) / len(cut) / PATCH**2
    square, pair = np.trace(gram) / TOKENS + POSITIONS, (gram.sum() - np.trace(gram)) / TOKENS / (TOKENS - 1)
    return np.array([square, pair])


@jax.jit
def _gradient(net, keys, x, labels):
    def one(key):
        params = net.init(key, x)

        def slope(x, label):
            return jax.grad(lambda params: _loss(net, params, x[None], label[None]))(params)["blocks"]["mlp"]["out"][-1]

        return jnp.sqrt(jnp.mean(jnp.sum(jax.vmap(slope)(x, labels) ** 2, axis=(1, 2))))

    return jax.lax.map(one, keys)


@functools.partial(jax.jit, static_argnames="steps")
def _trained(net, keys, rates, warmups, x, labels, steps):
    """(loss at the end [warmups, rates, seeds], before [seeds])."""
    adam = optax.scale_by_adam()

    def one(warmup, rate, key):
        params = net.init(key, x)

        def step(carry, t):
            params, state = carry
            slope = jax.grad(lambda params: _loss(net, params, x, labels))(params)
            updates, state = adam.update(slope, state)
            now = rate * jnp.minimum(1.0, (t + 1) / jnp.maximum(warmup, 1.0))
            return (jax.tree.map(lambda p, u: p - now * u, params, updates), state), None

        (params, _), _ = jax.lax.scan(step, (params, adam.init(params)), jnp.arange(steps))
        return _loss(net, params, x, labels)

    over_seeds = jax.vmap(one, (None, None, 0))
    last = jax.lax.map(lambda warmup: jax.lax.map(lambda rate: over_seeds(warmup, rate, keys), rates), warmups)
    return last, jax.vmap(lambda key: _loss(net, net.init(key, x), x, labels))(keys)


def growth(config, result):
    """Predicted ln of the last block's gradient at each depth, over that at the first, [2, depths].

    A token's gradient is divided by sqrt(q) of the stream; hidden units of T tokens, correlated by k, add up to
    sqrt(1 + (T - 1) k): k is the arc-cosine map of the tokens' correlation before the last MLP.
    """
    at, (square, pair) = np.asarray(config.depths), result.tokens
    gains = {"score_gain": 1.0, "value_gain": 1.0, "mlp_gain": 1.0, "q": square, "c": pair / square}
    rows = []
    for norm in NORMS:
        stream = predicted.stream(blocks=max(config.depths), tokens=TOKENS, norm=norm, **gains)
        c = np.clip(stream.c[2 * at - 1], -1, 1)
        alike = (np.sqrt(1 - c**2) + (np.pi - np.arccos(c)) * c) / np.pi
        size = (1 + (TOKENS - 1) * alike) / (stream.q[2 * at] if norm == "pre" else 1.0)
        rows.append(np.log(size / size[0]) / 2)
    return np.stack(rows)


def sensitivities(config, result):
    """[norms, warmups, seeds]."""
    each = [
        [measured.sensitivity(rates=rates_of(config), loss=loss, first=first) for loss in rows]
        for rows, first in zip(result.loss, result.first, strict=True)
    ]
    return np.asarray(each)


def claims(config, result):
    """Gradients by depth, and sensitivities."""
    near, logs = networks.near, np.log(result.gradient)
    change = logs[:, -1] - logs[:, 0]
    ends = f"depth {config.depths[-1]} over depth {config.depths[0]}"
    told, source, width = (
        growth(config, result)[:, -1],
        f"{XIONG}; theory.transformer.stream",
        "gradients of width 16 are heavy-tailed: a third of e",
    )
    made = [
        near(f"pre-norm: ln of the last block's gradient, {ends}", source, "exact", told[0], change[0], 0.3, width),
        near(f"post-norm: ln of the last block's gradient, {ends}", source, "exact", told[1], change[1], 0.3, width),
    ]
    found = sensitivities(config, result)
    text = "learning-rate sensitivity without warm-up, post-norm less pre-norm, nats"
    made.append(near(text, XIONG, "published", 0.0, found[1, 0] - found[0, 0], 0.0, "a sign", ">="))
    return made


def figure(config, result):
    """Gradients by depth, losses against the rate, sensitivity against the warm-up."""
    drawing = plotting.figure(width=14, height=4.4)
    left, middle, right = drawing.subplots(1, 3)
    told, rates = np.exp(growth(config, result)), rates_of(config)
    for i, (norm, color) in enumerate(zip(NORMS, plotting.COLORS, strict=False)):
        size = np.exp(np.log(result.gradient[i]).mean(axis=1))
        left.plot(config.depths, size / size[0], "o", color=color, label=f"{norm}-norm")
        left.plot(config.depths, told[i], "--", color=color, linewidth=1)
        for k, (warmup, style) in enumerate(zip(config.warmups, ("-", "--", ":"), strict=False)):
            middle.plot(rates, result.loss[i, k].mean(axis=1), style, color=color, label=f"{norm}, warm-up {warmup}")
        found = sensitivities(config, result)[i]
        error = found.std(axis=1, ddof=1) / np.sqrt(found.shape[1])
        right.errorbar(config.warmups, found.mean(axis=1), error, fmt="o-", color=color, label=f"{norm}-norm")
    left.plot([], [], "k--", linewidth=1, label="predicted")
    left.set(xlabel="blocks", ylabel=f"gradient of the last block, over that of {config.depths[0]}", xscale="log")
    middle.set(xlabel="rate of Adam", ylabel="loss at the end, nats, mean")
    right.set(xlabel="steps of warm-up", ylabel="learning-rate sensitivity, nats")
    left.set_xticks(config.depths, [str(depth) for depth in config.depths])
    left.minorticks_off()
    middle.set(xscale="log", yscale="log")
    dress(left, middle, right)
    return drawing
