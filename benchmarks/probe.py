"""What `layers.probe` costs over the plain gradient: a 50-layer tanh network, a transformer of 12 blocks.

Aim of the probe: at most 1.3 times the time of `jax.value_and_grad`, which returns gradients where the probe returns
statistics; that is the limit here. torch's hooks take two norms and a mean at every layer.
"""

import functools

import numpy as np

from benchmarks.rows import Run, Side, Workload, jitted


def dense_problem(depth, width, examples):
    rng = np.random.default_rng(0)
    weight = (1.5 * rng.standard_normal((depth, width, width)) / width**0.5).astype(np.float32)
    x = rng.standard_normal((examples, width)).astype(np.float32)
    return {"params": {"weight": weight, "bias": np.zeros((depth, width), np.float32)}, "x": x, "apply": dense}


def dense(params, x):
    import jax
    import jax.numpy as jnp

    return jax.lax.scan(lambda x, p: (jnp.tanh(x @ p["weight"] + p["bias"]), None), x, params)[0]


def transformer_problem(blocks, width, heads, tokens, examples):
    """Pre-normalized blocks without scales or biases, parameters stacked over depth."""
    rng = np.random.default_rng(0)
    shapes = {"qkv": (width, 3 * width), "out": (width, width), "up": (width, 4 * width), "down": (4 * width, width)}
    draw = lambda s: (rng.standard_normal((blocks, *s)) / s[0] ** 0.5).astype(np.float32)  # noqa: E731
    x = rng.standard_normal((examples, tokens, width)).astype(np.float32)
    return {"params": {k: draw(s) for k, s in shapes.items()}, "x": x, "apply": functools.partial(transformer, heads)}


def transformer(heads, params, x):
    import jax
    import jax.numpy as jnp

    def normalized(y):
        return jax.nn.standardize(y, axis=-1, epsilon=1e-5)

    def block(y, p):
        n, t, d = y.shape
        q, k, v = jnp.moveaxis((normalized(y) @ p["qkv"]).reshape(n, t, 3, heads, d // heads), 2, 0)
        scores = jax.nn.softmax(jnp.einsum("nqhd,nkhd->nhqk", q, k) / (d // heads) ** 0.5)
        y = y + jnp.einsum("nhqk,nkhd->nqhd", scores, v).reshape(n, t, d) @ p["out"]
        return y + jax.nn.gelu(normalized(y) @ p["up"]) @ p["down"], None

    return jax.lax.scan(block, x, params)[0]


def mean_square(outputs):
    return (outputs**2).mean()


def numdl(p):
    """`analysis.layers.probe`"""
    from numdl.analysis import layers

    call = functools.partial(layers.probe, p["apply"], p["params"], p["x"], loss=mean_square)
    return Run(call, lambda flow: [float(flow.value)])


def limit(p):
    """jax.value_and_grad"""
    import jax

    slope = jax.value_and_grad(lambda params, x: mean_square(p["apply"](params, x)))
    return jitted(slope, p["params"], p["x"], numbers=lambda found: [float(found[0])])


def torch_hooks(p):
    """A forward and a backward hook at every layer."""
    import torch

    params = {name: torch.from_numpy(leaf).requires_grad_() for name, leaf in p["params"].items()}
    x, statistics = torch.from_numpy(p["x"]), []

    def watched(y):
        statistics.append(y.detach().square().mean())
        y.register_hook(lambda g: statistics.append(g.square().mean()))
        return y

    def block(y, one, heads):
        n, t, d = y.shape
        norm = functools.partial(torch.nn.functional.layer_norm, normalized_shape=(d,))
        q, k, v = watched(norm(y) @ one["qkv"]).reshape(n, t, 3, heads, d // heads).permute(2, 0, 3, 1, 4)
        attended = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, d)
        y = y + watched(attended @ one["out"])
        up = torch.nn.functional.gelu(watched(norm(y) @ one["up"]), approximate="tanh")
        return y + watched(up @ one["down"])

    def call():
        statistics.clear()
        y = x
        for layer in range(len(next(iter(p["params"].values())))):
            one = {name: leaf[layer] for name, leaf in params.items()}
            if "qkv" in one:
                y = block(y, one, p["apply"].args[0])
            else:
                y = torch.tanh(watched(y @ one["weight"] + one["bias"]))
        loss = mean_square(y)
        gradients = torch.autograd.grad(loss, list(params.values()))
        statistics.extend(leaf.square().mean() for leaf in gradients)
        return float(loss), [float(value) for value in statistics]

    return Run(call, lambda found: [found[0]])


SIDES = (Side("numdl", numdl), Side("limit: value_and_grad", limit), Side("torch, hooks", torch_hooks, "torch"))
WORKLOADS = (
    Workload(
        "probe of a tanh network",
        dense_problem,
        SIDES,
        sizes={"depth": 50, "width": 256, "examples": 256},
        tiny={"depth": 3, "width": 8, "examples": 4},
        laws={"depth": 1, "width": 2, "examples": 1},
        agree=1e-3,
    ),
    Workload(
        "probe of a transformer",
        transformer_problem,
        SIDES,
        sizes={"blocks": 12, "width": 128, "heads": 4, "tokens": 64, "examples": 8},
        tiny={"blocks": 2, "width": 8, "heads": 2, "tokens": 4, "examples": 2},
        laws={"blocks": 1, "examples": 1},
        agree=1e-3,
    ),
)
