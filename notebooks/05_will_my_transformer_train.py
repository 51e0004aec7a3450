# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Will my transformer train, and at which rate?
#
# Before the first step a transformer is a random network, and theory can follow it: how sharp its attention is, how fast
# its tokens become alike, where its gradients are large. And when it is made wider, theory knows by which power of the
# width each layer changes in a step, so that a rate that was found on a narrow network can be kept.
#
# 1. **Attention**: entropy and correlation behind a softmax, predicted and measured;
# 2. **depth**: stream and gradients, with the norm before or after the sublayer;
# 3. **width**: powers of the first step's changes, as usually drawn and trained and under muP.

# %%
import math
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial

from numdl import data, plotting
from numdl.analysis import scaling as measured_scaling
from numdl.analysis import transformer as measured
from numdl.networks import core, initializers, transformer
from numdl.optimize import losses, scaling
from numdl.theory import scaling as predicted_scaling
from numdl.theory import transformer as predicted

quick = bool(os.environ.get("NUMDL_QUICK"))  # the tests set it
heads, blocks, seeds = (5, 3, 20) if quick else (12, 6, 24)
tokens, key = 8, jax.random.key(0, impl="rbg")  # a generator that compiles fast
width = heads**2  # as many heads as each is wide: theory is about both being large
law = initializers.variance_scaling

# %% [markdown]
# ## 1. How sharp is attention?
#
# Tokens of mean square $q$ and correlation $c$ have scores of deviation $\tau = \sqrt{b (1 - c)}\, q$ along a row, where
# the *score gain* $b$ is the product of the variances of query and key weights. From it come the row's entropy, between
# 0 and $\ln T$, and the correlation of the tokens that leave. Integrals, no network; then networks, drawn for each gain.


# %%
def like(correlation, first=0):
    """Tokens [1, T, width] of mean square 1, each pair of which has this correlation."""
    root = np.linalg.cholesky((1 - correlation) * np.eye(tokens) + correlation)
    vectors = np.zeros((1, tokens, width), np.float32)
    vectors[0, :, first : first + tokens] = root * math.sqrt(width)
    return jnp.asarray(vectors)


def stack(depth, norm, gains, skip=1.0):
    """A transformer whose weights have these gains; an MLP only where it has one."""
    mlp = {"mlp_width": None}
    if "mlp_gain" in gains:
        mlp = {"mlp_width": width, "mlp_weights": law(math.sqrt(2 * gains["mlp_gain"])), "activation": jax.nn.relu}
    made = transformer.blocks(
        depth=depth, heads=heads, head_width=heads, norm=norm, normalization="rms", skip=(skip, 1.0), eps=0.0, **mlp,
        query_key_weights=law(math.sqrt(gains["score_gain"])), value_weights=law(math.sqrt(gains["value_gain"])),
    )  # fmt: skip
    return transformer.network(made, outputs=1, readout_weights=law(1.0))


@jax.jit
def attention_samples(key, net, x):
    """Entropy and the correlation of what leaves, one of each for every seed."""

    def one(key):
        params = net.init(key, x)
        entropy = measured.softmax_moments(net.apply, params, x).entropy[0]
        return entropy, measured.stream(net, params, x).c[-1, 0]

    return jax.lax.map(one, jax.random.split(key, seeds))


score_gains, start = np.array([0.25, 1.0, 4.0, 16.0, 64.0]), 0.2
nets = [stack(1, "none", {"score_gain": b, "value_gain": 1.0}, skip=0.0) for b in score_gains]
samples = [np.asarray(attention_samples(key, net, like(start))) for net in nets]  # [2, seeds] each
grid = np.geomspace(0.1, 100, 30)
line = predicted.attention_map(q=1.0, c=start, tokens=tokens, score_gain=grid, value_gain=1.0)

drawing = plotting.figure(width=10, height=3.6)
for axes, row, theory, label in zip(
    drawing.subplots(1, 2), range(2), (line.entropy, line.c), ("entropy of a row of attention (nats)", "correlation of two tokens")
):  # fmt: skip
    found = np.array([sample[row] for sample in samples])
    axes.plot(grid, theory, "--", color="k", label="predicted")
    axes.errorbar(score_gains, found.mean(axis=1), found.std(axis=1) / math.sqrt(seeds), fmt="o", capsize=3,
                  color=plotting.COLORS[0], label=f"measured, {seeds} networks of width {width}")  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlabel("score gain b")
    axes.set_ylabel(label)
    plotting.tidy(axes)
