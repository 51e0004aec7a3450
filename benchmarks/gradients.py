"""Per-layer gradient norms of a deep tanh network over seeds: how fast gradients vanish.

The hand-written kernel goes backward layer by layer with the states it kept, draws with a counter hash and never forms
a weight's gradient: the norms are those of the states' gradients.
"""

import functools

import numpy as np

from benchmarks.rows import Run, Side, Workload


def problem(width, depth, batch, seeds):
    """A batch of inputs."""
    x = np.random.default_rng(0).standard_normal((batch, width)).astype(np.float32)
    return {"x": x, "width": width, "depth": depth, "batch": batch, "seeds": seeds}


def numdl(p):
    """`analysis.gradients.growth` on `networks.dense`."""
    import jax

    from numdl import activations
    from numdl.analysis import gradients
    from numdl.networks import dense

    widths = [p["width"]] * (p["depth"] + 2)
    network = dense.network(widths=widths, activation=activations.tanh, weight_variance=1.0, bias_variance=0.0)
    call = functools.partial(gradients.growth, jax.random.key(0), network, p["x"], seeds=p["seeds"])
    return Run(call, lambda found: slopes(found.log_square), 1 / p["seeds"])


def limit(p):
    """States kept, one product with W' a layer back; weights of a counter hash."""
    import jax
    import jax.numpy as jnp
    from jax import lax

    n = p["width"]
    counter = np.arange(n * n, dtype=np.uint32).reshape(n, n)

    def normal(seed):
        x = counter * np.uint32(0x9E3779B9) + seed
        for _ in range(2):
            x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
            x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
            x = x ^ (x >> 16)
        u = (x >> 8).astype(jnp.float32) * np.float32(2**-24) + np.float32(2**-25)
        return lax.erf_inv(2 * u - 1) * np.float32((2 / n) ** 0.5)

    def one(x, seeds):
        def forward(y, seed):
            weights = normal(seed)
            y = y @ weights
            a = jnp.tanh(y)
            return a, (weights, a)

        y, (weights, states) = lax.scan(forward, x, seeds)

        def backward(cotangent, kept):
            weights, a = kept
            cotangent = cotangent * (1 - a**2)
            return cotangent @ weights.T, jnp.log(jnp.mean(cotangent**2))

        return lax.scan(backward, jnp.ones_like(y), (weights, states), reverse=True)[1]

    @jax.jit
    def program(x, seeds):
        return lax.map(functools.partial(one, x), seeds)

    seeds = np.random.default_rng(1).integers(0, 2**32, (p["seeds"], p["depth"] + 1), dtype=np.uint32)
    return Run(lambda: program(p["x"], seeds), slopes, 1 / p["seeds"])


def plain_jax(p):
    """vmap of grad with respect to zeros added to every layer, weights of jax.random: what one writes first."""
    import jax
    import jax.numpy as jnp

    n, depth = p["width"], p["depth"] + 1

    def one(key, x):
        weights = jax.random.normal(key, (depth, n, n), jnp.float32) / n**0.5

        def loss(probes):
            y = x
            for weight, probe in zip(weights, probes):
                y = jnp.tanh(y @ weight + probe)
            return y.sum()

        gradients = jax.grad(loss)(jnp.zeros((depth, *x.shape), jnp.float32))
        return jnp.log(jnp.mean(gradients**2, axis=(1, 2)))

    program = jax.jit(lambda keys, x: jax.vmap(one, (0, None))(keys, x))
    keys = jax.random.split(jax.random.key(0), p["seeds"])
    return Run(lambda: program(keys, p["x"]), slopes, 1 / p["seeds"])


def torch_hooks(p):
    """A module for each seed, a hook on every layer's output."""
    import torch

    n, x = p["width"], torch.from_numpy(p["x"])

    def one():
        layers, found = [torch.nn.Linear(n, n) for _ in range(p["depth"] + 1)], []
        y = x
        for layer in layers:
            torch.nn.init.normal_(layer.weight, std=n**-0.5)
            torch.nn.init.zeros_(layer.bias)
            z = layer(y)
            z.register_hook(lambda g: found.append(g.square().mean().log()))
            y = torch.tanh(z)
        y.sum().backward()
        return torch.stack(found[::-1]).numpy()

    return Run(lambda: np.stack([one() for _ in range(p["seeds"])]), slopes, 1 / p["seeds"])


def torch_func(p):
    """torch.func: vmap of grad over seeds."""
    import torch

    n, depth, x = p["width"], p["depth"] + 1, torch.from_numpy(p["x"])

    def loss(probes, weights):
        y = x
        for weight, probe in zip(weights.unbind(), probes.unbind()):
            y = torch.tanh(y @ weight + probe)
        return y.sum()

    slope = torch.func.vmap(torch.func.grad(loss))

    def call():
        weights = torch.randn(p["seeds"], depth, n, n) / n**0.5
        gradients = slope(torch.zeros(p["seeds"], depth, *x.shape), weights)
        return gradients.square().mean((2, 3)).log().numpy()

    return Run(call, slopes, 1 / p["seeds"])


def slopes(logs):
    """ln of the mean square of the first layer's gradient over the last's, mean over seeds."""
    logs = np.asarray(logs)
    return [float(np.mean(logs[:, 0] - logs[:, -1]))]


WORKLOADS = (
    Workload(
        "state gradients of a deep tanh network, per seed",
        problem,
        (
            Side("numdl", numdl),
            Side("limit: backward by hand, counter hash", limit),
            Side("plain jax, vmap of grad", plain_jax),
            Side("torch, hooks", torch_hooks, "torch"),
            Side("torch.func, vmap of grad", torch_func, "torch"),
        ),
        sizes={"width": 256, "depth": 50, "batch": 256, "seeds": 4},
        tiny={"width": 8, "depth": 3, "batch": 4, "seeds": 2},
        laws={"width": 2, "depth": 1, "batch": 1},
    ),
)
