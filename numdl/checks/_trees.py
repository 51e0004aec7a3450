"""Pytrees of arrays: parameters, batches, things shaped like them."""

import jax
import numpy as np

from numdl.checks._arrays import native
from numdl.checks._refusals import BadType, BadValue, shown


def leaf(name, value):
    """A leaf of a pytree of parameters or data: an array (numbers, bools, keys) or a Python number, native."""
    if isinstance(value, bool | int | float | complex):
        return np.asarray(value, jax.dtypes.canonicalize_dtype(np.asarray(value).dtype))
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        hint = ": part functions from arrays first, as eqx.partition does" if callable(value) else ""
        raise BadType(f"{name} must be an array; got {shown(value)}{hint}")
    known = jax.dtypes.issubdtype(value.dtype, np.number) or value.dtype == bool or value.dtype == jax.dtypes.float0
    if not known and not jax.dtypes.issubdtype(value.dtype, jax.dtypes.extended):
        raise BadType(f"{name} must be an array of numbers; got dtype {value.dtype}, shape {tuple(value.shape)}")
    return native(name, value)


def leaves(name, tree, *, examples=False, empty=False):
    """A pytree of native arrays, at least one unless `empty`; `examples`: of one length >= 1 along their first axes."""
    pairs, structure = jax.tree_util.tree_flatten_with_path(tree)
    if not pairs and not empty:
        raise BadValue(f"{name} must hold at least one array; got {shown(tree)}")
    found = [leaf(f"{name}{jax.tree_util.keystr(path)}", value) for path, value in pairs]
    if examples:
        lengths = sorted({tuple(value.shape[:1]) for value in found})
        if len(lengths) != 1 or lengths[0] in ((), (0,)):
            shapes = ", ".join(str(tuple(value.shape)) for value in found[:4])
            shapes = f"shapes {shapes}" if hasattr(pairs[0][1], "shape") else shown(tree)
            raise BadValue(f"{name} must hold arrays of one length >= 1 along axis 0, the examples; got {shapes}")
    return jax.tree.unflatten(structure, found)


def length(name, tree, *, of="examples", least=1):
    """The length, at least `least`, that all leaves of a pytree have along axis 0."""
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


def floats(name, tree, *, empty=False):
    """A pytree of floating-point or complex arrays, all native; `empty`: or of none."""
    if empty and not jax.tree.leaves(tree):
        return tree
    tree = leaves(name, tree)
    for path, value in jax.tree_util.tree_leaves_with_path(tree):
        if not jax.dtypes.issubdtype(value.dtype, np.inexact):
            label = f"{name}{jax.tree_util.keystr(path)}"
            raise BadType(
                f"{label} must be floating-point numbers; got dtype {value.dtype}, shape {tuple(value.shape)}: cast it"
            )
    return tree


def together(name, tree, other, like, *, of="examples"):
    """The length along axis 0 of two pytrees of examples, which must be the same; `other` names the second."""
    first, second = length(name, tree, of=of), length(other, like, of=of)
    if first != second:
        shapes = [tuple(np.shape(jax.tree.leaves(one)[0])) for one in (tree, like)]
        raise BadValue(f"{name} and {other} must have as many {of}; got shapes {shapes[0]} and {shapes[1]}")
    return first


def like(name, tree, expected, *, of="params"):
    """A pytree with the structure and the leaves' shapes of `expected`, which the caller knows as `of`."""
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
    return jax.tree_util.tree_map_with_path(lambda path, x: leaf(f"{name}{jax.tree_util.keystr(path)}", x), tree)


def _shapes(tree):
    return {jax.tree_util.keystr(path): np.shape(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
