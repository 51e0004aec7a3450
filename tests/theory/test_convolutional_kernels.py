"""Convolutional kernels against window matrices built entry by entry, and networks of many channels."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numdl import activations
from numdl.theory import kernels

RNG = np.random.default_rng(7)
ERF = {"activation": activations.erf, "weight_variance": 1.7, "bias_variance": 0.3}


def places(height, width):
    return list(itertools.product(range(height), range(width)))


def windows(height, width, sides, padding):
    """M[p, p'] = 1 / |window| where the window at p sees p', as often as it does."""
    index = {place: i for i, place in enumerate(places(height, width))}
    seen = []
    reach = list(itertools.product(*(range(-(side // 2), side // 2 + 1) for side in sides)))
    for (i, j), place in itertools.product(places(height, width), reach):
        other = (i + place[0], j + place[1])
        if padding == "circular":
            other = (other[0] % height, other[1] % width)
        seen.append(((i, j), place, index.get(other)))
    offsets = []  # one matrix for each offset: both pixels of a pair move together
    for offset in reach:
        matrix = np.zeros((height * width,) * 2)
        for place, moved, target in seen:
            if moved == offset and target is not None:
                matrix[index[place], target] = 1
        offsets.append(matrix)
    return offsets


def erf_moments(joint, n):
    """E erf erf and E erf' erf' between the first n and the other pixels (Williams 1997), from the joint covariance."""
    q = np.diag(joint)
    volume = np.outer(1 + 2 * q, 1 + 2 * q)
    return 2 / np.pi * np.arcsin(2 * joint / np.sqrt(volume)), 4 / np.pi / np.sqrt(volume - 4 * joint**2)


def by_matrices(a, b, depth, sides, padding, pooling, w, bias):
    """K and Theta of two pictures: all their pixels in one covariance, moved by explicit matrices."""
    height, width, channels = a.shape
    n = height * width
    offsets = [np.kron(np.eye(2), m) for m in windows(height, width, sides, padding)]
    mean = lambda k: sum(m @ k @ m.T for m in offsets) / len(offsets)  # noqa: E731
    pixels = np.concatenate([a.reshape(n, channels), b.reshape(n, channels)])
    k = w * mean(pixels @ pixels.T / channels) + bias
    theta = k
    for _ in range(depth - 1):
        values, slopes = erf_moments(k, n)
        k, theta = w * mean(values) + bias, mean(slopes * theta)
        theta = k + w * theta
    values, slopes = (m[:n, n:] for m in erf_moments(k, n))
    crossing = theta[:n, n:]
    read = np.mean if pooling == "mean" else lambda m: np.mean(np.diag(m))
    out = w * read(values) + bias
    return out, out + w * read(slopes * crossing)


@pytest.mark.parametrize("padding", ["same", "circular"])
@pytest.mark.parametrize("pooling", ["none", "mean"])
@pytest.mark.parametrize("window, depth", [(3, 1), ((1, 3), 3)])
def test_against_window_matrices(window, depth, padding, pooling):
    x1, x2 = RNG.normal(size=(2, 3, 4, 2)), RNG.normal(size=(1, 3, 4, 2))
    got = kernels.convolutional(x1, x2, depth=depth, window=window, padding=padding, pooling=pooling, **ERF)
    sides = window if isinstance(window, tuple) else (window, window)
    for i, a in enumerate(x1):
        wanted = by_matrices(a, x2[0], depth, sides, padding, pooling, 1.7, 0.3)
        np.testing.assert_allclose([got.nngp[i, 0], got.ntk[i, 0]], wanted, rtol=1e-12)


def test_one_pixel_is_the_dense_network():
    x1, x2 = RNG.normal(size=(3, 1, 1, 5)), RNG.normal(size=(2, 1, 1, 5))
    got = kernels.convolutional(x1, x2, depth=4, window=1, **ERF)
    flat = kernels.dense(x1[:, 0, 0], x2[:, 0, 0], depth=4, **ERF)
    np.testing.assert_allclose(np.stack(got), np.stack(flat), rtol=1e-13)


def test_circular_pooling_does_not_see_a_shift():
    """A shifted picture is the same picture to a pooled network without a border, and another one to the other."""
    x = RNG.normal(size=(1, 4, 4, 1))
    moved = np.roll(x, (1, 2), (1, 2))
    how = {"depth": 2, "window": 3, "padding": "circular", **ERF}
    same, other = (kernels.convolutional(x, y, pooling="mean", **how) for y in (x, moved))
    np.testing.assert_allclose(np.stack(same), np.stack(other), rtol=1e-12)
    assert kernels.convolutional(x, moved, pooling="none", **how).ntk < 0.9 * kernels.convolutional(x, x, **how).ntk


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["none", "mean"])
def test_wide_networks(pooling):
    """Relu networks of 512 channels in NTK parameterization: five standard errors and 2 %."""
    x, width, w, bias = jnp.asarray(RNG.normal(size=(2, 3, 3, 2))), 512, 2.0, 0.1

    def apply(params, x):
        for kernel, shift in params["layers"]:
            scale = jnp.sqrt(w / np.prod(kernel.shape[:3]))
            y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            x = jax.nn.relu(scale * y + jnp.sqrt(bias) * shift[None, None, None])
        flat = x.mean((1, 2)) if pooling == "mean" else x.reshape(len(x), -1)
        readout, shift = params["readout"]
        return jnp.sqrt(w / flat.shape[1]) * flat @ readout + jnp.sqrt(bias) * shift[None]

    def init(key):
        keys = iter(jax.random.split(key, 6))
        layers = [(jax.random.normal(next(keys), (3, 3, c, width)), jax.random.normal(next(keys), (width,)))
                  for c in (2, width)]  # fmt: skip
        features = width if pooling == "mean" else 9 * width
        return {"layers": layers, "readout": (jax.random.normal(next(keys), (features, 1)),
                                              jax.random.normal(next(keys), (1,)))}  # fmt: skip

    @jax.jit
    def tangent(key):
        rows = jax.jacobian(apply)(init(key), x)
        flat = jnp.concatenate([leaf.reshape(2, -1) for leaf in jax.tree.leaves(rows)], axis=1)
        return flat @ flat.T

    drawn = np.stack([tangent(key) for key in jax.random.split(jax.random.key(0), 12)])
    wanted = kernels.convolutional(np.asarray(x), np.asarray(x), depth=2, window=3, pooling=pooling,
                                   activation=activations.relu, weight_variance=w, bias_variance=bias).ntk  # fmt: skip
    error = drawn.std(0, ddof=1) / np.sqrt(len(drawn))
    assert (np.abs(drawn.mean(0) - wanted) < 5 * error + 0.02 * np.abs(wanted)).all()
