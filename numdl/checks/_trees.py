"""Pytrees of arrays: parameters, batches, things shaped like them."""

from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from numdl.checks._arrays import kept, native
from numdl.checks._refusals import BadType, BadValue, of_kind, shown


def leaf(name: str, value: Any, *, host: bool = False, shapes: bool = False) -> Any:
    """A leaf of a pytree of parameters or data: an array (numbers, bools, keys) or a Python number, native, `kept`.

    Parameters
    ----------
    name : str                  what the caller calls the argument
    value : any                 what came
    host : bool                 for work in NumPy: float64 stays, whatever jax keeps
    shapes : bool               whether jax.ShapeDtypeStruct, shapes without numbers, will do
    Raises
    ------
    ValueError, TypeError       anything else came: BadValue, BadType
    """
    if isinstance(value, bool | int | float | complex):
        return np.asarray(value, jax.dtypes.canonicalize_dtype(np.asarray(value).dtype))
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        hint = ": part functions from arrays first, as eqx.partition does" if callable(value) else ""
        raise BadType(f"{name} must be an array; got {shown(value)}{hint}")
    known = of_kind(value.dtype, (np.number,)) or value.dtype == bool or value.dtype == jax.dtypes.float0
    if not known and not jax.dtypes.issubdtype(value.dtype, jax.dtypes.extended):
        raise BadType(f"{name} must be an array of numbers; got dtype {value.dtype}, shape {tuple(value.shape)}")
    value = native(name, value, shapes=shapes)
    return value if host else kept(value)


def leaves(
    name: str,
    tree: PyTree,
    *,
    examples: bool = False,
    empty: bool = False,
    host: bool = False,
    shapes: bool = False,
) -> Any:
    """A pytree of native arrays, at least one unless `empty`; `examples`: of one length >= 1 along their first axes.

    Parameters
    ----------
    name : str                  what the caller calls the argument
    tree : pytree               what came
    examples : bool             whether all leaves have one length >= 1 along axis 0
    empty : bool                whether nothing at all is allowed
    host : bool                 for work in NumPy: float64 stays, whatever jax keeps
    shapes : bool               whether jax.ShapeDtypeStruct, shapes without numbers, will do
    Raises
    ------
    ValueError, TypeError       anything else came: BadValue, BadType
    """
    pairs, structure = jax.tree_util.tree_flatten_with_path(tree)
    if not pairs and not empty:
        raise BadValue(f"{name} must hold at least one array; got {shown(tree)}")
    found = [leaf(f"{name}{jax.tree_util.keystr(path)}", value, host=host, shapes=shapes) for path, value in pairs]
    if examples:
        lengths = sorted({tuple(value.shape[:1]) for value in found})
        if len(lengths) != 1 or lengths[0] in ((), (0,)):
            got = ", ".join(str(tuple(value.shape)) for value in found[:4])
            got = f"shapes {got}" if hasattr(pairs[0][1], "shape") else shown(tree)
            raise BadValue(f"{name} must hold arrays of one length >= 1 along axis 0, the examples; got {got}")
    return jax.tree.unflatten(structure, found)


