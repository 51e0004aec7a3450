"""How must branches and rates shrink with the depth, and scores with the head's width?

Question
--------
A stack of L blocks x + L^-a f(x) is made deeper, a head wider. By which powers do the stream, its change in a step of
Adam, and attention scores grow, and which rates keep them?

Prediction
----------
`theory.scaling.depth_exponents`: the stream grows as L^max(0, 1/2 - a); with Adam's rate L^c a step changes it,
relative to itself, by

    own, one block's weight: L^(c - a - max(0, 1/2 - a)),        all blocks together: L times that

since the blocks' changes are aligned. a = 1/2, c = -1/2 (depth-muP) and a = 1, c = 0 (CompleteP) keep it.
`theory.scaling.score_exponents`: scores over k^p go as k^(1/2 - p) at first, and change by k^(1 - p) in a step.
Sources: Yang et al. 2023, arXiv:2310.02244; Bordelon et al. 2023, arXiv:2309.16620; Dey et al. 2025,
arXiv:2505.01618; Yang et al. 2022, arXiv:2203.03466.

Measurement
-----------
Residual stacks of normalized blocks, one tanh layer of width 64 each, under one scan; one small step of Adam's first
kind (the gradient's sign) at rate L^c, of all blocks, or of the middle one alone. Scores of one query and key map of
head width k between 8 random tokens, before and after such a step for a loss linear in the scores, with rates that
keep queries and keys. Slopes of logarithms over depths and head widths, one for each seed.

Verdict
-------
Depths to 1024, head widths to 1024, 16 networks of each; two CPU cores shared with other programs, 71 s. All claims
hold, six standard errors or more inside their limits. With a = 1/2 and c = -1/2 the change of the stream goes as
L^-0.004, with a = 1 and c = 0 as L^0.0004, with a = 1/2 and c = 0 as L^0.50. Without a factor (a = c = 0) it is 0.62
for 1/2: lower blocks count more there, and the power comes in slowly. Scores over sqrt(k) change as k^0.49, over k as
k^-0.01. A first run with depths 8 to 128 found 0.73 in that case, within its limit by less than one standard error;
the depths were raised after seeing that.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments.claiming import near
from experiments.drawing import dress
from numdl import plotting
from numdl.records import record
from numdl.theory import scaling as predicted

DEY = "Dey et al. 2025, arXiv:2505.01618; theory.scaling.depth_exponents"
YANG = "Yang et al. 2022, arXiv:2203.03466; theory.scaling.score_exponents"
WIDTH, EXAMPLES, TOKENS, SMALL = 64, 8, 8, 1e-4
RULES = ((0.0, 0.0), (0.5, 0.0), (0.5, -0.5), (1.0, 0.0))  # a, c
POWERS = (0.5, 1.0)  # p


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the experiment."""

    depths: tuple[int, ...] = (16, 64, 256, 1024)
    head_widths: tuple[int, ...] = (16, 64, 256, 1024)
    seeds: int = 16
    seed: int = 0

    @classmethod
    def tiny(cls):
        """For the tests: seconds."""
        return cls(depths=(32, 128, 512), head_widths=(16, 128, 1024), seeds=12)


@record
class Result:
    """Root mean squares."""

    stream: np.ndarray  # [rules, depths, seeds]: at the end, at first
    own: np.ndarray  # [rules, depths, seeds]: change by the middle block, over the stream
    total: np.ndarray  # [rules, depths, seeds]: by all blocks
    scores: np.ndarray  # [powers, head widths, seeds]: at first
    moved: np.ndarray  # [powers, head widths, seeds]: change


def run(config):
    """All rules at all depths, both scales of the scores at all head widths."""
    keys = jax.random.split(jax.random.key(config.seed), config.seeds)
    stack = jax.jit(lambda keys, a, c, depth: lax.map(lambda k: _stack(k, a, c, depth), keys), static_argnums=3)
    rows = np.array([[stack(keys, a, c, depth) for depth in config.depths] for a, c in RULES], np.float64)
    score = jax.jit(lambda keys, p, k: lax.map(lambda key: _scores(key, p, k), keys), static_argnums=2)
    heads = np.array([[score(keys, p, k) for k in config.head_widths] for p in POWERS], np.float64)
    return Result(*np.moveaxis(rows, -1, 0), *np.moveaxis(heads, -1, 0))


