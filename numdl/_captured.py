"""What functions hold besides their arguments, read at every call: a program that has it built in is known by it.

A traced function's numbers become constants of the program. Where one was changed since (an array in place, a number
bound anew, an attribute, an entry of a list or dict), the program is of another function. Followed are closures,
defaults, `functools.partial`, a method's object, attributes, containers, and the globals that the code names; not the
globals of installed packages, what a function under the caller's own `jax.jit` holds (jax keeps that), objects of
Python's and the frameworks' classes but for their arrays and functions, nor what lies past `MOST` places.
"""

import array
import collections
import functools
import sys
import sysconfig
import types
from pathlib import Path
from typing import Any

import jax
import numpy as np

from numdl import _effort

MOST = 100_000  # places that are looked at
_PLAIN = (int, bool, str, bytes, type(None), range, slice, type(...))
_NUMBERS = (*_PLAIN, float, complex, np.generic)
_FIXED = (*_NUMBERS, types.ModuleType, type)
_SEVERAL = (tuple, list, set, frozenset, collections.deque)
_OPAQUE = frozenset(
    {"jax", "jaxlib", "numpy", "scipy", "optax", "flax", "torch", "matplotlib", *sys.stdlib_module_names}
)
_FOLLOWED = (np.ndarray, types.FunctionType, types.MethodType, functools.partial)  # in a framework's object
_WRITTEN = {}  # id -> what a trace has itself written to: a log, a counter


class Held:
    """What functions held at a moment: equal where a trace of them finds the same."""

    def __init__(self, places):
        self.places, self.traced = places, False

    def __hash__(self):
        return 0  # what traces write to may differ, so nothing of it may count

    def __eq__(self, other):
        if self is other:
            return True
        return isinstance(other, Held) and all(_written(path, self, other) for path in _changed(self, other))

    def may_change(self) -> bool:
        """Whether anything of it can be written to."""
        return any(owner is not None or isinstance(value, _Numbers) for owner, value in self.places.values())

    def frozen(self) -> "Held":
        """The same with copies of arrays, which the caller may change.

        Returns
        -------
        Held
        """
        self.places = {path: (owner, _copied(value)) for path, (owner, value) in self.places.items()}
        return self


NOTHING = Held({})


def held(values: Any) -> Held:
    """What the functions among these values hold, followed from one to the next.

    Parameters
    ----------
    values : iterable           functions, and objects that hold some
    Returns
    -------
    Held
    """
    places, known = {}, {}
    waiting = [((index,), None, value) for index, value in enumerate(values)]
    while waiting and len(places) < MOST:
        path, owner, value = waiting.pop()
        if id(value) in known:
            places[path] = owner, known[id(value)][0]
            continue
        if not isinstance(value, _NUMBERS):
            known[id(value)] = path, value  # kept, so that ids stay unique
        shown, inside = _read(value)
        if shown is not None:
            places[path] = owner, shown
        waiting += [((*path, name), holder, part) for name, holder, part in inside]
    return Held(places) if places else NOTHING


def remember_written(before: Held, after: Held) -> None:
    """Take what a trace has itself changed, a log or a counter, out of every later comparison.

    Parameters
    ----------
    before, after : Held        of the same functions, around a trace
    """
    for path in _changed(before, after):
        for side in (before, after):
            owner = side.places.get(path, (None,))[0]
            if owner is not None:
                _WRITTEN[_name(owner)] = owner


def forget() -> None:
    """Let go of what traces wrote to."""
    _WRITTEN.clear()


def _changed(one, other):
    paths = one.places.keys() | other.places.keys()
    return [path for path in paths if not _same(one.places.get(path), other.places.get(path))]


def _written(path, *sides):
    """Whether the place, or one that it lies in, belongs to what traces write to."""
    above = [path[:count] for count in range(1, len(path) + 1)]
    owners = [side.places[part][0] for side in sides for part in above if part in side.places]
    return any(owner is not None and _name(owner) in _WRITTEN for owner in owners)


def _name(owner):
    """A container, or the entry of one: a cell, (namespace, name)."""
    return (id(owner[0]), owner[1]) if isinstance(owner, tuple) else id(owner)


def _same(one, other):
    return one is not None and other is not None and type(one[1]) is type(other[1]) and one[1] == other[1]


class _One:
    """A thing that is only equal to itself."""

    def __init__(self, value):
        self.value = value

    def __eq__(self, other):
        return self.value is other.value

    __hash__ = None


class _Numbers:
    """An array's bytes, compared as fast as memory is read; a view of them until it is copied."""

    def __init__(self, array):
        self.form = array.dtype, array.shape
        self.bytes = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data if array.size else b""

    def __eq__(self, other):
        if self.form != other.form:
            return False
        mine, others = (self.bytes, other.bytes)
        return (others == mine) if isinstance(others, bytearray) else (bytearray(mine) == others)

    __hash__ = None


def _copied(value):
    if isinstance(value, _Numbers) and not isinstance(value.bytes, bytearray):
        value.bytes = bytearray(value.bytes)
    return value


