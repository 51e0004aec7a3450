"""Float64 where it matters, whatever jax's global flag says; float32 at least wherever many numbers are summed."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from numdl import checks


def wide(dtype: Any) -> np.dtype:
    """The dtype to accumulate in: float32 for half precision, else the dtype as jax has it now.

    Parameters
    ----------
    dtype : dtype               of any kind of number; integers are accumulated in floats
    Raises
    ------
    TypeError                   no dtype
    """
    dtype = jax.dtypes.canonicalize_dtype(checks.known_dtype("dtype", dtype))  # NumPy's float64 without the flag
    narrow = jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32
    return jnp.dtype(jnp.float32) if narrow else jnp.promote_types(dtype, jnp.float32)


def widen(tree: PyTree) -> PyTree:
    """The leaves as arrays in the dtypes to accumulate in.

    Parameters
    ----------
    tree : pytree               arrays or numbers
    Raises
    ------
    ValueError, TypeError       a leaf that is not an array
    """
    tree = checks.leaves("tree", tree, empty=True)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf).astype(wide(jnp.result_type(leaf))), tree)


def narrow(tree: PyTree, like: PyTree) -> PyTree:
    """The leaves in the dtypes of those of another tree with the same structure.

    Parameters
    ----------
    tree, like : pytree         arrays of one structure
    Raises
    ------
    ValueError, TypeError       another structure, a leaf that is not an array, complex numbers where `like` is real, or
                                any but whole numbers where it is whole
    """
    tree, like = checks.leaves("tree", tree, empty=True), checks.leaves("like", like, empty=True, shapes=True)
    if jax.tree.structure(tree) != jax.tree.structure(like):
        raise checks.BadValue(
            f"tree must have the structure of like, {jax.tree.structure(like)}; got {jax.tree.structure(tree)}"
        )
    return jax.tree.map(_narrowed, tree, like)


def _narrowed(leaf, other):
    dtype = jnp.result_type(other)
    if jnp.iscomplexobj(leaf) and not jnp.issubdtype(dtype, jnp.complexfloating):
        raise checks.BadType(f"tree must hold real numbers where like does, {dtype}; got dtype {leaf.dtype}")
    if jnp.issubdtype(leaf.dtype, jnp.inexact) and not jnp.issubdtype(dtype, jnp.inexact):
        raise checks.BadType(f"tree must hold whole numbers where like does, {dtype}; got dtype {leaf.dtype}")
    return leaf.astype(dtype)


def float64(function: Callable) -> Callable:
    """The function run in float64 on the CPU, at once even under a trace; floats come out as NumPy float64.

    The global flag is not touched. A float64 jax array that left the context would be demoted by the next operation,
    so arrays leave as NumPy; numbers leave as `np.float64`, which formats like a float.

    Parameters
    ----------
    function : function         of any arguments
    Raises
    ------
    TypeError                   not a function
    """
    checks.function("function", function)

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        with jax.core.eval_context(), jax.enable_x64(True), jax.default_device(_cpu()):
            return jax.tree.map(lambda leaf: np.asarray(leaf)[()], function(*args, **kwargs))

    return wrapped


def _cpu():
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # a process told to see its accelerator only
        return None
