"""A program run again, with visits at its layers: scans, checkpoints and branches are rebuilt around them."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from numdl.tracing._programs import REMAT, calls, read_from, scan_counts


@dataclasses.dataclass(frozen=True)
class Visit:
    """What a run carries along: whom to call at states, weights and nonlinearities, and the closed-over arrays."""

    layers: tuple
    visit: Any
    weigh: Any
    watch: Any
    constants: Any


def run_program(program, values, visit, given):
    """(outputs, {layer: (visit's, weigh's, watch's)}) of a program at these inputs."""
    slots = dict(zip(program.inputs, values)) | {s: visit.constants[i] for s, i in program.captured.items()}
    found, seen, weighed, watched = {}, {}, {}, {}
    for step in program.steps:
        values = [read_from(slots, read) for read in step.reads]
        if step.weight is not None and visit.weigh is not None:
            operand, index = step.weight
            values[operand], weighed[index] = visit.weigh(visit.layers[index], values[operand], given[index])
        if step.entered:
            results, inside = _ENTER[step.name](step, values, visit, given)
            found.update(inside)
        else:
            results = step.call(values)
        for slot, result in zip(step.writes, results):
            slots[slot] = result
            for index in program.places.get(slot, ()):
                slots[slot], seen[index] = _visited(visit, index, slots[slot], given)
            if visit.watch is not None:
                for index in program.watched.get(slot, ()):
                    view = visit.layers[index].activation.view
                    watched[index] = visit.watch(visit.layers[index], view.see(slots[slot]) if view else slots[slot])
    found |= {index: (seen[index], weighed.get(index), watched.get(index)) for index in seen}
    return [read_from(slots, read) for read in program.outputs], found


def _visited(visit, index, state, given):
    view = visit.layers[index].view
    state, seen = visit.visit(visit.layers[index], view.see(state) if view else state, given[index])
    return (view.back(state) if view else state), seen


def _inside(given, *programs):
    """What is given to the layers in these programs."""
    indices = {index for program in programs for index, _ in calls(program, ())}
    return {index: given[index] for index in sorted(indices)}


def _run_scan(step, values, visit, given):
    body, params, (consts, carries) = step.inner[0], step.params, scan_counts(step.params)
    consts += step.more
    fixed, carry, xs = values[:consts], values[consts : consts + carries], values[consts + carries :]

    def one(carry, scanned):
        outputs, found = run_program(body, [*fixed, *carry, *scanned[0]], visit, scanned[1])
        return outputs[:carries], (outputs[carries:], found)

    settings = {name: params[name] for name in ("length", "reverse", "unroll")}
    carry, (ys, found) = jax.lax.scan(one, carry, (xs, _inside(given, body)), **settings)
    return [*carry, *ys], found


def _run_remat(step, values, visit, given):
    settings = {name: step.params[name] for name in ("prevent_cse", "policy")}
    run = jax.checkpoint(lambda values, given: run_program(step.inner[0], values, visit, given), **settings)
    return run(values, _inside(given, step.inner[0]))


def _run_cond(step, values, visit, given):
    """Every branch returns what the layers of all branches find: nan where the layer is in another one."""
    branches = [lambda values, given, body=body: run_program(body, values, visit, given) for body in step.inner]
    operands = (values[1:], _inside(given, *step.inner))
    shapes = {k: v for branch in branches for k, v in jax.eval_shape(branch, *operands)[1].items()}

    def filled(branch):
        def run(*operands):
            outputs, found = branch(*operands)
            return outputs, {k: found[k] if k in found else jax.tree.map(_nothing, shapes[k]) for k in sorted(shapes)}

        return run

    return jax.lax.switch(values[0], [filled(branch) for branch in branches], *operands)


def _nothing(shape):
    return jnp.full(shape.shape, jnp.nan if jnp.issubdtype(shape.dtype, jnp.inexact) else 0, shape.dtype)


_ENTER = {"scan": _run_scan, "cond": _run_cond, **dict.fromkeys(REMAT, _run_remat)}
