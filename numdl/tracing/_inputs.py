"""Which axis of which leaf of x runs over the examples: said by the caller, or plain from the shapes, never guessed."""

import jax
import numpy as np
from jaxtyping import PyTree

from numdl import checks, trees


def example_axes(x: PyTree, examples: PyTree = None) -> tuple[list[int | None], int]:
    """([axis of the examples of each leaf of x, None if it has none], how many examples there are).

    Parameters
    ----------
    x : array, or pytree of them
    examples : None, names or pytree    where the examples are. None: all leaves have them first; refused if their first
               lengths differ or one is a scalar. A str, or several: the paths of the leaves (or of subtrees) that have
               them first; all others have none. A pytree: a prefix of x, the axis of each part, None for what has no
               examples, as vmap's in_axes
    Returns
    -------
    axes, count                 one axis or None for each leaf, in the order of jax.tree.leaves; the number of examples
    Raises
    ------
    ValueError                  no leaf has examples, lengths differ, no such path, or no such axis
    TypeError                   an axis that is not an integer
    """
    axes, count = find_axes(x, examples)
    leaves = _leaves(x)
    if not leaves or count == 0 or (len(leaves) == 1 and count is None):
        got = ", ".join(str(tuple(np.shape(leaf)) or leaf) for _, leaf in leaves)
        raise checks.BadValue(f"x must be an array [N, ...] with at least one example; got {got or f'no array: {x!r}'}")
    if count is None:
        shapes = ", ".join(f"{_show(path)} {tuple(np.shape(leaf))}" for path, leaf in leaves)
        raise checks.BadValue(
            "x must hold arrays [N, ...] of one N, or examples must say which of its leaves have the examples: paths, "
            f"as in examples={_show(leaves[0][0])!r}, or a pytree of axes and None; got {shapes}"
        )
    return axes, count


def find_axes(x, examples=None):
    """What `example_axes` returns, with None for all where nothing is said and first lengths differ."""
    leaves = _leaves(x)
    if examples is None:
        firsts = {tuple(np.shape(leaf))[:1] for _, leaf in leaves}
        if len(firsts) != 1 or () in firsts:
            return [None] * len(leaves), None
        return [0] * len(leaves), firsts.pop()[0]
    axes = _named(leaves, examples) if _are_names(examples) else _prefix(x, examples)
    axes = [_checked(path, leaf, axis) for (path, leaf), axis in zip(leaves, axes, strict=True)]
    sizes = {np.shape(leaf)[axis] for (_, leaf), axis in zip(leaves, axes) if axis is not None}
    if len(sizes) != 1:
        raise checks.BadValue(
            f"examples must choose axes of one length in x; got lengths {sorted(sizes)} from {examples!r}"
        )
    return axes, sizes.pop()


def _leaves(x):
    return jax.tree_util.tree_flatten_with_path(x)[0]


def _show(path):
    return trees.name_of(path) if path else "x"


def _are_names(examples):
    several = isinstance(examples, tuple | list | set | frozenset)
    return isinstance(examples, str) or (several and bool(examples) and all(isinstance(each, str) for each in examples))


def _named(leaves, examples):
    names = (examples,) if isinstance(examples, str) else tuple(examples)
    paths = [_show(path) for path, _ in leaves]
    for name in names:
        if not any(_within(path, name) for path in paths):
            raise checks.BadValue(f"examples must be paths in x, {', '.join(paths)}; got {name!r}")
    return [0 if any(_within(path, name) for name in names) else None for path in paths]


def _within(path, name):
    return path == name or path.startswith(name + "/")


def _prefix(x, examples):
    try:
        spread = jax.tree.broadcast(examples, x, is_leaf=lambda axis: axis is None)
    except ValueError as error:
        raise checks.BadValue(f"examples must be a prefix of x's pytree; got {examples!r}: {error}") from error
    return jax.tree.leaves(spread, is_leaf=lambda axis: axis is None)


def _checked(path, leaf, axis):
    if axis is None:
        return None
    number = not isinstance(axis, bool) and hasattr(axis, "__index__")
    if not number or getattr(axis, "ndim", 0) or getattr(axis, "dtype", np.dtype(int)).kind not in "iu":
        raise checks.BadType(f"examples must be axes (integers) or None; got {checks.shown(axis)} for {_show(path)}")
    axis, ndim = axis.__index__(), np.ndim(leaf)
    if not -ndim <= axis < ndim:
        raise checks.BadValue(f"examples must be an axis of {_show(path)} {tuple(np.shape(leaf))}; got {axis}")
    return axis % ndim
