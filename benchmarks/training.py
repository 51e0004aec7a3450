"""A training step, batch 128, Adam, on data of MNIST's size: an MLP 784-128-10 and LeNet-5.

A call is many steps; times are per step. The hand-written kernel is one compiled scan over shuffled data on the device
with nothing around it; LeNet's convolutions there are numdl's, as XLA's own are ten times slower inside a loop.
"""

import functools

import numpy as np

from benchmarks.rows import Run, Side, Workload

RATE, SIZE = 1e-3, 128


def problem(model, steps, examples):
    """Images in [0, 1), labels, first parameters: kernels (inputs, outputs) or HWIO, biases 0."""
    rng = np.random.default_rng(0)
    shapes = {"mlp": [(784, 128), (128, 10)], "lenet": [(5, 5, 1, 6), (5, 5, 6, 16), (256, 120), (120, 84), (84, 10)]}
    kernels = [(rng.standard_normal(s) * (2 / np.prod(s[:-1])) ** 0.5).astype(np.float32) for s in shapes[model]]
    pixels = rng.random((examples, 28, 28, 1), np.float32)
    labels = rng.integers(0, 10, examples).astype(np.int32)
    rows = rng.integers(0, examples, (steps, SIZE))
    return {"model": model, "kernels": kernels, "data": (pixels, labels), "rows": rows, "steps": steps}


# ---- jax -----------------------------------------------------------------------------------------------------------


def parameters(p):
    import jax.numpy as jnp

    return [(jnp.asarray(k), jnp.zeros(k.shape[-1], jnp.float32)) for k in p["kernels"]]


def loss_of(model):
    """loss(params, (pixels, labels))"""
    import jax
    import optax

    from numdl.networks import convolutional

    def network(params, y):
        for kernel, bias in params[:-3] if model == "lenet" else ():
            y = jax.nn.relu(convolutional.convolve(y, kernel) + bias)
            n, height, width, channels = y.shape
            y = y.reshape(n, height // 2, 2, width // 2, 2, channels).max(axis=(2, 4))
        y = y.reshape(len(y), -1)
        dense = params[-3:] if model == "lenet" else params
        for kernel, bias in dense[:-1]:
            y = jax.nn.relu(y @ kernel + bias)
        return y @ dense[-1][0] + dense[-1][1]

    def loss(params, batch):
        return optax.softmax_cross_entropy_with_integer_labels(network(params, batch[0]), batch[1]).mean()

    return loss


def per_step(p, call, losses=lambda found: found):
    """Times of a step; the numbers are the first losses, which all sides share."""
    return Run(call, lambda found: np.asarray(losses(found), float).ravel()[:3].tolist(), 1 / p["steps"])


def numdl(p, *, listed=False):
    """`train.fit` on data on the device, or on an iterable of NumPy batches, as a generator yields them."""
    import optax

    from numdl.optimize import train

    loss, params = loss_of(p["model"]), parameters(p)
    data = tuple(leaf[p["rows"].ravel()] for leaf in p["data"])  # in the order in which all sides read them
    source = train.resident(data, size=SIZE, key=None)

    def call():
        batches = (tuple(leaf[row] for leaf in p["data"]) for row in p["rows"]) if listed else source
        return train.fit(loss, params, optax.adam(RATE), batches, steps=p["steps"], progress=False)[1].loss

    return per_step(p, call)


def step_of(p):
    """(optimizer, step(state, batch) -> state, loss)"""
    import jax
    import optax

    loss, optimizer = loss_of(p["model"]), optax.adam(RATE)

    def step(state, batch):
        params, memory = state
        value, gradient = jax.value_and_grad(loss)(params, batch)
        update, memory = optimizer.update(gradient, memory, params)
        return (optax.apply_updates(params, update), memory), value

    return optimizer, step


def limit(p):
    """A scan over rows of indices."""
    import jax
    from jax import lax

    optimizer, step = step_of(p)

    @jax.jit
    def epoch(state, data, rows):
        return lax.scan(lambda state, row: step(state, jax.tree.map(lambda leaf: leaf[row], data)), state, rows)[1]

    params, data = parameters(p), jax.device_put(p["data"])
    state = params, optimizer.init(params)
    return per_step(p, lambda: epoch(state, data, p["rows"]))


def jit_loop(p):
    """optax in a jitted step, a Python loop over NumPy batches."""
    import jax

    optimizer, step = step_of(p)
    step, params = jax.jit(step), parameters(p)

    def call():
        state, losses = (params, optimizer.init(params)), []
        for row in p["rows"]:
            state, value = step(state, tuple(leaf[row] for leaf in p["data"]))
            losses.append(value)
        return jax.block_until_ready(losses)

    return per_step(p, call)


def flax_loop(p):
    """flax.nnx with its own optimizer and nnx.jit; its convolutions are XLA's."""
    import jax
    import optax
    from flax import nnx

    class Network(nnx.Module):
        def __init__(self):
            self.layers = nnx.List([self.layer(k, b) for k, b in parameters(p)])

        @staticmethod
        def layer(kernel, bias):
            make = nnx.Linear if kernel.ndim == 2 else functools.partial(nnx.Conv, kernel_size=(5, 5), padding="VALID")
            made = make(*kernel.shape[-2:], rngs=nnx.Rngs(0))
            made.kernel[...], made.bias[...] = kernel, bias
            return made

        def __call__(self, y):
            for layer in self.layers[:-1]:
                y = y.reshape(len(y), -1) if isinstance(layer, nnx.Linear) else y
                y = nnx.relu(layer(y))
                y = y if isinstance(layer, nnx.Linear) else nnx.max_pool(y, (2, 2), (2, 2))
            return self.layers[-1](y)

    adam = optax.adam(RATE)  # another one would be another program

    @nnx.jit
    def step(network, optimizer, batch):
        def loss(network):
            return optax.softmax_cross_entropy_with_integer_labels(network(batch[0]), batch[1]).mean()

        value, gradient = nnx.value_and_grad(loss)(network)
        optimizer.update(network, gradient)
        return value

    def call():
        network = Network()
        optimizer = nnx.Optimizer(network, adam, wrt=nnx.Param)
        losses = [step(network, optimizer, tuple(leaf[row] for leaf in p["data"])) for row in p["rows"]]
        return jax.block_until_ready(losses)

    return per_step(p, call)


# ---- torch ---------------------------------------------------------------------------------------------------------


def torch_network(p):
    import torch
    from torch import nn

    class Flat(nn.Module):
        """Height, width, channels: the order of the kernels."""

        def forward(self, y):
            return y.permute(0, 2, 3, 1).flatten(1)

    layers = [Flat()] if p["model"] == "mlp" else []
    for index, kernel in enumerate(p["kernels"]):
        image = kernel.ndim == 4
        if not image and p["model"] == "lenet" and index == 2:
            layers.append(Flat())
        layer = nn.Conv2d(*kernel.shape[2:], 5) if image else nn.Linear(*kernel.shape)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(kernel.transpose(3, 2, 0, 1) if image else kernel.T))
            layer.bias.zero_()
        layers.append(layer)
        layers += [nn.ReLU()] if index < len(p["kernels"]) - 1 else []
        layers += [nn.MaxPool2d(2)] if image else []
    return nn.Sequential(*layers)


