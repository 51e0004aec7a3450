"""MEASURED: every use of a parameter leaf followed to where it ends, entry by entry.

An *end* is a contraction with data or a sum with data. On its way a leaf may be cut, moved, put beside others, scaled
by a constant and scanned over; which of its entries lies where is carried along as an array of indices, -1 where an
entry of another leaf lies. So nothing is concluded from shapes.
"""

import math
from typing import Any, NamedTuple

import jax
import numpy as np

from numdl.analysis import _sites
from numdl.tracing._programs import CONTRACTIONS

_CASTS = {"convert_element_type", "copy"}
_JOINS = {"concatenate", "stack"}
_ADDS = {"add", "add_any"}


class End(NamedTuple):
    """Where a leaf meets data."""

    program: Any
    step: Any  # a contraction, or a sum
    slot: int  # what it reads there
    index: np.ndarray  # [scans of its own ..., shape of the slot]: entries of the leaf, -1 where it has none
    scale: float  # what the entries were multiplied with
    own: tuple  # for each scan around it: whether each step has its own part of the leaf
    lengths: tuple

    @property
    def contracts(self):
        """Whether it is a contraction."""
        return self.step.name in CONTRACTIONS


class Elsewhere(Exception):  # noqa: N818
    """A leaf is used in a way that is no end: its text says which."""


def ends(program, slot, shape):
    """All ends of the leaf in this slot of the program; raises Elsewhere."""
    start = End(program, None, slot, np.arange(math.prod(shape)).reshape(shape), 1.0, (), ())
    return list(_follow(start, {}))


def carried(program, slot, target):
    """(which entries of a value lie where in `target`, what they are multiplied with on the way there), or None.

    None if the value does something else than move, whole, to `target` and no further than there.
    """
    readers, scale = reading(program, {}), 1.0
    index = np.arange(math.prod(program.avals[slot].shape)).reshape(program.avals[slot].shape)
    while slot != target:
        steps = readers[slot]
        if len(steps) != 1 or steps[0] is None or list(steps[0].reads).count(slot) != 1:
            return None
        (step,) = steps
        factor = _factor(program, step, list(step.reads).index(slot))
        moved = [(step.writes[0], index)] if factor else _moved(step, slot, index)
        if moved is None or len(moved) != 1 or moved[0][1].size != index.size or step.name in _JOINS:
            return None
        ((slot, index),), scale = moved, scale * (factor or 1.0)
    return (index, scale) if len(readers[target]) == 1 else None


def reading(program, known):
    """{slot: the steps that read it and matter}; made once for a program."""
    if id(program) not in known:
        live = program.live()
        known[id(program)] = {
            slot: [step for step in steps if step is None or id(step) in live]
            for slot, steps in program.readers().items()
        }
    return known[id(program)]


def _follow(at, known):
    for step in reading(at.program, known).get(at.slot, ()):
        if step is None:
            raise Elsewhere("an output")
        if list(step.reads).count(at.slot) != 1:
            raise Elsewhere(f"read twice by {step.name}")
        yield from _through(at, step, known)


def _through(at, step, known):
    """The ends behind one step."""
    place = list(step.reads).index(at.slot)
    if step.name in CONTRACTIONS and step.weight is not None and step.weight[0] == place:
        yield at._replace(step=step)
    elif (moved := _moved(step, at.slot, at.index, sum(at.own))) is not None:
        for slot, index in moved:
            yield from _follow(at._replace(slot=slot, index=index), known)
    elif (factor := _factor(at.program, step, place)) is not None:
        yield from _follow(at._replace(slot=step.writes[0], scale=at.scale * factor), known)
    elif step.name in _ADDS and at.program.values[step.writes[0]].data:
        yield at._replace(step=step)
    elif (inside := _sites.enter(step, at.slot)) is not None:
        yield from _follow(_inner(at, *inside), known)
    else:
        raise Elsewhere(step.name)


def _inner(at, program, slot, scans):
    for own, length in scans:
        at = at._replace(own=(*at.own, own), lengths=(*at.lengths, length))
    return at._replace(program=program, slot=slot)


