"""Numbers: whole ones, finite ones, and a range they must lie in."""

import operator
from typing import Any

import jax
import numpy as np

from numdl.checks._arrays import native
from numdl.checks._refusals import BadType, BadValue, of_kind, shaped, shown

COUNTS = 2**31 - 1  # the largest count: jax's own indices have 32 bits
BYTES = 2**62


def whole(name: str, value: Any, *, least: int = 1, most: int | None = None) -> int:
    """An int in least..most, from any whole number: int, NumPy integer, 0-d integer array; a bool is not one.

    Parameters
    ----------
    name : str                  what the caller calls the argument
    value : any                 what came
    least : int                 the least that is allowed
    most : int                  the most that is allowed; None: what counts something that an array can hold
    Raises
    ------
    ValueError, TypeError       anything else came: BadValue, BadType
    """
    number = _index(value)
    if most is None and number is not None and number > COUNTS:
        most = COUNTS
    allowed = f"an integer >= {least}" if most is None else f"an integer in {least}..{most}"
    if number is None:
        raise BadType(f"{name} must be {allowed}; got {shown(value)}")
    if number < least or (most is not None and number > most):
        raise BadValue(f"{name} must be {allowed}; got {shown(value)}")
    return number


def wholes(name: str, values: Any, *, least: int = 1, fewest: int = 1) -> tuple[int, ...]:
    """A tuple of ints, each as in `whole`, from a sequence of at least `fewest`.

    Parameters
    ----------
    name : str                  what the caller calls the argument
    values : sequence           what came
    least : int                 the least that each may be
    fewest : int                the fewest entries
    Raises
    ------
    ValueError, TypeError       anything else came: BadValue, BadType
    """
    try:
        items = None if isinstance(values, str | bytes | dict | set | frozenset) else tuple(values)
    except TypeError:
        items = None
    if items is None:
        raise BadType(f"{name} must be a sequence of integers >= {least}; got {shown(values)}")
    numbers = tuple(whole(f"{name}[{i}]", item, least=least) for i, item in enumerate(items))
    if len(numbers) < fewest:
        raise BadValue(f"{name} must be a sequence of at least {fewest} integers >= {least}; got {shown(values)}")
    return numbers


def finite(
    name: str,
    value: Any,
    *,
    least: float = -np.inf,
    most: float = np.inf,
    above: float | None = None,
    shape: tuple | None = None,
) -> Any:
    """Real numbers, all finite, in [least, most] (strictly above `above`); `shape=()` asks for a scalar.

    A scalar of NumPy's integers or half precision comes back as a Python float, so that nothing wraps around.

    Parameters
    ----------
    name : str                  what the caller calls the argument
    value : any                 what came
    least : number              the least that is allowed
    most : number               the most that is allowed
    above : number              what must be exceeded; None: nothing
    shape : tuple               the shape asked for, () for a scalar; None: any
    Raises
    ------
    ValueError, TypeError       anything else came: BadValue, BadType
    """
    allowed = _range(least, most, above, shape)
    if isinstance(value, jax.core.Tracer):
        array = value
    else:
        value = native(name, value)
        array = _real(name, value, allowed)
        if shape is not None and array.shape != tuple(shape):
            raise BadValue(f"{name} must be {allowed}; got {shown(value)}, of shape {array.shape}")
        wrong = ~np.isfinite(array) | (array < least) | (array > most)
        if above is not None:
            wrong |= array <= above
        if wrong.any():
            place = f" in {shown(value)}" if array.ndim else ""
            raise BadValue(f"{name} must be {allowed}; got {shown(array[wrong].flat[0].item())}{place}")
    if shape is not None and tuple(array.shape) != tuple(shape):
        raise BadValue(f"{name} must be {allowed}; got {shaped(value)}")
    return value if shape != () or array is value else _plain(value, array)


def sequence(name: str, values: Any) -> tuple[float, ...]:
    """A tuple of floats from a sequence of finite numbers, such as (0.0,).

    Parameters
    ----------
    name : str                  what the caller calls the argument
    values : sequence           what came
    Raises
    ------
    ValueError, TypeError       anything else came: BadValue, BadType
    """
    if isinstance(values, str) or np.ndim(values) != 1:
        raise BadType(f"{name} must be a sequence of numbers, such as (0.0,); got {shown(values)}")
    return tuple(float(finite(name, value, shape=())) for value in values)


def variance(name: str, value: Any, *, shape: tuple | None = None) -> Any:
    """Finite and not negative.

    Parameters
    ----------
    name : str                  what the caller calls the argument
    value : any                 what came
    shape : tuple               the shape asked for, () for a scalar; None: any
    Raises
    ------
    ValueError, TypeError       anything else came: BadValue, BadType
    """
    return finite(name, value, least=0.0, shape=shape)


def positive(name: str, value: Any, *, shape: tuple | None = None) -> Any:
    """Finite and above zero.

    Parameters
    ----------
    name : str                  what the caller calls the argument
    value : any                 what came
    shape : tuple               the shape asked for, () for a scalar; None: any
    Raises
    ------
    ValueError, TypeError       anything else came: BadValue, BadType
    """
    return finite(name, value, above=0.0, shape=shape)


def number(
    name: str, value: Any, *, least: float = -np.inf, most: float = np.inf, above: float | None = None
) -> np.float64:
    """A finite scalar known outside of jit, as float64: what NumPy makes of its own integers and halves wraps around.

    Parameters
    ----------
    name : str                  what the caller calls the argument
    value : any                 what came
    least, most, above : number     as in `finite`
    Raises
    ------
    ValueError, TypeError       anything else came: BadValue, BadType
    """
    return np.float64(finite(name, concrete(name, value), least=least, most=most, above=above, shape=()))


def concrete(name: str, value: Any) -> Any:
    """Not a tracer: theory is computed outside of jit, in float64.

    Parameters
    ----------
    name : str                  what the caller calls the argument
    value : any                 what came
    Raises
    ------
    ValueError, TypeError       anything else came: BadValue, BadType
    """
    if isinstance(value, jax.core.Tracer):
        raise BadType(f"{name} must be a number known outside of jit, vmap and grad; got {value}")
    return value


def _plain(value, array):
    """A scalar of few bits as a Python float: its own arithmetic would wrap around, or round in three digits."""
    dtype = getattr(value, "dtype", None)
    few = dtype is not None and (jax.dtypes.issubdtype(dtype, np.integer) or dtype.itemsize < 4)
    return float(array) if few else value


def _index(value):
    """The whole number that this is, or None."""
    if isinstance(value, bool) or jax.dtypes.issubdtype(getattr(value, "dtype", int), np.bool_) or np.ndim(value):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def _real(name, value, allowed):
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise BadType(f"{name} must be {allowed}; got {shown(value)}") from error
    if not of_kind(array.dtype, (np.floating, np.integer)):
        raise BadType(f"{name} must be {allowed}; got {shown(value)}")
    return array.astype(np.float64)


def _range(least, most, above, shape):
    noun = "a finite number" if shape == () else "finite numbers" + ("" if shape is None else f" of shape {shape}")
    bounds = []
    if above is not None:
        bounds.append(f"> {above:g}")
    elif least > -np.inf:
        bounds.append(f">= {least:g}")
    if most < np.inf:
        bounds.append(f"<= {most:g}")
    return " ".join([noun, " and ".join(bounds)]).strip()
