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
# # Networks as differential equations
#
# A residual layer $y_{l+1} = y_l + h\,F(y_l, \theta_l)$ is a step of Euler's method for $y' = F(y, \theta(t))$. If that
# is more than a way of speaking, a century of numerical analysis applies to networks. Four experiments:
#
# 1. cut the steps of a trained ResNet: **is it an ODE?**
# 2. an **unstable** network: what is wrong, seen before any training, and three cures;
# 3. a **reversible** network: a gradient whose memory does not grow with depth;
# 4. an adjoint that is **wrong**, and the audit that says so.

# %%
import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax

from numdl import activations, data, plotting
from numdl.analysis import refinement
from numdl.analysis import stability as spectra
from numdl.audit import verdicts
from numdl.networks import fields, residual, reversible
from numdl.ode import adjoint_audit, adjoints, integrate, stability, tableaus
from numdl.optimize import train

quick = bool(os.environ.get("NUMDL_QUICK"))  # the tests set it
key = jax.random.key(0)
blue, red, green = plotting.COLORS[:3]

# %% [markdown]
# ## 1. Is a ResNet an ODE?
#
# Two ResNets learn to tell a disc from the ring around it. Both stand for $y' = F(y, \theta(t))$ on $0 \le t \le 3$;
# one takes 4 steps of Euler's method, the other 64. Weights are linear in time between the layers, and all layers
# start alike: smooth in depth.

# %%
points = data.synthetic.circles(0, 256)
x, labels = jnp.asarray(points.features), jnp.asarray(points.labels)
steps, few, many = (100, 4, 32) if quick else (600, 4, 64)


def build(depth):
    return residual.network(
        widths=(2, 12, 2), depth=depth, block="two_layer", activation=activations.tanh,
        weight_variance=1.0, bias_variance=0.1, time=3.0, interpolation="linear",
    )  # fmt: skip


@functools.partial(jax.jit, static_argnames="depth")
def fit(x, labels, depth):
    network = build(depth)
    params = network.init(key, x[:1])
    alike = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[:1], leaf.shape), params["blocks"])
    batches = jax.random.randint(jax.random.key(1), (steps, 64), 0, len(x))

    def loss(params, batch):
        outputs = network.apply(params, x[batch])
        return optax.softmax_cross_entropy_with_integer_labels(outputs, labels[batch]).mean()

    return train.descend(loss, {**params, "blocks": alike}, optax.adam(1e-2), batches)


trained = {depth: fit(x, labels, depth)[0] for depth in (few, many)}
for depth, params in trained.items():
    accuracy = jnp.mean(jnp.argmax(jax.jit(build(depth).apply)(params, x), axis=1) == labels)
    print(f"{depth:>3} layers, h = {3 / depth:.3f}: accuracy {100 * float(accuracy):.1f} %")

# %% [markdown]
# Both classify. Now cut every step into 2, 4, 8 equal ones with the *same* function $\theta(t)$ (`residual.refine`),
# and take them by Euler or by RK4 (`residual.with_tableau`). A discretized ODE hardly notices, and what changes falls
# at the order of the scheme: 1 for Euler.

# %%
def study(depth):
    def refine(factor, tableau):
        finer, params = residual.refine(build(depth), trained[depth], factor=factor)
        return jax.jit(functools.partial(residual.with_tableau(finer, tableau).apply, params))

    factors = (1, 2) if quick else (1, 2, 4, 8)
    return refinement.study(refine, x, factors=factors, solvers=(tableaus.euler, tableaus.rk4), labels=labels)


studies = {depth: study(depth) for depth in trained}
for depth, found in studies.items():
    print(f"{depth:>3} layers, order of Euler {found.order[0]:.2f}: {verdicts.refinement(found)}")

