"""Vectors whose coordinates are the leaves of a pytree: inner products, norms, random directions, names.

Which leaves are parameters is one rule, `trainable`: real floating leaves move and are differentiated, complex ones as
two reals, and all else (masks, tables, random keys, what `frozen` names) stays as it is.
"""

import dataclasses
import fnmatch
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, ArrayLike, Key, PyTree

from numdl import _random, checks, precision
from numdl._compiled import compiled


def inner(a: PyTree, b: PyTree) -> Array:
    """The inner product over all leaves; half precision is summed in float32.

        inner = sum conj(a_i) b_i

    Parameters
    ----------
    a, b : pytree               arrays of one structure and shapes
    Raises
    ------
    ValueError, TypeError       trees that are not alike, a leaf that is not an array
    Source: elementary.
    """
    a = checks.leaves("a", a, empty=True)
    b = checks.like("b", b, a, of="a")
    return _inner(a, b)


def norm(a: PyTree) -> Array:
    """The Euclidean norm over all leaves: real, with gradient 0 at 0, no overflow or underflow of the squares.

        norm = scale * sqrt(sum |a_i / scale|**2),   scale = max |a_i|

    Parameters
    ----------
    a : pytree                  arrays; half precision is summed in float32
    Raises
    ------
    ValueError, TypeError       a leaf that is not an array
    Source: elementary.
    """
    leaves = [leaf for leaf in jax.tree.leaves(checks.leaves("a", a, empty=True)) if jnp.size(leaf)]
    return _norm(leaves) if leaves else jnp.zeros(())


@compiled
def _inner(a, b):
    return _total(jax.tree.map(lambda u, v: jnp.vdot(_wide(u), _wide(v)), a, b))


@compiled
def _norm(leaves):
    leaves = [_wide(leaf) for leaf in leaves]
    # The value does not depend on the scale, so no derivative has to go through it.
    scale = lax.stop_gradient(jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in leaves])))
    scale = jnp.where((scale > 0) & jnp.isfinite(scale), scale, jnp.ones_like(scale))
    squares = _total([_squares(leaf / scale.astype(_real(leaf))) for leaf in leaves])
    zero = squares == 0
    return jnp.where(zero, jnp.zeros_like(squares), scale * jnp.sqrt(jnp.where(zero, jnp.ones_like(squares), squares)))


def axpy(alpha: ArrayLike, x: PyTree, y: PyTree) -> PyTree:
    """alpha * x + y leaf by leaf, in the dtypes of y.

    Parameters
    ----------
    alpha : scalar              a factor
    x, y : pytree               arrays of one structure and shapes
    Raises
    ------
    ValueError, TypeError       trees that are not alike, a leaf that is not an array, complex numbers onto real ones or
                                any but whole numbers onto whole ones
    """
    alpha, x = checks.leaf("alpha", alpha), checks.leaves("x", x, empty=True)
    y = checks.like("y", y, x, of="x")
    for u, v in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True):
        for name, part in (("alpha", alpha), ("x", u)):
            if jnp.iscomplexobj(part) and not jnp.iscomplexobj(v):
                raise checks.BadType(f"{name} must be real where y is; got {checks.shown(part)}")
            if jnp.issubdtype(part.dtype, jnp.inexact) and not jnp.issubdtype(v.dtype, jnp.inexact):
                raise checks.BadType(f"y must hold floating-point numbers where {name} does; got dtype {v.dtype}")
    return jax.tree.map(lambda u, v: (alpha * u + v).astype(jnp.result_type(v)), x, y)


def ravel(tree: PyTree) -> tuple[Array, Callable[[Array], PyTree]]:
    """All leaves as one vector, and the function that takes such a vector back to the tree.

    Parameters
    ----------
    tree : pytree               arrays
    Raises
    ------
    ValueError, TypeError       a leaf that is not an array
    """
    return ravel_pytree(checks.leaves("tree", tree, empty=True))


