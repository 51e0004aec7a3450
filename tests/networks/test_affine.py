"""Affine maps and their random weights against NumPy, and what a builder's door refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numdl.networks import _affine, initializers

pytestmark = pytest.mark.float32


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4)])
def test_the_map_is_that_of_numpy(shape):
    weights = {"kernel": jnp.arange(8.0).reshape(4, 2), "bias": jnp.array([1.0, -2.0])}
    y = jnp.arange(float(np.prod(shape))).reshape(shape)
    np.testing.assert_allclose(
        _affine.apply(weights, y), np.asarray(y) @ np.asarray(weights["kernel"]) + np.array([1.0, -2.0])
    )
    doubled = _affine.apply(weights, y, product=lambda y, kernel: 2 * (y @ kernel))
    np.testing.assert_allclose(doubled, 2 * np.asarray(y) @ np.asarray(weights["kernel"]) + np.array([1.0, -2.0]))


def test_biases_are_independent_and_have_their_variances(key):
    one, other = _affine.biases(key, [(20, 200), (4000,)], [0.5, 8.0], jnp.float32)
    assert one.shape == (20, 200)
    for found, variance in ((one, 0.5), (other, 8.0)):
        assert abs(np.mean(np.square(found, dtype=np.float64)) / variance - 1) < 6 * np.sqrt(2 / 4000)
    assert abs(np.mean(np.ravel(one) * np.asarray(other, np.float64))) < 6 * 2 / np.sqrt(4000)
    half = _affine.biases(key, [(20, 200), (4000,)], [0.5, 8.0], jnp.bfloat16)[0]
    np.testing.assert_array_equal(half, one.astype(jnp.bfloat16))


@pytest.mark.parametrize("layers", [1, 3])
def test_kernels_of_a_stack_are_orthogonal_one_by_one(key, layers):
    kernels = _affine.kernels(initializers.orthogonal(1.0), key, layers, (5, 5), jnp.float32)
    assert kernels.shape == (layers, 5, 5)
    for kernel in np.asarray(kernels, np.float64):
        np.testing.assert_allclose(kernel.T @ kernel, np.eye(5), atol=1e-5)
    assert len(np.unique(np.asarray(kernels)[:, 0, 0])) == layers


def test_one_law_from_two_ways_to_ask():
    assert _affine.law(2.0, None).entry_variance((4, 3)) == 0.5
    assert _affine.law(2.0, None, entries="rademacher").excess_kurtosis((4, 3)) == -2.0
    given = initializers.orthogonal(1.0)
    assert _affine.law(None, given) is given
    assert _affine.law_or("x", None, given) is given
    assert _affine.law_or("x", 6.0, given).entry_variance((3, 3)) == 2.0


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: _affine.law(None, None), ValueError, "exactly one .*got neither"),
        (lambda: _affine.law(1.0, initializers.he_normal), ValueError, "exactly one .*weight_variance=1.0"),
        (lambda: _affine.law(None, initializers.he_normal, entries="normal"), ValueError, "law must be None.*'normal'"),
        (lambda: _affine.law(None, jnp.ones), TypeError, "initializer must be an Initializer"),
        (lambda: _affine.law_or("gate_weight_variance", -1.0, None), ValueError, "gate_weight_variance .*-1"),
        (lambda: _affine.asked_dtype(jnp.int32), TypeError, "dtype .*int32"),
        (lambda: _affine.dtype_at_init(jax.random.key(0), jnp.ones(3), ndim=2), ValueError, r"x .*2 axes.*\(3,\)"),
        (lambda: _affine.dtype_at_init(0, jnp.ones(3)), TypeError, "key .*got 0"),
        (
            lambda: _affine.check_features(jnp.ones((2, 3)), 4, "widths"),
            ValueError,
            r"\(N, 4\), by widths; got \(2, 3\)",
        ),
        (
            lambda: _affine.check_features(jnp.ones((2, 4)), 4, "widths", places="height, width, "),
            ValueError,
            r"\(N, height, width, 4\), by widths; got \(2, 4\)",
        ),
    ],
)
def test_what_is_refused_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
