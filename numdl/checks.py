"""Checks at the door: each names the argument, the value that came and what is allowed, and returns the value.

They look at Python and array values only, never at tracers: inside `jit` a value is unknown and passes, a shape or a
dtype is known and is checked. Use what a check returns: integers are ints there, arrays in native order.
"""

import dataclasses
import inspect
import operator
import os
import pathlib
from collections.abc import Callable

import jax
import numpy as np


class Refused(Exception):  # noqa: N818
    """An argument was refused at the door, before any work: what tells a bad argument from a fault deep inside."""


class BadValue(Refused, ValueError):  # noqa: N818
    """A value that is not allowed."""


class BadType(Refused, TypeError):  # noqa: N818
    """A value of a kind that is not allowed."""


def whole(name, value, *, least=1, most=None):
    """An int in least..most, from any whole number: int, NumPy integer, 0-d integer array; a bool is not one."""
    allowed = f"an integer >= {least}" if most is None else f"an integer in {least}..{most}"
    number = _index(value)
    if number is None:
        raise BadType(f"{name} must be {allowed}; got {_show(value)}")
    if number < least or (most is not None and number > most):
        raise BadValue(f"{name} must be {allowed}; got {_show(value)}")
    return number


def wholes(name, values, *, least=1, fewest=1):
    """A tuple of ints, each as in `whole`, from a sequence of at least `fewest`."""
    try:
        items = None if isinstance(values, str | bytes | dict | set | frozenset) else tuple(values)
    except TypeError:
        items = None
    if items is None:
        raise BadType(f"{name} must be a sequence of integers >= {least}; got {_show(values)}")
    numbers = tuple(whole(f"{name}[{i}]", item, least=least) for i, item in enumerate(items))
    if len(numbers) < fewest:
        raise BadValue(f"{name} must be a sequence of at least {fewest} integers >= {least}; got {_show(values)}")
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
            raise BadValue(f"{name} must be {allowed}; got {_show(value)}, of shape {array.shape}")
        wrong = ~np.isfinite(array) | (array < least) | (array > most)
        if above is not None:
            wrong |= array <= above
        if wrong.any():
            place = f" in {_show(value)}" if array.ndim else ""
            raise BadValue(f"{name} must be {allowed}; got {_show(array[wrong].flat[0].item())}{place}")
    if shape is not None and tuple(array.shape) != tuple(shape):
        raise BadValue(f"{name} must be {allowed}; got {_shaped(value)}")
    return value


def sequence(name, values):
    """A tuple of floats from a sequence of finite numbers, such as (0.0,)."""
    if isinstance(values, str) or np.ndim(values) != 1:
        raise BadType(f"{name} must be a sequence of numbers, such as (0.0,); got {_show(values)}")
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


def flag(name, value):
    """A bool, NumPy's too."""
    if not isinstance(value, bool | np.bool_):
        raise BadType(f"{name} must be True or False; got {_show(value)}")
    return bool(value)


def accepts(name, value, count, signature):
    """A function that can be called with this many arguments; `signature` shows them: "loss(params, batch)"."""
    function(name, value)
    try:
        taken = inspect.signature(value)
    except (TypeError, ValueError):  # written in C, or says nothing of itself
        return value
    try:
        taken.bind(*[None] * count)
    except TypeError as error:
        raise BadType(f"{name} must be a function, called as {signature}; got {_called(value)}{taken}") from error
    return value


def returning(name, value, count, signature, *, scalar=False):
    """The function as a Partial that refuses to return anything else than arrays, or than one real number.

    What it returns is looked at when it is called, so under a trace and before anything is compiled; equal functions
    are equal, so that `jit` knows them again.
    """
    accepts(name, value, count, signature)
    if not isinstance(value, jax.tree_util.Partial):
        value = jax.tree_util.Partial(value)
    if isinstance(value.func, _Returning):
        return value
    return jax.tree_util.Partial(_Returning(name, signature, value.func, scalar), *value.args, **value.keywords)


def one_real_number(name, signature, value):
    """What a loss returned: a real floating-point scalar."""
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
                raise BadType(f"{self.name} must return {wanted}, as {self.signature}; got {_show(found)}")
        return one_real_number(self.name, self.signature, result) if self.scalar else result


def path(name, value):
    """A path as a text or a `pathlib.Path`, not empty: the empty one would be the current folder in silence."""
    if not isinstance(value, str | os.PathLike):
        raise BadType(f"{name} must be a path; got {_show(value)}")
    if not os.fspath(value) or "\0" in os.fsdecode(value):
        raise BadValue(f"{name} must be a path that is not empty and holds no zero byte; got {_show(value)}")
    return pathlib.Path(os.fsdecode(value))


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


