"""When is Adam's epsilon too large, and must it shrink as networks grow?

Question
--------
Adam divides a gradient by its own size plus epsilon. Gradients become smaller in wider networks; do the steps of a
wide network vanish under an epsilon that a narrow one did not notice, and does an epsilon that falls with the
gradients mend it?

Prediction
----------
Under muP the gradients of hidden weights fall as n^-1 and those of the usual start as n^(-1/2)
(`theory.scaling.exponents`). An entry g moves by rate |g| / (|g| + eps): a network k times as wide has the narrow one's
gradients over k, hence steps as under k eps there. An epsilon proportional to n^-1 keeps all steps.
Source: Wortsman et al. 2023, arXiv:2309.14322, section 3.4; Kingma & Ba 2015, arXiv:1412.6980; theory.scaling.

Measurement
-----------
Tanh networks of three weights on digits, widths 32 to 512, muP's start and Adam rates. Root mean square of the
hidden gradient; size of the first step of the hidden weights over their rate with no epsilon, one that is the narrow
network's gradient and does not change, and one that falls as 1 / n; the loss after training with each.

Verdict
-------
Eight networks of each width, 64 images, 40 steps, two x86 cores shared with many other programs, 199 s. All claims
hold, with limits chosen before the run. The hidden gradient falls by the power -1.020 +- 0.011 under muP and -0.502 +-
0.011 from the usual start. With the same epsilon, 0.0177, the first step falls from 0.37 of the rate at width 32 to
0.042 at 512, which is 0.94 +- 0.03 of what the narrow network told; with epsilon over the width it stays (power -0.015
+- 0.007). The loss at width 512 is 0.082 nats with the same epsilon, 0.0024 with epsilon over the width and 0.0006
without: steps are kept, and the wide network gains from its width again, though any epsilon of the gradients' size
costs something.
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
from numdl.optimize import losses
from numdl.records import record
from numdl.theory import scaling as predicted

WORTSMAN = "Wortsman et al. 2023, arXiv:2309.14322, section 3.4"
THEORY = "theory.scaling.exponents"
KINDS = ("no epsilon", "the same epsilon", "epsilon over the width")
RATE = 0.02
NONE = 1e-12


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the experiment."""

    widths: tuple[int, ...] = (32, 128, 512)
    images: int = 64
    steps: int = 40
    seeds: int = 8
    seed: int = 0

    @classmethod
    def tiny(cls):
        """For the tests: seconds."""
        return cls(widths=(32, 128, 256), images=32, steps=30, seeds=6)


@record
class Result:
    """By width; kinds of epsilon first."""

    epsilon: np.ndarray  # [3, widths]
    gradient: np.ndarray  # [2, widths, seeds] root mean square of the hidden weight's: muP, standard
    size: np.ndarray  # [3, widths, seeds] mean |first step| of the hidden weight over its rate
    told: np.ndarray  # [3, widths, seeds] from the narrowest network's gradients over the power of the width
    loss: np.ndarray  # [3, widths, seeds] after training


def run(config):
    """All widths."""
    digits = data.digits()
    x = jnp.asarray(data.standardize(digits.images)[: config.images], jnp.float32).reshape(config.images, -1)
    labels = jnp.asarray(digits.labels[: config.images])
    keys, narrow = jax.random.split(jax.random.key(config.seed), config.seeds), config.widths[0]
    seen = np.abs(np.asarray(_hidden(start("mup", narrow, narrow), keys, x, labels, narrow), np.float64))
    ratio, base = np.asarray(config.widths, float) / narrow, float(np.sqrt(np.mean(seen**2)))
    epsilon = np.stack([NONE + 0 * ratio, base + 0 * ratio, base / ratio])
    found = []
    for i, width in enumerate(config.widths):
        deviations = start("mup", width, narrow), start("standard", width, narrow)
        found.append(_measured(deviations, keys, x, labels, epsilon[:, i], rates(width, narrow), width, config.steps))
    gradient, size, loss = (np.stack([np.asarray(one[i], np.float64) for one in found], axis=1) for i in range(3))
    told = [[np.mean(seen / k / (seen / k + e), axis=(1, 2)) for k, e in zip(ratio, row)] for row in epsilon]
    return Result(epsilon, gradient, size, np.asarray(told), loss)


def start(rule, width, narrow):
    """Deviations of the three weights: 1 / sqrt(fan_in) at the narrowest width."""
    b = predicted.exponents(parametrization=rule, optimizer="adam").deviation
    return jnp.asarray(np.array([64, narrow, narrow], float) ** -0.5 * (width / narrow) ** b, jnp.float32)


def rates(width, narrow):
    """muP's Adam rates of the three weights."""
    c = predicted.exponents(parametrization="mup", optimizer="adam").rate
    return jnp.asarray(RATE * (width / narrow) ** c, jnp.float32)


def _drawn(key, deviations, width):
    keys, shapes = jax.random.split(key, 3), ((64, width), (width, width), (width, 10))
    return [jax.random.normal(k, shape) * s for k, shape, s in zip(keys, shapes, deviations, strict=True)]


