"""Arrays: dtype, axes, byte order; random keys; dtypes themselves."""

from typing import Any

import jax
import numpy as np

from numdl.checks._refusals import BadType, BadValue, of_kind, shaped, shown


def key(name: str, value: Any) -> Any:
    """A typed random key, jax.random.key(seed): one key unless a batch of them is traced.

    Parameters
    ----------
    name : str                  what the caller calls the argument
    value : any                 what came
    Raises
    ------
    ValueError, TypeError       anything else came: BadValue, BadType
    """
    if not is_key(value):
        raise BadType(f"{name} must be a typed key, jax.random.key(seed); got {shown(value)}")
    if value.shape != ():
        raise BadValue(f"{name} must be one key; got an array of keys of shape {value.shape}")
    return native(name, value)


def is_key(value: Any) -> bool:
    """Whether this is a typed random key, or an array of them.

    Parameters
    ----------
    value : any                 what came
    """
    return isinstance(value, jax.Array) and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key)


def native(name: str, value: Any, *, shapes: bool = False) -> Any:
    """The value; an array in the machine's byte order, nothing masked, not deleted: jax reads the bytes as they lie.

    NumPy's long doubles, which jax has not, become doubles.

    Parameters
    ----------
    name : str                  what the caller calls the argument
    value : any                 what came
    shapes : bool               whether a jax.ShapeDtypeStruct, a shape without numbers, will do
    Raises
    ------
    ValueError, TypeError       anything else came: BadValue, BadType
    """
    if isinstance(value, jax.Array) and not isinstance(value, jax.core.Tracer) and value.is_deleted():
        raise BadValue(f"{name} must be an array that still exists; got a deleted one of shape {value.shape}")
    if isinstance(value, jax.ShapeDtypeStruct) and not shapes:
        raise BadType(f"{name} must be an array of numbers; got a shape without numbers, {value}")
    if isinstance(value, np.ma.MaskedArray):
        if np.ma.is_masked(value):
            raise BadValue(
                f"{name} must not be masked; got a masked array of shape {value.shape}: fill or drop what is masked"
            )
        value = value.data
    if isinstance(value, np.ndarray) and type(value) is not np.ndarray:
        value = np.asarray(value)  # a matrix has a product of its own
    if isinstance(value, np.ndarray | np.generic) and not value.dtype.isnative:
        value = value.astype(value.dtype.newbyteorder("="))
    if isinstance(value, np.ndarray | np.generic) and value.dtype in _LONG:
        value = value.astype(_LONG[value.dtype])
    return value


def array(
    name: str,
    value: Any,
    *,
    kind: str = "real",
    ndim: int | None = None,
    least_ndim: int | None = None,
    empty: bool = False,
    shapes: bool = False,
) -> Any:
    """Numbers as an array: a jax array as it is, all else as NumPy's, native and not masked; lists are converted.

    kind is "floating", "inexact" (or complex), "integer", "real" (floating, integer or bool) or "number" (or complex).

    Parameters
    ----------
    name : str                  what the caller calls the argument
    value : any                 what came
    kind : str                  "real", "number", "inexact", ...: what the numbers may be
    ndim : int                  axes asked for; None: any number
    least_ndim : int            the fewest axes; None: any number
    empty : bool                whether nothing at all is allowed
    shapes : bool               whether a jax.ShapeDtypeStruct, a shape without numbers, will do
    Raises
    ------
    ValueError, TypeError       anything else came: BadValue, BadType
    """
    allowed = f"an array of {_KINDS[kind][0]}"
    value = came = native(name, value, shapes=shapes)
    if not isinstance(value, jax.Array | jax.ShapeDtypeStruct):
        try:
            value = np.asarray(value)
        except (TypeError, ValueError) as error:
            raise BadType(f"{name} must be {allowed}; got {shown(came)}") from error
    if not of_kind(value.dtype, _KINDS[kind][1]):
        what = f"dtype {value.dtype}, shape {value.shape}" if value.ndim else shown(came)
        raise BadType(f"{name} must be {allowed}; got {what}")
    if ndim is not None and value.ndim != ndim:
        raise BadValue(f"{name} must have {ndim} axes; got {shaped(came, 'shape')}")
    if least_ndim is not None and value.ndim < least_ndim:
        raise BadValue(f"{name} must have at least {least_ndim} axes; got {shaped(came, 'shape')}")
    if not empty and 0 in value.shape:
        raise BadValue(f"{name} must not be empty; got shape {tuple(value.shape)}")
    return value


