"""Is a DeepNorm transformer of 100 blocks nearly the identity?

Question
--------
DeepNorm keeps post-norm and makes skips larger and branches smaller. Do signals and gradients of a stack of 100
blocks pass unharmed, where plain post-norm forgets its input?

Prediction
----------
With alpha = (2 N)^(1/4) and beta = (8 N)^(-1/4) a sublayer of unit gains adds f / alpha^2 = 1 / (8 N sqrt(2 N)) of
the stream's variance (an MLP with He's factor the same here, its gain being 1). Over 2 N sublayers that is 1 / (4
sqrt(2 N)) in all: A_0 / A_L >= exp(-1 / (4 sqrt(2 N))), 0.982 at N = 100, and 1 - c stays. Plain post-norm halves 1 -
c with every attention and loses it.
Source: Wang et al. 2022, arXiv:2203.00555; the bound: numdl.theory.transformer.deepnorm.

Measurement
-----------
1 - c of the tokens and A = mean |g_i|^2 at the input of stacks of 100 blocks with DeepNorm and of 12 with plain
post-norm; a random cotangent for each token.

Verdict
-------
40 networks of 100 blocks and 40 of 12, width 100, 16 x86 cores, 55 CPU seconds. All
claims hold. DeepNorm: A_0 / A_L is 1.0035 with standard error 0.0018 (predicted 1.0024: gradients through queries and
keys more than make up for the bound's loss), 1 - c ends at 0.9960. Plain post-norm ends at 1 - c = 0.0007.
"""

import dataclasses

import jax
import numpy as np

from experiments.drawing import dress
from experiments.transformers import networks
from numdl import plotting
from numdl.records import record
from numdl.theory import transformer as predicted

SOURCE = "Wang et al. 2022, arXiv:2203.00555; numdl.theory.transformer.deepnorm"
UNIT = {"score_gain": 1.0, "norm": "post"}


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the experiment."""

    blocks: int = 100
    plain_blocks: int = 12
    side: int = 10  # heads, and the width of each
    tokens: int = 8
    seeds: int = 40
    seed: int = 0

    @classmethod
    def tiny(cls):
        """For the tests: seconds."""
        return cls(blocks=60, side=5, tokens=4, seeds=40)


@record
class Result:
    """[seeds, states], the input first."""

    gap: np.ndarray  # DeepNorm
    spread: np.ndarray
    plain_gap: np.ndarray
    plain_spread: np.ndarray


def settings(blocks, deep):
    """Gains of a stack, with DeepNorm's constants or without."""
    rule = predicted.deepnorm(blocks=blocks)
    gain = float(rule.beta) ** 4 if deep else 1.0
    return {**UNIT, "value_gain": gain, "mlp_gain": gain, "skip": float(rule.alpha) if deep else 1.0}


def run(config):
    """Both stacks."""
    x = networks.like(0.0, tokens=config.tokens, width=config.side**2)
    cotangent = networks.like(0.0, tokens=config.tokens, width=config.side**2, first=config.tokens) / config.side
    rows = []
    for number, (blocks, deep) in enumerate(((config.blocks, True), (config.plain_blocks, False))):
        net = networks.network(config.side, blocks=blocks, **settings(blocks, deep))
        key = jax.random.fold_in(jax.random.key(config.seed), number)
        found = networks.flows(key, net, x, cotangent, seeds=config.seeds)
        rows += [np.asarray(found["gap"]), np.asarray(found["spread"])]
    return Result(*rows)


def theory(config, deep):
    """(1 - c, A) by depth."""
    blocks = config.blocks if deep else config.plain_blocks
    given = {**settings(blocks, deep), "blocks": blocks, "tokens": config.tokens}
    spread, _ = networks.to_the_output(predicted.gradients(**given, pooled=0.0), 0.0)
    return predicted.stream(**given).gap, spread


def claims(config, result):
    """The bound, both ends, and plain post-norm beside it."""
    bound = float(predicted.deepnorm(blocks=config.blocks).least_gradient)
    ratio, gap = result.spread[:, 0], result.gap[:, -1]
    told = theory(config, True)
    rounding = 2 * config.blocks * 1e-6
    errors = "six standard errors, 1/width^2 of the bound's distance to 1, rounding"

    def slack(samples):
        return 6 * samples.std() / np.sqrt(samples.size) + rounding

    return [
        networks.near(f"DeepNorm, {config.blocks} blocks: A_0 / A_L", SOURCE, "exact",
                      bound, ratio, slack(ratio), errors, ">="),
        networks.near("DeepNorm: A_0 / A_L", "theory.transformer.gradients", "exact",
                      told[1][0], ratio, slack(ratio) + 0.002, f"{errors}; 0.002 for the width"),
        networks.near("DeepNorm: 1 - c at the output", "theory.transformer.stream", "exact",
                      told[0][-1], gap, slack(gap) + 0.002, f"{errors}; 0.002 for the width"),
        networks.near(
            f"plain post-norm, {config.plain_blocks} blocks: 1 - c at the output",
            "tokens collapse exponentially",
            "own",
            0.1,
            result.plain_gap[:, -1],
            0.0,
            "a bound",
            "<=",
        ),
    ]  # fmt: skip


def figure(config, result):
    """1 - c and gradients by relative depth."""
    drawing = plotting.figure(width=11, height=4.2)
    left, right = drawing.subplots(1, 2)
    stacks = (
        (True, result.gap, result.spread, f"DeepNorm, {config.blocks} blocks"),
        (False, result.plain_gap, result.plain_spread, f"plain post-norm, {config.plain_blocks} blocks"),
    )
    for (deep, gap, spread, name), color in zip(stacks, plotting.COLORS, strict=False):
        at = np.linspace(0, 1, gap.shape[1])
        told = theory(config, deep)
        for ax, rows, line in ((left, gap, told[0]), (right, spread, told[1])):
            ax.plot(at, rows.mean(axis=0), "o", ms=3, color=color, label=name)
            ax.plot(at, line, "k--", linewidth=1, label="predicted" if not deep else None, zorder=4)
    left.set(ylabel="1 - c of two tokens", yscale="log")
    right.set(ylabel="gradients A, relative to the output's", yscale="log")
    for ax in (left, right):
        dress(ax, xlabel="depth, relative")
    return drawing
