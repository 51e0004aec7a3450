"""Tangent kernels: of LeNet-5 and of an MLP with every pair of outputs, and of infinite width.

neural-tangents 0.6.5 needs jax 0.4.30; its three methods run in an environment of their own, patched where that jax
lost two names, on networks written as it wants them. What takes minutes or tens of GB is left to a small N.
The hand-written kernel of a dense network: sum over layers of (A A' + 1) o (D D'), D all outputs' cotangents.
"""

import functools

import numpy as np

from benchmarks.rows import Run, Side, Workload, jitted

LENET = ((5, 5, 1, 6), (5, 5, 6, 16), (400, 120), (120, 84), (84, 10))
DENSE = ((784, 512), (512, 512), (512, 10))


def problem(shapes, examples):
    """Parameters [(kernel, bias)] and inputs."""
    rng = np.random.default_rng(0)

    def normal(shape, fan_in):
        return (rng.normal(size=shape) / fan_in**0.5).astype(np.float32)

    params = [(normal(s, np.prod(s[:-1])), normal(s[-1:], 10)) for s in shapes]
    x = rng.normal(size=(examples, 32, 32, 1) if len(shapes[0]) == 4 else (examples, shapes[0][0]))
    return {"params": params, "x": x.astype(np.float32)}


def apply(params, y):
    """tanh, mean pooling after a convolution."""
    import jax.numpy as jnp
    from jax import lax

    for kernel, bias in params[:-1]:
        if kernel.ndim == 4:
            y = lax.conv_general_dilated(y, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        else:
            y = jnp.dot(y.reshape(y.shape[0], -1), kernel)
        y = jnp.tanh(y + bias)
        if kernel.ndim == 4:
            n, height, width, channels = y.shape
            y = y.reshape(n, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))
    return jnp.dot(y, params[-1][0]) + params[-1][1]


def numdl(p):
    """`analysis.kernels.ntk`"""
    from numdl.analysis import kernels

    call = functools.partial(kernels.ntk, apply, p["params"], p["x"], outputs="full")
    return Run(call, entries)


def dense_limit(p):
    """Layer by layer."""
    import jax.numpy as jnp

    def kernel(params, x):
        inputs = [x]
        for weight, bias in params[:-1]:
            inputs.append(jnp.tanh(inputs[-1] @ weight + bias))
        examples, outputs = len(x), params[-1][1].size
        back = jnp.broadcast_to(jnp.eye(outputs, dtype=x.dtype), (examples, outputs, outputs))
        total = 0.0
        for (weight, _), a in zip(params[::-1], inputs[::-1]):
            flat = back.reshape(examples * outputs, -1)
            gram = (flat @ flat.T).reshape(examples, outputs, examples, outputs)
            total += gram * (a @ a.T + 1)[:, None, :, None]
            if a is not x:
                back = (flat @ weight.T).reshape(examples, outputs, -1) * (1 - a**2)[:, None]
        return total.transpose(0, 2, 1, 3)

    return jitted(kernel, p["params"], p["x"], numbers=entries)


def contraction(p):
    """A Jacobian for each example, contracted leaf by leaf: the usual recipe."""
    import jax
    import jax.numpy as jnp

    def kernel(params, x):
        jacobian = jax.vmap(jax.jacrev(lambda q, one: apply(q, one[None])[0]), (None, 0))(params, x)
        flat = (leaf.reshape(*leaf.shape[:2], -1) for leaf in jax.tree.leaves(jacobian))
        return sum(jnp.einsum("nip,mjp->nmij", leaf, leaf) for leaf in flat)

    return jitted(kernel, p["params"], p["x"], numbers=entries)


def torch_func(p):
    """torch.func's tutorial: vmap of jacrev, einsum over leaves."""
    import torch

    params = [tuple(torch.from_numpy(leaf) for leaf in layer) for layer in p["params"]]
    x = torch.from_numpy(p["x"])

    def one(params, y):
        y = y[None]
        y = y.permute(0, 3, 1, 2) if y.ndim == 4 else y
        for kernel, bias in params[:-1]:
            if kernel.ndim == 4:
                y = torch.nn.functional.conv2d(y, kernel.permute(3, 2, 0, 1), bias)
                y = torch.nn.functional.avg_pool2d(torch.tanh(y), 2)
            else:
                y = y.permute(0, 2, 3, 1) if y.ndim == 4 else y
                y = torch.tanh(y.reshape(1, -1) @ kernel + bias)
        return (y @ params[-1][0] + params[-1][1])[0]

    jacobian = torch.func.vmap(torch.func.jacrev(one), (None, 0))

    def call():
        leaves = [leaf for layer in jacobian(params, x) for leaf in layer]
        return sum(torch.einsum("nip,mjp->nmij", leaf.flatten(2), leaf.flatten(2)) for leaf in leaves).numpy()

    return Run(call, entries)


