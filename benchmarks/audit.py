"""One audit of a network before it is trained, beside what one would do otherwise: train it and look."""

import functools

import numpy as np

from benchmarks.rows import Run, Side, Workload


def problem(examples, width, depth, steps):
    rng = np.random.default_rng(0)
    widths = [20, *[width] * depth, 5]
    kernels = [(rng.standard_normal((n, m)) / n**0.5).astype(np.float32) for n, m in zip(widths, widths[1:])]
    x, teacher = rng.standard_normal((examples, 20)).astype(np.float32), rng.standard_normal((20, 5))
    return {"kernels": kernels, "batch": (x, (x @ teacher).argmax(1).astype(np.int32)), "steps": steps}


def apply(params, x):
    import jax.numpy as jnp

    for kernel, bias in params[:-1]:
        x = jnp.tanh(x @ kernel + bias)
    return x @ params[-1][0] + params[-1][1]


def cross_entropy(outputs, labels):
    import optax

    return optax.softmax_cross_entropy_with_integer_labels(outputs, labels).mean()


def parameters(p):
    import jax.numpy as jnp

    return [(jnp.asarray(k), jnp.zeros(k.shape[1], jnp.float32)) for k in p["kernels"]]


def numdl(p):
    """`audit.examine`"""
    import jax
    import optax

    from numdl import audit

    settings = {"loss": cross_entropy, "optimizer": optax.adam, "learning_rate": 1e-3, "steps": p["steps"]}
    call = functools.partial(audit.examine, apply, parameters(p), p["batch"], key=jax.random.key(0), **settings)
    return Run(call, lambda report: [])


def training(p):
    """All the steps, a jitted one after the other."""
    import jax
    import optax

    optimizer = optax.adam(1e-3)

    @jax.jit
    def step(params, memory, batch):
        value, gradient = jax.value_and_grad(lambda q: cross_entropy(apply(q, batch[0]), batch[1]))(params)
        update, memory = optimizer.update(gradient, memory, params)
        return optax.apply_updates(params, update), memory, value

    def call():
        params = parameters(p)
        memory = optimizer.init(params)
        for _ in range(p["steps"]):
            params, memory, value = step(params, memory, p["batch"])
        return value

    return Run(call, lambda found: [])


WORKLOADS = (
    Workload(
        "audit before 1000 steps of an MLP",
        problem,
        (Side("numdl", numdl), Side("training it", training)),
        sizes={"examples": 256, "width": 64, "depth": 6, "steps": 1000},
        tiny={"examples": 16, "width": 8, "depth": 2, "steps": 20},
    ),
)
