"""Functions as programs that are compiled once, whoever calls them and under a gradient as well.

`lax.scan`, `while_loop` and `map` compile anew outside of `jit` whenever their body is a new closure, which it is at
every call. So what holds a loop is itself one program, known again by the functions among its arguments: the same
function compiles nothing, a new one does; so does one that holds other numbers than it did (`_captured`).
"""

import contextvars
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.tree_util import Partial

from numdl import _captured, _effort


def jit(
    function: Callable, static_argnums: tuple = (), static_argnames: tuple = (), runs: int | None = _effort.RUNS
) -> Callable:
    """`_effort.jit` that looks at what functions among the arguments hold: other numbers than before are traced anew.

    Parameters
    ----------
    function, static_argnums, static_argnames, runs : function, ints, texts, int      as of `_effort.jit`
    Returns
    -------
    function                    as of `_effort.jit`
    """
    indices, static = _effort.static(function, static_argnums, static_argnames)

    def program(_held, *arguments, **keywords):
        _held.traced = True
        return function(*arguments, **keywords)

    functools.update_wrapper(program, function)
    del program.__wrapped__
    static_argnums = (0, *(i + 1 for i in indices))
    run = _effort.jit(program, static_argnums=static_argnums, static_argnames=tuple(static), runs=runs)

    program_run = run

    def calling(run):
        @functools.wraps(function)
        def call(*arguments, **keywords):
            group = _group_of(function, indices, static, arguments, keywords)
            found = group.now()
            result = run(found, *arguments, **keywords)
            if not _KEPT and program_run._cache_size():
                _KEPT.append(program_run)
            if found.traced:
                group.look_again(found)
            return result

        return call

    call = calling(run)
    call.trace, call.eval_shape, call.lower = calling(run.trace), calling(run.eval_shape), calling(run.lower)
    call._cache_size, call.clear_cache = run._cache_size, run.clear_cache
    return call


class _Group:
    """The functions among a program's arguments, and what they lately held."""

    def __init__(self, values):
        self.values = tuple(value for value in values if _captured.held((value,)).may_change())
        self.recent = []

    def now(self):
        """What the functions hold, as the same object where it is the same."""
        if not self.values:
            return _captured.NOTHING
        read = _READ.get()
        if read is None:
            return self._found()
        if id(self) not in read:
            read[id(self)] = self, self._found()
        return read[id(self)][1]

    def _found(self):
        found = _captured.held(self.values)
        for one in self.recent:
            if one == found:
                return one
        self.recent = [found.frozen(), *self.recent[:_MOST_RECENT]]
        return found

    def look_again(self, before):
        """After a trace: what it has written to itself is no input."""
        before.traced = False
        if self.values:
            _captured.remember_written(before, _captured.held(self.values))


_MOST_RECENT = 1
_READ = contextvars.ContextVar("what was read in the call that goes on", default=None)
_NONE = _Group(())


def _group_of(function, indices, static, arguments, keywords):
    """The group of a call; the empty one where an argument has no hash, which jit refuses."""
    fixed, data = _effort.parts(indices, static, arguments, keywords)
    fixed = tuple(value for value in fixed if not isinstance(value, _SIMPLE))
    if _KEPT and not _KEPT[0]._cache_size():  # jax.clear_caches() was called: let go of what functions held, too
        _KEPT.clear()
        _group.cache_clear()
        _captured.forget()
        for cache in FORGOTTEN:
            cache.clear()
    try:
        return _group(function, jax.tree.structure(data), fixed)
    except TypeError:
        return _NONE


_KEPT = []  # a program that jax keeps until its caches are cleared
FORGOTTEN = []  # caches elsewhere that are emptied then
_SIMPLE = (int, float, str, type(None), np.dtype, type)


@functools.lru_cache(maxsize=256)
def _group(function, structure, fixed):
    return _Group((function, *fixed, *static_parts(structure)))


