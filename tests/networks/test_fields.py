"""Convolution and its transpose against jax's own, the blocks against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from numdl.networks import fields

pytestmark = pytest.mark.float32


def draw(key, *shape, dtype=jnp.float32):
    return jax.random.normal(key, shape, dtype)


@pytest.mark.parametrize("window", [(3, 3), (1, 1), (5, 3), (1, 7)])
def test_convolution_is_that_of_lax(key, window):
    y, kernel = draw(key, 2, 6, 7, 3), draw(jax.random.key(1), *window, 3, 4)
    expected = lax.conv_general_dilated(y, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    np.testing.assert_allclose(fields.convolve(y, kernel), expected, atol=1e-4)


@pytest.mark.parametrize("shape", [(5, 4), (3, 3, 5, 4), (3, 5, 5, 4)])
def test_transpose_is_the_adjoint(key, shape):
    keys = jax.random.split(key, 3)
    space = (6, 5) if len(shape) == 4 else ()
    kernel, y, z = draw(keys[0], *shape), draw(keys[1], 2, *space, 5), draw(keys[2], 2, *space, 4)
    left = np.vdot(fields.apply(kernel, y), z)
    right = np.vdot(y, fields.apply(fields.transpose(kernel), z))
    assert abs(left - right) < 1e-4 * np.linalg.norm(z) * np.linalg.norm(y) * np.linalg.norm(kernel)


def test_gradients_of_the_convolution_in_a_scan_are_those_of_lax(key):
    y, kernels = draw(key, 2, 5, 6, 3), 0.3 * draw(jax.random.key(1), 4, 3, 3, 3, 3)

    def native(y, k):
        return lax.conv_general_dilated(y, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def loss(convolution, y, kernels):
        return jnp.sum(lax.scan(lambda y, k: (y + jnp.tanh(convolution(y, k)), None), y, kernels)[0] ** 2)

    gradient = jax.jit(jax.grad(loss, argnums=(1, 2)), static_argnums=0)
    ours = gradient(fields.convolve, y, kernels)
    expected = gradient(native, y, kernels)
    for one, other in zip(ours, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3)


def theta_of(key, second=False):
    keys = jax.random.split(key, 3)
    theta = {"kernel": draw(keys[0], 4, 4), "bias": draw(keys[1], 4)}
    return theta | ({"second": draw(keys[2], 4, 4)} if second else {})


def wide(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


FORMULAS = {
    "one_layer": lambda t, y: np.tanh(y @ t["kernel"] + t["bias"]),
    "two_layer": lambda t, y: np.tanh(y @ t["kernel"] + t["bias"]) @ t["second"],
    "symmetric": lambda t, y: -np.tanh(y @ t["kernel"] + t["bias"]) @ t["kernel"].T,
    "antisymmetric": lambda t, y: np.tanh(y @ (t["kernel"] - t["kernel"].T - t["damping"] * np.eye(4)) + t["bias"]),
}


@pytest.mark.parametrize("block", fields.BLOCKS)
def test_blocks_are_their_formulas(key, block):
    theta, y = theta_of(key, block == "two_layer"), draw(jax.random.key(5), 3, 4)
    if block == "antisymmetric":
        theta["damping"] = jnp.asarray(0.7, jnp.float32)
    got = fields.single(block, jnp.tanh)(0.0, y, theta)
    np.testing.assert_allclose(got, FORMULAS[block](wide(theta), wide(y)), atol=1e-5)


def test_pairs_are_their_formulas(key):
    theta, y = theta_of(key), draw(jax.random.key(5), 3, 4)
    K, b, z = (np.asarray(a, np.float64) for a in (theta["kernel"], theta["bias"], y))
    f, g = fields.hamiltonian("one_layer", jnp.tanh)
    np.testing.assert_allclose(f(0.0, y, theta), np.tanh(z @ K + b), atol=1e-5)
    np.testing.assert_allclose(g(0.0, y, theta), -np.tanh(z @ K.T + b), atol=1e-5)
    both = {"first": theta, "second": theta_of(jax.random.key(9))}
    f, g = fields.hamiltonian("symmetric", jnp.tanh)
    L, c = (np.asarray(both["second"][name], np.float64) for name in ("kernel", "bias"))
    np.testing.assert_allclose(f(0.0, y, both), np.tanh(z @ K + b) @ K.T, atol=1e-5)
    np.testing.assert_allclose(g(0.0, y, both), -np.tanh(z @ L + c) @ L.T, atol=1e-5)
    f, g = fields.coupling("symmetric", jnp.tanh)
    np.testing.assert_allclose(f(0.0, y, both), -np.tanh(z @ K + b) @ K.T, atol=1e-5)
    np.testing.assert_allclose(g(0.0, y, both), -np.tanh(z @ L + c) @ L.T, atol=1e-5)


@pytest.mark.parametrize("shape", [(4, 4), (3, 3, 4, 4)])
def test_signs_of_the_jacobians(key, shape):
    """Symmetric: no positive eigenvalue; antisymmetric without damping: purely imaginary linear part."""
    space = (4, 3) if len(shape) == 4 else ()
    theta = {"kernel": draw(key, *shape), "bias": draw(jax.random.key(2), 4), "damping": jnp.zeros((), jnp.float32)}
    y = draw(jax.random.key(3), 1, *space, 4)
    size = y.size
    jacobian = jax.jit(jax.jacfwd(lambda y: fields.single("symmetric", jnp.tanh)(0.0, y, theta)))(y).reshape(size, size)
    scale = np.abs(jacobian).max() * size * jnp.finfo(jnp.float32).eps
    np.testing.assert_allclose(jacobian, jacobian.T, atol=scale)
    assert np.linalg.eigvalsh(np.asarray(jacobian, np.float64)).max() < scale
    linear = jax.jit(jax.jacfwd(lambda y: fields.single("antisymmetric", lambda u: u)(0.0, y, theta)))(y).reshape(
        size, size
    )
    np.testing.assert_allclose(linear, -linear.T, atol=scale)
    assert np.abs(linear).max() > 0.1


def test_one_object_for_each_field():
    assert fields.single("one_layer", jnp.tanh) is fields.single("one_layer", jnp.tanh)
    assert fields.single("one_layer", jnp.tanh) is not fields.single("one_layer", jnp.sin)
