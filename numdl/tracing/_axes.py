"""What every value of a program is made of, and where its axes come from: followed from the inputs, step by step."""

import math
from typing import NamedTuple

from numdl.tracing import _layouts
from numdl.tracing._programs import CUSTOM, REMAT, bodies, flatten, scan_counts
from numdl.tracing._rules import RULES, after

_CALLS = REMAT | CUSTOM | {"custom_vmap_call"}
EXAMPLES = -1  # the source that stands for x's examples; a parameter leaf is its index


class Value(NamedTuple):
    """Data, or parameters alone, or neither; the largest leaf in it, and the layout of each source."""

    data: bool = False
    leaf: int | None = None
    size: int = 0  # entries of the leaf that reach this value, not counting copies by broadcasting
    layouts: dict = {}  # noqa: RUF012  source -> Layout, never changed

    @property
    def made(self):
        """Whether the value is made of parameters alone."""
        return not self.data and self.leaf is not None

    @property
    def examples(self):
        """The layout of x's examples, if the value is data."""
        return self.layouts.get(EXAMPLES)


NOTHING = Value()


def parameter(index, shape):
    """The value of a leaf of the parameters."""
    return Value(False, index, math.prod(shape), {index: _layouts.start(shape, range(len(shape)))})


def data(shape, axis):
    """The value of a leaf of x; `axis` is that of the examples, None if it has none."""
    if axis is None:
        return Value(True)
    parts = list(_layouts.blank(shape))
    parts[axis] = (_layouts.Part(0, 1, shape[axis]),)
    return Value(True, layouts={EXAMPLES: _layouts.Layout(tuple(parts))})


class Follower:
    """Walks programs and leaves in each, as `program.values`, the value of every slot."""

    def __init__(self):
        self.small = {}  # programs that hold no layer, by jaxpr

    def follow(self, program, inputs):
        """The values of the outputs, given those of the inputs."""
        known = dict.fromkeys(program.captured, NOTHING) | dict(zip(program.inputs, inputs))
        for step in program.steps:
            values = read(known, step.reads)
            known.update(zip(step.writes, self.step(program, step, values)))
        program.values = known
        return read(known, program.outputs)

    def step(self, program, step, values):
        shapes = [tuple(getattr(program.avals[slot], "shape", ())) for slot in step.writes]
        if not any(value.data or value.leaf is not None for value in values):
            return [NOTHING] * len(shapes)
        if step.name in RULES:
            return self.plain(program, step, values, shapes)
        inner = self.inner(step)
        if step.name == "scan":
            return self.scan(step, inner[0], values, shapes)
        if step.name == "while":
            return self.loop(step, inner, values)
        if step.name == "cond":
            outputs = [self.follow(body, values[1:]) for body in inner]
            return [combine(several, shape) for several, shape in zip(zip(*outputs), shapes)]
        before = [shape_of(program, slot) for slot in step.reads]
        if step.name in _CALLS and inner and _is_called(inner[0], before, shapes):
            return self.follow(inner[0], values[len(values) - len(inner[0].inputs) :])
        return self.plain(program, step, values, shapes)

    def plain(self, program, step, values, shapes):
        """The values after one primitive: its rule is asked for every source."""
        made = mixed(values)
        before = [shape_of(program, slot) for slot in step.reads]
        sources = [EXAMPLES] if made.data else made.layouts
        found = {
            source: after(step, [value.layouts.get(source) for value in values], before, shapes)
            for source in sources
            if any(source in value.layouts for value in values)
        }
        return [
            made._replace(size=min(made.size, math.prod(shape)), layouts={s: each[i] for s, each in found.items()})
            for i, shape in enumerate(shapes)
        ]

    def scan(self, step, body, values, shapes):
        """A scan: what a carry is made of is known once a further step changes nothing."""
        consts, carries = scan_counts(step.params)
        inputs = [*values[: consts + carries], *map(_scanned, values[consts + carries :])]
        inputs = [value._replace(size=min(value.size, _size(body, slot))) for value, slot in zip(inputs, body.inputs)]
        outputs = self.settled(body, inputs, consts, carries)
        first = {}
        for value in values[consts + carries :]:
            first |= {
                s: each.axes[0] for s, each in value.layouts.items() if s not in first or each.axes[0][0].axis == 0
            }
        length = step.params["length"]
        ys = [_stacked(value, first, length, shape) for value, shape in zip(outputs[carries:], shapes[carries:])]
        return [*outputs[:carries], *ys]

    def loop(self, step, inner, values):
        """A while loop; what the condition reads changes no axis."""
        jaxprs = list(bodies(step.equation))
        body = inner[next(i for i, jaxpr in enumerate(jaxprs) if jaxpr is step.params["body_jaxpr"])]
        carries = len(step.writes)
        consts = len(body.inputs) - carries
        inputs = [*values[len(values) - carries - consts : len(values) - carries], *values[len(values) - carries :]]
        return self.settled(body, inputs, consts, carries)

    def settled(self, body, inputs, consts, carries):
        """The outputs of a loop's body at the fixed point of its carries."""
        shapes = [_shape(body, slot) for slot in body.inputs[consts : consts + carries]]
        for _ in range(20):
            outputs = self.follow(body, inputs)
            carried = inputs[consts : consts + carries]
            new = [combine(pair, shape) for pair, shape in zip(zip(carried, outputs), shapes)]
            if new == carried:
                break
            inputs = [*inputs[:consts], *new, *inputs[consts + carries :]]
        return [*carried, *outputs[carries:]]

    def guess(self, program, step, body, values):
        """Values in a body that is not called with the step's operands: what they are made of, no axes."""
        if body.values:
            return
        before = [shape_of(program, slot) for slot in step.reads]
        inside = [_shape(body, slot) for slot in body.inputs]
        called = inside == before[len(before) - len(inside) :] and step.name in _CALLS
        blanket = [mixed(values)._replace(layouts={})] * len(inside)
        self.follow(body, values[len(values) - len(inside) :] if called else blanket)

    def inner(self, step):
        """The programs inside a step; one that holds no layer is flattened once for all steps that share its jaxpr."""
        if step.inner:
            return step.inner
        found = []
        for jaxpr in bodies(step.equation):
            if id(jaxpr) not in self.small:
                self.small[id(jaxpr)] = jaxpr, flatten(jaxpr, [])
            found.append(self.small[id(jaxpr)][1])
        return found


