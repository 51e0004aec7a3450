"""Optimizers of optax as arguments of programs: twenty learning rates are one program and twenty numbers.

A transformation is a pair of closures, made anew by every `optax.adam(...)`: static, it would compile anew each time.
Here it is taken apart into code, compared by value, and numbers. A number is data only where that changes no digit: not
where it meets other constants before it meets an array (1 - b2 is computed in double precision beforehand), is raised
to a power or decides a branch; that is seen in the jaxpr of one update. A schedule that is not optax's is known by
identity, and what it closes over stays in the program; so does a whole transformation that is not, or has such parts.
"""

import collections
import dataclasses
import sys
import types
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
from jax.tree_util import Partial

from numdl._compiled import as_tree

_KEPT = collections.OrderedDict()  # code -> [(indices that are data, the other numbers)], of the last 64
_SHAPES = {"vector": (3,), "matrix": (256, 200)}  # large enough for what is factored only then


def as_data(optimizer: Any) -> Any:
    """The optimizer as a pytree: its code static and compared by value, numbers leaves where no digit is lost.

    Parameters
    ----------
    optimizer : GradientTransformation      of optax, or any pair of `init` and `update`
    Returns
    -------
    pytree                      that does the same
    """
    import optax

    if not isinstance(optimizer, optax.GradientTransformation):
        return as_tree(optimizer)
    numbers = []
    try:
        _refuse_strangers(optimizer)
        codes = tuple(_taken(function, numbers, ()) for function in optimizer)
        free = _free(codes, numbers, type(optimizer))
    except _UnknownError:
        return as_tree(optimizer)
    return _assembled(codes, numbers, free, type(optimizer))


class _UnknownError(Exception):
    """Something that cannot be taken apart."""


@dataclasses.dataclass(frozen=True)
class _Number:
    """The place of a number among all."""

    index: int


@dataclasses.dataclass(frozen=True)
class _Function:
    """A function of optax: its code, its module, its defaults and what it closes over."""

    code: types.CodeType
    module: str
    defaults: Any
    keywords: Any
    closure: tuple


@dataclasses.dataclass(frozen=True)
class _Several:
    """A tuple, list or dict, and what is in it."""

    kind: type
    names: tuple
    parts: tuple


@dataclasses.dataclass(frozen=True)
class _Fixed:
    """Anything else, compared with its type: 1 is not True."""

    kind: type
    value: Any


@dataclasses.dataclass(frozen=True)
class _Again:
    """A function that is made again from its code and numbers wherever it is called."""

    code: Any
    free: tuple  # indices of the numbers that are data
    fixed: tuple  # the others, with their types: a float64 of NumPy is no float of Python, though equal

    def __call__(self, numbers, *arguments, **keywords):
        fixed, data = iter(self.fixed), iter(numbers)
        count = len(self.free) + len(self.fixed)
        every = [next(data) if i in self.free else next(fixed).value for i in range(count)]
        return _made(self.code, every)(*arguments, **keywords)


def _assembled(codes, numbers, free, kind):
    data = [numbers[i] for i in free]
    fixed = tuple(_Fixed(type(number), number) for i, number in enumerate(numbers) if i not in free)
    return kind(*(Partial(_Again(code, free, fixed), data) for code in codes))


def _taken(value, numbers, above):
    """The value as something hashable; numbers in it are appended to the list."""
    if isinstance(value, float) or (isinstance(value, jax.Array) and value.shape == () and _floating(value)):
        numbers.append(value)
        return _Number(len(numbers) - 1)
    if id(value) in above:  # a function that calls itself
        raise _UnknownError
    above = (*above, id(value))
    if isinstance(value, types.FunctionType) and _is_optax(value):
        closure = tuple(_taken(_contents(cell), numbers, above) for cell in value.__closure__ or ())
        defaults, keywords = (_fixed(part) for part in (value.__defaults__, _pairs(value.__kwdefaults__)))
        return _Function(value.__code__, _home(value), defaults, keywords, closure)
    if isinstance(value, tuple | list | dict):
        _refuse_strangers(value.values() if isinstance(value, dict) else value)
        names, parts = (tuple(value), tuple(value.values())) if isinstance(value, dict) else ((), tuple(value))
        return _Several(type(value), names, tuple(_taken(part, numbers, above) for part in parts))
    return _fixed(value)


