"""Records: what every function of numdl returns. A frozen dataclass of arrays that is also a pytree.

`jit`, `vmap` and `scan` carry a record like any other pytree; `vmap` over seeds gives the same record with a leading
axis on every field. A field marked `static()` (a name, a tuple of names) is not an array and stays as it is.
"""

import dataclasses
import html
import typing
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from numdl import checks


def static(**kwargs: Any) -> Any:
    """A field that is not an array: part of the pytree's structure, hashable, not traced.

    Parameters
    ----------
    **kwargs : what `dataclasses.field` takes, `default` for example
    """
    return dataclasses.field(metadata={"static": True}, **kwargs)


@typing.dataclass_transform(frozen_default=True, field_specifiers=(static, dataclasses.field))
def record(cls: type) -> type:
    """Make `cls` a frozen dataclass, a registered pytree, and printable as a small table.

    Parameters
    ----------
    cls : class                 with annotated fields; used as a decorator
    Raises
    ------
    TypeError                   not a class
    """
    if not isinstance(cls, type):
        raise checks.BadType(f"cls must be a class with annotated fields; got {cls!r}")
    if "__dataclass_fields__" in vars(cls):
        raise checks.BadType(f"cls must be a plain class, which `record` makes a dataclass; got the dataclass {cls!r}")
    own_repr = "__repr__" in cls.__dict__
    cls = dataclasses.dataclass(frozen=True, repr=False, eq=False)(cls)
    if not own_repr:
        cls.__repr__ = _repr
    if "_repr_html_" not in cls.__dict__:
        cls._repr_html_ = _repr_html
    return jax.tree_util.register_dataclass(cls)


def rows(value: Any) -> list[tuple[str, str]]:
    """The record's fields as (name, text) pairs, safe on tracers: what `repr` and the notebook table show.

    Parameters
    ----------
    value : record              an instance
    Raises
    ------
    TypeError                   not a record
    """
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        raise checks.BadType(f"value must be a record; got {value!r}")
    return [(f.name, describe(getattr(value, f.name))) for f in dataclasses.fields(value) if f.repr]


def abridged(table: Sequence[tuple[str, ...]], ends: int = 12) -> Sequence[tuple[str, ...]]:
    """Rows of text, tuples of one length; of more than twice `ends` the first and the last with a line between.

    Parameters
    ----------
    table : list of tuples      of strings
    ends : int                  rows that are shown at each end
    """
    if len(table) <= 2 * ends:
        return table
    between = (f"... {len(table) - 2 * ends} more", *("...",) * (len(table[0]) - 1))
    return [*table[:ends], between, *table[-ends:]]


def describe(value: Any) -> str:
    """One field as text: a number as itself, a short vector in full, a large array by shape, dtype and range.

    Parameters
    ----------
    value : any                 a field's value, tracers too
    """
    if isinstance(value, jax.core.Tracer):
        return str(value.aval)
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        return repr(value) if not dataclasses.is_dataclass(value) else type(value).__name__
    if jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        return f"key{list(value.shape)}"
    array = np.asarray(value)
    if array.size == 1 and array.ndim == 0:
        return _number(array[()])
    if array.ndim == 1 and array.size <= 6:
        return "[" + ", ".join(_number(entry) for entry in array) + "]"
    shape = "x".join(map(str, array.shape))
    if array.dtype.kind not in "fiub" or array.size == 0:
        return f"{shape} {array.dtype}"
    numbers = array.astype(np.float64)
    finite = numbers[np.isfinite(numbers)]
    span = f" in [{_number(finite.min())}, {_number(finite.max())}]" if finite.size else ""
    lost = array.size - finite.size
    return f"{shape} {array.dtype}{span}" + (f", {lost} not finite" if lost else "")


def _number(value):
    return f"{value:.6g}" if np.issubdtype(np.asarray(value).dtype, np.floating) else str(value)


def _repr(self):
    table = rows(self)
    wide = max((len(name) for name, _ in table), default=0)
    return "\n".join([type(self).__name__, *(f"  {name:<{wide}}  {text}" for name, text in table)])


def _repr_html(self):
    body = "".join(f"<tr><th>{html.escape(n)}</th><td>{html.escape(t)}</td></tr>" for n, t in rows(self))
    return f"<table><caption>{html.escape(type(self).__name__)}</caption>{body}</table>"
