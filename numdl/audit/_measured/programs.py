"""What the audit asks of a jaxpr: its equations, its work, and convolutions in the order that a CPU is quick at."""

import functools
import math
import os
import pathlib

import jax
import jax.extend.core as jex
import jax.numpy as jnp

from numdl.tracing._programs import scan_counts

CONVOLUTION = "conv_general_dilated"
THROUGH = {"stop_gradient", "round", "floor", "ceil"}  # derivative 0, and near what goes in
STOPS = {*THROUGH, "sign"}  # beside what puts out whole numbers or truth values
CALLS = {"jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint", "scan"}
NOT_THE_USERS = (os.path.join(os.path.dirname(jax.__file__), ""), os.path.join(pathlib.Path(__file__).parents[2], ""))
# A number made by itself costs 5 to 45 times as much as a multiplication in a product, without LLVM's expensive passes.
ALONE = 10


def equations(jaxpr):
    """All equations of a jaxpr, the inner ones after the one that holds them."""
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        yield equation
        for body in _bodies(equation):
            yield from equations(body)


def work(jaxpr):
    """Work of a jaxpr in multiplications of a matrix product. A loop of unknown length runs once."""
    return sum(_own(equation) + _repeats(equation) * sum(map(work, _bodies(equation))) for equation in _eqns(jaxpr))


def length(jaxpr):
    """Equations that run one after another, those in a loop as often as it runs."""
    return sum(1 + _repeats(equation) * sum(map(length, _bodies(equation))) for equation in _eqns(jaxpr))


def read(jaxpr):
    """For each input whether an output depends on it."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    wanted = {v for v in jaxpr.outvars if not isinstance(v, jex.Literal)}
    for equation in reversed(jaxpr.eqns):
        if not wanted.isdisjoint(equation.outvars):
            wanted.update(v for v in equation.invars if not isinstance(v, jex.Literal))
    return tuple(v in wanted for v in jaxpr.invars)


def stops(jaxpr, moving):
    """Where the derivative by the inputs marked in `moving` ends, as text; nothing where some output has one.

    Of the equations without a derivative the last ones on each way from those inputs to the outputs.
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    if _moved(jaxpr, moving).isdisjoint(v for v in jaxpr.outvars if not isinstance(v, jex.Literal)):
        return tuple(dict.fromkeys(_line(*each) for each in _last(jaxpr, moving, [True] * len(jaxpr.outvars))))
    return ()


def _line(equation, *around):
    """What an equation does and in which line of the user's file, as far as it or those around it know."""
    sources = [getattr(each.source_info, "traceback", None) for each in (equation, *around)]
    frames = [frame for source in sources for frame in getattr(source, "frames", ())]
    own = next((f for f in frames if not f.file_name.startswith(NOT_THE_USERS)), None)
    place = "" if own is None else f" in {own.function_name} ({os.path.basename(own.file_name)}, line {own.line_num})"
    return equation.primitive.name + place


def _moved(jaxpr, moving):
    """Variables with a derivative by the marked inputs."""
    found = {v for v, own in zip(jaxpr.invars, moving) if own}
    for equation in jaxpr.eqns:
        if equation.primitive.name in STOPS or found.isdisjoint(_reads(equation)):
            continue
        body, own = _entered(equation, [v in found for v in _slots(equation)])
        inner = None if body is None else _moved(body, own)
        moves = [inner is None or v in inner for v in (equation if body is None else body).outvars]
        found.update(v for v, own in zip(equation.outvars, moves) if own and _has_derivative(v.aval))
    return found


def _last(jaxpr, moving, wanted):
    """[(equation, those around it)]: where the wanted outputs last depend on what has a derivative."""
    found, moved = [], _moved(jaxpr, moving)
    wanted = {v for v, own in zip(jaxpr.outvars, wanted) if own and not isinstance(v, jex.Literal)}
    for equation in reversed(jaxpr.eqns):
        asked = [v in wanted for v in equation.outvars]
        if not any(asked):
            continue
        reads = _reads(equation)
        if not moved.isdisjoint(reads):
            body, own = _entered(equation, [v in moved for v in _slots(equation)])
            found += [(*each, equation) for each in ([()] if body is None else _last(body, own, asked))]
        wanted.update(v for v in reads if v not in moved)
    return found


def _slots(equation):
    """Inputs of an equation; None stands for a number."""
    return [None if isinstance(v, jex.Literal) else v for v in equation.invars]


def _reads(equation):
    return [v for v in _slots(equation) if v is not None]


