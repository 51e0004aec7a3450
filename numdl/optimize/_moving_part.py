"""Functions of parameters as functions of the part that moves, see `trees.trainable`: for minimizers of all kinds."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from numdl import checks, precision, trees


def of_moving(function, rest):
    """`function` of the part of the parameters that moves, as a pytree; all else is in `rest`."""
    return Partial(_of_moving, function, rest)


def of_wide(function, params, dtype):
    """(function, params) in one dtype, as a pytree; the function itself sees every leaf in its own."""
    dtypes = tuple(leaf.dtype for leaf in jax.tree.leaves(params))
    if set(dtypes) == {dtype}:
        return function, params
    return Partial(_Narrowing(dtypes), function), jax.tree.map(lambda leaf: leaf.astype(dtype), params)


def all_move(rest):
    """Whether every leaf of the parameters is a real array that moves: then they are their own moving part."""
    return set(rest.kinds) == {"real"}


def unmoved(params):
    """The paths of the leaves that are not real floating-point arrays."""
    pairs = jax.tree_util.tree_leaves_with_path(params)
    return [trees.name_of(path) for path, leaf in pairs if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating)]


def only_real(name, tree):
    """A pytree of real floating-point arrays, native; another leaf is refused by name."""
    moving, rest = trees.trainable(tree, name=name)
    if not all_move(rest):
        raise checks.BadType(f"{name} must hold real floating-point arrays only; got {', '.join(unmoved(tree))}")
    return moving


def preconditioned(preconditioner, rest):
    """A preconditioner of the part that moves, made of one of all parameters."""
    return Partial(_preconditioned, preconditioner, rest)


def scalar_dtype(params):
    """The dtype of norms and values: that of the parameters, float32 at least."""
    return precision.wide(jnp.result_type(*jax.tree.leaves(params)))


@dataclasses.dataclass(frozen=True)
class _Narrowing:
    """The function of wide leaves that another one of these dtypes is."""

    dtypes: tuple

    def __call__(self, function, params):
        leaves, structure = jax.tree.flatten(params)
        narrow = [leaf.astype(dtype) for leaf, dtype in zip(leaves, self.dtypes, strict=True)]
        return function(jax.tree.unflatten(structure, narrow))


def _of_moving(function, rest, moving):
    return function(rest.params(moving))


def _preconditioned(preconditioner, rest, moving, v):
    return rest.moving(preconditioner(rest.params(moving), rest.direction(v)))
