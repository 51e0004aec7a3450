"""MEASURED: what the backward pass keeps of each line of a summary: residuals of `jax.vjp`, where they are made.

The function is run once more, abstractly, with a mark where each line begins; a residual belongs to the line whose mark
came last. Inside of a scan a residual has a step's part in every step; what a checkpoint recomputes is not there.
"""

import math

import jax
import jax.extend.core as jex
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from numdl.tracing._programs import REMAT, bodies, read_from, scan_counts

MARK = "numdl line "


def kept(traced, marks, params, x):
    """Bytes kept for the gradient with respect to the parameters, of each mark (program, slot), and before the first.

    Returns ({number of the mark, -1 before the first: bytes}, None), or (None, a text: why there is no gradient).
    """
    leaves, numbers = jax.tree.leaves(params), {(id(program), slot): i for i, (program, slot) in enumerate(marks)}
    moving = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    if not moving:
        return {}, None

    def residuals(leaves, x):
        def outputs(chosen):
            full = list(leaves)
            for i, leaf in zip(moving, chosen, strict=True):
                full[i] = leaf
            found = _run(traced.program, [*full, *jax.tree.leaves(x)], traced, numbers)
            return [leaf for leaf in found if jnp.issubdtype(leaf.dtype, jnp.inexact)]

        made, pull = jax.vjp(outputs, [leaves[i] for i in moving])
        pull(made)  # a loop of unknown length has residuals, and no gradient
        return jax.tree.leaves(pull)

    try:
        closed = jax.make_jaxpr(residuals)(leaves, x)
    except (TypeError, ValueError, NotImplementedError) as error:
        return None, f"no gradient: {str(error).splitlines()[0]}"
    jaxpr = getattr(closed, "jaxpr", closed)
    given, found = {*jaxpr.invars, *jaxpr.constvars}, {}
    made = [v for v in jaxpr.outvars if not isinstance(v, jex.Literal) and v not in given]
    _attribute(jaxpr, dict.fromkeys(made, 1), -1, found)
    return found, None


def _run(program, values, traced, numbers):
    """The outputs of a program with a name where lines begin."""
    slots = dict(zip(program.inputs, values, strict=True))
    slots |= {slot: traced.constants[i] for slot, i in program.captured.items()}
    for step in program.steps:
        values = [read_from(slots, read) for read in step.reads]
        enter = _ENTER["remat" if step.name in REMAT else step.name] if step.entered else None
        results = step.call(values) if enter is None else enter(step, values, traced, numbers)
        for slot, result in zip(step.writes, results, strict=True):
            number = numbers.get((id(program), slot))
            slots[slot] = result if number is None else checkpoint_name(result, f"{MARK}{number}")
    return [read_from(slots, read) for read in program.outputs]


def _scan(step, values, traced, numbers):
    consts, carries = scan_counts(step.params)
    begin = consts + carries

    def one(carry, scanned):
        outputs = _run(step.inner[0], [*values[:consts], *carry, *scanned], traced, numbers)
        return outputs[:carries], outputs[carries:]

    length, backwards = step.params["length"], step.params["reverse"]
    carry, ys = jax.lax.scan(one, values[consts:begin], values[begin:], length=length, reverse=backwards)
    return [*carry, *ys]


def _remat(step, values, traced, numbers):
    policy = step.params["policy"]
    return jax.checkpoint(lambda *given: _run(step.inner[0], given, traced, numbers), policy=policy)(*values)


def _cond(step, values, traced, numbers):
    branches = [lambda *given, body=body: _run(body, given, traced, numbers) for body in step.inner]
    return jax.lax.switch(values[0], branches, *values[1:])


_ENTER = {"scan": _scan, "remat": _remat, "cond": _cond}


def _attribute(jaxpr, wanted, line, found):
    """Add the bytes of the wanted values to the lines that make them; wanted: {variable: how many there are}."""
    for equation in jaxpr.eqns:
        name = equation.params["name"] if equation.primitive.name == "name" else ""
        if name.startswith(MARK):
            line = int(name.removeprefix(MARK))
        outside = {place: wanted[v] for place, v in enumerate(equation.outvars) if v in wanted}
        inner = next(bodies(equation), None)
        if inner is None or equation.primitive.name in _OPAQUE:
            _add(found, line, equation.outvars, outside)
            continue
        inner, times = getattr(inner, "jaxpr", inner), 1
        if equation.primitive.name == "scan":
            carries = scan_counts(equation.params)[1]
            times = equation.params["length"]
            last = {place: count for place, count in outside.items() if place < carries}
            _add(found, line, equation.outvars, last)
            outside = {place: count for place, count in outside.items() if place >= carries}
        line = _inner(inner, outside, times, line, found)
    return line


def _inner(inner, outside, times, line, found):
    """The same inside of an equation; what its body was given is its first line's."""
    wanted, given = {}, {*inner.invars, *inner.constvars}
    first = next((int(n.removeprefix(MARK)) for n in _names(inner) if n.startswith(MARK)), line)
    for place, count in outside.items():
        variable = inner.outvars[place]
        if isinstance(variable, jex.Literal) or variable in given:
            _add(found, first, [variable], {0: count * times})
        else:
            wanted[variable] = wanted.get(variable, 0) + count * times
    return _attribute(inner, wanted, line, found)


def _names(jaxpr):
    for equation in jaxpr.eqns:
        if equation.primitive.name == "name":
            yield equation.params["name"]
        for body in bodies(equation):
            yield from _names(getattr(body, "jaxpr", body))


def _add(found, line, variables, places):
    for place, count in places.items():
        aval = variables[place].aval
        size = math.prod(aval.shape) * (aval.dtype.itemsize if hasattr(aval.dtype, "itemsize") else 0)
        found[line] = found.get(line, 0) + count * size


_OPAQUE = {"while", "cond", "reduce", "reduce_window", "custom_jvp_call", "custom_vjp_call"}
