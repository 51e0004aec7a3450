"""Checks that a function has passed, remembered while it lives: what shapes decide is not asked again at every call."""

import types
import weakref
from collections.abc import Callable
from typing import Any

import jax

_MOST = 64  # keys of one function
_PASSED = {}  # id of a function or of the object of a method: (weak reference, keys)


def once(function: Any, key: tuple, check: Callable) -> None:
    """Call check(), unless it has passed for this very function and an equal key; a failure is not remembered.

    What the check looks at besides must be told by the key: `forms` of the arrays, options. As under `jit`, a function
    is taken to compute the same at every call.

    Parameters
    ----------
    function : function         that the check is about; a Partial, which holds arrays, is checked every time
    key : tuple                 hashable
    check : function            of nothing; raises where the check fails
    Raises
    ------
    Exception                   what `check` raises
    """
    method = isinstance(function, types.MethodType)
    passed = _keys(function.__self__ if method else function)
    key = (function.__func__ if method else None, key)
    try:
        if key in passed:
            return
    except TypeError:  # static parts of a pytree that have no hash
        return check()
    check()
    if len(passed) >= _MOST:
        passed.clear()
    passed.add(key)


def forms(*trees: Any) -> tuple:
    """Structures, shapes and dtypes of pytrees, and the settings that a trace depends on, as a key for `once`.

    Parameters
    ----------
    trees : pytrees             arrays, numbers
    Returns
    -------
    tuple
    """
    leaves, structure = jax.tree.flatten(trees)
    settings = jax.config.jax_enable_x64, jax.config.jax_default_matmul_precision
    return structure, tuple(map(jax.typeof, leaves)), settings


def _keys(owner):
    """The keys of an object, by identity; none that last if it is a Partial or takes no weak reference."""
    if isinstance(owner, jax.tree_util.Partial):
        return set()
    number = id(owner)
    found = _PASSED.get(number)
    if found is None:
        try:
            found = weakref.ref(owner, lambda _: _PASSED.pop(number, None)), set()
        except TypeError:
            return set()
        _PASSED[number] = found
    return found[1]
