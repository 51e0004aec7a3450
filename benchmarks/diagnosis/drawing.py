"""Weights drawn with NumPy: hundreds of settings are made in seconds, and every jax gives the same numbers."""

import math

import numpy as np

LAWS = ("he", "lecun", "glorot", "third", "orthogonal", "normal", "uniform", "constant", "zero")


def generator(*words):
    """A generator that depends on every word and number given."""
    letters = [[ord(c) for c in word] if isinstance(word, str) else [int(word)] for word in words]
    return np.random.default_rng([number for word in letters for number in (len(word), *word)])


def weights(random, shape, law="he", gain=1.0):
    """A kernel [..., n_in, n_out], its fan-in all but the last axis; `gain` times the law's standard deviation.

    "normal" is a Gaussian of deviation `gain`, "constant" its value, "uniform" on [0, gain]; "third" is uniform with
    variance 1/(3 fan_in), PyTorch's.
    """
    fan_in, fan_out = math.prod(shape[:-1]), shape[-1]
    if law in ("zero", "constant"):
        return np.full(shape, gain if law == "constant" else 0.0, np.float32)
    if law == "uniform":
        return (gain * random.random(shape)).astype(np.float32)
    if law == "third":
        return (gain * random.uniform(-1, 1, shape) / fan_in**0.5).astype(np.float32)
    if law == "orthogonal":
        return (gain * _orthogonal(random, fan_in, fan_out).reshape(shape)).astype(np.float32)
    deviation = {"he": (2 / fan_in) ** 0.5, "lecun": fan_in**-0.5, "glorot": (2 / (fan_in + fan_out)) ** 0.5}
    return (gain * deviation.get(law, 1.0) * random.normal(size=shape)).astype(np.float32)


def _orthogonal(random, n_in, n_out):
    q, r = np.linalg.qr(random.normal(size=(max(n_in, n_out), min(n_in, n_out))))
    q = q * np.sign(np.diag(r))
    return q if n_in >= n_out else q.T


def affine(random, n_in, n_out, law="he", gain=1.0, bias=0.0, bias_deviation=0.0):
    """{"w": [n_in, n_out], "b": [n_out]}"""
    b = bias + bias_deviation * random.normal(size=n_out)
    return {"w": weights(random, (n_in, n_out), law, gain), "b": b.astype(np.float32)}


def stack(layers):
    """Layers of one shape as one pytree with a leading depth axis."""
    return {name: np.stack([layer[name] for layer in layers]) for name in layers[0]}