def length(name: str, tree: PyTree, *, of: str = "examples", least: int = 1) -> int:
    """The length, at least `least`, that all leaves of a pytree have along axis 0.

    Parameters
    ----------
    name : str                  what the caller calls the argument
    tree : pytree               what came
    of : str                    what the caller knows it as
    least : int                 the least length
    Raises
    ------
    ValueError, TypeError       anything else came: BadValue, BadType
    """
    lengths = {
        jax.tree_util.keystr(path): np.shape(leaf)[:1] for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    if len(set(lengths.values())) != 1 or () in lengths.values():
        got = ", ".join(f"{name}{path} {list(one)}" for path, one in list(lengths.items())[:8])
        got = got if len(lengths) > 1 else shown(tree)
        raise BadValue(f"{name} must have leaves of one length along axis 0, the {of}; got {got}")
    (found,) = next(iter(lengths.values()))
    if found < least:
        shape = tuple(np.shape(jax.tree.leaves(tree)[0]))
        raise BadValue(f"{name} must have at least {least} {of} along axis 0; got shape {shape}")
    return found


def floats(name: str, tree: PyTree, *, empty: bool = False, shapes: bool = False) -> Any:
    """A pytree of floating-point or complex arrays, all native; `empty`: or of none.

    Parameters
    ----------
    name : str                  what the caller calls the argument
    tree : pytree               what came
    empty : bool                whether nothing at all is allowed
    shapes : bool               whether jax.ShapeDtypeStruct, shapes without numbers, will do
    Raises
    ------
    ValueError, TypeError       anything else came: BadValue, BadType
    """
    if empty and not jax.tree.leaves(tree):
        return tree
    tree = leaves(name, tree, shapes=shapes)
    for path, value in jax.tree_util.tree_leaves_with_path(tree):
        if not jax.dtypes.issubdtype(value.dtype, np.inexact):
            label = f"{name}{jax.tree_util.keystr(path)}"
            raise BadType(
                f"{label} must be floating-point numbers; got dtype {value.dtype}, shape {tuple(value.shape)}: cast it"
            )
    return tree


def together(name: str, tree: PyTree, other: str, like: PyTree, *, of: str = "examples") -> int:
    """The length along axis 0 of two pytrees of examples, which must be the same; `other` names the second.

    Parameters
    ----------
    name : str                  what the caller calls the argument
    tree : pytree               what came
    other : str                 what the caller calls the second tree
    like : pytree               the second tree
    of : str                    what the caller knows it as
    Raises
    ------
    ValueError, TypeError       anything else came: BadValue, BadType
    """
    first, second = length(name, tree, of=of), length(other, like, of=of)
    if first != second:
        shapes = [tuple(np.shape(jax.tree.leaves(one)[0])) for one in (tree, like)]
        raise BadValue(f"{name} and {other} must have as many {of}; got shapes {shapes[0]} and {shapes[1]}")
    return first


def like(
    name: str, tree: PyTree, expected: PyTree, *, of: str = "params", floating: bool = False, shapes: bool = False
) -> Any:
    """A pytree with the structure and the leaves' shapes of `expected`, which the caller knows as `of`.

    Parameters
    ----------
    name : str                  what the caller calls the argument
    tree : pytree               what came
    expected : pytree           arrays, or shapes and dtypes
    of : str                    what the caller knows it as
    floating : bool             whether leaves must be real floating-point numbers where those of `expected` are
    shapes : bool               whether jax.ShapeDtypeStruct, shapes without numbers, will do
    Raises
    ------
    ValueError, TypeError       anything else came: BadValue, BadType
    """
    got, wanted = _shapes(tree), _shapes(expected)
    if got != wanted or jax.tree.structure(tree) != jax.tree.structure(expected):
        place = next((path for path in {**wanted, **got} if got.get(path) != wanted.get(path)), None)
        if place is None:
            raise BadValue(
                f"{name} must have the structure of {of}, {jax.tree.structure(expected)}; "
                f"got {jax.tree.structure(tree)}"
            )
        whole = shown(tree) if not got or "" in got else "no leaf"
        found = f"(), {whole}" if place == "" and got.get(place) == () else got.get(place, whole)
        raise BadValue(
            f"{name} must have the structure and shapes of {of}; got {found} at "
            f"{name}{place} where {of}{place} is {wanted.get(place, 'no leaf')}"
        )

    def one(path, value, like):
        value = leaf(f"{name}{jax.tree_util.keystr(path)}", value, shapes=shapes)
        if floating and _real(like) and not _real(value):
            where = f"{name}{jax.tree_util.keystr(path)}"
            raise BadType(f"{where} must hold real floating-point numbers, as {of} does; got dtype {value.dtype}")
        return value

    return jax.tree_util.tree_map_with_path(one, tree, expected)


def _real(value):
    return jax.dtypes.issubdtype(value.dtype, np.floating)


def _shapes(tree):
    return {jax.tree_util.keystr(path): np.shape(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
