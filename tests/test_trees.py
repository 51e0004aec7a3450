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
    assert trees.names(leaf) == ("params",)


def test_names_of_a_flax_nnx_state_are_those_of_its_dictionary():
    nnx = pytest.importorskip("flax.nnx")
    state = nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Param)
    assert sorted(trees.names(state)) == ["bias", "kernel"] == sorted(trees.names(nnx.to_pure_dict(state)))


def mixed():
    return {
        "mask": jnp.ones(3, bool),
        "key": jax.random.key(0),
        "table": jnp.arange(3),
        "w": jnp.array([1.0, 2.0]),
        "z": jnp.array([1 + 2j]),
        "norm": {"mean": jnp.zeros(2), "scale": jnp.ones(2)},
    }


def test_what_moves_are_real_numbers_and_pairs_of_them():
    params = mixed()
    moving, rest = trees.trainable(params)
    assert trees.names(moving) == ("norm/mean", "norm/scale", "w", "z/0", "z/1")
    assert all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(moving))
    again = rest.params(moving)
    assert jax.tree.structure(again) == jax.tree.structure(params)
    for name in ("mask", "table", "w", "z"):
        np.testing.assert_array_equal(again[name], params[name])
        assert again[name].dtype == params[name].dtype
    np.testing.assert_array_equal(jax.random.key_data(again["key"]), jax.random.key_data(params["key"]))


def test_gradients_with_respect_to_what_moves_are_those_of_real_numbers():
    moving, rest = trees.trainable(mixed())

    def loss(moving):
        params = rest.params(moving)
        return jnp.sum(params["w"] ** 2 * params["mask"][:2]) + jnp.sum(jnp.real(params["z"] * (3 + 4j)))

    gradient = rest.direction(jax.grad(loss)(moving))
    np.testing.assert_array_equal(gradient["w"], [2.0, 4.0])
    np.testing.assert_array_equal(gradient["z"], [3 - 4j])  # d/d re + i d/d im
    assert gradient["mask"].dtype == bool
    assert not gradient["mask"].any() and not gradient["table"].any()
    assert gradient["key"].dtype == jax.dtypes.float0
    np.testing.assert_array_equal(rest.moving(gradient)["z"][1], [-4.0])


def test_frozen_names_leaves_subtrees_and_globs():
    params = mixed()
    for frozen, left in (("norm", 3), ("*/mean", 4), (["norm/mean", "w"], 3), ((), 5)):
        moving, rest = trees.trainable(params, frozen=frozen)
        assert len(jax.tree.leaves(moving)) == left
        np.testing.assert_array_equal(rest.params(moving)["norm"]["scale"], params["norm"]["scale"])
    with pytest.raises(ValueError, match="frozen must hold paths of leaves, .*norm/mean.*; got 'batch_stats'"):
        trees.trainable(params, frozen="batch_stats")
    with pytest.raises(TypeError, match="frozen must hold paths as strings; got 3"):
        trees.trainable(params, frozen=[3])


def test_params_without_anything_to_move_are_refused():
    with pytest.raises(ValueError, match="params must hold at least one floating-point array that is not frozen; got"):
        trees.trainable({"table": jnp.arange(3)})
    with pytest.raises(TypeError, match=r"params\['f'\] must be an array; got <"):
        trees.trainable({"f": jnp.tanh, "w": jnp.ones(2)})


def test_the_rest_goes_through_jit_without_compiling_again():
    calls = []

    @jax.jit
    def total(moving, rest):
        calls.append(1)
        return jnp.sum(rest.params(moving)["w"])

    for seed in range(2):
        params = {**mixed(), "key": jax.random.key(seed)}
        total(*trees.trainable(params))
    assert len(calls) == 1