def read(known, reads):
    """The values of these slots; a literal is nothing."""
    return [known[slot] if isinstance(slot, int) else NOTHING for slot in reads]


def combine(values, shape):
    """The value of what is one of these, or computed elementwise from them."""
    made = mixed(values)
    sources = [EXAMPLES] if made.data else made.layouts
    found = {
        source: _layouts.join([value.layouts.get(source) for value in values], shape)
        for source in sources
        if any(source in value.layouts for value in values)
    }
    return made._replace(layouts=found)


def shape_of(program, slot):
    """The shape of a slot or literal."""
    aval = program.avals[slot] if isinstance(slot, int) else slot.aval
    return tuple(getattr(aval, "shape", ()))


def _is_called(body, before, shapes):
    """Whether a step calls its body with its last operands: checkpoints, custom rules and their like."""
    inside = [_shape(body, slot) for slot in body.inputs]
    return inside == before[len(before) - len(inside) :] and [shape_of(body, slot) for slot in body.outputs] == shapes


def mixed(values):
    """What a value computed from these is made of; its layouts are still to be found."""
    if any(value.data for value in values):
        return Value(True)
    largest = max(values, key=lambda value: value.size)
    sources = {source: None for value in values for source in value.layouts}
    return Value(False, largest.leaf, largest.size, sources)


def _scanned(value):
    """One step's part of what is scanned over."""
    found = {}
    for source, layout in value.layouts.items():
        taken = [part.axis for part in layout.axes[0] if part.axis is not None]
        found[source] = _layouts.Layout(layout.axes[1:], (*layout.taken, *taken), layout.lost)
    return value._replace(layouts=found)


def _stacked(value, first, length, shape):
    """A scan's stacked output: its first axis runs with what was scanned over."""
    found = {}
    for source, layout in value.layouts.items():
        parts = first.get(source, _layouts.other(length))
        axes = {part.axis for part in parts}
        taken = tuple(axis for axis in layout.taken if axis not in axes)
        found[source] = _layouts.Layout((parts, *layout.axes), taken, layout.lost)
    size = value.size * length if value.made else value.size
    return value._replace(layouts=found, size=min(size, math.prod(shape)))


def _shape(program, slot):
    return tuple(getattr(program.avals[slot], "shape", ()))


def _size(program, slot):
    return math.prod(_shape(program, slot))