# %%
drawing = plotting.figure(width=10, height=3.8)
left, right = drawing.subplots(1, 2)
for color, (depth, found) in zip((red, blue), studies.items()):
    for line, solver, style in zip(found.differences, found.solvers, ("o-", "s:")):
        left.plot(found.factors[:-1], line, style, color=color, ms=4, label=f"{depth} layers, {solver}")
    right.plot(found.factors, 100 * found.accuracy[0], "o-", color=color, ms=4, label=f"{depth} layers, euler")
    start = found.differences[0, 0]
    left.plot(found.factors[:-1], start / found.factors[:-1], "k--", linewidth=1)
left.plot([], [], "k--", linewidth=1, label="predicted: order 1")
left.set_yscale("log")
left.set_ylabel("change of the outputs\nwhen steps are halved (relative)")
right.set_ylabel("accuracy (%)")
right.set_ylim(80, 100.5)
for axes in (left, right):
    axes.set_xscale("log", base=2)
    axes.set_xlabel("steps, relative to the network's own")
    axes.legend(fontsize=8, frameon=False)
    plotting.tidy(axes)
drawing

# %% [markdown]
# The network of many layers is an ODE that happens to be solved by Euler: every solver gives the same classes. The
# other has learned its own discretization error: a better solver makes it a worse classifier. What is true of ODEs is
# not true of it.
#
# **Try it:** leave the layers as they were drawn at random (delete `alike`). Does depth still make an ODE?
#
# ## 2. An unstable network, and three cures
#
# An antisymmetric matrix has imaginary eigenvalues: $y' = f(y\,(A - A^\top))$ neither grows nor shrinks. The
# network built from it, by forward Euler, does. `residual.unroll` hands out the right-hand side along the network's own
# states, `analysis.stability.spectrum` the eigenvalues of $h J_l$ in every layer, and `audit.verdicts.steps` says what to do.

# %%
depth, width = (20, 12) if quick else (100, 32)
signals = 0.01 * jax.random.normal(jax.random.key(2), (8, width))


def antisymmetric(damping=0.0, tableau=tableaus.euler, depth=depth):
    return reversible.antisymmetric(
        damping=damping, widths=(width, width, 2), depth=depth, activation=activations.tanh,
        weight_variance=0.25, bias_variance=0.0, time=0.4 * depth, tableau=tableau,
    )  # fmt: skip


def examine(network):
    params = network.init(key, signals)
    tableau = tableaus.rk4 if network is cures["RK4"] else tableaus.euler
    flow = residual.unroll(network, params, signals[:2])
    every = slice(None, None, 5)
    return spectra.spectrum(
        flow.field, jax.tree.map(lambda leaf: leaf[every], flow.theta), flow.states[every], flow.step,
        amplification=functools.partial(stability.amplification, tableau),
        largest_step=lambda values: stability.largest_step(tableau=tableau, eigenvalues=values),
    )  # fmt: skip


cures = {"Euler": antisymmetric()}
cures["Euler, damped"] = antisymmetric(damping=0.6)
cures["RK4"] = antisymmetric(tableau=tableaus.rk4)
found = {name: examine(network) for name, network in cures.items()}
for name, spectrum in found.items():
    print(f"{name:>14}: largest |R(z)| {spectrum.amplification.max():.4f}   {verdicts.steps(spectrum)}")

# %% [markdown]
# No step is small enough for Euler on the imaginary axis: its region of stability touches it in one point. Damping
# moves the eigenvalues into the region; RK4's region contains a piece of the axis. The third cure is a smaller step,
# but only together with damping: stable as soon as $h \le 2\gamma/(\gamma^2 + \omega^2)$.

# %%
drawing = plotting.figure(width=11, height=4)
left, right = drawing.subplots(1, 2)
for tableau, style in ((tableaus.euler, "-"), (tableaus.rk4, "--")):
    boundary = stability.region_boundary(tableau)
    for number, branch in enumerate(boundary.T):
        label = None if number else f"|R| = 1, {tableau.name}"
        left.plot(branch.real, branch.imag, "k" + style, linewidth=1, label=label)
