"""How well a program is compiled: quickly, where two hundred runs of it would not repay the time of doing it well.

On a CPU most of a first call goes into making the program fast: some 3.5 ms for each of its operations, which later
save about 1 ns for each sum of two numbers (measured; docs/decisions.md). What a program computes is followed from the
program itself, and no clock is asked, so that the same call always gives the same bits.
"""

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import jax

RUNS = 200  # of a program, unless it is told otherwise
SAVED = 1e-9  # seconds of a run for each sum of two numbers
SPENT = 3.5e-3  # seconds of compiling for each operation
TURNS = 30  # of a loop whose end depends on what it computes
# What other operations cost where they are compiled quickly, in sums of two numbers: a random word (rounds counted), a
# function, and a product of matrices, of a vector and a matrix, of a convolution (measured).
_DRAWN, _FUNCTION, _MATRIX, _VECTOR, _WINDOW = 100, 4, 0.25, 4, 0.05
# fmt: off
_FUNCTIONS = {"cbrt", "cos", "cosh", "digamma", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "lgamma", "log",
              "log1p", "logistic", "pow", "sin", "sinh", "tan", "tanh"}
# fmt: on
_MOST_KNOWN = 256  # programs of one function


class Found:
    """What is known of a function's programs: nothing that the function holds."""

    def __init__(self):
        self.small, self.quick = {}, []  # call -> whether; the program compiled quickly


def jit(
    function: Callable,
    static_argnums: int | tuple = (),
    static_argnames: str | tuple = (),
    runs: int | None = RUNS,
) -> Callable:
    """`jax.jit` that compiles a small program quickly.

    Parameters
    ----------
    function : function         of pytrees
    static_argnums : int or tuple of int        as of `jax.jit`
    static_argnames : str or tuple of str       as of `jax.jit`
    runs : int                  that must repay compiling it well; None: always well, whatever the shapes
    Returns
    -------
    function                    with the methods of a compiled one that the package and its tests use
    """
    indices, names = static(function, static_argnums, static_argnames)
    made = functools.partial(jax.jit, function, static_argnums=indices, static_argnames=tuple(names))
    well, found = made(), Found()

    def chosen(arguments, keywords):
        if jax.default_backend() != "cpu" or not _at_top() or jax.config.jax_disable_jit:
            return well  # a program within another one is compiled with that one
        known = _known_by(*parts(indices, names, arguments, keywords))
        try:
            answer = found.small.get(known)
        except TypeError:  # no hash: jax says so
            return well
        if answer is None:
            if len(found.small) > _MOST_KNOWN or not call._cache_size():  # jax.clear_caches() was called
                found.small.clear()
            answer = found.small[known] = is_small(well.trace(*arguments, **keywords).jaxpr, runs)
        if answer and not found.quick:
            found.quick.append(made(compiler_options=options()))
        return found.quick[0] if answer else well

    @functools.wraps(function)
    def call(*arguments, **keywords):
        run = well if runs is None else chosen(arguments, keywords)
        return run(*arguments, **keywords)

    call.trace, call.eval_shape, call.lower = well.trace, well.eval_shape, well.lower
    call._cache_size = lambda: sum(run._cache_size() for run in (well, *found.quick))
    call.clear_cache = lambda: [run.clear_cache() for run in (well, *found.quick)]
    return call


def static(function: Callable, indices: int | tuple, names: str | tuple) -> tuple[tuple, frozenset]:
    """(indices, names) of the arguments that are no data, whether they come by place or by name.

    Parameters
    ----------
    function : function
    indices : int or tuple of int
    names : str or tuple of str
    """
    by_place = {indices} if isinstance(indices, int) else set(indices)
    by_name = {names} if isinstance(names, str) else set(names)
    if not by_place and not by_name:
        return (), frozenset()
    parameters = inspect.signature(function).parameters
    places = [name for name, each in parameters.items() if each.kind is each.POSITIONAL_OR_KEYWORD]
    by_place |= {places.index(name) for name in by_name if name in places}
    return tuple(sorted(by_place)), frozenset(by_name | {places[i] for i in by_place if i < len(places)})


