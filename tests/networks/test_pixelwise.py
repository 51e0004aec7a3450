"""Fully convolutional networks against SciPy's correlation, and that pixels neither move nor see too far."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import signal

from numdl.networks import initializers, pixelwise

pytestmark = pytest.mark.float32

SETTINGS = {"width": 3, "depth": 3, "outputs": 2, "activation": jnp.tanh, "weight_variance": 2.0, "bias_variance": 0.2}


def drawn(shape=(2, 7, 5, 2), **more):
    net = pixelwise.network(**{**SETTINGS, **more})
    x = jax.random.normal(jax.random.key(1), shape, jnp.result_type(float))
    return net, net.init(jax.random.key(0), x), x


def correlated(picture, kernel, bias):
    """[H, W, C] by one channel after the other, zeros around."""
    found = np.zeros((*picture.shape[:2], kernel.shape[-1])) + bias
    for c in range(kernel.shape[2]):
        for k in range(kernel.shape[3]):
            found[..., k] += signal.correlate2d(picture[..., c], kernel[:, :, c, k], mode="same")
    return found


def test_every_pixel_is_answered_as_by_correlations():
    net, params, x = drawn()
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    stack = [(layer["kernel"][i], layer["bias"][i]) for layer in p["layers"] for i in range(len(layer["bias"]))]
    assert [kernel.shape for kernel, _ in stack] == [(3, 3, 2, 3), (3, 3, 3, 3), (3, 3, 3, 3)]
    for picture, found in zip(np.asarray(x, np.float64), net.apply(params, x), strict=True):
        y = correlated(picture, *stack[0])
        for kernel, bias in stack[1:]:
            y = correlated(np.tanh(y), kernel, bias)
        exact = np.tanh(y) @ p["readout"]["kernel"] + p["readout"]["bias"]
        np.testing.assert_allclose(found, exact, rtol=0, atol=200 * float(jnp.finfo(x.dtype).eps))


@pytest.mark.slow
def test_a_pixel_sees_its_neighbourhood_only_whatever_the_size_of_the_picture():
    net, params, x = drawn((1, 15, 17, 2), depth=2)
    pushed = x.at[0, 7, 8].add(1.0)
    seen = np.argwhere(np.abs(np.asarray(net.apply(params, pushed) - net.apply(params, x))).sum(axis=(0, 3)) > 0)
    assert (seen.min(axis=0).tolist(), seen.max(axis=0).tolist()) == ([5, 6], [9, 10])


def test_one_layer_and_any_law():
    net, params, x = drawn(depth=1, window=1, weight_variance=None, initializer=initializers.orthogonal(1.0))
    assert len(params["layers"]) == 1
    kernel = np.asarray(params["layers"][0]["kernel"])[0, 0, 0]
    np.testing.assert_allclose(kernel @ kernel.T, np.eye(2) * kernel.shape[1] / 2, atol=1e-5)
    assert net.apply(params, x).shape == (2, 7, 5, 2)


def test_bad_arguments_are_named():
    for bad in ({"window": 2}, {"depth": 0}, {"width": 2.5}, {"bias_variance": -1.0}):
        with pytest.raises((ValueError, TypeError), match=next(iter(bad))):
            pixelwise.network(**{**SETTINGS, **bad})
    with pytest.raises(ValueError, match="exactly one of weight_variance and initializer"):
        pixelwise.network(**SETTINGS, initializer=initializers.orthogonal(1.0))
    net, params, x = drawn()
    with pytest.raises(ValueError, match="x must have shape"):
        net.apply(params, x[..., :1])