def static_parts(structure):
    """What the nodes of a pytree hold beside their children: functions, static fields."""
    found, waiting = [], [structure]
    while waiting:
        node = waiting.pop()
        kind = node.node_data()
        if kind is not None and kind[0] is not dict and not isinstance(kind[1], type):
            found.append(kind[1])
        waiting += node.children()
    return found


def compiled(function: Callable, static: tuple[str, ...] = ()) -> Callable:
    """The function as one program, compiled once for its functions, shapes and static keywords.

    What jit cannot take goes to the function as it is, whose own door refuses it; so does a function without a hash,
    which cannot be known again.

    Parameters
    ----------
    function : function         of pytrees, of a module: a program belongs to its identity
    static : tuple of str       keywords that are not data
    Returns
    -------
    function                    computing the same
    """
    program = jit(function, static_argnames=static)

    @functools.wraps(function)
    def call(*arguments, **options):
        leaves, structure = jax.tree.flatten(arguments)
        return (program if _hashable(structure) and all(map(_plain, leaves)) else function)(*arguments, **options)

    return call


def reading_once(function: Callable) -> Callable:
    """The function, for whose time what others hold is read once: one that calls a program many times in Python.

    Parameters
    ----------
    function : function         of this package
    Returns
    -------
    function                    computing the same
    """

    @functools.wraps(function)
    def call(*arguments, **keywords):
        if _READ.get() is not None:
            return function(*arguments, **keywords)
        before = _READ.set({})
        try:
            return function(*arguments, **keywords)
        finally:
            _READ.reset(before)

    return call


def holding(*functions: Any) -> Any:
    """What these functions hold now, for the key of what is kept of them: equal while it is the same.

    Parameters
    ----------
    functions : functions       or None
    Returns
    -------
    hashable
    """
    return _holders(functions).now()


def _holders(functions):
    return _group_of(None, range(len(functions)), (), functions, {})


def known(function: Callable) -> Callable:
    """The function as jax's caches of traces may know it: equal to itself only while it holds the same.

    Parameters
    ----------
    function : function         that is handed to `jax.make_jaxpr`
    Returns
    -------
    function                    computing the same
    """
    group = _holders((function,))
    return _Known(function, group.now(), group) if group.values else function


@dataclasses.dataclass(frozen=True)
class _Known:
    """A function and what it holds."""

    function: Callable
    held: Any
    group: Any = dataclasses.field(compare=False)

    def __call__(self, *arguments, **keywords):
        result = self.function(*arguments, **keywords)
        self.group.look_again(self.held)
        return result


@dataclasses.dataclass(frozen=True, eq=False)
class Same:
    """A function as a key: itself, or the same method of the same object; keeps it alive, so that ids stay unique."""

    function: Any

    @property
    def parts(self):
        """What it is known by."""
        return id(getattr(self.function, "__self__", None)), id(getattr(self.function, "__func__", self.function))

    def __hash__(self):
        return hash(self.parts)

    def __eq__(self, other):
        return isinstance(other, Same) and self.parts == other.parts

    def __call__(self, *arguments, **keywords):
        return self.function(*arguments, **keywords)


def as_tree(tree: Any) -> Any:
    """The same tree with a `Partial` for every plain function in it: an argument of a program, its arrays data.

    Parameters
    ----------
    tree : function, or pytree that holds functions     an optimizer of optax, a record
    Returns
    -------
    pytree                      that can be used as it was
    """
    return jax.tree.map(lambda leaf: Partial(leaf) if callable(leaf) else leaf, tree)


def _hashable(structure):
    try:
        hash(structure)
    except TypeError:
        return False
    return True


def _plain(leaf):
    """Whether jit takes it: a live array of numbers, a number."""
    if isinstance(leaf, jax.Array):
        return isinstance(leaf, jax.core.Tracer) or not leaf.is_deleted()
    if type(leaf) in (float, int, bool, complex):
        return True
    masked = isinstance(leaf, np.ma.MaskedArray)
    return (
        isinstance(leaf, np.ndarray | np.generic) and not masked and leaf.dtype.isnative and leaf.dtype.kind in _KINDS
    )


_KINDS = "biufcV"  # V: bfloat16 and what else ml_dtypes adds
