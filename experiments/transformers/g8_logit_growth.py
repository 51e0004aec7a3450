"""Which learning rates blow up attention's logits, and does normalizing queries and keys stop it?

Question
--------
Large runs diverge after attention's logits have grown. Does this show in a tiny transformer at rates that are too
large, and what does qk-norm change?

Prediction
----------
Beyond the best rate the logits q k / sqrt(k) grow with the rate, since W_Q and W_K grow together and enter as a
product. With queries and keys of mean square 1 a logit is sqrt(k) times a cosine: |logit| <= sqrt(k) whatever the
weights. Loss at rates that are too large should then suffer less: a smaller learning-rate sensitivity, the mean over
rates of min(loss, initial loss) less the best.
Source: Wortsman et al. 2023, arXiv:2309.14322; Henry et al. 2020, arXiv:2010.04245.

Measurement
-----------
Digits as 16 patches, two pre-norm blocks of width 32 with two heads of width 16, Adam, full batches; the largest
logit of both attentions and the loss at the end, at six rates, found by tracing the trained function.

Verdict
-------
256 images, six networks for each rate and scale, 80 steps, 16 x86 cores, 352 CPU seconds. Both claims hold. The
median of the largest logit is 31 at the best rate 0.016, 2.7e3 two octaves past it and 1.7e7 six octaves past it
(with jax 0.12 one of the six had a block all of whose logits lay below -5000, as a mask's do, and the claim failed
for a nan: such a block is left out since, as the claim is a bound from below); with qk-norm it is 3.97 at most, below
sqrt(16) = 4, at every rate. Best losses are the same (9e-4). That the sensitivity is smaller with qk-norm was a claim
in a first run and is none now: the difference is -0.08 nats with standard error 0.08, and in the tiny version +0.28
with 0.12, so it is not resolved at this size.
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
from numdl.analysis import transformer as measured
from numdl.networks import initializers, transformer
from numdl.optimize import losses
from numdl.records import record

WORTSMAN = "Wortsman et al. 2023, arXiv:2309.14322, figures 1 and 3"
SCALES = ("root", "qk_norm")
HEAD_WIDTH = 16


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the experiment."""

    images: int = 256
    steps: int = 80
    rates: tuple[float, ...] = (1e-3, 4e-3, 1.6e-2, 6.4e-2, 0.256, 1.024)
    seeds: int = 6
    seed: int = 0

    @classmethod
    def tiny(cls):
        """For the tests: seconds."""
        return cls(images=64, steps=40, rates=(4e-3, 6.4e-2, 1.024), seeds=3)


@record
class Result:
    """At the end of training, [scales, rates, seeds]."""

    logit_max: np.ndarray
    loss: np.ndarray
    first: np.ndarray  # [scales, seeds]: the initial loss


def network(scale):
    """Two pre-norm blocks; weights of variance one over fan_in."""
    law = initializers.variance_scaling(1.0)
    stack = transformer.blocks(
        depth=2,
        heads=2,
        head_width=HEAD_WIDTH,
        mlp_width=64,
        query_key_weights=law,
        value_weights=law,
        mlp_weights=initializers.variance_scaling(2.0),
        activation=jax.nn.relu,
        norm="pre",
        scale=scale,
    )
    laws = {"embedding_weights": law, "readout_weights": law, "positions_variance": 0.1}
    return transformer.vision(stack, patch=2, width=2 * HEAD_WIDTH, outputs=10, **laws)


def run(config):
    """Both scales at every rate."""
    digits = data.digits()
    x = jnp.asarray(data.standardize(digits.images)[: config.images], jnp.float32).reshape(-1, 8, 8, 1)
    labels = jnp.asarray(digits.labels[: config.images])
    keys = jax.random.split(jax.random.key(config.seed), config.seeds)
    rates = jnp.asarray(config.rates, jnp.float32)
    found = [_trained(network(scale), keys, rates, x, labels, config.steps) for scale in SCALES]
    return Result(*(np.stack([np.asarray(one[i]) for one in found]) for i in range(3)))


@functools.partial(jax.jit, static_argnames="steps")
def _trained(net, keys, rates, x, labels, steps):
    """(largest logit, loss) [rates, seeds] and the initial loss [seeds]."""

    def loss(params):
        return losses.softmax_cross_entropy(net.apply(params, x), labels)

    def one(rate, key):
        optimizer = optax.adam(rate)
        params = net.init(key, x)

        def step(carry, _):
            params, state = carry
            updates, state = optimizer.update(jax.grad(loss)(params), state)
            return (optax.apply_updates(params, updates), state), None

        (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), length=steps)
        # Where every logit of a block is below a mask's -5000 its largest is not known: that of the others is less.
        return jnp.nanmax(measured.softmax_moments(net.apply, params, x).logit_max), loss(params)

    first = jax.lax.map(lambda key: loss(net.init(key, x)), keys)
    logit, last = jax.lax.map(lambda rate: jax.lax.map(functools.partial(one, rate), keys), rates)
    return logit, last, first


def claims(config, result):
    """Growth past the best rate, and the ceiling of qk-norm."""
    best = int(np.argmin(result.loss[0].mean(axis=1)[:-1]))
    growth = np.log(result.logit_max[0, -1] / result.logit_max[0, best])
    octaves = np.log2(config.rates[-1] / config.rates[best])
    text = f"1/sqrt(k): ln of the largest logit, {octaves:.0f} octaves past the best rate over at the best"
    made = [networks.near(text, WORTSMAN, "own", np.log(5), growth, 0.0, "a bound: a factor of 5", ">=")]
    ceiling = result.logit_max[1].max(axis=0) / np.sqrt(HEAD_WIDTH)
    text = "qk-norm: largest logit at any rate, over sqrt(k)"
    made.append(networks.near(text, "a cosine", "exact", 1.0, ceiling, 1e-5, "rounding of float32", "<="))
    return made


def figure(config, result):
    """Largest logit and loss against the rate."""
    drawing = plotting.figure(width=11, height=4.2)
    left, right = drawing.subplots(1, 2)
    for i, (name, color) in enumerate(zip(("q k / sqrt(k)", "qk-norm"), plotting.COLORS, strict=False)):
        for ax, rows in ((left, result.logit_max[i]), (right, result.loss[i])):
            ax.plot(config.rates, rows, "-", color=color, linewidth=0.6, alpha=0.4)
            ax.plot(config.rates, np.median(rows, axis=1), "o-", color=color, label=name)
    left.axhline(np.sqrt(HEAD_WIDTH), color="k", linestyle="--", linewidth=1, label="sqrt(k)")
    right.axhline(result.first[0].mean(), color="0.6", linestyle=":", label="before the first step")
    left.set_ylabel("largest |logit| of attention at the end")
    right.set_ylabel("loss at the end, nats")
    for ax in (left, right):
        dress(ax, xlabel="rate of Adam", xscale="log", yscale="log")
    return drawing