def _loss(params, x, labels):
    return losses.softmax_cross_entropy(jnp.tanh(jnp.tanh(x @ params[0]) @ params[1]) @ params[2], labels)


@functools.partial(jax.jit, static_argnames="width")
def _hidden(deviations, keys, x, labels, width):
    """The hidden weight's gradients at the start, [seeds, n, n]."""
    return jax.vmap(lambda key: jax.grad(_loss)(_drawn(key, deviations, width), x, labels)[1])(keys)


@functools.partial(jax.jit, static_argnames=("width", "steps"))
def _measured(deviations, keys, x, labels, epsilon, rates, width, steps):
    """(hidden gradient's rms [2, seeds]; size of the first step, loss at the end [3, seeds])."""

    def gradient(deviations, key):
        return jnp.sqrt(jnp.mean(jax.grad(_loss)(_drawn(key, deviations, width), x, labels)[1] ** 2))

    def trained(key, epsilon):
        adam = optax.scale_by_adam(eps=epsilon)
        first = _drawn(key, deviations[0], width)

        def step(carry, _):
            params, state = carry
            updates, state = adam.update(jax.grad(_loss)(params, x, labels), state)
            moved = [p - rate * u for p, rate, u in zip(params, rates, updates, strict=True)]
            return (moved, state), jnp.mean(jnp.abs(updates[1]))

        (params, _), sizes = jax.lax.scan(step, (first, adam.init(first)), length=steps)
        return sizes[0], _loss(params, x, labels)

    at_start = jnp.stack([jax.vmap(functools.partial(gradient, each))(keys) for each in deviations])
    return at_start, *jax.lax.map(
        lambda one: jax.vmap(lambda key: trained(key, one))(keys), jnp.asarray(epsilon, x.dtype)
    )


def slope(config, rows):
    """Slope of the logarithm against that of the width, for each seed."""
    logs = np.log(np.asarray(config.widths, float))
    logs = logs - logs.mean()
    return logs @ np.log(rows) / (logs @ logs)


def claims(config, result):
    """Powers of the gradients, sizes of steps, losses."""
    near, halves = networks.near, "a quarter: powers are multiples of 1/2"
    made = []
    for i, (rule, name) in enumerate((("mup", "muP"), ("standard", "usual start"))):
        power = predicted.exponents(parametrization=rule, optimizer="adam").gradient[1]
        text = f"{name}: power of the width of the hidden gradient"
        made.append(near(text, THEORY, "exact", power, slope(config, result.gradient[i]), 0.25, halves))
    ends = f"width {config.widths[-1]}"
    ratio = result.size[1, -1] / result.told[1, -1]
    text = f"{ends}, the same epsilon: size of the first step over that told from width {config.widths[0]}"
    made.append(
        near(text, f"{WORTSMAN}; {THEORY}", "own", 1.0, ratio, 0.25, "a bound: corrections of order 1 / width", "==")
    )
    kept = slope(config, result.size[2])
    made.append(
        near("epsilon over the width: power of the width of the first step", THEORY, "exact", 0.0, kept, 0.25, halves)
    )
    lost = np.log(result.loss[1, -1] / result.loss[2, -1])
    text = f"{ends}: ln of the loss with the same epsilon over that with epsilon over the width"
    made.append(near(text, WORTSMAN, "published", 0.0, lost, 0.0, "a sign", ">="))
    return made


def figure(config, result):
    """Gradients, first steps and losses against the width."""
    drawing = plotting.figure(width=14, height=4.2)
    axes, widths = drawing.subplots(1, 3), np.asarray(config.widths, float)
    for i, (name, color) in enumerate(zip(("muP", "standard"), plotting.COLORS, strict=False)):
        power = predicted.exponents(parametrization=name, optimizer="adam").gradient[1]
        size = result.gradient[i].mean(axis=1)
        axes[0].plot(widths, size, "o", color=color, label=f"{name}: predicted power {power:g}")
        axes[0].plot(widths, size[0] * (widths / widths[0]) ** power, "--", color=color, linewidth=1)
    axes[0].axhline(result.epsilon[1, 0], color="0.5", linestyle=":", label="the epsilon that stays")
    for i, (name, color) in enumerate(zip(KINDS, plotting.COLORS, strict=False)):
        axes[1].plot(widths, result.size[i].mean(axis=1), "o", color=color, label=name)
        axes[1].plot(widths, result.told[i].mean(axis=1), "--", color=color, linewidth=1)
        axes[2].plot(widths, result.loss[i], color=color, linewidth=0.6, alpha=0.4)
        axes[2].plot(widths, result.loss[i].mean(axis=1), "o-", color=color, label=name)
    axes[1].plot([], [], "k--", linewidth=1, label="told from the narrowest")
    axes[0].set_ylabel("hidden gradient at the start, rms")
    axes[1].set_ylabel("first step over the rate, mean")
    axes[2].set_ylabel("loss at the end, nats")
    for ax, log in zip(axes, (True, False, True), strict=True):
        ax.set(xscale="log", yscale="log" if log else "linear")
        ax.set_xticks(widths, [f"{width:g}" for width in widths])
        ax.minorticks_off()
        dress(ax, xlabel="width")
    return drawing
