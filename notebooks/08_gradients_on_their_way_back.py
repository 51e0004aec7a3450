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
# # Gradients on their way back
#
# What the outputs say reaches layer $l$ through the transposed weights of all layers above it. This notebook goes with the
# experiments of group *gradients* (b1 to b14; `python -m experiments list`) and asks two of their questions:
#
# 1. By which factor does a squared gradient change in every layer?
# 2. Is that factor the same for every direction, or do a few directions carry everything?
#
# How a vanishing gradient is found and cured in *your* network is notebook 01.

# %%
import os

import jax
import jax.numpy as jnp
import numpy as np

from numdl import activations, plotting
from numdl.analysis import gradients as measured
from numdl.analysis import jacobian as measured_jacobian
from numdl.networks import dense, initializers
from numdl.theory import gradients as predicted
from numdl.theory import jacobian as predicted_jacobian
from numdl.theory import propagation

quick = bool(os.environ.get("NUMDL_QUICK"))  # the tests set it
width, depth, seeds = (60, 10, 6) if quick else (300, 40, 20)
key = jax.random.key(0)

# %% [markdown]
# ## 1. A factor a layer
#
# In a wide network $E\,|g_l|^2 = \chi_1\, E\,|g_{l+1}|^2$ with $\chi_1 = \sigma_w^2\, E f'(\sqrt{q}\, z)^2$ once the lengths
# have settled. Three weight variances for tanh: in the ordered phase, critical, and chaotic. Points are means of $\ln |g|^2$
# over independent networks, bars two standard deviations of a single one. (They lie a little below the lines: the mean of a
# logarithm is below the logarithm of the mean.)

# %%
bias_variance = 0.05
critical = float(propagation.critical_weight_variance(activation=activations.tanh, bias_variance=bias_variance))
variances = {"ordered": 1.0, "critical": critical, "chaotic": 3.0}
x = jnp.ones((1, width))
drawing = plotting.figure(width=6.4, height=3.8)
axes = drawing.subplots()
layer = np.arange(1, depth + 1)
for (phase, weight_variance), color in zip(variances.items(), plotting.COLORS):
    settings = dict(activation=activations.tanh, weight_variance=weight_variance, bias_variance=bias_variance)
    line = predicted.growth(1.0, depth=depth, **settings)
    network = dense.network(widths=(width, *[width] * depth, width), **settings)
    found = np.asarray(measured.growth(key, network, x, seeds=seeds).log_ratio)
    axes.plot(layer, line.log_products, "k--")
    axes.errorbar(layer, found.mean(axis=0), 2 * found.std(axis=0), fmt="o", markersize=3, color=color,
                  label=f"{phase}: weight variance {weight_variance:.3g}, chi_1 {line.chi_1:.3f}")  # fmt: skip
    print(f"{phase:>9}: ln |g|² of layer 1 over the outputs' {line.log_products[0]:7.2f} predicted, "
          f"{found[:, 0].mean():7.2f} ± {found[:, 0].std() / np.sqrt(seeds):.2f} measured")
axes.plot([], [], "k--", label="predicted")
axes.set(xlabel="layer", ylabel="ln |g|², outputs = 0")
axes.legend(frameon=False, fontsize=8)
plotting.tidy(axes)
drawing

# %% [markdown]
# ## 2. The same factor for every direction?
#
# $\chi_1 = 1$ keeps the *mean* of the squared singular values of the Jacobian $\partial y_L / \partial y_1$, not each of them.
# The score $(\mathrm{mean}\, s^2)^2 / \mathrm{mean}\, s^4$ is the share of directions that carry the signal: 1 for an isometry.
# Gaussian matrices lose it with the first product, $1 / (1 + L)$. Orthogonal ones keep it; but a relu behind each costs as much
# as a Gaussian matrix does (the points coincide), while tanh near its linear part costs nearly nothing.

# %%
small = 0.02  # length at which tanh is nearly linear
slope = float(activations.tanh.slope_mean_square(small))
length = float(propagation.length_map(small, activation=activations.tanh, weight_variance=1.0, bias_variance=0.0))
kinds = {
    "Gaussian, linear": (activations.identity, False, 1.0, 0.0, 1.0),
    "orthogonal, relu": (activations.relu, True, 2.0, 0.0, 1.0),
    "orthogonal, tanh at q = 0.02": (activations.tanh, True, 1 / slope, small - length / slope, small),
}
depths = (1, 2, 4) if quick else (1, 2, 4, 8, 16)
units, draws = (40, 4) if quick else (200, 8)
drawing = plotting.figure(width=6.4, height=3.8)
axes = drawing.subplots()
for (kind, (activation, orthogonal, weight_variance, bias, q)), color in zip(kinds.items(), plotting.COLORS):
    line, points, spread = [], [], []
    for L in depths:
        law = predicted_jacobian.squared_singular_values(
            depth=L, q=q, activation=activation, weight_variance=weight_variance, orthogonal=orthogonal
        )
        network = dense.network(
            widths=(units, *[units] * (L + 1), 1),
            activation=activation,
            weight_variance=None if orthogonal else weight_variance,
            initializer=initializers.orthogonal(weight_variance) if orthogonal else None,
            bias_variance=bias,
        )
        start = jnp.full((1, units), np.sqrt((q - bias) / weight_variance))
        s = measured_jacobian.spectra(key, network, start, seeds=draws, start=1, stop=L + 1)
        scores = np.asarray(measured_jacobian.isometry(s).score)
        line.append(float(law.isometry))
        points.append(scores.mean())
        spread.append(scores.std())
    axes.plot(depths, line, "k--")
    axes.errorbar(depths, points, spread, fmt="o", markersize=5 if orthogonal else 10, capsize=3, color=color, label=kind)
    print(f"{kind:>30} at depth {depths[-1]}: {line[-1]:.3f} predicted, {points[-1]:.3f} measured at width {units}")
axes.plot([], [], "k--", label="predicted, infinite width")
axes.set_xscale("log", base=2)
axes.set_xticks(depths, [str(L) for L in depths])
axes.set(xlabel="layers between the two states", ylabel="share of directions that carry", ylim=(0, 1.05))
axes.legend(frameon=False, fontsize=8)
plotting.tidy(axes)
drawing

# %% [markdown]
# ## Questions
#
# 1. How deep may a tanh network of weight variance 1 be, if single precision is to tell its first layer's gradient from zero?
#    (`predicted.growth(...).depth_scale` and $10^{-38}$; then ask experiment b2 from which depth training fails long before that.)
# 2. The bars of section 1 grow towards the first layer although $\chi_1$ is exact. Double the width: what do they do, and why?
#    (`predicted.log_norm` for relu; experiment b6.)
# 3. Residual connections keep $\chi$ near one whatever the weights. What do they do to the score of section 2, and what does
#    a factor $1/\sqrt{L}$ on every branch change? (Experiments b7 and b12.)