def _read(value):
    """(what is compared, [(name, holder, part)] of what it holds)."""
    if isinstance(value, _PLAIN):
        return (type(value), value), ()
    if isinstance(value, float | complex | np.generic):
        return (type(value), repr(value)), ()  # nan is nan, -0.0 is not 0.0
    if isinstance(value, np.ndarray):
        return _numbers(value)
    if isinstance(value, jax.Array | types.ModuleType | type | types.BuiltinFunctionType | _effort.Found):
        return _One(value), ()
    if isinstance(value, types.FunctionType):
        return _function(value)
    if isinstance(value, types.MethodType):
        return None, [("self", None, value.__self__), ("function", None, value.__func__)]
    if isinstance(value, functools.partial):  # also jax's Partial, where it is held and not an argument
        return None, [("function", None, value.func), ("arguments", None, value.args), *_pairs(value.keywords)]
    if isinstance(value, dict | types.MappingProxyType):
        return (type(value), tuple(value)), _pairs(value)
    if isinstance(value, _SEVERAL):
        return _several(value)
    if isinstance(value, types.SimpleNamespace):
        return _One(value), _pairs(vars(value))
    if isinstance(value, bytearray | array.array):
        return (type(value), bytes(value)), ()
    return _object(value)


def _numbers(numbers):
    """An array's numbers, and what a subclass adds: a mask."""
    added = [part for part in _pairs(getattr(numbers, "__dict__", None) or {}) if isinstance(part[-1], np.ndarray)]
    plain = np.asarray(numbers)
    if plain.dtype.hasobject:
        return plain.shape, _entries(numbers, plain.ravel().tolist()) + added
    return _Numbers(plain), added


def _several(values):
    """Plain numbers in a row are compared at once."""
    if isinstance(values, set | frozenset):
        return (type(values), frozenset(values)), ()
    if all(type(value) in (int, bool, str) for value in values):
        return (type(values), tuple(map(type, values)), tuple(values)), ()
    holder = None if isinstance(values, tuple) else values  # a tuple is never written to
    return (type(values), len(values)), _entries(holder, values)


def _entries(holder, values):
    return [(index, holder, value) for index, value in enumerate(values)]


def _pairs(mapping):
    return [(name, (mapping, name), value) for name, value in list(mapping.items())]


def _function(function):
    """A function's code, and what it reads that is not an argument."""
    code, own = function.__code__, not _is_installed(function.__code__.co_filename)
    cells = [(name, cell, _contents(cell)) for name, cell in zip(code.co_freevars, function.__closure__ or ())]
    if not own:  # nobody binds a package's variables anew
        return _One(function), [(name, None, value) for name, _, value in cells if not isinstance(value, _FIXED)]
    given = [("defaults", None, function.__defaults__), ("keywords", None, function.__kwdefaults__)]
    inside = cells + [part for part in given if part[-1]] + _pairs(vars(function))
    return code, inside + _named(function.__globals__, _names(code))


def _contents(cell):
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return None


def _named(space, names):
    """Of a namespace what the code names, and of the modules and classes there what it names as well."""
    found = []
    for name in names:
        value = space.get(name, _MISSING)
        if value is _MISSING or isinstance(value, types.BuiltinFunctionType):
            continue
        if isinstance(value, types.ModuleType | type):
            home = value.__name__ if isinstance(value, types.ModuleType) else value.__module__
            if not _is_opaque(home) and not _is_package(home):
                found += [
                    ((name, part), (vars(value), part), vars(value)[part]) for part in names if part in vars(value)
                ]
        else:
            found.append((name, (space, name), value))
    return found


_MISSING = object()


def _object(value):
    """An object of the caller's or numdl's: its attributes; of a framework's: its arrays and functions."""
    kind = type(value)
    attributes = _attributes(value)
    if _is_opaque(kind.__module__):
        attributes = [part for part in attributes if isinstance(part[-1], _FOLLOWED)]
    valued = getattr(getattr(kind, "__dataclass_params__", None), "frozen", False)
    if valued:  # what it has worked out of its fields once, and kept, is not another number
        attributes = [(name, None, part) for name, _, part in attributes if not _is_worked_out(kind, name)]
    call = getattr(kind, "__call__", None)  # noqa: B004
    if isinstance(call, types.FunctionType) and not _is_opaque(kind.__module__):
        attributes.append(("__call__", None, call))
    return (kind if valued else _One(value)), attributes


def _is_worked_out(kind, name):
    return isinstance(getattr(kind, name, None), functools.cached_property)


def _attributes(value):
    slots = [name for part in type(value).__mro__ for name in _slots(part) if hasattr(value, name)]
    held = [(name, (value, name), getattr(value, name)) for name in slots]
    return held + _pairs(getattr(value, "__dict__", None) or {})


def _slots(kind):
    slots = vars(kind).get("__slots__", ())
    return () if _is_opaque(kind.__module__) else (slots,) if isinstance(slots, str) else slots


@functools.lru_cache(maxsize=4096)
def _names(code):
    """Names that a code reads, its inner functions included."""
    inner = [_names(part) for part in code.co_consts if isinstance(part, types.CodeType)]
    return tuple(dict.fromkeys((*code.co_names, *(name for names in inner for name in names))))


@functools.lru_cache(maxsize=4096)
def _is_installed(path):
    """Whether the file belongs to Python, to an installed package or to this one."""
    return path.startswith(("<frozen", "<__array_function__", *_INSTALLED))


def _is_opaque(module):
    return (module or "").partition(".")[0] in _OPAQUE


def _is_package(module):
    path = getattr(sys.modules.get(module), "__file__", None)
    return (path is None and module != "__main__") or (path is not None and _is_installed(path))


_PLACES = ("stdlib", "platstdlib", "purelib", "platlib")
_INSTALLED = tuple(
    {*(sysconfig.get_path(name) for name in _PLACES), str(Path(jax.__file__).parents[1]), f"{Path(__file__).parent}/"}
)