def parts(indices: tuple, names: frozenset, arguments: tuple, keywords: dict) -> tuple[tuple, list]:
    """(what is no data, what is) of a call.

    Parameters
    ----------
    indices, names : of what is no data
    arguments : tuple
    keywords : dict
    """
    fixed = [value for i, value in enumerate(arguments) if i in indices]
    fixed += [value for name, value in keywords.items() if name in names]
    data = [value for i, value in enumerate(arguments) if i not in indices]
    data += [value for name, value in keywords.items() if name not in names]
    return tuple(fixed), data


def _known_by(fixed, data):
    """What a program belongs to."""
    leaves, structure = jax.tree.flatten(data)
    kinds = tuple((leaf.shape, leaf.dtype) if hasattr(leaf, "dtype") else type(leaf) for leaf in leaves)
    return fixed, structure, kinds


@functools.cache
def options() -> dict[str, Any]:
    """What XLA is told where it shall compile quickly: of the two the options that this version knows."""
    level = {"xla_backend_optimization_level": 0}
    simple = {"xla_cpu_use_fusion_emitters": False}  # half the time; jaxlib 0.12 has no choice there any more
    try:
        jax.jit(lambda: 0, compiler_options=simple).lower().compile()
    except jax.errors.JaxRuntimeError:
        return level
    return level | simple


def is_small(program: Any, runs: int) -> bool:
    """Whether so many runs cost less than what compiling the program well takes.

    Parameters
    ----------
    program : closed jaxpr
    runs : int
    """
    operations, numbers = work(program.jaxpr)
    return runs * SAVED * numbers < SPENT * operations


def work(jaxpr: Any) -> tuple[int, float]:
    """(operations that are compiled, what a run costs in sums of two numbers) of a program.

    Parameters
    ----------
    jaxpr : jaxpr
    """
    operations, numbers = 0, 0.0
    for equation in jaxpr.eqns:
        inner = [work(getattr(body, "jaxpr", body)) for body in _bodies(equation)]
        if inner:
            operations += sum(size for size, _ in inner)
            numbers += _turns(equation) * (max if equation.primitive.name == "cond" else sum)(n for _, n in inner)
        else:
            operations += 1
            numbers += _numbers(equation)
    return operations, numbers


def _bodies(equation):
    from jax.extend.core import jaxprs_in_params  # takes as long to import as the rest of the package

    return jaxprs_in_params(equation.params)


def _turns(equation):
    name = equation.primitive.name
    return equation.params["length"] if name == "scan" else TURNS if name == "while" else 1


def _numbers(equation):
    """What an operation costs where it is compiled quickly, in sums of two numbers."""
    name, after = equation.primitive.name, sum(map(_size, equation.outvars))
    if name == "dot_general":
        (axes, _), (shared, _) = equation.params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        inner, beside = (math.prod(shape[axis] for axis in part) for part in (axes, shared))
        rows = [_size(side) // max(inner * beside, 1) for side in equation.invars]
        return after * inner * (_VECTOR if min(rows) <= 1 else _MATRIX)
    if name == "conv_general_dilated":
        window, axes = equation.invars[1].aval.shape, equation.params["dimension_numbers"].rhs_spec[1:]
        return after * math.prod(window[axis] for axis in axes) * _WINDOW
    if name == "random_bits":
        return _DRAWN * after
    if name.startswith("reduce"):
        return max(after, *map(_size, equation.invars))
    return after * (_FUNCTION if name in _FUNCTIONS else 1)


def _size(value):
    return math.prod(getattr(value.aval, "shape", ()))


def _at_top():
    """Whether no program is being traced here."""
    state, top = _states()
    return state() == top


@functools.cache
def _states():
    from jax.extend.core import get_opaque_trace_state

    with jax.core.eval_context():
        return get_opaque_trace_state, get_opaque_trace_state()