def random_like(key: Key[Array, ""], tree: PyTree, *, law: str = "normal") -> PyTree:
    """A tree of independent entries, E |z_i|**2 = 1, shaped like `tree`.

    Parameters
    ----------
    key : key                   of the entries
    tree : pytree               floating-point arrays: their shapes and dtypes
    law : str                   "normal" or "rademacher"
    Raises
    ------
    ValueError, TypeError       no typed key, another law, a leaf that is not an array of floating-point numbers
    """
    checks.key("key", key)
    checks.one_of("law", law, _LAWS)
    leaves, structure = jax.tree.flatten(checks.floats("tree", tree, empty=True, shapes=True))
    keys = jax.random.split(key, max(len(leaves), 1))
    return jax.tree.unflatten(structure, [_LAWS[law](k, leaf) for k, leaf in zip(keys, leaves, strict=False)])


@dataclasses.dataclass(frozen=True)
class Rest:
    """What `trainable` left behind: enough to make params of a moved part again. A pytree."""

    kept: tuple  # the leaves that stay, in the order of params
    structure: Any = dataclasses.field(metadata={"static": True})  # of params
    kinds: tuple = dataclasses.field(metadata={"static": True})  # of each leaf: "real", "complex" or "kept"

    def params(self, moving):
        """The parameters with `moving` in their place and everything else as it was."""
        return self._filled(moving, self.kept)

    def direction(self, moving):
        """A tree like params that is `moving` where something moves and 0 elsewhere; keys have float0 zeros."""
        return self._filled(moving, [_still(leaf) for leaf in self.kept])

    def moving(self, tree):
        """The part of a tree like params, a direction for example, that moves."""
        leaves = self.structure.flatten_up_to(tree)
        return _part_that_moves(leaves, self.kinds, self.structure)

    def _filled(self, moving, kept):
        moved, kept, leaves = iter(jax.tree.leaves(moving)), iter(kept), []
        for kind in self.kinds:
            if kind == "complex":
                real, imaginary = next(moved), next(moved)
                leaves.append(jax.lax.complex(real, imaginary))
            else:
                leaves.append(next(moved) if kind == "real" else next(kept))
        return jax.tree.unflatten(self.structure, leaves)


jax.tree_util.register_dataclass(Rest)


def trainable(
    params: PyTree, *, frozen: str | Sequence[str] | set[str] = (), name: str = "params", shapes: bool = False
) -> tuple[PyTree, Rest]:
    """(moving, rest): the leaves of params that move and are differentiated, and what makes params of them again.

        rest.params(moving) == params,    rest.direction(v) = v where something moves and 0 elsewhere

    `moving` has the structure of params with None for what stays, and a pair (real, imaginary) for a complex leaf.

    Parameters
    ----------
    params : pytree             real floating leaves move, complex ones as two reals; integers, bools and keys stay
    frozen : str or strings     paths, of a leaf or of all that lies under it, or globs ("*/mean"), that stay as well:
                                running statistics, a pretrained part
    name : str                  what to call params in errors
    shapes : bool               whether jax.ShapeDtypeStruct, shapes without numbers, will do
    Raises
    ------
    ValueError                  nothing moves, or a name in `frozen` fits no leaf (the leaves are listed)
    TypeError                   a leaf that is not an array
    Source: the definition.
    """
    pairs, structure = jax.tree_util.tree_flatten_with_path(params)
    paths = tuple(name_of(path) for path, _ in pairs)
    still = matching("frozen", frozen, paths)
    leaves = [checks.leaf(f"{name}{jax.tree_util.keystr(path)}", leaf, shapes=shapes) for path, leaf in pairs]
    kinds = tuple("kept" if path in still else _kind(leaf) for path, leaf in zip(paths, leaves))
    if not set(kinds) - {"kept"}:
        raise checks.BadValue(
            f"{name} must hold at least one floating-point array that is not frozen; got "
            f"{_described(paths, leaves) if paths else repr(params)}"
        )
    kept = tuple(leaf for leaf, kind in zip(leaves, kinds) if kind == "kept")
    return _part_that_moves(leaves, kinds, structure), Rest(kept, structure, kinds)


