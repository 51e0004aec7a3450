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
# # Training as a numerical method
#
# Gradient descent is an iteration, and a numerical analyst asks of an iteration: where is it stable, how fast is it,
# what does it solve, and would another be better? Four answers, each with its prediction beside the measurement:
#
# 1. **two spaces**: in the space of weights and in the space of outputs the same step looks different;
# 2. **stability**: rates and limits of gradient descent, momentum and Nesterov's method, known beforehand;
# 3. **the edge**: a network finds the limit by itself and stays there;
# 4. **Gauss–Newton against Adam**: what curvature buys, and what a linear last layer is good for.

# %%
import functools
import os
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from numdl import activations, data, plotting
from numdl.analysis import descent as measured
from numdl.networks import dense
from numdl.optimize import gauss_newton, least_squares, losses, train, varpro
from numdl.theory import descent as predicted

quick = bool(os.environ.get("NUMDL_QUICK"))  # the tests set it
key = jax.random.key(0)
blue, red, green, pink = plotting.COLORS[:4]

# %% [markdown]
# ## 1. Two spaces
#
# A network of width 64 learns a Chebyshev polynomial from twenty points. We see two things of it: its weights
# $\theta$, some thousands of numbers, and its outputs $y = f(\theta)$, twenty. A step $-\eta\,E'(\theta)$ in the first
# space moves the outputs by $-\eta\,J J^\top (y - c)/n$ in the second: there the metric is $J J^\top$, the tangent
# kernel, and it says which parts of the residual $y - c$ fall quickly and which hardly at all.
#
# `train.fit` trains; `observe` takes any functions of the parameters, and owns none.

# %%
points, degree = 20, 5
x = np.linspace(-1, 1, points)
batch = tuple(jnp.asarray(a[:, None], jnp.float32) for a in (x, np.cos(degree * np.arccos(x))))
network = dense.network(widths=(1, 64, 64, 1), activation=activations.tanh, weight_variance=1.0, bias_variance=0.1)
params = network.init(key, batch[0])


def loss(params, batch):
    return losses.squared(network.apply(params, batch[0]), batch[1])


@jax.jit
def tangent_kernel(params):
    rows = jax.jacrev(lambda params: network.apply(params, batch[0])[:, 0])(params)
    matrix = jnp.concatenate([leaf.reshape(points, -1) for leaf in jax.tree.leaves(rows)], axis=1)
    return matrix @ matrix.T / points


values, vectors = np.linalg.eigh(np.asarray(tangent_kernel(params), float))
values, vectors = values[::-1], vectors[:, ::-1]


@jax.jit
def residual(params):  # in the eigenbasis of the kernel at the start
    return jnp.asarray(vectors.T, jnp.float32) @ (network.apply(params, batch[0]) - batch[1])[:, 0]


rate, steps = 0.02, 300 if quick else 1000
_, history = train.fit(
    loss, params, optax.sgd(rate), train.whole(batch), steps=steps,
    observe={
        "residual": (train.every(10), residual),
        "distance": (train.every(10), train.distance()),
    },
)  # fmt: skip
history

# %%
drawing = plotting.figure(width=11, height=3.8)
left, right = drawing.subplots(1, 2)
history.plot(left)
at, parts = history.observed["residual"]
for color, mode in zip(plotting.COLORS, (0, 1, 2, 4)):
    line = np.abs(parts[0, mode]) * (1 - rate * values[mode]) ** at
    right.plot(at, np.abs(parts[:, mode]), "o", ms=2, color=color, label=f"kernel eigenvalue {values[mode]:.2g}")
    right.plot(at, line, "k--", linewidth=1, label="predicted: fixed kernel" if mode == 0 else None)
right.set_yscale("log")
right.set_ylim(1e-3, 10)
right.set_xlabel("step")
right.set_ylabel("|part of the residual|")
right.legend(fontsize=8, frameon=False)
plotting.tidy(right)
drawing

# %% [markdown]
# With the kernel of the start each part of the residual would fall by the factor $1 - \eta\lambda$ a step. At first it
# does. Then the kernel moves, since at this width the network is not linear in its weights: what had been learned comes
# back a little, and the part that a fixed kernel would hardly touch falls faster than predicted.
#
# ## 2. Stability, known beforehand
#
# Near a minimum a loss is a quadratic, and on a quadratic everything is known: `theory.descent.tuning` gives the best
# settings for eigenvalues between 1 and 100, `growth` the factor of every mode, `sharpness_limit` where a method ends.

