"""Checks at the door: each names the argument, the value that came and what is allowed, and returns the value.

They look at Python and array values only, never at tracers: inside `jit` a value is unknown and passes, a shape or a
dtype is known and is checked. Use what a check returns: integers are ints there, arrays in native order.
"""

from numdl.checks._arrays import array, dtype, floating, is_key, kept, key, known_dtype, native, shape
from numdl.checks._functions import accepts, as_pytree, function, one_real_number, returning
from numdl.checks._numbers import BYTES, concrete, finite, number, positive, sequence, variance, whole, wholes
from numdl.checks._objects import flag, instance, one_of, path
from numdl.checks._passed import forms, once
from numdl.checks._refusals import BadType, BadValue, Refused, shown
from numdl.checks._trees import floats, leaf, leaves, length, like, together

__all__ = [
    "BYTES",
    "BadType",
    "BadValue",
    "Refused",
    "accepts",
    "array",
    "as_pytree",
    "concrete",
    "dtype",
    "finite",
    "flag",
    "floating",
    "floats",
    "forms",
    "function",
    "instance",
    "is_key",
    "kept",
    "key",
    "known_dtype",
    "leaf",
    "leaves",
    "length",
    "like",
    "native",
    "number",
    "once",
    "one_of",
    "one_real_number",
    "path",
    "positive",
    "returning",
    "sequence",
    "shape",
    "shown",
    "together",
    "variance",
    "whole",
    "wholes",
]