def matching(argument: str, patterns: str | Sequence[str] | set[str], paths: Sequence[str]) -> frozenset[str]:
    """The paths that one of the patterns names: as a whole, as what they lie under, or as a glob; each must fit one.

    Parameters
    ----------
    argument : str              what to call the patterns in errors
    patterns : str or strings   paths or globs
    paths : sequence of str     of the leaves, as `names` gives them
    Raises
    ------
    ValueError, TypeError       a pattern that fits no path, or is not a string
    """
    if not isinstance(patterns, str | tuple | list | set | frozenset):
        raise checks.BadType(f"{argument} must be a path or a list of paths; got {patterns!r}")
    patterns = (patterns,) if isinstance(patterns, str) else tuple(patterns)
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise checks.BadType(f"{argument} must hold paths as strings; got {pattern!r}")
        if not any(_fits(path, pattern) for path in paths):
            raise checks.BadValue(f"{argument} must hold paths of leaves, {_listed(paths)}; got {pattern!r}")
    return frozenset(path for path in paths if any(_fits(path, pattern) for pattern in patterns))


def names(tree: PyTree) -> tuple[str, ...]:
    """The paths of the leaves as strings such as "hidden/0/kernel", in the order of the leaves.

    Dictionaries, sequences, dataclasses, modules and flax.nnx states give the same names for the same nesting.

    Parameters
    ----------
    tree : pytree               of anything
    """
    return tuple(name_of(path) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0])


def name_of(path: tuple) -> str:
    """One path of `jax.tree_util` as a string; a tree that is one array is called "params".

    A wrapper around the array itself (the '.value' of an nnx Variable) has no name.

    Parameters
    ----------
    path : tuple                of keys, as `jax.tree_util.tree_flatten_with_path` gives it
    """
    wrapped = len(path) > 1 and isinstance(path[-1], jax.tree_util.GetAttrKey) and path[-1].name == "value"
    return jax.tree_util.keystr(path[:-1] if wrapped else path, simple=True, separator="/") or "params"


def _fits(path, pattern):
    return path == pattern or path.startswith(f"{pattern}/") or fnmatch.fnmatchcase(path, pattern)


def _listed(paths):
    return ", ".join(paths) or "no leaf"


def _described(paths, leaves):
    """The leaves with their dtypes and shapes, the first few."""
    shown = [f"{path} {leaf.dtype}{tuple(leaf.shape)}" for path, leaf in list(zip(paths, leaves))[:8]]
    return ", ".join(shown) + (", ..." if len(leaves) > 8 else "")


def _kind(leaf):
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        return "complex"
    return "real" if jnp.issubdtype(leaf.dtype, jnp.floating) else "kept"


def _part_that_moves(leaves, kinds, structure):
    parts = {
        "real": lambda leaf: leaf,
        "complex": lambda leaf: (jnp.real(leaf), jnp.imag(leaf)),
        "kept": lambda _: None,
    }
    return jax.tree.unflatten(structure, [parts[kind](leaf) for leaf, kind in zip(leaves, kinds)])


def _still(leaf):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return np.zeros(leaf.shape, jax.dtypes.float0)
    return jnp.zeros_like(leaf)


def _total(tree):
    leaves = jax.tree.leaves(tree)
    return sum(leaves[1:], leaves[0]) if leaves else jnp.zeros(())


def _wide(leaf):
    return jnp.asarray(leaf).astype(precision.wide(jnp.result_type(leaf)))


def _real(leaf):
    return jnp.finfo(leaf.dtype).dtype


def _squares(leaf):
    return jnp.sum(jnp.real(leaf) ** 2 + jnp.imag(leaf) ** 2) if jnp.iscomplexobj(leaf) else jnp.sum(leaf**2)


def _normal(key, leaf):
    dtype = jnp.result_type(leaf)
    return _random.normal(key, jnp.shape(leaf), precision.wide(dtype)).astype(dtype)


def _rademacher(key, leaf):
    return _random.rademacher(key, jnp.shape(leaf), jnp.int32).astype(jnp.result_type(leaf))


_LAWS = {"normal": _normal, "rademacher": _rademacher}