for color, (name, spectrum) in zip((red, blue, green), found.items()):
    z = spectrum.eigenvalues.ravel()
    left.plot(z.real, z.imag, "o", color=color, ms=3, mfc="none" if name == "RK4" else color)
    network = cures[name]
    states = network.states(network.init(key, signals), signals)[0]
    right.plot(jnp.linalg.norm(states, axis=(1, 2)) / jnp.linalg.norm(signals), color=color, label=name)
left.plot([], [], "o", color=blue, ms=4, label="damped")
left.plot([], [], "o", color=green, ms=4, label="not damped: Euler, RK4")
left.set_xlim(-3.2, 0.8)
left.set_ylim(-3.2, 3.2)
left.set_xlabel("Re h λ")
left.set_ylabel("Im h λ")
right.set_yscale("log")
right.set_ylim(1e-9, 1e3)
right.axhline(1, color="0.6", linewidth=0.8)
right.set_xlabel("layer")
right.set_ylabel("length of a small signal, input = 1")
for axes in (left, right):
    axes.legend(fontsize=8, frameon=False, loc="lower left")
    plotting.tidy(axes)
drawing

# %% [markdown]
# The spectrum said so before the first signal was sent. Damping is not free: it forgets. RK4 keeps the signal and pays
# four evaluations a layer.
#
# ## 3. A gradient with flat memory
#
# Verlet's scheme for a Hamiltonian network is undone by algebra, so that nothing need be stored on the way. The
# compiler tells what temporary memory a gradient takes; one *state* is a batch at one layer.

# %%
depths = (20, 80) if quick else (50, 200, 800)
methods = {"direct": adjoints.direct, "square_root": adjoints.square_root, "reversible": adjoints.reversible}
methods = {name: methods[name] for name in (("direct", "reversible") if quick else methods)}


def hamiltonian(depth, adjoint=adjoints.reversible):
    return reversible.hamiltonian(
        widths=(32, 32, 2), depth=depth, activation=activations.tanh,
        weight_variance=1.0, bias_variance=0.1, time=5.0, adjoint=adjoint,
    )  # fmt: skip


def memory(depth, adjoint):
    network, batch = hamiltonian(depth, adjoint), jax.ShapeDtypeStruct((4096, 32), jnp.float32)
    params = jax.eval_shape(network.init, key, batch)
    gradient = jax.jit(jax.grad(lambda params, x: jnp.sum(network.apply(params, x) ** 2)))
    compiled = gradient.lower(params, batch).compile()
    return compiled.memory_analysis().temp_size_in_bytes / (4096 * 32 * 4)


measured = {name: [memory(depth, adjoint) for depth in depths] for name, adjoint in methods.items()}
predicted = {"square_root": lambda n: 2 * np.sqrt(n), "reversible": lambda n: 1}
print(f"{'states':>12}" + "".join(f"{depth:>10} layers" for depth in depths))
for name, states in measured.items():
    print(f"{name:>12}" + "".join(f"{value:>17.1f}" for value in states))
    if name in predicted:
        print(f"{'stored':>12}" + "".join(f"{predicted[name](depth):>17.1f}" for depth in depths))

# %% [markdown]
# `direct` keeps every intermediate of every layer; `square_root` stores $2\sqrt{L}$ states and computes the rest
# again; the reversible one holds a few states whatever the depth. And the gradient is the same, up to the rounding of
# the way back. How exact is that way? `inverse` runs the network from its last state to its input.

# %%
signals = jax.random.normal(jax.random.key(3), (16, 32))


def recovered(network, key):
    params = network.init(key, signals)
    last = network.states(params, signals)[-1][-1]
    back = reversible.inverse(network, params, last)
    return jnp.linalg.norm(back - signals) / jnp.linalg.norm(signals)


keys = jax.random.split(key, 5)


@functools.partial(jax.jit, static_argnums=1)
def sweep(keys, depth):
    return jax.lax.map(functools.partial(recovered, hamiltonian(depth)), keys)


errors = np.array([sweep(keys, depth) for depth in depths])
drawing = plotting.figure(width=10, height=3.6)
left, right = drawing.subplots(1, 2)
for color, (name, states) in zip((red, green, blue) if len(methods) == 3 else (red, blue), measured.items()):
    left.plot(depths, states, "o-", color=color, ms=4, label=name)
    if name in predicted:
        left.plot(depths, [predicted[name](n) for n in depths], "k--", linewidth=1)