# ---- what only moves -----------------------------------------------------------------------------------------------


def _moved(step, slot, index, lead=0):
    """[(slot, index)] behind a step that moves entries; None if it does something else. `lead` axes stay."""
    inner = index.shape[lead:]
    places = np.arange(math.prod(inner)).reshape(inner)
    if step.name in _CASTS:
        return [(step.writes[0], index)]
    if step.name == "split":
        cuts = np.cumsum(step.params["sizes"])[:-1]
        found = np.split(places, cuts, axis=step.params["axis"])
    elif step.name == "unstack":
        axis = step.params["axis"]
        found = [places.take(i, axis) for i in range(inner[axis])]
    elif step.name in _JOINS:
        found = [_beside(step, list(step.reads).index(slot), places)]
    elif step.name in _RULES:
        found = [_RULES[step.name](places, step.params)]
    else:
        return None
    flat = index.reshape(*index.shape[:lead], -1)
    return [(write, _taken(flat, each, lead, index)) for write, each in zip(step.writes, found)]


def _taken(flat, places, lead, index):
    taken = flat[..., np.maximum(places, 0).ravel()]
    return np.where(places.ravel() >= 0, taken, -1).reshape(*index.shape[:lead], *places.shape)


def _beside(step, place, places):
    filled = [np.full(variable.aval.shape, -1) for variable in step.equation.invars]
    filled[place] = places
    if step.name == "stack":
        return np.stack(filled, step.params["axis"])
    return np.concatenate(filled, step.params["dimension"])


def _sliced(places, params):
    strides = params["strides"] or (1,) * places.ndim
    return places[tuple(map(slice, params["start_indices"], params["limit_indices"], strides))]


def _broadcast(places, params):
    wide = [1] * len(params["shape"])
    for axis, target in enumerate(params["broadcast_dimensions"]):
        wide[target] = places.shape[axis]
    return np.broadcast_to(places.reshape(wide), params["shape"])


_RULES = {
    "reshape": lambda places, params: places.reshape(params["new_sizes"]),
    "squeeze": lambda places, params: np.squeeze(places, tuple(params["dimensions"])),
    "expand_dims": lambda places, params: np.expand_dims(places, tuple(params["dimensions"])),
    "transpose": lambda places, params: places.transpose(params["permutation"]),
    "rev": lambda places, params: np.flip(places, tuple(params["dimensions"])),
    "slice": _sliced,
    "broadcast_in_dim": _broadcast,
}


# ---- constants -----------------------------------------------------------------------------------------------------


def _factor(program, step, place):
    """The constant number with which a step multiplies; None if it does something else."""
    if step.name == "neg":
        return -1.0
    if step.name not in ("mul", "div") or (step.name == "div" and place):
        return None
    value = _number(program, step.reads[1 - place])
    if value is None:
        return None
    return value if step.name == "mul" else 1 / value if value else None


def _number(program, slot):
    """The one number that a literal, or a value computed from literals alone, holds; None: it is not known."""
    value = _constant(program, slot)
    flat = None if value is None else np.asarray(value, np.float64).ravel()
    return float(flat[0]) if flat is not None and len(flat) and (flat == flat[0]).all() else None


def _constant(program, slot):
    if not isinstance(slot, int):
        return np.asarray(slot.val, slot.aval.dtype)
    if slot in program.captured:
        value = program.constants[program.captured[slot]]
        return None if isinstance(value, jax.core.Tracer) or np.size(value) > 1 else np.asarray(value)
    step = program.writer(slot)
    if step is None or step.inner or len(step.writes) != 1:
        return None
    if step.name == "broadcast_in_dim":
        return _constant(program, step.reads[0])
    if math.prod(program.avals[slot].shape) > 1:
        return None
    values = [_constant(program, read) for read in step.reads]
    return None if any(value is None for value in values) else _called(step, values)


def _called(step, values):
    with jax.ensure_compile_time_eval():
        return np.asarray(step.call(values)[0])
