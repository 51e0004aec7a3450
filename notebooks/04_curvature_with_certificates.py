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
# # How sharp is my minimum, and can I trust the number?
#
# The largest eigenvalue of the Hessian decides which learning rates are stable; its spectrum says how many directions
# matter. The matrix is never formed: a method sees products $Hv$ only, and *always* returns some number. This notebook
# asks for numbers that come with a bound.
#
# 1. **Eigenvalues with intervals**, and what a method says that was stopped too early;
# 2. **ghosts**: what plain Lanczos returns if nobody looks;
# 3. the whole **spectrum** with error bars;
# 4. the **landscape** along the steepest directions beside the parabola that the eigenvalues predict;
# 5. the **tangent kernel** beside its limit of infinite width.

# %%
import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax

from numdl import activations, data, plotting, statistics, trees
from numdl.analysis import curvature, landscape
from numdl.analysis import kernels as measured
from numdl.krylov import lanczos
from numdl.networks import dense
from numdl.optimize import losses, train
from numdl.theory import kernels as predicted

quick = bool(os.environ.get("NUMDL_QUICK"))  # the tests set it
width, steps = (16, 100) if quick else (64, 150)
key = jax.random.key(0)
blue, red, green = plotting.COLORS[:3]

# %% [markdown]
# ## A trained network
#
# Digits, two hidden layers, SGD.

# %%
digits = data.digits()
x = jnp.asarray(digits.images.reshape(len(digits.images), -1))
x = (x - x.mean()) / x.std()
examples = x, jnp.asarray(digits.labels)
network = dense.network(
    widths=(64, width, width, 10), activation=activations.tanh, weight_variance=1.0, bias_variance=0.0
)


def loss(params, batch):
    return losses.softmax_cross_entropy(network.apply(params, batch[0]), batch[1])


@jax.jit
def fit(key, examples):
    rows = jax.random.randint(key, (steps, 64), 0, len(examples[0]))
    params = network.init(key, examples[0])
    on_rows = lambda params, rows: loss(params, (examples[0][rows], examples[1][rows]))
    return train.descend(on_rows, params, optax.sgd(0.1, momentum=0.9), rows)[0]


params = fit(key, examples)
size = sum(leaf.size for leaf in jax.tree.leaves(params))
print(f"{size} parameters, loss {float(loss(params, examples)):.4f}")

# %% [markdown]
# ## 1. Eigenvalues, each with an interval
#
# `top_eigenvalues` is Lanczos with full reorthogonalization, restarts, and a second search beside what was found. For
# every value it knows the residual $r = |Hv - \theta v|$, and one more product checks all of them: there *is* an
# eigenvalue within $r$ of $\theta$. `converged` says that the residual is within the tolerance and that no larger
# eigenvalue was met.

# %%
top = curvature.top_eigenvalues(loss, params, examples, k=12, key=key)


def table(found):
    for value, (low, high), sure in zip(found.values, found.intervals, found.converged):
        print(f"  {value:9.5f}   in [{low:9.5f}, {high:9.5f}]   {'certified' if sure else 'NOT converged'}")
    print(f"  {found.matvecs} products")


table(top)
print(f"gradient descent is stable for learning rates up to 2 / lambda_1 = {2 / top.intervals[0, 1]:.3f}")

# %% [markdown]
# Now stop after 20 products, as many tools do by default. The numbers look just as good. But the record says that they
# have not converged, and its intervals are wide enough to hold the truth.

# %%
early = curvature.top_eigenvalues(loss, params, examples, k=6, max_matvecs=20, key=jax.random.key(1))
table(early)
inside = (early.intervals[:, 0] <= top.values[:6]) & (top.values[:6] <= early.intervals[:, 1])
print(f"intervals that hold the certified eigenvalue: {inside.sum()} of 6")

# %%
drawing = plotting.figure(width=7, height=3.8)
axes = drawing.subplots()
for color, shift, found, label in ((blue, -0.1, top, "converged"), (red, 0.1, early, "stopped after 20 products")):
    values, place = found.values[:6], np.arange(1, 7) + shift
    errors = np.abs(found.intervals[:6].T - values)
    axes.errorbar(place, values, errors, fmt="o", color=color, capsize=4, markersize=5, label=label)
axes.set_xlabel("number of the eigenvalue")
axes.set_ylabel("eigenvalue of the Hessian,\nwith its interval")
axes.legend(frameon=False)
plotting.tidy(axes)
drawing

# %% [markdown]
# ## 2. Ghosts
#
# The bare recurrence of Lanczos loses orthogonality as soon as an eigenvalue has converged, and then finds it again:
# copies of eigenvalues that are there once. In exact arithmetic these 150 steps give 150 *different* numbers.