def _stack(key, a, c, depth):
    """(stream, own, total) of one network of this depth."""
    keys = jax.random.split(key, 3)
    weights = jax.random.normal(keys[0], (depth, WIDTH, WIDTH)) / WIDTH**0.5
    x = jax.random.normal(keys[1], (EXAMPLES, WIDTH))
    direction = jax.random.normal(keys[2], (WIDTH,)) / WIDTH**0.5

    def final(weights):
        def block(x, weight):
            return x + depth**-a * jnp.tanh(_normalized(x) @ weight), None

        return lax.scan(block, x, weights)[0]

    end = final(weights)
    gradient = jax.grad(lambda w: jnp.mean(_normalized(final(w)) @ direction))(weights)
    step = -SMALL * depth**c * jnp.sign(gradient)
    alone = step * (jnp.arange(depth) == depth // 2)[:, None, None]
    # The change to first order: a difference of nearby numbers would drown in rounding at depth.
    changes = [jax.jvp(final, (weights,), (tangent,))[1] for tangent in (alone, step)]
    size = _rms(end)
    return jnp.stack([size, *(_rms(change) / size for change in changes)])


def _normalized(x):
    return x * lax.rsqrt(jnp.mean(x**2, axis=1, keepdims=True))


def _scores(key, p, k):
    """(root mean square of the scores, of their change) of one head."""
    keys = jax.random.split(key, 4)
    x = jax.random.normal(keys[0], (TOKENS, WIDTH))
    weights = jax.random.normal(keys[1], (2, WIDTH, k)) / WIDTH**0.5
    direction = jax.random.normal(keys[2], (TOKENS, TOKENS))
    scores = lambda w: k**-p * (x @ w[0]) @ (x @ w[1]).T  # noqa: E731
    step = -SMALL * jnp.sign(jax.grad(lambda w: jnp.sum(direction * scores(w)))(weights))
    return jnp.stack([_rms(scores(weights)), _rms(jax.jvp(scores, (weights,), (step,))[1])])


def _rms(values):
    return jnp.sqrt(jnp.mean(values**2))


def slopes(sizes, values):
    """Least-squares slope of log values [sizes, seeds] for every seed, [seeds]; the upper sizes, where powers rule."""
    x = np.log(np.asarray(sizes[-3:], float))
    x = x - x.mean()
    return x @ np.log(values[-3:]) / (x @ x)


def claims(config, result):
    """Stream, own and whole change of every rule; scores and their change for both scales."""
    return list(_claims(config, result))


def _claims(config, result):
    for i, (a, c) in enumerate(RULES):
        theory = predicted.depth_exponents(branch=a, optimizer="adam", rate=c)
        for name in ("stream", "own", "total"):
            text = f"a = {a:g}, c = {c:g}: power of the depth of {_WORDS[name]}"
            yield _claim(text, DEY, getattr(theory, name), slopes(config.depths, getattr(result, name)[i]))
    for i, p in enumerate(POWERS):
        theory = predicted.score_exponents(power=p)
        yield _claim(
            f"scores over k^{p:g}: power of k at first", YANG, theory.initial, _heads(config, result.scores[i])
        )
        yield _claim(
            f"scores over k^{p:g}: power of their change", YANG, theory.change, _heads(config, result.moved[i])
        )


_WORDS = {
    "stream": "the stream",
    "own": "the change by one block, over the stream",
    "total": "the change by all blocks, over the stream",
}


_BLOCKS = {"own": "one block", "total": "all blocks"}


def _heads(config, values):
    return slopes(config.head_widths, values)


def _claim(text, source, expected, samples):
    return near(
        text,
        source,
        origin="exact",
        expected=float(expected),
        samples=samples,
        tolerance=0.25,
        tolerance_from="half of the distance between two powers, which are multiples of 1/2",
    )


def figure(config, result):
    """The changes against depth, one block's and all, and scores against head width."""
    drawing = plotting.figure(width=14.0, height=4.4)
    axes = drawing.subplots(1, 3)
    for ax, name in zip(axes, ("own", "total"), strict=False):
        for color, (a, c), rows in zip(plotting.COLORS, RULES, getattr(result, name), strict=False):
            theory = getattr(predicted.depth_exponents(branch=a, optimizer="adam", rate=c), name)
            _draw(ax, config.depths, rows, theory, color, f"a = {a:g}, c = {c:g}: predicted power {theory:g}")
        ax.set(xlabel="depth L", ylabel=f"change by {_BLOCKS[name]}, over the stream")
    for color, p, rows in zip(plotting.COLORS, POWERS, result.moved, strict=False):
        theory = predicted.score_exponents(power=p).change
        _draw(axes[2], config.head_widths, rows, theory, color, f"over k^{p:g}: predicted power {theory:g}")
    axes[2].set(xlabel="head width k", ylabel="change of the scores in a step, over the first")
    dress(*axes, fontsize=7)
    return drawing


def _draw(ax, sizes, rows, theory, color, label):
    values, sizes = np.exp(np.log(rows).mean(axis=1)), np.asarray(sizes, float)
    ax.loglog(sizes, values / values[0], "o", color=color, markersize=4, label=label)
    ax.loglog(sizes, (sizes / sizes[0]) ** theory, "--", color=color, linewidth=1)
    ax.set_xticks(sizes, [f"{size:g}" for size in sizes])
    ax.minorticks_off()