def _is_optax(function):
    return _home(function).partition(".")[0] == "optax"


def _home(function):
    """The module whose names it reads; `functools.wraps` gives a wrapper the `__module__` of what it wraps."""
    name = function.__globals__.get("__name__", "")
    module = sys.modules.get(name)
    return name if module is not None and vars(module) is function.__globals__ else ""


def _refuse_strangers(values):
    """Parts of a transformation that are not optax's are never run on made-up parameters, to see what is data."""
    if any(isinstance(value, types.FunctionType) and not _is_optax(value) for value in values):
        raise _UnknownError


def _contents(cell):
    try:
        return cell.cell_contents
    except ValueError as error:  # never assigned
        raise _UnknownError from error


def _fixed(value):
    try:
        hash(value)
    except TypeError as error:
        raise _UnknownError from error
    return _Fixed(type(value), value)


def _pairs(keywords):
    return None if keywords is None else tuple(sorted(keywords.items()))


def _made(code, numbers):
    """The value that `_taken` has taken apart."""
    if isinstance(code, _Number):
        return numbers[code.index]
    if isinstance(code, _Fixed):
        return code.value
    if isinstance(code, _Several):
        parts = [_made(part, numbers) for part in code.parts]
        if issubclass(code.kind, dict):
            return code.kind(zip(code.names, parts, strict=True))
        return code.kind(*parts) if hasattr(code.kind, "_fields") else code.kind(parts)
    cells = tuple(types.CellType(_made(part, numbers)) for part in code.closure)
    where = vars(sys.modules[code.module])
    function = types.FunctionType(code.code, where, code.code.co_name, code.defaults.value, cells)
    function.__kwdefaults__ = None if code.keywords.value is None else dict(code.keywords.value)
    return function


def _floating(value):
    return jnp.issubdtype(value.dtype, jnp.floating)


def _free(codes, numbers, kind):
    """Indices of the numbers that may be data: arrays always, others where an update shows it."""
    settings = codes, kind, tuple(map(type, numbers)), jax.config.jax_enable_x64
    known = _KEPT.setdefault(settings, [])
    _KEPT.move_to_end(settings)
    if len(_KEPT) > 64:
        _KEPT.popitem(last=False)
    for free, fixed in known:
        if fixed == tuple(number for i, number in enumerate(numbers) if i not in free):
            return free
    free = tuple(i for i, n in enumerate(numbers) if isinstance(n, jax.Array) or _is_late(codes, numbers, i, kind))
    known.append((free, tuple(number for i, number in enumerate(numbers) if i not in free)))
    del known[:-64]
    return free


def _is_late(codes, numbers, index, kind):
    """Whether a number meets nothing but arrays in one update, by no power and in no branch."""
    import optax

    others = [jnp.asarray(0.0) if isinstance(n, jax.Array) else n for n in numbers]  # those of an outer trace

    def update(number, params):
        every = [number if i == index else other for i, other in enumerate(others)]
        one = kind(*(_made(code, every) for code in codes))
        more = {"value": jnp.asarray(1.0), "grad": params, "value_fn": lambda p: jnp.sum(p["vector"])}
        return optax.with_extra_args_support(one).update(params, one.init(params), params, **more)

    params = {name: jax.ShapeDtypeStruct(shape, jnp.result_type(float)) for name, shape in _SHAPES.items()}
    try:
        jaxpr = jax.make_jaxpr(update)(numbers[index], params)
    except Exception:  # a branch, or parameters of a certain form
        return False
    return not _meets_constants(jaxpr.jaxpr)


def _meets_constants(jaxpr):
    """Whether the first input meets only itself and constants in an equation that computes, a power or another body."""
    alone = {jaxpr.invars[0]}
    for equation in jaxpr.eqns:
        read = [v for v in equation.invars if not isinstance(v, jex.Literal)]
        if not any(v in alone for v in read):
            continue
        if equation.primitive.name in _MOVED:
            alone |= set(equation.outvars)
        elif equation.primitive.name not in _SIMPLE or all(v in alone for v in read):
            return True
    return False


_MOVED = {"convert_element_type", "broadcast_in_dim", "neg", "copy", "reshape", "squeeze", "stop_gradient"}
_SIMPLE = {"mul", "add", "sub", "div", "max", "min", "lt", "le", "gt", "ge", "select_n"}
