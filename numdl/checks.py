"""Checks at the door: each names the argument, the value that came and what is allowed, and returns the value.

They look at Python and array values only, never at tracers: inside `jit` a value is unknown and passes, a shape or a
dtype is known and is checked.
"""

import numbers

import jax
import numpy as np


class Refused(Exception):  # noqa: N818
    """An argument was refused at the door, before any work: what tells a bad argument from a fault deep inside."""


class BadValue(Refused, ValueError):  # noqa: N818
    """A value that is not allowed."""


class BadType(Refused, TypeError):  # noqa: N818
    """A value of a kind that is not allowed."""


def whole(name, value, *, least=1, most=None):
    """An int in least..most (a bool is none)."""
    allowed = f"an integer >= {least}" if most is None else f"an integer in {least}..{most}"
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise BadType(f"{name} must be {allowed}; got {_show(value)}")
    if value < least or (most is not None and value > most):
        raise BadValue(f"{name} must be {allowed}; got {_show(value)}")
    return int(value)


def finite(name, value, *, least=-np.inf, most=np.inf, above=None, shape=None):
    """Real numbers, all finite, in [least, most] (strictly above `above`); `shape=()` asks for a scalar."""
    allowed = _range(least, most, above, shape)
    if isinstance(value, jax.core.Tracer):
        array = value
    else:
        array = _real(name, value, allowed)
        wrong = ~np.isfinite(array) | (array < least) | (array > most)
        if above is not None:
            wrong |= array <= above
        if wrong.any():
            raise BadValue(f"{name} must be {allowed}; got {_show(array[wrong].flat[0].item())}")
    if shape is not None and tuple(array.shape) != tuple(shape):
        raise BadValue(f"{name} must be {allowed}; got an array of shape {tuple(array.shape)}")
    return value


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


def one_of(name, value, allowed):
    """One of the allowed values (strings, usually)."""
    if value not in tuple(allowed):
        raise BadValue(f"{name} must be one of {', '.join(map(str, allowed))}; got {_show(value)}")
    return value


def instance(name, value, kind, *, hint=""):
    """An instance of `kind`; `hint` says how to get one."""
    if not isinstance(value, kind):
        raise BadType(f"{name} must be {_article(kind)}{hint and ', ' + hint}; got {_show(value)}")
    return value


def function(name, value):
    """Something that can be called."""
    if not callable(value):
        raise BadType(f"{name} must be a function; got {_show(value)}")
    return value


def key(name, value):
    """A typed random key, jax.random.key(seed): one key unless a batch of them is traced."""
    if not is_key(value):
        raise BadType(f"{name} must be a typed key, jax.random.key(seed); got {_show(value)}")
    if value.shape != ():
        raise BadValue(f"{name} must be one key; got an array of keys of shape {value.shape}")
    return value


def is_key(value):
    """Whether this is a typed random key, or an array of them."""
    return isinstance(value, jax.Array) and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key)


def floating(name, value, *, ndim=None, least_ndim=None):
    """A non-empty array of floating-point numbers with the number of axes asked for."""
    dtype = getattr(value, "dtype", None)
    if dtype is None or not hasattr(value, "shape"):
        raise BadType(f"{name} must be an array of floating-point numbers; got {_show(value)}")
    if not jax.dtypes.issubdtype(dtype, np.inexact):
        raise BadType(f"{name} must be an array of floating-point numbers; got dtype {dtype}: cast it first")
    if ndim is not None and len(value.shape) != ndim:
        raise BadValue(f"{name} must have {ndim} axes; got shape {tuple(value.shape)}")
    if least_ndim is not None and len(value.shape) < least_ndim:
        raise BadValue(f"{name} must have at least {least_ndim} axes; got shape {tuple(value.shape)}")
    if 0 in value.shape:
        raise BadValue(f"{name} must not be empty; got shape {tuple(value.shape)}")
    return value


def shape(name, value, expected):
    """An array whose shape is `expected`; None stands for any length."""
    got = tuple(np.shape(value))
    if len(got) != len(expected) or any(e is not None and e != g for e, g in zip(expected, got, strict=True)):
        wanted = "(" + ", ".join("any" if e is None else str(e) for e in expected) + ")"
        raise BadValue(f"{name} must have shape {wanted}; got {got}")
    return value


def alike(name, tree, **other):
    """A pytree with the structure and the leaves' shapes of another, handed in by name."""
    ((expected, like),) = other.items()
    shapes = lambda t: {jax.tree_util.keystr(p): np.shape(leaf) for p, leaf in jax.tree_util.tree_leaves_with_path(t)}  # noqa: E731
    got, wanted = shapes(tree), shapes(like)
    if got != wanted or jax.tree.structure(tree) != jax.tree.structure(like):
        place = next((path for path in {**wanted, **got} if got.get(path) != wanted.get(path)), "")
        found = got.get(place, "no leaf")
        raise BadValue(f"{name} must have the structure and shapes of {expected}; got {found} at {place or 'the root'}")
    return tree


def _real(name, value, allowed):
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise BadType(f"{name} must be {allowed}; got {_show(value)}") from error
    if array.dtype.kind not in "fiu":
        raise BadType(f"{name} must be {allowed}; got {_show(value)}")
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


def _article(kind):
    names = [k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,))]
    return ("an " if names[0][0] in "AEIOU" else "a ") + " or ".join(names)


def _show(value):
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}... ({type(value).__name__})"
