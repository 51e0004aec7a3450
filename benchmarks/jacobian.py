"""Singular values' matrix: the input-output Jacobian of a deep network at one example."""

import numpy as np

from benchmarks.rows import Run, Side, Workload, jitted


def problem(width, depth):
    """Weights [L, n, n] (fan_in, fan_out) and one example."""
    rng = np.random.default_rng(0)
    weights = (rng.standard_normal((depth, width, width)) / width**0.5).astype(np.float32)
    return {"weights": weights, "x": rng.standard_normal((1, width)).astype(np.float32)}


def numdl(p):
    """`networks.core.jacobian` of a dense network with these weights."""
    import jax.numpy as jnp

    from numdl import activations
    from numdl.networks import core, dense

    depth, n, _ = p["weights"].shape
    physics = {"activation": activations.tanh, "weight_variance": 1.0, "bias_variance": 0.0}
    network = dense.network(widths=[n] * (depth + 2), **physics)
    zeros = jnp.zeros((depth, n), jnp.float32)
    first = {"kernel": jnp.asarray(p["weights"][:1]), "bias": zeros[:1]}
    rest = {"kernel": jnp.asarray(p["weights"][1:]), "bias": zeros[1:]}
    readout = {"kernel": jnp.eye(n, dtype=jnp.float32), "bias": zeros[0]}
    params = {"hidden": (first, rest), "readout": readout}
    return Run(lambda: core.jacobian(network, params, p["x"], start=0, stop=depth), norms)


def product(p):
    """The product of D_l W_l, written down."""
    import jax.numpy as jnp
    from jax import lax

    def program(weights, x):
        def layer(carry, weight):
            y, matrix = carry
            return (jnp.tanh(y) @ weight, ((1 - jnp.tanh(y) ** 2)[:, None] * weight).T @ matrix), None

        start = x[0] @ weights[0], weights[0].T
        return lax.scan(layer, start, weights[1:])[0][1]

    return jitted(program, p["weights"], p["x"], numbers=norms)


def jax_jacrev(p):
    """jax.jacrev of the layers."""
    import jax
    import jax.numpy as jnp

    def network(x, weights):
        y = x @ weights[0]
        return jax.lax.scan(lambda y, weight: (jnp.tanh(y) @ weight, None), y, weights[1:])[0]

    return jitted(lambda weights, x: jax.jacrev(network)(x[0], weights), p["weights"], p["x"], numbers=norms)


def torch_jacobian(p, how):
    """torch.func.jacrev or jacfwd."""
    import torch

    weights, x = [torch.from_numpy(w) for w in p["weights"]], torch.from_numpy(p["x"][0])

    def network(x):
        y = x @ weights[0]
        for weight in weights[1:]:
            y = torch.tanh(y) @ weight
        return y

    call = getattr(torch.func, how)(network)
    return Run(lambda: call(x).detach().numpy(), norms)


def norms(matrix):
    """Frobenius norm, and a functional of the entries."""
    matrix = np.asarray(matrix, np.float64)
    return [float(np.linalg.norm(matrix)), float(matrix[0] @ matrix[1])]


WORKLOADS = (
    Workload(
        "input-output Jacobian of a deep tanh network",
        problem,
        (
            Side("numdl", numdl),
            Side("limit: product of D W", product),
            Side("plain jax, jacrev", jax_jacrev),
            Side("torch.func.jacrev", lambda p: torch_jacobian(p, "jacrev"), "torch"),
            Side("torch.func.jacfwd", lambda p: torch_jacobian(p, "jacfwd"), "torch"),
        ),
        sizes={"width": 400, "depth": 100},
        tiny={"width": 6, "depth": 4},
        laws={"width": 3, "depth": 1},
        agree=1e-3,
    ),
)
