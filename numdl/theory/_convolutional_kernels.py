"""PREDICTED: the recursion of `kernels.convolutional`, a covariance of pixels for one pair of pictures at a time."""

import functools
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from numdl import checks
from numdl._compiled import jit
from numdl.activations import Activation
from numdl.theory._factors import correlation

PADDINGS = ("same", "circular")
POOLINGS = ("none", "mean")


class Shape(NamedTuple):
    """What is fixed when the recursion is compiled."""

    depth: int
    window: tuple
    padding: str
    pooling: str
    activation: Activation


def check(x1, x2, depth, window, padding, pooling, activation):
    """The `Shape`; raises what `kernels.convolutional` says."""
    pictures = [checks.finite(n, checks.array(n, checks.concrete(n, x), ndim=4)) for n, x in (("x1", x1), ("x2", x2))]
    if pictures[0].shape[1:] != pictures[1].shape[1:]:
        allowed = f"[N2, {', '.join(map(str, pictures[0].shape[1:]))}], the pictures of x1"
        raise checks.BadValue(f"x2 must be {allowed}; got shape {pictures[1].shape}")
    sides = checks.wholes("window", window) if isinstance(window, tuple) else (checks.whole("window", window),) * 2
    if len(sides) != 2 or not all(side % 2 for side in sides):
        raise checks.BadValue(f"window must be an odd integer, or two: height and width; got {window!r}")
    checks.instance("activation", activation, Activation, hint="such as activations.relu")
    options = checks.one_of("padding", padding, PADDINGS), checks.one_of("pooling", pooling, POOLINGS)
    return Shape(checks.whole("depth", depth), sides, *options, activation)


@functools.partial(jit, static_argnames="shape")
def run(x1, x2, weight_variance, bias_variance, *, shape):
    """(K, Theta), each [N1, N2]."""
    physics = weight_variance, bias_variance
    return lax.map(lambda a: lax.map(lambda b: _pair(a, b, *physics, shape), x2), x1)


def _pair(a, b, weight_variance, bias_variance, shape):
    """(K, Theta) of the outputs at two pictures [H, W, C]."""
    affine = lambda k: weight_variance * k + bias_variance  # noqa: E731
    own = functools.partial(_window_mean, groups=((0,), (1,)), shape=shape)
    groups = ((0, 2), (1, 3)) if shape.pooling == "mean" else ((0,), (1,))
    both = functools.partial(_window_mean, groups=groups, shape=shape)
    square = shape.activation.mean_square

    def layer(state, _):
        qa, qb, k, theta = state
        values, slopes = _moments(qa, qb, k, shape)
        k = affine(both(values))
        return (affine(own(square(qa))), affine(own(square(qb))), k, k + weight_variance * both(slopes * theta)), None

    qa, qb = (affine(own(jnp.mean(x**2, axis=-1))) for x in (a, b))
    k = affine(both(_pixels(a, b, shape)))
    (qa, qb, k, theta), _ = lax.scan(layer, (qa, qb, k, k), None, length=shape.depth - 1)
    values, slopes = _moments(qa, qb, k, shape)
    outputs = affine(jnp.mean(values))
    return outputs, outputs + weight_variance * jnp.mean(slopes * theta)


def _pixels(a, b, shape):
    """Mean over channels of the product of two pixels: of all pairs [H, W, H, W], or of pixels at one place [H, W]."""
    rule = "hwc,uvc->hwuv" if shape.pooling == "mean" else "hwc,hwc->hw"
    return jnp.einsum(rule, a, b) / a.shape[-1]


def _moments(qa, qb, k, shape):
    """E f(u) f(v) and E f'(u) f'(v) of every pair of pixels of covariance k."""
    if shape.pooling == "mean":
        qa, qb = qa[:, :, None, None], qb[None, None]
    qa, qb, k = jnp.broadcast_arrays(qa, qb, k)
    c = correlation(qa, qb, k)
    return shape.activation.mean_product(qa, qb, c), shape.activation.slope_mean_product(qa, qb, c)


def _window_mean(k, *, groups, shape):
    """Mean of k over the places under a window; the axes of a group move together; beyond the border is zero, or k."""
    mode = {"same": "constant", "circular": "wrap"}[shape.padding]
    for group, side in zip(groups, shape.window):
        half = side // 2
        padded = jnp.pad(k, [(half, half) if axis in group else (0, 0) for axis in range(k.ndim)], mode=mode)
        k = sum(_moved(padded, group, start, k.shape) for start in range(side)) / side
    return k


def _moved(padded, group, start, sizes):
    for axis in group:
        padded = lax.slice_in_dim(padded, start, start + sizes[axis], axis=axis)
    return padded