def native(name, value):
    """The value; an array in the machine's byte order, nothing masked, not deleted: jax reads the bytes as they lie."""
    if isinstance(value, jax.Array) and not isinstance(value, jax.core.Tracer) and value.is_deleted():
        raise BadValue(f"{name} must be an array that still exists; got a deleted one of shape {value.shape}")
    if isinstance(value, np.ma.MaskedArray):
        if np.ma.is_masked(value):
            raise BadValue(
                f"{name} must not be masked; got a masked array of shape {value.shape}: fill or drop what is masked"
            )
        value = value.data
    if isinstance(value, np.ndarray | np.generic) and not value.dtype.isnative:
        value = value.astype(value.dtype.newbyteorder("="))
    return value


def array(name, value, *, kind="real", ndim=None, least_ndim=None, empty=False):
    """Numbers as an array: a jax array as it is, all else as NumPy's, native and not masked; lists are converted.

    kind is "floating", "inexact" (or complex), "integer", "real" (floating, integer or bool) or "number" (or complex).
    """
    allowed = f"an array of {_KINDS[kind][0]}"
    value = came = native(name, value)
    if not isinstance(value, jax.Array | jax.ShapeDtypeStruct):
        try:
            value = np.asarray(value)
        except (TypeError, ValueError) as error:
            raise BadType(f"{name} must be {allowed}; got {_show(came)}") from error
    if not any(jax.dtypes.issubdtype(value.dtype, dtype) for dtype in _KINDS[kind][1]):
        what = f"dtype {value.dtype}, shape {value.shape}" if value.ndim else _show(came)
        raise BadType(f"{name} must be {allowed}; got {what}")
    if ndim is not None and value.ndim != ndim:
        raise BadValue(f"{name} must have {ndim} axes; got {_shaped(came, 'shape')}")
    if least_ndim is not None and value.ndim < least_ndim:
        raise BadValue(f"{name} must have at least {least_ndim} axes; got {_shaped(came, 'shape')}")
    if not empty and 0 in value.shape:
        raise BadValue(f"{name} must not be empty; got shape {tuple(value.shape)}")
    return value


def floating(name, value, *, ndim=None, least_ndim=None):
    """A non-empty array of real floating-point numbers with the number of axes asked for."""
    dtype = getattr(value, "dtype", None)
    if dtype is None or not hasattr(value, "shape"):
        raise BadType(f"{name} must be an array of floating-point numbers; got {_show(value)}")
    if not jax.dtypes.issubdtype(dtype, np.floating):
        hint = ": cast it first" if jax.dtypes.issubdtype(dtype, np.number) else ""
        raise BadType(
            f"{name} must be an array of floating-point numbers; got dtype {dtype}, shape {tuple(value.shape)}{hint}"
        )
    return array(name, value, kind="floating", ndim=ndim, least_ndim=least_ndim)


def leaf(name, value):
    """A leaf of a pytree of parameters or data: an array (numbers, bools, keys) or a Python number, native."""
    if isinstance(value, bool | int | float | complex):
        return np.asarray(value, jax.dtypes.canonicalize_dtype(np.asarray(value).dtype))
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        hint = ": part functions from arrays first, as eqx.partition does" if callable(value) else ""
        raise BadType(f"{name} must be an array; got {_show(value)}{hint}")
    known = jax.dtypes.issubdtype(value.dtype, np.number) or value.dtype == bool or value.dtype == jax.dtypes.float0
    if not known and not jax.dtypes.issubdtype(value.dtype, jax.dtypes.extended):
        raise BadType(f"{name} must be an array of numbers; got dtype {value.dtype}, shape {tuple(value.shape)}")
    return native(name, value)


def leaves(name, tree, *, examples=False, empty=False):
    """A pytree of native arrays, at least one unless `empty`; `examples`: of one length >= 1 along their first axes."""
    pairs, structure = jax.tree_util.tree_flatten_with_path(tree)
    if not pairs and not empty:
        raise BadValue(f"{name} must hold at least one array; got {_show(tree)}")
    found = [leaf(f"{name}{jax.tree_util.keystr(path)}", value) for path, value in pairs]
    if examples:
        lengths = sorted({tuple(value.shape[:1]) for value in found})
        if len(lengths) != 1 or lengths[0] in ((), (0,)):
            shapes = ", ".join(str(tuple(value.shape)) for value in found[:4])
            shapes = f"shapes {shapes}" if hasattr(pairs[0][1], "shape") else _show(tree)
            raise BadValue(f"{name} must hold arrays of one length >= 1 along axis 0, the examples; got {shapes}")
    return jax.tree.unflatten(structure, found)