axes.axhline(start, color="0.6", linewidth=1, label="at the input")
axes.legend(frameon=False, fontsize=8)
drawing

# %% [markdown]
# Flat attention averages: the tokens that leave are nearly the same. Sharp attention keeps them apart, but its softmax
# hardly answers to the scores any more. **Question:** at which gain has attention lost half of its largest entropy? What
# changes with 512 tokens? (`predicted.softmax_moments(deviation=..., tokens=512)` knows, no network is needed.)
#
# ## 2. What does depth do?
#
# Each block adds attention and an MLP to the stream. With the norm *before* each (pre) the stream grows linearly, and
# tokens become alike as a power of the depth. With the norm *after* the sum (post) every sublayer shrinks what was there:
# tokens become alike exponentially. The gradients are those of a random linear loss at every token.

# %%
gains = {"score_gain": 1.0, "value_gain": 1.0, "mlp_gain": 1.0}
norms, pooled = ("pre", "post"), 0.2


@jax.jit
def flow_samples(key, net, x, cotangent):
    """Length, 1 - correlation and squared gradients after every sublayer: [seeds, 3, sublayers + 1]."""
    ends = core.Network(net.init, net.states, Partial(lambda params, y: y))
    loss = Partial(lambda cotangent, outputs: jnp.sum(outputs * cotangent), cotangent)

    def one(key):
        params = net.init(key, x)
        run, back = measured.stream(ends, params, x), measured.gradients(ends, params, x, loss)
        return jnp.stack([run.q[:, 0], run.gap[:, 0], back.spread])

    return jax.lax.map(one, jax.random.split(key, seeds))


drawing = plotting.figure(width=12, height=3.6)
panels = drawing.subplots(1, 3)
places = np.arange(2 * blocks + 1)
for norm, color in zip(norms, plotting.COLORS):
    setting = {"blocks": blocks, "tokens": tokens, "norm": norm, **gains}
    run, back = predicted.stream(**setting), predicted.gradients(**setting, pooled=pooled)
    theory = [run.q, run.gap, np.append(back.spread, 1.0)]
    found = np.asarray(flow_samples(key, stack(blocks, norm, gains), like(0.0), like(pooled, tokens) / heads))
    for axes, told, values in zip(panels, theory, np.moveaxis(found, 1, 0)):
        axes.plot(places, told, "--", color=color)
        error = values.std(axis=0) / math.sqrt(seeds)
        axes.errorbar(places, values.mean(axis=0), error, fmt="o", markersize=3, color=color, label=norm)
    print(f"{norm:>4}: gradients at the input over those at the output {theory[2][0]:.3g} predicted, "
          f"{found[:, 2, 0].mean():.3g} +- {found[:, 2, 0].std() / math.sqrt(seeds):.2g} measured")
for axes, label in zip(panels, ("length q of a token", "1 - c of two tokens", "squared gradient, over the output's")):
    axes.plot([], [], "--", color="k", label="predicted")
    axes.set_yscale("log")
    axes.set_xlabel("sublayer (0: input)")
    axes.set_ylabel(label)
    plotting.tidy(axes)
panels[1].legend(frameon=False, fontsize=8)
drawing

# %% [markdown]
# What theory has shown to predict it may be asked about depths that nobody wants to draw:

# %%
print("blocks   norm   1 - c at the end   gradient, input over output")
for depth in (6, 24, 96):
    for norm in norms:
        setting = {"blocks": depth, "tokens": tokens, "norm": norm, **gains}
        run, back = predicted.stream(**setting), predicted.gradients(**setting, pooled=pooled)
        print(f"{depth:>6}   {norm:<4}   {run.gap[-1]:>16.3g}   {back.spread[0]:>27.3g}")

