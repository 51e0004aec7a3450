"""Functions: how they are called and what they return."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from numdl.checks._passed import once
from numdl.checks._refusals import BadType, BadValue, shown


def function(name: str, value: Any) -> Any:
    """Something that can be called.

    Parameters
    ----------
    name : str                  what the caller calls the argument
    value : any                 what came
    Raises
    ------
    ValueError, TypeError       anything else came: BadValue, BadType
    """
    if not callable(value) or (isinstance(value, type) and value.__module__ == "builtins"):  # float, int: conversions
        raise BadType(f"{name} must be a function; got {shown(value)}")
    return value


def accepts(name: str, value: Any, count: int, signature: str) -> Any:
    """A function that can be called with this many arguments; `signature` shows them: "loss(params, batch)".

    Parameters
    ----------
    name : str                  what the caller calls the argument
    value : any                 what came
    count : int                 arguments that it is called with
    signature : str             how the call looks, for the message
    Raises
    ------
    ValueError, TypeError       anything else came: BadValue, BadType
    """
    function(name, value)
    once(value, ("accepts", count), lambda: _taken(name, value, count, signature))
    return value


def _taken(name, value, count, signature):
    try:
        taken = inspect.signature(value)
    except (TypeError, ValueError):  # written in C, or says nothing of itself
        return
    try:
        taken.bind(*[None] * count)
    except TypeError as error:
        raise BadType(f"{name} must be a function, called as {signature}; got {_called(value)}{taken}") from error


def as_pytree(function: Any) -> Any:
    """The function as a pytree: a Partial's arrays stay arguments of compiled code, anything else is taken as it is.

    Parameters
    ----------
    function : function         what came
    Raises
    ------
    ValueError, TypeError       anything else came: BadValue, BadType
    """
    return function if isinstance(function, jax.tree_util.Partial) else jax.tree_util.Partial(function)


def returning(name: str, value: Any, count: int, signature: str, *, scalar: bool = False, static: bool = False) -> Any:
    """The function as a Partial that refuses to return anything else than arrays, or than one real number.

    What it returns is looked at when it is called, so under a trace and before anything is compiled; equal functions
    are equal, so that `jit` knows them again. `static`: as no Partial, whose equality is identity outside of a pytree.

    Parameters
    ----------
    name : str                  what the caller calls the argument
    value : any                 what came
    count : int                 arguments that it is called with
    signature : str             how the call looks, for the message
    scalar : bool               whether it must return one real number
    static : bool               whether what it holds is static under jit
    Raises
    ------
    ValueError, TypeError       anything else came: BadValue, BadType
    """
    accepts(name, value, count, signature)
    if static:
        return value if isinstance(value, _Returning) else _Returning(name, signature, value, scalar)
    value = as_pytree(value)
    if isinstance(value.func, _Returning):
        return value
    return jax.tree_util.Partial(_Returning(name, signature, value.func, scalar), *value.args, **value.keywords)


def one_real_number(name: str, signature: str, value: Any) -> Any:
    """What a loss returned: a real floating-point scalar.

    Parameters
    ----------
    name : str                  what the caller calls the argument
    signature : str             how the call looks, for the message
    value : any                 what came back
    Raises
    ------
    ValueError, TypeError       anything else came: BadValue, BadType
    """
    number = isinstance(value, bool | int | float | complex) or getattr(value, "shape", None) == ()
    if not number or not jax.dtypes.issubdtype(getattr(value, "dtype", type(value)), np.floating):
        raise BadValue(f"{name} must return one real number, as {signature} -> scalar; got {_returned(value)}")
    return value


@dataclasses.dataclass(frozen=True)
class _Returning:
    """A function whose results are checked."""

    name: str
    signature: str
    function: Callable
    scalar: bool

    def __call__(self, *arguments, **keywords):
        result = self.function(*arguments, **keywords)
        for found in jax.tree.leaves(result, is_leaf=lambda part: part is None):
            if not isinstance(found, jax.Array | np.ndarray | np.generic | bool | int | float | complex):
                wanted = "one real number" if self.scalar else "arrays"
                raise BadType(f"{self.name} must return {wanted}, as {self.signature}; got {shown(found)}")
        return one_real_number(self.name, self.signature, result) if self.scalar else result


def _called(function):
    return getattr(function, "__name__", type(function).__name__)


def _returned(value):
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"an array of shape {tuple(value.shape)}, dtype {value.dtype}"
    return shown(value)
