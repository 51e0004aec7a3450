"""Functions as programs that are compiled once, whoever calls them and under a gradient as well.

`lax.scan`, `while_loop` and `map` compile anew outside of `jit` whenever their body is a new closure, which it is at
every call. So what holds a loop is itself one program, known again by the functions among its arguments: the same
function compiles nothing, a new one does. As with `jax.jit`, what a function closes over is read when it is traced.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.tree_util import Partial


def compiled(function: Callable, static: tuple[str, ...] = ()) -> Callable:
    """The function as one program, compiled once for its functions, shapes and static keywords.

    What jit cannot take goes to the function as it is, whose own door refuses it; so does a function without a hash,
    which cannot be known again.

    Parameters
    ----------
    function : function         of pytrees, of a module: a program belongs to its identity
    static : tuple of str       keywords that are not data
    Returns
    -------
    function                    computing the same
    """
    program = jax.jit(function, static_argnames=static)

    @functools.wraps(function)
    def call(*arguments, **options):
        leaves, structure = jax.tree.flatten(arguments)
        return (program if _hashable(structure) and all(map(_plain, leaves)) else function)(*arguments, **options)

    return call


def as_tree(tree: Any) -> Any:
    """The same tree with a `Partial` for every plain function in it: an argument of a program, its arrays data.

    Parameters
    ----------
    tree : function, or pytree that holds functions     an optimizer of optax, a record
    Returns
    -------
    pytree                      that can be used as it was
    """
    return jax.tree.map(lambda leaf: Partial(leaf) if callable(leaf) else leaf, tree)


def _hashable(structure):
    try:
        hash(structure)
    except TypeError:
        return False
    return True


def _plain(leaf):
    """Whether jit takes it: a live array of numbers, a number."""
    if isinstance(leaf, jax.Array):
        return isinstance(leaf, jax.core.Tracer) or not leaf.is_deleted()
    if type(leaf) in (float, int, bool, complex):
        return True
    masked = isinstance(leaf, np.ma.MaskedArray)
    return (
        isinstance(leaf, np.ndarray | np.generic) and not masked and leaf.dtype.isnative and leaf.dtype.kind in _KINDS
    )


_KINDS = "biufcV"  # V: bfloat16 and what else ml_dtypes adds