# %%
eigenvalues = np.geomspace(1, 100, 30)
start = np.random.default_rng(0).standard_normal(30)
methods = {"gradient_descent": blue, "polyak": red, "nesterov": green}
drawing = plotting.figure(width=11, height=3.8)
left, right = drawing.subplots(1, 2)
for method, color in methods.items():
    best = predicted.tuning(method, least=1.0, largest=100.0)
    descent = optax.sgd(best.learning_rate, best.momentum or None, nesterov=method == "nesterov")
    walk = jax.jit(lambda x, a: measured.path(lambda x: x @ (a * x) / 2, x, descent, steps=150))
    found = walk(jnp.asarray(start, jnp.float32), jnp.asarray(eigenvalues, jnp.float32))
    theory = predicted.path(
        start, eigenvalues=eigenvalues, steps=150, method=method, learning_rate=best.learning_rate, momentum=best.momentum
    )
    if method == "nesterov":  # optax holds the points at which gradients are taken, theory those before them
        theory[1:] += best.momentum * (theory[1:] - theory[:-1])
    left.plot(np.linalg.norm(found, axis=1), color=color, label=f"{method}: {best.rate:.3f} a step")
    left.plot(np.linalg.norm(theory, axis=1), "k--", linewidth=1)
    momentum = 0.0 if method == "gradient_descent" else 0.5
    sharpness = np.linspace(0.02, 4, 400)
    right.plot(
        sharpness, predicted.growth(sharpness, method=method, learning_rate=1.0, momentum=momentum),
        color=color, label=f"{method}, momentum {momentum:g}",
    )  # fmt: skip
    right.axvline(predicted.sharpness_limit(method, learning_rate=1.0, momentum=momentum), color=color, linestyle=":")
left.plot([], [], "k--", linewidth=1, label="predicted")
left.set_yscale("log")
left.set_xlabel("step")
left.set_ylabel("distance from the minimum")
right.axhline(1, color="0.6", linewidth=1)
right.set_ylim(0, 2)
right.set_xlabel("learning rate · eigenvalue")
right.set_ylabel("growth per step")
for axes in (left, right):
    axes.legend(fontsize=8, framealpha=1, edgecolor="none")
    plotting.tidy(axes)
drawing

# %% [markdown]
# Dotted: the limits. Momentum moves the limit outwards, Nesterov's method pulls it in again. The best settings ask for the
# smallest eigenvalue, which nobody knows of a network; the limit asks for the largest one only, and that can be measured.
#
# ## 3. The edge of stability
#
# If the sharpness, the Hessian's largest eigenvalue, exceeded $2/\eta$, gradient descent would diverge. So it must stay
# below, one would think. `analysis.descent.along` measures it along a run by a few Hessian-vector products.

# %%
steps = 2000 if quick else 20_000
runs = {}
for limit, color in ((25.0, red),) if quick else ((30.0, red), (50.0, blue)):
    rate = 2 / limit
    runs[limit] = color, measured.along(key, loss, params, batch, optax.sgd(rate), steps=steps, every=100)
    assert np.isclose(limit, predicted.sharpness_limit("gradient_descent", learning_rate=rate))

