"""Trees as vectors, against NumPy on the concatenated leaves."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numdl import trees

pytestmark = pytest.mark.float32


def flat(tree):
    return np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(tree)])


def pair(key, dtype):
    a, b = (trees.random_like(k, {"w": jnp.zeros((3, 4), dtype), "b": (jnp.zeros(5, dtype),)}) for k in key)
    return a, b


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.complex64, jnp.bfloat16])
def test_inner_and_norm_are_those_of_the_concatenated_leaves(key, dtype):
    a, b = pair(jax.random.split(key), dtype)
    wide = np.complex128 if dtype == jnp.complex64 else np.float64
    u, v = flat(a).astype(wide), flat(b).astype(wide)
    tolerance = 30 * jnp.finfo(jnp.float32).eps  # half precision is summed in float32
    np.testing.assert_allclose(trees.inner(a, b), np.vdot(u, v), rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(trees.norm(a), np.linalg.norm(u), rtol=tolerance)
    assert not jnp.iscomplexobj(trees.norm(a))


def test_inner_conjugates_the_first_argument():
    assert trees.inner({"a": jnp.array([1j], jnp.complex64)}, {"a": jnp.array([1.0], jnp.complex64)}) == -1j


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_norm_survives_where_squares_leave_float32(scale):
    tree = [jnp.array([3 * scale], jnp.float32), jnp.array([4 * scale], jnp.float32)]
    np.testing.assert_allclose(trees.norm(tree), 5 * scale, rtol=4 * jnp.finfo(jnp.float32).eps)


def test_norm_of_zero_has_gradient_zero_and_elsewhere_the_unit_vector():
    np.testing.assert_array_equal(jax.grad(trees.norm)(jnp.zeros(3)), np.zeros(3))
    gradient = jax.grad(trees.norm)({"a": jnp.array([3.0]), "b": jnp.array([-4.0])})
    np.testing.assert_allclose(flat(gradient), [0.6, -0.8], rtol=1e-6)
    hessian = jax.hessian(trees.norm)(jnp.array([3.0, 4.0]))
    np.testing.assert_allclose(hessian, np.array([[16.0, -12.0], [-12.0, 9.0]]) / 125, rtol=1e-5)


def test_norm_of_bad_numbers_and_of_nothing():
    assert np.isinf(trees.norm([jnp.array([1.0, np.inf])]))
    assert np.isnan(trees.norm([jnp.array([1.0, np.nan])]))
    assert trees.norm({}) == 0
    assert trees.inner({}, {}) == 0


def test_axpy_keeps_the_dtype_of_the_last():
    result = trees.axpy(2.0, {"a": jnp.ones(2, jnp.float32)}, {"a": jnp.full(2, 3.0, jnp.bfloat16)})
    assert result["a"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(result["a"].astype(jnp.float32), [5.0, 5.0])


def test_ravel_goes_and_comes_back():
    tree = {"a": jnp.arange(6.0).reshape(2, 3), "b": [jnp.array(7.0)]}
    vector, back = trees.ravel(tree)
    np.testing.assert_array_equal(vector, np.arange(8.0)[[0, 1, 2, 3, 4, 5, 7]])
    assert jax.tree.all(jax.tree.map(lambda u, v: bool(jnp.array_equal(u, v)), back(vector), tree))


def test_random_like_has_independent_unit_entries(key):
    tree = {"a": jnp.zeros(20000, jnp.float32), "b": jnp.zeros(20000, jnp.float32)}
    z = trees.random_like(key, tree)
    np.testing.assert_array_less(abs(np.mean(flat(z) ** 2) - 1) * np.sqrt(40000 / 2), 6)
    np.testing.assert_array_less(abs(np.mean(z["a"] * z["b"])) * np.sqrt(20000), 6)
    signs = trees.random_like(key, tree, law="rademacher")
    assert signs["a"].dtype == jnp.float32
    assert set(np.unique(flat(signs))) == {-1.0, 1.0}


def test_random_like_names_what_is_wrong(key):
    with pytest.raises(ValueError, match=r"law .*rademacher.*'cauchy'"):
        trees.random_like(key, jnp.zeros(2), law="cauchy")
    with pytest.raises(TypeError, match=r"key .*got 3"):
        trees.random_like(3, jnp.zeros(2))


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    kernel: jax.Array
    bias: jax.Array


def test_names_are_the_same_for_every_kind_of_pytree():
    leaf = jnp.zeros(1)
    assert trees.names({"layer": {"kernel": leaf, "bias": leaf}}) == ("layer/bias", "layer/kernel")
    assert trees.names({"layer": Layer(leaf, leaf)}) == ("layer/kernel", "layer/bias")
    assert trees.names({"hidden": [(leaf,), {"value": leaf}]}) == ("hidden/0/0", "hidden/1/value")
    assert trees.names(leaf) == ("",)


def test_names_of_a_flax_nnx_state_are_those_of_its_dictionary():
    nnx = pytest.importorskip("flax.nnx")
    state = nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Param)
    assert sorted(trees.names(state)) == ["bias", "kernel"] == sorted(trees.names(nnx.to_pure_dict(state)))
