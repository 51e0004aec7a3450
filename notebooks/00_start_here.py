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
# # Start here: will this network train? (initialization)
#
# A deep network multiplies its input by one random matrix after the other before it has learned anything. If the signal
# grows a little in every layer it has exploded after fifty; if it shrinks a little it has vanished. This notebook asks
# two questions, and puts **what theory predicts beside what is measured** for both:
#
# 1. How long is $K_3 K_2 K_1 y$, compared with $y$? (The first experiment of Ruthotto & Haber's lectures.)
# 2. Which weights keep signals and gradients alive through *any* depth? (The phase diagram of mean-field theory.)
#
# It goes with the experiments of group *initialization* (a1 to a4). Nothing is needed but this notebook; it takes about a
# minute.

# %%
import os

import jax
import numpy as np

from numdl import activations, data, plotting
from numdl.analysis import jacobian as measured
from numdl.networks import initializers
from numdl.theory import jacobian as predicted

quick = bool(os.environ.get("NUMDL_QUICK"))  # the tests set it
draws = 50 if quick else 1000
key = jax.random.key(0)

# %% [markdown]
# ## 1. Three matrices
#
# $y \in \mathbb{R}^{100}$, and three matrices with independent entries. If an entry has mean 0 and variance $s^2$, then
# $E\,|K y|^2 = n s^2\,|y|^2$: every layer multiplies the expected squared length by $n s^2$. So theory needs one line.

# %%
laws = {
    "N(0, 1)": initializers.normal(1.0),
    "U[-0.5, 0.5]": initializers.uniform(0.5),
    "U[-0.05, 0.05]": initializers.uniform(0.05),
}
y = np.ones(100) / 10  # length 1
print(f"{'entries':>16}  {'predicted mean':>15}  {'measured mean':>15}   of |K3 K2 K1 y|² / |y|²")
for name, law in laws.items():
    shape = (100, 100)
    theory = predicted.product_norm(
        width=100,
        depth=3,
        entry_variance=law.entry_variance(shape),
        excess_kurtosis=law.excess_kurtosis(shape),
        y=y,
    )
    samples = measured.product_norm(key, width=100, depth=3, sampler=law, draws=draws)
    print(f"{name:>16}  {theory.mean:15.5g}  {np.exp(samples.log_ratio[:, -1]).mean():15.5g}")

# %% [markdown]
# A factor of a million with the entries that everyone reaches for first, and only three layers deep.
#
# ## 2. The mean is not what you will see
#
# Choose $s^2 = 1/n$ (LeCun's rule) and the *mean* squared length is kept exactly, at every depth. Look at 200 single
# products instead of the mean: nearly all of them shrink. The mean is held up by a few rare, very long ones.
# The logarithm tells the typical story: $E \ln |z|^2$ falls by about $1/n$ a layer.

# %%
depth = 20 if quick else 200
lecun = initializers.lecun_normal
samples = measured.product_norm(key, width=100, depth=depth, sampler=lecun, draws=20 if quick else 200)
theory = predicted.product_norm(
    width=100, depth=np.arange(1, depth + 1), entry_variance=1 / 100, excess_kurtosis=0.0, y=y
)
axes = plotting.product_norm(np.arange(1, depth + 1), theory, samples.log_ratio, label="LeCun, 200 products")
axes

# %% [markdown]
# **Try it:** replace `lecun_normal` by `orthogonal(1.0)`. What happens to the band, and why?
#
# ## 3. With an activation: the length map
#
# In a wide network $y_{l+1} = W f(y_l) + b$ the mean square $q$ of one layer decides that of the next:
#
# $$q_{l+1} = \sigma_w^2\, E\big[f(\sqrt{q_l}\, z)^2\big] + \sigma_b^2, \qquad z \sim N(0, 1).$$
#
# `numdl.theory.propagation` evaluates it; `numdl.analysis.propagation` measures it on networks, here on digits.

# %%
import jax.numpy as jnp

from numdl.analysis import propagation as measured_lengths
from numdl.networks import dense
from numdl.theory import propagation

settings = dict(activation=activations.tanh, weight_variance=2.5, bias_variance=0.3)
digits = data.digits().images[:16].reshape(16, 64)
digits = jnp.asarray(digits / np.sqrt(np.mean(digits**2, axis=1, keepdims=True)))  # mean square 1
network = dense.network(widths=(64, *[100 if quick else 400] * 12, 10), **settings)
axes = None
for variance in (0.05, 1.0, 6.0):
    samples = measured_lengths.lengths(key, network, np.sqrt(variance) * digits, seeds=4 if quick else 20)
    line = propagation.lengths(variance, depth=12, **settings)
    axes = plotting.prediction_and_measurement(
        np.arange(1, 13), line, samples, ax=axes, label=f"digits of mean square {variance:g}",
        xlabel="layer", ylabel="mean square q of the pre-activations", log=True,
    )  # fmt: skip
axes

# %% [markdown]
# Whatever comes in, after a few layers it has the same length: the fixed point $q^*$ of the map. Two different inputs
# then have the same length, and only the *angle* between them can still tell them apart.

# %%
propagation.fixed_point(**settings)

# %% [markdown]
# `chi_1` is the number to remember. It is the slope of the correlation map at $c = 1$ and at the same time the factor by
# which the squared gradient changes in every layer on its way back:
#
# - `chi_1 < 1`, **ordered**: all inputs become alike, gradients vanish;
# - `chi_1 > 1`, **chaotic**: near twins part, gradients explode;
# - `chi_1 = 1`, **critical**: information travels down to any depth.
#
# ## 4. The phase diagram

# %%
diagram = propagation.phase_diagram(
    activation=activations.tanh, weight_variances=np.linspace(0.5, 4, 100), bias_variances=np.linspace(0, 0.5, 100)
)
plotting.phase_diagram(diagram)

# %%
critical = propagation.critical_weight_variance(activation=activations.tanh, bias_variance=0.05)
print(f"tanh with bias variance 0.05 is critical at weight variance {critical:.6f}")
for name in ("tanh", "erf", "relu", "leaky_relu(0.2)", "sin"):
    value = propagation.critical_weight_variance(activation=activations.named(name), bias_variance=0.0)
    print(f"{name:>16} without biases: {value:.6f}")

# %% [markdown]
# `relu` gives He's rule, weight variance 2; `tanh` gives Glorot's, 1; and now you know where both come from.
#
# ## Questions
#
# 1. LeCun's rule keeps the mean of $|z|^2$ at every depth, and yet a typical product shrinks. Which rule would keep the
#    *logarithm's* mean, and what would the mean then do? (Section 2; experiment a1.)
# 2. Two digits enter a chaotic network of 25 layers. Can it still tell which pair was alike? How deep may an ordered one be?
#    (`depth_scale_c`; experiment a3.)
# 3. Dropout draws another mask for each of two equal inputs. Is there still a critical weight variance? (Experiment a4.)
#
# **Next.** Notebook 08 follows the gradients back, notebook 01 examines a network of yours. `python -m experiments list`
# shows every question that this library asks, each with its prediction, its measurement and a verdict; `make demo` answers
# the first three on one page.
