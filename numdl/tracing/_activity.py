"""What acts on a layer's state: the elementwise function that follows, past normalization, biases and sums.

From the state on, as long as one step alone goes on with it: moves, sums with anything, products with what is the same
for whole axes (a norm's scale). What only enters a reduction (the norm's own mean and variance) does not count. Then
the steps that compute one function of one value, alone, are evaluated on a few numbers and compared with those we know.
A value that a scan carries is acted on in the next step and behind the last one: the function must be the same.
"""

import collections
import math

import jax.extend.core as jex
import numpy as np

from numdl.tracing import _scalars
from numdl.tracing._axes import NOTHING, shape_of
from numdl.tracing._programs import CUSTOM, REMAT, bodies, flatten, scan_counts, unread
from numdl.tracing._rules import REDUCTIONS, after

_MOVES = {"reshape", "squeeze", "transpose", "convert_element_type", "copy", "name", "reduce_precision"}
_SUMS = {"add", "add_any", "sub"}
_FORMS = {"reshape", "squeeze", "broadcast_in_dim", "slice"}  # where nothing is lost and nothing copied
_TAKEN = {"slice", "dynamic_slice", "squeeze"}
_LONGEST = 30  # steps from a state to what acts on it, and in one function
_DEEPEST = 8  # borders of scans between a value and what acts on it


def find(program, slot, tags, readers, around=()):
    """(name, slot that the function reads, the units' layout there); name None if none follows that we know.

    around : (program, step, readers, around)   what holds the step whose inside this program is; (): nothing does
    """
    for _ in range(_LONGEST):
        name = _function(program, slot, readers)
        step = None if name else _only(program, slot, readers)
        if step is None or len(step.writes) != 1 or not _is_affine(program, step, slot):
            return name or _acting(program, slot, readers, around, _DEEPEST), slot, tags
        if step.name in _MOVES:
            shapes = [tuple(program.avals[each].shape) for each in (slot, step.writes[0])]
            tags = after(step, [tags], shapes[:1], shapes[1:])[0]
        slot = step.writes[0]
    return None, slot, tags


def _acting(program, slot, readers, around, depth):
    """The name of the one function that acts on a value itself, here or wherever it is carried."""
    name = _function(program, slot, readers)
    if name is not None or depth == 0:
        return name
    ways = [way for step in _followed(program, slot, readers) for way in _onward(program, slot, readers, around, step)]
    if not ways or None in ways:
        return None
    name = _acting(*ways[0], depth - 1)
    return name if name and all(_acting(*way, depth - 1) == name for way in ways[1:]) else None


def _onward(program, slot, readers, around, step):
    """Where a value is found again behind a reader: (program, slot, readers, around) each; None: it is lost there."""
    if step is None:
        return _returned(program, slot, readers, around) if around else [None]
    if step.inner:
        return [_inside(program, slot, readers, around, body, step) for body in step.inner]
    kept = step.name in _FORMS and math.prod(shape_of(program, slot)) == math.prod(shape_of(program, step.writes[0]))
    return [(program, step.writes[0], readers, around) if kept else None]


def _returned(program, slot, readers, around):
    """Where a value that a body returns is found again; of those that a scan stacks, each that is taken out."""
    outer, step, outside, beyond = around
    consts, carries = scan_counts(step.params) if step.name == "scan" else (0, len(step.writes))
    ways = []
    for place in (i for i, output in enumerate(program.outputs) if output == slot):
        write = step.writes[place]
        if place >= carries:
            taken = [reader is not None and reader.name in _TAKEN for reader in outside[write]]
            ways += [(outer, r.writes[0], outside, beyond) if t else None for r, t in zip(outside[write], taken)]
            continue
        if step.name == "scan":
            ways.append((program, program.inputs[consts + place], readers, around))
        ways += [(outer, write, outside, beyond)] if outside[write] else []
    return ways


def _inside(program, slot, readers, around, body, step):
    """The value as the body of a scan, remat or cond reads it, at one place."""
    reads = list(step.reads)
    if step.name not in {"scan", "cond"} | REMAT or reads.count(slot) != 1:
        return None
    place = reads.index(slot) - len(reads) + len(body.inputs)
    inside = body.readers(unread(step, readers))
    return (body, body.inputs[place], inside, (program, step, readers, around)) if place >= 0 else None


def _only(program, slot, readers):
    """The step that alone goes on with this value; None if there are several, or it is returned."""
    steps = _followed(program, slot, readers)
    return steps[0] if None not in steps and len(steps) == 1 and list(steps[0].reads).count(slot) == 1 else None