def floating(name: str, value: Any, *, ndim: int | None = None, least_ndim: int | None = None) -> Any:
    """A non-empty array of real floating-point numbers with the number of axes asked for.

    Parameters
    ----------
    name : str                  what the caller calls the argument
    value : any                 what came
    ndim : int                  axes asked for; None: any number
    least_ndim : int            the fewest axes; None: any number
    Raises
    ------
    ValueError, TypeError       anything else came: BadValue, BadType
    """
    dtype = getattr(value, "dtype", None)
    if dtype is None or not hasattr(value, "shape"):
        raise BadType(f"{name} must be an array of floating-point numbers; got {shown(value)}")
    if not jax.dtypes.issubdtype(dtype, np.floating):
        hint = ": cast it first" if jax.dtypes.issubdtype(dtype, np.number) else ""
        raise BadType(
            f"{name} must be an array of floating-point numbers; got dtype {dtype}, shape {tuple(value.shape)}{hint}"
        )
    return kept(array(name, value, kind="floating", ndim=ndim, least_ndim=least_ndim))


def kept(value: Any) -> Any:
    """The value; NumPy's floats and complex numbers in the dtype that jax keeps of theirs: 64 bits only with the flag.

    Whoever asks jax for zeros of an argument's dtype would hear a warning that float64 is not to be had.

    Parameters
    ----------
    value : any                 what a check returned
    """
    if not isinstance(value, np.ndarray | np.generic) or not jax.dtypes.issubdtype(value.dtype, np.inexact):
        return value
    with np.errstate(over="ignore"):  # inf, as jax has it
        return value.astype(jax.dtypes.canonicalize_dtype(value.dtype), copy=False)


def dtype(name: str, value: Any) -> np.dtype:
    """A dtype that jax keeps as it is: without x64, "float64" would become float32 in silence.

    Parameters
    ----------
    name : str                  what the caller calls the argument
    value : any                 what came
    Raises
    ------
    ValueError, TypeError       anything else came: BadValue, BadType
    """
    found = known_dtype(name, value)
    if jax.dtypes.canonicalize_dtype(found) != found:
        raise BadValue(
            f"{name} must be a dtype that jax has now; got {found}: jax.config.update('jax_enable_x64', True) allows it"
        )
    return found


def known_dtype(name: str, value: Any) -> np.dtype:
    """A dtype, whether or not jax keeps it as it is.

    Parameters
    ----------
    name : str                  what the caller calls the argument
    value : any                 what came
    Raises
    ------
    ValueError, TypeError       anything else came: BadValue, BadType
    """
    try:
        return np.dtype(value)
    except TypeError as error:
        raise BadType(f"{name} must be a dtype such as 'float32'; got {shown(value)}") from error


def shape(name: str, value: Any, expected: tuple) -> Any:
    """An array whose shape is `expected`; None stands for any length.

    Parameters
    ----------
    name : str                  what the caller calls the argument
    value : any                 what came
    expected : tuple            lengths; None for any length
    Raises
    ------
    ValueError, TypeError       anything else came: BadValue, BadType
    """
    got = tuple(np.shape(value))
    if len(got) != len(expected) or any(e is not None and e != g for e, g in zip(expected, got, strict=True)):
        wanted = "(" + ", ".join("any" if e is None else str(e) for e in expected) + ")"
        raise BadValue(f"{name} must have shape {wanted}; got {got or shaped(value)}")
    return value


_LONG = {np.dtype("longdouble"): np.dtype("float64"), np.dtype("clongdouble"): np.dtype("complex128")}
_KINDS = {
    "floating": ("floating-point numbers", (np.floating,)),
    "inexact": ("floating-point or complex numbers", (np.inexact,)),
    "integer": ("integers", (np.integer,)),
    "real": ("real numbers", (np.floating, np.integer, np.bool_)),
    "number": ("numbers", (np.number, np.bool_)),
}