# %%
operator = curvature.hessian(loss, params, examples)
flat, unravel = trees.ravel(params)
start = jax.random.normal(key, flat.shape, flat.dtype)
products = 60 if quick else 150


@functools.partial(jax.jit, static_argnames="reorthogonalize")
def ritz_values(operator, start, reorthogonalize):
    matvec = lambda v: trees.ravel(operator(unravel(v)))[0]
    found = lanczos.tridiagonalize(matvec, start, products, reorthogonalize=reorthogonalize)
    beside = found.off_diagonal[:-1]
    return jnp.linalg.eigvalsh(jnp.diag(found.diagonal) + jnp.diag(beside, 1) + jnp.diag(beside, -1))[::-1]


plain, orthogonal = (np.asarray(ritz_values(operator, start, switch)) for switch in (False, True))
print("          certified  ", np.round(top.values[:6], 4))
print("reorthogonalized     ", np.round(orthogonal[:6], 4))
print("plain, first six     ", np.round(plain[:6], 4))
near = np.abs(plain[:, None] - top.values) < 1e-3 * top.values[0]
print("copies in the plain list of eigenvalue 1, 2, ...:", near.sum(axis=0))

# %%
drawing = plotting.figure(width=9, height=2.9)
axes = drawing.subplots()
for height, color, values, label in (
    (2, "k", top.values, "certified"), (1, blue, orthogonal, "reorthogonalized"), (0, red, plain, "plain"),
):  # fmt: skip
    shown = values[values > top.values[5] * 0.999]
    axes.plot(shown, np.full(len(shown), height), "|", color=color, markersize=18)
    for value in top.values[:6]:
        copies = np.sum(np.abs(shown - value) < 1e-3 * shown[0])
        if copies > 1:
            axes.annotate(f"{copies}x", (value, height), (0, 13), textcoords="offset points", ha="center", fontsize=8)
axes.set_yticks([0, 1, 2], ["plain Lanczos", "reorthogonalized", "certified"])
axes.set_ylim(-0.5, 2.7)
axes.set_xlabel(f"the six largest eigenvalues ({products} products)")
plotting.tidy(axes)
drawing

# %% [markdown]
# A second copy is no defect of a *density*: copies share one weight. But as a list of "the six largest eigenvalues" the
# plain one is wrong.
#
# ## 3. The whole spectrum
#
# Lanczos from random starts gives the density of eigenvalues. Several starts give its standard error. The lines are the
# certified eigenvalues, computed in another way.

# %%
density = curvature.spectral_density(
    loss, params, examples, key=key, num_matvecs=40 if quick else 100, num_probes=10, width=0.01 * top.values[0]
)
drawing = plotting.figure(width=9, height=3.8)
axes = drawing.subplots()
axes.plot(density.grid, density.density, color=blue, label="density, mean of 10 starts")
low, high = density.density - density.stderr, density.density + density.stderr
axes.fill_between(
    density.grid, np.maximum(low, 1e-9), high, color=blue, alpha=0.3, linewidth=0, label="one standard error"
)
axes.plot(top.values, np.full(len(top.values), 3e-4), "|", color=red, markersize=14, label="certified eigenvalues")
axes.set_yscale("log")
axes.set_ylim(1e-4, None)
axes.set_xlabel("eigenvalue of the Hessian")
axes.set_ylabel("density")
axes.legend(frameon=False)
plotting.tidy(axes)
drawing

# %% [markdown]
# Nearly all directions are flat, and a few stick out. The density answers other questions too, with errors: the trace
# from it and from random products,

# %%
mean = density.mean_of(lambda t: t)
trace = curvature.trace(loss, params, examples, key=jax.random.key(2), num_matvecs=30)
flat_share = density.mean_of(lambda t: np.abs(t) < 0.01 * top.values[0])
print(f"trace from the density:  {size * mean.mean:.2f} +- {size * mean.stderr:.2f}")
print(f"trace from 30 products:  {trace.value:.2f} +- {trace.stderr:.2f}")
print(f"eigenvalues below 1 % of the largest: {100 * flat_share.mean:.1f} +- {100 * flat_share.stderr:.1f} %")

# %% [markdown]
# ## 4. Is it true of the loss?
#
# An eigenvalue predicts the loss along its eigenvector: $L(\theta + t v) \approx L + t\,g \cdot v + t^2 \lambda / 2$.
# Dots are the loss, lines the prediction; nothing is fitted.

# %%
positions = np.linspace(-0.3, 0.3, 25)
gradient = jax.grad(loss)(params, examples)
random = jax.tree.map(lambda leaf: leaf / trees.norm(trees.random_like(key, params)), trees.random_like(key, params))
rows = {f"direction {i + 1}": (jax.tree.map(lambda leaf, i=i: leaf[i], top.vectors), top.values[i]) for i in (0, 5)}
rows["random direction"] = random, float(trees.inner(random, operator(random)))

