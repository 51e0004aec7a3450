"""Vectors whose coordinates are the leaves of a pytree: inner products, norms, random directions, names."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree

from numdl import checks


def inner(a, b):
    """The inner product sum conj(a_i) b_i over all leaves; half precision is summed in float32."""
    return _total(jax.tree.map(lambda u, v: jnp.vdot(_wide(u), _wide(v)), a, b))


def norm(a):
    """The Euclidean norm over all leaves: real, with gradient 0 at 0, no overflow or underflow of the squares.

    norm = scale * sqrt(sum |a_i / scale|**2),   scale = max |a_i|
    """
    leaves = [_wide(leaf) for leaf in jax.tree.leaves(a) if jnp.size(leaf)]
    if not leaves:
        return jnp.zeros(())
    # The value does not depend on the scale, so no derivative has to go through it.
    scale = lax.stop_gradient(jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in leaves])))
    scale = jnp.where((scale > 0) & jnp.isfinite(scale), scale, jnp.ones_like(scale))
    squares = _total([_squares(leaf / scale.astype(_real(leaf))) for leaf in leaves])
    zero = squares == 0
    return jnp.where(zero, jnp.zeros_like(squares), scale * jnp.sqrt(jnp.where(zero, jnp.ones_like(squares), squares)))


def axpy(alpha, x, y):
    """alpha * x + y leaf by leaf, in the dtypes of y."""
    return jax.tree.map(lambda u, v: (alpha * u + v).astype(jnp.result_type(v)), x, y)


def ravel(tree):
    """All leaves as one vector, and the function that takes such a vector back to the tree."""
    return ravel_pytree(tree)


def random_like(key, tree, *, law="normal"):
    """A tree of independent entries, E |z_i|**2 = 1, shaped like `tree`; law is "normal" or "rademacher"."""
    checks.key("key", key)
    checks.one_of("law", law, _LAWS)
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, max(len(leaves), 1))
    return jax.tree.unflatten(structure, [_LAWS[law](k, leaf) for k, leaf in zip(keys, leaves, strict=False)])


def names(tree):
    """The paths of the leaves as strings such as "hidden/0/kernel", in the order of the leaves.

    Dictionaries, sequences, dataclasses, modules and flax.nnx states give the same names for the same nesting.
    """
    return tuple(name_of(path) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0])


def name_of(path):
    """One path of `jax.tree_util` as a string; a wrapper around the array itself (an nnx Variable) has no name."""
    parts = [str(_part(entry)) for entry in path]
    wrapped = len(path) > 1 and isinstance(path[-1], jax.tree_util.GetAttrKey) and path[-1].name == "value"
    return "/".join(parts[:-1] if wrapped else parts)


def _part(entry):
    for attribute in ("key", "idx", "name"):
        if hasattr(entry, attribute):
            return getattr(entry, attribute)
    return entry


def _total(tree):
    leaves = jax.tree.leaves(tree)
    return sum(leaves[1:], leaves[0]) if leaves else jnp.zeros(())


def _wide(leaf):
    return jnp.asarray(leaf).astype(jnp.promote_types(jnp.result_type(leaf), jnp.float32))


def _real(leaf):
    return jnp.finfo(leaf.dtype).dtype


def _squares(leaf):
    return jnp.sum(jnp.real(leaf) ** 2 + jnp.imag(leaf) ** 2) if jnp.iscomplexobj(leaf) else jnp.sum(leaf**2)


def _normal(key, leaf):
    dtype = jnp.result_type(leaf)
    return jax.random.normal(key, jnp.shape(leaf), jnp.promote_types(dtype, jnp.float32)).astype(dtype)


def _rademacher(key, leaf):
    return jax.random.rademacher(key, jnp.shape(leaf), jnp.int32).astype(jnp.result_type(leaf))


_LAWS = {"normal": _normal, "rademacher": _rademacher}