# %% [markdown]
# **Question:** which `skip=` gives 96 post-norm blocks the tokens that 24 have? (`predicted.deepnorm(blocks=96)` is one
# answer of the literature.)
#
# ## 3. At which rate?
#
# A transformer on digits, patches as tokens, heads of 8 units, more of them in a wider one. `scaling.roles` traces it at
# two widths and says what each leaf does as the network widens; `rescale` and `multipliers` turn that into initial sizes
# and rates. As it is usually done (*standard*), Adam's step changes what hidden layers say by $n^1$, and the output
# by up to $n^{3/2}$. Under *muP* all powers are 0: this is `theory.scaling`, below as crosses.

# %%
digits = data.digits()
x, labels = jnp.asarray(digits.images[:16][..., None]), jnp.asarray(digits.labels[:16])
widths, draws = ((16, 64), 3) if quick else ((32, 128), 4)
unit = law(1.0)
draw = jax.jit(lambda net, key, x: net.init(key, x))


def build(width, seed=0):
    """(apply, params): what every function here takes, of any framework."""
    made = transformer.blocks(
        depth=1, heads=width // 8, head_width=8, mlp_width=None, norm="pre", query_key_weights=unit, value_weights=unit
    )
    net = transformer.vision(
        made, patch=4, width=width, outputs=10, positions_variance=0.1, embedding_weights=unit, readout_weights=unit
    )
    return net.apply, draw(net, jax.random.fold_in(jax.random.key(seed, impl="rbg"), width), x[:1])


roles = scaling.roles(build, widths[:2], x)
print(roles)


# %%
def check(rule):
    """The powers of the first step's changes under this rule."""

    def drawn(width, seed):
        apply, params = build(width, seed)
        return apply, scaling.rescale(params, roles, rule)

    optimizer = optax.chain(optax.adam(1e-4, eps=1e-20), scaling.multipliers(roles, rule, "adam"))
    return measured_scaling.coordinate_check(
        drawn, (x, labels), widths, 1, optimizer=optimizer, loss=losses.softmax_cross_entropy, seeds=draws
    )


checks = {rule: check(rule) for rule in ("standard", "mup")}
layers = {
    leaf.path: {"input": 0, "hidden": 1, "output": 2}[leaf.role]
    for leaf in roles.leaves if leaf.role in ("input", "hidden", "output")
}  # fmt: skip
drawing = plotting.figure(width=11, height=4)
for axes, (rule, found) in zip(drawing.subplots(1, 2, sharey=True), checks.items()):
    theory = predicted_scaling.exponents(parametrization=rule, optimizer="adam")
    at = [found.names.index(name) for name in layers]
    place, last = np.arange(len(at) + 1), found.names.index("output")
    told = [*(theory.own[layer] for layer in layers.values()), theory.output]
    slopes, errors = np.append(found.own[at], found.passed[last]), np.append(found.own_error[at], found.passed_error[last])
    axes.plot(place, told, "x", color="k", markersize=9, label="predicted")
    axes.errorbar(place, slopes, errors, fmt="o", capsize=3, color=plotting.COLORS[0], label="measured")
    axes.set_xticks(place, [*(name.removeprefix("blocks/") for name in layers), "output: passed on"], rotation=35, ha="right")
    axes.set_title(rule)
    axes.legend(frameon=False, fontsize=8)
    plotting.tidy(axes)
    print(f"{rule}: the output {found.verdict['output']}; {sum(v.startswith('fails') for v in found.verdicts)} places fail")
drawing.axes[0].set_ylabel("power of the width\nby which the step changes it")
drawing

# %% [markdown]
# Under muP no layer changes more in a wide network than in a narrow one, so that the rate found at width 32 can be kept:
# experiment g11 (`python -m experiments run g11`) trains at a grid of rates and measures how far the best one moves.
# Powers hold for wide networks; at widths like these a sum of several, as the output's change is, comes in slowly.
#
# **Question:** what does `check("standard with rate per layer")` say of the layers, and of the output? Why can the output
# fail where no layer does?
#
# **Your model:** `build(width) -> (apply, params)` of any framework is all that `scaling.roles` and `coordinate_check`
# ask for. Train with `optax.chain(optax.adam(rate), scaling.multipliers(roles, "mup", "adam"))` from
# `scaling.rescale(params, roles, "mup")`, and let the check say whether that was done right.