def tangents(p, method):
    """neural-tangents, one of its implementations."""
    import jax

    library = imported_tangents()
    options = {"trace_axes": (), "implementation": library.NtkImplementation[method], "vmap_axes": 0}
    function = jax.jit(library.empirical_ntk_fn(lambda q, x: apply(q, x), **options))
    return Run(lambda: function(p["x"], None, p["params"]), entries)


def imported_tangents():
    """neural_tangents, with what it wants and does not need here put in place."""
    import sys
    import types

    from jax.interpreters import ad

    sys.modules["neural_tangents.experimental"] = types.ModuleType("neural_tangents.experimental")  # for TensorFlow
    import jax
    from jax._src import source_info_util

    ad.source_info_util, ad.config = source_info_util, jax.config  # names that jax 0.4.30 no longer has there
    import neural_tangents

    return neural_tangents


def entries(kernel):
    """A few of them."""
    return np.asarray(kernel)[0, :3].ravel()[:16].tolist()


# ---- infinite width ------------------------------------------------------------------------------------------------


def inputs(examples, dimension, layers):
    return {"x": np.random.default_rng(0).standard_normal((examples, dimension)), "depth": layers}


def numdl_infinite(p):
    """`theory.kernels.ntk` in float64."""
    from numdl import activations
    from numdl.theory import kernels

    physics = {"activation": activations.relu, "weight_variance": 2.0, "bias_variance": 0.0, "depth": p["depth"]}
    return Run(lambda: kernels.ntk(p["x"], p["x"], **physics), two_rows)


def infinite_limit(p):
    """The arc-cosine kernels in closed form, float64."""
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)

    def kernel(x):
        k = 2 * x @ x.T / x.shape[1]
        theta = k
        for _ in range(p["depth"]):
            size = jnp.sqrt(jnp.outer(jnp.diagonal(k), jnp.diagonal(k)))
            c = jnp.clip(k / size, -1, 1)
            slope = 1 - jnp.arccos(c) / np.pi
            k = size * (jnp.sqrt(1 - c**2) / np.pi + c * slope)
            theta = k + theta * slope
        return theta

    return jitted(kernel, p["x"], numbers=two_rows)


def stax(p):
    """neural-tangents' stax, float64."""
    import jax

    jax.config.update("jax_enable_x64", True)
    library = imported_tangents()
    dense = functools.partial(library.stax.Dense, W_std=2**0.5, b_std=0.0)
    layers = [part for _ in range(p["depth"]) for part in (dense(512), library.stax.Relu())]
    kernel = jax.jit(library.stax.serial(*layers, dense(1))[2], static_argnames="get")
    return Run(lambda: kernel(p["x"], None, get="ntk"), two_rows)


def two_rows(kernel):
    return np.asarray(kernel)[:2, :8].ravel().tolist()


TORCH = Side("torch.func, contraction", torch_func, "torch")
CONTRACTION = Side("contraction of Jacobians", contraction)
STRUCTURED, PRODUCTS, CONTRACTED = (
    Side(f"neural-tangents, {name.lower().replace('_', ' ')}", functools.partial(tangents, method=name), "tangents")
    for name in ("STRUCTURED_DERIVATIVES", "NTK_VECTOR_PRODUCTS", "JACOBIAN_CONTRACTION")
)
WORKLOADS = (
    Workload(
        "tangent kernel of LeNet-5",
        functools.partial(problem, LENET),
        (Side("numdl", numdl), CONTRACTION, TORCH, STRUCTURED, CONTRACTED),
        sizes={"examples": 128},
        tiny={"examples": 2},
        laws={"examples": 2},
        agree=1e-3,
    ),
    Workload(
        "tangent kernel of an MLP 784-512-512-10, few examples",
        functools.partial(problem, DENSE),
        (Side("numdl", numdl), Side("limit: layer by layer", dense_limit), CONTRACTION, TORCH,
         STRUCTURED, PRODUCTS, CONTRACTED),
        sizes={"examples": 16},
        tiny={"examples": 2},
        agree=1e-3,
    ),
    Workload(
        "tangent kernel of an MLP 784-512-512-10",
        functools.partial(problem, DENSE),
        (Side("numdl", numdl), Side("limit: layer by layer", dense_limit), STRUCTURED),
        sizes={"examples": 256},
        tiny={"examples": 2},
        laws={"examples": 2},
        agree=1e-3,
    ),
    Workload(
        "tangent kernel of infinite width, relu",
        inputs,
        (Side("numdl", numdl_infinite), Side("limit: closed form", infinite_limit),
         Side("neural-tangents, stax", stax, "tangents")),
        sizes={"examples": 1000, "dimension": 784, "layers": 3},
        tiny={"examples": 8, "dimension": 4, "layers": 2},
        laws={"examples": 2, "layers": 1},
        agree=1e-6,
    ),
)  # fmt: skip
