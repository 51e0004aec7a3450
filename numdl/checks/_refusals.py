"""What a check raises, and how the value that came is shown."""

from typing import Any

import jax
import numpy as np


class Refused(Exception):  # noqa: N818
    """An argument was refused at the door, before any work: what tells a bad argument from a fault deep inside."""


class BadValue(Refused, ValueError):  # noqa: N818
    """A value that is not allowed."""


class BadType(Refused, TypeError):  # noqa: N818
    """A value of a kind that is not allowed."""


def shown(value: Any) -> str:
    """The value in a few words; an array by its shape and dtype.

    Parameters
    ----------
    value : any                 what came
    """
    if getattr(value, "shape", ()) and hasattr(value, "dtype"):
        return f"an array of shape {tuple(value.shape)}, dtype {value.dtype}"
    if isinstance(value, np.ndarray) and not isinstance(value, np.ma.MaskedArray):
        return f"{shown(value.item())}, an array of shape (), dtype {value.dtype}"
    try:
        text = repr(value)
    except RuntimeError:  # it holds a deleted array
        text = f"a {type(value).__name__} with deleted arrays"
    return text if len(text) <= 60 else f"{text[:57]}... ({type(value).__name__})"


def of_kind(dtype, kinds):
    """Whether numbers of this dtype are of one of the kinds; spans of time, integers to NumPy, are no numbers."""
    return getattr(dtype, "kind", "") != "m" and any(jax.dtypes.issubdtype(dtype, kind) for kind in kinds)


def shaped(value, noun="an array of shape"):
    """What came where a shape was asked for: a number as it is."""
    shape = tuple(np.shape(value))
    told = isinstance(value, int | float | np.ndarray | np.generic)
    return f"{noun} {shape}" if shape or not told else f"{shown(np.asarray(value).item())}, shape ()"