def length(name, tree, *, of="examples", least=1):
    """The length, at least `least`, that all leaves of a pytree have along axis 0."""
    lengths = {
        jax.tree_util.keystr(path): np.shape(leaf)[:1] for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    if len(set(lengths.values())) != 1 or () in lengths.values():
        got = ", ".join(f"{name}{path} {list(one)}" for path, one in list(lengths.items())[:8])
        got = got if len(lengths) > 1 else _show(tree)
        raise BadValue(f"{name} must have leaves of one length along axis 0, the {of}; got {got}")
    (found,) = next(iter(lengths.values()))
    if found < least:
        shape = tuple(np.shape(jax.tree.leaves(tree)[0]))
        raise BadValue(f"{name} must have at least {least} {of} along axis 0; got shape {shape}")
    return found


def floats(name, tree, *, empty=False):
    """A pytree of floating-point or complex arrays, all native; `empty`: or of none."""
    if empty and not jax.tree.leaves(tree):
        return tree
    tree = leaves(name, tree)
    for path, value in jax.tree_util.tree_leaves_with_path(tree):
        if not jax.dtypes.issubdtype(value.dtype, np.inexact):
            label = f"{name}{jax.tree_util.keystr(path)}"
            raise BadType(
                f"{label} must be floating-point numbers; got dtype {value.dtype}, shape {tuple(value.shape)}: cast it"
            )
    return tree


def together(name, tree, other, like, *, of="examples"):
    """The length along axis 0 of two pytrees of examples, which must be the same; `other` names the second."""
    first, second = length(name, tree, of=of), length(other, like, of=of)
    if first != second:
        shapes = [tuple(np.shape(jax.tree.leaves(one)[0])) for one in (tree, like)]
        raise BadValue(f"{name} and {other} must have as many {of}; got shapes {shapes[0]} and {shapes[1]}")
    return first


def dtype(name, value):
    """A dtype that jax keeps as it is: without x64, "float64" would become float32 in silence."""
    found = known_dtype(name, value)
    if jax.dtypes.canonicalize_dtype(found) != found:
        raise BadValue(
            f"{name} must be a dtype that jax has now; got {found}: jax.config.update('jax_enable_x64', True) allows it"
        )
    return found


def known_dtype(name, value):
    """A dtype, whether or not jax keeps it as it is."""
    try:
        return np.dtype(value)
    except TypeError as error:
        raise BadType(f"{name} must be a dtype such as 'float32'; got {_show(value)}") from error


def shape(name, value, expected):
    """An array whose shape is `expected`; None stands for any length."""
    got = tuple(np.shape(value))
    if len(got) != len(expected) or any(e is not None and e != g for e, g in zip(expected, got, strict=True)):
        wanted = "(" + ", ".join("any" if e is None else str(e) for e in expected) + ")"
        raise BadValue(f"{name} must have shape {wanted}; got {got or _shaped(value)}")
    return value


def like(name, tree, expected, *, of="params"):
    """A pytree with the structure and the leaves' shapes of `expected`, which the caller knows as `of`."""
    got, wanted = _shapes(tree), _shapes(expected)
    if got != wanted or jax.tree.structure(tree) != jax.tree.structure(expected):
        place = next((path for path in {**wanted, **got} if got.get(path) != wanted.get(path)), None)
        if place is None:
            raise BadValue(
                f"{name} must have the structure of {of}, {jax.tree.structure(expected)}; "
                f"got {jax.tree.structure(tree)}"
            )
        whole = _show(tree) if not got or "" in got else "no leaf"
        found = f"(), {whole}" if place == "" and got.get(place) == () else got.get(place, whole)
        raise BadValue(
            f"{name} must have the structure and shapes of {of}; got {found} at "
            f"{name}{place} where {of}{place} is {wanted.get(place, 'no leaf')}"
        )
    return jax.tree_util.tree_map_with_path(lambda path, x: leaf(f"{name}{jax.tree_util.keystr(path)}", x), tree)


_KINDS = {
    "floating": ("floating-point numbers", (np.floating,)),
    "inexact": ("floating-point or complex numbers", (np.inexact,)),
    "integer": ("integers", (np.integer,)),
    "real": ("real numbers", (np.floating, np.integer, np.bool_)),
    "number": ("numbers", (np.number, np.bool_)),
}


def _shapes(tree):
    return {jax.tree_util.keystr(path): np.shape(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


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
        raise BadType(f"{name} must be {allowed}; got {_show(value)}") from error
    if not any(jax.dtypes.issubdtype(array.dtype, kind) for kind in (np.floating, np.integer)):
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


def _shaped(value, noun="an array of shape"):
    """What came where a shape was asked for: a number as it is."""
    shape = tuple(np.shape(value))
    return f"{noun} {shape}" if shape or not isinstance(value, int | float) else f"{_show(value)}, shape ()"


def _called(function):
    return getattr(function, "__name__", type(function).__name__)


def _returned(value):
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"an array of shape {tuple(value.shape)}, dtype {value.dtype}"
    return _show(value)


def _article(kind):
    names = [k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,))]
    return ("an " if names[0][0] in "AEIOU" else "a ") + " or ".join(names)


def shown(value):
    """A value in a few words, for messages of one's own; an array by its shape and dtype."""
    return _show(value)


def _show(value):
    """The value in a few words; an array by its shape and dtype."""
    if getattr(value, "shape", ()) and hasattr(value, "dtype"):
        return f"an array of shape {tuple(value.shape)}, dtype {value.dtype}"
    try:
        text = repr(value)
    except RuntimeError:  # it holds a deleted array
        text = f"a {type(value).__name__} with deleted arrays"
    return text if len(text) <= 60 else f"{text[:57]}... ({type(value).__name__})"
