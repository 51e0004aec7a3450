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
# # Audit my network
#
# A network, its loss, its optimizer, one batch: will it train, and if not, why, and what helps? `audit.examine` answers
# before you train. This notebook reads its answer for a network that is sick, cures it, and holds the verdict to account:
# both are trained side by side.
#
# To audit **your** model replace the first code cell. What `apply(params, x)` is for Flax NNX, Equinox, Haiku, Keras and
# PyTorch: the guide *Audit my model*.

# %%
import os

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import numdl as nd
from numdl import data, plotting
from numdl.optimize import losses

quick = bool(os.environ.get("NUMDL_QUICK"))  # the tests set it
depth, width, steps = (10, 16, 30) if quick else (24, 64, 300)
digits = data.digits()
x = jnp.asarray(data.standardize(digits.images.reshape(-1, 64)), jnp.float32)
labels = jnp.asarray(digits.labels)


class Deep(nn.Module):
    """Relu layers as deep as that, with Flax's default weights: variance 1 / fan_in."""

    @nn.compact
    def __call__(self, x):
        for _ in range(depth):
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(10)(x)


model = Deep()
params = model.init(jax.random.key(0), x[:1])

# %% [markdown]
# ## The verdict
#
# The findings are in the order of cause and consequence. *Hint* happens in runs that train well, *likely* needs the loss to
# agree, *certain* is algebra. What was not given (here an evaluation mode) is listed as not seen.

# %%
report = nd.audit.examine(
    model.apply,
    params,
    (x[:64], labels[:64]),
    loss=losses.softmax_cross_entropy,
    optimizer="momentum",
    learning_rate=0.05,
    steps=steps,
    data=(x, labels),
    key=jax.random.key(1),
)
report

# %% [markdown]
# ## What it saw
#
# One forward and one backward pass: the size of the states and of the gradients, layer by layer. Relu with variance
# 1 / fan_in halves the square of the signal in every layer.

# %%
flow = nd.analysis.layers.probe(
    model.apply, params, x[:64], loss=lambda outputs: losses.softmax_cross_entropy(outputs, labels[:64])
)
drawing = plotting.figure(width=9, height=3.2)
left, right = drawing.subplots(1, 2)
layers = np.arange(1, len(flow.names) + 1)
left.semilogy(layers, flow.state_rms, "o-", label="measured")
left.semilogy(layers, flow.state_rms[0] * 2.0 ** (-(layers - 1) / 2), "k--", label="predicted: 2^(-l/2)")
left.set(xlabel="layer", ylabel="size of the states (rms)")
left.legend(frameon=False)
right.semilogy(layers, flow.weight_gradient_rms, "o-")
right.set(xlabel="layer", ylabel="gradient of the weights (rms)")
drawing

# %% [markdown]
# ## The cure, and whether it is one
#
# `repair` says what to change; `prove` trains both on the same batches.

# %%
change = report.repair()
print(*change.changes, *change.by_hand, sep="\n")
proof = report.prove(steps)

# %%
drawing = plotting.figure(width=6, height=3.4)
axes = drawing.subplots()
for curves, name, color in ((proof.sick, "as it was", "#d55e00"), (proof.repaired, "repaired", "#0072b2")):
    axes.plot(np.asarray(curves).T, color=color, linewidth=1)
    axes.plot([], [], color=color, label=name)
axes.axhline(np.log(10), color="k", linestyle=":", label="guessing: ln 10")
axes.set(xlabel="step", ylabel="loss of the batch")
axes.legend(frameon=False)
print("loss on examples not trained on:", np.mean(proof.unseen_sick).round(2), "->", np.mean(proof.unseen_repaired).round(2))
drawing

# %% [markdown]
# ## Questions
#
# 1. Set `depth` to 16, to 8, to 4: where does the verdict change, and what has become of the findings? Compare the shrinking with $2^{-L/2}$.
# 2. Exchange relu for tanh. The variance is the same: why is the verdict another one? (Notebook *Start here*, phase diagram.)
# 3. Take the rate 5 instead of 0.05. Which finding comes first now, and is it right? Train it.
# 4. Where would you not trust the verdict? Read `docs/diagnosis.md`: what is it wrong about most often?