def _entered(equation, marked):
    """(the jaxpr in a call or a scan, its marked inputs); None for what is taken as a whole."""
    if equation.primitive.name not in CALLS:
        return None, marked
    (body,) = (getattr(inner, "jaxpr", inner) for inner in _bodies(equation))
    if equation.primitive.name == "scan":
        consts, carries = scan_counts(equation.params)
        for _ in range(carries):  # a carry that moves is marked from the next step on
            moved = _moved(body, marked)
            again = [own or v in moved for own, v in zip(marked[consts : consts + carries], body.outvars)]
            marked = [*marked[:consts], *again, *marked[consts + carries :]]
    return body, marked


def _has_derivative(aval):
    return jnp.issubdtype(getattr(aval, "dtype", jnp.int32), jnp.inexact)


def looked(call, params, x, look):
    """What `look(equation, values, own)` finds in call(params, x), equation by equation: a list of arrays.

    `own` says which of the values depend on x. `look` returns an array, or None where there is nothing to see. Calls
    and scans are entered, a scan's findings are stacked over its steps; other loops and branches are taken as a whole.
    """
    closed, values = jax.make_jaxpr(call)(params, x), jax.tree.leaves((params, x))
    theirs = len(jax.tree.leaves(x))
    marked = [place >= len(values) - theirs for place in range(len(values))]
    return _looked(closed.jaxpr, closed.consts, values, look, marked)[1]


def _looked(jaxpr, consts, values, look, marked):
    """(outputs, what was found) of a jaxpr, evaluated equation by equation."""
    slots, found = dict(zip(jaxpr.constvars, consts)) | dict(zip(jaxpr.invars, values)), []
    depend = {v for v, own in zip(jaxpr.invars, marked) if own}
    for equation in jaxpr.eqns:
        reads = [v.val if isinstance(v, jex.Literal) else slots[v] for v in equation.invars]
        own = [v in depend for v in _slots(equation)]
        seen = look(equation, reads, own)
        outs, more = _entering(equation, reads, look, own) or (_evaluated(equation, reads, jaxpr), [])
        found += more if seen is None else [seen, *more]
        slots.update(zip(equation.outvars, outs))
        depend.update(equation.outvars if any(own) else ())
    return [v.val if isinstance(v, jex.Literal) else slots[v] for v in jaxpr.outvars], found


def _entering(equation, values, look, own):
    """(outputs, what was found) within a call or a scan; None for what is taken as a whole."""
    bodies = list(_bodies(equation))
    named = equation.primitive.name in CALLS or equation.primitive.name.startswith("custom_")
    if not named or len(bodies) != 1 or len(getattr(bodies[0], "jaxpr", bodies[0]).invars) != len(values):
        return None
    body, consts = getattr(bodies[0], "jaxpr", bodies[0]), getattr(bodies[0], "consts", ())
    if equation.primitive.name != "scan":
        return _looked(body, consts, values, look, own)
    fixed, carries = scan_counts(equation.params)
    carry, over = values[fixed : fixed + carries], values[fixed + carries :]
    own = [*own[:fixed], *[any(own)] * carries, *own[fixed + carries :]]

    def step(carry, slices):
        outs, found = _looked(body, consts, [*values[:fixed], *carry, *slices], look, own)
        return outs[:carries], (outs[carries:], found)

    options = {name: equation.params[name] for name in ("length", "reverse")}
    carry, (outs, found) = jax.lax.scan(step, carry, over, **options)
    return [*carry, *outs], found


def convolves(jaxpr):
    return any(map(_is_convolution, equations(jaxpr)))


def _is_convolution(equation, *around):
    return equation.primitive.name == CONVOLUTION


def channels_last(function):
    """The same function, its convolutions transposed to [N, ..., C], those inside of loops too.

    XLA brings a convolution into the layout of its fast CPU routine at the top of a program only. In the body of a loop
    the gradient of a convolution, whose axes lie in another order, would be a plain nest of loops over single numbers.
    """
    return _changed(function, _is_convolution, lambda equation, values: [_convolution(*values, **equation.params)])


def let_through(function, lines):
    """The same function without the steps that end its gradient in these lines, of `stops`: what goes in comes out."""

    def concerned(equation, *around):
        return equation.primitive.name in THROUGH and _line(equation, *around) in lines

    return _changed(function, concerned, lambda equation, values: values[:1])


def _eqns(jaxpr):
    return getattr(jaxpr, "jaxpr", jaxpr).eqns


def _is_jaxpr(value):
    return isinstance(value, jex.Jaxpr | jex.ClosedJaxpr)