left.plot([], [], "k--", linewidth=1, label="states stored, predicted")
epsilon = float(jnp.finfo(signals.dtype).eps)
right.plot(depths, errors, "o", color=blue, ms=4, label=["5 networks", *[None] * 4])
right.plot(depths, epsilon * np.asarray(depths), "k--", linewidth=1, label="at most: one unit of rounding a layer")
left.set_ylabel("memory of the gradient (states)")
right.set_ylabel("relative error of the recovered input")
for axes in (left, right):
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(depths, [str(depth) for depth in depths])
    axes.minorticks_off()
    axes.set_xlabel("depth (layers)")
    axes.legend(fontsize=8, frameon=False)
    plotting.tidy(axes)
drawing

# %% [markdown]
# ## 4. An adjoint that is wrong
#
# Could any network be run backwards, by solving its ODE in reverse? Then the gradient would need no memory either
# (`adjoints.backsolve`: optimize, then discretize). Take a block that contracts, $y' = -\tanh(y K)\,K^\top$: stable
# forwards, and so *unstable backwards*. `adjoint_audit.gradient_error` compares with the true gradient of the computed
# solution.

# %%
block = fields.single("symmetric", activations.tanh)
theta = {"kernel": jax.random.normal(jax.random.key(4), (16, 16)) * (4 / 16) ** 0.5, "bias": jnp.zeros(16)}
y0 = jax.random.normal(jax.random.key(5), (8, 16))


@functools.partial(jax.jit, static_argnums=(2, 3))
def audit(y0, theta, steps, tableau):
    def solve(y0, theta, adjoint):
        end = integrate.endpoint(block, y0, theta, tableau=tableau, t1=1.0, steps=steps, adjoint=adjoint)
        return jnp.sum(end**2)

    return adjoint_audit.gradient_error(solve, y0, theta, adjoint=adjoints.backsolve)


counts = (16,) if quick else (16, 32, 64, 128, 256)
audits = {
    tableau.name: [audit(y0, theta, count, tableau) for count in counts]
    for tableau in (tableaus.euler, *(() if quick else (tableaus.heun, tableaus.rk4)))
}
for name, rows in audits.items():
    print(f"{name}, {counts[0]} steps: {rows[0].verdict}")

# %%
drawing = plotting.figure(width=6.4, height=3.8)
axes = drawing.subplots()
for color, (name, rows) in zip(plotting.COLORS, audits.items()):
    axes.plot(counts, [float(row.relative) for row in rows], "o-", color=color, ms=4, label=name)
axes.axhline(adjoint_audit.LIMIT, color="k", linestyle="--", linewidth=1, label="flagged above")
axes.set_xscale("log", base=2)
axes.set_yscale("log")
axes.set_xlabel("steps")
axes.set_ylabel("relative error of the gradient\nby the continuous adjoint")
axes.legend(fontsize=8, frameon=False)
plotting.tidy(axes)
drawing

# %% [markdown]
# The block is stable at all of these steps; its "gradient" is wrong at many. And RK4's error stops falling: in float32
# the way back multiplies rounding, too. The remedy costs little: differentiate what
# was computed (`checkpointed`, `binomial`), or make the network reversible by construction, as in part 3.
#
# **Questions.** 1. Which eigenvalues of the layers would make forward Euler the right scheme, and which step would you then
# choose? (Part 2; experiment c3.) 2. Part 3 needs no states on the way back. What does it pay instead, and what becomes of
# rounding in a thousand layers? (Experiment c8.) 3. A network grows instead of contracting: which of its two solves is now
# the stable one, and is its continuous adjoint right? (Part 4; experiment c9.)
#
# **Next.** `python -m experiments run c8` and `c9` ask the questions of parts 3 and 4 in earnest: depths to 3200,
# float64, several seeds, and what the wrong gradient does to training.
