"""Numbers: whole ones, finite ones, and a range they must lie in."""

import operator

import jax
import numpy as np

from numdl.checks._arrays import native
from numdl.checks._refusals import BadType, BadValue, shaped, shown


def whole(name, value, *, least=1, most=None):
    """An int in least..most, from any whole number: int, NumPy integer, 0-d integer array; a bool is not one."""
    allowed = f"an integer >= {least}" if most is None else f"an integer in {least}..{most}"
    number = _index(value)
    if number is None:
        raise BadType(f"{name} must be {allowed}; got {shown(value)}")
    if number < least or (most is not None and number > most):
        raise BadValue(f"{name} must be {allowed}; got {shown(value)}")
    return number


def wholes(name, values, *, least=1, fewest=1):
    """A tuple of ints, each as in `whole`, from a sequence of at least `fewest`."""
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


def finite(name, value, *, least=-np.inf, most=np.inf, above=None, shape=None):
    """Real numbers, all finite, in [least, most] (strictly above `above`); `shape=()` asks for a scalar."""
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
    return value


def sequence(name, values):
    """A tuple of floats from a sequence of finite numbers, such as (0.0,)."""
    if isinstance(values, str) or np.ndim(values) != 1:
        raise BadType(f"{name} must be a sequence of numbers, such as (0.0,); got {shown(values)}")
    return tuple(float(finite(name, value, shape=())) for value in values)


def variance(name, value, *, shape=None):
    """Finite and not negative."""
    return finite(name, value, least=0.0, shape=shape)


def positive(name, value, *, shape=None):
    """Finite and above zero."""
    return finite(name, value, above=0.0, shape=shape)


def concrete(name, value):
    """Not a tracer: theory is computed outside of jit, in float64."""
    if isinstance(value, jax.core.Tracer):
        raise BadType(f"{name} must be a number known outside of jit, vmap and grad; got {value}")
    return value


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
    if not any(jax.dtypes.issubdtype(array.dtype, kind) for kind in (np.floating, np.integer)):
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
