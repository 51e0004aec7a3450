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
# # Systems of the lectures, as numerical methods
#
# Lectures on deep learning show many systems. Each is also a numerical method with an error, a rate or a stable step. Two of
# them here: gradients through chance (variational autoencoders, policies), and two players who each descend on a loss of
# their own (adversarial networks). All eighteen: `python -m experiments list`, group *lectures*; which lecture shows which:
# `docs/lectures.md`.

# %%
import os

import jax
import jax.numpy as jnp
import numpy as np

from numdl import plotting
from numdl.analysis import estimators as measured
from numdl.theory import estimators as predicted
from numdl.theory import games

quick = bool(os.environ.get("NUMDL_QUICK"))  # the tests set it
draws = 2000 if quick else 20000

# %% [markdown]
# ## 1. A gradient through chance
#
# $\nabla_m E f(z)$ for $z \sim N(m, s^2)$, from one draw. The *pathwise* estimator differentiates $f$, the *score function*
# (REINFORCE) needs its values only. Both are right in the mean; their variances say how many draws that costs. With
# $f(z) = \sin(k z)$ the pathwise one gets worse as $k$ grows: a steep $f$ has steep derivatives.

# %%
frequencies = np.array([0.5, 1.0, 2.0, 4.0, 8.0])
rows = {"pathwise": ([], []), "score function": ([], [])}
for k in frequencies:
    f = lambda z, k=k: jnp.sin(k * z)
    rows["pathwise"][0].append(float(np.squeeze(predicted.pathwise(f, mean=0.3, variance=1.0).variance)))
    rows["score function"][0].append(float(np.squeeze(predicted.score_function(f, mean=0.3, variance=1.0).variance)))
    settings = {"mean": jnp.array([0.3]), "variance": 1.0, "draws": draws}
    total = lambda z, k=k: jnp.sum(jnp.sin(k * z))
    rows["pathwise"][1].append(measured.pathwise(jax.random.key(1), total, **settings).var())
    rows["score function"][1].append(measured.score_function(jax.random.key(2), total, **settings).var())
drawing = plotting.figure(width=6, height=3.4)
axes = drawing.subplots()
for (name, (line, points)), color in zip(rows.items(), ("#0072b2", "#d55e00")):
    axes.loglog(frequencies, points, "o", color=color, label=f"{name}, measured")
    axes.loglog(frequencies, line, "k--")
axes.plot([], [], "k--", label="predicted")
axes.set(xlabel="frequency k of f(z) = sin(k z)", ylabel="variance of one draw")
axes.set_xticks(frequencies, [f"{k:g}" for k in frequencies])
axes.minorticks_off()
axes.legend(frameon=False, fontsize=8)
drawing

# %% [markdown]
# ## 2. A game of two players
#
# The smallest adversarial pair: one player lowers $x y$, the other raises it. Its eigenvalues are purely imaginary, so that
# descending together is forward Euler on a rotation, which is unstable for *every* step. Taking turns, or looking ahead
# (extragradient), changes the factor by which a step multiplies the distance from the equilibrium.

# %%
rate, steps = 0.3, 60
jacobian = np.array([[0.0, 1.0], [-1.0, 0.0]])
drawing = plotting.figure(width=9, height=3.6)
left, right = drawing.subplots(1, 2)
for method, color in zip(("simultaneous", "alternating", "extragradient"), ("#d55e00", "#009e73", "#0072b2")):
    matrix = games.step_matrix(jacobian, sizes=(1, 1), method=method, learning_rate=rate)
    path = [np.array([1.0, 0.0])]
    for _ in range(steps):
        path.append(matrix @ path[-1])
    path = np.array(path)
    left.plot(*path.T, color=color, linewidth=1, label=method)
    right.semilogy(np.linalg.norm(path, axis=1), color=color)
    right.semilogy(float(games.growth(1j, method=method, learning_rate=rate)) ** np.arange(steps + 1), "k--", linewidth=1)
left.set(xlabel="x", ylabel="y", xlim=(-3, 3), ylim=(-3, 3), aspect="equal")
left.legend(framealpha=1, edgecolor="none", fontsize=8, loc="lower right")
right.set(xlabel="step", ylabel="distance from the equilibrium")
right.plot([], [], "k--", label="predicted factor per step")
right.legend(frameon=False, fontsize=8)
drawing

# %% [markdown]
# ## Questions
#
# 1. Below which frequency is the pathwise estimator the better one? What does a baseline change? (Experiment f5.)
# 2. Why is the factor of the simultaneous players $\sqrt{1 + h^2}$? Which solver of the course has the same one?
# 3. Alternating players neither leave nor arrive. What does a little friction (a penalty on both) do? (Experiment f14.)
# 4. Choose another row of the table in `docs/lectures.md`: what is the numerical question in it?