def _bodies(equation):
    for value in equation.params.values():
        for body in value if isinstance(value, tuple | list) else (value,):
            if _is_jaxpr(body):
                yield body


def _repeats(equation):
    return equation.params["length"] if equation.primitive.name == "scan" else 1


def _own(equation):
    if any(True for _ in _bodies(equation)):
        return 0
    shapes = [getattr(v.aval, "shape", ()) for v in (*equation.invars, *equation.outvars)]
    size = math.prod(shapes[-1])
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return size * math.prod(shapes[0][axis] for axis in contracted)
    if equation.primitive.name == CONVOLUTION:
        features = shapes[1][equation.params["dimension_numbers"].rhs_spec[0]]
        return size * math.prod(shapes[1]) // max(features, 1)
    whole = getattr(equation.outvars[-1].aval, "dtype", None)
    return ALONE * size * (4 if whole is not None and jnp.issubdtype(whole, jnp.complexfloating) else 1)


def _changed(function, concerned, act):
    """The same function with act(equation, values) for each equation with concerned(equation, *those around it)."""

    def changed(*arguments, **static):
        closed, shapes = jax.make_jaxpr(functools.partial(function, **static), return_shape=True)(*arguments)
        outputs = jex.jaxpr_as_fun(_rewritten(closed, concerned, act))(*jax.tree.leaves(arguments))
        return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

    return changed


def _rewritten(closed, concerned, act, around=()):
    """The closed jaxpr of the changed function; itself where nothing is concerned."""
    if not _any(concerned, closed, around):
        return closed
    jaxpr = getattr(closed, "jaxpr", closed)

    def run(*values):
        slots = dict(zip(jaxpr.constvars, getattr(closed, "consts", ()))) | dict(zip(jaxpr.invars, values))
        read = lambda v: v.val if isinstance(v, jex.Literal) else slots[v]  # noqa: E731
        for equation in jaxpr.eqns:
            reads = [read(v) for v in equation.invars]
            own = concerned(equation, *around)
            found = act(equation, reads) if own else _evaluated(inside(equation), reads, jaxpr)
            slots.update(zip(equation.outvars, found))
        return [read(v) for v in jaxpr.outvars]

    def inside(equation):
        if next(_bodies(equation), None) is None:
            return equation
        within = functools.partial(changed, around=(equation, *around))
        return equation.replace(params={name: within(value) for name, value in equation.params.items()})

    def changed(value, around):
        if isinstance(value, tuple | list) and any(map(_is_jaxpr, value)):
            return type(value)(changed(each, around) for each in value)
        if not _is_jaxpr(value):
            return value
        if isinstance(value, jex.ClosedJaxpr):
            return _rewritten(value, concerned, act, around)
        return _rewritten(jex.ClosedJaxpr(value, ()), concerned, act, around).jaxpr

    return jax.make_jaxpr(run)(*closed.in_avals)


def _any(concerned, jaxpr, around):
    return any(
        concerned(equation, *around) or any(_any(concerned, body, (equation, *around)) for body in _bodies(equation))
        for equation in _eqns(jaxpr)
    )


def _evaluated(equation, values, jaxpr):
    reads = {v: value for v, value in zip(equation.invars, values) if not isinstance(v, jex.Literal)}
    writes = [v for v in equation.outvars if not isinstance(v, jex.DropVar)]
    alone = jex.Jaxpr((), list(reads), writes, [equation], equation.effects, jaxpr.debug_info)
    found = iter(jex.jaxpr_as_fun(jex.ClosedJaxpr(alone, ()))(*reads.values()))
    return [None if isinstance(v, jex.DropVar) else next(found) for v in equation.outvars]


def _convolution(left, right, *, dimension_numbers, **params):
    spec, space = dimension_numbers, "XYZ"[: left.ndim - 2] if left.ndim < 6 else None
    if space is None:
        return jax.lax.conv_general_dilated(left, right, dimension_numbers=spec, **params)
    left = jnp.transpose(left, (spec.lhs_spec[0], *spec.lhs_spec[2:], spec.lhs_spec[1]))
    right = jnp.transpose(right, (*spec.rhs_spec[2:], spec.rhs_spec[1], spec.rhs_spec[0]))
    out = jax.lax.conv_general_dilated(
        left, right, dimension_numbers=(f"N{space}C", f"{space}IO", f"N{space}C"), **params
    )
    back = dict(zip((spec.out_spec[0], *spec.out_spec[2:], spec.out_spec[1]), range(out.ndim)))
    return jnp.transpose(out, [back[axis] for axis in range(out.ndim)])
