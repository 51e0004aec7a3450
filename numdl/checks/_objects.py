"""Names, flags, instances, paths."""

import os
import pathlib

import numpy as np

from numdl.checks._refusals import BadType, BadValue, shown


def one_of(name, value, allowed):
    """One of the allowed values (strings, usually)."""
    if value not in tuple(allowed):
        raise BadValue(f"{name} must be one of {', '.join(map(str, allowed))}; got {shown(value)}")
    return value


def instance(name, value, kind, *, hint=""):
    """An instance of `kind`; `hint` says how to get one."""
    if not isinstance(value, kind):
        raise BadType(f"{name} must be {_article(kind)}{hint and ', ' + hint}; got {shown(value)}")
    return value


def flag(name, value):
    """A bool, NumPy's too."""
    if not isinstance(value, bool | np.bool_):
        raise BadType(f"{name} must be True or False; got {shown(value)}")
    return bool(value)


def path(name, value):
    """A path as a text or a `pathlib.Path`, not empty: the empty one would be the current folder in silence."""
    if not isinstance(value, str | os.PathLike):
        raise BadType(f"{name} must be a path; got {shown(value)}")
    if not os.fspath(value) or "\0" in os.fsdecode(value):
        raise BadValue(f"{name} must be a path that is not empty and holds no zero byte; got {shown(value)}")
    return pathlib.Path(os.fsdecode(value))


def _article(kind):
    names = [k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,))]
    return ("an " if names[0][0] in "AEIOU" else "a ") + " or ".join(names)