drawing = plotting.figure(width=11, height=3.8)
left, right = drawing.subplots(1, 2)
for limit, (color, run) in runs.items():
    left.plot(run.step, run.sharpness, "o", ms=2, color=color, label=f"η = {2 / limit:.3g}")
    left.axhline(limit, color="k", linestyle="--", linewidth=1)
    right.plot(run.loss, color=color, linewidth=0.5, label=f"η = {2 / limit:.3g}")
    tail = np.asarray(run.sharpness[-len(run.step) // 4 :])
    print(f"eta = {2 / limit:.3f}: sharpness at the start {float(run.sharpness[0]):.1f}, "
          f"in the last quarter {tail.mean():.2f}, limit {limit:g}")
left.plot([], [], "k--", linewidth=1, label="predicted: 2/η")
left.set_ylabel("sharpness")
left.set_ylim(0, None)
right.set_yscale("log")
right.set_ylabel("loss")
for axes in (left, right):
    axes.set_xlabel("step")
    axes.legend(fontsize=8, frameon=False)
    plotting.tidy(axes)
drawing

# %% [markdown]
# Training itself makes the loss sharper, until the limit stops it, and then it hovers there: unstable in one direction,
# bent back by the next term of the Taylor series, and still learning. The step chooses the minimum.
#
# **Try it:** `optax.adam(1e-3)` with `preconditioner=measured.adam_preconditioner()`; the limit is 38/η.
#
# ## 4. Gauss–Newton against Adam
#
# A method that knows the curvature has no such limit. `peaks`: five classes in the plane, a network of two hidden layers.
# Gauss–Newton solves a linear problem in each step; *variable projection* eliminates the last, linear layer exactly and
# works on what is left. Adam takes steps that cost a gradient each. Compared by time, compilation not counted.

# %%
count, width = (150, 8) if quick else (500, 16)
made = data.synthetic.peaks(0, count)
x, labels = jnp.asarray(made.features), jnp.asarray(made.labels)
targets = jax.nn.one_hot(labels, 5, dtype=x.dtype)
random = np.random.default_rng(1)
shapes = {"a": (2, width), "b": (width,), "c": (width, width), "d": (width,)}
theta = {name: jnp.asarray(random.standard_normal(s) / np.sqrt(s[0]), jnp.float32) for name, s in shapes.items()}
alpha = 1e-3  # of the penalty on the last layer


def features(theta, x):
    hidden = jnp.tanh(x @ theta["a"] + theta["b"][None, :])
    return least_squares.with_bias(jnp.tanh(hidden @ theta["c"] + theta["d"][None, :]))


full = varpro.full(features, x, targets, theta, alpha=alpha)
reduced = varpro.reduced(features, x, targets, theta, alpha=alpha)
first = varpro.readout(features, theta, x, targets, alpha=alpha).weights


def timed(function, *arguments):
    jax.block_until_ready(function(*arguments))  # compiles
    begin = time.perf_counter()
    result = jax.block_until_ready(function(*arguments))
    return result, time.perf_counter() - begin


iterations, adam_steps = (15, 300) if quick else (400, 10_000)
options = {"steps": iterations, "inner_iterations": 20 if quick else 50}
curves = {}
(_, found), seconds = timed(functools.partial(gauss_newton.minimize, full, **options), (theta, first))
curves["Gauss–Newton"] = blue, np.linspace(0, seconds, iterations + 1), found.value
(_, found), seconds = timed(functools.partial(gauss_newton.minimize, reduced, **options), theta)
curves["variable projection"] = green, np.linspace(0, seconds, iterations + 1), found.value
for rate, color in ((1e-2, red),) if quick else ((1e-2, red), (1e-3, pink)):
    adam = jax.jit(lambda p, rows, rate=rate: train.descend(lambda p, _: full.value(p), p, optax.adam(rate), rows))
    (_, values), seconds = timed(adam, (theta, first), jnp.arange(adam_steps))
    curves[f"Adam, {rate:g}"] = color, np.linspace(0, seconds, adam_steps), values

drawing = plotting.figure(width=11, height=3.8)
left, right = drawing.subplots(1, 2)
for name, (color, seconds, values) in curves.items():
    left.plot(values, color=color, label=name)
    right.plot(1000 * seconds, values, color=color, label=name)
    print(f"{name:>20}: {float(values[0]):.4f} -> {float(values[-1]):.4f} in {1000 * seconds[-1]:.0f} ms")
left.set_xscale("symlog", linthresh=1)
left.set_xlabel("steps")
right.set_xscale("symlog", linthresh=10)
right.set_xlabel("time (ms)")
for axes in (left, right):
    axes.set_yscale("log")
    axes.set_ylabel("loss with penalty")
    axes.legend(fontsize=8, frameon=False)
    plotting.tidy(axes)
drawing

# %% [markdown]
# Per step there is no comparison: tens of steps do what takes Adam a thousand. In time, a step of Gauss–Newton costs as
# much as many gradients, and the advantage shrinks; variable projection keeps it longest, since the problem without
# its linear layer is better conditioned. In the long run, on a plateau where no quadratic model is good for long, Adam
# with a well-chosen rate goes lower. Which one is best depends on how accurate the answer is to be, and on the rate that
# Adam, not Gauss–Newton, has to be told.
#
# **Questions.** 1. The smallest eigenvalue of part 2 becomes a hundred times smaller. How many more steps does each method
# need, and which of them forgives a wrong guess of it? 2. A rate is halved in the middle of the run of part 3: what will the
# sharpness do? 3. Why does variable projection suit a linear last layer, and what would be left of it with two of them?
#
# **Next.** `python -m experiments run d7` measures the edge for momentum and Adam too, `d8` finds the flow that gradient
# descent follows up to second order, `d6` compares six optimizers, and `d10` asks how large a batch is worth it.
