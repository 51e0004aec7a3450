"""How far `train.fit` comes: python -m benchmarks accuracies

An MLP on the bundled digits (aim: 97 % of the test set) and, with NUMDL_DATA set to a folder with MNIST's four IDX
files (in it or in mnist/), an MLP and a LeNet-5 for three epochs (aims: 97.5 % and 98.5 %).
"""

import gzip
import os
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from numdl.optimize import losses, train

SIZE = 128


def mlp(params, x):
    for weight, bias in params[:-1]:
        x = jax.nn.relu(x @ weight + bias)
    return x @ params[-1][0] + params[-1][1]


def mlp_parameters(key, widths):
    keys = jax.random.split(key, len(widths) - 1)
    scales = [(2 / n) ** 0.5 for n in widths[:-1]]
    shapes = zip(keys, scales, widths[:-1], widths[1:], strict=True)
    return [(s * jax.random.normal(k, (n, m), jnp.float32), jnp.zeros(m, jnp.float32)) for k, s, n, m in shapes]


def lenet(params, x):
    """LeNet-5 with max pooling, images [N, 28, 28, 1]."""
    for index, padding in enumerate(("SAME", "VALID")):
        kernel, bias = params["conv"][index]
        x = lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))
        x = jax.nn.relu(x + bias)
        n, height, width, channels = x.shape
        x = x.reshape(n, height // 2, 2, width // 2, 2, channels).max(axis=(2, 4))
    return mlp(params["dense"], x.reshape(x.shape[0], -1))


def lenet_parameters(key):
    keys = jax.random.split(key, 3)
    shapes = ((5, 5, 1, 6), (5, 5, 6, 16))
    conv = [
        ((2 / np.prod(s[:3])) ** 0.5 * jax.random.normal(k, s, jnp.float32), jnp.zeros(s[3], jnp.float32))
        for k, s in zip(keys, shapes)
    ]
    return {"conv": conv, "dense": mlp_parameters(keys[2], (400, 120, 84, 10))}


def loss_of(apply):
    return lambda params, batch: losses.softmax_cross_entropy(apply(params, batch[0]), batch[1])


def mnist(folder):
    """((images, labels), (images, labels)) of training and test set, images [N, 28, 28, 1] of mean 0 and variance 1."""
    folder = next(place for place in (folder / "mnist", folder) if place.is_dir())

    def read(name, header):
        content = gzip.decompress((folder / name).read_bytes())
        return np.frombuffer(content, np.uint8, offset=header)

    def pair(name):
        images = read(f"{name}-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28, 1).astype(np.float32) / 255
        return (images - 0.1307) / 0.3081, read(f"{name}-labels-idx1-ubyte.gz", 8).astype(np.int32)

    return pair("train"), pair("t10k")


def digits():
    """The bundled digits, 8 x 8: four fifths to train on, one fifth to test, images [N, 64]."""
    from numdl import data

    found = data.digits()
    order = np.random.default_rng(0).permutation(len(found.labels))
    x = np.asarray(found.images, np.float32).reshape(len(order), -1)[order]
    x, labels = (x - x.mean()) / x.std(), np.asarray(found.labels, np.int32)[order]
    cut = len(order) * 4 // 5
    return (x[:cut], labels[:cut]), (x[cut:], labels[cut:])


def accuracy(name, apply, params, training, test, *, size, epochs):
    """Train and print the share of the test set that is right."""
    steps = epochs * (len(training[1]) // size)
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, steps))
    data = train.resident(training, size=size, key=jax.random.key(2))
    begin = time.perf_counter()
    params, _ = train.fit(loss_of(apply), params, optimizer, data, steps=steps)
    seconds = time.perf_counter() - begin
    share = train.accuracy(apply, *test, size=min(1000, len(test[1])))(params)
    print(f"{name}: {100 * share:.2f} % of the test set after {epochs} epochs, {seconds:.0f} s", flush=True)


def accuracies(folder):
    """Digits that come with the library, and MNIST where it is."""
    key = jax.random.key(0)
    accuracy("digits, MLP 64-128-10", mlp, mlp_parameters(key, (64, 128, 10)), *digits(), size=32, epochs=30)
    if folder:
        training, test = mnist(pathlib.Path(folder))
        widths = (784, 256, 10)
        parts = {"size": SIZE, "epochs": 3}
        flat = lambda params, x: mlp(params, x.reshape(len(x), -1))  # noqa: E731
        accuracy("MNIST, MLP 784-256-10", flat, mlp_parameters(key, widths), training, test, **parts)
        accuracy("MNIST, LeNet-5", lenet, lenet_parameters(key), training, test, **parts)


if __name__ == "__main__":
    accuracies(os.environ.get("NUMDL_DATA"))