def _followed(program, slot, readers):
    """The steps that go on with a value, and None where it is returned."""
    return [step for step in readers[slot] if step is None or not _is_statistic(program, step, readers, 4)]


def _is_statistic(program, step, readers, depth):
    """Whether all that comes of this step are sums, means or maxima."""
    if step.name in REDUCTIONS:
        return True
    if depth == 0 or (step.name not in _scalars.FUNCTIONS and step.name not in _MOVES):
        return False
    after = [reader for write in step.writes for reader in readers[write]]
    return bool(after) and all(
        reader is not None and _is_statistic(program, reader, readers, depth - 1) for reader in after
    )


def _is_affine(program, step, slot):
    if step.name in _MOVES or step.name in _SUMS or step.name == "neg":
        return True
    if step.name == "mul" or (step.name == "div" and step.reads[0] == slot):
        return all(each == slot or _is_shared(program, each, shape_of(program, step.writes[0])) for each in step.reads)
    return False


def _is_shared(program, read, shape, depth=6):
    """Whether a factor of numbers of this shape is no data, or data broadcast along an axis, or made of such alone."""
    if not isinstance(read, int) or not program.values[read].data or shape_of(program, read) != shape:
        return True
    step = program.writer(read)
    while step is not None and step.name in _MOVES:
        step = program.writer(step.reads[0])
    if step is None or depth == 0:
        return False
    wrote = shape_of(program, step.writes[0])
    if step.name == "broadcast_in_dim":
        spread = math.prod(shape_of(program, step.reads[0])) < math.prod(wrote)
        return spread or _is_shared(program, step.reads[0], shape_of(program, step.reads[0]), depth - 1)
    if _scalars.is_elementwise(step.name):  # Flax: (y - mean) * (rsqrt(variance) * scale)
        return all(_is_shared(program, each, wrote, depth - 1) for each in step.reads)
    return False


def _function(program, slot, readers):
    """The name of the function that the steps after this slot compute of it alone, up to where one value comes out."""
    values, done = {slot: _scalars.GRID}, set()
    for _ in range(_LONGEST):
        step = next((s for each in values for s in readers[each] if _ready(program, s, values, done)), None)
        if step is None:
            return None
        found = _evaluated(program, step, values)
        if found is None:
            return None
        done.add(id(step))
        values.update(zip(step.writes, found))
        out = [each for each in values if any(s is None or id(s) not in done for s in readers[each])]
        if out == [step.writes[0]] and step.name not in _MOVES:
            name = _scalars.named(values[out[0]])
            if name is not None:
                return name
    return None


def _ready(program, step, values, done):
    """Whether a step reads known values and constants only."""
    if step is None or id(step) in done or (step.name not in _scalars.FUNCTIONS and step.name not in CUSTOM):
        return False
    return all(_number(program, each, values) is not None for each in step.reads)


def _number(program, read, values):
    """What is known of a slot or literal: numbers, a constant, or None."""
    return values[read] if isinstance(read, int) and read in values else _constant(program, read)


def _constant(program, read):
    """The number that a slot or a literal holds everywhere, or None."""
    if isinstance(read, jex.Literal):
        return np.asarray(read.val, np.float64)[()] if np.ndim(read.val) == 0 and _is_real(read.aval) else None
    if read in program.captured:
        value = program.constants[program.captured[read]]
        return float(value) if isinstance(value, np.ndarray | np.generic) and np.ndim(value) == 0 else None
    step = program.writer(read)
    if step is None or program.values[read].data or program.values[read].made:
        return None
    if step.name == "broadcast_in_dim":
        return _constant(program, step.reads[0])
    given = [_constant(program, each) for each in step.reads] if step.name in _scalars.FUNCTIONS else [None]
    return None if any(each is None for each in given) else _scalars.FUNCTIONS[step.name](step.params, *given)


def _is_real(aval):
    return getattr(aval.dtype, "kind", "") in "biufV"  # V: bfloat16


def _evaluated(program, step, values):
    """What a step makes of these numbers: a list; None where that is not known."""
    given = [_number(program, each, values) for each in step.reads]
    if step.name not in CUSTOM:
        found = _scalars.FUNCTIONS[step.name](step.params, *given)
        return None if found is None else [found]
    body = flatten(next(bodies(step.equation)), [])
    body.values = collections.defaultdict(lambda: NOTHING)
    inside = dict(zip(body.inputs, given[len(given) - len(body.inputs) :]))
    for inner in body.steps:
        if not _ready(body, inner, inside, set()):
            return None
        found = _evaluated(body, inner, inside)
        if found is None:
            return None
        inside.update(zip(inner.writes, found))
    found = [_number(body, each, inside) for each in body.outputs]
    return None if any(each is None for each in found) else found
