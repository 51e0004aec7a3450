"""Names, flags, instances, paths."""

import os
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from numdl.checks._refusals import BadType, BadValue, shown


def one_of(name: str, value: Any, allowed: Iterable) -> Any:
    """One of the allowed values (strings, usually).

    Parameters
    ----------
    name : str                  what the caller calls the argument
    value : any                 what came
    allowed : sequence          the allowed values
    Raises
    ------
    ValueError, TypeError       anything else came: BadValue, BadType
    """
    allowed = tuple(allowed)
    # An array is compared entry by entry, and True is equal to 1: neither is meant.
    other = hasattr(value, "dtype") and not isinstance(value, str | np.number)
    other = other or (isinstance(value, bool) and not any(isinstance(one, bool) for one in allowed))
    if other or value not in allowed:
        raise BadValue(f"{name} must be one of {', '.join(map(str, allowed))}; got {shown(value)}")
    return value


def instance(name: str, value: Any, kind: type | tuple[type, ...], *, hint: str = "") -> Any:
    """An instance of `kind`; `hint` says how to get one.

    Parameters
    ----------
    name : str                  what the caller calls the argument
    value : any                 what came
    kind : class                the class, or a tuple of them
    hint : str                  how to get one
    Raises
    ------
    ValueError, TypeError       anything else came: BadValue, BadType
    """
    if not isinstance(value, kind):
        raise BadType(f"{name} must be {_article(kind)}{hint and ', ' + hint}; got {shown(value)}")
    return value


def flag(name: str, value: Any) -> bool:
    """A bool, NumPy's too.

    Parameters
    ----------
    name : str                  what the caller calls the argument
    value : any                 what came
    Raises
    ------
    ValueError, TypeError       anything else came: BadValue, BadType
    """
    if not isinstance(value, bool | np.bool_):
        raise BadType(f"{name} must be True or False; got {shown(value)}")
    return bool(value)


def path(name: str, value: Any) -> Any:
    """A path as a text or a `pathlib.Path`, not empty: the empty one would be the current folder in silence.

    Parameters
    ----------
    name : str                  what the caller calls the argument
    value : any                 what came
    Raises
    ------
    ValueError, TypeError       anything else came: BadValue, BadType
    """
    if not isinstance(value, str | os.PathLike):
        raise BadType(f"{name} must be a path; got {shown(value)}")
    if not os.fspath(value) or "\0" in os.fsdecode(value):
        raise BadValue(f"{name} must be a path that is not empty and holds no zero byte; got {shown(value)}")
    return pathlib.Path(os.fsdecode(value))


def _article(kind):
    names = [k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,))]
    return ("an " if names[0][0] in "AEIOU" else "a ") + " or ".join(names)
