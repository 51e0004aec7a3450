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
# # Why does my deep network not train?
#
# You bring a Flax model, forty layers deep. It does not learn. This notebook finds out why **without touching the model**:
#
# 1. watch it fail;
# 2. *probe* it: one forward and one backward pass, statistics of every layer;
# 3. put theory's prediction beside the measurement: the network is where theory says that it is, and theory says why;
# 4. change one number, and train.

# %%
import os

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import numdl as nd
from numdl import activations
from numdl.theory import gradients as predicted
from numdl.theory import propagation

quick = bool(os.environ.get("NUMDL_QUICK"))
depth, width, steps = (20, 60, 60) if quick else (40, 200, 200)

# %% [markdown]
# ## The model
#
# Nothing special: `Dense` and `tanh`, forty times, Flax's default initialisation (LeCun: fan_in · Var(W) = 1).

# %%
class Deep(nn.Module):
    weight_variance: float = 1.0  # Flax's default

    @nn.compact
    def __call__(self, x):
        init = nn.initializers.variance_scaling(self.weight_variance, "fan_in", "truncated_normal")
        for _ in range(depth):
            x = nn.tanh(nn.Dense(width, kernel_init=init, bias_init=nn.initializers.normal(0.05**0.5))(x))
        return nn.Dense(10, kernel_init=init)(x)


digits = nd.data.digits()
x = jnp.asarray(digits.images.reshape(len(digits.images), -1))
x = (x - x.mean()) / x.std()
y = jnp.asarray(digits.labels)


def loss(outputs):  # of the batch that is probed
    return optax.softmax_cross_entropy_with_integer_labels(outputs, y[:128]).mean()


def train(model, rate=3e-3):
    params = model.init(jax.random.key(0), x[:1])
    descent = optax.sgd(rate, momentum=0.9)

    def step(state, batch):
        params, memory = state

        def cost(params):
            return optax.softmax_cross_entropy_with_integer_labels(model.apply(params, x[batch]), y[batch]).mean()

        value, slope = jax.value_and_grad(cost)(params)
        update, memory = descent.update(slope, memory)
        return (optax.apply_updates(params, update), memory), value

    batches = jax.random.randint(jax.random.key(1), (steps, 64), 0, len(x))
    return jax.jit(lambda state: jax.lax.scan(step, state, batches))((params, descent.init(params)))


(_, _), losses = train(Deep())
print(f"loss at the start {losses[0]:.3f}, after {steps} steps {losses[-20:].mean():.3f}, guessing {np.log(10):.3f}")

# %% [markdown]
# ## Look inside
#
# `probe` takes any JAX function `apply(params, x)`. It finds the layers by itself, names them by their parameters, and
# reads the statistics of states and gradients as they pass: nothing is stored, nothing in the model is changed.

# %%
model = Deep()
params = model.init(jax.random.key(0), x[:1])
flow = nd.analysis.layers.probe(model.apply, params, x[:128], loss=loss)
flow

# %%
nd.plotting.layers(flow)

# %% [markdown]
# States keep a decent size. But look at the columns `cosine` and `rank`: deep down all 128 digits point in the same
# direction. And the gradient of the loss with respect to the states falls by orders of magnitude on its way back: the
# first layers receive nothing to learn from.
#
# ## What theory says
#
# Weight variance 1 and bias variance 0.05 for tanh:

# %%
settings = dict(activation=activations.tanh, weight_variance=1.0, bias_variance=0.05)
point = propagation.fixed_point(**settings)
point

# %% [markdown]
# **Ordered phase**: `chi_1 < 1`. Two inputs become alike over `depth_scale_c` layers, and squared gradients shrink by the
# factor `chi_1` a layer. A network of more than about six depth scales cannot be trained (Schoenholz et al. 2017). Is
# *this very network* where theory says? The prediction is drawn with a band in which a single network of this width may
# stray: two deviations of $\mathrm{Var} \ln|g|^2 \approx 5 L / n$, which is relu's law and a rule of thumb for tanh.

# %%
leaves = {name: leaf for name, leaf in zip(flow.names, flow.weight_variance)}  # the measured variances, layer by layer
print(f"measured weight variance: {np.mean(list(leaves.values())):.3f} +- {np.std(list(leaves.values())):.3f}")

theory = predicted.growth(float(jnp.mean(x[:128] ** 2)), depth=depth, **settings)
measured_gradient = np.asarray(flow.state_gradient_rms[:depth], dtype=float) ** 2
relative = measured_gradient / measured_gradient[-1]
line = np.exp(theory.log_products - theory.log_products[-1])
stray = np.exp(2 * np.sqrt(5 * np.arange(depth, 0, -1) / width))  # two deviations; relu's law, a rule of thumb for tanh

drawing = nd.plotting.figure(width=6.4, height=4)
axes = drawing.subplots()
layer = np.arange(1, depth + 1)
axes.fill_between(layer, line / stray, line * stray, color="0.85", label="theory, width " + str(width))
axes.plot(layer, line, "k--", label="theory, infinite width")
axes.plot(layer, relative, "o", color=nd.plotting.COLORS[1], markersize=4, label="this network")
axes.set_yscale("log")
axes.set_xlabel("layer")
axes.set_ylabel("squared gradient, last layer = 1")
axes.legend(frameon=False)
nd.plotting.tidy(axes)
drawing

# %% [markdown]
# ## The cure
#
# Theory also says what to change: the weight variance at which `chi_1` is exactly one.

# %%
critical = float(propagation.critical_weight_variance(activation=activations.tanh, bias_variance=0.05))
print(f"critical weight variance for tanh at bias variance 0.05: {critical:.4f}")
(trained, _), cured = train(Deep(weight_variance=critical))
accuracy = jnp.mean(jnp.argmax(Deep(weight_variance=critical).apply(trained, x), axis=1) == y)
print(f"loss after {steps} steps: {losses[-20:].mean():.3f} before, {cured[-20:].mean():.3f} after; "
      f"accuracy {100 * float(accuracy):.1f} %")

# %%
drawing = nd.plotting.figure(width=6.4, height=3.4)
axes = drawing.subplots()
axes.plot(losses, color=nd.plotting.COLORS[1], label="Flax's default, weight variance 1")
axes.plot(cured, color=nd.plotting.COLORS[0], label=f"critical, weight variance {critical:.3f}")
axes.axhline(np.log(10), color="0.6", linewidth=1, label="guessing")
axes.set_xlabel("step")
axes.set_ylabel("training loss (nats)")
axes.legend(frameon=False)
nd.plotting.tidy(axes)
drawing

# %%
nd.plotting.layers(nd.analysis.layers.probe(
    model.apply, Deep(weight_variance=critical).init(jax.random.key(0), x[:1]), x[:128], loss=loss))

# %% [markdown]
# One number, known before the first step, decided whether the network trains.
#
# **Questions.** 1. Which depth would the default initialisation still carry? (About six of `depth_scale_c`; experiment b2.)
# 2. At which learning rate does the sick network begin to learn after all, and how long does it stay at $\ln 10$ before?
# 3. What would batch normalisation change in the columns `cosine` and gradient? (Experiments b10, b11.)
#
# **Your model:** replace `Deep` by anything that is a function of `(params, x)`: a Flax NNX or Equinox model split into
# arrays and the rest, Haiku, a plain function. A model without `tanh` has other numbers but the same story:
# `propagation.critical_weight_variance(activation=activations.gelu, bias_variance=...)`.