def torch_loop(p, *, fused=False, compiled=False):
    """zero_grad, backward, step on tensors in memory."""
    import torch

    pixels, labels = torch.from_numpy(p["data"][0].transpose(0, 3, 1, 2).copy()), torch.from_numpy(p["data"][1]).long()
    rows = torch.from_numpy(p["rows"])
    network = torch_network(p)
    start = {name: value.clone() for name, value in network.state_dict().items()}
    forward = torch.compile(network) if compiled else network

    def call():
        network.load_state_dict(start)
        optimizer, losses = torch.optim.Adam(network.parameters(), RATE, fused=fused), []
        for row in rows:
            optimizer.zero_grad(set_to_none=True)
            loss = torch.nn.functional.cross_entropy(forward(pixels[row]), labels[row])
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return torch.stack(losses).numpy()

    return per_step(p, call)


SIDES = (
    Side("numdl, resident", numdl),
    Side("numdl, iterable", lambda p: numdl(p, listed=True)),
    Side("limit: scan over the epoch", limit),
    Side("jit loop, optax", jit_loop),
    Side("flax.nnx loop, optax", flax_loop),
    Side("torch", torch_loop, "torch"),
    Side("torch, fused Adam", lambda p: torch_loop(p, fused=True), "torch"),
    Side("torch.compile, fused Adam", lambda p: torch_loop(p, fused=True, compiled=True), "torch"),
)
WORKLOADS = (
    Workload(
        "step of an MLP 784-128-10",
        functools.partial(problem, "mlp"),
        SIDES,
        sizes={"steps": 468, "examples": 60000},
        tiny={"steps": 3, "examples": 400},
        agree=1e-3,
    ),
    Workload(
        "step of LeNet-5",
        functools.partial(problem, "lenet"),
        SIDES,
        sizes={"steps": 40, "examples": 10000},
        tiny={"steps": 2, "examples": 300},
        agree=1e-2,
    ),
)