drawing = plotting.figure(width=7, height=4)
axes = drawing.subplots()
for color, (label, (along, value)) in zip(plotting.COLORS, rows.items()):
    slice_ = landscape.line(loss, params, examples, along, positions=positions)
    slope = float(trees.inner(gradient, along))
    parabola = float(loss(params, examples)) + slope * positions + value * positions**2 / 2
    axes.plot(positions, slice_.values, "o", color=color, markersize=4, label=f"{label}, curvature {value:.3g}")
    axes.plot(positions, parabola, "--", color=color, linewidth=1)
axes.plot([], [], "--", color="k", linewidth=1, label="predicted")
axes.set_xlabel("distance t along a unit vector")
axes.set_ylabel("training loss (nats)")
axes.legend(frameon=False)
plotting.tidy(axes)
drawing

# %% [markdown]
# Near t = 0 dots and lines agree; where they part, the Hessian has nothing more to say. Along the steepest direction
# that is early: it curves most, and its curvature changes most.
#
# ## 5. The tangent kernel beside infinite width
#
# The Gauss-Newton matrix $J^\top J$ of the squared loss has the eigenvalues of the *tangent kernel* $J J^\top$, a matrix
# of examples. For an infinitely wide network theory knows that kernel before any network is drawn. The variance over
# networks of width $n$ should fall like $1/n$.

# %%
points = x[:20]
settings = dict(weight_variance=1.5, bias_variance=0.1)
theory = predicted.ntk(np.asarray(points), np.asarray(points), depth=2, activation=activations.erf, **settings)
widths, draws = ((16, 64), 20) if quick else ((32, 128, 512), 60)


@functools.partial(jax.jit, static_argnames="width")
def kernel_samples(points, width):
    net = dense.network(widths=(64, width, width, 1), activation=activations.erf, **settings)

    def one(key):
        params = net.init(key, points)
        return measured.ntk(net.apply, params, points, scale=measured.ntk_scale(net.apply, params, points, **settings))

    return jax.lax.map(one, jax.random.split(key, draws))


samples = {width: np.asarray(kernel_samples(points, width)) for width in widths}
for width, kernels in samples.items():
    found = statistics.agreement(float(theory.mean()), kernels.mean(axis=(1, 2)))
    spread = kernels.var(axis=0, ddof=1).mean() / theory.mean() ** 2
    print(f"width {width:>4}: mean kernel off by {100 * found.relative:+.2f} % ({found.z:+.1f} standard errors), "
          f"width * variance of an entry {width * spread:.2f}")

# %%
drawing = plotting.figure(width=10, height=3.8)
left, right = drawing.subplots(1, 2)
for color, (width, kernels) in zip(plotting.COLORS, samples.items()):
    left.plot(theory.ravel(), kernels[0].ravel(), "o", color=color, markersize=2, label=f"one network, width {width}")
    spectra = np.linalg.eigvalsh(kernels)[:, ::-1]
    right.errorbar(np.arange(1, 21), spectra.mean(axis=0), spectra.std(axis=0), fmt="o", color=color, markersize=3,
                   label=f"width {width}: mean, one deviation")
edge = [theory.min(), theory.max()]
left.plot(edge, edge, "--", color="k", label="predicted: infinite width")
right.plot(np.arange(1, 21), np.linalg.eigvalsh(theory)[::-1], "--", color="k", label="predicted: infinite width")
left.set_xlabel("predicted kernel of two examples")
left.set_ylabel("measured")
right.set_yscale("log")
right.set_xticks([1, 5, 10, 15, 20])
right.set_xlabel("number of the kernel's eigenvalue")
right.set_ylabel("eigenvalue")
for axes in (left, right):
    axes.legend(fontsize=8, frameon=False)
    plotting.tidy(axes)
drawing

# %% [markdown]
# Every number here came with a bound, an error bar, or a prediction beside it.
#
# **Questions.** 1. Double the steps of the training. What becomes of $\lambda_1$, and of the learning rates that are still
# stable? (Experiment d7.) 2. The plain recurrence begins to repeat itself once an eigenvalue has converged: after how many
# products does the first copy come, and does float64 prevent it or put it off? 3. How many eigenvalues stick out, and what
# has that number to do with ten classes? (Experiment e1.)
#
# **Your model:** `curvature.top_eigenvalues(loss, params, batch, k=5, key=key)` takes any `loss(params, batch)` that is
# a mean over the batch, with batch statistics frozen. `operator="gauss_newton"`, `"empirical_fisher"` for other matrices,
# `chunk=` for data that do not fit, and before a big call `curvature.needs` says how much memory it will take.
